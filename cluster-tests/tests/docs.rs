//! The reference pages say what the code says.

use anyhow::Result;
use cluster_tests::process::run;
use cluster_tests::repository;

/// With `UPDATE_REFERENCE` set (`make fix`), the pages are written instead.
#[tokio::test]
async fn reference_pages_are_fresh() -> Result<()> {
    let update = std::env::var_os("UPDATE_REFERENCE").is_some();
    let mut stale = Vec::new();
    for page in ["cli", "config", "metrics", "errors"] {
        let made = run(["reference", page]).await?;
        assert!(made.status.success(), "{made:?}");
        let file = repository().join(format!("docs/reference/{page}.md"));
        if update {
            std::fs::write(&file, &made.stdout)?;
        } else if std::fs::read_to_string(&file).unwrap_or_default() != made.stdout {
            stale.push(file);
        }
    }
    assert!(
        stale.is_empty(),
        "run `make fix`: {stale:?} are not what the code says"
    );
    Ok(())
}
