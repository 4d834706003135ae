//! What answers behind all peers: a tonic server in a process of its own, on any number of addresses.
//!
//! `api.Echo` is the real service's; `e2e.Test` has the shapes of the tests' own (`Download`: a long server stream),
//! without the tests' journal, which remembers every request. RPCs are counted, so that nothing that a peer answers by
//! itself is taken for an RPC. The parent speaks over pipes: a line in asks for the count, and the end of the pipe is
//! the end.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use e2e::pb::{
    Message,
    test_server::{Test, TestServer},
};
use proto::api::{
    EchoRequest, EchoResponse,
    echo_server::{Echo, EchoServer},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_stream::{Stream, StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};

/// The hidden subcommand's flags.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which of the bench's backends this is, from 0
    #[arg(long)]
    number: u8,
    /// On how many addresses it listens, all with one port
    #[arg(long)]
    addresses: usize,
}

/// A running backend, as its parent has it. It ends with this value.
pub(crate) struct Backend {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
    /// Where it listens.
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Backend {
    /// Starts this program once more, as a backend on so many addresses.
    ///
    /// # Errors
    /// When it doesn't start.
    pub(crate) fn start(number: u8, addresses: usize) -> anyhow::Result<Self> {
        let own = std::env::current_exe().context("cannot tell which program this is")?;
        let mut child = Command::new(own)
            .arg("backend")
            .args(["--number", &number.to_string()])
            .args(["--addresses", &addresses.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a backend")?;
        let ask = child.stdin.take().context("it is piped")?;
        let mut answer = BufReader::new(child.stdout.take().context("it is piped")?);
        let port = read_number(&mut answer)?;
        let port = u16::try_from(port).context("a backend said what is no port")?;
        let addresses = (0..addresses).map(|index| address(number, index, port));
        Ok(Self {
            child,
            ask,
            answer,
            addresses: addresses.collect(),
        })
    }

    /// How many RPCs it has answered, health checks apart.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn answered(&mut self) -> anyhow::Result<u64> {
        self.ask.write_all(b"\n").context("a backend has ended")?;
        read_number(&mut self.answer)
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until standard input ends.
///
/// # Errors
/// When an address can't be had.
pub(crate) fn serve(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let answered = Arc::new(AtomicU64::new(0));
    let counted = answered.clone();
    runtime.block_on(async {
        let (connections, incoming) = mpsc::channel(64);
        let mut port = 0;
        for index in 0..options.addresses {
            let address = address(options.number, index, port);
            let listener = TcpListener::bind(address)
                .await
                .with_context(|| format!("a backend cannot listen on {address}"))?;
            port = listener.local_addr()?.port();
            tokio::spawn(accept(listener, connections.clone()));
        }
        tokio::spawn(server(counted, incoming));
        println!("{port}");
        tokio::task::spawn_blocking(move || {
            for line in io::stdin().lines() {
                line?;
                println!("{}", answered.load(Ordering::Relaxed));
            }
            io::Result::Ok(())
        })
        .await??;
        Ok(())
    })
}

async fn accept(listener: TcpListener, connections: mpsc::Sender<io::Result<TcpStream>>) {
    loop {
        let stream = listener.accept().await.map(|(stream, _)| {
            // Only costs time when it fails.
            let _ = stream.set_nodelay(true);
            stream
        });
        if connections.send(stream).await.is_err() {
            return;
        }
    }
}

async fn server(answered: Arc<AtomicU64>, incoming: mpsc::Receiver<io::Result<TcpStream>>) {
    let service = Service { answered };
    let (_, health) = tonic_health::server::health_reporter();
    let served = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(health)
        .add_service(EchoServer::new(service.clone()).max_decoding_message_size(LARGEST_MESSAGE))
        .add_service(
            TestServer::new(service)
                .max_decoding_message_size(LARGEST_MESSAGE)
                .max_encoding_message_size(LARGEST_MESSAGE),
        )
        .serve_with_incoming(ReceiverStream::new(incoming));
    if let Err(error) = served.await {
        eprintln!("a backend has failed: {error}");
    }
}

#[derive(Clone)]
struct Service {
    answered: Arc<AtomicU64>,
}

impl Service {
    fn count(&self) {
        self.answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[tonic::async_trait]
impl Echo for Service {
    async fn echo(&self, request: Request<EchoRequest>) -> Result<Response<EchoResponse>, Status> {
        self.count();
        echo_grpc::Echo.echo(request).await
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<Message, Status>> + Send>>;

#[tonic::async_trait]
impl Test for Service {
    type DownloadStream = Replies;
    type ChatStream = Replies;

    async fn unary(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        self.count();
        Ok(Response::new(request.into_inner()))
    }

    async fn upload(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Message>, Status> {
        self.count();
        let mut messages = request.into_inner();
        while messages.message().await?.is_some() {}
        Ok(Response::new(Message::default()))
    }

    /// As many replies as `x-test-replies` says, each of `x-test-reply-bytes`.
    async fn download(&self, request: Request<Message>) -> Result<Response<Replies>, Status> {
        self.count();
        let number = |name: &str| {
            let text = request.metadata().get(name)?.to_str().ok()?;
            text.parse::<usize>().ok()
        };
        let replies = number("x-test-replies").unwrap_or(1);
        let bytes = number("x-test-reply-bytes")
            .unwrap_or(0)
            .min(LARGEST_MESSAGE);
        let data = Bytes::from(vec![b'r'; bytes]);
        let stream =
            tokio_stream::iter(0..replies).map(move |_| Ok(Message { data: data.clone() }));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn chat(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Replies>, Status> {
        self.count();
        Ok(Response::new(Box::pin(request.into_inner())))
    }
}

/// Each backend has a /16 of the loopback network to itself.
fn address(number: u8, index: usize, port: u16) -> SocketAddr {
    // At most 250 in each /24, so no last byte is 0 or 255.
    let ip = Ipv4Addr::new(
        127,
        64 + number % 64,
        (index / 250) as u8,
        (1 + index % 250) as u8,
    );
    SocketAddr::new(IpAddr::V4(ip), port)
}

fn read_number(from: &mut BufReader<ChildStdout>) -> anyhow::Result<u64> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let number = line.trim().parse();
    number.with_context(|| format!("a backend said {line:?}, which is no number"))
}

const LARGEST_MESSAGE: usize = 8 << 20;
const STREAM_WINDOW: u32 = 1 << 20;
/// Enough for all streams of a load.
const CONNECTION_WINDOW: u32 = 128 << 20;
