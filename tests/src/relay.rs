//! A TCP relay that is a bad network between two peers: delay, little bandwidth, stalls, RST, half-open connections.
//! With several targets it is a load balancer of connections as well, which can leave a target without touching the
//! connections that are there.
//!
//! What it does can be changed while it runs, for all of its connections at once. Bytes are never lost or reordered:
//! that is TCP's business, below what can be done here.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{loopback, proxy::Address};

/// A running relay. It ends, abruptly, with this value.
pub struct Relay {
    address: SocketAddr,
    network: Arc<watch::Sender<Network>>,
    targets: Arc<watch::Sender<Vec<SocketAddr>>>,
    refused: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

/// How the network is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// How long each byte is under way, in each direction.
    pub delay: Duration,
    /// Bytes a second, in each direction of each connection; `None`: as fast as it goes.
    pub bandwidth: Option<u32>,
    /// What becomes of connections.
    pub link: Link,
}

/// What becomes of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// Bytes go through.
    #[default]
    Up,
    /// They don't, until it is up again: nothing is read, and windows close.
    Stalled,
    /// As if the far peer's machine had vanished: what comes is read and swallowed, nothing comes back, nobody closes.
    HalfOpen,
    /// Connections end by RST, on both sides; so do new ones.
    Reset,
}

impl Relay {
    /// Relays to `target`.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn to(target: &impl Address) -> Self {
        Self::among(vec![target.address()]).await
    }

    /// Relays each connection to one of `targets`, in turn.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn among(targets: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind((loopback::address(), 0))
            .await
            .expect("the kernel has a free port");
        let address = listener.local_addr().expect("it is bound");
        let network = Arc::new(watch::Sender::new(Network::default()));
        let targets = Arc::new(watch::Sender::new(targets));
        let refused = Arc::<AtomicUsize>::default();
        let mut tasks = JoinSet::new();
        let ended = Arc::<AtomicUsize>::default();
        tasks.spawn(accept(
            listener,
            targets.clone(),
            refused.clone(),
            ended.clone(),
            network.clone(),
        ));
        Self {
            address,
            network,
            targets,
            refused,
            ended,
            _tasks: tasks,
        }
    }

    /// New connections go to one of these from now on; those that are there stay.
    pub fn choose(&self, targets: Vec<SocketAddr>) {
        self.targets.send_replace(targets);
    }

    /// How many connections their target did not take.
    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::Relaxed)
    }

    /// Changes the network, at once.
    pub fn set(&self, network: Network) {
        self.network.send_replace(network);
    }

    /// How many connections have ended, whoever ended them.
    pub fn connections_ended(&self) -> usize {
        self.ended.load(Ordering::Relaxed)
    }

    /// Changes the link alone.
    pub fn link(&self, link: Link) {
        self.network.send_modify(|network| network.link = link);
    }
}

impl Address for Relay {
    fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(
    listener: TcpListener,
    targets: Arc<watch::Sender<Vec<SocketAddr>>>,
    refused: Arc<AtomicUsize>,
    ended: Arc<AtomicUsize>,
    network: Arc<watch::Sender<Network>>,
) {
    let mut connections = JoinSet::new();
    let mut turn = 0_usize;
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        turn = turn.wrapping_add(1);
        let target = {
            let targets = targets.borrow();
            let place = turn.checked_rem(targets.len()).unwrap_or_default();
            targets.get(place).copied()
        };
        let (refused, ended, network) = (refused.clone(), ended.clone(), network.subscribe());
        connections.spawn(async move {
            match target {
                Some(target) => relay(near, target, &refused, network).await,
                None => {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            ended.fetch_add(1, Ordering::Relaxed);
        });
    }
}

async fn relay(
    near: TcpStream,
    target: SocketAddr,
    refused: &AtomicUsize,
    network: watch::Receiver<Network>,
) {
    let Ok(far) = TcpStream::connect(target).await else {
        refused.fetch_add(1, Ordering::Relaxed);
        return;
    };
    for stream in [&near, &far] {
        // Only cost time when they fail.
        let _ = stream.set_nodelay(true);
        // A socket that is dropped sends RST; those that end well are shut down before.
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
    // Not `into_split`, whose halves say goodbye when they are dropped.
    let (near_read, near_write) = split(near);
    let (far_read, far_write) = split(far);
    let mut reset = network.clone();
    let pumps = async {
        tokio::join!(
            pump(near_read, far_write, network.clone()),
            pump(far_read, near_write, network.clone()),
        )
    };
    tokio::select! {
        _ = pumps => {}
        _ = reset.wait_for(|network| network.link == Link::Reset) => {}
    }
}

/// One direction: what is read gets its time of arrival, and is written then.
async fn pump(
    mut from: ReadHalf<TcpStream>,
    mut to: WriteHalf<TcpStream>,
    mut network: watch::Receiver<Network>,
) {
    let (sender, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(IN_FLIGHT);
    let mut changes = network.clone();
    let reading = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            if changes
                .wait_for(|now| now.link != Link::Stalled)
                .await
                .is_err()
            {
                return;
            }
            let Ok(count @ 1..) = from.read(&mut buffer).await else {
                return;
            };
            let now = *changes.borrow();
            if now.link == Link::HalfOpen {
                continue;
            }
            let chunk = (Instant::now() + now.delay, buffer[..count].to_vec());
            if sender.send(chunk).await.is_err() {
                return;
            }
            if let Some(bandwidth) = now.bandwidth {
                sleep(Duration::from_secs(1).mul_f64(count as f64 / f64::from(bandwidth.max(1))))
                    .await;
            }
        }
    };
    let writing = async move {
        while let Some((at, chunk)) = arriving.recv().await {
            sleep_until(at).await;
            let up = network.wait_for(|now| matches!(now.link, Link::Up | Link::HalfOpen));
            match up.await.map(|now| now.link) {
                Ok(Link::Up) => {}
                Ok(_) => continue,
                Err(_) => return,
            }
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
        // A peer that vanishes says nothing.
        if network.borrow().link == Link::HalfOpen {
            return std::future::pending().await;
        }
        // Fails when the peer has closed, too.
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}

/// A read's size: small enough that bandwidth is even.
const CHUNK: usize = 4096;
/// Reads under way: with the delay, what a path holds.
const IN_FLIGHT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::within;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((loopback::address(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    async fn round(stream: &mut TcpStream, bytes: usize) -> std::io::Result<Duration> {
        let begun = Instant::now();
        stream.write_all(&vec![1; bytes]).await?;
        stream.read_exact(&mut vec![0; bytes]).await?;
        Ok(begun.elapsed())
    }

    #[tokio::test]
    async fn delays_and_is_narrow() {
        let relay = Relay::to(&echo().await).await;
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        round(&mut stream, 100_000).await.unwrap();
        let delay = Duration::from_millis(30);
        relay.set(Network {
            delay,
            ..Network::default()
        });
        assert!(round(&mut stream, 1).await.unwrap() >= 2 * delay);
        relay.set(Network {
            bandwidth: Some(100_000),
            ..Network::default()
        });
        assert!(round(&mut stream, 20_000).await.unwrap() >= Duration::from_millis(150));
    }

    #[tokio::test]
    async fn leaves_a_target_and_not_its_connections() {
        let (first, second) = (echo().await, loopback::refused().unwrap());
        let relay = Relay::among(vec![first]).await;
        let mut stays = TcpStream::connect(relay.address()).await.unwrap();
        round(&mut stays, 10).await.unwrap();
        relay.choose(vec![second]);
        let mut refused = TcpStream::connect(relay.address()).await.unwrap();
        assert!(round(&mut refused, 10).await.is_err());
        assert_eq!(relay.refused(), 1);
        round(&mut stays, 10).await.unwrap();
    }

    #[tokio::test]
    async fn stalls_swallows_and_resets() {
        let relay = Relay::to(&echo().await).await;
        let mut stream = TcpStream::connect(relay.address()).await.unwrap();
        round(&mut stream, 10).await.unwrap();
        relay.link(Link::Stalled);
        let waits = tokio::time::timeout(Duration::from_millis(50), round(&mut stream, 10)).await;
        assert!(waits.is_err());
        relay.link(Link::Up);
        within("what was under way", stream.read_exact(&mut [0; 10]))
            .await
            .unwrap();
        relay.link(Link::HalfOpen);
        let swallowed =
            tokio::time::timeout(Duration::from_millis(50), round(&mut stream, 10)).await;
        assert!(swallowed.is_err());
        relay.link(Link::Reset);
        let reset = within("the reset", stream.read(&mut [0; 10]))
            .await
            .unwrap_err();
        assert_eq!(reset.kind(), std::io::ErrorKind::ConnectionReset);
    }
}
