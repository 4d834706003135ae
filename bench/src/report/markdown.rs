//! The table: per part and metric a row for each shape, a column for each peer.

use std::fmt::Write as _;

use super::{Figure, Metric, Results, Verdict, number};
use crate::{parts::Part, peers::Kind};

/// The whole report. Writing to a string can't fail.
pub(super) fn table(results: &Results, verdicts: &[Verdict]) -> String {
    let mut text = String::from("# Results\n\n");
    let machine = &results.machine;
    let _ = writeln!(
        text,
        "{} UTC, {} cores ({}), {} GiB, {}, Linux {}, load average {} before the run; {}.\n",
        results.date,
        machine.cores,
        machine.processor,
        machine.memory,
        machine.system,
        machine.kernel,
        machine.load_average,
        results.options
    );
    for (name, version) in &results.versions {
        let _ = writeln!(text, "- {name}: {version}");
    }
    let _ = writeln!(
        text,
        "\nA figure is the median of all rounds, with the least and the most in parentheses where they differ. What the \
         peers are and do: `bench/README.md`. haproxy-tcp is no rival but the floor: it ends TLS and copies bytes.\n\n\
         ![Each figure beside the others'](results.svg)\n"
    );
    let _ = writeln!(text, "## Targets\n\n{}", self::verdicts(verdicts));
    let _ = writeln!(text, "## Where we lose\n\n{}", losses(results));
    if !results.notes.is_empty() {
        text.push_str("## What went wrong\n\n");
        for note in &results.notes {
            let _ = writeln!(text, "- {}", note.replace('\n', " "));
        }
        text.push('\n');
    }
    for part in Part::ALL {
        let metrics = metrics(results, part);
        if metrics.is_empty() {
            continue;
        }
        let _ = writeln!(text, "## {}\n", part.name());
        for metric in metrics {
            text.push_str(&of_metric(results, part, metric));
        }
    }
    while text.ends_with("\n\n") {
        text.pop();
    }
    text
}

/// A row for each promise.
pub(super) fn verdicts(verdicts: &[Verdict]) -> String {
    if verdicts.is_empty() {
        return "No target was measured.\n".to_owned();
    }
    let mut text = String::from(
        "| what | beside | measured | target | |\n| --- | --- | ---: | ---: | --- |\n",
    );
    for verdict in verdicts {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} {} | {} |",
            verdict.what,
            verdict.beside,
            number(verdict.measured),
            if verdict.at_least { "≥" } else { "≤" },
            verdict.target,
            if verdict.met() { "met" } else { "**missed**" },
        );
    }
    let met = verdicts.iter().filter(|verdict| verdict.met()).count();
    let _ = writeln!(text, "\n{met} of {} met.", verdicts.len());
    text
}

/// Every figure at which a rival is better, worst first.
pub(super) fn losses(results: &Results) -> String {
    let mut losses = Vec::new();
    for ours in &results.figures {
        let Some(less) = ours.metric.less_is_better() else {
            continue;
        };
        if ours.peer != Kind::EdgeProxy {
            continue;
        }
        for rival in Kind::ALL.into_iter().filter(|kind| kind.is_rival()) {
            let Some(theirs) = results.figure(ours.part, &ours.shape, ours.metric, rival) else {
                continue;
            };
            let factor = if less {
                ours.median / theirs.median
            } else {
                theirs.median / ours.median
            };
            if factor > 1.0 {
                losses.push((factor, ours, theirs));
            }
        }
    }
    if losses.is_empty() {
        return "Nowhere, of what was measured.\n".to_owned();
    }
    losses.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut text = String::new();
    for (factor, ours, theirs) in losses {
        let apart = ours.min > theirs.max || ours.max < theirs.min;
        let _ = writeln!(
            text,
            "- {}, {}, {}: {} {} instead of {}'s {} (factor {}{}{})",
            ours.part.name(),
            ours.shape,
            ours.metric.name(),
            number(ours.median),
            ours.unit,
            theirs.peer.name(),
            number(theirs.median),
            number(factor),
            if apart || ours.rounds.len() < 2 {
                ""
            } else {
                "; rounds overlap"
            },
            idleness(results, ours),
        );
    }
    text
}

/// Of a rate: whether our core was the limit. Where it was not, either the load was, or we waited for something.
fn idleness(results: &Results, ours: &Figure) -> String {
    if !matches!(ours.metric, Metric::Rate | Metric::Throughput) {
        return String::new();
    }
    match results.figure(ours.part, &ours.shape, Metric::Busy, ours.peer) {
        Some(busy) if busy.median < 0.9 => {
            format!("; we used {:.0} % of the core", busy.median * 100.0)
        }
        _ => String::new(),
    }
}

/// What was measured in `part`, in the order in which it was.
fn metrics(results: &Results, part: Part) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for figure in &results.figures {
        if figure.part == part && !metrics.contains(&figure.metric) {
            metrics.push(figure.metric);
        }
    }
    metrics
}

fn of_metric(results: &Results, part: Part, metric: Metric) -> String {
    let peers = results.peers();
    let mut shapes: Vec<&str> = Vec::new();
    for figure in &results.figures {
        if figure.part == part
            && figure.metric == metric
            && !shapes.contains(&figure.shape.as_str())
        {
            shapes.push(&figure.shape);
        }
    }
    let mut text = format!("| {}, {} |", metric.name(), metric.unit());
    for peer in &peers {
        let _ = write!(text, " {} |", peer.name());
    }
    text.push_str("\n| --- |");
    text.push_str(&" ---: |".repeat(peers.len()));
    text.push('\n');
    for shape in shapes {
        let _ = write!(text, "| {shape} |");
        for peer in &peers {
            let cell = results.figure(part, shape, metric, *peer).map(cell);
            let _ = write!(text, " {} |", cell.unwrap_or_default());
        }
        text.push('\n');
    }
    text.push('\n');
    text
}

fn cell(figure: &Figure) -> String {
    let [median, min, max] = [figure.median, figure.min, figure.max].map(number);
    if min == max {
        median
    } else {
        format!("{median} ({min}–{max})")
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::results, *};

    #[test]
    fn it_says_where_we_lose_and_to_whom() {
        let results = results(
            Part::Cpu,
            Metric::Cpu,
            &[
                ("a", Kind::EdgeProxy, &[3.0]),
                ("a", Kind::Envoy, &[2.0]),
                ("a", Kind::HaproxyTcp, &[1.0]),
                ("b", Kind::EdgeProxy, &[1.0]),
                ("b", Kind::Envoy, &[2.0]),
            ],
        );
        assert_eq!(
            losses(&results),
            "- cpu, a, CPU per RPC: 3.00 µs instead of envoy's 2.00 (factor 1.50)\n"
        );
    }

    #[test]
    fn more_requests_a_second_are_better() {
        let results = results(
            Part::Cpu,
            Metric::Rate,
            &[("a", Kind::EdgeProxy, &[3.0]), ("a", Kind::Envoy, &[2.0])],
        );
        assert_eq!(losses(&results), "Nowhere, of what was measured.\n");
    }

    #[test]
    fn cells_show_the_extremes_where_they_differ() {
        let results = results(
            Part::Cpu,
            Metric::Cpu,
            &[
                ("a", Kind::EdgeProxy, &[1.0, 2.0, 4.0]),
                ("a", Kind::Envoy, &[5.0]),
            ],
        );
        let text = of_metric(&results, Part::Cpu, Metric::Cpu);
        let expected = "| CPU per RPC, µs | edge-proxy | envoy |\n| --- | ---: | ---: |\n\
                        | a | 2.00 (1.00–4.00) | 5.00 |\n\n";
        assert_eq!(text, expected);
    }
}
