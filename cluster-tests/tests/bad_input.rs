//! Whatever comes from outside gets a clear answer, and nothing else suffers.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests start tasks and read the clock"
)]

use anyhow::{Context, Result};
use cluster_tests::client::{
    EventStream, Pusher, exchange, get, metric, post_event, publish, request, signed_query,
};
use cluster_tests::eventually;
use cluster_tests::process::Dev;
use proto::time::UnixTime;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const EVENTS: &str = "/apps/app-id/events";

#[tokio::test]
async fn malformed_frames_are_answered_and_the_connection_goes_on() -> Result<()> {
    let server = Dev::start().await?;
    let mut client = Pusher::connect(&server).await?;
    for text in [
        "",
        "{",
        "[]",
        "{}",
        "nonsense",
        r#"{"event":7}"#,
        r#"{"event":"pusher:subscribe","data":"{"}"#,
    ] {
        client.send_text(text).await?;
        let frame = client.frame().await?;
        assert_eq!(frame["event"], "pusher:error", "{text}");
        assert!(
            frame["data"]["message"]
                .as_str()
                .is_some_and(|m| !m.is_empty()),
            "{text}: {frame}"
        );
    }
    client.subscribe("still-here").await?;
    assert_eq!(
        metric(&server, "dunlin_websocket_errors_total", &["malformed"]).await?,
        7.0
    );
    Ok(())
}

#[tokio::test]
async fn an_unknown_app_is_told_so_by_frame_and_close_code() -> Result<()> {
    let server = Dev::start().await?;
    for (path, code) in [
        ("/app/nobody?protocol=7", 4001),
        ("/app/app-key?protocol=99", 4007),
        ("/app/app-key?protocol=seven", 4006),
        ("/somewhere", 4005),
    ] {
        let mut client = Pusher::open(&server, path).await?;
        let frame = client.frame().await?;
        assert_eq!(
            (&frame["event"], &frame["data"]["code"]),
            (&json!("pusher:error"), &json!(code)),
            "{path}"
        );
        assert_eq!(client.closed().await?, code, "{path}");
    }
    Ok(())
}

/// A WebSocket handshake, then a masked subscribe, a byte at a time.
#[tokio::test]
async fn torn_frames_are_put_together() -> Result<()> {
    let server = Dev::start().await?;
    let mut stream = TcpStream::connect(&server.clients).await?;
    stream.set_nodelay(true)?;
    let mut bytes = b"GET /app/app-key?protocol=7 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        .to_vec();
    let text = br#"{"event":"pusher:subscribe","data":{"channel":"torn"}}"#;
    bytes.extend([0x81, 0x80 | u8::try_from(text.len())?, 1, 2, 3, 4]);
    bytes.extend(
        text.iter()
            .enumerate()
            .map(|(i, byte)| byte ^ [1, 2, 3, 4][i % 4]),
    );
    for byte in bytes {
        stream.write_all(&[byte]).await?;
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    while !answer.contains("subscription_succeeded") {
        let mut buffer = [0; 1_024];
        let count =
            tokio::time::timeout(cluster_tests::PATIENCE, stream.read(&mut buffer)).await??;
        assert!(count > 0, "the server closed: {answer}");
        answer.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    assert!(
        answer.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        "the key of RFC 6455, 1.3"
    );
    Ok(())
}

/// The handshake and the first frame in one packet: nothing of it is lost when
/// the socket changes hands.
#[tokio::test]
async fn a_client_that_does_not_wait_for_the_handshake_is_heard() -> Result<()> {
    let server = Dev::start().await?;
    let mut stream = TcpStream::connect(&server.clients).await?;
    let mut bytes =
        b"GET /app/app-key HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            .to_vec();
    let text = br#"{"event":"pusher:ping"}"#;
    bytes.extend([0x81, 0x80 | u8::try_from(text.len())?, 0, 0, 0, 0]);
    bytes.extend(text);
    stream.write_all(&bytes).await?;
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("pusher:pong") {
        let read =
            tokio::time::timeout(cluster_tests::PATIENCE, stream.read_buf(&mut answer)).await??;
        assert!(read > 0, "the server closed");
    }
    Ok(())
}

#[tokio::test]
async fn a_handshake_that_is_not_one_is_refused() -> Result<()> {
    let server = Dev::start().await?;
    let answer = get(&server.clients, "/app/app-key").await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (426, "upgrade_required")
    );
    let headers = "upgrade: websocket\r\n";
    let answer = request(&server.clients, "GET", "/app/app-key", headers, "").await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "bad_request")
    );
    Ok(())
}

#[tokio::test]
async fn the_api_refuses_by_status_and_code() -> Result<()> {
    let server = Dev::start().await?;
    let body = json!({ "name": "e", "channel": "c", "data": "d" }).to_string();
    let post = async |query: String, body: &str| {
        request(
            &server.clients,
            "POST",
            &format!("{EVENTS}?{query}"),
            "",
            body,
        )
        .await
    };
    let now = UnixTime::now();

    let answer = post(signed_query("POST", EVENTS, &body, "wrong", now), &body).await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "bad_signature")
    );
    let stale = UnixTime(now.0 - 700 * 1_000_000);
    let answer = post(
        signed_query("POST", EVENTS, &body, "app-secret", stale),
        &body,
    )
    .await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "stale_timestamp")
    );
    let answer = post(String::new(), &body).await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "missing_signature")
    );
    let answer = post(
        signed_query("POST", EVENTS, &body, "app-secret", now),
        &body.replace('d', "e"),
    )
    .await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "bad_signature")
    );

    let answer = post_event(
        &server,
        &json!({ "name": "pusher:x", "channel": "c", "data": "d" }),
    )
    .await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (400, "bad_request")
    );
    let answer = post_event(
        &server,
        &json!({ "name": "e", "channel": "c", "data": "x".repeat(102_401) }),
    )
    .await?;
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"));

    let answer = request(&server.clients, "GET", EVENTS, "", "").await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (405, "method_not_allowed")
    );
    assert!(answer.head.contains("allow: post"));
    let answer = request(&server.clients, "POST", "/apps/nobody/events", "", "{}").await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (404, "unknown_app")
    );
    let answer = get(&server.clients, "/nothing/here").await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (404, "unknown_route")
    );
    assert_eq!(
        metric(&server, "dunlin_auth_failures_total", &["expired"]).await?,
        1.0
    );
    Ok(())
}

/// The length is announced and never sent: the answer comes before the body.
#[tokio::test]
async fn a_body_over_the_limit_is_refused_without_reading_it() -> Result<()> {
    let server = Dev::start().await?;
    let query = signed_query("POST", EVENTS, "any", "app-secret", UnixTime::now());
    let head =
        format!("POST {EVENTS}?{query} HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n");
    let answer = exchange(&server.clients, head.as_bytes()).await?;
    assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"));
    assert!(
        answer.head.contains("connection: close"),
        "nothing can follow"
    );
    Ok(())
}

/// A frame far over the limit, all of it: the connection ends with its code,
/// and those that come to the same workers later are served.
#[tokio::test]
async fn a_frame_over_the_limit_costs_nobody_else_anything() -> Result<()> {
    let server = Dev::start().await?;
    for _ in 0..6 {
        let mut client = Pusher::connect(&server).await?;
        // The server closes before it has all of it.
        let _ = client.send_text(&"x".repeat(4 * 1_024 * 1_024)).await;
        assert_eq!(client.frame().await?["data"]["code"], 1009);
        assert_eq!(client.closed().await?, 1009);
    }
    for _ in 0..6 {
        Pusher::connect(&server).await?.subscribe("fine").await?;
    }
    assert_eq!(
        metric(&server, "dunlin_errors_total", &["panic"]).await?,
        0.0
    );
    Ok(())
}

/// A client that never stops sending shares its worker with all others, and
/// does not keep what is left of it after a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_from_one_client_does_not_stop_the_others() -> Result<()> {
    let server = Dev::start_with(["--workers", "1"]).await?;
    // Junk is answered and limited; pongs are neither.
    let mut floods = Vec::new();
    for frame in [&b"\x81\x81\0\0\0\0{"[..], b"\x8a\x80\0\0\0\0"] {
        let mut socket = TcpStream::connect(&server.clients).await?;
        let handshake = "GET /app/app-key HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
            sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        socket.write_all(handshake.as_bytes()).await?;
        let burst = frame.repeat(10_000);
        let (mut reading, mut writing) = socket.into_split();
        floods.push(tokio::spawn(async move {
            while writing.write_all(&burst).await.is_ok() {}
        }));
        floods.push(tokio::spawn(async move {
            let mut sink = vec![0; 65_536];
            while reading.read(&mut sink).await.is_ok_and(|count| count > 0) {}
        }));
    }
    for n in 0..20 {
        let mut client = Pusher::connect(&server).await?;
        client.subscribe("calm").await?;
        publish(&server, "calm", "e", &format!("{n}")).await?;
        assert_eq!(client.frame().await?["data"], format!("{n}"));
    }
    eventually("the one that minds no error is given up", async || {
        let given_up = metric(
            &server,
            "dunlin_disconnects_total",
            &["too_many_messages", "websocket"],
        )
        .await
        .ok()?;
        (given_up == 1.0).then_some(())
    })
    .await;
    for flood in floods {
        flood.abort();
    }
    Ok(())
}

/// Who asks is settled before anything is kept for them.
#[tokio::test]
async fn an_unsigned_request_is_refused_before_its_body() -> Result<()> {
    let server = Dev::start().await?;
    let head = format!("POST {EVENTS} HTTP/1.1\r\nhost: x\r\ncontent-length: 4000000\r\n\r\n");
    let answer = exchange(&server.clients, head.as_bytes()).await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "missing_signature")
    );
    assert!(answer.head.contains("connection: close"));
    Ok(())
}

/// A body that is a little too large, and another request behind it.
#[tokio::test]
async fn a_request_behind_a_refused_body_is_served() -> Result<()> {
    let server = Dev::start().await?;
    let mut stream = TcpStream::connect(&server.clients).await?;
    let length = 2_000_000;
    let query = signed_query("POST", EVENTS, "any", "app-secret", UnixTime::now());
    let head =
        format!("POST {EVENTS}?{query} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&vec![b'x'; length]).await?;
    stream
        .write_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answers = String::new();
    tokio::time::timeout(cluster_tests::PATIENCE, stream.read_to_string(&mut answers)).await??;
    assert!(answers.starts_with("HTTP/1.1 413"), "{answers}");
    assert!(answers.contains("HTTP/1.1 404"), "{answers}");
    Ok(())
}

#[tokio::test]
async fn what_is_not_http_ends_its_own_connection_alone() -> Result<()> {
    let server = Dev::start().await?;
    for junk in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"NICK dunlin\r\n\r\n",
        &[0; 5_000],
        &[b'a'; 40_000],
    ] {
        let mut stream = TcpStream::connect(&server.clients).await?;
        let _ = stream.write_all(junk).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let ended =
            tokio::time::timeout(cluster_tests::PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the server closes it");
    }
    Pusher::connect(&server).await?.subscribe("fine").await?;
    Ok(())
}

#[tokio::test]
async fn event_streams_refuse_with_a_status() -> Result<()> {
    let server = Dev::start().await?;
    for (target, status, code) in [
        ("/app/nobody/sse?channel=a", 404, "unknown_app"),
        ("/app/app-key/sse", 400, "bad_request"),
        ("/app/app-key/sse?channel=a%20b", 400, "bad_request"),
        (
            "/app/app-key/sse?channel=private-a",
            403,
            "forbidden_channel",
        ),
    ] {
        let answer = get(&server.clients, target).await?;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{target}"
        );
    }
    let answer = request(
        &server.clients,
        "DELETE",
        "/app/app-key/sse?channel=a",
        "",
        "",
    )
    .await?;
    assert_eq!(answer.status, 405);
    Ok(())
}

#[tokio::test]
async fn origins_quotas_and_disabled_apps() -> Result<()> {
    let file = std::env::temp_dir().join(format!("dunlin-apps-{}.toml", std::process::id()));
    std::fs::write(
        &file,
        "[[apps]]\nid = \"app-id\"\nkey = \"app-key\"\nsecret = \"app-secret\"\nconnections_max = 1\n\
         allowed_origins = [\"https://good.example\"]\n\
         [[apps]]\nid = \"off\"\nkey = \"off-key\"\nsecret = \"off-secret\"\nenabled = false\n",
    )?;
    let server = Dev::start_with(["--config", file.to_str().context("a path")?]).await?;
    std::fs::remove_file(&file)?;

    let code = async |path: &str| -> Result<serde_json::Value> {
        Ok(Pusher::open(&server, path).await?.frame().await?["data"]["code"].clone())
    };
    assert_eq!(code("/app/off-key").await?, 4003);
    let first = Pusher::connect(&server).await?;
    assert_eq!(code("/app/app-key").await?, 4004);
    let answer = get(&server.clients, "/app/app-key/sse?channel=a").await?;
    assert_eq!((answer.status, answer.code().as_str()), (503, "over_quota"));
    drop(first);
    let stream = eventually("the quota is free again", async || {
        let stream = EventStream::open(&server, "channel=a", "origin: https://good.example\r\n")
            .await
            .ok()?;
        stream.head.starts_with("http/1.1 200").then_some(stream)
    })
    .await;
    assert!(
        stream
            .head
            .contains("access-control-allow-origin: https://good.example")
    );
    drop(stream);
    let headers = "origin: https://evil.example\r\n";
    let answer = request(
        &server.clients,
        "GET",
        "/app/app-key/sse?channel=a",
        headers,
        "",
    )
    .await?;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (403, "forbidden_origin")
    );
    assert!(!answer.head.contains("access-control-allow-origin"));
    Ok(())
}

/// A client that does not read costs bounded memory and nobody else's time.
#[tokio::test]
async fn a_client_that_reads_too_slowly_is_disconnected_and_others_get_everything() -> Result<()> {
    let server = Dev::start().await?;
    let mut slow = Pusher::connect(&server).await?;
    slow.subscribe("flood").await?;
    let stalled = slow.into_socket();
    let mut quick = Pusher::connect(&server).await?;
    quick.subscribe("flood").await?;
    let data = "x".repeat(100_000);
    // The kernel takes some megabytes for the one that does not read, too.
    for n in 0..200 {
        publish(&server, "flood", &format!("n{n}"), &data).await?;
        assert_eq!(quick.frame().await?["event"], format!("n{n}"));
    }
    assert_eq!(
        metric(&server, "dunlin_slow_consumers_total", &["disconnected"]).await?,
        1.0
    );
    drop(stalled);
    Ok(())
}

#[tokio::test]
async fn secrets_never_reach_the_log() -> Result<()> {
    let mut command = cluster_tests::process::command([
        "dev",
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--log",
        "json",
        "--app",
        "app-id:app-key:app-secret",
    ]);
    command.env("RUST_LOG", "trace");
    let server = Dev::start_command(command).await?;
    let mut client = Pusher::connect(&server).await?;
    client
        .send(&json!({ "event": "pusher:subscribe", "data": { "channel": "private-x", "auth": "app-key:0badc0de" } }))
        .await?;
    assert_eq!(client.frame().await?["event"], "pusher:subscription_error");
    publish(&server, "c", "e", "d").await?;
    let log = server.log();
    assert!(
        log.lines().count() > 2 && log.starts_with('{'),
        "it logs, as JSON: {log}"
    );
    assert!(!log.contains("app-secret"), "{log}");
    Ok(())
}
