//! A long run: a proxy's process under everything that happens to one in a week, and whether anything of it grows.
//!
//! The load is mixed: RPCs at a fixed rate on lasting connections, streams, RPCs that are cancelled after their first reply, new connections
//! that make one RPC. Meanwhile, in turn, the certificate is swapped, the configuration changes, and a backend leaves
//! as in a rollout and comes back. Every second the kernel is asked what the process has.
//!
//! After a warm-up resident memory may grow by 1 MiB an hour. `Trend` fits a line; samples that follow each other say nearly
//! the same, so not they but the means of `BLOCKS` parts of the run are fitted, and the slope has the interval in
//! which it lies with 95 % confidence. A short run can't tell 1 MiB an hour from noise: it fails only if the whole interval
//! is above. The longer the run, the narrower the interval; from half an hour on the slope itself is what is judged. Threads,
//! files, connections and RPCs are judged when the load has ended: they must be back at what they were before it.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use grpc_service::Drain;
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    attack::{Finding, Usage, Verdict},
    certs::SERVER_NAME,
    client::{self, Http2, grpc_request},
    load::{self, tally::Tally},
    process::Process,
    proxy::{Known, Proxy, set},
    replicas::{Kind, Replica},
};

/// How long, and what.
#[derive(Clone, Debug)]
pub struct Options {
    /// The proxy's program.
    pub program: PathBuf,
    /// With the warm-up.
    pub duration: Duration,
    /// RPCs a second.
    pub rate: u32,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// What was promised, and measured.
    pub findings: Vec<Finding>,
    /// What happened meanwhile: how often each.
    pub happened: Vec<(&'static str, u64)>,
}

/// A line through a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trend {
    /// Per second.
    pub slope: f64,
    /// The slope lies within this of it, with 95 % confidence.
    pub within: f64,
}

/// Counts of what happened.
#[derive(Debug, Default)]
struct Happened {
    cancelled: AtomicU64,
    connections: AtomicU64,
    swaps: AtomicU64,
    changes: AtomicU64,
    rollouts: AtomicU64,
    refused: AtomicU64,
    /// RPCs on new connections, and streams that could not be opened.
    failed: AtomicU64,
}

/// What was seen.
struct Observed {
    tally: Tally,
    /// New connections that were refused, and what failed on the others; of so many.
    refused: u64,
    failed: u64,
    made: u64,
    /// By the second.
    samples: Vec<(f64, Usage)>,
    before: Usage,
    after: Usage,
    /// Connections to backends when nothing was under way any more; `None`: something still was.
    to_backends: Option<usize>,
    /// It lives, and hasn't panicked.
    sound: bool,
}

/// Performs it.
///
/// # Errors
/// When it can't be performed: a program, a port, a connection isn't there.
pub async fn run(options: &Options, mut each_minute: impl FnMut(&str)) -> anyhow::Result<Report> {
    let mut replicas = Replica::group(Kind::Echo, 3).await;
    let endpoints: Vec<_> = replicas.iter().map(Replica::address).collect();
    let builder = Proxy::builder()
        .cluster("echo-grpc", endpoints)
        .checked()
        .route("/api.Echo/", "echo-grpc")
        .route("/grpc.reflection.v1.ServerReflection/", "echo-grpc");
    let mut known = Known::write(builder);
    known.files.change(|config| {
        // As in a container: lines are written, and nobody's disk fills.
        set(
            config,
            "access_log",
            json!({ "format": "json", "path": "/dev/null" }),
        );
    });
    let arguments: [OsString; 3] = ["run".into(), "--config".into(), known.files.config().into()];
    let mut process = Process::start(&options.program.to_string_lossy(), arguments);
    known.probed("/readyz", 200).await;
    let before = Usage::of(process.id());
    let tls = known.files.authority.client(&["h2"]);
    let happened = Arc::<Happened>::default();
    let over = Arc::<AtomicBool>::default();

    let load = tokio::spawn(load::run(
        steady(&known, tls.clone(), options),
        |_, _| {},
        std::future::pending(),
    ));
    let mut restless = JoinSet::new();
    let listener = known.listener;
    restless.spawn(cancels(
        listener,
        tls.clone(),
        happened.clone(),
        over.clone(),
    ));
    restless.spawn(newcomers(listener, tls, happened.clone(), over.clone()));
    let samples = watch(process.id(), options.duration);

    let begun = Instant::now();
    let mut turn = 0;
    while begun.elapsed() + PAUSE < options.duration {
        tokio::time::sleep(PAUSE).await;
        match turn % 3 {
            0 => {
                let pair = known.files.authority.pair();
                known
                    .files
                    .secret
                    .swap(&pair)
                    .context("cannot swap the certificate")?;
                happened.swaps.fetch_add(1, Ordering::Relaxed);
            }
            1 => {
                known.files.change(|config| {
                    set(config, "server_name", format!("edge-proxy-{turn}").into());
                });
                happened.changes.fetch_add(1, Ordering::Relaxed);
            }
            _ => {
                roll(&mut replicas, turn / 3).await?;
                happened.rollouts.fetch_add(1, Ordering::Relaxed);
            }
        }
        turn += 1;
        let usage = Usage::of(process.id());
        each_minute(&format!(
            "{:>6.0} s: {:.1} MiB, {} files, {} threads",
            begun.elapsed().as_secs_f64(),
            mebibytes(usage.memory as f64),
            usage.files,
            usage.threads
        ));
    }
    let tally = load.await.context("the load has panicked")??;
    over.store(true, Ordering::Relaxed);
    while restless.join_next().await.is_some() {}
    let samples = samples.await.context("the watch has panicked")?;

    let to_backends = tokio::time::timeout(SETTLED, settled(known.probes))
        .await
        .ok();
    let after = Usage::of(process.id());
    let sound = !process.has_ended() && !process.stderr().contains("panicked");
    Ok(Report {
        findings: Observed {
            tally,
            refused: happened.refused.load(Ordering::Relaxed),
            failed: happened.failed.load(Ordering::Relaxed),
            made: happened.connections.load(Ordering::Relaxed),
            samples,
            before,
            after,
            to_backends,
            sound,
        }
        .judge(options.duration),
        happened: happened.counts(),
    })
}

impl Observed {
    fn judge(&self, duration: Duration) -> Vec<Finding> {
        let Self {
            tally,
            refused,
            failed,
            made,
            samples,
            before,
            after,
            to_backends,
            sound,
        } = self;
        let warm = warm_up(duration).as_secs_f64();
        let memory: Vec<_> = samples
            .iter()
            .filter(|(at, _)| *at >= warm)
            .map(|(at, usage)| (*at, usage.memory as f64))
            .collect();
        let trend = Trend::of(&memory);
        let threads = samples.iter().map(|(_, usage)| usage.threads).max();
        vec![
            Finding::new(
                "RPCs and streams that fail: 0",
                format!("{} of {}", tally.failed(), tally.sent + tally.streams_sent),
                tally.good() && tally.sent > 0,
            ),
            Finding::new(
                "new connections that are refused, or on which something fails: 0",
                format!("{refused} and {failed}; {made} had their RPC"),
                refused + failed == 0 && *made > 0,
            ),
            Finding::new(
                "resident memory grows by ≤ 1 MiB/h after the warm-up",
                trend.map_or_else(
                    || "too few samples".to_owned(),
                    |trend| {
                        format!(
                            "{:+.2} ± {:.2} MiB/h (95 %) over {:.0} s, {:.1} MiB at the end",
                            hourly(trend.slope),
                            hourly(trend.within),
                            duration.as_secs_f64() - warm,
                            mebibytes(memory.last().map_or(0.0, |(_, bytes)| *bytes))
                        )
                    },
                ),
                trend.is_some_and(|trend| trend.is_flat(duration.as_secs_f64() - warm)),
            ),
            Finding::new(
                "threads are as many as before, but for 3 that read files",
                format!(
                    "{}, {} at most, {} at the end",
                    before.threads,
                    threads.unwrap_or(0),
                    after.threads
                ),
                threads
                    .max(Some(after.threads))
                    .is_some_and(|most| most <= before.threads + 3),
            ),
            Finding::new(
                "files are as many as before, within 5, and connections to backends",
                format!(
                    "{}, {} at the end, {} of them connections to backends",
                    before.files,
                    after.files,
                    to_backends.unwrap_or(0)
                ),
                after.files <= before.files + to_backends.unwrap_or(0) + 5,
            ),
            Finding::new(
                "no RPC, attempt or client's connection is left",
                if to_backends.is_some() {
                    "none"
                } else {
                    "some"
                },
                to_backends.is_some(),
            ),
            Finding::new(
                "no panic, and the process lives",
                if *sound { "so it is" } else { "no" },
                *sound,
            ),
        ]
    }
}

/// What lasts.
fn steady(known: &Known, tls: Arc<ClientConfig>, options: &Options) -> load::Options {
    load::Options {
        target: known.listener.to_string(),
        authority: SERVER_NAME.to_owned(),
        tls,
        rate: options.rate,
        connections: 10,
        duration: options.duration,
        reverse: false,
        streams: 10,
        stream_method: load::StreamMethod::Reflection,
        stream_length: Duration::from_secs(10),
        timeout: Duration::from_secs(20),
        max_in_flight: 10_000,
        keepalive: None,
        run: "soak".to_owned(),
    }
}

/// Opens streams on one connection and resets them after their head; another connection every 100 of them.
async fn cancels(
    proxy: SocketAddr,
    tls: Arc<ClientConfig>,
    happened: Arc<Happened>,
    over: Arc<AtomicBool>,
) {
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    while !over.load(Ordering::Relaxed) {
        let Ok(connection) = Http2::connect(proxy, tls.clone()).await else {
            happened.refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        for _ in 0..100 {
            if over.load(Ordering::Relaxed) {
                break;
            }
            let opened = connection.open(grpc_request(path, &[]), false).await;
            let Ok((response, mut stream)) = opened else {
                happened.failed.fetch_add(1, Ordering::Relaxed);
                break;
            };
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.send_reset(h2::Reason::CANCEL);
            drop(response);
            happened.cancelled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A new connection, one RPC on it, and gone.
async fn newcomers(
    proxy: SocketAddr,
    tls: Arc<ClientConfig>,
    happened: Arc<Happened>,
    over: Arc<AtomicBool>,
) {
    while !over.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let Ok(connection) = Http2::connect(proxy, tls.clone()).await else {
            happened.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let reply = connection.grpc("/api.Echo/Echo", &[]).await;
        let good = reply.is_ok_and(|reply| reply.grpc_status() == Some(0));
        let count = if good {
            &happened.connections
        } else {
            &happened.failed
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// One backend leaves as a pod does, and is back at the same address.
async fn roll(replicas: &mut Vec<Replica>, turn: usize) -> anyhow::Result<()> {
    let at = turn % replicas.len();
    let old = replicas.remove(at);
    let (address, hostname) = (old.address(), old.hostname().to_owned());
    old.stop();
    old.ended().await;
    let new = Replica::start_at(Kind::Echo, address, &hostname, Drain::default()).await;
    replicas.insert(at, new.context("the backend's port is taken")?);
    Ok(())
}

/// Waits until no RPC runs and no client is connected; gives the number of connections to backends.
async fn settled(probes: SocketAddr) -> usize {
    loop {
        if let Ok(page) = client::get(probes, "/metrics").await {
            let of = |name, labels: &[_]| client::metric(page.body(), name, labels).unwrap_or(0.0);
            let under_way = of("edge_rpcs_in_flight", &[])
                + of("edge_attempts_in_flight", &[])
                + of("edge_connections", &[("side", "downstream")]);
            if under_way == 0.0 {
                return of("edge_connections", &[("side", "upstream")]) as usize;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the process has, each second.
fn watch(process: u32, duration: Duration) -> JoinHandle<Vec<(f64, Usage)>> {
    tokio::spawn(async move {
        let begun = Instant::now();
        let mut each = tokio::time::interval(Duration::from_secs(1));
        let mut samples = Vec::new();
        while begun.elapsed() < duration {
            each.tick().await;
            samples.push((begun.elapsed().as_secs_f64(), Usage::of(process)));
        }
        samples
    })
}

impl Report {
    /// Whether every promise held.
    pub fn held(&self) -> bool {
        let held = |finding: &Finding| finding.verdict == Some(Verdict::Held);
        self.findings.iter().all(held)
    }

    /// For a file.
    pub fn json(&self) -> Value {
        let findings = self.findings.iter().map(|finding| {
            json!({
                "promise": finding.promise,
                "measured": finding.measured,
                "held": finding.verdict == Some(Verdict::Held),
            })
        });
        json!({
            "held": self.held(),
            "findings": findings.collect::<Vec<_>>(),
            "happened": self.happened.iter().copied().collect::<std::collections::BTreeMap<_, _>>(),
        })
    }
}

impl Happened {
    fn counts(&self) -> Vec<(&'static str, u64)> {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        vec![
            ("streams cancelled", of(&self.cancelled)),
            ("connections with one RPC", of(&self.connections)),
            ("connections refused", of(&self.refused)),
            ("failures on new connections", of(&self.failed)),
            ("certificates swapped", of(&self.swaps)),
            ("configurations changed", of(&self.changes)),
            ("backends rolled", of(&self.rollouts)),
        ]
    }
}

impl Trend {
    /// The least squares' line through the means of `BLOCKS` parts of `samples`, each a moment and a value; `None`: there are
    /// fewer samples than parts.
    pub fn of(samples: &[(f64, f64)]) -> Option<Self> {
        let size = samples.len() / BLOCKS;
        if size == 0 {
            return None;
        }
        let means: Vec<_> = samples
            .chunks_exact(size)
            .take(BLOCKS)
            .map(|block| {
                let sum = block
                    .iter()
                    .fold((0.0, 0.0), |sum, (at, value)| (sum.0 + at, sum.1 + value));
                (sum.0 / size as f64, sum.1 / size as f64)
            })
            .collect();
        let n = BLOCKS as f64;
        let mean_at = means.iter().map(|(at, _)| at).sum::<f64>() / n;
        let mean = means.iter().map(|(_, value)| value).sum::<f64>() / n;
        let spread: f64 = means.iter().map(|(at, _)| (at - mean_at).powi(2)).sum();
        let together: f64 = means
            .iter()
            .map(|(at, value)| (at - mean_at) * (value - mean))
            .sum();
        let slope = together / spread;
        let residual: f64 = means
            .iter()
            .map(|(at, value)| (value - mean - slope * (at - mean_at)).powi(2))
            .sum();
        let error = (residual / (n - 2.0) / spread).sqrt();
        Some(Self {
            slope,
            within: error * STUDENT,
        })
    }

    /// Whether memory, in bytes, grew by 1 MiB an hour at most, as far as so many seconds can tell.
    fn is_flat(self, span: f64) -> bool {
        if span >= SHORT {
            return hourly(self.slope) <= 1.0;
        }
        hourly(self.slope - self.within) <= 1.0 || mebibytes(self.slope * span) <= FILLS
    }
}

/// MiB, of bytes a second.
fn hourly(per_second: f64) -> f64 {
    mebibytes(per_second * 3600.0)
}

/// A quarter of the run, and no more than ten minutes.
fn warm_up(duration: Duration) -> Duration {
    (duration / 4).min(Duration::from_secs(600))
}

fn mebibytes(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// Parts of a run whose means are fitted.
const BLOCKS: usize = 12;
/// Student's t for 95 % and ten degrees of freedom ([`BLOCKS`] means, two parameters).
const STUDENT: f64 = 2.228;
/// Seconds after the warm-up in which so many MiB aren't told from caches that fill.
const SHORT: f64 = 1800.0;
const FILLS: f64 = 2.0;
/// Between two things that happen.
const PAUSE: Duration = Duration::from_secs(2);
/// After the load, until nothing is under way.
const SETTLED: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_with_how_sure_that_is() {
        let line: Vec<_> = (0..240)
            .map(|at| (f64::from(at), 5.0 + 2.0 * f64::from(at)))
            .collect();
        let trend = Trend::of(&line).unwrap();
        assert!((trend.slope - 2.0).abs() < 1e-9 && trend.within < 1e-6);
        // A saw: no trend, and that isn't sure.
        let saw: Vec<_> = (0..240)
            .map(|at| (f64::from(at), f64::from(at % 50)))
            .collect();
        let trend = Trend::of(&saw).unwrap();
        assert!(trend.slope.abs() < trend.within);
        assert_eq!(Trend::of(&line[..5]), None);
    }

    #[test]
    fn a_long_run_has_no_benefit_of_the_doubt() {
        let of = |slope: f64, within: f64| Trend {
            slope: slope * f64::from(1 << 20) / 3600.0,
            within: within * f64::from(1 << 20) / 3600.0,
        };
        for (trend, span, flat) in [
            (of(0.9, 4.0), SHORT, true),
            (of(5.0, 4.5), SHORT, false),
            (of(1.1, 0.2), SHORT, false),
            (of(-3.0, 1.0), SHORT, true),
            // 2 MiB in 225 s are 32 an hour.
            (of(31.0, 1.0), 225.0, true),
            (of(33.0, 32.5), 225.0, true),
            (of(33.0, 31.0), 225.0, false),
        ] {
            assert_eq!(trend.is_flat(span), flat, "{trend:?} {span}");
        }
    }
}
