//! The client libraries that others wrote, against the real server, by node's
//! own test runner; and the page, in a real browser.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::Cluster;
use cluster_tests::process::Dev;
use cluster_tests::repository;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// The app of `dunlin dev`, at gateways of a cluster.
const APPS: &str = r#"
[[apps]]
id = "app-id"
key = "app-key"
secret = "app-secret"
client_events = true
"#;
/// How long one file of tests may take.
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test]
async fn pusher_js() -> Result<()> {
    node_test("pusher-js.test.mjs").await
}

#[tokio::test]
async fn pusher_js_that_resumes() -> Result<()> {
    node_test("pusher-resume.test.mjs").await
}

#[tokio::test]
async fn presence() -> Result<()> {
    node_test("presence.test.mjs").await
}

#[tokio::test]
async fn presence_across_gateways() -> Result<()> {
    across_gateways("presence.test.mjs").await
}

#[tokio::test]
async fn cache_channels() -> Result<()> {
    node_test("cache.test.mjs").await
}

#[tokio::test]
async fn cache_channels_across_gateways() -> Result<()> {
    across_gateways("cache.test.mjs").await
}

#[tokio::test]
async fn laravel_echo() -> Result<()> {
    node_test("echo.test.mjs").await
}

#[tokio::test]
async fn laravel_echo_across_gateways() -> Result<()> {
    across_gateways("echo.test.mjs").await
}

/// It takes only ids of apps that are numbers.
#[tokio::test]
async fn python_server_sdk() -> Result<()> {
    let server = Dev::start_with(["--app", "4711:app-key:app-secret"]).await?;
    let places = [
        ("DUNLIN_URL", server.url()),
        ("DUNLIN_ADMIN", format!("http://{}", server.admin)),
        ("PUSHER_APP_ID", "4711".to_owned()),
    ];
    run_node_test("python-sdk.test.mjs", &places, || server.log()).await
}

#[tokio::test]
async fn users() -> Result<()> {
    node_test("users.test.mjs").await
}

#[tokio::test]
async fn users_across_gateways() -> Result<()> {
    across_gateways("users.test.mjs").await
}

#[tokio::test]
async fn lists_of_channels() -> Result<()> {
    node_test("channels.test.mjs").await
}

#[tokio::test]
async fn lists_of_channels_across_gateways() -> Result<()> {
    across_gateways("channels.test.mjs").await
}

/// Runs one file of tests with clients at two gateways, in front of three nodes.
async fn across_gateways(file: &str) -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.add_gateways_of(APPS, &["c1", "c2"]).await?;
    let gateways = ["c1", "c2"].map(|name| &cluster.gateways[name]);
    let urls = gateways.map(Dev::url);
    let (one, admin) = (&urls[0], &gateways[0].admin);
    let places = [
        ("DUNLIN_URL", one.clone()),
        ("DUNLIN_URLS", urls.join(",")),
        ("DUNLIN_ADMIN", format!("http://{admin}")),
    ];
    let log = || gateways.map(|gateway| gateway.log()).concat();
    run_node_test(file, &places, log).await
}

#[tokio::test]
async fn pusher_server_sdk() -> Result<()> {
    node_test("pusher-server.test.mjs").await
}

#[tokio::test]
async fn raw_websockets() -> Result<()> {
    node_test("websocket.test.mjs").await
}

#[tokio::test]
async fn eventsource() -> Result<()> {
    node_test("eventsource.test.mjs").await
}

#[tokio::test]
async fn the_page_in_a_browser() -> Result<()> {
    node_test("page.test.mjs").await
}

/// Runs one file of tests against a server of its own.
async fn node_test(file: &str) -> Result<()> {
    let server = Dev::start().await?;
    let places = [
        ("DUNLIN_URL", server.url()),
        ("DUNLIN_ADMIN", format!("http://{}", server.admin)),
    ];
    run_node_test(file, &places, || server.log()).await
}

/// Runs one file of tests against servers that are there.
async fn run_node_test(
    file: &str,
    places: &[(&str, String)],
    log: impl Fn() -> String,
) -> Result<()> {
    let folder = repository().join("cluster-tests/clients");
    installed(&folder).await?;
    let mut node = Command::new("node");
    node.args(["--test", "--test-reporter=spec", file])
        .current_dir(&folder)
        .envs(places.iter().map(|(name, place)| (*name, place)))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(PATIENCE, node.output())
        .await
        .with_context(|| format!("{file} did not end"))?
        .context("node does not run; `scripts/prerequisites` says what is missing")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{file}:\n{said}\n{}\nserver:\n{}",
        String::from_utf8_lossy(&output.stderr),
        log()
    );
    // A file without tests would pass as well.
    ensure!(
        said.lines()
            .any(|line| line.contains("tests ") && !line.ends_with(" 0")),
        "{file} ran no test:\n{said}"
    );
    Ok(())
}

/// Installs the libraries at their locked versions, unless they are there.
async fn installed(folder: &Path) -> Result<()> {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let install = async || -> Result<()> {
        if folder.join("node_modules/.package-lock.json").exists() {
            return Ok(());
        }
        let npm = Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund"])
            .current_dir(folder)
            .output();
        let output = timeout(PATIENCE, npm)
            .await
            .context("npm ci did not end")?
            .context("npm does not run")?;
        ensure!(
            output.status.success(),
            "npm ci: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    INSTALLED.get_or_try_init(install).await?;
    Ok(())
}
