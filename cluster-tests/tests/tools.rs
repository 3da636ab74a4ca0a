//! The tools that administer: `inspect`, `nodes`, `certs`, `config`; and `pub`
//! on a way to the server that fails.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests stand between processes"
)]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use cluster_tests::client::{get, publish};
use cluster_tests::process::{Dev, Ended, Tool, command, run, run_command};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Asks a server, with a token or none.
async fn inspect(arguments: &[&str], admin: &str, token: &str) -> Result<Ended> {
    let mut asking = command(arguments);
    asking.env("DUNLIN_ADMIN_URL", admin);
    if !token.is_empty() {
        asking.env("DUNLIN_ADMIN_TOKEN", token);
    }
    run_command(asking, "").await
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("dunlin-tools-{name}-{}", std::process::id()))
}

#[tokio::test]
async fn inspect_tells_what_is_inside_a_dev_server() -> Result<()> {
    let server = Dev::start().await?;
    let ask = async |arguments: &[&str]| -> Result<String> {
        let ended = inspect(arguments, &server.admin, "").await?;
        anyhow::ensure!(ended.status.success(), "{arguments:?}: {ended:?}");
        Ok(ended.stdout)
    };
    let shards = ask(&["inspect", "shards"]).await?;
    assert!(
        shards.contains("1024 shards") && shards.contains("lowest fence"),
        "{shards}"
    );
    let rows = shards.lines().filter(|line| line.starts_with("dev "));
    assert_eq!(rows.count(), 1, "{shards}");
    let all = ask(&["inspect", "shards", "--all"]).await?;
    assert_eq!(all.lines().count(), 1_024 + 3, "{all}");
    let shards: Value = serde_json::from_str(&ask(&["inspect", "shards", "--json"]).await?)?;
    assert_eq!(shards["shards"].as_array().context("a list")?.len(), 1_024);
    assert_eq!(shards["shards"][7]["owner"]["id"], "dev");
    assert_eq!(shards["cluster"].as_str().context("a text")?.len(), 32);

    let shard = ask(&["inspect", "shard", "7"]).await?;
    assert!(
        shard.contains("state    serves") && shard.contains("needs none"),
        "{shard}"
    );
    let none = inspect(&["inspect", "shard", "2000"], &server.admin, "").await?;
    assert!(none.stderr.contains("shards 0 to 1023"), "{none:?}");

    let nodes = ask(&["inspect", "nodes"]).await?;
    assert!(
        nodes
            .lines()
            .nth(1)
            .is_some_and(|row| row.starts_with("dev"))
    );
    assert_eq!(ask(&["nodes", "list"]).await?, nodes);
    let gateways = ask(&["inspect", "gateways"]).await?;
    assert!(gateways.starts_with("gateway"), "{gateways}");

    let quiet = ask(&["inspect", "channel", "nobody-is-here"]).await?;
    assert!(
        quiet.contains("owner    dev") && quiet.contains("nobody follows"),
        "{quiet}"
    );
    let quiet = ask(&["inspect", "channel", "quiet", "--app", "other", "--json"]).await?;
    let quiet: Value = serde_json::from_str(&quiet)?;
    assert_eq!(
        (&quiet["app"], &quiet["channel"], &quiet["state"]),
        (&"other".into(), &"quiet".into(), &Value::Null)
    );
    Ok(())
}

#[tokio::test]
async fn inspect_says_what_to_try() -> Result<()> {
    // A port that was free a moment ago.
    let free = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let address = free.to_string();
    let away = run(["inspect", "shards", "--admin", &address]).await?;
    assert_eq!(away.status.code(), Some(69), "{away:?}");
    assert!(
        away.stderr.contains(&address) && away.stderr.contains("--admin"),
        "{}",
        away.stderr
    );

    let file = folder("tokens");
    let path = file.to_str().context("a path")?;
    let token = async |scope: &str| -> Result<String> {
        let ended = run(["token", "admin", "--scope", scope, "--file", path]).await?;
        Ok(ended.stdout.trim().to_owned())
    };
    let (reader, scraper) = (token("cluster:read").await?, token("metrics:read").await?);
    let server = Dev::start_with(["--admin-token-file", path]).await?;
    std::fs::remove_file(&file)?;
    for (token, code, word) in [
        ("", 69, "DUNLIN_ADMIN_TOKEN"),
        ("dunlin_guess", 69, "DUNLIN_ADMIN_TOKEN"),
        (&scraper, 69, "cluster:read"),
        (&reader, 0, ""),
    ] {
        let ended = inspect(&["inspect", "nodes"], &server.admin, token).await?;
        assert_eq!(ended.status.code(), Some(code), "{ended:?}");
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
        assert!(
            token.is_empty() || !ended.stderr.contains(token),
            "{}",
            ended.stderr
        );
    }
    // The address for clients is another one.
    let wrong = inspect(&["inspect", "nodes"], &server.url(), "").await?;
    assert_eq!(wrong.status.code(), Some(69), "{wrong:?}");
    for arguments in [
        &["inspect"][..],
        &["inspect", "channel"],
        &["inspect", "channel", "a b"],
        &["inspect", "shards", "--admin", "ftp://x"],
        &["nodes"],
    ] {
        let ended = run(arguments).await?;
        assert_eq!(ended.status.code(), Some(64), "{arguments:?}: {ended:?}");
    }
    Ok(())
}

#[tokio::test]
async fn certificates_are_made_once_and_renewed_when_asked() -> Result<()> {
    let dir = folder("certs");
    let path = dir.to_str().context("a path")?;
    let early = run(["certs", "node", path, "n1"]).await?;
    assert_eq!(early.status.code(), Some(74), "{early:?}");
    assert!(early.stderr.contains("certs init"), "{}", early.stderr);
    let read = |name: &str| std::fs::read_to_string(dir.join(name));
    let made = run(["certs", "init", path]).await?;
    assert!(made.status.success(), "{made:?}");
    assert!(made.stderr.contains("off the servers"), "{}", made.stderr);
    let again = run(["certs", "init", path]).await?;
    assert_eq!(again.status.code(), Some(74), "{again:?}");
    assert!(again.stderr.contains("there already"), "{}", again.stderr);

    let made = run(["certs", "node", path, "n1"]).await?;
    assert!(made.status.success(), "{made:?}");
    let files: Vec<&str> = made.stdout.lines().collect();
    assert!(
        files.len() == 2 && files[0].ends_with("n1.crt") && files[1].ends_with("n1.key"),
        "{files:?}"
    );
    let (certificate, key) = (read("n1.crt")?, read("n1.key")?);
    assert!(certificate.starts_with("-----BEGIN CERTIFICATE-----"));
    assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"));
    for (name, mode) in [("ca.key", 0o600), ("n1.key", 0o600), ("n1.crt", 0o644)] {
        let found = std::fs::metadata(dir.join(name))?.permissions().mode() & 0o777;
        assert_eq!(found & !mode, 0, "{name}: {found:o}");
    }
    let again = run(["certs", "node", path, "n1"]).await?;
    assert_eq!(again.status.code(), Some(74), "{again:?}");
    assert!(again.stderr.contains("--renew"), "{}", again.stderr);
    assert_eq!(
        (read("n1.crt")?, read("n1.key")?),
        (certificate.clone(), key)
    );
    let renewed = run(["certs", "node", path, "n1", "--renew", "--valid-days", "1"]).await?;
    assert!(renewed.status.success(), "{renewed:?}");
    assert_ne!(read("n1.crt")?, certificate);

    for (arguments, code) in [
        (&["certs", "node", path, "ca"][..], 64),
        (&["certs", "node", path, "a-"], 64),
        (&["certs", "node", path, "a.b"], 64),
        (&["certs", "node", path, "n2", "--valid-days", "0"], 64),
    ] {
        let ended = run(arguments).await?;
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {ended:?}");
    }
    // A key of another authority is found out before a certificate is made.
    std::fs::copy(dir.join("n1.key"), dir.join("ca.key"))?;
    let mixed = run(["certs", "node", path, "n2"]).await?;
    assert_eq!(mixed.status.code(), Some(65), "{mixed:?}");
    assert!(!dir.join("n2.crt").exists(), "nothing was made");
    let names = std::fs::read_dir(&dir)?.collect::<std::io::Result<Vec<_>>>()?;
    assert_eq!(names.len(), 4, "nothing is left over: {names:?}");
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

#[tokio::test]
async fn config_prints_what_each_command_would_run_with() -> Result<()> {
    let file = folder("config.toml");
    let path = file.to_str().context("a path")?;
    std::fs::write(
        &file,
        "name = \"n1\"\ndata = \"/var/lib/dunlin\"\ncerts = \"/etc/dunlin\"\nzone = \"a\"\n\
         bus = \"nats://user:hunter2@bus:4222\"\n[[apps]]\nid = \"a\"\nkey = \"k\"\nsecret = \"hunter2\"\n",
    )?;
    let print = async |command_name: &str, variable: (&str, &str)| -> Result<String> {
        let mut printing = command(["config", command_name, "--config", path]);
        printing.env(variable.0, variable.1);
        let ended = run_command(printing, "").await?;
        anyhow::ensure!(ended.status.success(), "{ended:?}");
        anyhow::ensure!(!ended.stdout.contains("hunter2"), "{}", ended.stdout);
        Ok(ended.stdout)
    };
    let dev = print("dev", ("DUNLIN_LOG", "json")).await?;
    assert!(
        dev.contains("listen = \"127.0.0.1:6001\"") && !dev.contains("bus ="),
        "{dev}"
    );
    let gateway = print("gateway", ("DUNLIN_CLUSTER", "other")).await?;
    for line in [
        "listen = \"0.0.0.0:6001\"",
        "bus = \"nats://***@bus:4222\"",
        "cluster = \"other\"",
        "name = \"n1\"",
    ] {
        assert!(gateway.contains(line), "{line}: {gateway}");
    }
    let node = print("node", ("DUNLIN_JOIN", "a:1,b:2")).await?;
    for line in [
        "admin = \"127.0.0.1:9611\"",
        "zone = \"a\"",
        "quic_advertise = \"127.0.0.1:7601\"",
        "join = [\"a:1\", \"b:2\"]",
    ] {
        assert!(node.contains(line), "{line}: {node}");
    }
    assert!(!node.contains("[[apps]]"), "{node}");
    std::fs::remove_file(&file)?;
    for (arguments, code, word) in [
        (&["config", "node"][..], 78, "--data"),
        (&["config", "gateway"], 78, "--app"),
        (&["gateway"], 78, "--app"),
        (&["gateway", "--bus", "nats://u:hunter2"], 64, "--bus"),
        (&["config", "node", "--bootstrap-expect", "8"], 64, "7"),
        (&["config", "node", "--join", "a"], 64, "HOST:PORT"),
    ] {
        let ended = run(arguments).await?;
        assert_eq!(ended.status.code(), Some(code), "{arguments:?}: {ended:?}");
        assert!(
            ended.stderr.contains(word) && !ended.stderr.contains("hunter2"),
            "{}",
            ended.stderr
        );
    }
    Ok(())
}

/// Told apart from a broken one by its address for health, which is there from
/// the start.
#[tokio::test]
async fn a_gateway_without_a_cluster_lives_and_says_why_it_is_not_ready() -> Result<()> {
    let mut gateway = Dev::start_command(command([
        "gateway",
        "--app",
        "a:k:s",
        "--name",
        "g",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--bus",
        "nats://user:hunter2@127.0.0.1:1",
    ]))
    .await?;
    assert_eq!(get(&gateway.admin, "/livez").await?.status, 200);
    let ready = get(&gateway.admin, "/readyz").await?;
    assert_eq!(ready.status, 503);
    assert!(ready.body.starts_with("not ready: "), "{}", ready.body);
    // Nobody waits there for a gateway that may never serve.
    let came = TcpStream::connect(&gateway.clients).await;
    let refused = came.expect_err("it does not serve yet").kind();
    assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
    let status = get(&gateway.admin, "/admin/status").await?.json();
    assert_eq!(
        (&status["mode"], &status["name"], &status["bus"]),
        (
            &"gateway".into(),
            &"g".into(),
            &"nats://***@127.0.0.1:1".into()
        )
    );
    let shards = inspect(&["inspect", "shards"], &gateway.admin, "").await?;
    assert_eq!(shards.status.code(), Some(69), "{shards:?}");
    assert!(shards.stderr.contains("503"), "{}", shards.stderr);
    assert!(gateway.terminate().await?.success(), "{}", gateway.log());
    assert!(!gateway.log().contains("hunter2"), "{}", gateway.log());
    Ok(())
}

/// What other tests rely on to have clocks differ.
#[cfg(debug_assertions)]
#[tokio::test]
async fn a_test_can_have_the_wall_clock_wrong() -> Result<()> {
    let mut late = command(["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    late.env("DUNLIN_TEST_CLOCK_OFFSET_S", "-3600");
    let late = Dev::start_command(late).await?;
    let refused = publish(&late, "a", "e", "d").await;
    assert!(refused.is_err(), "its signature is an hour early");
    Ok(())
}

/// What becomes of a request on its way.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Passes,
    /// The connection breaks before the server has it.
    RequestLost,
    /// The connection breaks after the server has answered.
    AnswerLost,
    /// A proxy on the way has lost patience.
    Answered504,
    /// There is no room for its key.
    KeysFull,
}

/// Stands before a server. Each request has a fate, in turn, and then they all
/// pass. Its address.
async fn unreliable_way(server: &str, fates: Vec<Fate>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let server = server.to_owned();
    tokio::spawn(async move {
        let mut fates = fates.into_iter();
        // One client with one connection at a time.
        loop {
            let (client, _) = listener.accept().await?;
            serve(client, &server, &mut fates).await?;
        }
        #[expect(unreachable_code, reason = "gives the task its type")]
        anyhow::Ok(())
    });
    Ok(address)
}

/// Until the connection ends or is broken.
async fn serve(
    mut client: TcpStream,
    server: &str,
    fates: &mut impl Iterator<Item = Fate>,
) -> Result<()> {
    let mut server = TcpStream::connect(server).await?;
    while let Some(request) = message(&mut client).await? {
        let fate = fates.next().unwrap_or(Fate::Passes);
        if fate == Fate::RequestLost {
            return Ok(());
        }
        if fate == Fate::KeysFull {
            let body = r#"{"error":"no room","code":"idempotency_full","status":503}"#;
            let length = body.len();
            let full = format!(
                "HTTP/1.1 503 Service Unavailable\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            client.write_all(full.as_bytes()).await?;
            continue;
        }
        server.write_all(&request).await?;
        let answer = message(&mut server).await?.context("an answer")?;
        match fate {
            Fate::AnswerLost => return Ok(()),
            Fate::Answered504 => {
                let late = b"HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\n\r\n";
                client.write_all(late).await?;
            }
            _ => client.write_all(&answer).await?,
        }
    }
    Ok(())
}

/// Reads a request or an answer with its body. `None`: the other side has ended.
async fn message(stream: &mut TcpStream) -> Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .context("a length")?;
            if body.len() >= length.parse()? {
                return Ok(Some(bytes));
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

#[tokio::test]
async fn pub_may_not_speak_as_the_server() -> Result<()> {
    let server = Dev::start().await?;
    let mut publishing = command(["pub", "x", "--event", "dunlin:gap"]);
    publishing.args(["--url", &server.url()]);
    let ended = run_command(publishing, "a\n").await?;
    assert_eq!(ended.status.code(), Some(65), "{ended:?}");
    assert!(ended.stderr.contains("reserved"), "{}", ended.stderr);
    Ok(())
}

#[tokio::test]
async fn pub_repeats_what_was_not_acknowledged_and_publishes_each_line_once() -> Result<()> {
    use Fate::{AnswerLost, Answered504, Passes, RequestLost};
    let server = Dev::start().await?;
    let mut sub = Tool::subscribe(&server, &["lines"]).await?;
    let fates = vec![
        AnswerLost,
        AnswerLost,
        Passes,
        RequestLost,
        Passes,
        Answered504,
        AnswerLost,
    ];
    let lines = ["same", "same", "other", "same", "last"];
    for _ in 0..2 {
        let way = unreliable_way(&server.clients, fates.clone()).await?;
        let url = format!("http://{way}");
        let publishing = command(["pub", "lines", "--url", &url]);
        let ended = run_command(publishing, &lines.join("\n")).await?;
        assert!(ended.status.success(), "{ended:?}");
        assert!(ended.stderr.contains("line 1 waits"), "{}", ended.stderr);
        // Lines that are equal, in a run or in two, are lines of their own.
        for line in lines {
            assert_eq!(sub.line().await?, line);
        }
    }
    publish(&server, "lines", "e", "end").await?;
    assert_eq!(sub.line().await?, "end", "no line came twice");
    Ok(())
}

/// A stream of lines is not to wait until there is room for keys again. Without
/// one, what may have been published is not sent again.
#[tokio::test]
async fn pub_goes_on_without_keys_when_there_is_no_room_for_them() -> Result<()> {
    let server = Dev::start().await?;
    let mut sub = Tool::subscribe(&server, &["lines"]).await?;
    let publishing = async |fates: Vec<Fate>| {
        let way = unreliable_way(&server.clients, fates).await?;
        let url = format!("http://{way}");
        run_command(command(["pub", "lines", "--url", &url]), "a\nb\n").await
    };
    let ended = publishing(vec![Fate::KeysFull]).await?;
    assert!(
        ended.status.success() && ended.stderr.is_empty(),
        "{ended:?}"
    );
    let ended = publishing(vec![Fate::KeysFull, Fate::AnswerLost]).await?;
    assert_eq!(ended.status.code(), Some(69), "{ended:?}");
    assert!(
        ended.stderr.contains("line 1") && ended.stderr.contains("may or may not be published"),
        "{}",
        ended.stderr
    );
    publish(&server, "lines", "e", "end").await?;
    for line in ["a", "b", "a", "end"] {
        assert_eq!(sub.line().await?, line);
    }
    Ok(())
}
