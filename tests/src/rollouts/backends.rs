//! Its backends are replaced, die, hang, fail.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, ensure};
use grpc_service::Drain;
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::sleep};

use super::{Load, Running, moment, none_failed};
use crate::{
    attack::{Finding, Options, Scale, seconds, until},
    backend::Backend,
    bad_backend::{BadBackend, Behaviour, Stage},
    client::request,
    dns::DnsServer,
    journal::{ID, Journal},
    load::{self, StreamMethod, tally::Tally},
    loopback, payload,
    proxy::{Address as _, Proxy},
    replicas::{Kind, Replica},
};

/// One after the other, as a Deployment does it: the new one is up; the name server knows of the change 35 s later; the old
/// one goes on for its `preStop` of 40 s, and then ends as on SIGTERM.
pub(super) async fn rollout(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let (late, pre_stop) = scale.of(
        (Duration::from_secs(35), Duration::from_secs(40)),
        (Duration::from_millis(700), Duration::from_millis(1000)),
    );
    let leave = scale.of(
        Drain::default(),
        Drain {
            accept: Duration::from_millis(500),
            finish: Duration::from_secs(5),
        },
    );
    let addresses = loopback::group(6)?;
    let start = async |number: usize| {
        let hostname = format!("echo-grpc-{number}");
        Replica::start_at(Kind::Echo, addresses[number], &hostname, leave)
            .await
            .with_context(|| hostname)
    };
    let mut serving = Vec::new();
    for number in 0..3 {
        serving.push(start(number).await?);
    }
    let dns = DnsServer::start().await?;
    dns.set_addresses(NAME, &addresses[..3]);
    let builder = Proxy::builder()
        .route("/", "test")
        .dns_cluster("test", &dns, NAME, addresses[0].port())
        .with("health_check", health_check(scale))
        .with("health_check.timeout", patience(scale))
        .with("dns_refresh_rate", scale.of("5s", "50ms"));
    let mut proxy = Running::start(&options, builder).await;
    let load = Load::start(load::Options {
        streams: scale.of(20, 5),
        stream_method: StreamMethod::Reflection,
        stream_length: scale.of(Duration::from_secs(20), Duration::from_millis(500)),
        ..proxy.load(scale.of(500, 200), scale.of(20, 4))
    });

    let mut leaving = JoinSet::new();
    for number in 0..3 {
        serving.push(start(3 + number).await?);
        sleep(late).await;
        dns.set_addresses(NAME, &addresses[number + 1..number + 4]);
        sleep(pre_stop - late).await;
        let old = serving.remove(0);
        old.stop();
        leaving.spawn(old.ended());
    }
    while leaving.join_next().await.is_some() {}
    let tally = load.end().await?;
    let mut findings = vec![none_failed(&tally)];
    if scale == Scale::Full {
        let sent = tally.sent;
        findings.push(Finding::new("RPCs: ≥ 60 000", sent, sent >= 60_000));
    }
    let answer = tally.json();
    let served = answer["hostnames"].as_object().map_or(0, |by| by.len());
    findings.push(Finding::exactly("backends that served", served, 6));
    findings.push(proxy.sound());
    Ok(findings)
}

/// One of three: listener and connections vanish at once.
pub(super) async fn killed(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let time = scale.of(Duration::from_secs(20), Duration::from_millis(1500));
    let mut backends = [
        Backend::start().await,
        Backend::start().await,
        Backend::start().await,
    ];
    let builder = Proxy::to(&backends)
        .route("/api.Echo/", "test")
        .with("health_check", health_check(scale))
        .with("health_check.timeout", patience(scale));
    let mut proxy = Running::start(&options, builder).await;
    ensure!(
        proxy
            .has_eligible(3, Duration::from_secs(20))
            .await
            .is_some(),
        "the backends' first checks"
    );
    let load = Load::start(proxy.load(scale.of(500, 200), scale.of(20, 4)));
    // These are in flight when it happens, a third of them at the one that dies.
    let (mut gated, mut ids) = (JoinSet::new(), Vec::new());
    let client = proxy.known.test_client().await;
    for number in 0..GATED {
        let (id, mut client) = (format!("gated-{number}"), client.clone());
        ids.push(id.clone());
        gated.spawn(async move {
            let asked = request(payload(""), &[(ID, &id), ("x-test-gate", "end")]);
            client.unary(asked).await.map_err(|_| id)
        });
    }
    for id in &ids {
        let begun = until(Duration::from_secs(20), || async {
            backends
                .iter()
                .any(|backend| backend.journal.executions(id) > 0)
        });
        ensure!(begun.await.is_some(), "{id} at a backend");
    }
    sleep(time).await;
    let died = SystemTime::now();
    backends[0].kill();
    // What was written before the proxy could know.
    let before = SystemTime::now() + moment(&options);
    sleep(time).await;
    for backend in &backends[1..] {
        backend.open("end");
    }

    let mut lost = HashSet::new();
    while let Some(ended) = gated.join_next().await {
        lost.extend(ended?.err());
    }
    let tally = load.end().await?;
    let at_dead: HashSet<_> = ids
        .into_iter()
        .filter(|id| backends[0].journal.executions(id) > 0)
        .collect();
    let by_id = executions(backends.iter().map(|backend| &backend.journal));
    let twice = by_id.values().filter(|count| **count > 1).count();
    let after: Vec<_> = tally
        .failures()
        .iter()
        .filter(|failure| failure.begun > before)
        .collect();
    let elsewhere = lost.difference(&at_dead).count();
    let earlier = tally.failures().iter().filter(|f| f.ended < died).count();
    Ok(vec![
        were_there(&tally, &backends[1..]),
        Finding::count("RPCs that had failed before it vanished", earlier, 0),
        Finding::new(
            "RPCs that fail without having been there: 0",
            format!(
                "{elsewhere}; of {} that were running there {} did",
                at_dead.len(),
                lost.len()
            ),
            elsewhere == 0 && !at_dead.is_empty(),
        ),
        Finding::new(
            "RPCs begun afterwards that fail: 0",
            format!(
                "{} of {}; {} in flight then",
                after.len(),
                tally.sent,
                tally.failed()
            ),
            after.is_empty() && tally.not_sent == 0 && tally.ok > 0,
        ),
        Finding::new(
            "executed twice: 0",
            format!("{twice} of {}", by_id.len()),
            twice == 0 && !by_id.is_empty(),
        ),
        proxy.sound(),
    ])
}

/// One of three, again and again.
pub(super) async fn hangs(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let ill = BadBackend::start(Behaviour::Good).await;
    let good = [Backend::start().await, Backend::start().await];
    let all = [ill.address(), good[0].address(), good[1].address()];
    let builder = Proxy::to(&all)
        .route("/api.Echo/", "test")
        .with("health_check", health_check(scale));
    let mut proxy = Running::start(&options, builder).await;
    let back = Duration::from_secs(60);
    ensure!(
        proxy.has_eligible(3, back).await.is_some(),
        "the backends' first checks"
    );
    let rate = scale.of(500, 100);
    let quiet = Load::start(proxy.load(rate, 20));
    sleep(scale.of(Duration::from_secs(10), Duration::from_secs(1))).await;
    let quiet = quiet.end().await?.p99_micros_of_ok();

    let load = Load::start(load::Options {
        // So that what hangs doesn't fill its connections' streams.
        timeout: Duration::from_secs(2),
        ..proxy.load(rate, 20)
    });
    let most = scale.of(Duration::from_secs(16), Duration::from_secs(8));
    let mut findings = Vec::new();
    let mut faults = Vec::new();
    // `None`: its process stands still. In small, each stage has a story of its own.
    let stages = [
        None,
        Some(Stage::Headers),
        Some(Stage::Head),
        Some(Stage::Request),
        Some(Stage::Message),
    ];
    for stage in stages.into_iter().take(scale.of(stages.len(), 2)) {
        let begun = SystemTime::now();
        let frozen = match stage {
            Some(stage) => {
                ill.set(Behaviour::Hang(stage));
                None
            }
            None => Some(ill.freeze()),
        };
        let ejected = proxy.has_eligible(2, 2 * most).await;
        let what = match stage {
            None => "stands still".to_owned(),
            Some(stage) => format!("hangs, {stage:?}"),
        };
        findings.push(Finding::within(&format!("{what}: ejected"), ejected, most));
        // What was on its way to it when it was ejected.
        faults.push((begun, SystemTime::now() + moment(&options)));
        drop(frozen);
        ill.set(Behaviour::Good);
        ensure!(
            proxy.has_eligible(3, back).await.is_some(),
            "{what}: it has not come back"
        );
    }
    let tally = load.end().await?;
    let during = |at: SystemTime| {
        faults
            .iter()
            .any(|(from, to)| *from <= at + SLACK && at <= *to)
    };
    let after = tally.failures().iter().filter(|f| !during(f.begun)).count();
    findings.push(Finding::new(
        "RPCs that fail, begun when it was ejected or well: 0",
        format!("{after} of {}; {} between", tally.sent, tally.failed()),
        after == 0 && tally.not_sent == 0 && tally.ok > 0,
    ));
    findings.push(were_there(&tally, &good));
    if options.strict {
        let (p99, limit) = (tally.p99_micros_of_ok(), (2 * quiet).max(50_000));
        let text = |micros| seconds(Duration::from_micros(micros));
        findings.push(Finding::new(
            format!("p99 of the others' RPCs: ≤ {}", text(limit)),
            format!("{}, quiet {}", text(p99), text(quiet)),
            p99 <= limit,
        ));
    }
    findings.push(proxy.sound());
    Ok(findings)
}

/// All three, in each way in which an RPC can fail. What the proxy has saved for further attempts, 100 of them for each
/// worker, is spent before anything is counted.
pub(super) async fn retry_storm(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let time = scale.of(Duration::from_secs(20), Duration::from_millis(700));
    let ways = [
        ("REFUSED_STREAM", Behaviour::Refuse),
        ("connections that end", Behaviour::Drop(Stage::Request)),
        ("INTERNAL_ERROR", Behaviour::Reset(Stage::Head)),
        ("HTTP 503", Behaviour::Html(503)),
    ];
    let mut findings = Vec::new();
    for (name, behaviour) in ways.into_iter().take(scale.of(ways.len(), 2)) {
        let backends = [
            BadBackend::start(behaviour).await,
            BadBackend::start(behaviour).await,
            BadBackend::start(behaviour).await,
        ];
        let attempts = || -> usize {
            let counts = backends.iter().map(|backend| backend.journal().count());
            counts.sum()
        };
        let builder = Proxy::to(&backends).route("/api.Echo/", "test");
        let mut proxy = Running::start(&options, builder).await;
        let storm = async |duration| {
            let load = Load::start(load::Options {
                duration,
                ..proxy.load(scale.of(500, 300), 20)
            });
            sleep(duration).await;
            load.end().await
        };
        storm(Duration::from_millis(700)).await?;
        let (begun, before) = (Instant::now(), attempts());
        let tally = storm(time).await?;
        let (attempts, seconds) = (attempts() - before, begun.elapsed().as_secs_f64());
        let offered = tally.sent + tally.transparent_retries;
        // And what each of two workers has left of one.
        let most = 1.2 * offered as f64 + 3.0 * seconds + 2.0;
        findings.push(Finding::new(
            format!("{name}: attempts that reach a backend ≤ {most:.0}"),
            format!("{attempts}, of {offered} RPCs"),
            attempts as f64 <= most && attempts > 0,
        ));
        findings.push(proxy.sound());
    }
    Ok(findings)
}

/// The deployed one, or a quick one.
pub(super) fn health_check(scale: Scale) -> Value {
    let (interval, edge) = scale.of(("10s", "1s"), ("100ms", "100ms"));
    json!({
        "service": "", "timeout": "1s", "interval": interval, "unhealthy_edge_interval": edge,
        "unhealthy_threshold": 2, "healthy_threshold": 2,
    })
}

/// A check's time-out where no backend hangs. In small other tests run beside, and a backend that has to wait for the
/// processor must not be taken for one that hangs.
pub(super) fn patience(scale: Scale) -> &'static str {
    scale.of("1s", "20s")
}

/// Those that fail have run at the backend that is ill, if anywhere: none of them at one of these.
fn were_there(tally: &Tally, others: &[Backend]) -> Finding {
    let elsewhere = executions(others.iter().map(|backend| &backend.journal));
    let wrong: Vec<_> = tally
        .failures()
        .iter()
        .filter(|failure| elsewhere.contains_key(&failure.id))
        .collect();
    let first = wrong.first().map_or_else(String::new, |first| {
        format!(", the first {:?}: {}", first.code, first.message)
    });
    Finding::new(
        "RPCs that fail and were at a backend that is well: 0",
        format!("{} of {}{first}", wrong.len(), tally.failed()),
        wrong.is_empty() && !elsewhere.is_empty(),
    )
}

/// How often each RPC was begun, by its id.
pub(super) fn executions<'a>(
    journals: impl Iterator<Item = &'a Journal>,
) -> HashMap<String, usize> {
    let mut all = HashMap::new();
    for journal in journals {
        journal.look(|entries| {
            let ids = entries.requests.iter().filter_map(|seen| seen.header(ID));
            for id in ids {
                *all.entry(id.to_owned()).or_insert(0) += 1;
            }
        });
    }
    all
}

const NAME: &str = "echo-grpc.test";
/// In flight, beside the load.
const GATED: usize = 60;
/// An RPC counts from the time that it was meant to be sent, which may be a little before it is: this long at most.
const SLACK: Duration = Duration::from_millis(500);
