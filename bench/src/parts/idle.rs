//! Memory with connections on which nothing happens, and after one RPC of 8 KiB on each.
//!
//! Peers are started anew for each round: what an allocator keeps from before is no connection's. Nor is what the first
//! connection of all costs (pages of the program that are needed from then on), so that one comes and goes before.

use std::time::Duration;

use anyhow::Context as _;

use super::{Part, Plan};
use crate::{
    lab::{Lab, turn},
    load::client,
    machine,
    peers::Setting,
    report::{Metric, Results},
};

/// Measures all peers.
///
/// # Errors
/// When they can't be started.
pub(super) async fn run(plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let counts = [1000, 10_000.min(machine::most_connections() - 200)];
    let counts = if plan.quick {
        &counts[..1]
    } else {
        &counts[..]
    };
    for round in 0..plan.rounds.min(ROUNDS) {
        for echo in [None, Some(8 << 10)] {
            let mut lab = plan.lab(Setting::default(), results).await?;
            for index in turn(lab.peers.len(), round) {
                let kind = lab.peers[index].kind;
                if let Err(error) = measure(&mut lab, index, counts, echo, results).await {
                    results.note(format!("{}, idle connections: {error:#}", kind.name()));
                }
            }
        }
    }
    Ok(())
}

fn shape(connections: usize, after_rpc: bool) -> String {
    match (connections, after_rpc) {
        (0, _) => "no connections".to_owned(),
        (count, false) => format!("{count} connections"),
        (count, true) => format!("{count} connections, after 8 KiB"),
    }
}

async fn measure(
    lab: &mut Lab,
    index: usize,
    counts: &[usize],
    echo: Option<usize>,
    results: &mut Results,
) -> anyhow::Result<()> {
    let tls = lab.tls.clone();
    let peer = &mut lab.peers[index];
    let processes = peer.processes()?;
    let name = peer.kind.name();
    let mut add = |shape: &str, metric, value| {
        eprintln!("{shape:44} {name:12} {value:>9.2} {}", Metric::unit(metric));
        results.add(Part::Idle, shape, metric, peer.kind, value);
    };
    if echo.is_none() {
        let untouched = processes.memory()? as f64 / MIB;
        add(&shape(0, false), Metric::Memory, untouched);
    }
    drop(client::hold(peer.address, &tls, 1, echo).await?);
    tokio::time::sleep(SETTLED).await;
    let empty = processes.memory()?;
    let mut held = Vec::new();
    for count in counts {
        let more = count - held.len();
        held.extend(
            client::hold(peer.address, &tls, more, echo)
                .await
                .with_context(|| format!("{count} connections"))?,
        );
        tokio::time::sleep(SETTLED).await;
        let memory = processes.memory()?;
        let each = memory.saturating_sub(empty) as f64 / *count as f64;
        let shape = shape(*count, echo.is_some());
        add(&shape, Metric::Memory, memory as f64 / MIB);
        add(&shape, Metric::PerConnection, each / 1024.0);
    }
    drop(held);
    peer.check()
}

/// Memory hardly differs from round to round.
const ROUNDS: usize = 3;
/// For what ends later than a connection's last byte: logs, timers, freed memory. Buffers of a moment ago aren't what an
/// idle connection costs.
const SETTLED: Duration = Duration::from_secs(5);
const MIB: f64 = 1024.0 * 1024.0;
