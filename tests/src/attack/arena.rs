//! One proxy's process, its backend and its victim.
//!
//! Attacker, victim and backend have threads of their own, so that the attacker's haste is not the victim's delay, and
//! so that the kernel can tell what the attacker's threads have cost. The proxy has one worker: everything that it does
//! for the attacker is done by the thread, and goes to the backend on the connection, that serve the victim.

use std::{
    ffi::OsString,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use tokio::{runtime::Runtime, sync::oneshot, task::JoinHandle};

use super::{
    Account, Attack, Finding, Options, Report, Scale, Usage,
    external::{self, Other},
    mebibytes, seconds, until, usage,
};
use crate::{
    backend::{Backend, own_thread},
    certs::SERVER_NAME,
    cgroup::Cgroup,
    client,
    h2attack::Attacker,
    load::{self, tally::Tally},
    process::Process,
    proxy::{Address as _, Builder, Known, Proxy, set},
};

/// Where one attack takes place.
#[derive(Clone)]
pub struct Arena {
    /// How much of it.
    pub scale: Scale,
    /// What is behind the proxy, at `/e2e.Test/`.
    pub backend: Arc<Backend>,
    /// Who attacks.
    pub attacker: Attacker,
    /// The proxy's addresses and files.
    pub known: Arc<Known>,
    /// The proxy's process id.
    pub(super) process: u32,
    /// What the proxy had before the attack.
    pub(super) before: Usage,
}

/// The 200 RPCs a second that are to notice nothing.
pub(super) struct Victim {
    begun: Instant,
    stop: oneshot::Sender<()>,
    load: JoinHandle<anyhow::Result<Tally>>,
}

/// Looks how much memory there is, until it is dropped.
pub(super) struct Watch {
    most: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

/// Threads that end without waiting.
pub(crate) struct Threads(Option<Runtime>);

/// Performs `attack` and judges it.
///
/// # Errors
/// When it could not be performed: the proxy doesn't start, a connection that should be possible isn't.
pub async fn run(attack: &Attack, options: &Options) -> anyhow::Result<Report> {
    let Options { scale, strict, .. } = *options;
    if let Some(why) = (attack.lacks)() {
        let left_out = Finding::left_out("it can be performed here", why);
        return Ok(Report::of(attack.name, attack.promise, left_out));
    }
    let backend = Backend::start().await;
    let other = Other::start(attack.stack).await?;
    let address = other
        .as_ref()
        .map_or_else(|| backend.address(), Other::address);
    let builder = Proxy::to([&address])
        .route("/api.Echo/", "test")
        .set("workers", 1);
    let builder = (attack.configure)(builder, scale);
    let (mut process, known) = start(options, builder, None).await;
    let attacker = Attacker::new(known.listener, &known.files.authority.client(&["h2"]));
    let id = process.id();

    let victims = Threads::new("victim");
    let quiet = Victim::start(&victims, &known);
    let begun = (Usage::of(id), Instant::now());
    tokio::time::sleep(scale.of(Duration::from_secs(5), Duration::from_secs(1))).await;
    let before = Usage::of(id);
    let idle = (before.cpu - begun.0.cpu).as_secs_f64() / begun.1.elapsed().as_secs_f64();
    let (quiet, _) = quiet.end().await?;
    ensure!(
        quiet.good() && quiet.sent > 0,
        "the victim fails before anybody attacks: {} of {}",
        quiet.failed(),
        quiet.sent
    );
    let connections = backend.journal.look(|all| all.connections);

    let arena = Arc::new(Arena {
        scale,
        backend: Arc::new(backend),
        attacker: attacker.clone(),
        known: Arc::new(known),
        process: id,
        before,
    });
    let started = "edge_rpcs_started_total";
    let quietly = arena.metric(started, &[]).await;
    let victim = Victim::start(&victims, &arena.known);
    // Its connection is there before anybody attacks.
    until(Duration::from_secs(10), || async {
        arena.metric(started, &[]).await > quietly
    })
    .await
    .context("the victim sends nothing")?;
    let watch = Watch::start(move || Usage::of(id).memory);
    let attackers = Threads::new("attacker");
    let begun = Instant::now();
    let children = usage::children();
    let performance = attackers.spawn((attack.perform)(arena.clone()));
    let performed = tokio::time::timeout(MOST, performance).await;
    let took = begun.elapsed();
    // A program's, if the attack is one.
    let attacker_cpu = usage::threads("attacker") + (usage::children() - children);
    // What it leaves behind goes with its thread.
    drop(attackers);
    let mut findings = performed
        .with_context(|| format!("{} has not ended after {MOST:?}", attack.name))?
        .with_context(|| format!("{} has panicked", attack.name))?
        .with_context(|| format!("{} could not be performed", attack.name))?;
    let after = Usage::of(id);
    let proxy_cpu = (after.cpu - before.cpu).saturating_sub(took.mul_f64(idle));

    let opened = arena.backend.journal.look(|all| all.connections);
    let before = before.and_connections(opened.saturating_sub(connections));
    let wait = scale.of(Duration::from_secs(60), Duration::from_secs(10));
    let rest = Usage::at_rest(id, &before, wait).await;
    let most = watch.end();
    let (attacked, lasted) = victim.end().await?;

    let account = Account {
        took,
        written: attacker.written(),
        attacker_cpu,
        proxy_cpu,
        memory: most.saturating_sub(before.memory),
        quiet_p99: quiet.p99_micros(),
        p99: attacked.p99_micros(),
    };
    findings.extend(bar(&account, &attacked, lasted));
    let lost = match &other {
        Some(other) => other.connections_ended(),
        None => arena.backend.journal.look(|all| all.connections_ended),
    };
    findings.push(Finding::count(
        "connections to the backend destroyed",
        lost,
        0,
    ));
    findings.push(sound(&mut process));
    findings.extend(are_back(&before, &rest));
    if !strict {
        at_any_speed(&mut findings, &SPEED);
    }
    Ok(Report {
        name: attack.name,
        promise: attack.promise,
        findings,
        account: Some(account),
    })
}

/// Starts the real program, within `group` if there is one, and waits until it is ready. Its access log is a file.
pub(crate) async fn start(
    options: &Options,
    builder: Builder,
    group: Option<&Cgroup>,
) -> (Process, Known) {
    let mut known = Known::write(builder);
    let log = known.files.access_log();
    known.files.change(|config| {
        set(
            config,
            "access_log",
            json!({ "format": "json", "path": log }),
        );
    });
    let arguments: [OsString; 3] = ["run".into(), "--config".into(), known.files.config().into()];
    let process = match group {
        None => Process::start(&options.program.to_string_lossy(), arguments),
        Some(group) => {
            let (program, arguments) = group.command(&options.program, arguments);
            Process::start(program, arguments)
        }
    };
    known.probed("/readyz", 200).await;
    (process, known)
}

/// It has neither ended nor panicked.
pub(crate) fn sound(process: &mut Process) -> Finding {
    let stderr = process.stderr();
    let sound = !process.has_ended() && !stderr.contains("panicked");
    let seen = if sound { "so it is" } else { &stderr };
    Finding::new("no panic, and the process lives", seen, sound)
}

/// Whether memory and files are back at `rest`, and what they are. Files are whatever the machine's speed.
pub(crate) fn are_back(before: &Usage, rest: &Usage) -> [Finding; 2] {
    [
        Finding::new(
            "memory back within 60 s",
            format!(
                "{:.1} → {:.1} MiB",
                mebibytes(before.memory),
                mebibytes(rest.memory)
            ),
            rest.memory_is_back(before),
        ),
        Finding::new(
            "files back within 60 s",
            format!("{} → {}", before.files, rest.files),
            rest.files_are_back(before),
        ),
    ]
}

impl Arena {
    /// The same, for somebody who attacks from another address.
    pub(super) fn from(&self, source: IpAddr) -> Self {
        Self {
            attacker: self.attacker.from(source),
            ..self.clone()
        }
    }

    /// A metric's value, summed over the labels that aren't given. Not a number if there is no page of them: so nothing
    /// that is said of it is true.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match client::get(self.known.probes, "/metrics").await {
            Ok(page) => client::metric(page.body(), name, labels).unwrap_or_default(),
            Err(_) => f64::NAN,
        }
    }

    /// How often a limit has acted.
    pub async fn limit(&self, limit: &str) -> usize {
        self.metric("edge_limits_total", &[("limit", limit)]).await as usize
    }

    /// Sets how many files the proxy may have open; gives what it was.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn limit_files(&self, limit: Rlimit) -> std::io::Result<Rlimit> {
        let process = i32::try_from(self.process).ok().and_then(Pid::from_raw);
        Ok(prlimit(process, Resource::Nofile, limit)?)
    }

    /// What the proxy has now.
    pub(super) fn usage(&self) -> Usage {
        Usage::of(self.process)
    }
}

/// What every attack is judged by, but for what only the kernel and the backend know. The victim has `lasted` so long.
fn bar(account: &Account, victim: &Tally, lasted: Duration) -> Vec<Finding> {
    let Account {
        written,
        attacker_cpu,
        proxy_cpu,
        memory,
        quiet_p99,
        p99,
        ..
    } = *account;
    let json = victim.json();
    let failures = format!("{} of {}: {}", victim.failed(), victim.sent, json["failed"]);
    let most = (2 * quiet_p99).max(50_000);
    let millis = |micros: u64| format!("{:.1} ms", micros as f64 / 1e3);
    let memory_factor = memory as f64 / written.max(1) as f64;
    let cpu_factor = proxy_cpu.as_secs_f64() / attacker_cpu.as_secs_f64().max(0.01);
    vec![
        Finding::new(
            "the victim's RPCs that fail: 0",
            failures,
            victim.good() && victim.sent > 0,
        ),
        sent_all_the_time(victim, lasted),
        Finding::exactly("the victim's connections", victim.connections as usize, 1),
        Finding::new(
            format!("p99 of the victim: ≤ {}", millis(most)),
            format!("{}, quiet {}", millis(p99), millis(quiet_p99)),
            p99 <= most,
        ),
        Finding::new(
            "memory per byte of the attacker: < 100",
            format!("{memory_factor:.2}, {:.1} MiB", mebibytes(memory)),
            memory < usage::SLACK || memory_factor < 100.0,
        ),
        Finding::new(
            "processor time per second of the attacker: < 100 s",
            format!("{cpu_factor:.2}, {:.2} s", proxy_cpu.as_secs_f64()),
            proxy_cpu < Duration::from_millis(200) || cpu_factor < 100.0,
        ),
    ]
}

/// That the victim was there for the whole time. What it could not send in time it sends late, so only a machine that
/// gives it no time at the end lets it send less.
fn sent_all_the_time(victim: &Tally, lasted: Duration) -> Finding {
    let rate = victim.sent as f64 / lasted.as_secs_f64();
    Finding::new(
        "the victim's rate: 200 RPCs a second",
        format!("{rate:.0}, for {}", seconds(lasted)),
        rate >= 0.95 * f64::from(RATE),
    )
}

/// What begins so is measured, and not judged.
pub(super) fn at_any_speed(findings: &mut [Finding], speed: &[&str]) {
    for finding in findings {
        if speed.iter().any(|what| finding.promise.starts_with(what)) {
            finding.verdict = None;
        }
    }
}

impl Victim {
    pub(super) fn start(threads: &Threads, known: &Known) -> Self {
        let options = load::Options {
            target: known.listener.to_string(),
            authority: SERVER_NAME.to_owned(),
            tls: known.files.authority.client(&["h2"]),
            rate: RATE,
            connections: 1,
            duration: Duration::from_secs(3600),
            reverse: false,
            streams: 0,
            stream_method: load::StreamMethod::Download,
            stream_length: Duration::ZERO,
            timeout: Duration::from_secs(20),
            max_in_flight: 10_000,
            keepalive: None,
            run: "victim".to_owned(),
        };
        let (stop, stopped) = oneshot::channel();
        let load = threads.spawn(async move {
            let stopped = async {
                // Stopped, or its arena is gone.
                let _ = stopped.await;
            };
            load::run(options, |_, _| {}, stopped).await
        });
        Self {
            begun: Instant::now(),
            stop,
            load,
        }
    }

    /// What has become of its RPCs, and how long they were sent.
    pub(super) async fn end(self) -> anyhow::Result<(Tally, Duration)> {
        let lasted = self.begun.elapsed();
        // It may have ended by itself, with an error.
        let _ = self.stop.send(());
        let tally = self.load.await.context("the victim has panicked")??;
        Ok((tally, lasted))
    }
}

impl Watch {
    /// `look` tells how much there is now.
    pub(super) fn start(look: impl Fn() -> u64 + Send + 'static) -> Self {
        let (most, done) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let watch = Self {
            most: most.clone(),
            done: done.clone(),
        };
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                most.fetch_max(look(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        watch
    }

    /// The most that there was.
    pub(super) fn end(&self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

impl Threads {
    /// One, of that name.
    pub(crate) fn new(name: &str) -> Self {
        Self(Some(own_thread(name)))
    }

    /// Runs `future` on it.
    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0
            .as_ref()
            .expect("it is there until it is dropped")
            .spawn(future)
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Longer than any attack.
const MOST: Duration = external::MOST;

/// The victim's RPCs a second.
const RATE: u32 = 200;

/// What depends on the machine's speed.
pub(super) const SPEED: [&str; 8] = [
    "the victim's rate",
    "p99",
    "memory per",
    "memory back",
    "processor time",
    "RPCs at a time",
    "cancels a second",
    "connections to the backend in the first second",
];
