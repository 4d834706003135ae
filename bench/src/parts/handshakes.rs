//! CPU time of a connection with a TLS handshake, full or resumed: accepted, greeted with SETTINGS, closed.

use super::{Part, Plan};
use crate::{
    lab::turn,
    load::handshake::{self, Handshake},
    peers::Setting,
    report::{Metric, Results},
};

/// Measures all peers.
///
/// # Errors
/// When they can't be started.
pub(super) async fn run(plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let mut lab = plan.lab(Setting::default(), results).await?;
    let count = if plan.quick { 100 } else { 400 };
    for round in 0..plan.rounds {
        for index in turn(lab.peers.len(), round) {
            for (name, kind) in [
                ("full handshake", Handshake::Full),
                ("resumed handshake", Handshake::Resumed),
            ] {
                let tls = lab.tls.clone();
                let peer = &mut lab.peers[index];
                let processes = peer.processes()?;
                let before = processes.cpu()?;
                let made = handshake::run(peer.address, &tls, kind, count);
                let cpu = (processes.cpu()? - before) as f64 / 1000.0;
                if let Err(error) = made {
                    results.note(format!("{}, {name}: {error:#}", peer.kind.name()));
                    continue;
                }
                // A resumed series begins with a full one, whose share is left in: one of `count`.
                let each = cpu / count as f64;
                eprintln!("{name:24} {:12} {each:>9.1} µs/handshake", peer.kind.name());
                results.add(Part::Handshakes, name, Metric::Handshake, peer.kind, each);
                // Where a connection has a line in the log.
                peer.log_lines(0)?;
            }
        }
    }
    Ok(())
}
