//! The plot: a panel for each shape of what matters most, in it a bar for each peer, all as SVG, without a library.
//!
//! Each panel has a scale of its own, from zero: between shapes values differ by a factor of thousands, between peers
//! by one of thirty, and the second is what is to be seen.

use std::fmt::Write as _;

use super::{Metric, Results, number};
use crate::{parts::Part, peers::Kind};

/// All panels. Writing to a string can't fail.
pub(super) fn plot(results: &Results) -> String {
    let mut panels = Vec::new();
    for (part, metric) in SHOWN {
        let mut shapes: Vec<&str> = Vec::new();
        for figure in &results.figures {
            if figure.part == *part
                && figure.metric == *metric
                && !shapes.contains(&figure.shape.as_str())
            {
                shapes.push(&figure.shape);
            }
        }
        panels.extend(
            shapes
                .into_iter()
                .map(|shape| panel(results, *part, *metric, shape)),
        );
    }
    let columns = COLUMNS.min(panels.len()).max(1);
    // At most seven bars in each.
    let height = HEAD + BAR * results.peers().len() as f64 + GAP;
    let rows = panels.len().div_ceil(columns);
    let size = (WIDTH * columns as f64, height * rows as f64 + GAP);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {:.0} {:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n",
        size.0, size.1
    );
    for (index, panel) in panels.iter().enumerate() {
        let (x, y) = (
            (index % columns) as f64 * WIDTH,
            (index / columns) as f64 * height + GAP,
        );
        let _ = writeln!(
            text,
            "<g transform=\"translate({x:.0} {y:.0})\">\n{panel}</g>"
        );
    }
    text.push_str("</svg>\n");
    text
}

fn panel(results: &Results, part: Part, metric: Metric, shape: &str) -> String {
    let title = format!("{shape}: {}, {}", metric.name(), metric.unit());
    let mut text = format!(
        "<text x=\"{GAP}\" y=\"14\" font-weight=\"bold\">{}</text>\n",
        escape(&title)
    );
    let peers = results.peers();
    let figures = peers
        .iter()
        .map(|peer| (*peer, results.figure(part, shape, metric, *peer)));
    let figures: Vec<_> = figures.collect();
    let most = figures
        .iter()
        .filter_map(|(_, figure)| Some(figure.as_ref()?.max));
    let most = most.fold(f64::MIN_POSITIVE, f64::max);
    for (index, (peer, figure)) in figures.into_iter().enumerate() {
        let y = HEAD + BAR * index as f64;
        let _ = writeln!(
            text,
            "<text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">{}</text>",
            LEFT - 5.0,
            y + 11.0,
            peer.name()
        );
        let Some(figure) = figure else {
            continue;
        };
        let place = |value: f64| LEFT + value / most * LONGEST;
        let _ = writeln!(
            text,
            "<rect x=\"{LEFT}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"13\" fill=\"{}\"/>\n\
             <line x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#333333\"/>\n\
             <text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
            place(figure.median) - LEFT,
            colour(peer),
            place(figure.min),
            place(figure.max),
            y + 6.5,
            y + 6.5,
            place(figure.max) + 4.0,
            y + 11.0,
            number(figure.median)
        );
    }
    text
}

fn colour(peer: Kind) -> &'static str {
    match peer {
        Kind::EdgeProxy => "#d1495b",
        Kind::Baseline => "#e8a0a9",
        Kind::HaproxyTcp => "#cccccc",
        _ => "#5b7fa3",
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// What is shown, in this order.
const SHOWN: &[(Part, Metric)] = &[
    (Part::Cpu, Metric::Cpu),
    (Part::Bulk, Metric::CpuPerMib),
    (Part::Latency, Metric::P99),
    (Part::Handshakes, Metric::Handshake),
    (Part::Idle, Metric::PerConnection),
    (Part::Start, Metric::Start),
];
const COLUMNS: usize = 3;
/// Of a panel.
const WIDTH: f64 = 400.0;
/// Where bars begin, right of the names.
const LEFT: f64 = 80.0;
/// The longest bar; its number stands behind it.
const LONGEST: f64 = 250.0;
const HEAD: f64 = 22.0;
const BAR: f64 = 17.0;
const GAP: f64 = 14.0;

#[cfg(test)]
mod tests {
    use super::{super::tests::results, *};

    #[test]
    fn the_longest_bar_is_the_greatest_value() {
        let results = results(
            Part::Cpu,
            Metric::Cpu,
            &[
                ("1 < 2", Kind::EdgeProxy, &[1.0]),
                ("1 < 2", Kind::Envoy, &[10.0]),
            ],
        );
        let text = plot(&results);
        assert!(text.contains("width=\"250.0\""));
        assert!(text.contains("width=\"25.0\""));
        assert!(text.contains("1 &lt; 2: CPU per RPC, µs"));
        assert_eq!(text.matches("<g ").count(), text.matches("</g>").count());
    }
}
