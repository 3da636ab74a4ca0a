use std::net::Ipv4Addr;

use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::UdpSocket;

use super::*;

/// A way to a server that holds back large datagrams while it is told to: small
/// ones overtake them, and when those are acknowledged the others count as lost.
struct Relay {
    address: SocketAddr,
    holds: watch::Sender<bool>,
    held: watch::Receiver<u64>,
}

impl Relay {
    async fn start(server: SocketAddr) -> Self {
        let near = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let far = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        far.connect(server).await.unwrap();
        let address = near.local_addr().unwrap();
        let (holds, mut told) = watch::channel(false);
        let (count, held) = watch::channel(0);
        tokio::spawn(async move {
            let (mut there, mut back) = ([0; 65_536], [0; 65_536]);
            let (mut client, mut waiting) = (None, Vec::new());
            loop {
                tokio::select! {
                    Ok((length, from)) = near.recv_from(&mut there) => {
                        client = Some(from);
                        let datagram = &there[..length];
                        if *told.borrow() && length > 1_000 {
                            waiting.push(datagram.to_vec());
                        } else {
                            far.send(datagram).await.unwrap();
                        }
                    }
                    Ok(length) = far.recv(&mut back) => {
                        near.send_to(&back[..length], client.unwrap()).await.unwrap();
                    }
                    Ok(()) = told.changed() => {}
                    else => return,
                }
                if !*told.borrow() {
                    for datagram in waiting.drain(..) {
                        far.send(&datagram).await.unwrap();
                    }
                }
                count.send_replace(waiting.len() as u64);
            }
        });
        Self {
            address,
            holds,
            held,
        }
    }
}

/// A client and a server that trust each other.
fn endpoints() -> (Endpoint, Endpoint) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = own.cert.der().clone();
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let config = quinn::ServerConfig::with_single_cert(vec![certificate.clone()], key.into());
    let any = (Ipv4Addr::LOCALHOST, 0).into();
    let server = Endpoint::server(config.unwrap(), any).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let mut client = Endpoint::client(any).unwrap();
    client.set_default_client_config(
        quinn::ClientConfig::with_root_certificates(Arc::new(roots)).unwrap(),
    );
    (client, server)
}

/// What is sent again because the way is slow, and then comes twice, is read
/// once.
#[tokio::test]
async fn a_call_that_comes_twice_is_read_once() {
    let (client, server) = endpoints();
    let relay = Relay::start(server.local_addr().unwrap()).await;
    let (here, there) = tokio::join!(
        async {
            let connecting = client.connect(relay.address, "localhost").unwrap();
            connecting.await.unwrap()
        },
        async { server.accept().await.unwrap().await.unwrap() }
    );
    let said: Vec<u8> = (0..3_000_u32).map(|byte| byte as u8).collect();
    let mut held = relay.held.clone();
    for _ in 0..10 {
        relay.holds.send_replace(true);
        let (mut send, receive) = here.open_bi().await.unwrap();
        send.write_all(&said).await.unwrap();
        send.finish().unwrap();
        let again = *held.wait_for(|held| *held >= 5).await.unwrap();
        let expected = there.stats().udp_rx.datagrams + again;
        relay.holds.send_replace(false);
        drop(receive);
        let (_, mut receive) = there.accept_bi().await.unwrap();
        while there.stats().udp_rx.datagrams < expected {
            tokio::task::yield_now().await;
        }
        let mut first = [0];
        receive.read_exact(&mut first).await.unwrap();
        let heard = to_the_end(first.to_vec(), &mut receive).await;
        assert!(heard.is_ok_and(|heard| heard == said));
    }
}

#[tokio::test]
async fn an_attempt_to_connect_begins_anew_when_the_other_is_heard_of() {
    let attempts = std::cell::Cell::new(0);
    let connect = async || {
        attempts.set(attempts.get() + 1);
        if attempts.get() == 1 {
            // What was sent before anybody was there.
            std::future::pending::<()>().await;
        }
        attempts.get()
    };
    assert_eq!(connected(connect, async {}).await, Some(2));
    let answered = async || 1;
    assert_eq!(connected(answered, async {}).await, Some(1), "for nothing");
}

#[test]
fn whoever_tries_again_and_again_does_not_fill_the_log() {
    let mut complaints = Complaints::default();
    let (one, other) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
    let now = Instant::now();
    assert!(complaints.is_due(one, "why", now));
    assert!(!complaints.is_due(one, "why", now + COMPLAIN / 2));
    assert!(complaints.is_due(one, "another why", now));
    assert!(complaints.is_due(other, "why", now));
    assert!(complaints.is_due(one, "why", now + COMPLAIN));
    for number in 0..10_000 {
        complaints.is_due(one, &number.to_string(), now);
    }
    assert!(complaints.0.len() <= COMPLAINTS_MAX);
}
