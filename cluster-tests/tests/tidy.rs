//! Rules of the repository that no compiler checks. docs/STYLE.md has them.

use std::fs;
use std::path::{Path, PathBuf};

use cluster_tests::repository;

/// All files below a folder with this ending, in order; build output apart.
fn files(below: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![repository().join(below)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let skip = ["target", "node_modules", ".git"]
                .iter()
                .any(|name| path.ends_with(name));
            if path.is_dir() && !skip {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// "Core knows proto; shells know core." Clippy keeps clocks and tasks out of
/// pure code; this keeps out the rest of the world, and the shells.
#[test]
fn pure_code_imports_nothing_of_the_world() {
    let mut pure = files("node/src/core", ".rs");
    pure.extend(files("gateway/src/core", ".rs"));
    pure.extend(files("gateway/src/protocol", ".rs"));
    pure.extend(files("cluster-tests/src/invariants", ".rs"));
    let sweep = |path: &PathBuf| path.ends_with("sim/sweep.rs");
    pure.extend(
        files("cluster-tests/src/sim", ".rs")
            .into_iter()
            .filter(|path| !sweep(path)),
    );
    pure.extend(
        files("proto/src", ".rs")
            .into_iter()
            .filter(|path| !path.to_string_lossy().contains("/bus/")),
    );
    assert!(pure.len() > 25, "the pure code is found: {pure:?}");
    let world = [
        "tokio::",
        "std::net",
        "std::fs",
        "std::thread",
        "std::process",
        "axum::",
        "hyper::",
        "tracing::",
        "prometheus::",
        "crate::mesh",
        "crate::worker",
        "crate::server",
        "crate::api",
        "crate::connect",
        "crate::egress",
        "crate::ingress",
        "proto::bus",
    ];
    for path in pure {
        for line in read(&path)
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            let breach = world.iter().find(|word| line.contains(**word));
            assert!(
                breach.is_none(),
                "{}: pure code names {breach:?}: {line}",
                path.display()
            );
        }
    }
}

/// "Node and gateway do not know each other; dunlin knows both."
#[test]
fn crates_depend_in_one_direction() {
    let depends = |crate_name: &str, on: &str| {
        read(&repository().join(crate_name).join("Cargo.toml"))
            .lines()
            .any(|line| line.starts_with(&format!("{on}.workspace")))
    };
    for (crate_name, forbidden) in [
        ("proto", &["node", "gateway", "dunlin"][..]),
        ("node", &["gateway", "dunlin"]),
        ("gateway", &["node", "dunlin"]),
    ] {
        for other in forbidden {
            assert!(
                !depends(crate_name, other),
                "{crate_name} must not depend on {other}"
            );
        }
    }
    assert!(depends("dunlin", "node") && depends("dunlin", "gateway"));
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut checked = 0;
    for page in files(".", ".md") {
        for target in read(&page)
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || target.contains("://") || target.contains(' ') {
                continue;
            }
            let path = page.parent().expect("a file is in a folder").join(file);
            assert!(path.exists(), "{}: {target} leads nowhere", page.display());
            checked += 1;
        }
    }
    assert!(checked > 30, "links are found: {checked}");
}

#[test]
fn every_decision_is_in_the_index() {
    let index = read(&repository().join("docs/adr/README.md"));
    let decisions: Vec<_> = files("docs/adr", ".md")
        .into_iter()
        .filter(|path| !path.ends_with("README.md"))
        .collect();
    assert!(decisions.len() >= 9);
    for path in decisions {
        let name = path
            .file_name()
            .expect("a file has a name")
            .to_string_lossy()
            .into_owned();
        assert!(
            index.contains(&name),
            "{name} is missing in docs/adr/README.md"
        );
    }
}

/// Reported, not refused: some machines are best read in one piece.
#[test]
fn long_files_are_reported() {
    for path in files(".", ".rs") {
        let lines = read(&path).lines().count();
        if lines > 500 {
            println!("{lines} lines: {}", path.display());
        }
    }
}
