//! Starting, watching, configuring and ending a server; the tools' manners.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start tasks and read the clock"
)]

use anyhow::{Context, Result};
use cluster_tests::client::{EventStream, Pusher, get, metric, publish, request};
use cluster_tests::process::{Dev, Tool, command, run, run_command};
use cluster_tests::{eventually, repository};
use futures_util::future::try_join_all;
use tokio::io::AsyncWriteExt;

#[tokio::test]
async fn health_metrics_and_status() -> Result<()> {
    let server = Dev::start().await?;
    for (path, body) in [("/livez", "ok\n"), ("/readyz", "ready\n")] {
        let answer = get(&server.admin, path).await?;
        assert_eq!((answer.status, answer.body.as_str()), (200, body), "{path}");
    }
    let status = get(&server.admin, "/admin/status").await?;
    assert_eq!(status.json()["mode"], "dev");
    let page = get(&server.admin, "/metrics").await?.body;
    let reference = std::fs::read_to_string(repository().join("docs/reference/metrics.md"))?;
    // What nodes of a cluster expose besides stands below.
    let (reference, _) = reference
        .split_once("## Of nodes of a cluster")
        .context("a second table")?;
    let names: Vec<&str> = reference
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert!(
        names.len() > 40,
        "the reference lists the metrics: {names:?}"
    );
    for name in names {
        assert!(
            page.contains(&format!("# TYPE {name} ")),
            "a fresh process exposes {name}"
        );
    }
    // Another name than an address could be a page's that was pointed here.
    let headers = "";
    let rebound = cluster_tests::client::exchange(
        &server.admin,
        format!(
            "GET /metrics HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n{headers}\r\n"
        )
        .as_bytes(),
    )
    .await?;
    assert_eq!(rebound.status, 401);
    Ok(())
}

#[tokio::test]
async fn connections_are_counted_in_and_out() -> Result<()> {
    let server = Dev::start().await?;
    let clients = async |kind: &str| {
        metric(&server, "dunlin_connected_clients", &[kind])
            .await
            .ok()
    };
    let mut client = Pusher::connect(&server).await?;
    client.subscribe("a").await?;
    let stream = EventStream::open(&server, "channel=a", "").await?;
    eventually("both are counted", async || {
        (clients("websocket").await == Some(1.0) && clients("eventsource").await == Some(1.0))
            .then_some(())
    })
    .await;
    publish(&server, "a", "e", "d").await?;
    client.frame().await?;
    let shards: f64 = get(&server.admin, "/metrics")
        .await?
        .body
        .lines()
        .filter(|line| line.starts_with("dunlin_shard_publications_total"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    assert_eq!(shards, 1.0);
    drop((client, stream));
    eventually("both are gone", async || {
        (clients("websocket").await == Some(0.0) && clients("eventsource").await == Some(0.0))
            .then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn tokens_open_the_admin_address_by_scope() -> Result<()> {
    let file = std::env::temp_dir().join(format!("dunlin-tokens-{}", std::process::id()));
    let path = file.to_str().context("a path")?;
    let token = async |scope: &str| -> Result<String> {
        let ended = run([
            "token", "admin", "--scope", scope, "--name", "test", "--file", path,
        ])
        .await?;
        assert!(ended.status.success(), "{ended:?}");
        Ok(ended.stdout.trim().to_owned())
    };
    let (reader, admin) = (token("metrics:read").await?, token("cluster:admin").await?);
    let kept = std::fs::read_to_string(&file)?;
    assert!(!kept.contains(&reader), "the file keeps only hashes");
    let server = Dev::start_with(["--admin-token-file", path]).await?;
    std::fs::remove_file(&file)?;
    let status = async |target: &str, token: &str| -> Result<u16> {
        let header = if token.is_empty() {
            String::new()
        } else {
            format!("authorization: Bearer {token}\r\n")
        };
        Ok(request(&server.admin, "GET", target, &header, "")
            .await?
            .status)
    };
    assert_eq!(status("/metrics", "").await?, 401);
    assert_eq!(status("/metrics", "dunlin_guess").await?, 401);
    assert_eq!(status("/metrics", &reader).await?, 200);
    assert_eq!(status("/admin/status", &reader).await?, 403);
    assert_eq!(status("/admin/status", &admin).await?, 200);
    assert_eq!(status("/livez", "").await?, 200);
    Ok(())
}

#[tokio::test]
async fn sigterm_tells_clients_to_connect_again_and_ends_cleanly() -> Result<()> {
    let mut server = Dev::start().await?;
    let mut client = Pusher::connect(&server).await?;
    client.subscribe("a").await?;
    let mut stream = EventStream::open(&server, "channel=a", "").await?;
    assert!(stream.block().await?.starts_with("id: "));
    let pid = server.pid();
    let ending = tokio::spawn(async move { (server.terminate().await, server) });
    assert_eq!(client.frame().await?["data"]["code"], 4200);
    assert_eq!(client.closed().await?, 4200);
    assert!(stream.block().await.is_err(), "the stream ends");
    let (status, server) = ending.await?;
    assert!(status?.success(), "pid {pid}: {}", server.log());
    assert!(
        !server.log().contains("not everything ended"),
        "{}",
        server.log()
    );
    Ok(())
}

/// Everyone is told, not only the first, and a publish under way is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_tells_a_thousand_clients() -> Result<()> {
    let mut server = Dev::start().await?;
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.extend(try_join_all((0..100).map(|_| Pusher::connect(&server))).await?);
    }
    let told: Vec<_> = clients
        .into_iter()
        .map(|mut client| {
            tokio::spawn(async move {
                let frame = client.frame().await?;
                anyhow::ensure!(frame["data"]["code"] == 4200, "{frame}");
                client.closed().await
            })
        })
        .collect();
    server.terminate().await?;
    for told in told {
        assert_eq!(told.await??, 4200);
    }
    Ok(())
}

#[tokio::test]
async fn an_address_in_use_is_said_with_what_to_do() -> Result<()> {
    let server = Dev::start().await?;
    for (flag, address, other) in [
        ("--listen", &server.clients, "--admin"),
        ("--admin", &server.admin, "--listen"),
    ] {
        let ended = run(["dev", flag, address, other, "127.0.0.1:0"]).await?;
        assert_eq!(ended.status.code(), Some(74), "{ended:?}");
        assert!(
            ended.stderr.contains(address.as_str()) && ended.stderr.contains(flag),
            "{}",
            ended.stderr
        );
    }
    Ok(())
}

#[tokio::test]
async fn configuration_from_file_environment_and_flags() -> Result<()> {
    let file = std::env::temp_dir().join(format!("dunlin-precedence-{}.toml", std::process::id()));
    let path = file.to_str().context("a path")?;
    std::fs::write(
        &file,
        "listen = \"127.0.0.1:1001\"\nadmin = \"127.0.0.1:1002\"\nlog = \"json\"\n\
         [[apps]]\nid = \"a\"\nkey = \"k\"\nsecret = \"hunter2\"\n",
    )?;
    let mut configured = command(["config", "--config", path, "--listen", "127.0.0.1:3001"]);
    configured
        .env("DUNLIN_LISTEN", "127.0.0.1:2001")
        .env("DUNLIN_ADMIN", "127.0.0.1:2002");
    let printed = run_command(configured, "").await?.stdout;
    assert!(
        printed.contains("listen = \"127.0.0.1:3001\""),
        "flags first: {printed}"
    );
    assert!(
        printed.contains("admin = \"127.0.0.1:2002\""),
        "then the environment: {printed}"
    );
    assert!(
        printed.contains("log = \"json\""),
        "then the file: {printed}"
    );
    assert!(
        printed.contains("activity_timeout_s = 120"),
        "then defaults: {printed}"
    );
    assert!(
        printed.contains("secret = \"***\"") && !printed.contains("hunter2"),
        "{printed}"
    );

    std::fs::write(
        &file,
        "[[apps]]\nid = \"a\"\nkey = \"k\"\nsecret = \"hunter2\"\ncolor = 1\n",
    )?;
    let ended = run(["dev", "--config", path]).await?;
    assert_eq!(ended.status.code(), Some(78));
    assert!(
        ended.stderr.contains(&format!("{path}:5: ")) && ended.stderr.contains("color"),
        "{}",
        ended.stderr
    );
    assert!(!ended.stderr.contains("hunter2"));
    std::fs::remove_file(&file)?;
    let ended = run(["dev", "--config", path]).await?;
    assert_eq!(ended.status.code(), Some(78));
    assert!(ended.stderr.contains(path), "{}", ended.stderr);
    let ended = run(["dev", "--admin", "0.0.0.0:0"]).await?;
    assert_eq!(ended.status.code(), Some(78));
    assert!(
        ended.stderr.contains("--admin-token-file"),
        "{}",
        ended.stderr
    );
    Ok(())
}

#[tokio::test]
async fn wrong_command_lines_are_usage_errors_and_keep_secrets() -> Result<()> {
    for arguments in [
        &["frobnicate"][..],
        &["sub"],
        &["dev", "--listen", "here"],
        &["pub", "a b"],
        &["sub", "a", "--url", "ftp://x"],
    ] {
        let ended = run(arguments).await?;
        assert_eq!(ended.status.code(), Some(64), "{arguments:?}: {ended:?}");
        assert!(!ended.stderr.is_empty());
    }
    // What clap refuses it repeats; a secret must not be among it.
    for arguments in [
        &["dev", "--app", ":key:hunter2"][..],
        &["pub", "x", "--app", "id:hunter2"],
        &["bench", "fanout", "--app", "hunter2"],
    ] {
        let ended = run(arguments).await?;
        assert_eq!(ended.status.code(), Some(64), "{arguments:?}: {ended:?}");
        assert!(
            ended.stderr.contains("ID:KEY:SECRET") && !ended.stderr.contains("hunter2"),
            "{}",
            ended.stderr
        );
    }
    let mut comma = command(["dev"]);
    comma.env("DUNLIN_APPS", "a:k:hun,ter2");
    let ended = run_command(comma, "").await?;
    assert_eq!(ended.status.code(), Some(64));
    assert!(!ended.stderr.contains("ter2"), "{}", ended.stderr);
    let ended = run(["--version"]).await?;
    assert!(
        ended.status.success() && ended.stdout.contains("wire version 1"),
        "{ended:?}"
    );
    let ended = run(["completions", "bash"]).await?;
    assert!(ended.stdout.contains("dunlin"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn pub_says_which_lines_were_refused_and_publishes_the_rest() -> Result<()> {
    let server = Dev::start().await?;
    let mut sub = Tool::subscribe(&server, &["mixed"]).await?;
    let long = "x".repeat(200_000);
    let ended = run_command(
        command(["pub", "mixed", "--url", &server.url()]),
        &format!("one\n{long}\n\nthree"),
    )
    .await?;
    assert_eq!(ended.status.code(), Some(65), "{ended:?}");
    assert!(
        ended.stderr.contains("line 2 was refused"),
        "{}",
        ended.stderr
    );
    for line in ["one", "", "three"] {
        assert_eq!(sub.line().await?, line);
    }
    let ended = run_command(
        command([
            "pub",
            "x",
            "--url",
            &server.url(),
            "--app",
            "app-id:app-key:wrong",
        ]),
        "a\nb\n",
    )
    .await?;
    assert_eq!(ended.status.code(), Some(69));
    assert!(
        ended.stderr.contains("line 1") && ended.stderr.contains("401"),
        "{}",
        ended.stderr
    );
    Ok(())
}

#[tokio::test]
async fn sub_prints_public_and_private_channels_and_whole_messages() -> Result<()> {
    let server = Dev::start().await?;
    let mut plain = Tool::subscribe(&server, &["news"]).await?;
    let mut both = Tool::subscribe(&server, &["--json", "news", "private-news"]).await?;
    // One note for the stream, one for the socket.
    both.note("subscribed").await?;
    publish(&server, "news", "headline", "first\nsecond").await?;
    assert_eq!(plain.line().await?, "first");
    assert_eq!(plain.line().await?, "second");
    let line: serde_json::Value = serde_json::from_str(&both.line().await?)?;
    assert_eq!(
        line,
        serde_json::json!({ "channel": "news", "event": "headline", "data": "first\nsecond" })
    );
    publish(&server, "private-news", "secret", "third").await?;
    let line: serde_json::Value = serde_json::from_str(&both.line().await?)?;
    assert_eq!(
        line,
        serde_json::json!({ "channel": "private-news", "event": "secret", "data": "third" })
    );
    Ok(())
}

#[tokio::test]
async fn sub_is_refused_for_good_and_comes_back_after_a_restart() -> Result<()> {
    let mut server = Dev::start().await?;
    for channel in ["news", "private-news"] {
        let ended = run([
            "sub",
            channel,
            "--url",
            &server.url(),
            "--app",
            "app-id:nobody:x",
        ])
        .await?;
        assert_eq!(ended.status.code(), Some(69), "{ended:?}");
    }
    let ended = run([
        "sub",
        "private-news",
        "--url",
        &server.url(),
        "--app",
        "app-id:app-key:wrong",
    ])
    .await?;
    assert_eq!(ended.status.code(), Some(69), "{ended:?}");
    let mut public = Tool::subscribe(&server, &["news"]).await?;
    let mut private = Tool::subscribe(&server, &["private-news"]).await?;
    let address = server.clients.clone();
    server.terminate().await?;
    public.note("trying again").await?;
    private.note("trying again").await?;
    let server = Dev::start_command(command([
        "dev",
        "--listen",
        &address,
        "--admin",
        "127.0.0.1:0",
    ]))
    .await?;
    public.note("subscribed").await?;
    private.note("subscribed").await?;
    publish(&server, "news", "e", "back").await?;
    publish(&server, "private-news", "e", "back").await?;
    assert_eq!(
        (public.line().await?, private.line().await?),
        ("back".into(), "back".into())
    );
    Ok(())
}

/// `tail -f` may be silent for long; the server does not keep idle connections.
#[tokio::test]
async fn pub_goes_on_over_a_new_connection() -> Result<()> {
    let mut server = Dev::start().await?;
    let address = server.clients.clone();
    let mut publisher = Tool::start(["pub", "lines", "--url", &server.url()])?;
    let mut input = publisher.input.take().context("stdin is piped")?;
    let mut first = Tool::subscribe(&server, &["lines"]).await?;
    input.write_all(b"one\n").await?;
    assert_eq!(first.line().await?, "one");
    server.terminate().await?;
    let server = Dev::start_command(command([
        "dev",
        "--listen",
        &address,
        "--admin",
        "127.0.0.1:0",
    ]))
    .await?;
    let mut second = Tool::subscribe(&server, &["lines"]).await?;
    input.write_all(b"two\n").await?;
    assert_eq!(second.line().await?, "two");
    drop(input);
    let ended = publisher.end().await?;
    assert!(ended.status.success(), "{ended:?}");
    Ok(())
}

/// Small, and against a server that runs: every delivery is accounted for.
#[tokio::test]
async fn the_benchmark_accounts_for_every_delivery() -> Result<()> {
    let server = Dev::start().await?;
    let (url, pid) = (server.url(), server.pid().to_string());
    let small = [
        "--subscribers",
        "30",
        "--rate",
        "50",
        "--seconds",
        "1",
        "--url",
        &url,
        "--pid",
        &pid,
    ];
    let ended = run(["bench", "fanout"].iter().chain(&small)).await?;
    assert!(ended.status.success(), "{ended:?}");
    let report: serde_json::Value = serde_json::from_str(&ended.stdout)?;
    assert_eq!(report["deliveries"], 30 * 50, "{report}");
    assert_eq!(report["connections_lost"], 0, "{report}");
    let latency = |name: &str| report["latency_us"][name].as_u64().unwrap_or_default();
    assert!(
        latency("p50") > 0 && latency("p50") <= latency("p99") && latency("p99") <= latency("max"),
        "{report}"
    );
    assert!(
        ended.stderr.contains("deliveries") && ended.stderr.contains("1500 of 1500"),
        "{}",
        ended.stderr
    );
    let counted = metric(&server, "dunlin_deliveries_total", &["ok"]).await?;
    assert_eq!(counted, 1_500.0);
    let too_many = run(["bench", "fanout", "--subscribers", "100000000"]).await?;
    assert_eq!(too_many.status.code(), Some(64), "{too_many:?}");
    Ok(())
}

/// `dunlin sub | head -1` ends when `head` does.
#[tokio::test]
async fn sub_ends_when_nobody_reads() -> Result<()> {
    let server = Dev::start().await?;
    let mut shell = tokio::process::Command::new("sh");
    let line = format!(
        "{} sub news --url {} | head -1",
        cluster_tests::process::binary().display(),
        server.url()
    );
    let child = shell
        .args(["-c", &line])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null());
    let running = child.kill_on_drop(true).spawn()?;
    let ended = tokio::spawn(running.wait_with_output());
    eventually("the pipe has ended", async || {
        publish(&server, "news", "e", "line").await.ok()?;
        ended.is_finished().then_some(())
    })
    .await;
    assert_eq!(ended.await??.stdout, b"line\n");
    Ok(())
}

#[tokio::test]
async fn how_long_anything_new_waits_is_measured() -> Result<()> {
    let server = Dev::start().await?;
    for runtime in ["main", "worker"] {
        eventually("it has been measured", async || {
            let name = "dunlin_runtime_lag_seconds_count";
            let count = metric(&server, name, &[runtime]).await.ok()?;
            (count > 0.0).then_some(())
        })
        .await;
        let percentile = async |percent: u32| {
            let name = format!("dunlin_runtime_lag_p{percent}_seconds");
            metric(&server, &name, &[runtime]).await
        };
        let (half, most) = eventually("there are percentiles", async || {
            let (half, most) = (percentile(50).await.ok()?, percentile(99).await.ok()?);
            (half > 0.0 && most > 0.0).then_some((half, most))
        })
        .await;
        assert!(half < 2.5 && most <= 2.5, "{half} and {most} seconds");
    }
    let handshakes = async || metric(&server, "dunlin_handshake_duration_seconds_count", &[]).await;
    assert_eq!(handshakes().await?, 0.0, "requests of others are none");
    let _client = Pusher::connect(&server).await?;
    assert_eq!(handshakes().await?, 1.0);
    Ok(())
}

/// Load balancers that were set up for other servers go on asking what they asked.
#[tokio::test]
async fn probes_of_other_servers_are_answered() -> Result<()> {
    let apps = "[limits]\nconnections_max = 1\n\n[[apps]]\nid = \"a\"\nkey = \"app-key\"\nsecret = \"s\"\n\n[[apps]]\nid = \"off\"\nkey = \"off\"\nsecret = \"s\"\nenabled = false\n";
    let server = Dev::start_configured(apps, &[]).await?;
    let status = async |path: &str| anyhow::Ok(get(&server.clients, path).await?.status);
    for path in ["/up", "/live", "/ready", "/accept-traffic", "/up/a"] {
        let answer = get(&server.clients, path).await?;
        assert_eq!((answer.status, answer.body.as_str()), (200, "OK"), "{path}");
    }
    assert_eq!(status("/up/off").await?, 403);
    assert_eq!(status("/up/nobody").await?, 404);
    let _client = Pusher::connect(&server).await?;
    assert_eq!(status("/accept-traffic").await?, 503);
    assert_eq!(status("/ready").await?, 200);
    Ok(())
}
