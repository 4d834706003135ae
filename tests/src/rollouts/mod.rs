//! Rollouts and failures around the proxy's process, under load, and what is promised of them.
//!
//! Each is one function of `proxies.rs`, `backends.rs`, …, and one line of `ROLLOUTS`. It starts processes of
//! the real program, sends them [`load`](crate::load) as `edge-load` does, and does to them, to their backends or to the
//! network between what happens on a cluster when something is replaced or dies. On a real cluster the same is proven by
//! `tests/cluster`; here each part is alone, its times are exact, and what a backend has executed is counted by id.
//!
//! `Scale::Full` has the times of the deployed configuration; `Scale::Quick` shorter ones.

/// The proxy is replaced, or told to end.
mod proxies;

/// Its backends are replaced, die, hang, fail.
mod backends;

/// The name server fails.
mod names;

/// The network loses what is sent, refuses it, or is slow.
mod network;

/// More than the backends can do.
mod overload;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{sync::oneshot, task::JoinHandle, time::sleep};

use crate::{
    attack::{self, Finding, Options, Performance, Report, Threads, Usage, seconds},
    certs::SERVER_NAME,
    client,
    load::{self, StreamMethod, Unary, tally::Tally},
    process::Process,
    proxy::{Builder, Known},
};

/// One of them.
#[derive(Clone, Copy)]
pub struct Rollout {
    /// What it is called.
    pub name: &'static str,
    /// What is promised.
    pub promise: &'static str,
    perform: fn(Options) -> Performance,
}

/// Performs `rollout` and judges it.
///
/// # Errors
/// When it could not be performed: the proxy doesn't start, a connection that should be possible isn't.
pub async fn run(rollout: &Rollout, options: &Options) -> anyhow::Result<Report> {
    let performed = (rollout.perform)(options.clone()).await;
    Ok(Report {
        name: rollout.name,
        promise: rollout.promise,
        findings: performed.with_context(|| format!("{} could not be performed", rollout.name))?,
        account: None,
    })
}

macro_rules! rollouts {
    ($($name:literal $promise:literal $perform:path;)*) => {
        /// All of them.
        pub const ROLLOUTS: &[Rollout] = &[$(Rollout {
            name: $name,
            promise: $promise,
            perform: |options| Box::pin($perform(options)),
        }),*];
    };
}

rollouts! {
    "proxy-restarts"
    "10 rolling restarts of 2 proxies that a load balancer leaves before their SIGTERM, 500 RPC/s, 50 streams of 20 s: none fails"
    proxies::restarts;

    "sigterm-uploads"
    "SIGTERM with 50 uploads of 16 KiB in flight: all complete, and it ends within drain.time + 2 s of the last"
    proxies::uploads;

    "sigterm-hostile"
    "SIGTERM with connections that never end by themselves: it ends within drain.time + drain.deadline + 1 s"
    proxies::hostile;

    "certificate-swaps"
    "100 new pairs by `..data`, 5 kinds of broken ones between, under load: no handshake fails, each is served within 2 s"
    proxies::certificates;

    "backend-rollout"
    "3 backends replaced by 3 others under 500 RPC/s, DNS 35 s late: none fails"
    backends::rollout;

    "backend-killed"
    "a backend vanishes under 500 RPC/s: only what it was running fails, and nothing is executed twice"
    backends::killed;

    "backend-hangs"
    "a backend stands still, or hangs at each of four stages: it is ejected in time, and others' RPCs don't notice"
    backends::hangs;

    "retry-storm"
    "all backends refuse or fail: attempts that reach one ≤ 1.2 × RPCs + 3/s"
    backends::retry_storm;

    "name-server-lost"
    "10 minutes without good DNS, scaled, in seven shapes, under load: none fails, the last answer is kept"
    names::lost;

    "name-flaps"
    "1 to 50 addresses, others each second, under load: none fails, and nothing is left behind"
    names::flaps;

    "pod-black-holed"
    "a backend's network swallows all: what begins 16 s later doesn't fail, what was running ends within 16 s"
    network::black_hole;

    "pod-resets"
    "a backend's network answers all by RST: what begins 1 s later doesn't fail, it is ejected, and comes back"
    network::resets;

    "pod-unreachable"
    "a backend's network refuses by ICMP, which TCP ignores: as if it swallowed all, but new connections are refused"
    network::unreachable;

    "sockets-destroyed"
    "the kernel destroys a backend's connections, at either end (ss -K): only what they carried fails"
    network::destroyed;

    "narrow-link"
    "a backend's link has 2 Mbit/s (tc tbf), and large messages fill it: none fails, others' RPCs don't notice"
    network::narrow;

    "overload"
    "3 × what the backends can do, a circuit limit set: ≥ 80 % of that is answered, the excess refused within 20 ms"
    overload::backends;
}

/// The real program as a process, and its files.
struct Running {
    process: Process,
    known: Known,
}

impl Running {
    /// Starts it and waits until it is ready. Its access log is a file.
    async fn start(options: &Options, builder: Builder) -> Self {
        let (process, known) = attack::start(options, builder, None).await;
        Self { process, known }
    }

    /// `rate` echo RPCs a second over `connections` connections, until it is told to stop.
    fn load(&self, rate: u32, connections: usize) -> load::Options {
        load::Options {
            target: self.known.listener.to_string(),
            authority: SERVER_NAME.to_owned(),
            tls: self.known.files.authority.client(&["h2"]),
            rate,
            connections,
            duration: Duration::from_secs(3600),
            reverse: false,
            streams: 0,
            stream_method: StreamMethod::Download,
            stream_length: Duration::ZERO,
            timeout: Duration::from_secs(20),
            max_in_flight: 10_000,
            keepalive: None,
            run: format!("{:08x}", rand::random::<u32>()),
        }
    }

    /// What its process has.
    fn usage(&self) -> Usage {
        Usage::of(self.process.id())
    }

    /// A metric's value, summed over the labels that aren't given.
    async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = client::get(self.known.probes, "/metrics").await;
        page.ok()
            .and_then(|page| client::metric(page.body(), name, labels))
            .unwrap_or_default()
    }

    /// Waits until RPCs are sent to so many endpoints, at most so long; how long it took.
    async fn has_eligible(&self, count: usize, most: Duration) -> Option<Duration> {
        let begun = Instant::now();
        loop {
            let of = [("cluster", "test")];
            if self.metric("edge_endpoints_eligible", &of).await as usize == count {
                return Some(begun.elapsed());
            }
            if begun.elapsed() >= most {
                return None;
            }
            // A page of metrics is work for the process that is looked at.
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for its end by itself, at most so long.
    async fn ends_within(&mut self, most: Duration) -> (Option<i32>, Option<Duration>) {
        let begun = Instant::now();
        match tokio::time::timeout(most, self.process.exit()).await {
            Ok(Ok(status)) => (status.code(), Some(begun.elapsed())),
            Ok(Err(_)) | Err(_) => (None, None),
        }
    }

    fn sound(&mut self) -> Finding {
        attack::sound(&mut self.process)
    }
}

/// Load on a thread of its own. It ends, abruptly, with this value.
struct Load {
    stop: oneshot::Sender<()>,
    load: JoinHandle<anyhow::Result<Tally>>,
    _thread: Threads,
}

impl Load {
    fn start(options: load::Options) -> Self {
        let unary = Unary::of(&options);
        Self::start_with(options, unary)
    }

    /// With these unary RPCs.
    fn start_with(options: load::Options, unary: Unary) -> Self {
        let thread = Threads::new("load");
        let (stop, stopped) = oneshot::channel();
        let load = thread.spawn(async move {
            let stopped = async {
                // Stopped, or whoever wanted it is gone.
                let _ = stopped.await;
            };
            load::run_with(options, unary, |_, _| {}, stopped).await
        });
        Self {
            stop,
            load,
            _thread: thread,
        }
    }

    /// Sends nothing more, and waits for what runs.
    async fn end(self) -> anyhow::Result<Tally> {
        // It may have ended by itself, with an error.
        let _ = self.stop.send(());
        self.load.await.context("the load has panicked")?
    }
}

/// That no RPC and no stream failed.
fn none_failed(tally: &Tally) -> Finding {
    let failed = match tally.failures().first() {
        Some(first) => format!(
            "{} of {}, the first {:?}: {}",
            tally.failed(),
            tally.sent + tally.streams_sent,
            first.code,
            first.message
        ),
        None => format!("0 of {}", tally.sent + tally.streams_sent),
    };
    let streams = match tally.streams_sent {
        0 => String::new(),
        count => format!(", {count} of them streams"),
    };
    let p99 = Duration::from_micros(tally.p99_micros());
    let text = format!("{failed}{streams}, p99 {}", seconds(p99));
    let text = match tally.not_sent {
        0 => text,
        count => format!("{text}; {count} were not sent"),
    };
    Finding::new("RPCs that fail: 0", text, tally.good() && tally.sent > 0)
}

/// The addresses of several.
fn addresses<'a>(proxies: impl IntoIterator<Item = &'a Running>) -> Vec<SocketAddr> {
    let proxies = proxies.into_iter();
    proxies.map(|proxy| proxy.known.listener).collect()
}

/// How long workers may take to follow what the control plane has seen, or to read that a connection has ended. Longer
/// where others want the processor, too.
fn moment(options: &Options) -> Duration {
    Duration::from_millis(if options.strict { 100 } else { 1000 })
}

/// As the configuration has it.
fn text(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}
