//! The usual load with more of everything: whether an RPC costs the same then.
//!
//! Connections beyond the load's own ten are open and silent. Endpoints are all served by the same two backends, each
//! on many addresses. Routes stand in front of those that are used.

use super::{Part, Plan, closed, usual};
use crate::{
    lab::{Lab, turn},
    load::{client, h2load::Shape},
    machine::{self, Cores},
    peers::{Kind, Setting},
    report::{Metric, Results},
};

/// Measures all peers.
///
/// # Errors
/// When they can't be started.
pub(super) async fn run(plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let usual = Setting::default();
    let l7: Vec<Kind> = plan
        .peers
        .iter()
        .copied()
        .filter(|kind| kind.knows_rpcs())
        .collect();
    let few = |all: &'static [usize], quick: &'static [usize]| if plan.quick { quick } else { all };
    for &endpoints in few(&[2, 100, 1000], &[2, 100]) {
        let setting = Setting { endpoints, ..usual };
        at(
            plan,
            &l7,
            setting,
            &format!("{endpoints} endpoints"),
            results,
        )
        .await?;
    }
    for &routes in &[2, 1000] {
        let setting = Setting { routes, ..usual };
        at(plan, &l7, setting, &format!("{routes} routes"), results).await?;
    }
    for &workers in &[1, 2] {
        let setting = Setting { workers, ..usual };
        // With more workers, fewer cores may be left for the load; it has as many in both.
        Cores::divide(2)?.pin_load()?;
        let name = format!("{workers} worker{}", if workers == 1 { "" } else { "s" });
        at(plan, &l7, setting, &name, results).await?;
    }
    Cores::divide(1)?.pin_load()?;
    connections(plan, few(&[10, 100, 1000, 10_000], &[10, 1000]), results).await
}

/// The usual load, with peers configured so.
async fn at(
    plan: &Plan,
    kinds: &[Kind],
    setting: Setting,
    name: &str,
    results: &mut Results,
) -> anyhow::Result<()> {
    let shape = Shape {
        name: name.to_owned(),
        ..usual()
    };
    let mut lab = match plan.lab_of(kinds, setting, results).await {
        Ok(lab) => lab,
        Err(error) => {
            results.note(format!("{name}: {error:#}"));
            return Ok(());
        }
    };
    let counts = closed::calibrate(&mut lab, &shape, plan.sample, results).await;
    for round in 0..plan.rounds {
        for index in turn(lab.peers.len(), round) {
            sample(&mut lab, index, &shape, &counts, results).await;
        }
    }
    Ok(())
}

/// The usual load beside connections that are silent. They are opened once for each peer and number, so that rounds
/// don't interleave the peers: what is compared is each with itself.
async fn connections(plan: &Plan, all: &[usize], results: &mut Results) -> anyhow::Result<()> {
    let mut lab = plan.lab(Setting::default(), results).await?;
    let most = machine::most_connections() - 200;
    for index in 0..lab.peers.len() {
        let (kind, address) = (lab.peers[index].kind, lab.peers[index].address);
        let mut held = Vec::new();
        for count in all.iter().map(|count| *count.min(&most)) {
            let name = format!("{count} connections");
            let more = count - usual().connections as usize - held.len();
            match client::hold(address, &lab.tls.clone(), more, None).await {
                Ok(opened) => held.extend(opened),
                Err(error) => {
                    results.note(format!("{}, {name}: {error:#}", kind.name()));
                    break;
                }
            }
            let shape = Shape { name, ..usual() };
            let counts = closed::calibrate_one(&mut lab, index, &shape, plan.sample, results).await;
            for _ in 0..plan.rounds {
                sample(&mut lab, index, &shape, &counts, results).await;
            }
        }
    }
    Ok(())
}

async fn sample(
    lab: &mut Lab,
    index: usize,
    shape: &Shape,
    counts: &closed::Counts,
    results: &mut Results,
) {
    let Some(sample) = closed::take(lab, index, shape, counts, results).await else {
        return;
    };
    let kind = lab.peers[index].kind;
    results.add(Part::Scale, &shape.name, Metric::Cpu, kind, sample.cpu);
    results.add(Part::Scale, &shape.name, Metric::Rate, kind, sample.rate);
}
