//! The NATS bus on real servers: that it is a bus, how it gets in, that nobody
//! waits when it is away, and what the users in docs/operating/bus.md may do.
#![expect(
    clippy::disallowed_methods,
    reason = "tests measure that nothing waits"
)]

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use cluster_tests::client::{Pusher, publish};
use cluster_tests::cluster::Cluster;
use cluster_tests::nats::{self, Folder, NatsServer};
use cluster_tests::{PATIENCE, eventually, repository};
use nkeys::KeyPair;
use proto::bus::{Bus, BusHandle, NatsBus, NatsOptions, Subscription, conformance};
use proto::subject::Subject;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::dynamic_filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Longest that a call which never waits may take on a busy machine.
const AT_ONCE: Duration = Duration::from_millis(200);

fn options(servers: &str) -> NatsOptions {
    NatsOptions {
        servers: servers.to_owned(),
        credentials: None,
        ca: None,
        name: "test".into(),
    }
}

fn subject(address: &str) -> Subject {
    let text = format!("dunlin.c.{address}");
    text.parse().expect("a valid subject")
}

async fn connected(bus: &NatsBus) {
    eventually("the bus is connected", || async {
        bus.stats().connected.then_some(())
    })
    .await;
}

async fn reach(options: NatsOptions) -> Result<Arc<NatsBus>> {
    let bus = NatsBus::connect(options).await?;
    connected(&bus).await;
    Ok(bus)
}

/// Publishes until it arrives.
async fn flows(bus: &NatsBus, to: &Subject, subscription: &mut Subscription, text: &'static str) {
    let flows = async {
        loop {
            assert_eq!(bus.publish(to, Bytes::from_static(text.as_bytes())), Ok(()));
            let next = timeout(Duration::from_millis(50), subscription.next()).await;
            if next.is_ok_and(|payload| payload.is_some_and(|payload| payload == text)) {
                return;
            }
        }
    };
    timeout(PATIENCE, flows).await.expect("messages flow");
}

/// What this test logs, all of it: a test that looks at it runs on one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

thread_local! {
    static LOG: RefCell<Option<Log>> = const { RefCell::new(None) };
}

impl Log {
    fn new() -> Self {
        static INSTALL: Once = Once::new();
        // One subscriber for all threads. With one for each, what a thread
        // without one logs first would be switched off for the others.
        INSTALL.call_once(|| {
            let layer = tracing_subscriber::fmt::layer()
                .with_ansi(false)
                .with_writer(|| LOG.with_borrow(Clone::clone).unwrap_or_default())
                .with_filter(dynamic_filter_fn(|_, _| LOG.with_borrow(Option::is_some)));
            tracing_subscriber::registry().with(layer).init();
        });
        let log = Self::default();
        LOG.set(Some(log.clone()));
        log
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }

    /// Waits for a line of the bus with these words.
    async fn line(&self, words: &[&str]) -> String {
        eventually(&format!("{words:?} in the log"), || async {
            let text = self.text();
            let mut lines = text
                .lines()
                .filter(|line| line.contains("proto::bus") || line.contains(" bus "));
            let line = lines.find(|line| words.iter().all(|word| line.contains(word)));
            line.map(str::to_owned)
        })
        .await
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn conforms_on(binary: &Path) {
    // A server for each bus, so that no rule finds what another has left.
    let servers = Mutex::new(Vec::new());
    conformance::check(|| async {
        let server = NatsServer::start_binary(binary, "")
            .await
            .expect("it serves");
        let bus = reach(options(&server.url())).await.expect("it connects");
        servers.lock().expect("no panic").push(server);
        bus as BusHandle
    })
    .await;
}

#[tokio::test]
async fn conforms() -> Result<()> {
    conforms_on(&nats::binary()?).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_on_several_threads() -> Result<()> {
    conforms_on(&nats::binary()?).await;
    Ok(())
}

#[tokio::test]
async fn conforms_on_the_oldest_server_that_is_supported() {
    if let Some(binary) = nats::floor() {
        conforms_on(&binary).await;
    }
}

#[tokio::test]
async fn messages_flow_once_the_bus_is_there() -> Result<()> {
    let log = Log::new();
    let mut server = NatsServer::stopped(&nats::binary()?, "")?;
    let bus = NatsBus::connect(options(&server.url())).await?;
    let began = Instant::now();
    let to = subject("node.a");
    let mut subscription = bus.subscribe(to.clone()).await?;
    for _ in 0..100_000 {
        bus.publish(&to, Bytes::from_static(b"early"))?;
    }
    assert!(began.elapsed() < PATIENCE / 4, "{:?}", began.elapsed());
    assert!(!bus.stats().connected);
    assert_eq!(bus.stats().unsent, 100_000);
    let line = log.line(&["WARN", "not reached", "Connection refused"]);
    assert!(line.await.contains(&server.address()));
    server.restart().await?;
    flows(&bus, &to, &mut subscription, "at last").await;
    log.line(&["INFO", "the bus is reached"]).await;
    assert_eq!(bus.stats().reconnects, 0);
    Ok(())
}

#[tokio::test]
async fn subscriptions_work_again_after_the_server_was_killed() -> Result<()> {
    let log = Log::new();
    let mut server = NatsServer::start().await?;
    let (here, there) = (
        reach(options(&server.url())).await?,
        reach(options(&server.url())).await?,
    );
    let to = subject("node.a");
    let mut subscription = there.subscribe(to.clone()).await?;
    flows(&here, &to, &mut subscription, "before").await;

    server.kill();
    log.line(&["WARN", "the bus is away"]).await;
    eventually("the loss is noticed", || async {
        (!here.stats().connected && !there.stats().connected).then_some(())
    })
    .await;
    let unsent = here.stats().unsent;
    let mut longest = Duration::ZERO;
    for _ in 0..100_000 {
        let began = Instant::now();
        here.publish(&to, Bytes::from_static(b"meanwhile"))?;
        longest = longest.max(began.elapsed());
    }
    assert!(longest < AT_ONCE, "publish waited for {longest:?}");
    assert_eq!(here.stats().unsent - unsent, 100_000);
    // Also a subscription that is made meanwhile.
    let late = subject("node.b");
    let mut second = timeout(AT_ONCE, there.subscribe(late.clone())).await??;

    server.restart().await?;
    let began = Instant::now();
    flows(&here, &to, &mut subscription, "after").await;
    flows(&here, &late, &mut second, "after").await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert_eq!((here.stats().reconnects, there.stats().reconnects), (1, 1));
    assert!(here.stats().connected);
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_and_holds_up_nobody() -> Result<()> {
    let server = NatsServer::start().await?;
    let bus = reach(options(&server.url())).await?;
    let to = subject("node.a");
    let mut subscription = bus.subscribe(to.clone()).await?;
    flows(&bus, &to, &mut subscription, "before").await;
    server.pause()?;
    let hung = Instant::now();
    let filler = Bytes::from(vec![0; 512 * 1024]);
    let mut longest = Duration::ZERO;
    let hangs = async {
        while bus.stats().connected {
            let began = Instant::now();
            bus.publish(&to, filler.clone()).expect("published");
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, hangs).await.context("it is given up")?;
    assert!(
        hung.elapsed() < Duration::from_secs(10),
        "{:?}",
        hung.elapsed()
    );
    assert!(longest < AT_ONCE, "publish waited for {longest:?}");
    assert!(bus.stats().unsent > 0, "what waits is bounded");
    server.resume()?;
    flows(&bus, &to, &mut subscription, "after").await;
    Ok(())
}

#[tokio::test]
async fn a_dead_server_in_the_list_is_passed_over() -> Result<()> {
    let dead = NatsServer::stopped(&nats::binary()?, "")?;
    let server = NatsServer::start().await?;
    let options = options(&format!("{},{}", dead.url(), server.url()));
    // From a task of its own, as processes may do it.
    let bus = tokio::spawn(reach(options)).await??;
    let to = subject("node.a");
    let mut subscription = bus.subscribe(to.clone()).await?;
    flows(&bus, &to, &mut subscription, "x").await;
    Ok(())
}

#[tokio::test]
async fn passwords_in_urls_work_and_are_never_logged() -> Result<()> {
    let log = Log::new();
    let config = r#"authorization { users: [{ user: "some one", password: "s3cr3t:@/,%" }] }"#;
    let server = NatsServer::start_with(config).await?;
    let address = server.address();
    let url = format!("nats://some%20one:s3cr3t%3A%40%2F%2C%25@{address}");
    let bus = reach(options(&url)).await?;
    let to = subject("node.a");
    let mut subscription = bus.subscribe(to.clone()).await?;
    flows(&bus, &to, &mut subscription, "x").await;
    assert!(!format!("{bus:?} {:?}", options(&url)).contains("s3cr3t"));

    let wrong = NatsBus::connect(options(&format!("nats://some%20one:s3cr3ter@{address}"))).await?;
    log.line(&["ERROR", "the server refuses who we are", &address])
        .await;
    assert!(!wrong.stats().connected);
    let text = log.text();
    assert!(text.contains("async_nats"), "the library is listened to");
    assert!(!text.contains("s3cr3t"), "{text}");
    Ok(())
}

#[tokio::test]
async fn tokens_in_urls_work() -> Result<()> {
    let server = NatsServer::start_with("authorization { token: \"t0k3n\" }").await?;
    reach(options(&format!("nats://t0k3n@{}", server.address()))).await?;
    Ok(())
}

/// A CA, and a certificate that it has signed for 127.0.0.1.
struct Certificates {
    folder: Folder,
    ca: PathBuf,
}

fn certificates() -> Result<Certificates> {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    let folder = Folder::new()?;
    let ca_key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = rcgen::CertifiedIssuer::self_signed(params, ca_key)?;
    let key = KeyPair::generate()?;
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &issuer)?;
    folder.file("server.pem", &certificate.pem())?;
    folder.file("server.key", &key.serialize_pem())?;
    let ca = folder.file("ca.pem", &issuer.pem())?;
    Ok(Certificates { folder, ca })
}

#[tokio::test]
async fn tls_trusts_the_named_ca_and_no_other() -> Result<()> {
    let log = Log::new();
    let good = certificates()?;
    let config = documented(1)?.replace("/etc/nats", &good.folder.path("").display().to_string());
    let server = NatsServer::start_with(&config).await?;
    let with_ca = |scheme: &str, ca: Option<&PathBuf>| NatsOptions {
        ca: ca.cloned(),
        ..options(&format!("{scheme}://{}", server.address()))
    };
    for scheme in ["tls", "nats"] {
        let bus = reach(with_ca(scheme, Some(&good.ca))).await?;
        let to = subject("node.a");
        let mut subscription = bus.subscribe(to.clone()).await?;
        flows(&bus, &to, &mut subscription, "x").await;
    }
    let other = certificates()?;
    let bus = NatsBus::connect(with_ca("tls", Some(&other.ca))).await?;
    log.line(&["ERROR", "TLS fails", "certificate", &server.address()])
        .await;
    assert!(!bus.stats().connected);
    Ok(())
}

#[tokio::test]
async fn tls_is_not_given_up_for_a_server_without_it() -> Result<()> {
    let log = Log::new();
    let server = NatsServer::start().await?;
    let bus = NatsBus::connect(options(&format!("tls://me:s3cr3t@{}", server.address()))).await?;
    log.line(&["ERROR", "TLS fails", &server.address()]).await;
    assert!(!bus.stats().connected);
    Ok(())
}

fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..=chunk.len() {
            let digit = (bits >> (18 - 6 * place)) & 63;
            text.push(char::from(DIGITS[digit as usize]));
        }
    }
    text
}

/// A JWT as `nsc` makes them.
fn jwt(kind: &str, subject: &KeyPair, issuer: &KeyPair, mut claims: Value) -> Result<String> {
    claims["type"] = json!(kind);
    claims["version"] = json!(2);
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let body = json!({
        "jti": "test",
        "iat": 1_700_000_000,
        "iss": issuer.public_key(),
        "name": kind,
        "sub": subject.public_key(),
        "nats": claims,
    });
    let text = [header, body].map(|part| base64url(part.to_string().as_bytes()));
    let text = text.join(".");
    let signature = issuer.sign(text.as_bytes())?;
    Ok(format!("{text}.{}", base64url(&signature)))
}

/// The configuration of a server that knows its users by JWT, and the account
/// that signs them.
fn by_jwt() -> Result<(String, KeyPair)> {
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let limits = json!({ "subs": -1, "data": -1, "payload": -1, "conn": -1, "leaf": -1,
        "imports": -1, "exports": -1, "wildcards": true });
    let config = format!(
        "operator: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {} }}\n",
        jwt("operator", &operator, &operator, json!({}))?,
        account.public_key(),
        jwt("account", &account, &operator, json!({ "limits": limits }))?,
    );
    Ok((config, account))
}

/// A new user of an account: its credentials file, and its secret.
fn credentials(folder: &Folder, name: &str, issuer: &KeyPair) -> Result<(PathBuf, String)> {
    let user = KeyPair::new_user();
    let claims = json!({ "subs": -1, "data": -1, "payload": -1 });
    let token = jwt("user", &user, issuer, claims)?;
    let seed = user.seed()?;
    let text = format!(
        "-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    );
    Ok((folder.file(name, &text)?, seed))
}

#[tokio::test]
async fn credentials_files_work() -> Result<()> {
    let log = Log::new();
    let (config, account) = by_jwt()?;
    let server = NatsServer::start_with(&config).await?;
    let folder = Folder::new()?;
    let (file, seed) = credentials(&folder, "good.creds", &account)?;
    let with = |credentials| NatsOptions {
        credentials: Some(credentials),
        ..options(&server.url())
    };
    let bus = reach(with(file)).await?;
    let to = subject("node.a");
    let mut subscription = bus.subscribe(to.clone()).await?;
    flows(&bus, &to, &mut subscription, "x").await;

    let (stranger, _) = credentials(&folder, "stranger.creds", &KeyPair::new_account())?;
    let bus = NatsBus::connect(with(stranger)).await?;
    log.line(&["ERROR", "the server refuses who we are", &server.address()])
        .await;
    assert!(!bus.stats().connected);
    assert!(!log.text().contains(&seed));
    Ok(())
}

#[tokio::test]
async fn processes_reach_a_bus_with_tls_and_credentials() -> Result<()> {
    let certificates = certificates()?;
    let folder = certificates.folder.path("").display().to_string();
    let (config, account) = by_jwt()?;
    let config = config + &documented(1)?.replace("/etc/nats", &folder);
    let (file, seed) = credentials(&certificates.folder, "dunlin.creds", &account)?;
    let mut cluster = Cluster::on(NatsServer::start_with(&config).await?, &["n1"]).await?;
    let text = |path: &PathBuf| path.to_str().map(str::to_owned).context("a path");
    let (ca, file) = (text(&certificates.ca)?, text(&file)?);
    let arguments = ["--bus-ca", &ca, "--bus-creds", &file];
    cluster.add_node("n1", &arguments).await?;
    cluster.add_gateway("g1", &arguments).await?;
    cluster.ready().await;
    let gateway = cluster.gateway("g1");
    let mut client = Pusher::connect(gateway).await?;
    client.subscribe("room").await?;
    publish(gateway, "room", "e", "through").await?;
    assert_eq!(client.frame().await?["data"], "through");
    assert!(!gateway.log().contains(&seed) && !cluster.node("n1").log().contains(&seed));
    Ok(())
}

/// A block of configuration in docs/operating/bus.md.
fn documented(block: usize) -> Result<String> {
    let page = std::fs::read_to_string(repository().join("docs/operating/bus.md"))?;
    let mut blocks = page
        .split("```")
        .filter_map(|text| text.strip_prefix("conf\n"));
    Ok(blocks.nth(block).context("the page has it")?.to_owned())
}

/// The addresses of a cluster, and which roles publish and subscribe to each.
const ADDRESSES: [(&str, &[&str], &[&str]); 6] = [
    ("node.n1", &["gateway"], &["node"]),
    ("gw.g1", &["node"], &["gateway"]),
    ("inbox.g1", &["node"], &["gateway"]),
    ("beat.node", &["node"], &["gateway", "node"]),
    ("beat.gw", &["gateway"], &["node"]),
    ("map", &["node"], &["gateway"]),
];

/// What each role may do is what it must do: docs/operating/bus.md.
async fn roles_are_kept_apart_by(binary: &Path) -> Result<()> {
    const ROLES: [&str; 2] = ["gateway", "node"];
    let log = Log::new();
    let config = format!(
        "GATEWAY_PASSWORD: \"for-gateway\"\nNODE_PASSWORD: \"for-node\"\n{}",
        documented(0)?
    );
    let server = NatsServer::start_binary(binary, &config).await?;
    let (mut buses, mut subscriptions) = (Vec::new(), Vec::new());
    for role in ROLES {
        let url = format!("nats://{role}:for-{role}@{}", server.address());
        let bus = reach(options(&url)).await?;
        for (address, ..) in ADDRESSES {
            subscriptions.push((role, address, bus.subscribe(subject(address)).await?));
        }
        buses.push((role, bus));
    }
    // Both publish everywhere, until all that may be heard is heard, and
    // nothing else.
    let mut heard = BTreeSet::new();
    let mut all = BTreeSet::new();
    for (address, writers, readers) in ADDRESSES {
        for (writer, reader) in writers
            .iter()
            .flat_map(|w| readers.iter().map(move |r| (w, r)))
        {
            all.insert((*reader, address, Bytes::from_static(writer.as_bytes())));
        }
    }
    let began = Instant::now();
    while heard != all {
        for (role, bus) in &buses {
            for (address, ..) in ADDRESSES {
                bus.publish(&subject(address), Bytes::from_static(role.as_bytes()))?;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        for (role, address, subscription) in &mut subscriptions {
            while let Some(writer) = subscription.try_next() {
                let what = (*role, *address, writer);
                assert!(all.contains(&what), "must not be heard: {what:?}");
                heard.insert(what);
            }
        }
        assert!(
            began.elapsed() < PATIENCE,
            "the roles can do all they must: {all:?}, not only {heard:?}"
        );
    }
    // The server has refused just what it must. Each role has a bus of its own,
    // but they log alike.
    let mut refusals = BTreeSet::new();
    for (address, writers, readers) in ADDRESSES {
        let name = subject(address);
        if writers.len() < ROLES.len() {
            refusals.insert(format!("Publish to \"{name}\""));
        }
        if readers.len() < ROLES.len() {
            refusals.insert(format!("Subscription to \"{name}\""));
        }
    }
    for refusal in &refusals {
        let words = ["ERROR", "does not permit", "docs/operating/bus.md"];
        log.line(&[&words[..], &[&refusal.replace('"', "\\\"")]].concat())
            .await;
    }
    let others = "Subscription to \\\"dunlin.c.beat.node";
    assert!(!log.text().contains(others), "both hear node beats");
    Ok(())
}

#[tokio::test]
async fn the_documented_users_can_do_what_their_role_must_and_no_more() -> Result<()> {
    roles_are_kept_apart_by(&nats::binary()?).await
}

#[tokio::test]
async fn the_documented_users_are_kept_apart_by_the_oldest_server_too() -> Result<()> {
    match nats::floor() {
        Some(binary) => roles_are_kept_apart_by(&binary).await,
        None => Ok(()),
    }
}

/// With the name of a cluster in place of the wildcard, as the page advises.
#[tokio::test]
async fn other_subjects_are_out_of_reach_for_both_roles() -> Result<()> {
    let config = format!(
        "GATEWAY_PASSWORD: \"x\"\nNODE_PASSWORD: \"x\"\n{}",
        documented(0)?.replace("dunlin.*.", "dunlin.other.")
    );
    let server = NatsServer::start_with(&config).await?;
    for role in ["gateway", "node"] {
        let log = Log::new();
        let bus = reach(options(&format!("nats://{role}:x@{}", server.address()))).await?;
        bus.publish(&subject("beat.gw"), Bytes::from_static(b"x"))?;
        bus.publish(&subject("map"), Bytes::from_static(b"x"))?;
        log.line(&["Publish to", "dunlin.c.beat.gw"]).await;
        log.line(&["Publish to", "dunlin.c.map"]).await;
    }
    Ok(())
}
