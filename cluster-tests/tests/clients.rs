//! The client libraries that others wrote, against the real server, by node's
//! own test runner; and the page, in a real browser.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::cluster::Cluster;
use cluster_tests::process::{Dev, binary};
use cluster_tests::repository;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// The app of `dunlin dev`, and what an app may have besides.
const APPS: &str = include_str!("../clients/apps.toml");
/// Those that are told to tests besides the first.
const MORE_APPS: &str = "counted,disabled,small,strict";
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

#[tokio::test]
async fn watchlists() -> Result<()> {
    node_test("watchlist.test.mjs").await
}

#[tokio::test]
async fn watchlists_across_gateways() -> Result<()> {
    across_gateways("watchlist.test.mjs").await
}

#[tokio::test]
async fn tokens() -> Result<()> {
    node_test("token.test.mjs").await
}

#[tokio::test]
async fn tokens_across_gateways() -> Result<()> {
    across_gateways("token.test.mjs").await
}

#[tokio::test]
async fn subscription_counts_across_gateways() -> Result<()> {
    across_gateways("counts.test.mjs").await
}

#[tokio::test]
async fn limits_of_an_app() -> Result<()> {
    across_gateways("limits.test.mjs").await
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
        ("PUSHER_MORE_APPS", MORE_APPS.to_owned()),
    ];
    let log = || gateways.map(|gateway| gateway.log()).concat();
    run_node_test(file, &places, log).await
}

#[tokio::test]
async fn pusher_server_sdk() -> Result<()> {
    node_test("pusher-server.test.mjs").await
}

#[tokio::test]
async fn openapi() -> Result<()> {
    on_one_server("openapi.test.mjs", &[]).await
}

#[tokio::test]
async fn raw_websockets() -> Result<()> {
    node_test("websocket.test.mjs").await
}

/// A server that asks soon whether a client is still there.
#[tokio::test]
async fn protocol() -> Result<()> {
    on_one_server("protocol.test.mjs", &["--activity-timeout-s", "2"]).await
}

/// Runs one file of tests against a server of its own that has all the apps.
async fn on_one_server(file: &str, arguments: &[&str]) -> Result<()> {
    let server = Dev::start_configured(APPS, arguments).await?;
    let places = [
        ("DUNLIN_URL", server.url()),
        ("PUSHER_MORE_APPS", MORE_APPS.to_owned()),
    ];
    run_node_test(file, &places, || server.log()).await
}

#[tokio::test]
async fn protocol_across_gateways() -> Result<()> {
    across_gateways("protocol.test.mjs").await
}

#[tokio::test]
async fn eventsource() -> Result<()> {
    node_test("eventsource.test.mjs").await
}

#[tokio::test]
async fn the_page_in_a_browser() -> Result<()> {
    node_test("page.test.mjs").await
}

#[tokio::test]
async fn a_chat_in_two_browsers() -> Result<()> {
    node_test("chat.test.mjs").await
}

#[tokio::test]
async fn a_chat_in_two_browsers_while_gateway_and_owner_are_killed() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.add_gateways_of(APPS, &["c1", "c2"]).await?;
    let urls = ["c1", "c2"].map(|name| cluster.gateway(name).url());
    let killer = TcpListener::bind("127.0.0.1:0").await?;
    let places = [
        ("DUNLIN_URL", urls[0].clone()),
        ("DUNLIN_URLS", urls.join(",")),
        (
            "DUNLIN_ADMIN",
            format!("http://{}", cluster.gateway("c1").admin),
        ),
        ("DUNLIN_KILLER", format!("http://{}", killer.local_addr()?)),
    ];
    let outcome = tokio::select! {
        outcome = run_node_test("chat.test.mjs", &places, String::new) => outcome,
        ended = kill_on_request(&killer, &mut cluster) => ended,
    };
    // Logs apart: those of whoever was killed went with them.
    outcome.with_context(|| cluster.gateway("c1").log())
}

/// Kills what it is asked to by HTTP, one after the other, and answers when that has
/// ended.
async fn kill_on_request(listener: &TcpListener, cluster: &mut Cluster) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        let asked = timeout(PATIENCE, asked(&mut stream)).await;
        let killed = match asked.context("no request came").flatten() {
            Ok(what) => kill(cluster, &what).await,
            Err(error) => Err(error),
        };
        let (status, said) = match killed {
            Ok(()) => ("200 OK", String::new()),
            Err(error) => ("500 Internal Server Error", format!("{error:#}")),
        };
        let length = said.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{said}"
        );
        // Whoever has asked may be gone.
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

/// The path of a request without a body.
async fn asked(stream: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        ensure!(head.len() < 8_192, "a request is too long");
        ensure!(
            stream.read_buf(&mut head).await? > 0,
            "a request ends early"
        );
    }
    let head = String::from_utf8_lossy(&head);
    let path = head
        .strip_prefix("POST ")
        .and_then(|rest| rest.split(' ').next());
    Ok(path.context("POST is expected")?.to_owned())
}

/// Kills `/gateway/NAME`, or the node that owns `/owner/CHANNEL`. That one dies alone:
/// whoever died before is there again, and every shard is in two processes.
async fn kill(cluster: &mut Cluster, what: &str) -> Result<()> {
    if let Some(gateway) = what.strip_prefix("/gateway/") {
        return cluster.kill_gateway(gateway).await;
    }
    let channel = what
        .strip_prefix("/owner/")
        .context("/owner/CHANNEL is expected")?;
    for name in ["n1", "n2", "n3"] {
        if !cluster.nodes.contains_key(name) {
            cluster.add_node(name, &[]).await?;
        }
    }
    cluster.protected().await;
    let shown = Cluster::inspect_channel(&cluster.gateway("c1").admin, channel).await?;
    let owner = shown["owner"]["id"].as_str().context("an owner")?;
    cluster.kill_node(owner).await
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
    // pusher-js sets a timer of 30 s when it ends what the server has closed.
    node.args(["--test", "--test-force-exit", "--test-reporter=spec", file])
        .current_dir(&folder)
        .envs(places.iter().map(|(name, place)| (*name, place)))
        .env("DUNLIN", binary())
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
    // A file without tests would pass as well, and one that skips them all.
    ensure!(
        said.lines()
            .any(|line| line.contains(" pass ") && !line.ends_with(" 0")),
        "{file} ran no test:\n{said}"
    );
    for row in rows(&said) {
        println!("P{row} pass");
    }
    Ok(())
}

/// The rows of docs/protocol/pusher.md that have been shown, by the titles of tests.
fn rows(said: &str) -> BTreeSet<u32> {
    said.lines()
        .filter_map(|line| line.strip_prefix("✔ [P")?.split_once(']'))
        .flat_map(|(rows, _)| rows.split(" P"))
        .filter_map(|row| row.parse().ok())
        .collect()
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
