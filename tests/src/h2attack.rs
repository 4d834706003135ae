//! A hostile client: HTTP/2 written by hand over TLS, and an account of what it spends.
//!
//! An `Attacker` opens TCP, TLS and HTTP/2 connections to one proxy, from any loopback address, and counts the bytes
//! that all of them write. `Attacker::flood` repeats frames until the proxy ends the connection, and tells how: after
//! how many rounds, with which GOAWAY, reading the answers or letting them pile up.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use rustls::{ClientConfig, client::Resumption, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, ReadHalf},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    certs::SERVER_NAME,
    client::Http2,
    frames::{Frame, Wire, flag, kind},
};

/// Who attacks. Cheap to clone; all clones share one account.
#[derive(Clone)]
pub struct Attacker {
    target: SocketAddr,
    source: IpAddr,
    tls: Arc<ClientConfig>,
    written: Arc<AtomicU64>,
}

/// A TCP connection whose written bytes are counted.
pub struct Metered {
    stream: TcpStream,
    written: Arc<AtomicU64>,
}

/// The stream under a [`Wire`] of an attacker.
pub type Secured = TlsStream<Metered>;

/// How a flood went.
#[derive(Clone, Copy, Debug)]
pub struct Flood {
    /// Rounds that were written.
    pub rounds: u32,
    /// When the proxy had ended the connection; `None`: it didn't.
    pub ended: Option<Duration>,
    /// The code of its GOAWAY, if one was read.
    pub goaway: Option<u32>,
}

/// What a flood is made of.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// At most so many rounds.
    pub rounds: u32,
    /// And for so long, in all.
    pub time: Duration,
    /// Between two rounds.
    pub pause: Duration,
    /// Whether what the proxy sends is read.
    pub reading: bool,
}

/// What the reading half has seen.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    ended: Option<Instant>,
    goaway: Option<u32>,
}

/// Reads, and throws away what it reads. Ends with this value.
pub struct Reader {
    seen: watch::Receiver<Seen>,
    task: JoinHandle<()>,
}

impl Attacker {
    /// Attacks `target`, which has a certificate that `tls` trusts. No session is resumed: every handshake costs what
    /// it can.
    pub fn new(target: SocketAddr, tls: &ClientConfig) -> Self {
        let mut tls = tls.clone();
        tls.resumption = Resumption::disabled();
        Self {
            target,
            source: Ipv4Addr::LOCALHOST.into(),
            tls: Arc::new(tls),
            written: Arc::default(),
        }
    }

    /// The same, from another address; see [`source`].
    #[must_use]
    pub fn from(&self, source: IpAddr) -> Self {
        Self {
            source,
            ..self.clone()
        }
    }

    /// Bytes written so far, TLS and all.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// A TCP connection from its address: 127.0.0.1, unless it was given another.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn tcp(&self) -> io::Result<Metered> {
        self.tcp_from(self.source).await
    }

    /// A TCP connection from `source`; see [`source`].
    ///
    /// # Errors
    /// What the socket says.
    pub async fn tcp_from(&self, source: IpAddr) -> io::Result<Metered> {
        self.connect(source, TcpSocket::new_v4()?).await
    }

    /// A TCP connection from its address that can't take more than about `receive` bytes unread.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn narrow_tcp(&self, receive: u32) -> io::Result<Metered> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(receive)?;
        self.connect(self.source, socket).await
    }

    async fn connect(&self, source: IpAddr, socket: TcpSocket) -> io::Result<Metered> {
        socket.bind(SocketAddr::new(source, 0))?;
        let stream = socket.connect(self.target).await?;
        stream.set_nodelay(true)?;
        Ok(Metered {
            stream,
            written: self.written.clone(),
        })
    }

    /// TLS over `stream`.
    ///
    /// # Errors
    /// What the socket or the handshake says.
    pub async fn tls_over(&self, stream: Metered) -> io::Result<Secured> {
        let name = ServerName::try_from(SERVER_NAME).expect("the name is a valid DNS name");
        TlsConnector::from(self.tls.clone())
            .connect(name, stream)
            .await
    }

    /// TLS from its address.
    ///
    /// # Errors
    /// What the socket or the handshake says.
    pub async fn tls(&self) -> io::Result<Secured> {
        self.tls_over(self.tcp().await?).await
    }

    /// HTTP/2 frame by frame: the preface and these SETTINGS are written; see [`wire_over`](Self::wire_over).
    ///
    /// # Errors
    /// What the socket or the handshake says.
    pub async fn wire(&self, settings: &[(u16, u32)]) -> io::Result<Wire<Secured>> {
        self.wire_over(self.tcp().await?, settings).await
    }

    /// The same over `stream`. The proxy's SETTINGS are acknowledged unread: a connection that nobody reads would end for
    /// want of that, and not for what the attack does.
    ///
    /// # Errors
    /// What the socket or the handshake says.
    pub async fn wire_over(
        &self,
        stream: Metered,
        settings: &[(u16, u32)],
    ) -> io::Result<Wire<Secured>> {
        let mut wire = Wire::client(self.tls_over(stream).await?, settings).await?;
        wire.send(&[Frame::new(kind::SETTINGS, flag::ACK, 0, [])])
            .await?;
        Ok(wire)
    }

    /// HTTP/2 as an honest library speaks it.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn http2(&self) -> anyhow::Result<Http2> {
        self.http2_with(&h2::client::Builder::new()).await
    }

    /// [`http2`](Self::http2), with the library's settings.
    ///
    /// # Errors
    /// When it can't be made.
    pub async fn http2_with(&self, settings: &h2::client::Builder) -> anyhow::Result<Http2> {
        Http2::over(self.tls().await?, settings).await
    }

    /// A ClientHello, as the bytes of its records.
    ///
    /// # Panics
    /// When rustls has none, which can't be.
    pub fn client_hello(&self) -> Vec<u8> {
        let name = ServerName::try_from(SERVER_NAME).expect("the name is a valid DNS name");
        let mut client = rustls::ClientConnection::new(self.tls.clone(), name)
            .expect("the configuration suits a client");
        let mut hello = Vec::new();
        client.write_tls(&mut hello).expect("a Vec takes all");
        hello
    }

    /// Writes `frames(0)`, `frames(1)`… until the proxy ends the connection, or the plan is through.
    pub async fn flood<S>(
        &self,
        wire: Wire<S>,
        plan: Plan,
        mut frames: impl FnMut(u32) -> Vec<Frame>,
    ) -> Flood
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let begun = Instant::now();
        let (read, mut write) = wire.split();
        let reader = Reader::start(read, plan.reading);
        let mut rounds = 0;
        let mut closed = None;
        while rounds < plan.rounds && begun.elapsed() < plan.time && !reader.ended() {
            let left = plan.time.saturating_sub(begun.elapsed());
            match timeout(left, write.send(&frames(rounds))).await {
                Ok(Ok(())) => rounds += 1,
                Ok(Err(_)) => {
                    closed = Some(begun.elapsed());
                    break;
                }
                // It takes no more: whoever floods can only wait.
                Err(_) => break,
            }
            if plan.pause > Duration::ZERO {
                tokio::time::sleep(plan.pause).await;
            } else if rounds.is_multiple_of(16) {
                // The reader has its turn.
                tokio::task::yield_now().await;
            }
        }
        let left = plan.time.saturating_sub(begun.elapsed());
        let more = if plan.reading && closed.is_none() {
            left
        } else {
            MOMENT
        };
        let seen = reader.end(more.max(MOMENT)).await;
        Flood {
            rounds,
            ended: seen.ended.map(|at| at - begun).or(closed),
            goaway: seen.goaway,
        }
    }
}

impl Reader {
    /// Reads `wire` to its end if `reading`; else it notices nothing.
    pub fn start<S>(mut wire: Wire<ReadHalf<S>>, reading: bool) -> Self
    where
        S: AsyncRead + Send + 'static,
    {
        let (sender, seen) = watch::channel(Seen::default());
        let task = tokio::spawn(async move {
            if !reading {
                // The half stays open, unread.
                return std::future::pending().await;
            }
            while let Some(frame) = wire.next().await {
                if frame.kind == kind::GOAWAY {
                    let goaway = frame.number(4);
                    sender.send_modify(|seen| {
                        seen.goaway = goaway;
                        seen.ended.get_or_insert_with(Instant::now);
                    });
                }
            }
            sender.send_modify(|seen| {
                seen.ended.get_or_insert_with(Instant::now);
            });
        });
        Self { seen, task }
    }

    /// Whether the proxy has said GOAWAY, or closed.
    pub fn ended(&self) -> bool {
        self.seen.borrow().ended.is_some()
    }

    /// Waits for that at most so long; the GOAWAY's code, if there was one.
    pub async fn goaway(&mut self, most: Duration) -> Option<u32> {
        let _ = timeout(most, self.seen.wait_for(|seen| seen.ended.is_some())).await;
        self.seen.borrow().goaway
    }

    async fn end(mut self, most: Duration) -> Seen {
        // An error means that the reader doesn't read.
        let _ = timeout(most, self.seen.wait_for(|seen| seen.ended.is_some())).await;
        *self.seen.borrow()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Metered {
    /// Waits until the peer has closed; what it sends meanwhile is thrown away. `false`: it hasn't, `most` later.
    pub async fn closes(&mut self, most: Duration) -> bool {
        let mut bytes = [0; 4096];
        let reading =
            async { while matches!(self.stream.read(&mut bytes).await, Ok(n) if n > 0) {} };
        timeout(most, reading).await.is_ok()
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(count)) = wrote {
            self.written.fetch_add(count as u64, Ordering::Relaxed);
        }
        wrote
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The `number`th address to attack from: all of 127.0.0.0/8 is local on Linux, and none of these is
/// [`loopback::address`](crate::loopback::address)'s.
pub fn source(number: usize) -> IpAddr {
    Ipv4Addr::new(127, 255, (number / 250) as u8, (1 + number % 250) as u8).into()
}

/// For a reader to notice what is on its way.
const MOMENT: Duration = Duration::from_millis(200);
