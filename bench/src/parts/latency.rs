//! Open loops: how long RPCs take at 25, 50 and 75 % of what each peer can carry, and at a rate that is easy for all.
//!
//! A peer's peak is found by raising the rate until it can't keep up. It is the peak of the peer and of this machine's
//! generator and backends together: where those are the limit, all peers that are faster have the same.

use std::{collections::BTreeMap, time::Duration};

use super::{Part, Plan};
use crate::{
    lab::{Lab, turn},
    load::open::{self, Latencies},
    peers::{Kind, Setting},
    report::{Metric, Results},
};

/// Measures all peers.
///
/// # Errors
/// When they can't be started.
pub(super) async fn run(plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let mut lab = plan.lab(Setting::default(), results).await?;
    let mut peaks = BTreeMap::new();
    for index in 0..lab.peers.len() {
        let kind = lab.peers[index].kind;
        match peak(&mut lab, index, plan.sample / 2).await {
            Ok(peak) => {
                eprintln!("{:24} {:12} {peak:>9} RPC/s", "peak", kind.name());
                results.add(Part::Latency, "peak", Metric::Rate, kind, peak.into());
                peaks.insert(kind, peak);
            }
            Err(error) => results.note(format!("{}, peak: {error:#}", kind.name())),
        }
    }
    for (name, percent) in [
        (PACED_SHAPE, None),
        ("25 % of the peak", Some(25)),
        (HALF, Some(50)),
        ("75 % of the peak", Some(75)),
    ] {
        for round in 0..plan.rounds {
            for index in turn(lab.peers.len(), round) {
                let kind = lab.peers[index].kind;
                let Some(rate) = rate(&peaks, kind, percent) else {
                    continue;
                };
                let latencies = match sample(&mut lab, index, rate, plan.sample).await {
                    Ok(latencies) => latencies,
                    Err(error) => {
                        results.note(format!("{}, {name}: {error:#}", kind.name()));
                        continue;
                    }
                };
                eprintln!(
                    "{name:24} {:12} {rate:>9} RPC/s  p50 {:>7.0}  p99 {:>7.0}  p99.9 {:>7.0} µs",
                    kind.name(),
                    latencies.p50,
                    latencies.p99,
                    latencies.p999
                );
                let mut add = |metric, value| results.add(Part::Latency, name, metric, kind, value);
                add(Metric::P50, latencies.p50);
                add(Metric::P99, latencies.p99);
                add(Metric::P999, latencies.p999);
            }
        }
    }
    Ok(())
}

/// As the targets name it.
pub(crate) const HALF: &str = "50 % of the peak";
/// As the targets name it.
pub(crate) const PACED_SHAPE: &str = "2000 RPC/s";

fn rate(peaks: &BTreeMap<Kind, u32>, kind: Kind, percent: Option<u32>) -> Option<u32> {
    match percent {
        Some(percent) => Some((*peaks.get(&kind)? / 100 * percent).max(1)),
        None => Some(PACED),
    }
}

/// The highest rate that was kept up with: doubled until it isn't, then halved towards it.
async fn peak(lab: &mut Lab, index: usize, duration: Duration) -> anyhow::Result<u32> {
    let (mut good, mut bad) = (0, None);
    let mut rate = LOWEST;
    for _ in 0..STEPS {
        let latencies = sample(lab, index, rate, duration).await?;
        if latencies.p50 < KEPT_UP && latencies.stretched < STRETCHED {
            good = rate;
        } else {
            bad = Some(rate);
        }
        rate = match bad {
            None => rate * 2,
            Some(bad) => good.midpoint(bad),
        };
    }
    anyhow::ensure!(good > 0, "{LOWEST} RPCs a second are too many");
    Ok(good)
}

async fn sample(
    lab: &mut Lab,
    index: usize,
    rate: u32,
    duration: Duration,
) -> anyhow::Result<Latencies> {
    let tls = lab.tls.clone();
    let peer = &mut lab.peers[index];
    let latencies = open::run(peer.address, &tls, rate, duration).await?;
    let expected = if peer.kind.knows_rpcs() {
        latencies.sent
    } else {
        open::CONNECTIONS as u64
    };
    peer.log_lines(expected)?;
    Ok(latencies)
}

/// RPCs a second.
const LOWEST: u32 = 1000;
const PACED: u32 = 2000;
/// Five doublings and three halvings, for example.
const STEPS: usize = 8;
/// Microseconds. Above it there is a queue somewhere.
const KEPT_UP: f64 = 5000.0;
/// By which the load may take longer than it was meant to.
const STRETCHED: f64 = 1.1;
