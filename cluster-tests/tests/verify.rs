//! `dunlin verify` as a command: how it ends, and what it prints.

use anyhow::Result;
use cluster_tests::process::{Dev, run};
use serde_json::Value;

#[tokio::test]
async fn a_server_that_keeps_its_promises_is_told_so() -> Result<()> {
    let server = Dev::start().await?;
    let url = server.url();
    let arguments = [
        "verify",
        "--url",
        &url,
        "--duration",
        "1s",
        "--rate",
        "200",
        "--channels",
        "20",
        "--reconnect-every",
        "200ms",
    ];
    let ended = run(arguments.iter().copied().chain(["--json"])).await?;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("publishing"), "{ended:?}");
    let report: Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!(report["ok"], true, "{report}");
    let figure = |name: &str| report[name].as_u64();
    assert!(figure("accepted") > Some(0), "{report}");
    assert!(figure("reconnects") > Some(0), "{report}");
    // Four clients, each in all channels, and all of them resume.
    assert_eq!(figure("deliveries"), figure("accepted").map(|n| 4 * n));
    let ended = run(arguments).await?;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(
        ended.stdout.contains("\nlost                       0\n"),
        "{ended:?}"
    );
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_judged_is_neither_good_nor_broken() -> Result<()> {
    let server = Dev::start().await?;
    let url = server.url();
    let stranger = ["verify", "--url", &url, "--app", "app-id:nobody:secret"];
    let ended = run(stranger).await?;
    assert_eq!(ended.status.code(), Some(69), "{ended:?}");
    assert_eq!(ended.stdout, "");
    // It may follow, and not publish.
    let forger = [
        "verify",
        "--url",
        &url,
        "--app",
        "app-id:app-key:wrong",
        "--duration",
        "1s",
        "--sockets",
        "0",
        "--reconnect-every",
        "0s",
    ];
    let ended = run(forger).await?;
    assert_eq!(ended.status.code(), Some(69), "{ended:?}");
    assert!(ended.stderr.contains("nothing was published"), "{ended:?}");
    for wrong in [
        &["--sockets", "0", "--streams", "0"][..],
        &["--duration", "1d"],
        &["--prefix", "a b"],
    ] {
        let ended = run(["verify"].iter().chain(wrong)).await?;
        assert_eq!(ended.status.code(), Some(64), "{wrong:?}: {ended:?}");
    }
    Ok(())
}
