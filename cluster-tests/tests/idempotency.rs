//! Requests that are repeated with an idempotency key, as backends send them.

use anyhow::Result;
use cluster_tests::client::{Answer, Pusher, metric, post_event_with};
use cluster_tests::process::Dev;
use serde_json::{Value, json};

async fn post(server: &Dev, key: &str, body: &Value) -> Result<Answer> {
    let header = format!("Idempotency-Key: {key}\r\n");
    post_event_with(&server.clients, &header, body).await
}

fn event(channel: &str, data: &str) -> Value {
    json!({ "name": "e", "channel": channel, "data": data })
}

#[tokio::test]
async fn a_repeated_request_is_answered_like_the_first_and_published_once() -> Result<()> {
    let server = Dev::start().await?;
    let mut client = Pusher::connect(&server).await?;
    client.subscribe("room").await?;
    // At once as well as one after the other, by either header.
    let first = event("room", "first");
    let other = "X-Idempotency-Key: order-17\r\n";
    let (one, two, three) = tokio::try_join!(
        post(&server, "order-17", &first),
        post(&server, "order-17", &first),
        post_event_with(&server.clients, other, &first),
    )?;
    for answer in [one, two, three, post(&server, "order-17", &first).await?] {
        assert_eq!((answer.status, answer.body.as_str()), (200, "{}"));
    }
    let repeats = metric(&server, "dunlin_idempotent_repeats_total", &[]).await?;
    assert_eq!(repeats, 3.0);

    let another = post(&server, "order-17", &event("room", "another")).await?;
    assert_eq!(
        (another.status, another.code().as_str()),
        (422, "idempotency_mismatch")
    );
    assert_eq!(another.json()["failed"], json!(["room"]));
    let refusals = "dunlin_idempotency_refusals_total";
    let mismatches = metric(&server, refusals, &["reason=\"mismatch\""]).await?;
    assert_eq!(mismatches, 1.0);

    // A key is the channel's, and one without a key is new each time.
    assert_eq!(
        post(&server, "order-17", &event("other", "x"))
            .await?
            .status,
        200
    );
    assert_eq!(post(&server, "order-18", &first).await?.status, 200);
    for _ in 0..2 {
        let answer = post_event_with(&server.clients, "", &event("room", "unkeyed")).await?;
        assert_eq!(answer.status, 200);
    }
    for data in ["first", "first", "unkeyed", "unkeyed"] {
        assert_eq!(client.frame().await?["data"], data);
    }
    Ok(())
}

#[tokio::test]
async fn a_request_into_several_channels_is_once_in_each() -> Result<()> {
    let server = Dev::start().await?;
    let mut client = Pusher::connect(&server).await?;
    for channel in ["a", "b", "c"] {
        client.subscribe(channel).await?;
    }
    // A channel that is named twice is one.
    let first = json!({ "name": "e", "channels": ["a", "b", "a"], "data": "1" });
    for _ in 0..3 {
        assert_eq!(post(&server, "k", &first).await?.status, 200);
    }
    // Each channel is a publish of its own: c has never seen the key.
    let second = json!({ "name": "e", "channels": ["c", "b"], "data": "2" });
    let answer = post(&server, "k", &second).await?;
    assert_eq!(answer.status, 422);
    let told = answer.json();
    assert_eq!(
        (&told["accepted"], &told["failed"]),
        (&json!(["c"]), &json!(["b"]))
    );
    let mut got = Vec::new();
    for _ in 0..3 {
        let frame = client.frame().await?;
        got.push((frame["channel"].clone(), frame["data"].clone()));
    }
    got.sort_by_key(|(channel, _)| channel.to_string());
    let expected = [("a", "1"), ("b", "1"), ("c", "2")];
    assert_eq!(got, expected.map(|(c, d)| (Value::from(c), Value::from(d))));
    assert_eq!(post(&server, "end", &event("a", "end")).await?.status, 200);
    assert_eq!(client.frame().await?["data"], "end", "nothing else came");
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_none_is_refused_and_says_why() -> Result<()> {
    let server = Dev::start().await?;
    let long = "k".repeat(256);
    for (headers, word) in [
        ("Idempotency-Key:\r\n".to_owned(), "1 to 255"),
        (format!("Idempotency-Key: {long}\r\n"), "1 to 255"),
        ("Idempotency-Key: two words\r\n".to_owned(), "visible"),
        ("X-Idempotency-Key: clé\r\n".to_owned(), "visible"),
        (
            "Idempotency-Key: a\r\nX-Idempotency-Key: b\r\n".to_owned(),
            "different",
        ),
        (
            "Idempotency-Key: a\r\nIdempotency-Key: b\r\n".to_owned(),
            "different",
        ),
    ] {
        let answer = post_event_with(&server.clients, &headers, &event("room", "x")).await?;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "bad_request"),
            "{headers}"
        );
        let told = answer.json()["error"].to_string();
        assert!(told.contains(word), "{headers}: {told}");
    }
    let longest = format!(
        "Idempotency-Key: {0}\r\nX-Idempotency-Key: {0}\r\n",
        &long[1..]
    );
    let answer = post_event_with(&server.clients, &longest, &event("room", "x")).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Ok(())
}
