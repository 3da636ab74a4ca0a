//! Tells the binary which commit it was built from, where that can be known.

use std::process::Command;

fn main() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=DUNLIN_COMMIT={commit}");
    // HEAD names a branch; the branch moves with each commit. Git is asked where
    // they are: in a worktree `.git` is a file, and what is missing would have
    // this run, and the binary linked, every time.
    for name in ["HEAD", "refs/heads"] {
        let path = git(&["rev-parse", "--git-path", name]);
        println!(
            "cargo:rerun-if-changed={}",
            path.unwrap_or_else(|| "build.rs".into())
        );
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
