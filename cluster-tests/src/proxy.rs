//! Faults of a network, on loopback: a proxy for TCP, between processes and
//! their nats-server, and one for UDP, between nodes. Kernels that can do this
//! to packets are not everywhere.
//!
//! TCP loses no bytes that a connection would not lose: what a real network
//! drops, TCP sends again. So a direction is *stalled* (as by loss that lasts),
//! *late*, or a connection is *cut*. UDP drops datagrams, some or all.
//!
//! Each way is set by itself, at any time; what is under way already is not
//! called back.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Pieces of a connection that wait because they are to be late. Then reading
/// waits, as when a real path is full.
const LATE_PIECES: usize = 1_024;
/// Bytes of a piece.
const PIECE: usize = 16 * 1_024;
/// Datagrams that wait because they are to be late; more are dropped, as by a
/// router.
const LATE_DATAGRAMS: usize = 4_096;
/// Senders that a UDP proxy tells apart; datagrams of others are dropped.
const SENDERS_MAX: usize = 256;
/// Bytes of a datagram at most.
const DATAGRAM: usize = 65_536;

/// A direction through a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From those who connect to the server.
    ToServer,
    /// From the server to those who have connected.
    ToClient,
    /// Both.
    Both,
}

/// What each way of a proxy is set to.
#[derive(Debug, Clone, Copy, Default)]
struct Ways<T> {
    to_server: T,
    to_client: T,
}

impl<T> Ways<T> {
    fn set(&mut self, way: Way, change: impl Fn(&mut T)) {
        if way != Way::ToClient {
            change(&mut self.to_server);
        }
        if way != Way::ToServer {
            change(&mut self.to_client);
        }
    }
}

/// Ends a task with the value that owns it.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Flow {
    stalled: bool,
    delay: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct TcpFaults {
    ways: Ways<Flow>,
    /// How often all connections have been cut.
    cuts: u64,
    refuses: bool,
}

impl TcpFaults {
    fn flow(&self, way: Way) -> Flow {
        match way {
            Way::ToClient => self.ways.to_client,
            _ => self.ways.to_server,
        }
    }
}

/// A way to a TCP server that can be disturbed. Ends with this value.
#[derive(Debug)]
pub struct TcpProxy {
    address: String,
    faults: watch::Sender<TcpFaults>,
    _task: Task,
}

impl TcpProxy {
    /// A proxy for a server, without any fault. The server need not be there
    /// yet.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(server: &str) -> Result<Self> {
        let address = crate::nats::free_address()?;
        let listener = TcpListener::bind(&address).await?;
        let (faults, watching) = watch::channel(TcpFaults::default());
        let server = server.to_owned();
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                if !watching.borrow().refuses {
                    // It is cut from here on.
                    let faults = watching.clone();
                    connections.spawn(connect(client, server.clone(), faults));
                }
            }
        });
        Ok(Self {
            address,
            faults,
            _task: Task(task),
        })
    }

    /// Where to connect instead of to the server: `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Nothing moves this way, in the connections that there are and in new ones,
    /// until [`heal`](Self::heal).
    pub fn stall(&self, way: Way) {
        self.change(|faults| faults.ways.set(way, |flow| flow.stalled = true));
    }

    /// Everything that goes this way arrives so much later.
    pub fn delay(&self, way: Way, delay: Duration) {
        self.change(|faults| faults.ways.set(way, |flow| flow.delay = delay));
    }

    /// Ends all connections that there are.
    pub fn cut(&self) {
        self.change(|faults| faults.cuts += 1);
    }

    /// Ends all connections that there are, and closes new ones at once, until
    /// [`heal`](Self::heal).
    pub fn refuse(&self) {
        self.change(|faults| {
            faults.cuts += 1;
            faults.refuses = true;
        });
    }

    /// Everything flows again.
    pub fn heal(&self) {
        self.change(|faults| {
            faults.ways = Ways::default();
            faults.refuses = false;
        });
    }

    fn change(&self, change: impl FnOnce(&mut TcpFaults)) {
        self.faults.send_modify(change);
    }
}

/// One connection, until either side ends it or it is cut.
async fn connect(client: TcpStream, server: String, mut faults: watch::Receiver<TcpFaults>) {
    let cuts = faults.borrow().cuts;
    let carrying = carry(client, server, faults.clone());
    let cut = faults.wait_for(|faults| faults.cuts > cuts);
    tokio::select! {
        // An end that is an error is an end.
        _ = carrying => {}
        _ = cut => {}
    }
}

async fn carry(
    client: TcpStream,
    server: String,
    faults: watch::Receiver<TcpFaults>,
) -> Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        ended = pump(from_client, to_server, Way::ToServer, faults.clone()) => ended,
        ended = pump(from_server, to_client, Way::ToClient, faults) => ended,
    }
}

/// Carries one way of a connection, until its sender ends it.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut faults: watch::Receiver<TcpFaults>,
) -> Result<()> {
    let (pieces, mut late) = mpsc::channel::<(Instant, Vec<u8>)>(LATE_PIECES);
    let mut watching = faults.clone();
    let reading = async move {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let read = from.read_buf(&mut piece).await?;
            let delay = watching.borrow_and_update().flow(way).delay;
            if read == 0 || pieces.send((Instant::now() + delay, piece)).await.is_err() {
                return anyhow::Ok(());
            }
        }
    };
    let writing = async move {
        while let Some((due, piece)) = late.recv().await {
            tokio::time::sleep_until(due).await;
            faults.wait_for(|faults| !faults.flow(way).stalled).await?;
            to.write_all(&piece).await?;
        }
        anyhow::Ok(())
    };
    let (read, written) = tokio::join!(reading, writing);
    read.and(written)
}

#[derive(Debug, Clone, Copy, Default)]
struct Loss {
    percent: u8,
    delay: Duration,
}

/// What happens to datagrams.
#[derive(Debug, Clone, Copy, Default)]
struct Losses {
    ways: Ways<Loss>,
    /// Of this client only, if any.
    only: Option<SocketAddr>,
}

impl Losses {
    fn of(&self, client: SocketAddr, way: Way) -> Loss {
        if self.only.is_some_and(|only| only != client) {
            return Loss::default();
        }
        match way {
            Way::ToClient => self.ways.to_client,
            _ => self.ways.to_server,
        }
    }
}

/// A way to a UDP server that can be disturbed. Ends with this value.
#[derive(Debug)]
pub struct UdpProxy {
    address: String,
    faults: watch::Sender<Losses>,
    _task: Task,
}

impl UdpProxy {
    /// A proxy for a server, without any fault.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(server: &str) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let address = socket.local_addr()?.to_string();
        let (faults, watching) = watch::channel(Losses::default());
        let server = server.to_owned();
        let task = tokio::spawn(async move {
            // A socket that fails has no more to carry; the test will see.
            let _ = forward(Arc::new(socket), server, watching).await;
        });
        Ok(Self {
            address,
            faults,
            _task: Task(task),
        })
    }

    /// Where to send instead of to the server: `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Of the datagrams that go this way, so many in a hundred are dropped; of
    /// 100, all.
    pub fn lose(&self, way: Way, percent: u8) {
        self.faults
            .send_modify(|losses| losses.ways.set(way, |loss| loss.percent = percent));
    }

    /// Every datagram that goes this way arrives so much later.
    pub fn delay(&self, way: Way, delay: Duration) {
        self.faults
            .send_modify(|losses| losses.ways.set(way, |loss| loss.delay = delay));
    }

    /// What happens, happens from now on to this client alone: the address from
    /// which it sends.
    pub fn only(&self, client: SocketAddr) {
        self.faults.send_modify(|losses| losses.only = Some(client));
    }

    /// Everything arrives again.
    pub fn heal(&self) {
        self.faults
            .send_modify(|losses| *losses = Losses::default());
    }
}

/// Which datagrams are lost: always the same ones of the same traffic.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn lost(&mut self, percent: u8) -> bool {
        // SplitMix64: a counter, hashed.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % 100 < u64::from(percent)
    }
}

/// Sends datagrams on, late if they are to be.
#[derive(Debug, Clone)]
struct Sender {
    socket: Arc<UdpSocket>,
    /// `None`: the socket is connected.
    to: Option<SocketAddr>,
    room: Arc<Semaphore>,
}

impl Sender {
    fn new(socket: Arc<UdpSocket>, to: Option<SocketAddr>) -> Self {
        let room = Arc::new(Semaphore::new(LATE_DATAGRAMS));
        Self { socket, to, room }
    }

    async fn send(&self, datagram: &[u8], delay: Duration) {
        if delay.is_zero() {
            return self.send_now(datagram).await;
        }
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            return;
        };
        let (sender, datagram) = (self.clone(), datagram.to_vec());
        let due = Instant::now() + delay;
        tokio::spawn(async move {
            tokio::time::sleep_until(due).await;
            sender.send_now(&datagram).await;
            drop(place);
        });
    }

    /// A datagram that cannot be sent is one that is lost.
    async fn send_now(&self, datagram: &[u8]) {
        let _ = match self.to {
            Some(to) => self.socket.send_to(datagram, to).await,
            None => self.socket.send(datagram).await,
        };
    }
}

/// Carries both ways: each sender has a socket of its own towards the server,
/// so that answers find back.
async fn forward(
    socket: Arc<UdpSocket>,
    server: String,
    faults: watch::Receiver<Losses>,
) -> Result<()> {
    let mut senders: HashMap<SocketAddr, Sender> = HashMap::new();
    let mut answering = JoinSet::new();
    let mut dice = Dice(1);
    let mut datagram = vec![0; DATAGRAM];
    loop {
        // A refusal by the system concerns one that was sent; the next may come.
        let Ok((length, from)) = socket.recv_from(&mut datagram).await else {
            continue;
        };
        if !senders.contains_key(&from) && senders.len() < SENDERS_MAX {
            let own = UdpSocket::bind("127.0.0.1:0").await?;
            own.connect(&server).await.context("no way to the server")?;
            let own = Arc::new(own);
            senders.insert(from, Sender::new(Arc::clone(&own), None));
            let back = Sender::new(Arc::clone(&socket), Some(from));
            answering.spawn(answer(own, from, back, faults.clone()));
        }
        let loss = faults.borrow().of(from, Way::ToServer);
        if let Some(sender) = senders.get(&from)
            && !dice.lost(loss.percent)
        {
            sender.send(&datagram[..length], loss.delay).await;
        }
    }
}

async fn answer(
    own: Arc<UdpSocket>,
    client: SocketAddr,
    back: Sender,
    faults: watch::Receiver<Losses>,
) {
    let mut dice = Dice(2);
    let mut datagram = vec![0; DATAGRAM];
    loop {
        match own.recv(&mut datagram).await {
            Ok(length) => {
                let loss = faults.borrow().of(client, Way::ToClient);
                if !dice.lost(loss.percent) {
                    back.send(&datagram[..length], loss.delay).await;
                }
            }
            // The server is not there now; it may be later.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PATIENCE, eventually};
    use tokio::time::timeout;

    /// Longer than anything takes that is not held up.
    const NOTHING: Duration = Duration::from_millis(200);

    /// A server that sends back what it gets, the proxy before it, and a client.
    async fn tcp() -> Result<(Task, TcpProxy, TcpStream)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let server = listener.local_addr()?.to_string();
        let echo = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(async move {
                    let (mut read, mut write) = stream.into_split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let proxy = TcpProxy::start(&server).await?;
        let client = TcpStream::connect(proxy.address()).await?;
        Ok((Task(echo), proxy, client))
    }

    async fn comes(client: &mut TcpStream, text: &[u8]) -> Result<()> {
        let mut got = vec![0; text.len()];
        timeout(PATIENCE, client.read_exact(&mut got)).await??;
        assert_eq!(got, text);
        Ok(())
    }

    #[tokio::test]
    async fn what_is_stalled_comes_when_it_is_healed() -> Result<()> {
        for way in [Way::ToServer, Way::ToClient, Way::Both] {
            let (_echo, proxy, mut client) = tcp().await?;
            client.write_all(b"one").await?;
            comes(&mut client, b"one").await?;
            proxy.stall(way);
            client.write_all(b"two").await?;
            let mut byte = [0];
            let nothing = timeout(NOTHING, client.read_exact(&mut byte)).await;
            assert!(nothing.is_err(), "{way:?}");
            proxy.heal();
            comes(&mut client, b"two").await?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn each_way_is_late_by_itself() -> Result<()> {
        let (_echo, proxy, mut client) = tcp().await?;
        let late = Duration::from_millis(150);
        for (way, least) in [
            (Way::ToServer, late),
            (Way::ToClient, late),
            (Way::Both, 2 * late),
        ] {
            proxy.heal();
            proxy.delay(way, late);
            let began = Instant::now();
            // What is late is not slow: all of it comes after one delay.
            for _ in 0..10 {
                client.write_all(b"hello").await?;
            }
            comes(&mut client, &b"hello".repeat(10)).await?;
            let took = began.elapsed();
            assert!(
                took >= least && took < least + 5 * late,
                "{way:?}: {took:?}"
            );
        }
        Ok(())
    }

    #[tokio::test]
    async fn what_is_cut_ends_and_can_begin_again() -> Result<()> {
        let (_echo, proxy, mut client) = tcp().await?;
        client.write_all(b"one").await?;
        comes(&mut client, b"one").await?;
        proxy.cut();
        let ended = timeout(PATIENCE, client.read(&mut [0])).await?;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        let mut again = TcpStream::connect(proxy.address()).await?;
        again.write_all(b"two").await?;
        comes(&mut again, b"two").await?;
        proxy.refuse();
        let mut refused = TcpStream::connect(proxy.address()).await?;
        for client in [&mut again, &mut refused] {
            let ended = timeout(PATIENCE, client.read(&mut [0])).await?;
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        }
        proxy.heal();
        let mut last = TcpStream::connect(proxy.address()).await?;
        last.write_all(b"three").await?;
        comes(&mut last, b"three").await
    }

    /// A server that sends back what it gets, the proxy before it, and a client.
    async fn udp() -> Result<(Task, UdpProxy, UdpSocket)> {
        let server = UdpSocket::bind("127.0.0.1:0").await?;
        let address = server.local_addr()?.to_string();
        let echo = tokio::spawn(async move {
            let mut datagram = [0; 64];
            while let Ok((length, from)) = server.recv_from(&mut datagram).await {
                let _ = server.send_to(&datagram[..length], from).await;
            }
        });
        let proxy = UdpProxy::start(&address).await?;
        let client = UdpSocket::bind("127.0.0.1:0").await?;
        client.connect(proxy.address()).await?;
        Ok((Task(echo), proxy, client))
    }

    /// How many of some datagrams come back.
    async fn back(client: &UdpSocket, count: usize) -> Result<usize> {
        for _ in 0..count {
            client.send(b"hello").await?;
            // Not more at once than sockets have room for.
            tokio::task::yield_now().await;
        }
        let mut came = 0;
        while came < count {
            match timeout(NOTHING, client.recv(&mut [0; 64])).await {
                Ok(length) => came += usize::from(length? == 5),
                Err(_) => break,
            }
        }
        Ok(came)
    }

    #[tokio::test]
    async fn datagrams_are_lost_as_told() -> Result<()> {
        let (_echo, proxy, client) = udp().await?;
        assert_eq!(back(&client, 20).await?, 20);
        for way in [Way::ToServer, Way::ToClient, Way::Both] {
            proxy.lose(way, 100);
            assert_eq!(back(&client, 5).await?, 0, "{way:?}");
            proxy.heal();
            assert_eq!(back(&client, 20).await?, 20, "{way:?}");
        }
        proxy.lose(Way::ToServer, 50);
        let came = back(&client, 100).await?;
        assert!((20..80).contains(&came), "{came}");
        Ok(())
    }

    #[tokio::test]
    async fn datagrams_are_late_as_told() -> Result<()> {
        let (_echo, proxy, client) = udp().await?;
        let late = Duration::from_millis(100);
        proxy.delay(Way::Both, late);
        let began = Instant::now();
        client.send(b"hello").await?;
        timeout(PATIENCE, client.recv(&mut [0; 64])).await??;
        assert!(began.elapsed() >= 2 * late);
        Ok(())
    }

    #[tokio::test]
    async fn senders_are_told_apart() -> Result<()> {
        let (_echo, proxy, first) = udp().await?;
        let second = UdpSocket::bind("127.0.0.1:0").await?;
        second.connect(proxy.address()).await?;
        assert_eq!(back(&first, 3).await?, 3);
        assert_eq!(back(&second, 3).await?, 3);
        assert_eq!(back(&first, 3).await?, 3);
        drop(second);
        eventually("the first still gets answers", async || {
            (back(&first, 1).await.ok()? == 1).then_some(())
        })
        .await;
        Ok(())
    }
}
