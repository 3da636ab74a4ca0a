use super::*;

fn options(servers: &str) -> NatsOptions {
    NatsOptions {
        servers: servers.to_owned(),
        credentials: None,
        ca: None,
        name: "test".into(),
    }
}

async fn refused(options: NatsOptions) -> String {
    let error = NatsBus::connect(options).await.expect_err("refused");
    format!("{error} {error:?}")
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("dunlin-{}-{name}", std::process::id()));
    std::fs::write(&path, text).expect("written");
    path
}

#[tokio::test]
async fn wrong_options_are_refused_with_what_was_attempted() {
    assert!(refused(options("http://a")).await.contains("(http://a)"));
    let absent = PathBuf::from("/nowhere/x.creds");
    let mut wrong = options("nats://a");
    wrong.credentials = Some(absent.clone());
    assert!(refused(wrong.clone()).await.contains("/nowhere/x.creds"));
    wrong.servers = "nats://me:secret@a".into();
    assert!(refused(wrong).await.contains("leave out one"));
    let mut wrong = options("nats://a");
    wrong.ca = Some(absent);
    assert!(refused(wrong).await.contains("/nowhere/x.creds"));
}

#[tokio::test]
async fn files_that_are_something_else_are_refused_and_not_shown() {
    let creds = file(
        "creds",
        "-----BEGIN NATS USER JWT-----\nsecret\n------END NATS USER JWT------\n\
         -----BEGIN USER NKEY SEED-----\nSUSECRET\n------END USER NKEY SEED------\n",
    );
    let mut wrong = options("nats://a");
    wrong.credentials = Some(creds.clone());
    let error = refused(wrong).await;
    assert!(error.contains("not a NATS credentials file"), "{error}");
    assert!(!error.to_lowercase().contains("secret"), "{error}");
    for pem in [
        "",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\n",
    ] {
        let mut wrong = options("nats://a");
        let ca = file("ca", pem);
        wrong.ca = Some(ca.clone());
        let error = refused(wrong).await;
        assert!(error.contains("no root certificates"), "{pem}: {error}");
        let _ = std::fs::remove_file(ca);
    }
    let _ = std::fs::remove_file(creds);
}

#[test]
fn passwords_are_not_shown() {
    let shown = format!("{:?}", options("nats://me:secret@a"));
    assert!(shown.contains("nats://a:4222"), "{shown}");
    assert!(!shown.contains("secret"), "{shown}");
    let shown = format!("{:?}", options("me:secret@a"));
    assert!(!shown.contains("secret"), "{shown}");
}

#[tokio::test]
async fn a_bus_that_is_away_takes_calls_at_once() {
    // Nobody listens at port 1.
    let bus = NatsBus::connect(options("nats://me:secret@127.0.0.1:1"))
        .await
        .expect("the options are right");
    let subject: Subject = "dunlin.c.node.a".parse().expect("a valid subject");
    for _ in 0..2 * WAITING_COMMANDS_MAX {
        let payload = Bytes::from_static(b"x");
        assert_eq!(bus.publish(&subject, payload), Ok(()));
    }
    let subscribed = bus.subscribe(subject).now_or_never();
    let subscription = subscribed.expect("at once").expect("subscribed");
    let stats = Stats {
        subscriptions: 1,
        unsent: 2 * WAITING_COMMANDS_MAX as u64,
        ..Stats::default()
    };
    assert_eq!(bus.stats(), stats);
    assert!(!format!("{bus:?}").contains("secret"));
    drop(subscription);
    assert_eq!(bus.stats().subscriptions, 0);
}

#[tokio::test]
async fn subscriptions_end_with_the_bus() {
    let bus = NatsBus::connect(options("nats://127.0.0.1:1"))
        .await
        .expect("the options are right");
    let subject = "dunlin.c.node.a".parse().expect("a valid subject");
    let mut subscription = bus.subscribe(subject).await.expect("subscribed");
    drop(bus);
    assert_eq!(subscription.next().await, None);
}
