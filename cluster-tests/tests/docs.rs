//! The reference pages say what the code says, the files that a page tells people
//! to write are understood, and what a page says to be tested is.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use cluster_tests::nats::Folder;
use cluster_tests::process::{command, run, run_command};
use cluster_tests::{repository, skipped};

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

const FIRST_CLUSTER: &str = "operating/first-cluster.md";

/// A block of a page that begins with the name of the file that it is.
struct Block {
    /// Such as `toml`.
    language: String,
    /// Such as `node.toml`.
    file: String,
    text: String,
}

/// The blocks of a page; `file` is empty for those that are no files below `/etc`.
fn blocks(page: &str) -> Vec<Block> {
    let page = repository().join("docs").join(page);
    let page = std::fs::read_to_string(page).expect("the page is there");
    let blocks = page.split("\n```").skip(1).step_by(2);
    let block = |block: &str| {
        let (language, text) = block.split_once('\n').unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        let file = first.strip_prefix("# /etc/").map(|path| {
            let path = path.split([',', ' ']).next().unwrap_or_default();
            path.rsplit('/').next().unwrap_or_default().to_owned()
        });
        Block {
            language: language.to_owned(),
            file: file.unwrap_or_default(),
            text: text.to_owned(),
        }
    };
    blocks.map(block).collect()
}

/// The settings of an environment file.
fn settings<'a>(blocks: &'a [Block], file: &str) -> Vec<(&'a str, &'a str)> {
    let block = blocks.iter().find(|block| block.file == file);
    let text = block.map(|block| block.text.as_str()).unwrap_or_default();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once('='))
        .collect()
}

#[tokio::test]
async fn the_file_for_laravel_is_accepted() -> Result<()> {
    let blocks = blocks("protocol/laravel.md");
    let mut files = blocks.iter().filter(|block| block.language == "toml");
    let file = files.next().context("a file")?;
    assert!(files.next().is_none());
    let folder = Folder::new()?;
    let file = folder.file("dunlin.toml", &file.text)?;
    for role in ["dev", "gateway"] {
        let mut command = command(["config", role, "--config"]);
        command.arg(&file);
        let printed = run_command(command, "").await?;
        assert!(printed.status.success(), "{printed:?}");
        assert!(printed.stdout.contains("my-app"), "{printed:?}");
    }
    Ok(())
}

#[tokio::test]
async fn files_for_a_first_cluster_are_accepted() -> Result<()> {
    let blocks = blocks(FIRST_CLUSTER);
    let folder = Folder::new()?;
    let mut checked = Vec::new();
    for block in blocks.iter().filter(|block| block.language == "toml") {
        let role = block.file.trim_end_matches(".toml");
        // What is added to a file stands on top of it: tables come last.
        let earlier = blocks.iter().find(|other| other.file == block.file);
        let mut text = block.text.clone();
        if let Some(earlier) = earlier.filter(|earlier| earlier.text != block.text) {
            text.push_str(&earlier.text);
        }
        let file = folder.file(&block.file, &text)?;
        let mut command = command(["config", role, "--config"]);
        command
            .arg(&file)
            .envs(settings(&blocks, &format!("{role}.env")));
        let printed = run_command(command, "").await?;
        assert!(printed.status.success(), "{text}\n{printed:?}");
        checked.push((role, printed.stdout));
    }
    let roles: Vec<_> = checked.iter().map(|(role, _)| *role).collect();
    assert_eq!(roles, ["node", "gateway", "node"]);

    let by_flags = blocks
        .iter()
        .find_map(|block| block.text.strip_prefix("dunlin node \\\n"));
    let by_flags = by_flags.context("a node by flags")?.replace('\\', "");
    let flags = ["config", "node"]
        .into_iter()
        .chain(by_flags.split_whitespace());
    let printed = run(flags).await?;
    assert_eq!(
        printed.stdout, checked[0].1,
        "flags and file say the same: {printed:?}"
    );
    Ok(())
}

/// Where there is no systemd, or not enough of it, this says so and passes.
#[tokio::test]
async fn units_for_a_first_cluster_are_understood() -> Result<()> {
    let folder = Folder::new()?;
    let mut files = Vec::new();
    for block in blocks(FIRST_CLUSTER) {
        if block.language == "ini" {
            // The programs need not be installed here.
            let here = std::env::current_exe()?.display().to_string();
            let text = block
                .text
                .replace("/usr/local/bin/dunlin", &here)
                .replace("/usr/local/bin/nats-server", &here);
            files.push(folder.file(&block.file, &text)?);
        }
    }
    assert_eq!(files.len(), 3);
    let verify = std::process::Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(&files)
        .output();
    let Ok(output) = verify else {
        skipped("there is no systemd-analyze");
        return Ok(());
    };
    let said = String::from_utf8_lossy(&output.stderr);
    println!("{said}");
    for word in ["Unknown", "ailed to parse", "nvalid", "ignoring"] {
        assert!(!said.contains(word), "{said}");
    }
    Ok(())
}

/// The rows of the protocol's page are numbered from 1 on, and the titles of the tests
/// of client libraries name these and no others.
#[test]
fn every_row_of_the_protocol_is_shown_by_a_test() -> Result<()> {
    let page = std::fs::read_to_string(repository().join("docs/protocol/pusher.md"))?;
    let rows: Vec<usize> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| P")?.split_once(" |")?.0.parse().ok())
        .collect();
    assert!(rows.len() > 50, "rows are found: {rows:?}");
    assert!(rows.iter().copied().eq(1..=rows.len()), "{rows:?}");

    let mut shown = BTreeSet::new();
    for file in std::fs::read_dir(repository().join("cluster-tests/clients"))? {
        let path = file?.path();
        if path.to_string_lossy().ends_with(".test.mjs") {
            shown.extend(rows_in_titles(&std::fs::read_to_string(path)?));
        }
    }
    assert_eq!(shown, rows.into_iter().collect::<BTreeSet<_>>());
    Ok(())
}

/// `[P1 P2]` at the beginning of a title.
fn rows_in_titles(text: &str) -> Vec<usize> {
    text.match_indices("[P")
        .filter(|(at, _)| text[..*at].ends_with(['"', '`']))
        .filter_map(|(at, _)| text[at + 2..].split_once("] "))
        .flat_map(|(rows, _)| rows.split(" P"))
        .filter_map(|row| row.parse().ok())
        .collect()
}
