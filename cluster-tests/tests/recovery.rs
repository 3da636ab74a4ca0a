//! Clients that come back with a cursor, at a server of one process; what
//! clusters do when a part of them dies is in `faults.rs`.
use anyhow::{Context, Result};
use cluster_tests::client::{EventStream, KEY, Pusher, get, metric, publish};
use cluster_tests::eventually;
use cluster_tests::process::Dev;
use serde_json::{Value, json};

/// The cursor of a block.
fn id(block: &str) -> Result<String> {
    let line = block.lines().find_map(|line| line.strip_prefix("id: "));
    Ok(line.with_context(|| format!("no id in {block:?}"))?.into())
}

async fn resume(server: &Dev, query: &str, cursor: &str) -> Result<EventStream> {
    EventStream::open(server, query, &format!("last-event-id: {cursor}\r\n")).await
}

/// The data of the next block that has some, and its cursor.
async fn data(stream: &mut EventStream) -> Result<(String, String)> {
    loop {
        let block = stream.block().await?;
        if let Some(data) = block.lines().find_map(|line| line.strip_prefix("data: ")) {
            return Ok((data.to_owned(), id(&block)?));
        }
    }
}

async fn publish_all(server: &Dev, channel: &str, texts: &[&str]) -> Result<()> {
    for text in texts {
        publish(server, channel, "message", text).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_stream_goes_on_where_it_was_cut() -> Result<()> {
    let server = Dev::start().await?;
    let mut first = EventStream::open(&server, "channel=a", "").await?;
    publish_all(&server, "a", &["1", "2"]).await?;
    let (text, cursor) = data(&mut first).await?;
    assert_eq!(text, "1");
    drop(first);
    publish_all(&server, "a", &["3"]).await?;
    let mut again = resume(&server, "channel=a", &cursor).await?;
    let mut got = Vec::new();
    for _ in 0..2 {
        got.push(data(&mut again).await?.0);
    }
    publish_all(&server, "a", &["4"]).await?;
    let (text, cursor) = data(&mut again).await?;
    got.push(text);
    assert_eq!(got, ["2", "3", "4"]);
    // By the query, and with nothing missed.
    let query = format!("channel=a&last_event_id={cursor}");
    let mut third = EventStream::open(&server, &query, "").await?;
    assert_eq!(id(&third.block().await?)?, cursor);
    publish_all(&server, "a", &["5"]).await?;
    assert_eq!(data(&mut third).await?.0, "5");
    let recoveries = async |result: &str| {
        let label = format!("result=\"{result}\"");
        metric(&server, "dunlin_recoveries_total", &[&label]).await
    };
    assert_eq!(recoveries("recovered").await?, 1.0);
    assert_eq!(recoveries("not_needed").await?, 1.0);
    assert_eq!(recoveries("gap").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn a_stream_of_several_channels_has_all_their_positions_in_its_cursor() -> Result<()> {
    let server = Dev::start().await?;
    let query = "channel=b&channel=a&channel=c&envelope=true";
    let mut first = EventStream::open(&server, query, "").await?;
    publish_all(&server, "a", &["a1"]).await?;
    publish_all(&server, "b", &["b1"]).await?;
    data(&mut first).await?;
    let (text, cursor) = data(&mut first).await?;
    assert_eq!(serde_json::from_str::<Value>(&text)?["data"], "b1");
    assert_eq!(cursor.split(',').count(), 3);
    drop(first);
    publish_all(&server, "a", &["a2"]).await?;
    publish_all(&server, "c", &["c1", "c2"]).await?;
    let mut again = resume(&server, query, &cursor).await?;
    let mut got = Vec::new();
    for _ in 0..3 {
        let message: Value = serde_json::from_str(&data(&mut again).await?.0)?;
        got.push(message["data"].as_str().context("text")?.to_owned());
    }
    got.sort();
    assert_eq!(got, ["a2", "c1", "c2"]);
    publish_all(&server, "b", &["b2"]).await?;
    let message: Value = serde_json::from_str(&data(&mut again).await?.0)?;
    assert_eq!(message["data"], "b2");
    Ok(())
}

/// The gap stands before anything that moves the client's cursor over it.
#[tokio::test]
async fn what_is_gone_is_an_event_and_the_stream_goes_on() -> Result<()> {
    let server = Dev::start().await?;
    let mut first = EventStream::open(&server, "channel=a", "").await?;
    let cursor = id(&first.block().await?)?;
    drop(first);
    let texts: Vec<String> = (1..=300).map(|n| n.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    publish_all(&server, "a", &texts).await?;
    let mut again = resume(&server, "channel=a", &cursor).await?;
    let block = again.block().await?;
    assert!(block.starts_with("event: gap\n"), "{block}");
    let gap = block.lines().find_map(|line| line.strip_prefix("data: "));
    let gap: Value = serde_json::from_str(gap.context("data")?)?;
    assert_eq!(gap["reason"], "expired");
    assert_eq!(gap["earliest"], 45);
    assert_eq!(gap["latest"], id(&block)?);
    publish_all(&server, "a", &["after"]).await?;
    assert_eq!(data(&mut again).await?.0, "after");
    // A channel's life that never was.
    let stranger = "00000000000000aa-3";
    let mut other = resume(&server, "channel=a", stranger).await?;
    let block = other.block().await?;
    assert!(block.contains("\"reason\":\"epoch\""), "{block}");
    let label = "reason=\"epoch\"";
    assert_eq!(
        metric(&server, "dunlin_gaps_announced_total", &[label]).await?,
        1.0
    );
    Ok(())
}

#[tokio::test]
async fn cursors_that_nobody_gave_are_refused() -> Result<()> {
    let server = Dev::start().await?;
    for (query, id) in [
        ("channel=a", "7"),
        ("channel=a", "0000000000000001-1,0000000000000001-1"),
        ("channel=a&channel=b", "0000000000000001-1"),
        ("channel=a", "0000000000000001--1"),
    ] {
        let target = format!("/app/{KEY}/sse?{query}&last_event_id={id}");
        let answer = get(&server.clients, &target).await?;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_request"),
            "{id}"
        );
        assert!(answer.body.contains("last event id"), "{}", answer.body);
    }
    Ok(())
}

/// Subscribes with `recover`; the data of the acknowledgement.
async fn subscribe(client: &mut Pusher, channel: &str, recover: &Value) -> Result<Value> {
    let data = json!({ "channel": channel, "recover": recover });
    client
        .send(&json!({ "event": "pusher:subscribe", "data": data }))
        .await?;
    let frame = client.frame().await?;
    assert_eq!(
        frame["event"], "pusher_internal:subscription_succeeded",
        "{frame}"
    );
    Ok(serde_json::from_str(
        frame["data"].as_str().context("text")?,
    )?)
}

#[tokio::test]
async fn a_pusher_client_that_opts_in_knows_positions_and_resumes() -> Result<()> {
    let server = Dev::start().await?;
    publish_all(&server, "a", &["1"]).await?;
    let mut client = Pusher::connect(&server).await?;
    let acknowledged = subscribe(&mut client, "a", &json!(true)).await?;
    assert_eq!(acknowledged["position"]["offset"], 1);
    assert_eq!(acknowledged.get("recovered"), None);
    let mut plain = Pusher::connect(&server).await?;
    plain.subscribe("a").await?;
    publish_all(&server, "a", &["2"]).await?;
    let frame = client.frame().await?;
    let position = frame["position"].clone();
    assert_eq!(position["offset"], 2);
    assert_eq!(position["epoch"], acknowledged["position"]["epoch"]);
    assert_eq!(plain.frame().await?.get("position"), None, "not for others");
    drop(client);
    publish_all(&server, "a", &["3", "4"]).await?;
    let mut client = Pusher::connect(&server).await?;
    let acknowledged = subscribe(&mut client, "a", &position).await?;
    assert_eq!(acknowledged["recovered"], true);
    assert_eq!(acknowledged["position"], position, "all after it comes");
    for (text, offset) in [("3", 3), ("4", 4)] {
        let frame = client.frame().await?;
        assert_eq!(
            (&frame["data"], &frame["position"]["offset"]),
            (&json!(text), &json!(offset))
        );
    }
    publish_all(&server, "a", &["5"]).await?;
    assert_eq!(client.frame().await?["data"], "5");
    // Never handed out, so it cannot be believed.
    let mut client = Pusher::connect(&server).await?;
    let ahead = json!({ "epoch": position["epoch"], "offset": 99 });
    let acknowledged = subscribe(&mut client, "a", &ahead).await?;
    assert_eq!(acknowledged["recovered"], false);
    assert_eq!(acknowledged["position"]["offset"], 5);
    let gap = client.frame().await?;
    assert_eq!(gap["event"], "dunlin:gap");
    assert!(gap["data"].as_str().context("text")?.contains("\"ahead\""));
    let wrong = json!({ "channel": "a", "recover": { "epoch": 7, "offset": 1 } });
    client
        .send(&json!({ "event": "pusher:subscribe", "data": wrong }))
        .await?;
    assert_eq!(client.frame().await?["event"], "pusher:error");
    Ok(())
}

/// Many clients come back to one channel at once, from many places; and the
/// owner is asked once, if at all.
#[tokio::test]
async fn a_storm_of_clients_that_come_back_costs_the_owner_one_question() -> Result<()> {
    let server = Dev::start().await?;
    let mut first = EventStream::open(&server, "channel=a", "").await?;
    let texts: Vec<String> = (1..=40).map(|n| n.to_string()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    publish_all(&server, "a", &texts).await?;
    let mut cursors = Vec::new();
    for _ in 0..texts.len() {
        cursors.push(data(&mut first).await?.1);
    }
    drop(first);
    eventually("the channel has no followers", async || {
        let channels = metric(&server, "dunlin_active_channels", &[]).await.ok()?;
        (channels == 0.0).then_some(())
    })
    .await;
    let recovered = async || metric(&server, "dunlin_recoveries_total", &["recovered"]).await;
    let requests = async || {
        let labels = ["kind=\"request\""];
        metric(&server, "dunlin_bus_messages_published_total", &labels).await
    };
    let (before, asked_before) = (recovered().await?, requests().await?);
    let mut streams = Vec::new();
    for cursor in cursors.iter().cycle().take(200) {
        streams.push(resume(&server, "channel=a", cursor).await?);
    }
    let asked = requests().await? - asked_before;
    assert!(asked <= 1.0, "{asked} requests for 200 clients");
    publish_all(&server, "a", &["end"]).await?;
    for (stream, from) in streams.iter_mut().zip((1..=40_usize).cycle()) {
        for text in &texts[from..] {
            assert_eq!(data(stream).await?.0, *text);
        }
        assert_eq!(data(stream).await?.0, "end");
    }
    let recovered = recovered().await? - before;
    assert_eq!(recovered, 195.0, "five had missed nothing");
    Ok(())
}
