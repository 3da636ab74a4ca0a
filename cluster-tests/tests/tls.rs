//! Clients and backends that connect by TLS: everything goes on as without, the
//! certificate can be replaced while it runs, and whoever reads too slowly is
//! bounded all the same.
#![expect(
    clippy::disallowed_methods,
    reason = "shell: tests stamp requests by the clock"
)]

use std::fs;

use anyhow::{Context, Result, bail};
use cluster_tests::certificate::Certificate;
use cluster_tests::client::{KEY, exchange, metric, signed_query};
use cluster_tests::process::{Dev, run};
use cluster_tests::{PATIENCE, eventually};
use futures_util::{SinkExt, StreamExt};
use proto::time::UnixTime;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

type Client = WebSocketStream<TlsStream<TcpStream>>;

async fn follow(stream: TlsStream<TcpStream>, channel: &str) -> Result<Client> {
    let url = format!("wss://localhost/app/{KEY}?protocol=7");
    let (mut client, _) = tokio_tungstenite::client_async(url, stream).await?;
    let subscribe = json!({ "event": "pusher:subscribe", "data": { "channel": channel } });
    client.send(Message::text(subscribe.to_string())).await?;
    loop {
        let frame = frame(&mut client).await?;
        if frame["event"] == "pusher_internal:subscription_succeeded" {
            return Ok(client);
        }
    }
}

async fn frame(client: &mut Client) -> Result<Value> {
    match timeout(PATIENCE, client.next()).await.context("no frame")? {
        Some(Ok(Message::Text(text))) => Ok(serde_json::from_str(&text)?),
        other => bail!("a frame expected: {other:?}"),
    }
}

/// A whole answer, on a connection of its own.
async fn ask(mut stream: TlsStream<TcpStream>, request: &str) -> Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await??;
    Ok(String::from_utf8(answer)?)
}

async fn publish(certificate: &Certificate, server: &Dev, data: &str) -> Result<()> {
    let path = "/apps/app-id/events";
    let body = json!({ "name": "e", "channel": "news", "data": data }).to_string();
    let query = signed_query("POST", path, &body, "app-secret", UnixTime::now());
    let length = body.len();
    let request = format!(
        "POST {path}?{query} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    let answer = ask(certificate.connect(server, "http/1.1").await?, &request).await?;
    anyhow::ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

#[tokio::test]
async fn clients_and_backends_connect_by_tls() -> Result<()> {
    let certificate = Certificate::new()?;
    let server = certificate.serve(&[]).await?;
    let mut client = follow(certificate.connect(&server, "http/1.1").await?, "news").await?;
    let mut stream = certificate.connect(&server, "http/1.1").await?;
    let request = format!("GET /app/{KEY}/sse?channel=news HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut seen = String::new();
    let mut until = async |text: &str| -> Result<()> {
        while !seen.contains(text) {
            let mut buffer = [0; 4_096];
            let count = timeout(PATIENCE, stream.read(&mut buffer)).await??;
            anyhow::ensure!(count > 0, "it ended: {seen}");
            seen.push_str(std::str::from_utf8(&buffer[..count])?);
        }
        Ok(())
    };
    until("\r\n\r\n").await?;
    for number in 0..20 {
        publish(&certificate, &server, &number.to_string()).await?;
        assert_eq!(frame(&mut client).await?["data"], number.to_string());
        until(&format!("data: {number}\n")).await?;
    }
    // Whoever does not speak TLS is sent away, and harms nobody.
    assert!(
        exchange(&server.clients, b"GET / HTTP/1.1\r\n\r\n")
            .await
            .is_err()
    );
    publish(&certificate, &server, "after").await?;
    assert_eq!(frame(&mut client).await?["data"], "after");
    client.close(None).await?;
    eventually("it is counted out", async || {
        let clients = metric(&server, "dunlin_connected_clients", &["websocket"])
            .await
            .ok()?;
        (clients == 0.0).then_some(())
    })
    .await;
    Ok(())
}

#[tokio::test]
async fn the_certificate_is_replaced_while_it_runs() -> Result<()> {
    let mut certificate = Certificate::new()?;
    let server = certificate.serve(&[]).await?;
    let mut client = follow(certificate.connect(&server, "http/1.1").await?, "news").await?;
    let reloads =
        async |result: &str| metric(&server, "dunlin_certificate_reloads_total", &[result]).await;

    fs::write(certificate.folder.path("tls.crt"), "nonsense")?;
    eventually("it is seen that it cannot be used", async || {
        (reloads("failed").await.ok()? > 0.0).then_some(())
    })
    .await;
    publish(&certificate, &server, "as before").await?;
    assert_eq!(frame(&mut client).await?["data"], "as before");

    certificate.renew()?;
    eventually("the new one is shown", async || {
        certificate
            .connect(&server, "http/1.1")
            .await
            .ok()
            .map(drop)
    })
    .await;
    assert!(reloads("ok").await? > 0.0);
    publish(&certificate, &server, "under the new one").await?;
    // Who was there stays.
    assert_eq!(frame(&mut client).await?["data"], "under the new one");
    Ok(())
}

#[tokio::test]
async fn whoever_reads_too_slowly_is_disconnected() -> Result<()> {
    let certificate = Certificate::new()?;
    let bounds = ["--outbox-bytes-max", "65536", "--outbox-age-max-s", "2"];
    let server = certificate.serve(&bounds).await?;
    let stalled = follow(certificate.connect(&server, "http/1.1").await?, "news").await?;
    let mut other = follow(certificate.connect(&server, "http/1.1").await?, "news").await?;
    let data = "x".repeat(90_000);
    for _ in 0..200 {
        publish(&certificate, &server, &data).await?;
        frame(&mut other).await?;
    }
    let cut_off = metric(&server, "dunlin_slow_consumers_total", &["disconnected"]).await?;
    assert_eq!(cut_off, 1.0);
    drop(stalled);
    Ok(())
}

#[tokio::test]
async fn certificates_that_cannot_be_used_are_refused_at_the_start() -> Result<()> {
    let certificate = Certificate::new()?;
    let [_, path, ..] = certificate.arguments()?;
    let dev = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let ended = run(dev.iter().chain(&["--tls-cert", &path])).await?;
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(ended.stderr.contains("tls_key is not"), "{ended:?}");
    let other = Certificate::new()?;
    let [.., key] = other.arguments()?;
    let arguments = ["--tls-cert", &path, "--tls-key", &key];
    let ended = run(dev.iter().chain(&arguments)).await?;
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(ended.stderr.contains("cannot be used"), "{ended:?}");
    let arguments = ["--tls-cert", &path, "--tls-key", &path];
    let ended = run(dev.iter().chain(&arguments)).await?;
    assert_eq!(ended.status.code(), Some(78), "{ended:?}");
    assert!(
        ended.stderr.contains("could not read a private key"),
        "{ended:?}"
    );
    Ok(())
}
