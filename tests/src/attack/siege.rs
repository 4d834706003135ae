//! All of it at once, on a process with little memory.
//!
//! The proxy runs as it is deployed, two workers and the default limits, in a memory cgroup of its own with a hard limit of
//! 256 MiB. For two minutes the attacks of its neighbours are repeated side by side, each from source
//! addresses of its own, some of them hundreds of times at once. What each of them promises isn't looked at here, and they
//! may well be refused: what counts is that the kernel never kills the process, that probes are answered in time, as kubelet
//! would ask, and what becomes of the victim, which may be told RESOURCE_EXHAUSTED while memory is short, or UNAVAILABLE for
//! want of a connection to the backend while all their streams are taken, but nothing else. That each kind has attacked at all
//! is told by what it has written beyond a handshake, and how often it came to its end, or broke off, is noted.
//!
//! A cgroup takes root, and the siege is left out, with the reason, where there can be none; also where the kernel doesn't
//! count whom it has killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use edge_proxy::{error::Failure as Failed, snapshot::pressure::Level};
use http::StatusCode;
use tokio::{
    task::JoinSet,
    time::{interval, sleep, timeout},
};
use tonic::Code;

use super::{
    ATTACKS, Account, Arena, Attack, Finding, Options, Report, Scale, Threads, Usage,
    arena::{SPEED, Victim, Watch, are_back, at_any_speed},
    mebibytes, seconds, sound, start, until, usage,
};
use crate::{
    backend::Backend,
    cgroup::Cgroup,
    client,
    h2attack::{Attacker, source},
    load::tally::{Failure, Tally},
    proxy::{Known, Proxy},
    wait,
};

/// What it is called.
pub const NAME: &str = "siege";

/// What is promised.
pub const PROMISE: &str = "all of these at once for 120 s, memory limited to 256 MiB: never killed, probes answer within 500 ms";

/// One kind of attacker.
struct Kind {
    name: &'static str,
    /// Source addresses that it comes from, and attackers at each, of a whole siege and of a small one.
    sources: (usize, usize),
    each: (usize, usize),
}

/// Those that fill memory come in numbers: with a connection each, as many as one source may have.
const KINDS: &[Kind] = &[
    kind("zero-stream-windows", (4, 1), (256, 100)),
    // Of 50 and 10 connections.
    kind("zero-tcp-window", (8, 4), (5, 5)),
    kind("unread-messages", (1, 1), (50, 10)),
    kind("stalled-downloads", (1, 1), (20, 4)),
    // Of 10 connections.
    kind("unread-uploads", (1, 1), (10, 2)),
    kind("unread-uploads-in-turn", (1, 1), (1, 1)),
    kind("blocked-uploads", (1, 1), (1, 1)),
    kind("slow-backend", (1, 1), (1, 1)),
    kind("cancelled-downloads", (1, 1), (1, 1)),
    kind("batched-cancels", (1, 1), (2, 1)),
    kind("early-ends", (1, 1), (2, 1)),
    kind("strict-headers", (1, 1), (2, 1)),
    kind("rapid-reset", (1, 1), (4, 1)),
    kind("rapid-reset-paced", (1, 1), (2, 1)),
    kind("slow-resets", (1, 1), (2, 1)),
    kind("made-you-reset", (1, 1), (2, 1)),
    kind("continuation", (1, 1), (2, 1)),
    kind("open-header-block", (1, 1), (4, 1)),
    kind("control-frames", (1, 1), (2, 1)),
    kind("empty-data", (1, 1), (2, 1)),
    kind("hpack-bombs", (1, 1), (2, 1)),
    kind("unacknowledged-settings", (1, 1), (2, 1)),
    // These choose their sources themselves.
    kind("slow-handshakes", (1, 1), (1, 1)),
    kind("slow-prefaces", (1, 1), (1, 1)),
    kind("handshake-flood", (1, 1), (1, 1)),
    kind("connections", (1, 1), (1, 1)),
];

/// Those that can't share a process with the others, and why.
const APART: &[(&str, &str)] = &[
    // No client does this: it is what the kernel refuses, and it takes every other attack's connections away.
    (
        "no-files-left",
        "lowers the process's limit of open files, and no other attack could connect",
    ),
    // It has routes of its own.
    (
        "queued-resets",
        "counts on a cluster's connection that it fills itself",
    ),
    // Other programs, each with a backend of its own or an order of its own; what they send is in the others, too.
    ("h2spec", "fails where it is told to wait"),
    (
        "strict-headers-grpcio",
        "strict-headers, to a backend of its own",
    ),
    (
        "strict-headers-grpc-js",
        "strict-headers, to a backend of its own",
    ),
];

const fn kind(name: &'static str, sources: (usize, usize), each: (usize, usize)) -> Kind {
    Kind {
        name,
        sources,
        each,
    }
}

/// How often probes have been answered, and how.
#[derive(Default)]
struct Probed {
    /// Of those that were answered with 200.
    times: Vec<Duration>,
    /// The others.
    failed: usize,
    /// Looks at the level, by level.
    levels: BTreeMap<u8, usize>,
}

/// Performs it and judges it.
///
/// # Errors
/// When it could not be performed: the proxy doesn't start, the victim can't connect.
pub async fn run(options: &Options) -> anyhow::Result<Report> {
    let group = match Cgroup::new(LIMIT) {
        Ok(group) => group,
        Err(why) => return Ok(left_out(format!("{why:#}"))),
    };
    if group.kills().is_none() {
        let why = "the kernel doesn't count whom it kills for memory (cgroup version 1 before Linux 4.13)";
        return Ok(left_out(why.to_owned()));
    }
    let Options { scale, strict, .. } = *options;
    let backend = Backend::start().await;
    let builder = Proxy::to([&backend]).route("/api.Echo/", "test");
    let builder = match scale {
        Scale::Full => builder,
        Scale::Quick => attacks().fold(builder, |builder, (attack, kind)| match kind.name {
            // A small siege has few connections anyway; and what is deployed has 100 streams on one, and 8 connections.
            "connections" | "stalled-downloads" | "unread-uploads" | "unread-uploads-in-turn" => {
                builder
            }
            _ => (attack.configure)(builder, scale),
        }),
    };
    let (mut process, known) = start(options, builder, Some(&group)).await;
    let id = process.id();
    let known = Arc::new(known);

    let victims = Threads::new("victim");
    let quiet = Victim::start(&victims, &known);
    sleep(scale.of(Duration::from_secs(5), Duration::from_secs(1))).await;
    let (quiet, _) = quiet.end().await?;
    ensure!(
        quiet.good() && quiet.sent > 0,
        "the victim fails before the siege"
    );
    let before = Usage::of(id);
    let connections = backend.journal.look(|all| all.connections);
    let (target, tls) = (known.listener, known.files.authority.client(&["h2"]));
    let arena = Arena {
        scale,
        backend: Arc::new(backend),
        // Each kind has one of its own.
        attacker: Attacker::new(target, &tls),
        known: known.clone(),
        process: id,
        before,
    };

    let started = "edge_rpcs_started_total";
    let quietly = arena.metric(started, &[]).await;
    let victim = Victim::start(&victims, &known);
    // Its connection is there before anybody attacks: with all of them at the door it may well be refused.
    until(wait::PATIENCE, || async {
        arena.metric(started, &[]).await > quietly
    })
    .await
    .context("the victim sends nothing")?;
    let memory = group.memory();
    let watch = Watch::start(move || memory.usage().map_or(0, |usage| usage.used));
    let probed = Arc::<Mutex<Probed>>::default();
    let prober = Threads::new("prober");
    let probing = prober.spawn(probe(known.clone(), probed.clone()));
    let attackers = Threads::new("attacker");
    let begun = Instant::now();
    let counts: Vec<_> = attacks()
        .enumerate()
        .map(|(number, (attack, kind))| {
            let count = Arc::<Performed>::default();
            let attacker = Attacker::new(target, &tls);
            let arena = Arena {
                attacker: attacker.clone(),
                ..arena.clone()
            };
            for copy in 0..scale.of(kind.sources.0, kind.sources.1) {
                // None of those that other attacks choose themselves, which are the first.
                let arena = Arc::new(arena.from(source(100 + 20 * number + copy)));
                for _ in 0..scale.of(kind.each.0, kind.each.1) {
                    attackers.spawn(repeat(attack, arena.clone(), count.clone()));
                }
            }
            (kind.name, attacker, count)
        })
        .collect();
    sleep(scale.of(Duration::from_secs(120), Duration::from_secs(6))).await;
    // On a slow machine not all of them have come so far.
    let greeting = arena.attacker.client_hello().len() as u64 + GREETING;
    let has_attacked = |name: &&str, attacker: &Attacker| {
        let written = attacker.written();
        written > greeting || written > 0 && HANDSHAKES.contains(name)
    };
    let have_all = || {
        counts
            .iter()
            .all(|(name, attacker, _)| has_attacked(name, attacker))
    };
    until(wait::PATIENCE, || async { have_all() }).await;
    let took = begun.elapsed();
    let attacker_cpu = usage::threads("attacker");
    // All of them end, wherever they are.
    drop(attackers);
    let proxy_cpu = Usage::of(id).cpu.saturating_sub(before.cpu);
    let (attacked, _) = victim.end().await?;
    probing.abort();
    let most = watch.end();

    let opened = arena.backend.journal.look(|all| all.connections);
    let before = before.and_connections(opened.saturating_sub(connections));
    let soon = scale.of(Duration::from_secs(60), Duration::from_secs(10));
    let rest = Usage::at_rest(id, &before, soon).await;
    let afterwards = Victim::start(&victims, &known);
    sleep(scale.of(Duration::from_secs(10), Duration::from_secs(1))).await;
    let (afterwards, _) = afterwards.end().await?;

    let account = Account {
        took,
        written: counts
            .iter()
            .map(|(_, attacker, _)| attacker.written())
            .sum(),
        attacker_cpu,
        proxy_cpu,
        memory: most,
        quiet_p99: quiet.p99_micros(),
        p99: attacked.p99_micros(),
    };
    let probed = std::mem::take(&mut *probed.lock().unwrap_or_else(PoisonError::into_inner));
    let performed: Vec<_> = counts
        .iter()
        .map(|(name, _, count)| {
            let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
            format!("{name} {} + {}", of(&count.whole), of(&count.broken_off))
        })
        .collect();
    let silent: Vec<_> = counts
        .iter()
        .filter(|(name, attacker, _)| !has_attacked(name, attacker))
        .map(|(name, ..)| *name)
        .collect();
    let apart: Vec<_> = APART
        .iter()
        .map(|(name, why)| format!("{name} ({why})"))
        .collect();
    let mut findings = vec![
        Finding::noted("not in it", apart.join(", ")),
        Finding::new(
            format!(
                "of {} attacks, those that wrote no more than a handshake: 0",
                counts.len()
            ),
            format!("{} {}", silent.len(), silent.join(", ")),
            silent.is_empty(),
        ),
        killed(&group, most),
        Finding::noted("levels of overload", levels(&probed)),
    ];
    findings.extend(probed.judge());
    findings.extend(polite(&attacked, &afterwards));
    findings.push(Finding::count(
        "connections to the backend destroyed",
        arena.backend.journal.look(|all| all.connections_ended),
        0,
    ));
    findings.push(sound(&mut process));
    findings.extend(are_back(&before, &rest));
    findings.push(Finding::noted(
        "attacks, one after the other: those that came to their end, and those that broke off",
        performed.join(", "),
    ));
    if !strict {
        at_any_speed(&mut findings, &SPEED);
        at_any_speed(&mut findings, &["the slowest"]);
    }
    // Its processes first.
    drop((process, group));
    Ok(Report {
        name: NAME,
        promise: PROMISE,
        findings,
        account: Some(account),
    })
}

fn left_out(why: String) -> Report {
    let finding = Finding::left_out("a memory cgroup of its own", why);
    Report::of(NAME, PROMISE, finding)
}

fn attacks() -> impl Iterator<Item = (&'static Attack, &'static Kind)> {
    KINDS.iter().filter_map(|kind| {
        let attack = ATTACKS.iter().find(|attack| attack.name == kind.name);
        attack.map(|attack| (attack, kind))
    })
}

/// How often attacks of one kind came to their end, and how often they broke off.
#[derive(Default)]
struct Performed {
    whole: AtomicUsize,
    broken_off: AtomicUsize,
}

/// Over and over; how often is counted.
async fn repeat(attack: &'static Attack, arena: Arc<Arena>, count: Arc<Performed>) {
    loop {
        // Whatever is found, and it may break off: the proxy may refuse.
        let count = match (attack.perform)(arena.clone()).await {
            Ok(_) => &count.whole,
            Err(_) => &count.broken_off,
        };
        count.fetch_add(1, Ordering::Relaxed);
        sleep(BREATH).await;
    }
}

/// Asks as kubelet does, each time on a connection of its own, and more often.
async fn probe(known: Arc<Known>, probed: Arc<Mutex<Probed>>) {
    let mut asked = JoinSet::new();
    let mut ticks = interval(Duration::from_millis(100));
    for path in ["/livez", "/readyz", "/metrics"].into_iter().cycle() {
        ticks.tick().await;
        while asked.try_join_next().is_some() {}
        let (probes, probed) = (known.probes, probed.clone());
        asked.spawn(async move {
            let begun = Instant::now();
            let answer = timeout(PATIENCE, client::get(probes, path)).await;
            let took = begun.elapsed();
            let mut probed = probed.lock().unwrap_or_else(PoisonError::into_inner);
            match answer {
                Ok(Ok(answer)) if answer.status() == StatusCode::OK => {
                    probed.times.push(took);
                    let level = client::metric(answer.body(), "edge_overload_level", &[]);
                    if let Some(level) = level {
                        *probed.levels.entry(level as u8).or_default() += 1;
                    }
                }
                _ => probed.failed += 1,
            }
        });
    }
}

impl Probed {
    fn judge(&self) -> [Finding; 2] {
        let mut times = self.times.clone();
        times.sort_unstable();
        let at = |share: usize| times.get(times.len() * share / 100).copied();
        let text = |time: Option<Duration>| time.map_or_else(|| "none".to_owned(), seconds);
        let all = times.len() + self.failed;
        [
            Finding::new(
                "probes, one each 100 ms, that aren't answered with 200: 0",
                format!("{} of {all}", self.failed),
                self.failed == 0 && all > 0,
            ),
            Finding::within(
                &format!(
                    "the slowest of them (half: {}, 99 of 100: {})",
                    text(at(50)),
                    text(at(99))
                ),
                times.last().copied(),
                Duration::from_millis(500),
            ),
        ]
    }
}

fn killed(group: &Cgroup, most: u64) -> Finding {
    let kills = group.kills();
    let peak = group.peak().map_or(0, |peak| peak);
    Finding::new(
        format!(
            "processes killed by the kernel above {:.0} MiB: 0",
            mebibytes(LIMIT)
        ),
        format!(
            "{}; at most {:.1} MiB were charged, {:.1} of them not to be dropped",
            kills.map_or_else(|| "it doesn't say".to_owned(), |kills| kills.to_string()),
            mebibytes(peak),
            mebibytes(most)
        ),
        // Where it can't be read any more, nobody knows.
        kills == Some(0),
    )
}

/// Shares of the looks at it.
fn levels(probed: &Probed) -> String {
    let all: usize = probed.levels.values().sum();
    let shares = probed.levels.iter().map(|(level, count)| {
        let name = Level::ALL
            .get(usize::from(*level))
            .map_or("?", |level| level.as_str());
        format!("{name} {} %", 100 * count / all.max(1))
    });
    shares.collect::<Vec<_>>().join(", ")
}

/// What becomes of the victim.
fn polite(attacked: &Tally, afterwards: &Tally) -> Vec<Finding> {
    let failed = |tally: &Tally| tally.json()["failed"].clone();
    let no_stream = Failed::ConnectTimeout.text();
    let statuses = failed(attacked);
    let kept = attacked.failures();
    let may_be = |failure: &&Failure| match failure.code {
        Code::ResourceExhausted => true,
        Code::Unavailable => failure.message == no_stream,
        _ => false,
    };
    // What isn't kept, nobody knows.
    let others = attacked.failed() - kept.iter().filter(may_be).count() as u64;
    let texts: BTreeSet<_> = attacked
        .failures()
        .iter()
        .map(|f| f.message.as_str())
        .collect();
    vec![
        Finding::new(
            format!(
                "RPCs of the victim that fail with another status than RESOURCE_EXHAUSTED, for memory, or UNAVAILABLE, \
                 {no_stream:?}, when all streams to the backend are taken: 0"
            ),
            format!(
                "{others} of {}: {statuses} {texts:?}; {} not sent; p99 {}",
                attacked.sent,
                attacked.not_sent,
                seconds(Duration::from_micros(attacked.p99_micros()))
            ),
            others == 0 && attacked.sent > 0,
        ),
        Finding::exactly("the victim's connections", attacked.connections as usize, 1),
        Finding::new(
            "RPCs of the victim that fail afterwards: 0",
            format!(
                "{} of {}: {}",
                afterwards.failed(),
                afterwards.sent,
                failed(afterwards)
            ),
            afterwards.good() && afterwards.sent > 0,
        ),
    ]
}

/// Kinds that attack with handshakes alone.
const HANDSHAKES: [&str; 2] = ["slow-handshakes", "handshake-flood"];

/// Bytes beside the ClientHello until HTTP/2 has begun.
const GREETING: u64 = 200;

/// Bytes: what deploy/edge-proxy grants a pod.
const LIMIT: u64 = 256 << 20;

/// For an attacker whom nobody listens to: it has something else to do than to ask again.
const BREATH: Duration = Duration::from_millis(20);

/// Longer than kubelet's, so that how late an answer is can be told.
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::{super::EXTERNAL, *};

    #[test]
    fn every_attack_is_in_it_or_apart() {
        let mut told: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();
        told.extend(APART.iter().map(|(name, _)| *name));
        told.sort_unstable();
        let mut all: Vec<_> = ATTACKS.iter().chain(EXTERNAL).map(|one| one.name).collect();
        all.sort_unstable();
        assert_eq!(told, all);
    }
}
