//! Gateways that are told to end: their clients are sent away one after the other,
//! and whoever resumes elsewhere misses nothing.

use anyhow::{Context, Result};
use cluster_tests::client::{Pusher, get, metric_at, request};
use cluster_tests::cluster::Cluster;
use cluster_tests::eventually;
use cluster_tests::traffic::Publisher;
use cluster_tests::verify::{Load, Verify};
use tokio::net::TcpStream;

/// Clients of the gateway that ends.
const CLIENTS: usize = 60;
/// What pusher-js takes for: connect again at once.
const RECONNECT: u16 = 4200;

/// The clients that a gateway has.
async fn clients_of(admin: &str) -> Result<f64> {
    metric_at(admin, "dunlin_connected_clients", &["type=\"websocket\""]).await
}

#[tokio::test]
async fn clients_are_sent_away_one_after_the_other_and_hear_everything_until_then() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster
        .add_gateway("g3", &["--drain-window-s", "4"])
        .await?;
    cluster.ready().await;
    let (g3, admin) = {
        let gateway = cluster.gateway("g3");
        (gateway.clients.clone(), gateway.admin.clone())
    };
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = Pusher::connect_to(&g3).await?;
        client.subscribe("room").await?;
        clients.push(client);
    }
    let mut publisher = Publisher::connect(&cluster.gateway("g1").clients).await?;
    let told = request(&admin, "POST", "/admin/drain", "", "").await?;
    assert!(told.head.starts_with("http/1.1 202"), "{told:?}");
    eventually("its metrics say so", async || {
        let draining = metric_at(&admin, "dunlin_draining", &[]).await.ok()?;
        (draining == 1.0).then_some(())
    })
    .await;
    let mut published = 0;
    let part = eventually("some have gone", async || {
        let left = clients_of(&admin).await.ok()?;
        (left < CLIENTS as f64).then_some(left)
    })
    .await;
    assert!(part > 0.0, "not all at once");
    let ready = get(&admin, "/readyz").await?;
    assert!(ready.head.starts_with("http/1.1 503"), "{ready:?}");
    assert!(ready.body.contains("shutting down"), "{ready:?}");
    assert!(
        TcpStream::connect(&g3).await.is_err(),
        "it takes nobody new"
    );
    while clients_of(&admin).await.is_ok_and(|left| left > 0.0) {
        publisher.publish("room", &published.to_string()).await?;
        published += 1;
    }
    let mut heard_most = 0;
    for client in &mut clients {
        let mut heard = 0;
        loop {
            let frame = client.frame().await?;
            if frame["event"] == "pusher:error" {
                assert_eq!(frame["data"]["code"], RECONNECT, "{frame}");
                break;
            }
            let data = frame["data"].as_str().context("a publication")?;
            assert_eq!(data, heard.to_string(), "in order, from the first on");
            heard += 1;
        }
        assert_eq!(client.closed().await?, RECONNECT);
        heard_most = heard_most.max(heard);
    }
    println!("the last of {CLIENTS} heard {heard_most} of {published} publications");
    assert!(heard_most > 0, "who stays goes on hearing");
    let gateway = cluster.gateways.get_mut("g3").context("it was added")?;
    assert!(gateway.ended().await?.success(), "{}", gateway.log());
    Ok(())
}

#[tokio::test]
async fn clients_of_gateways_that_are_replaced_one_after_another_miss_nothing() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    for gateway in ["g1", "g2"] {
        cluster.kill_gateway(gateway).await?;
        cluster.keep_place(gateway)?;
        cluster
            .add_gateway(gateway, &["--drain-window-s", "2"])
            .await?;
    }
    cluster.ready().await;
    let verify = Verify::start(&cluster, Load::of_this_run(), &[]).await?;
    for name in ["g1", "g2"] {
        let gateway = cluster.gateways.get_mut(name).context("it runs")?;
        assert!(gateway.terminate().await?.success(), "{}", gateway.log());
        cluster
            .add_gateway(name, &["--drain-window-s", "2"])
            .await?;
        cluster.ready().await;
    }
    let verdict = verify.judge().await?;
    println!("gateways replaced: {:#}", verdict.report);
    assert!(verdict.figure("reconnects") > 0, "somebody was sent away");
    verdict.is_kept();
    verdict.has_no_gaps();
    Ok(())
}
