//! One sample of a closed loop: CPU time per RPC, RPCs per second.
//!
//! A sample is two runs of h2load. The first makes the connections and asks once on each; what it costs is taken off
//! the second, so that TLS handshakes are in no RPC's price (they have a part of their own). How many RPCs the second
//! has is found by two runs before the first round, which warm the peer up, too.

use std::{collections::BTreeMap, time::Duration};

use anyhow::ensure;

use super::{Part, Plan};
use crate::{
    lab::{Lab, turn},
    load::h2load::Shape,
    peers::{Kind, Setting},
    report::{Metric, Results},
};

/// What a sample has measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Microseconds of CPU time per RPC.
    pub(super) cpu: f64,
    /// RPCs per second, the time for the connections included.
    pub(super) rate: f64,
    /// The share of one core that the peer used.
    pub(super) busy: f64,
    /// The most memory that it had, in bytes.
    pub(super) peak: u64,
}

/// How many RPCs a sample of `shape` has, by peer.
pub(super) type Counts = BTreeMap<Kind, u64>;

/// Measures `shapes` with all peers.
///
/// # Errors
/// When the peers can't be started.
pub(super) async fn run(
    part: Part,
    plan: &Plan,
    shapes: &[Shape],
    results: &mut Results,
) -> anyhow::Result<()> {
    let mut lab = plan.lab(Setting::default(), results).await?;
    for shape in shapes {
        let counts = calibrate(&mut lab, shape, plan.sample, results).await;
        for round in 0..plan.rounds {
            for index in turn(lab.peers.len(), round) {
                let Some(sample) = take(&mut lab, index, shape, &counts, results).await else {
                    continue;
                };
                let kind = lab.peers[index].kind;
                let mut add = |metric, value| results.add(part, &shape.name, metric, kind, value);
                add(Metric::Cpu, sample.cpu);
                add(Metric::Rate, sample.rate);
                add(Metric::Busy, sample.busy);
                if part == Part::Bulk {
                    let mib = shape.carried() as f64 / MIB;
                    add(Metric::CpuPerMib, sample.cpu / mib);
                    add(Metric::Throughput, sample.rate * mib);
                    add(Metric::PeakMemory, sample.peak as f64 / MIB);
                }
            }
        }
    }
    Ok(())
}

/// Finds how many RPCs take about `duration`. Peers that fail are noted, and left out.
pub(super) async fn calibrate(
    lab: &mut Lab,
    shape: &Shape,
    duration: Duration,
    results: &mut Results,
) -> Counts {
    let mut counts = Counts::new();
    for index in 0..lab.peers.len() {
        counts.extend(calibrate_one(lab, index, shape, duration, results).await);
    }
    counts
}

/// As [`calibrate`], for one peer.
pub(super) async fn calibrate_one(
    lab: &mut Lab,
    index: usize,
    shape: &Shape,
    duration: Duration,
    results: &mut Results,
) -> Counts {
    let kind = lab.peers[index].kind;
    match calibrated(lab, index, shape, duration).await {
        Ok(count) => Counts::from([(kind, count)]),
        Err(error) => {
            results.note(format!("{}, {}: {error:#}", kind.name(), shape.name));
            Counts::new()
        }
    }
}

async fn calibrated(
    lab: &mut Lab,
    index: usize,
    shape: &Shape,
    duration: Duration,
) -> anyhow::Result<u64> {
    let few = (shape.connections * shape.streams * 2).max(if shape.carried() > 1 << 16 {
        4
    } else {
        500
    });
    let few = if shape.download.is_some() { 1 } else { few };
    let mut count = few;
    for share in [0.25, 1.0] {
        let (address, folder) = (lab.peers[index].address, lab.folder.clone());
        let run = shape.run(address, &folder, count).await?;
        let fitting = count as f64 / run.seconds * duration.as_secs_f64() * share;
        let lines = if lab.peers[index].kind.knows_rpcs() {
            count
        } else {
            shape.connections
        };
        lab.peers[index].log_lines(lines)?;
        count = (fitting as u64).max(few);
    }
    Ok(count)
}

/// One sample of one peer; what goes wrong is noted.
pub(super) async fn take(
    lab: &mut Lab,
    index: usize,
    shape: &Shape,
    counts: &Counts,
    results: &mut Results,
) -> Option<Sample> {
    let kind = lab.peers[index].kind;
    let rpcs = *counts.get(&kind)?;
    match measure(lab, index, shape, rpcs).await {
        Ok((sample, odd)) => {
            eprintln!(
                "{:24} {:12} {:>9.2} µs/RPC {:>9.0} RPC/s {:>4.0} % of a core",
                shape.name,
                kind.name(),
                sample.cpu,
                sample.rate,
                sample.busy * 100.0
            );
            for odd in odd {
                results.note(format!("{}, {}: {odd}", kind.name(), shape.name));
            }
            Some(sample)
        }
        Err(error) => {
            results.note(format!("{}, {}: {error:#}", kind.name(), shape.name));
            None
        }
    }
}

async fn measure(
    lab: &mut Lab,
    index: usize,
    shape: &Shape,
    rpcs: u64,
) -> anyhow::Result<(Sample, Vec<String>)> {
    let (address, folder) = (lab.peers[index].address, lab.folder.clone());
    let processes = lab.peers[index].processes()?;
    let answered = lab.answered()?;
    // One RPC of a long stream is so much that its handshake doesn't matter.
    let base = if shape.download.is_some() {
        0
    } else {
        shape.connections
    };
    let rpcs = rpcs.max(2 * base).max(1);

    let start = processes.cpu()?;
    if base > 0 {
        shape.run(address, &folder, base).await?;
    }
    let between = processes.cpu()?;
    processes.forget_peak()?;
    let asking = shape.run(address, &folder, rpcs).await?.seconds;
    let end = processes.cpu()?;
    let peak = processes.peak_memory()?;

    let counted = (rpcs - base) as f64;
    let cpu = (end - between).saturating_sub(between - start) as f64 / 1000.0;
    let sample = Sample {
        cpu: cpu / counted,
        rate: rpcs as f64 / asking,
        busy: (end - between) as f64 / 1e9 / asking,
        peak,
    };
    let odd = check(lab, index, base + rpcs, base + shape.connections, &answered)?;
    Ok((sample, odd))
}

/// Whether the peer has done what all peers are to do: asked a backend for each RPC, balanced them, logged them.
fn check(
    lab: &mut Lab,
    index: usize,
    rpcs: u64,
    connections: u64,
    before: &[u64],
) -> anyhow::Result<Vec<String>> {
    let now = lab.answered()?;
    let each: Vec<u64> = now
        .iter()
        .zip(before)
        .map(|(now, before)| now - before)
        .collect();
    let answered: u64 = each.iter().sum();
    ensure!(
        answered == rpcs,
        "the backends answered {answered} RPCs of {rpcs}"
    );
    let mut odd = Vec::new();
    let peer = &mut lab.peers[index];
    let knows_rpcs = peer.kind.knows_rpcs();
    let expected = if knows_rpcs { rpcs } else { connections };
    let lines = peer.log_lines(expected)?;
    if lines < expected {
        odd.push(format!("{lines} lines in the access log of {expected}"));
    }
    let even = each.iter().all(|one| {
        let share = *one as f64 * each.len() as f64 / rpcs.max(1) as f64;
        // Few RPCs over several workers, each with a turn of its own, are never quite even.
        (share - 1.0).abs() <= UNEVEN || rpcs < 200
    });
    if knows_rpcs && !even {
        odd.push(format!("RPCs are not balanced evenly: {each:?}"));
    }
    Ok(odd)
}

const MIB: f64 = 1024.0 * 1024.0;
/// By how much a backend's share of the RPCs may differ from the others'.
const UNEVEN: f64 = 0.05;
