//! Figures, and what is made of them: JSON for programs, a table and a plot for people, verdicts for both.

/// What is promised, and whether it holds.
mod targets;

/// The table.
mod markdown;

/// The plot.
mod svg;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{machine::Machine, parts::Part, peers::Kind};

pub(crate) use targets::Verdict;

/// All that a run has measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    /// When it began, UTC.
    pub(crate) date: String,
    /// Rounds, and how long a sample took.
    pub(crate) options: String,
    /// On what.
    pub(crate) machine: Machine,
    /// Of the peers, in their own words.
    pub(crate) versions: BTreeMap<String, String>,
    /// In the order in which they were first measured.
    pub(crate) figures: Vec<Figure>,
    /// What went wrong, or wasn't as it should be.
    pub(crate) notes: Vec<String>,
}

/// What rounds have measured of one peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// The subcommand.
    pub(crate) part: Part,
    /// The load.
    pub(crate) shape: String,
    /// The quantity.
    pub(crate) metric: Metric,
    /// Its unit.
    pub(crate) unit: String,
    /// Whose it is.
    pub(crate) peer: Kind,
    /// Of the rounds.
    pub(crate) median: f64,
    /// Of the rounds.
    pub(crate) min: f64,
    /// Of the rounds.
    pub(crate) max: f64,
    /// In order.
    pub(crate) rounds: Vec<f64>,
}

/// A quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Metric {
    /// CPU time per RPC.
    Cpu,
    /// RPCs per second.
    Rate,
    /// How much of one core was used.
    Busy,
    /// CPU time per MiB of messages.
    CpuPerMib,
    /// Messages' bytes per second, both directions.
    Throughput,
    /// The most memory under load.
    PeakMemory,
    /// Latency, median.
    P50,
    /// Latency.
    P99,
    /// Latency.
    P999,
    /// CPU time per connection with a handshake.
    Handshake,
    /// Memory.
    Memory,
    /// Memory per connection.
    PerConnection,
    /// Time to the first answer.
    Start,
    /// Of the program.
    Size,
}

impl Metric {
    /// As in the tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "CPU per RPC",
            Self::Rate => "RPCs per second",
            Self::Busy => "of a core",
            Self::CpuPerMib => "CPU per MiB",
            Self::Throughput => "throughput",
            Self::PeakMemory => "peak memory",
            Self::P50 => "p50",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Handshake => "CPU per connection",
            Self::Memory => "memory",
            Self::PerConnection => "memory per connection",
            Self::Start => "time",
            Self::Size => "size",
        }
    }

    /// As in the tables.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Cpu | Self::CpuPerMib | Self::P50 | Self::P99 | Self::P999 | Self::Handshake => {
                "µs"
            }
            Self::Rate => "/s",
            Self::Busy => "cores",
            Self::Throughput => "MiB/s",
            Self::PeakMemory | Self::Memory | Self::Size => "MiB",
            Self::PerConnection => "KiB",
            Self::Start => "ms",
        }
    }

    /// Whether less is better; `None` where neither is.
    pub(crate) fn less_is_better(self) -> Option<bool> {
        match self {
            Self::Rate | Self::Throughput => Some(false),
            Self::Busy => None,
            _ => Some(true),
        }
    }
}

impl Results {
    /// Nothing yet.
    pub(crate) fn new(machine: Machine, versions: BTreeMap<String, String>) -> Self {
        Self {
            date: jiff::Timestamp::now()
                .strftime("%Y-%m-%d %H:%M")
                .to_string(),
            options: String::new(),
            machine,
            versions,
            figures: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// One round's value.
    pub(crate) fn add(&mut self, part: Part, shape: &str, metric: Metric, peer: Kind, value: f64) {
        let known = self.figures.iter_mut().find(|figure| {
            figure.part == part
                && figure.shape == shape
                && figure.metric == metric
                && figure.peer == peer
        });
        if let Some(figure) = known {
            figure.rounds.push(value);
            figure.update();
            return;
        }
        self.figures.push(Figure {
            part,
            shape: shape.to_owned(),
            metric,
            unit: metric.unit().to_owned(),
            peer,
            median: value,
            min: value,
            max: value,
            rounds: vec![value],
        });
    }

    /// Something went wrong, or wasn't as it should be.
    pub(crate) fn note(&mut self, note: String) {
        eprintln!("! {note}");
        self.notes.push(note);
    }

    /// One peer's figure.
    pub(crate) fn figure(
        &self,
        part: Part,
        shape: &str,
        metric: Metric,
        peer: Kind,
    ) -> Option<&Figure> {
        self.figures.iter().find(|figure| {
            figure.part == part
                && figure.shape == shape
                && figure.metric == metric
                && figure.peer == peer
        })
    }

    /// The peers that have figures, in the order of the tables.
    pub(crate) fn peers(&self) -> Vec<Kind> {
        let has = |kind: &Kind| self.figures.iter().any(|figure| figure.peer == *kind);
        Kind::ALL.into_iter().filter(has).collect()
    }

    /// What runs have written, joined: of a figure that is there twice, the later file's counts.
    ///
    /// # Errors
    /// When a file can't be read.
    pub(crate) fn read(files: &[PathBuf]) -> anyhow::Result<Self> {
        let mut joined: Option<Self> = None;
        for file in files {
            let text = fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let next: Self = serde_json::from_str(&text)
                .with_context(|| format!("{} is not the bench's", file.display()))?;
            joined = Some(match joined {
                None => next,
                Some(first) => first.join(next),
            });
        }
        joined.context("no files")
    }

    fn join(mut self, next: Self) -> Self {
        for figure in next.figures {
            let of = (figure.part, figure.metric, figure.peer);
            self.figures
                .retain(|old| (old.part, old.metric, old.peer) != of || old.shape != figure.shape);
            self.figures.push(figure);
        }
        self.notes.extend(next.notes);
        self.versions.extend(next.versions);
        self.date = next.date;
        if self.options != next.options {
            self.options = format!("{}; {}", self.options, next.options);
        }
        self
    }

    /// Writes `results.json`, `results.md` and `results.svg` into `folder`.
    ///
    /// # Errors
    /// When they can't be written.
    pub(crate) fn write(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let json = serde_json::to_string_pretty(self).context("no JSON of the results")?;
        let table = markdown::table(self, &targets::verdicts(self));
        for (name, text) in [
            ("results.json", format!("{json}\n")),
            ("results.md", table),
            ("results.svg", svg::plot(self)),
        ] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

impl Figure {
    fn update(&mut self) {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        // It has one value at least, from its start on.
        let (low, high) = ((sorted.len() - 1) / 2, sorted.len() / 2);
        self.median = sorted[low].midpoint(sorted[high]);
        self.min = sorted[0];
        self.max = sorted[sorted.len() - 1];
    }
}

/// Prints the verdicts and where we lose; how many targets were missed.
///
/// # Errors
/// Never, today; whoever closes standard output doesn't want to read.
pub(crate) fn print(results: &Results, folder: &Path) -> anyhow::Result<usize> {
    use std::io::Write as _;
    let verdicts = targets::verdicts(results);
    let mut out = std::io::stdout();
    let _ = writeln!(out, "\n{}", markdown::verdicts(&verdicts));
    let _ = writeln!(out, "{}", markdown::losses(results));
    let _ = writeln!(out, "Written: {}/results.{{json,md,svg}}", folder.display());
    Ok(verdicts.iter().filter(|verdict| !verdict.met()).count())
}

/// A number with three digits that matter.
pub(crate) fn number(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value == 0.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Figures of this metric: shape, peer, rounds.
    pub(super) fn results(part: Part, metric: Metric, all: &[(&str, Kind, &[f64])]) -> Results {
        let mut results = Results::new(Machine::default(), BTreeMap::new());
        for (shape, peer, rounds) in all {
            for value in *rounds {
                results.add(part, shape, metric, *peer, *value);
            }
        }
        results
    }

    #[test]
    fn figures_are_medians_with_their_extremes() {
        let results = results(
            Part::Cpu,
            Metric::Cpu,
            &[
                ("a", Kind::Envoy, &[3.0, 1.0, 2.0]),
                ("a", Kind::Haproxy, &[4.0, 1.0]),
            ],
        );
        let figure = |peer| {
            let figure = results.figure(Part::Cpu, "a", Metric::Cpu, peer).unwrap();
            (figure.median, figure.min, figure.max)
        };
        assert_eq!(figure(Kind::Envoy), (2.0, 1.0, 3.0));
        assert_eq!(figure(Kind::Haproxy), (2.5, 1.0, 4.0));
    }

    #[test]
    fn runs_are_joined_and_the_later_one_counts() {
        let first = results(
            Part::Cpu,
            Metric::Cpu,
            &[("a", Kind::Envoy, &[1.0]), ("b", Kind::Envoy, &[1.0])],
        );
        let second = results(Part::Cpu, Metric::Cpu, &[("a", Kind::Envoy, &[2.0])]);
        let joined = first.join(second);
        let median = |shape| {
            joined
                .figure(Part::Cpu, shape, Metric::Cpu, Kind::Envoy)
                .unwrap()
                .median
        };
        assert_eq!((median("a"), median("b")), (2.0, 1.0));
    }

    #[test]
    fn results_survive_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let before = results(
            Part::Idle,
            Metric::Memory,
            &[("a", Kind::HaproxyTcp, &[1.5])],
        );
        before.write(folder.path()).unwrap();
        let after = Results::read(&[folder.path().join("results.json")]).unwrap();
        assert_eq!(after.figures[0].rounds, [1.5]);
        assert!(folder.path().join("results.svg").exists());
    }

    #[test]
    fn three_digits_matter() {
        assert_eq!(number(1234.5), "1234");
        assert_eq!(number(12.345), "12.3");
        assert_eq!(number(1.2345), "1.23");
        assert_eq!(number(0.012_34), "0.012");
    }
}
