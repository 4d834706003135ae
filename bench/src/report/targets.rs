//! What is promised of edge-proxy, as ratios within one run, and whether it holds.

use super::{Metric, Results};
use crate::{
    machine::Machine,
    parts::{HALF, PACED_SHAPE, Part, STARTED},
    peers::Kind,
};

/// One promise, measured.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// What of which shape.
    pub(crate) what: String,
    /// Beside whom or what.
    pub(crate) beside: String,
    /// Ours, divided by the other; or ours, where the target is no ratio.
    pub(crate) measured: f64,
    /// At most, or at least.
    pub(crate) target: f64,
    /// Whether more is promised instead of less.
    pub(crate) at_least: bool,
}

impl Verdict {
    /// Whether the promise is kept.
    pub(crate) fn met(&self) -> bool {
        if self.at_least {
            self.measured >= self.target
        } else {
            self.measured <= self.target
        }
    }
}

/// Every promise of which this run has measured both sides.
pub(crate) fn verdicts(results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for (part, shape, envoy, haproxy) in CPU {
        for (peer, target) in [(Kind::Envoy, envoy), (Kind::Haproxy, haproxy)] {
            let quantity = (*part, Metric::Cpu);
            verdicts.extend(beside(results, quantity, shape, peer, *target));
        }
    }
    for shape in [HALF, PACED_SHAPE] {
        for peer in rivals() {
            let quantity = (Part::Latency, Metric::P99);
            verdicts.extend(beside(results, quantity, shape, peer, 1.0));
        }
    }
    for shape in ours(results, Part::Idle, Metric::PerConnection) {
        let quantity = (Part::Idle, Metric::PerConnection);
        verdicts.extend(beside(results, quantity, shape, Kind::Envoy, 0.25));
    }
    let quantity = (Part::Bulk, Metric::PeakMemory);
    verdicts.extend(beside(results, quantity, "1 MiB, 4×2", Kind::Haproxy, 1.0));
    for (one, what) in FLAT {
        for more in ours(results, Part::Scale, Metric::Cpu) {
            if more != *one && more.ends_with(what) {
                verdicts.extend(with_more(results, Metric::Cpu, one, more, 1.1, false));
            }
        }
    }
    let (metric, target) = workers(&results.machine);
    verdicts.extend(with_more(
        results,
        metric,
        "1 worker",
        "2 workers",
        target,
        metric == Metric::Rate,
    ));
    if let Some(figure) = results.figure(Part::Start, STARTED, Metric::Start, OURS) {
        verdicts.push(Verdict {
            what: format!("{STARTED}, ms"),
            beside: "nobody".to_owned(),
            measured: figure.median,
            target: 50.0,
            at_least: false,
        });
    }
    verdicts
}

/// Ours beside a peer's.
fn beside(
    results: &Results,
    (part, metric): (Part, Metric),
    shape: &str,
    peer: Kind,
    target: f64,
) -> Option<Verdict> {
    let ours = results.figure(part, shape, metric, OURS)?.median;
    let other = results.figure(part, shape, metric, peer)?.median;
    Some(Verdict {
        what: format!("{}, {shape}", metric.name()),
        beside: peer.name().to_owned(),
        measured: ours / other,
        target,
        at_least: false,
    })
}

/// Ours beside ours.
fn with_more(
    results: &Results,
    metric: Metric,
    one: &str,
    other: &str,
    target: f64,
    at_least: bool,
) -> Option<Verdict> {
    let less = results.figure(Part::Scale, one, metric, OURS)?.median;
    let more = results.figure(Part::Scale, other, metric, OURS)?.median;
    Some(Verdict {
        what: format!("{}, {other}", metric.name()),
        beside: format!("itself with {one}"),
        measured: more / less,
        target,
        at_least,
    })
}

/// The shapes of which we have this figure.
fn ours(results: &Results, part: Part, metric: Metric) -> impl Iterator<Item = &str> {
    let figures = results.figures.iter();
    figures
        .filter(move |figure| figure.part == part && figure.metric == metric && figure.peer == OURS)
        .map(|figure| figure.shape.as_str())
}

fn rivals() -> impl Iterator<Item = Kind> {
    Kind::ALL.into_iter().filter(|kind| kind.is_rival())
}

/// Where two workers have a core each and the load has two more, they are to carry 1.8 times as much; elsewhere an RPC
/// is to cost them no more.
fn workers(machine: &Machine) -> (Metric, f64) {
    if machine.cores >= 4 {
        (Metric::Rate, 1.8)
    } else {
        (Metric::Cpu, 1.1)
    }
}

const OURS: Kind = Kind::EdgeProxy;

/// CPU per RPC: shape, beside Envoy, beside HAProxy.
const CPU: &[(Part, &str, f64, f64)] = &[
    (Part::Cpu, "5 B, 10×10", 0.12, 0.36),
    (Part::Cpu, "5 B, 100×1", 0.32, 0.52),
    (Part::Cpu, "5 B, 10×100", 0.04, 0.20),
    (Part::Cpu, "1 KiB, 50×5", 0.20, 0.44),
    (Part::Cpu, "16 headers, 10×100", 0.08, 0.35),
    (Part::Bulk, "64 KiB, 4×4", 0.58, 0.38),
    (Part::Bulk, "1 MiB, 4×2", 0.88, 0.45),
    (Part::Bulk, "stream of 256 MiB", 0.88, 0.45),
    (Part::Bulk, "stream of 64 MiB", 0.88, 0.45),
];

/// What an RPC is to cost the same with more of, within a tenth.
const FLAT: &[(&str, &str)] = &[
    ("2 endpoints", " endpoints"),
    ("2 routes", " routes"),
    ("10 connections", " connections"),
];

#[cfg(test)]
mod tests {
    use super::{super::tests::results, *};

    #[test]
    fn a_promise_is_kept_or_missed_by_its_ratio() {
        let measured = |ours| {
            let results = results(
                Part::Cpu,
                Metric::Cpu,
                &[
                    ("5 B, 10×10", Kind::EdgeProxy, &[ours]),
                    ("5 B, 10×10", Kind::Envoy, &[40.0]),
                ],
            );
            verdicts(&results)
        };
        let kept = measured(4.0);
        assert_eq!(kept.len(), 1);
        assert!(kept[0].met() && (kept[0].measured - 0.1).abs() < 1e-9);
        assert!(!measured(6.0)[0].met());
    }

    #[test]
    fn shapes_are_named_as_the_parts_name_them() {
        let known = crate::parts::closed_shapes();
        for (part, shape, ..) in CPU {
            assert!(known.contains(&(*part, (*shape).to_owned())), "{shape}");
        }
    }

    #[test]
    fn more_workers_carry_more_where_there_are_cores() {
        let mut results = results(
            Part::Scale,
            Metric::Rate,
            &[
                ("1 worker", Kind::EdgeProxy, &[100.0]),
                ("2 workers", Kind::EdgeProxy, &[190.0]),
            ],
        );
        assert_eq!(verdicts(&results).len(), 0, "no cores for it");
        results.machine.cores = 4;
        assert!(verdicts(&results)[0].met());
    }
}
