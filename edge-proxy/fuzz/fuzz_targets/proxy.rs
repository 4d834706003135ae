//! The whole data path: clients and backends whose bytes the fuzzer chooses, through a worker's tasks, under a clock that jumps.
//!
//! The input's first byte says which backends there are: honest ones, which answer every request with its body, or such as say what
//! the fuzzer wants. Then it is a sequence of steps, a byte that says what and its arguments. Frames are built around the fuzzer's payloads and
//! requests are spelled in HPACK for it, since it would rarely guess either; raw bytes are among the steps too.
//!
//! Not only must nothing panic: after each step what is held back is bounded, and when everybody has left and all deadlines have passed,
//! no RPC, no connection and no task is left, every count is back at zero, and the windows of connections to honest
//! backends are whole.

#![no_main]

// As the engine's own targets read theirs.
#[path = "../../../http2/fuzz/fuzz_targets/owner/steps.rs"]
mod steps;

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::{Future as _, poll_fn},
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    pin::Pin,
    rc::Rc,
    sync::{Arc, OnceLock},
    task::Poll,
    time::{Duration, Instant},
};

use edge_proxy::{
    control_plane::config::Config,
    data_plane::{
        pipe::{PipeEnd, direct},
        route::RouteTable,
        stage::{self, Connecting, Network, Stage},
    },
    snapshot::{Cluster, Endpoint, EndpointShared, Health, Snapshot},
};
use http2::{Connection, Headers, Role, hpack::Encoder};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    task::LocalSet,
};

use self::steps::Steps;

fuzz_target!(|input: &[u8]| {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, run(Steps(input)));
});

async fn run(mut steps: Steps<'_>) {
    let kind = steps.byte();
    let honest = kind % 2 == 0;
    let backends = Rc::new(Backends {
        honest,
        fuzzed: RefCell::default(),
    });
    let mut current = snapshot();
    let granted = (kind % 4 == 3).then_some(1 << 20);
    let stage = Stage::new(current.clone(), backends.clone(), granted, 7).unwrap();
    let mut clients: Vec<_> = (0..2).map(|index| Client::new(&stage, index)).collect();
    while !steps.0.is_empty() {
        let what = steps.byte();
        let client = &mut clients[usize::from(what / 128)];
        match what % 32 {
            0 => client.write(steps.bytes()),
            1..=5 => {
                let frame = frame(&mut steps);
                client.write(&frame);
            }
            6..=12 => client.request(&mut steps),
            13..=16 => client.data(&mut steps),
            17 => client.read(),
            18 => *client = Client::new(&stage, steps.byte().into()),
            19 => client.end = None,
            20..=25 => backends.say(&mut steps),
            26 => tokio::time::sleep(Duration::from_millis(steps.byte().into())).await,
            27 => tokio::time::sleep(Duration::from_secs(steps.byte().into())).await,
            28 => stage.publish(without_endpoints(&current)),
            29 => {
                // The same addresses are other endpoints when they come again.
                current = snapshot();
                stage.publish(current.clone());
            }
            _ => backends.hear(),
        }
        for _ in 0..TURNS {
            tokio::task::yield_now().await;
        }
        assert!(stage.held() <= MOST_HELD, "{} bytes are held", stage.held());
    }

    // Everybody leaves, and whatever still waits for them has its deadline.
    drop(clients);
    tokio::time::sleep(LONGEST).await;
    assert_eq!(stage.connections().0, 0, "connections of clients");
    if honest {
        assert_eq!(stage.leftovers(), Vec::<String>::new());
    }
    assert_eq!(stage.rpcs(), 0, "RPCs");
    backends.fuzzed.borrow_mut().clear();
    stage.publish(without_endpoints(&current));
    tokio::time::sleep(LONGEST).await;
    assert_eq!(stage.connections(), (0, 0));
    assert_eq!(stage.leftovers(), Vec::<String>::new());
    assert_eq!(stage.finish().await, 0, "tasks");
}

/// Any frame of a few streams.
fn frame(steps: &mut Steps<'_>) -> Vec<u8> {
    let (kind, flags, stream) = (steps.byte() % 11, steps.byte(), steps.stream());
    framed(kind, flags, stream, steps.bytes())
}

fn framed(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A client's end. What it doesn't read stays in the pipe, which then is full.
struct Client {
    end: Option<PipeEnd>,
    encoder: Encoder,
    next: u32,
}

impl Client {
    fn new(stage: &Stage, index: u32) -> Self {
        let (near, far) = direct(PIPE);
        let address = Ipv4Addr::from_bits(0x0a00_0001 + index);
        stage.accept(far, SocketAddr::new(address.into(), 1));
        let mut client = Self {
            end: Some(near),
            encoder: Encoder::new(4096),
            next: 1,
        };
        if index % 8 < 7 {
            client.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
            client.write(&framed(4, 0, 0, &[]));
        }
        client
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(end) = &mut self.end {
            write(end, bytes);
        }
    }

    fn read(&mut self) {
        if let Some(end) = &mut self.end {
            read(end);
        }
    }

    /// A request as most are, but for a field or two.
    fn request(&mut self, steps: &mut Steps<'_>) {
        let what = steps.byte();
        let mut head = Headers::new();
        head.push(b":method", b"POST");
        head.push(b":scheme", b"https");
        let path: &[u8] = match what % 4 {
            0 => b"/direct/",
            1 => b"/other",
            _ => b"/api.Echo/Echo",
        };
        head.push(b":path", path);
        head.push(b":authority", b"a.test");
        if what & 4 == 0 {
            head.push(b"content-type", b"application/grpc");
            head.push(b"te", b"trailers");
        }
        if what & 8 == 8 {
            head.push(b"grpc-timeout", steps.bytes());
        }
        if what & 16 == 16 {
            let (name, value) = (steps.bytes(), steps.bytes());
            head.push(name, value);
        }
        let mut block = Vec::new();
        self.encoder.encode(&head, &mut block);
        let end = u8::from(what & 32 == 32);
        let frame = framed(1, 4 | end, self.next, &block);
        self.next += 2;
        self.write(&frame);
    }

    /// DATA for one of the last streams.
    fn data(&mut self, steps: &mut Steps<'_>) {
        let what = steps.byte();
        let stream = self.next.saturating_sub(2 * u32::from(what % 4 + 1));
        let body = vec![what; usize::from(steps.byte()) * 16];
        let frame = framed(0, what >> 7, stream, &body);
        self.write(&frame);
    }
}

/// Where the data path finds backends.
struct Backends {
    honest: bool,
    fuzzed: RefCell<VecDeque<PipeEnd>>,
}

impl Backends {
    /// One of those connections says something; half of the time SETTINGS or a head, which it would have to guess.
    fn say(&self, steps: &mut Steps<'_>) {
        let mut fuzzed = self.fuzzed.borrow_mut();
        let what = steps.byte();
        let count = fuzzed.len().max(1);
        let stream = u32::from(what % 4) * 2 + 1;
        let bytes = match what / 32 {
            0 => steps.bytes().to_vec(),
            1 => framed(4, 0, 0, &[]),
            2 => framed(4, 1, 0, &[]),
            // :status 200
            3 => framed(1, 4, stream, &[0x88]),
            4 => framed(1, 5, stream, &[0x88]),
            5 => framed(0, what & 1, stream, steps.bytes()),
            _ => frame(steps),
        };
        if let Some(end) = fuzzed.get_mut(usize::from(what) % count) {
            write(end, &bytes);
        }
        if what == 255 {
            fuzzed.pop_front();
        }
    }

    fn hear(&self) {
        self.fuzzed.borrow_mut().iter_mut().for_each(read);
    }
}

impl Network for Backends {
    fn connect(&self, _: SocketAddr) -> Connecting {
        let (near, far) = direct(PIPE);
        if self.honest {
            tokio::task::spawn_local(echo(far));
        } else {
            let mut fuzzed = self.fuzzed.borrow_mut();
            fuzzed.push_back(far);
            if fuzzed.len() > 4 {
                fuzzed.pop_front();
            }
        }
        Box::pin(std::future::ready(Ok(near)))
    }
}

/// Answers every request with its body, and status 0.
async fn echo(mut end: PipeEnd) {
    let mut engine = Connection::new(Role::Server, http2::Config::default(), now());
    let mut answer = stage::echo();
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = poll_fn(|cx| {
            loop {
                engine.flush(now());
                while engine.take_sent().is_some() {}
                if engine.output().is_empty() {
                    break;
                }
                match Pin::new(&mut end).poll_write(cx, engine.output()) {
                    Poll::Ready(Ok(n)) => engine.consume(n),
                    Poll::Ready(Err(_)) => return Poll::Ready(0),
                    Poll::Pending => break,
                }
            }
            let mut into = ReadBuf::new(&mut buffer);
            match Pin::new(&mut end).poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) => Poll::Ready(into.filled().len()),
                Poll::Ready(Err(_)) => Poll::Ready(0),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        if read == 0 {
            return;
        }
        let mut input = &buffer[..read];
        // Whatever clients send: the data path keeps to the rules towards backends.
        while let Some(event) = engine
            .receive(&mut input, now())
            .expect("the rules are kept")
        {
            answer(&mut engine, event);
        }
    }
}

/// As much as there is room for.
fn write(end: &mut PipeEnd, bytes: &[u8]) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let _: Poll<io::Result<usize>> = Pin::new(end).poll_write(&mut cx, bytes);
}

/// As much as there is.
fn read(end: &mut PipeEnd) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    let limit = PIPE;
    let mut drain = std::pin::pin!(end.drain(limit));
    let _: Poll<()> = drain.as_mut().poll(&mut cx);
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The configuration, as an operator would write it. Endpoints are new each time: they count.
fn snapshot() -> Arc<Snapshot> {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        let parsed = Config::parse(CONFIGURATION, Path::new("fuzz.yaml"));
        parsed.expect("it is right").config
    });
    let cluster = &config.clusters[0];
    let endpoints: Vec<_> = cluster
        .targets
        .iter()
        .map(|target| {
            let host = target.host.parse().expect("an address");
            Arc::new(Endpoint {
                shared: EndpointShared::new(SocketAddr::new(host, target.port)),
                health: Health::Healthy,
                close_connections: false,
            })
        })
        .collect();
    Arc::new(Snapshot {
        generation: 1,
        listener: config.listener.clone(),
        routes: Arc::new(RouteTable::new(config.routes.clone())),
        clusters: vec![Arc::new(Cluster {
            name: cluster.name.clone(),
            policy: cluster.policy.clone(),
            eligible: endpoints.clone(),
            endpoints,
            turn: Arc::default(),
            circuits: Arc::default(),
        })],
        tls: None,
        serving: true,
    })
}

fn without_endpoints(snapshot: &Snapshot) -> Arc<Snapshot> {
    let mut snapshot = snapshot.clone();
    for cluster in &mut snapshot.clusters {
        let mut without = Cluster::clone(cluster);
        without.endpoints.clear();
        without.eligible.clear();
        *cluster = Arc::new(without);
    }
    Arc::new(snapshot)
}

/// More than any step needs to have all its consequences, but for those with a timer.
const TURNS: usize = 8;
/// What a pipe holds each way.
const PIPE: usize = 64 * 1024;
/// Both windows of each connection, and its output: far below what an input could send.
const MOST_HELD: usize = 8 << 20;
/// Beyond every deadline of the configuration, and of the data path's own.
const LONGEST: Duration = Duration::from_secs(3 * 3600);

const CONFIGURATION: &str = "
workers: 1
listener:
  address: 127.0.0.1:8443
  tls: { certificate_chain: /tls.crt, private_key: /tls.key }
routes:
  - { prefix: /api., cluster: echo }
  - { prefix: /direct/, direct_response: { status: 200, body: direct } }
clusters:
  - { name: echo, discovery: static, endpoints: ['127.0.0.1:8081', '127.0.0.2:8081'] }
";
