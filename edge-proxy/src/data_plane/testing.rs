//! What the tests of this plane need: a worker without a thread of its own, and a scripted backend.

use std::{
    cell::RefCell,
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, mpsc::RecvTimeoutError},
    time::{Duration, Instant},
};

use http2::{Config, Connection, Event, Headers, Reason, Role, hpack::Encoder};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::LocalSet,
};

use super::{
    access_log::{AccessLog, AccessLogConfig, AccessLogFormat},
    downstream::{self, ClientConnection},
    memory::{Account, Memory},
    route::RouteTable,
    rpc,
    tls::Transport,
    wire::Side as _,
    worker::{self, Worker},
};
use crate::{
    snapshot::{
        Cluster, ClusterPolicy, EdgeHealthCheck, Endpoint, EndpointShared, Health, Hints,
        Http2Policy, ListenerPolicy, Route, RouteAction, Snapshot, Timeouts, TlsIdentity,
    },
    telemetry::metrics::{Metrics, Shard},
};

/// A worker whose tasks run on the test's [`LocalSet`], and what it writes.
pub(crate) struct Bench {
    pub(crate) worker: Rc<Worker>,
    pub(crate) shard: Arc<Shard>,
    pub(crate) log: RefCell<AccessLog>,
    directory: tempfile::TempDir,
}

impl Bench {
    /// `/direct/` is answered with 200 and "direct", `/api.` and `/plain/` go to `backends`.
    pub(crate) fn new(backends: &[SocketAddr]) -> Self {
        Self::with(backends, policy(), cluster_policy())
    }

    pub(crate) fn with(
        backends: &[SocketAddr],
        listener: ListenerPolicy,
        cluster: ClusterPolicy,
    ) -> Self {
        Self::within(None, backends, listener, cluster)
    }

    /// With so many bytes of memory granted.
    pub(crate) fn within(
        granted: Option<u64>,
        backends: &[SocketAddr],
        listener: ListenerPolicy,
        cluster: ClusterPolicy,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = AccessLog::start(&AccessLogConfig {
            format: AccessLogFormat::Text,
            path: Some(directory.path().join("log")),
        })
        .unwrap();
        let shard = Metrics::new().shard();
        let snapshot = Arc::new(snapshot(backends, listener, cluster));
        let memory = Account::new(Memory::new(granted, 1), 0);
        let hints = Arc::<Hints>::default();
        let worker = Worker::new(snapshot, shard.clone(), log.writer(), hints, memory);
        tokio::task::spawn_local({
            let worker = worker.clone();
            async move {
                loop {
                    worker.memory.short().await;
                    rpc::relieve(&worker);
                }
            }
        });
        tokio::task::spawn_local(worker::fire_timers(worker.clone()));
        Self {
            worker,
            shard,
            log: RefCell::new(log),
            directory,
        }
    }

    /// The access log so far; nothing is logged after this.
    pub(crate) fn logged(&self) -> Vec<String> {
        assert!(self.log.borrow_mut().finish(Duration::from_secs(10)));
        let text = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Runs a test with the clock standing still unless nothing else can happen.
pub(crate) fn paused<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    on(
        runtime.start_paused(true),
        Duration::from_secs(24 * 3600),
        test,
    )
}

/// Runs a test that has sockets.
pub(crate) fn running<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    on(&mut runtime, Duration::from_secs(60), test)
}

/// Runs a test that has sockets while the clock stands still: what is seen to happen happens with no timer in between,
/// however slow the machine is. Only the test moves time, by `tokio::time::advance`.
pub(crate) fn stopped<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        // A paused clock jumps to the next timer when nothing can run, but not while a blocking task does.
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let clock = tokio::task::spawn_blocking(move || {
            wait.recv_timeout(Duration::from_secs(60)) == Err(RecvTimeoutError::Timeout)
        });
        let limited = tokio::time::timeout(Duration::from_secs(24 * 3600), test()).await;
        drop(done);
        assert!(!clock.await.unwrap(), "it went on only when a timer fired");
        limited.unwrap()
    })
}

/// Runs a test that has sockets, with a clock that only [`pass`] moves: the kernel may take its time with what is on its
/// way, and no deadline passes meanwhile.
pub(crate) fn frozen<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let limit = Duration::from_secs(365 * 24 * 3600);
    on(runtime.start_paused(true), limit, || async {
        let started = Instant::now();
        // The paused clock moves by itself only when nothing is ready to run.
        let busy = async {
            while started.elapsed() < Duration::from_secs(60) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            output = test() => output,
            () = busy => panic!("what the test waits for doesn't come"),
        }
    })
}

/// Moves a [`frozen`] clock. What is due is seen by tasks that run after this.
pub(crate) async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}

/// [`until`], under a clock that stands still.
pub(crate) async fn until_frozen(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// Gives everybody on a [`frozen`] clock's worker more turns than what was due can take: for what must not happen.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// `limit` is far beyond what any test takes, so that a lost wake-up is a failure and no hang.
fn on<F: Future>(
    runtime: &mut tokio::runtime::Builder,
    limit: Duration,
    test: impl FnOnce() -> F,
) -> F::Output {
    let runtime = runtime.enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(limit, test()).await };
    LocalSet::new().block_on(&runtime, limited).unwrap()
}

/// A backend on h2c that does with every event what `script` says; returns its address.
pub(crate) async fn backend(
    script: impl FnMut(&mut Connection, Event<'_>) + 'static,
) -> SocketAddr {
    backend_behind(|_| true, script).await
}

/// [`backend`], which sees only the frames of which `pass` says so.
pub(crate) async fn backend_behind(
    pass: impl FnMut(&[u8]) -> bool + 'static,
    script: impl FnMut(&mut Connection, Event<'_>) + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = Rc::new(RefCell::new(script));
    let pass = Rc::new(RefCell::new(pass));
    tokio::task::spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (script, pass) = (script.clone(), pass.clone());
            tokio::task::spawn_local(serve_behind(
                socket,
                move |frame| pass.borrow_mut()(frame),
                move |connection: &mut Connection, event: Event<'_>| {
                    script.borrow_mut()(connection, event);
                },
            ));
        }
    });
    address
}

pub(crate) async fn serve(socket: TcpStream, script: impl FnMut(&mut Connection, Event<'_>)) {
    serve_behind(socket, |_| true, script).await;
}

async fn serve_behind(
    mut socket: TcpStream,
    mut pass: impl FnMut(&[u8]) -> bool,
    mut script: impl FnMut(&mut Connection, Event<'_>),
) {
    let mut engine = Connection::new(Role::Server, Config::default(), now());
    let mut buffer = vec![0; 64 * 1024];
    let mut unseen = Vec::new();
    let mut preface = PREFACE;
    loop {
        loop {
            engine.flush(now());
            let output = engine.output().to_vec();
            if output.is_empty() {
                break;
            }
            if socket.write_all(&output).await.is_err() {
                return;
            }
            engine.consume(output.len());
        }
        let n = match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        unseen.extend_from_slice(&buffer[..n]);
        let mut seen = Vec::new();
        if unseen.len() >= preface {
            seen.extend(unseen.drain(..std::mem::take(&mut preface)));
            for frame in whole_frames(&mut unseen) {
                if pass(&frame) {
                    seen.extend(frame);
                }
            }
        }
        let mut input = &seen[..];
        loop {
            match engine.receive(&mut input, now()) {
                Ok(Some(event)) => script(&mut engine, event),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Takes all whole frames from the front of `bytes`.
pub(crate) fn whole_frames(bytes: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(&[a, b, c]) = bytes.first_chunk() {
        let len = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
        if bytes.len() < len {
            break;
        }
        frames.push(bytes.drain(..len).collect());
    }
    frames
}

/// Of the client's preface (RFC 9113 §3.4).
const PREFACE: usize = 24;

/// A server's and a client's TLS configuration that trust each other, for `localhost`.
pub(crate) fn tls() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der());
    let certificate = pair.cert.der().clone();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key.into())
        .unwrap();
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    (Arc::new(server), Arc::new(client))
}

/// The client's end of a connection on which HTTP/2 was chosen, without TLS.
async fn http2(bench: &Bench, policy: ListenerPolicy) -> TcpStream {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (accepted, peer) = listener.accept().await.unwrap();
    let worker = bench.worker.clone();
    tokio::task::spawn_local(async move {
        let now = worker.tick();
        let transport = Transport::Plain(accepted);
        downstream::http2(&worker, transport, Vec::new(), peer, Arc::new(policy), now).await;
    });
    socket
}

/// A client that says what it is told, frame by frame.
pub(crate) struct Raw {
    socket: TcpStream,
    pub(crate) encoder: Encoder,
    unread: Vec<u8>,
}

/// Every client has acknowledged the worker's SETTINGS.
fn all_acknowledged(bench: &Bench) -> bool {
    let clients = bench.worker.clients.borrow();
    clients.values().all(|client| match client {
        ClientConnection::Http2(connection) => {
            let engine = connection.link().engine();
            engine.settings_unacked_since().is_none()
        }
        ClientConnection::Http1(_) => true,
    })
}

impl Raw {
    /// It hasn't said anything yet.
    pub(crate) async fn connect(bench: &Bench, policy: ListenerPolicy) -> Self {
        Self {
            socket: http2(bench, policy).await,
            encoder: Encoder::new(4096),
            unread: Vec::new(),
        }
    }

    /// It has said its preface and SETTINGS, and acknowledged those that it got, which are returned with the window's
    /// update behind them.
    pub(crate) async fn open(bench: &Bench, policy: ListenerPolicy) -> (Self, Vec<Vec<u8>>) {
        let mut raw = Self::connect(bench, policy).await;
        let settings = frame(SETTINGS, 0, 0, &[]);
        raw.send(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings].concat())
            .await;
        let mut got = Vec::new();
        loop {
            let next = raw.next().await.unwrap();
            if next[3] == SETTINGS && next[4] == ACK {
                raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
                // A clock that the test moves must not overtake it.
                until_frozen(|| all_acknowledged(bench)).await;
                return (raw, got);
            }
            got.push(next);
        }
    }

    /// One that has closed is noticed by who reads.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).await;
    }

    /// The block of a header list.
    pub(crate) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut block = Vec::new();
        self.encoder.encode(headers, &mut block);
        block
    }

    /// The next frame; `None`: the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let whole = match self.unread.first_chunk() {
                Some(&[a, b, c]) => 9 + u32::from_be_bytes([0, a, b, c]) as usize,
                None => 9,
            };
            if self.unread.len() >= whole {
                return Some(self.unread.drain(..whole).collect());
            }
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
            }
        }
    }

    /// The next frame of this kind; those before it are dropped.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let next = self.next().await.expect("the connection goes on");
            if next[3] == kind {
                return next;
            }
        }
    }
}

/// A frame as it is on the wire.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

// RFC 9113 §6.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// A client on HTTP/2, without TLS.
pub(crate) struct Client {
    socket: TcpStream,
    pub(crate) engine: Connection,
    got: VecDeque<Got>,
    /// The last streams that GOAWAYs named.
    pub(crate) goaways: Vec<u32>,
}

/// What a [`Client`] got.
#[derive(Debug)]
pub(crate) enum Got {
    Headers(u32, Headers, bool),
    Data(u32, Vec<u8>, bool),
    Trailers(u32, Headers),
    Reset(u32, Reason),
    Closed,
}

impl Client {
    /// A connection to `bench`.
    pub(crate) async fn connect(bench: &Bench) -> Self {
        Self::connect_with(bench, policy()).await
    }

    pub(crate) async fn connect_with(bench: &Bench, policy: ListenerPolicy) -> Self {
        let socket = http2(bench, policy).await;
        let config = Config {
            stream_window: 65_535,
            max_header_list: 128 * 1024,
            max_header_list_hard: 128 * 1024,
            max_header_block: 128 * 1024,
            max_header_frames: 100,
            ..Config::default()
        };
        let mut client = Self {
            socket,
            engine: Connection::new(Role::Client, config, now()),
            got: VecDeque::new(),
            goaways: Vec::new(),
        };
        while !client.engine.can_open() {
            client.turn().await;
        }
        client
    }

    /// A gRPC request with this body, ended or not.
    pub(crate) fn call(&mut self, path: &str, body: &[u8], end: bool) -> u32 {
        self.begin(grpc(path), body, end)
    }

    /// Any request with a body, ended or not.
    pub(crate) fn request(&mut self, fields: &[(&str, &str)], body: &[u8], end: bool) -> u32 {
        self.begin(headers(fields), body, end)
    }

    fn begin(&mut self, head: Headers, body: &[u8], end: bool) -> u32 {
        let stream = self.engine.open(head, false, 0).unwrap();
        self.engine.send_data(stream, body, end, now());
        stream
    }

    /// The next of what came; what was sent leaves first. Credit for DATA is given.
    pub(crate) async fn next(&mut self) -> Got {
        loop {
            self.flush().await;
            if let Some(got) = self.got.pop_front() {
                if let Got::Data(stream, bytes, _) = &got {
                    self.engine.credit(*stream, bytes.len());
                }
                return got;
            }
            if !self.turn().await {
                return Got::Closed;
            }
        }
    }

    /// Reads on until `stream` has ended: its head, its body, and its trailers (or its head again, if it has no others).
    pub(crate) async fn answer(&mut self, stream: u32) -> (Headers, Vec<u8>, Headers) {
        let (mut head, mut body) = (Headers::new(), Vec::new());
        loop {
            match self.next().await {
                Got::Headers(at, headers, end) if at == stream => {
                    head = headers;
                    if end {
                        return (head.clone(), body, head);
                    }
                }
                Got::Data(at, bytes, end) if at == stream => {
                    body.extend(bytes);
                    if end {
                        return (head.clone(), body, head);
                    }
                }
                Got::Trailers(at, trailers) if at == stream => return (head, body, trailers),
                Got::Reset(at, reason) if at == stream => panic!("reset: {reason:?}"),
                Got::Closed => panic!("closed"),
                _ => {}
            }
        }
    }

    /// The `grpc-status` that `stream` ends with.
    pub(crate) async fn status(&mut self, stream: u32) -> String {
        let (_, _, trailers) = self.answer(stream).await;
        String::from_utf8_lossy(trailers.get(b"grpc-status").unwrap_or(b"none")).into_owned()
    }

    pub(crate) async fn flush(&mut self) {
        self.engine.flush(now());
        let output = self.engine.output().to_vec();
        // A server that has closed is told by the next read.
        let _ = self.socket.write_all(&output).await;
        self.engine.consume(output.len());
    }

    /// Writes, then reads once; `false`: closed.
    async fn turn(&mut self) -> bool {
        self.flush().await;
        let mut buffer = vec![0; 64 * 1024];
        let n = match self.socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return false,
            Ok(n) => n,
        };
        let mut input = &buffer[..n];
        while let Ok(Some(event)) = self.engine.receive(&mut input, now()) {
            self.got.extend(match event {
                Event::Headers {
                    stream,
                    headers,
                    end_stream,
                    ..
                } => Some(Got::Headers(stream, headers, end_stream)),
                Event::Data {
                    stream,
                    bytes,
                    end_stream,
                    ..
                } => Some(Got::Data(stream, bytes.to_vec(), end_stream)),
                Event::Trailers {
                    stream, headers, ..
                } => Some(Got::Trailers(stream, headers)),
                Event::Reset { stream, reason, .. } => Some(Got::Reset(stream, reason)),
                Event::GoAway { last_stream, .. } => {
                    self.goaways.push(last_stream);
                    None
                }
                _ => None,
            });
        }
        true
    }
}

/// Answers every RPC, when its request has ended, with its body and status 0.
pub(crate) fn echo() -> impl FnMut(&mut Connection, Event<'_>) {
    let mut bodies = HashMap::<u32, Vec<u8>>::new();
    move |engine, event| {
        let (stream, ended) = match event {
            Event::Headers {
                stream, end_stream, ..
            } => {
                bodies.insert(stream, Vec::new());
                (stream, end_stream)
            }
            Event::Data {
                stream,
                bytes,
                end_stream,
                ..
            } => {
                bodies.entry(stream).or_default().extend_from_slice(bytes);
                engine.credit(stream, bytes.len());
                (stream, end_stream)
            }
            Event::Trailers { stream, .. } => (stream, true),
            _ => return,
        };
        if ended {
            let head = headers(&[(":status", "200"), ("content-type", "application/grpc")]);
            engine.send_headers(stream, &head, false);
            engine.send_data(stream, &bodies.remove(&stream).unwrap(), false, now());
            engine.send_trailers(
                stream,
                &headers(&[("grpc-status", "0"), ("x-envoy-of-backend", "1")]),
            );
        }
    }
}

thread_local! {
    /// Where the next panic is to be: part of the place's name, and how often it is passed before.
    static TRAP: RefCell<Option<(&'static str, usize)>> = const { RefCell::new(None) };
}

/// The code that passes `place` panics, once, when it was passed `before` times.
pub(crate) fn arm(place: &'static str, before: usize) {
    TRAP.with_borrow_mut(|trap| *trap = Some((place, before)));
}

/// Where a panic may be armed.
pub(crate) fn trip(place: &str) {
    let trips = TRAP.with_borrow_mut(|trap| match trap {
        Some((armed, 0)) if place.contains(*armed) => trap.take().is_some(),
        Some((armed, before)) if place.contains(*armed) => {
            *before -= 1;
            false
        }
        _ => false,
    });
    assert!(!trips, "a test's panic at {place}");
}

/// Waits until `condition` holds, with no timer.
pub(crate) async fn at_once(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// Waits until `condition` holds, however long that takes.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

pub(crate) fn headers(fields: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::new();
    for (name, value) in fields {
        headers.push(name.as_bytes(), value.as_bytes());
    }
    headers
}

/// The head of a gRPC request.
pub(crate) fn grpc(path: &str) -> Headers {
    headers(&[
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "a.test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// The configuration's defaults.
pub(crate) fn policy() -> ListenerPolicy {
    let seconds = Duration::from_secs;
    ListenerPolicy {
        server_name: "edge-proxy".into(),
        health_check: Some(EdgeHealthCheck {
            path: "/healthz".into(),
            header: Some(("x-envoy-livenessprobe".into(), "healthz".into())),
        }),
        max_connections: 100,
        max_connections_per_source: 100,
        max_pending_handshakes: 100,
        max_connection_age: seconds(1800),
        max_connection_age_grace: None,
        keepalive_interval: seconds(60),
        keepalive_timeout: seconds(20),
        timeouts: Timeouts {
            tls_handshake: seconds(5),
            preface: seconds(10),
            header_block: seconds(10),
            stream_idle: seconds(300),
            write_stall: seconds(30),
            stream_window_stall: seconds(60),
            idle: seconds(900),
        },
        http2: Http2Policy {
            max_concurrent_streams: 100,
            initial_stream_window_size: 64 * 1024,
            initial_connection_window_size: 1 << 20,
            max_header_bytes: 8 * 1024,
        },
    }
}

pub(crate) fn cluster_policy() -> ClusterPolicy {
    ClusterPolicy {
        connect_timeout: Duration::from_secs(5),
        max_connections: 8,
        per_connection_streams: 100,
        initial_stream_window_size: 256 * 1024,
        initial_connection_window_size: 100 * 256 * 1024,
        max_replay_bytes: 64 * 1024,
    }
}

fn snapshot(backends: &[SocketAddr], listener: ListenerPolicy, policy: ClusterPolicy) -> Snapshot {
    let endpoints: Vec<_> = backends
        .iter()
        .map(|address| {
            Arc::new(Endpoint {
                shared: EndpointShared::new(*address),
                health: Health::Healthy,
                close_connections: false,
            })
        })
        .collect();
    let cluster = Arc::new(Cluster {
        name: "backends".into(),
        policy: Arc::new(policy),
        eligible: endpoints.clone(),
        endpoints,
        turn: Arc::default(),
        circuits: Arc::default(),
    });
    let to_cluster = |prefix: &str| Route {
        prefix: prefix.into(),
        action: RouteAction::Cluster {
            cluster: 0,
            timeout: None,
            max_grpc_timeout: None,
        },
    };
    let direct = Route {
        prefix: "/direct/".into(),
        action: RouteAction::DirectResponse {
            status: 200,
            body: "direct".into(),
        },
    };
    Snapshot {
        generation: 1,
        listener: Arc::new(listener),
        routes: Arc::new(RouteTable::new(vec![
            direct,
            to_cluster("/api."),
            to_cluster("/plain/"),
        ])),
        clusters: vec![cluster],
        tls: Some(Arc::new(TlsIdentity {
            config: tls().0,
            serial: String::new(),
            not_after: 0,
        })),
        serving: true,
    }
}
