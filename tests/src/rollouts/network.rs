//! The network fails, between the proxy and one of three backends.
//!
//! That backend listens in a network namespace of its own, at the other end of a pair of virtual interfaces; the fault is
//! made there, by the kernel: filters that swallow or refuse (nftables), sockets that are destroyed (`ss -K`), a link that
//! is narrow (`tc tbf`). It takes root and these tools, and is left out, with the reason, where something is missing.
//!
//! Beside what is sent to those three, a victim sends 200 RPCs a second, on a connection of its own, through the same
//! process to another cluster. It is to notice nothing.

/// Where the fault is made.
mod namespace;

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use anyhow::ensure;
use grpc_service::Drain;
use tokio::{task::JoinSet, time::sleep};
use tonic::Code;

use self::namespace::Namespace;
use super::{
    Load, Running,
    backends::{executions, health_check, patience},
    moment,
};
use crate::{
    attack::{Finding, Options, Usage, are_back, seconds, until},
    backend::Backend,
    client::request,
    journal::ID,
    load::{self, StreamMethod, Unary, tally::Tally},
    loopback, payload,
    proxy::{Address as _, Proxy},
    relay::Relay,
    replicas::{Kind, Replica},
};

/// What becomes of what is sent to the backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Nothing: no FIN, no RST, no ICMP, as when a node loses its power. Nor does anything come back.
    Swallowed,
    /// RST, as where a pod's address is another's now.
    Reset,
    /// ICMP "port unreachable", as kube-proxy answers for a Service without endpoints: new connections are refused, and
    /// those that are there are told nothing, since TCP doesn't give up for that (RFC 1122 section 4.2.3.9).
    Unreachable,
}

/// One of three behind a network that can fail, and a victim's cluster.
struct Scene {
    options: Options,
    proxy: Running,
    lost: Backend,
    others: [Backend; 2],
    /// In front of the victim's only backend: it counts connections that end.
    aside: Relay,
    _replica: Replica,
    namespace: Namespace,
}

/// The victim, and its p99 before the fault, beside the same load, in microseconds.
struct Victim {
    load: Load,
    quiet: u64,
}

/// Everything that is sent to it vanishes.
pub(super) async fn black_hole(options: Options) -> anyhow::Result<Vec<Finding>> {
    cut(options, Fault::Swallowed).await
}

/// Everything that is sent to it is answered by RST.
pub(super) async fn resets(options: Options) -> anyhow::Result<Vec<Finding>> {
    cut(options, Fault::Reset).await
}

/// Everything that is sent to it is answered by ICMP.
pub(super) async fn unreachable(options: Options) -> anyhow::Result<Vec<Finding>> {
    cut(options, Fault::Unreachable).await
}

/// A fault that lasts until the backend is ejected, and for a while; then it is lifted.
async fn cut(options: Options, fault: Fault) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(why) => return Ok(vec![left_out(&why)]),
    };
    let listener = namespace.listener()?;
    let rules = fault.rules(listener.local_addr()?.port());
    if let Some(why) = namespace.lacks(&rules)? {
        return Ok(vec![left_out(&why)]);
    }
    // A refusal is no time-out.
    let patience = match fault {
        Fault::Reset => patience(scale),
        Fault::Swallowed | Fault::Unreachable => "1s",
    };
    let mut scene = Scene::start(options, namespace, Backend::on(listener)?, patience).await?;
    let load = scene.load().await?;
    let victim = scene.victim().await?;
    let gated = scene.gated().await?;
    sleep(scale.of(Duration::from_secs(10), Duration::from_secs(1))).await;

    let (before, usage) = (scene.lost.journal.count(), scene.now());
    scene.namespace.run("nft", &[&rules])?;
    let begun = SystemTime::now();
    let most = scale.of(Duration::from_secs(16), Duration::from_secs(8));
    let ejected = scene.proxy.has_eligible(2, 2 * most).await;
    sleep(scale.of(Duration::from_secs(30), Duration::from_secs(1))).await;
    let met = scene
        .namespace
        .run("nft", &["list", "table", "inet", "fault"])?;
    let met = counted(&met);
    scene
        .namespace
        .run("nft", &["delete", "table", "inet", "fault"])?;
    let again = scale.of(Duration::from_secs(35), Duration::from_secs(10));
    let returned = scene.proxy.has_eligible(3, again).await;
    let at_return = scene.lost.journal.count();
    let serves = until(Duration::from_secs(10), || async {
        scene.lost.journal.count() > at_return
    });
    let serves = serves.await;
    let gates = scene.released(gated).await?;
    let back = scene.are_back(&usage).await;
    let tally = load.end().await?;

    let since = |at: SystemTime| at.duration_since(begun).unwrap_or_default();
    let late = match fault {
        // Its connections end when anything is sent on them, which takes no second.
        Fault::Reset => Duration::from_secs(1),
        Fault::Swallowed | Fault::Unreachable => ejected.map_or(most, |took| took.min(most)),
    };
    let begun_later = tally
        .failures()
        .iter()
        .filter(|f| since(f.begun) > late + moment(&scene.options));
    let begun_later = begun_later.count();
    let gated_ends = gates.iter().filter(|gate| gate.failed.is_some());
    let ends = tally.failures().iter().map(|failure| failure.ended);
    let last = ends.chain(gated_ends.map(|gate| gate.ended)).max();
    let mut findings = vec![
        Finding::new("before the fault it served", before, before > 0),
        Finding::new("packets that met the fault", met, met > 0),
        Finding::within("its ejection", ejected, most),
        Finding::new(
            format!(
                "RPCs begun more than {} after the fault that fail: 0",
                seconds(late)
            ),
            format!(
                "{begun_later} of {}, and {} streams; {} before",
                tally.sent,
                tally.streams_sent,
                tally.failed()
            ),
            begun_later == 0 && tally.not_sent == 0 && tally.ok.min(tally.streams_ok) > 0,
        ),
        Finding::within(
            "the end of the last RPC that was running there",
            Some(last.map(since).unwrap_or_default()),
            most,
        ),
        Finding::within("back among the eligible after the fault", returned, again),
        Finding::within("it serves then", serves, Duration::from_secs(10)),
    ];
    findings.extend(back);
    findings.extend(scene.honest(&tally, &gates));
    findings.extend(scene.unmoved(victim).await?);
    Ok(findings)
}

/// Its connections are destroyed, at either end, while it goes on.
pub(super) async fn destroyed(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(why) => return Ok(vec![left_out(&why)]),
    };
    if let Err(why) = namespace.can_destroy() {
        return Ok(vec![left_out(&why)]);
    }
    let lost = Backend::on(namespace.listener()?)?;
    let mut scene = Scene::start(options, namespace, lost, patience(scale)).await?;
    let load = scene.load().await?;
    let victim = scene.victim().await?;
    let gated = scene.gated().await?;
    sleep(scale.of(Duration::from_secs(10), Duration::from_millis(500))).await;
    let usage = scene.now();
    let mut findings = Vec::new();
    let mut faults = Vec::new();
    for side in ["the backend's", "the proxy's"].repeat(scale.of(5, 1)) {
        let connections = scene.lost.journal.look(|all| all.connections);
        let sockets = match side {
            "the proxy's" => scene.namespace.destroy_here(scene.lost.address())?,
            _ => scene.namespace.destroy_there(scene.lost.address())?,
        };
        let fault = SystemTime::now();
        faults.push(fault);
        let again = until(Duration::from_secs(10), || async {
            scene.lost.journal.look(|all| all.connections) > connections
        });
        let again = again.await;
        findings.push(Finding::new(
            format!("sockets destroyed, {side}"),
            sockets,
            sockets > 0,
        ));
        findings.push(Finding::within(
            "it is connected to again",
            again,
            Duration::from_secs(10),
        ));
        // One failed check doesn't eject; by the next fault it has passed another.
        let most = Duration::from_secs(10);
        let eligible = scene.proxy.has_eligible(3, most).await;
        findings.push(Finding::within("it is eligible", eligible, most));
        sleep(scale.of(Duration::from_secs(5), Duration::from_millis(500))).await;
    }
    let gates = scene.released(gated).await?;
    findings.extend(scene.are_back(&usage).await);
    let tally = load.end().await?;
    let moment = moment(&scene.options);
    let during = |failure: &load::tally::Failure| {
        faults
            .iter()
            .any(|fault| failure.begun <= *fault + moment && *fault <= failure.ended + moment)
    };
    let others = tally.failures().iter().filter(|f| !during(f)).count();
    findings.push(Finding::new(
        "RPCs that fail and were not in flight then: 0",
        format!(
            "{others} of {}, and {} streams; {} in flight",
            tally.sent,
            tally.streams_sent,
            tally.failed()
        ),
        others == 0 && tally.not_sent == 0 && tally.ok.min(tally.streams_ok) > 0,
    ));
    findings.extend(scene.honest(&tally, &gates));
    findings.extend(scene.unmoved(victim).await?);
    Ok(findings)
}

/// The link to it is narrow, both ways, and RPCs with large messages fill it.
pub(super) async fn narrow(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    // Bytes a second.
    let rate: u32 = scale.of(250_000, 1_000_000);
    let namespace = match able(|namespace| namespace.narrow(rate)) {
        Ok(namespace) => namespace,
        Err(why) => return Ok(vec![left_out(&why)]),
    };
    let lost = Backend::on(namespace.listener()?)?;
    let mut scene = Scene::start(options, namespace, lost, patience(scale)).await?;
    let victim = scene.victim().await?;
    let (usage, begun) = (scene.now(), Instant::now());
    let mut all = JoinSet::new();
    let message = vec![b'n'; LARGE];
    for _ in 0..scale.of(6, 3) {
        let client = scene.proxy.known.test_client().await;
        for _ in 0..scale.of(10, 4) {
            let (mut client, message) = (client.clone(), message.clone());
            all.spawn(async move {
                let reply = client.unary(request(payload(message), &[])).await?;
                Ok::<_, tonic::Status>(reply.into_inner().data.len())
            });
        }
    }
    let ends = all.join_all().await;
    let took = begun.elapsed();
    let whole = ends.iter().filter(|end| matches!(end, Ok(LARGE))).count();
    let first = ends.iter().find_map(|end| end.as_ref().err());
    let there = scene.lost.journal.calls("/e2e.Test/Unary");
    let least = Duration::from_secs_f64((there * LARGE) as f64 / f64::from(rate));
    let mut findings = vec![
        Finding::new(
            format!(
                "RPCs with {LARGE} bytes both ways, that end well: {}",
                ends.len()
            ),
            format!("{whole} {}", first.map_or("", tonic::Status::message)),
            whole == ends.len(),
        ),
        // A third, but for those that could not connect in time, and went elsewhere.
        Finding::new("of them by the narrow link: some", there, there > 0),
        Finding::new(
            format!(
                "the link was as narrow as it was made: ≥ {}",
                seconds(least / 2)
            ),
            seconds(took),
            took >= least / 2,
        ),
        Finding::within(
            "it is eligible",
            scene.proxy.has_eligible(3, Duration::ZERO).await,
            Duration::from_secs(1),
        ),
    ];
    findings.extend(scene.are_back(&usage).await);
    findings.extend(scene.unmoved(victim).await?);
    Ok(findings)
}

/// One RPC that was in flight for the whole time.
struct Gated {
    id: String,
    ended: SystemTime,
    failed: Option<Code>,
}

impl Scene {
    async fn start(
        options: Options,
        namespace: Namespace,
        lost: Backend,
        patience: &str,
    ) -> anyhow::Result<Self> {
        let others = [Backend::start().await, Backend::start().await];
        let all = [lost.address(), others[0].address(), others[1].address()];
        let own = loopback::group(1)?[0];
        let replica =
            Replica::start_at(Kind::Reverse, own, "reverse-grpc", Drain::default()).await?;
        let aside = Relay::to(&replica.address()).await;
        let builder = Proxy::to(&all)
            .route("/api.Echo/", "test")
            .with("health_check", health_check(options.scale))
            .with("health_check.timeout", patience)
            .with("connect_timeout", "500ms")
            .cluster("aside", vec![aside.address()])
            .route("/api.Reverse/", "aside");
        let proxy = Running::start(&options, builder).await;
        let most = Duration::from_secs(20);
        ensure!(
            proxy.has_eligible(3, most).await.is_some(),
            "the backends' first checks"
        );
        Ok(Self {
            options,
            proxy,
            lost,
            others,
            aside,
            _replica: replica,
            namespace,
        })
    }

    fn all(&self) -> [&Backend; 3] {
        [&self.lost, &self.others[0], &self.others[1]]
    }

    /// To the three: RPCs at a rate, whatever becomes of them, and streams of a few messages, one after the other in each of
    /// many places.
    async fn load(&self) -> anyhow::Result<Load> {
        let scale = self.options.scale;
        let load = Load::start(load::Options {
            streams: scale.of(100, 30),
            stream_method: StreamMethod::Download,
            stream_length: scale.of(Duration::from_millis(200), Duration::from_millis(100)),
            // What hangs waits for its end, which is to come from the proxy.
            timeout: Duration::from_secs(60),
            // Each connection has 100 streams, and what hangs has many.
            ..self.proxy.load(scale.of(500, 100), 40)
        });
        // Handshakes are over: ten on each connection.
        let running = || -> usize {
            let all = self.all().into_iter();
            all.map(|backend| backend.journal.count()).sum()
        };
        let runs = until(Duration::from_secs(20), || async { running() >= 400 }).await;
        ensure!(runs.is_some(), "{} RPCs of 400 have begun", running());
        Ok(load)
    }

    async fn victim(&self) -> anyhow::Result<Victim> {
        let load = || Load::start_with(self.proxy.load(200, 1), Unary::Reverse);
        let quiet = load();
        let scale = self.options.scale;
        sleep(scale.of(Duration::from_secs(10), Duration::from_secs(1))).await;
        let quiet = quiet.end().await?;
        ensure!(
            quiet.good() && quiet.sent > 0,
            "the victim fails before the fault: {} of {}",
            quiet.failed(),
            quiet.sent
        );
        Ok(Victim {
            load: load(),
            quiet: quiet.p99_micros(),
        })
    }

    /// RPCs that are in flight, a third of them there, until the gate "end" opens.
    async fn gated(&self) -> anyhow::Result<JoinSet<Gated>> {
        let client = self.proxy.known.test_client().await;
        let mut gated = JoinSet::new();
        for number in 0..GATED {
            let (id, mut client) = (format!("gated-{number}"), client.clone());
            gated.spawn(async move {
                let asked = request(payload(""), &[(ID, &id), ("x-test-gate", "end")]);
                let failed = client.unary(asked).await.err().map(|status| status.code());
                let ended = SystemTime::now();
                Gated { id, ended, failed }
            });
        }
        let running = || -> usize {
            let all = self.all().into_iter();
            all.map(|backend| backend.journal.calls("/e2e.Test/Unary"))
                .sum()
        };
        let begun = until(Duration::from_secs(20), || async { running() == GATED });
        ensure!(begun.await.is_some(), "{} of {GATED} have begun", running());
        Ok(gated)
    }

    /// What became of them when the gate has opened.
    async fn released(&self, mut gated: JoinSet<Gated>) -> anyhow::Result<Vec<Gated>> {
        for backend in self.all() {
            backend.open("end");
        }
        let mut ends = Vec::new();
        while let Some(ended) = gated.join_next().await {
            ends.push(ended?);
        }
        Ok(ends)
    }

    /// What the proxy has, and its connections to the three.
    fn now(&self) -> (Usage, usize) {
        let open = |backend: &Backend| {
            let journal = &backend.journal;
            journal.look(|all| all.connections - all.connections_ended)
        };
        (self.proxy.usage(), self.all().into_iter().map(open).sum())
    }

    /// Memory and files are what they were, beside the same load. What was opened because it was needed stays.
    async fn are_back(&self, (before, connections): &(Usage, usize)) -> [Finding; 2] {
        let more = self.now().1.saturating_sub(*connections);
        let before = &before.and_connections(more);
        let scale = self.options.scale;
        let most = scale.of(Duration::from_secs(60), Duration::from_secs(10));
        let rest = Usage::at_rest(self.proxy.process.id(), before, most).await;
        let [memory, files] = are_back(before, &rest);
        [self.at_speed(memory), files]
    }

    /// It is judged only where the machine's speed is.
    fn at_speed(&self, finding: Finding) -> Finding {
        let verdict = finding.verdict.filter(|_| self.options.strict);
        Finding { verdict, ..finding }
    }

    /// Those that fail do so as it is documented, and nothing is done twice.
    fn honest(&self, tally: &Tally, gates: &[Gated]) -> Vec<Finding> {
        let executed = executions(self.all().into_iter().map(|backend| &backend.journal));
        let twice = executed.values().filter(|count| **count > 1).count();
        let elsewhere = executions(self.others.iter().map(|backend| &backend.journal));
        let failed: HashMap<&str, Code> = tally
            .failures()
            .iter()
            .map(|failure| (failure.id.as_str(), failure.code))
            .chain(
                gates
                    .iter()
                    .filter_map(|g| Some((g.id.as_str(), g.failed?))),
            )
            .collect();
        let wrong = failed
            .iter()
            .filter(|(id, code)| **code != Code::Unavailable || elsewhere.contains_key(**id));
        let wrong: Vec<_> = wrong.collect();
        let there = |gate: &&Gated| !elsewhere.contains_key(&gate.id);
        vec![
            Finding::new(
                "those that fail were not at another backend, and are told UNAVAILABLE: all",
                format!(
                    "{} of {}{}; of {} that waited there {} failed",
                    failed.len() - wrong.len(),
                    failed.len(),
                    wrong
                        .first()
                        .map_or(String::new(), |one| format!(", not {one:?}")),
                    gates.iter().filter(there).count(),
                    gates.iter().filter(|gate| gate.failed.is_some()).count(),
                ),
                wrong.is_empty(),
            ),
            Finding::new(
                "executed twice: 0",
                format!("{twice} of {}", executed.len()),
                twice == 0 && !executed.is_empty(),
            ),
        ]
    }

    /// The bar for the victim, and that nothing has panicked.
    async fn unmoved(&mut self, victim: Victim) -> anyhow::Result<Vec<Finding>> {
        let tally = victim.load.end().await?;
        let first = tally.failures().first();
        let mut findings = vec![
            Finding::new(
                "the victim's RPCs that fail: 0",
                format!(
                    "{} of {} {}",
                    tally.failed(),
                    tally.sent,
                    first.map_or("", |first| &first.message)
                ),
                tally.good() && tally.sent > 0,
            ),
            Finding::exactly("the victim's connections", tally.connections as usize, 1),
            Finding::count(
                "connections to its backend destroyed",
                self.aside.connections_ended(),
                0,
            ),
        ];
        let (p99, most) = (tally.p99_micros(), (2 * victim.quiet).max(50_000));
        let text = |micros| seconds(Duration::from_micros(micros));
        findings.push(self.at_speed(Finding::new(
            format!("p99 of the victim: ≤ {}", text(most)),
            format!("{}, quiet {}", text(p99), text(victim.quiet)),
            p99 <= most,
        )));
        findings.push(self.proxy.sound());
        Ok(findings)
    }
}

impl Fault {
    /// For nftables, which takes all of it or nothing.
    fn rules(self, port: u16) -> String {
        let chains = match self {
            Self::Swallowed => {
                "chain input { type filter hook input priority 0; policy drop; counter; }; \
                 chain output { type filter hook output priority 0; policy drop; counter; };"
                    .to_owned()
            }
            Self::Reset => refusing(port, "tcp reset"),
            Self::Unreachable => refusing(port, "icmp type port-unreachable"),
        };
        format!("table inet fault {{ {chains} }}")
    }
}

fn refusing(port: u16, with: &str) -> String {
    format!(
        "chain input {{ type filter hook input priority 0; tcp dport {port} counter reject with {with}; }};"
    )
}

/// The sum of a table's counters, as nft lists them: `counter packets 3 bytes 180`.
fn counted(table: &str) -> u64 {
    let counts = table.split("counter packets ").skip(1);
    counts
        .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

/// A namespace with which `fault` has no difficulty: it makes the fault, or tries whether it can be made.
fn able(fault: impl FnOnce(&Namespace) -> anyhow::Result<()>) -> anyhow::Result<Namespace> {
    let namespace = Namespace::new()?;
    fault(&namespace)?;
    Ok(namespace)
}

fn left_out(why: &anyhow::Error) -> Finding {
    Finding::left_out("a network that can fail", format!("{why:#}"))
}

/// In flight, beside the load.
const GATED: usize = 30;
/// Bytes of a message that fills a narrow link.
const LARGE: usize = 128 << 10;
