//! gRPC's interoperability cases through the proxy, of several clients to several backends.
//!
//! What each case is, the public description says (github.com/grpc/grpc: `doc/interop-test-descriptions.md`). The
//! clients are grpc-go's own program for them, tonic (`client.rs`), and grpcio and grpc-js
//! (`tests/clients/python/interop.py`, `tests/clients/node/interop.js`); the backends are grpc-go's own program and tonic
//! (`server.rs`). Each backend is behind a process of the proxy; clients speak TLS to it.
//!
//! Programs are asked as gRPC's own test driver asks them (`--server_host`, `--server_port`, `--ca_file`,
//! `--server_host_override`, `--test_case`). grpc-go's does one case and tells by its exit code; ours take several, and
//! write a line for each: `passed CASE`, or `failed CASE: why`.
//!
//! Left out of the description: `cacheable_unary`, a GET for caches, which no client here sends any more; streams whose
//! messages are compressed and not, in turn, which no client here can send, nor tonic's server; credentials, which take
//! Google's servers; and reports of load, which are between a client and its own choice of a backend.

/// The cases, of a client on tonic.
mod client;

/// The server, on tonic.
mod server;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};
use tonic::body::Body;

pub use server::Server;

use crate::{
    certs::SERVER_NAME,
    process::{Process, other_clients},
    proxy::{Address as _, Known, Proxy},
    wait::PATIENCE,
};

/// Types of `proto/interop.proto`.
#[allow(missing_docs, unused_qualifications, reason = "generated")]
pub mod pb {
    tonic::include_proto!("grpc.testing");
}

/// The cases, in the description's order.
pub const CASES: [&str; 19] = [
    "empty_unary",
    "large_unary",
    "client_compressed_unary",
    "server_compressed_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "custom_metadata",
    "status_code_and_message",
    "special_status_message",
    "unimplemented_method",
    "unimplemented_service",
    "cancel_after_begin",
    "cancel_after_first_response",
    "timeout_on_sleeping_server",
    "concurrent_large_unary",
    "rpc_soak",
    "channel_soak",
];

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Client {
    /// grpc-go.
    Go,
    /// This workspace's tonic.
    Tonic,
    /// grpcio.
    Python,
    /// @grpc/grpc-js.
    Node,
}

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// grpc-go.
    Go,
    /// This workspace's tonic.
    Tonic,
}

/// How much soaking.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    /// RPCs of `rpc_soak`, one after the other.
    pub rpcs: u32,
    /// RPCs of `channel_soak`, each on a new connection.
    pub channels: u32,
}

/// What is needed.
#[derive(Clone, Debug)]
pub struct Options {
    /// The proxy's program.
    pub program: PathBuf,
    /// How much soaking.
    pub soak: Soak,
}

/// One case of one client through the proxy to one backend.
#[derive(Debug)]
pub struct Outcome {
    /// The case.
    pub case: &'static str,
    /// Who called.
    pub client: Client,
    /// Who answered.
    pub backend: Backend,
    /// Why it failed, unless it passed.
    pub failure: Option<String>,
}

impl Client {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Go, Self::Tonic, Self::Python, Self::Node];

    /// As people know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Go => "grpc-go",
            Self::Tonic => "tonic",
            Self::Python => "grpcio",
            Self::Node => "grpc-js",
        }
    }
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Go, Self::Tonic];

    /// As people know it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Go => "grpc-go",
            Self::Tonic => "tonic",
        }
    }
}

/// Whether both have it: grpc-go's programs have none of the cases about compression.
fn offered(case: &str, client: Client, backend: Backend) -> bool {
    !case.contains("compressed") || (client != Client::Go && backend != Backend::Go)
}

impl Outcome {
    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "case": self.case,
            "client": self.client.name(),
            "backend": self.backend.name(),
            "failure": self.failure,
        })
    }
}

/// Performs `cases` of each client to `backend`, those that both have, and gives every outcome to `seen`, too.
///
/// # Errors
/// When the backend or the proxy doesn't start, or the proxy doesn't survive it.
pub async fn run(
    backend: Backend,
    clients: &[Client],
    cases: &[&'static str],
    options: &Options,
    mut seen: impl FnMut(&Outcome),
) -> anyhow::Result<Vec<Outcome>> {
    let (address, _running) = Running::start(backend).await?;
    let known = Known::write(
        Proxy::builder()
            .cluster("interop", [address])
            // The whole package, so that the service that isn't there is the backend's matter.
            .route("/grpc.testing.", "interop")
            .set("listener.max_connections_per_source", 10_000),
    );
    let ca = known.files.config().with_file_name("ca.pem");
    std::fs::write(&ca, known.files.authority.pem())?;
    let arguments = [
        "run".into(),
        "--config".into(),
        known.files.config().into_os_string(),
    ];
    let mut proxy = Process::start(&options.program.to_string_lossy(), arguments);
    known.probed("/readyz", 200).await;
    let mut outcomes = Vec::new();
    for client in clients {
        let caller = Caller {
            client: *client,
            known: &known,
            ca: &ca,
            options,
        };
        let offered = |case: &&str| offered(case, *client, backend);
        let cases: Vec<_> = cases.iter().copied().filter(offered).collect();
        if cases.is_empty() {
            continue;
        }
        let mut failures = caller.perform(&cases).await;
        for case in cases {
            let outcome = Outcome {
                case,
                client: *client,
                backend,
                failure: failures
                    .remove(case)
                    .unwrap_or_else(|| Some("it was not performed".into())),
            };
            seen(&outcome);
            outcomes.push(outcome);
        }
    }
    if proxy.has_ended() || proxy.stderr().contains("panicked") {
        bail!("the proxy did not survive it; its log:\n{}", proxy.stderr());
    }
    Ok(outcomes)
}

/// A backend; it ends with this value.
enum Running {
    Tonic { _server: Server },
    Program { _child: Child },
}

impl Running {
    async fn start(backend: Backend) -> anyhow::Result<(SocketAddr, Self)> {
        match backend {
            Backend::Tonic => {
                let server = Server::start().await;
                Ok((server.address(), Self::Tonic { _server: server }))
            }
            Backend::Go => {
                let program = other_clients().join("grpc-go/server");
                let (address, child) = go_server(&program).await?;
                Ok((address, Self::Program { _child: child }))
            }
        }
    }
}

/// Where it listens, grpc-go's server tells in its log alone, and only if the log is wanted.
async fn go_server(program: &Path) -> anyhow::Result<(SocketAddr, Child)> {
    let mut child = Command::new(program)
        .arg("--port=0")
        .env("GRPC_GO_LOG_SEVERITY_LEVEL", "info")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {} (tests/clients/install)", program.display()))?;
    let log = child.stderr.take().context("its log is piped")?;
    let mut lines = BufReader::new(log).lines();
    let port = timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await? {
            if let Some((_, address)) = line.split_once("interop server listening on ") {
                let port = address.rsplit(':').next().unwrap_or_default();
                return Ok(port.trim().parse::<u16>()?);
            }
        }
        bail!("grpc-go's server has ended")
    });
    let port = port
        .await
        .context("grpc-go's server doesn't say where it listens")??;
    // What it says later is read, or it would wait.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((SocketAddr::from(([127, 0, 0, 1], port)), child))
}

/// One client before one proxy.
struct Caller<'a> {
    client: Client,
    known: &'a Known,
    ca: &'a Path,
    options: &'a Options,
}

/// Why cases failed; `None`: passed.
type Failures = HashMap<String, Option<String>>;

impl Caller<'_> {
    async fn perform(&self, cases: &[&str]) -> Failures {
        let clients = other_clients();
        let mut failures = Failures::new();
        match self.client {
            Client::Tonic => self.tonic(cases, &mut failures).await,
            Client::Go => {
                for case in cases {
                    let mut command = Command::new(clients.join("grpc-go/client"));
                    // Without the first it doesn't look at `--ca_file`.
                    command
                        .arg("--use_test_ca=true")
                        .args(self.soak_flags(case));
                    // As many soaking threads as there are RPCs: all of them at once.
                    let named = match *case {
                        "concurrent_large_unary" => "rpc_soak",
                        case => case,
                    };
                    let ended = self.program(command, named).await;
                    failures.insert((*case).to_owned(), ended.err());
                }
            }
            Client::Python => {
                let mut command = Command::new(clients.join("python/bin/python"));
                command.arg(format!("{HERE}/clients/python/interop.py"));
                self.script(command, cases, &mut failures).await;
            }
            Client::Node => {
                let mut command = Command::new("node");
                command.arg(format!("{HERE}/clients/node/interop.js"));
                command.env("NODE_PATH", clients.join("node/node_modules"));
                self.script(command, cases, &mut failures).await;
            }
        }
        failures
    }

    async fn tonic(&self, cases: &[&str], failures: &mut Failures) {
        let tls = self.known.files.authority.client(&["h2"]);
        for case in cases {
            let performing = async {
                let client = client::Tonic::connect(self.known.listener, tls.clone()).await?;
                client.perform(case, self.options.soak).await
            };
            let failure = match within(self.patience(), performing).await {
                Some(Ok(())) => None,
                Some(Err(error)) => Some(format!("{error:#}")),
                None => Some("it doesn't end".to_owned()),
            };
            failures.insert((*case).to_owned(), failure);
        }
    }

    /// One of our scripts: a process for all cases, a line for each.
    async fn script(&self, mut command: Command, cases: &[&str], failures: &mut Failures) {
        let Soak { rpcs, channels } = self.options.soak;
        command.args([
            format!("--rpc_soak={rpcs}"),
            format!("--channel_soak={channels}"),
        ]);
        let output = match self.program(command, &cases.join(",")).await {
            Ok(output) => output,
            Err(output) => {
                let why = output.lines().last().unwrap_or_default();
                for case in cases {
                    let failure = Some(format!("not performed: {why}"));
                    failures.insert((*case).to_owned(), failure);
                }
                output
            }
        };
        for line in output.lines() {
            if let Some(case) = line.strip_prefix("passed ") {
                failures.insert(case.to_owned(), None);
            } else if let Some((case, why)) = line
                .strip_prefix("failed ")
                .and_then(|line| line.split_once(": "))
            {
                failures.insert(case.to_owned(), Some(why.to_owned()));
            }
        }
    }

    /// Runs a program to its end. What it has printed; an error if it has failed, or doesn't end.
    async fn program(&self, mut command: Command, cases: &str) -> Result<String, String> {
        let proxy = self.known.listener;
        command
            .args([
                format!("--server_host={}", proxy.ip()),
                format!("--server_port={}", proxy.port()),
                format!("--server_host_override={SERVER_NAME}"),
                "--use_tls=true".to_owned(),
                format!("--ca_file={}", self.ca.display()),
                format!("--test_case={cases}"),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| {
            let program = command.as_std().get_program().to_string_lossy();
            format!("cannot run {program} (tests/clients/install): {error}")
        })?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
        // What it says before it hangs counts.
        let ended = within(self.patience(), async {
            let reading = async {
                tokio::join!(
                    read(out.as_mut(), &mut stdout),
                    read(err.as_mut(), &mut stderr)
                )
            };
            tokio::join!(child.wait(), reading).0
        });
        let end = match ended.await {
            Some(Ok(status)) if status.success() => None,
            Some(Ok(status)) => Some(status.to_string()),
            Some(Err(error)) => Some(error.to_string()),
            None => Some("it doesn't end".to_owned()),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match end {
            None => Ok(text(&stdout)),
            Some(end) => Err(format!("{}{}{end}", text(&stdout), text(&stderr))),
        }
    }

    fn soak_flags(&self, case: &str) -> Vec<String> {
        let (rpcs, threads) = match case {
            "rpc_soak" => (self.options.soak.rpcs, 1),
            "channel_soak" => (self.options.soak.channels, 1),
            "concurrent_large_unary" => (CONCURRENT, CONCURRENT),
            _ => return Vec::new(),
        };
        vec![
            format!("--soak_iterations={rpcs}"),
            format!("--soak_num_threads={threads}"),
            format!(
                "--soak_overall_timeout_seconds={}",
                self.patience().as_secs()
            ),
            "--soak_per_iteration_max_acceptable_latency_ms=60000".to_owned(),
        ]
    }

    /// Far more than any client needs for all of its cases.
    fn patience(&self) -> Duration {
        Duration::from_secs(60) + Duration::from_millis(200) * self.options.soak.rpcs
    }
}

/// What comes of `work`, unless it takes longer than `patience`, as this process has lived it: a machine that stood still
/// would pass for a client that hangs.
async fn within<W: Future>(patience: Duration, work: W) -> Option<W::Output> {
    let enough = async {
        for _ in 0..patience.as_secs() {
            sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::select! {
        output = work => Some(output),
        () = enough => None,
    }
}

/// Reads to the end, or as far as it goes.
async fn read(from: Option<&mut (impl AsyncRead + Unpin)>, to: &mut Vec<u8>) {
    if let Some(from) = from {
        // It has ended, in one way or another.
        let _ = from.read_to_end(to).await;
    }
}

/// The body as it is; `compressed` says whether its first message is, as soon as that has come.
fn noting<B>(body: B, compressed: Arc<AtomicBool>) -> Body
where
    B: http_body::Body<Data = Bytes, Error: Into<tonic::codegen::StdError>> + Send + 'static,
{
    let mut begun = false;
    Body::new(body.map_frame(move |frame| {
        // A message begins with a byte that says it.
        if let Some(flag) = frame.data_ref().and_then(|data| data.first())
            && !std::mem::replace(&mut begun, true)
        {
            compressed.store(*flag == 1, Ordering::Relaxed);
        }
        frame
    }))
}

fn payload(size: usize) -> pb::Payload {
    pb::Payload {
        body: vec![0; size].into(),
        ..Default::default()
    }
}

/// A large request and its reply.
const LARGE: (usize, usize) = (271_828, 314_159);

/// RPCs at a time in `concurrent_large_unary`: what a connection to the proxy may have.
const CONCURRENT: u32 = 100;

/// Metadata that comes back in the headers, and in the trailers.
const INITIAL: &str = "x-grpc-test-echo-initial";
const TRAILING: &str = "x-grpc-test-echo-trailing-bin";

const HERE: &str = env!("CARGO_MANIFEST_DIR");
