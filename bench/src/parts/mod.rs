//! What is measured, one file for each subcommand.
//!
//! Rounds interleave the peers, and each round begins with another one, so that what the machine does meanwhile meets
//! all of them.

/// One sample of a closed loop, and that everything was as it should be.
mod closed;

mod handshakes;
mod idle;
mod latency;
mod scale;
mod start;

pub(crate) use latency::{HALF, PACED_SHAPE};
pub(crate) use start::SHAPE as STARTED;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    lab::{Key, Lab},
    load::h2load::Shape,
    peers::{Kind, Programs, Setting},
    report::Results,
};

/// A subcommand's measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Part {
    /// Small messages in closed loops.
    Cpu,
    /// Large messages and a long stream.
    Bulk,
    /// Open loops.
    Latency,
    /// TLS.
    Handshakes,
    /// Memory.
    Idle,
    /// From start to the first answer.
    Start,
    /// More of everything.
    Scale,
}

/// What is to be measured, and how well.
pub(crate) struct Plan {
    /// Where they are.
    pub(crate) programs: Programs,
    /// Who is compared.
    pub(crate) peers: Vec<Kind>,
    /// How often.
    pub(crate) rounds: usize,
    /// About how long a sample takes.
    pub(crate) sample: Duration,
    /// Smaller loads, fewer settings.
    pub(crate) quick: bool,
    /// Of the certificate.
    pub(crate) key: Key,
}

impl Part {
    /// All of them, in the order of the report.
    pub(crate) const ALL: [Self; 7] = [
        Self::Cpu,
        Self::Bulk,
        Self::Latency,
        Self::Handshakes,
        Self::Idle,
        Self::Start,
        Self::Scale,
    ];

    /// As on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Bulk => "bulk",
            Self::Latency => "latency",
            Self::Handshakes => "handshakes",
            Self::Idle => "idle",
            Self::Start => "start",
            Self::Scale => "scale",
        }
    }
}

impl Plan {
    /// The peers of this run, configured so.
    ///
    /// # Errors
    /// When what they need can't be had; a peer that doesn't start is noted.
    pub(crate) async fn lab(&self, setting: Setting, results: &mut Results) -> anyhow::Result<Lab> {
        self.lab_of(&self.peers, setting, results).await
    }

    /// These peers, configured so.
    ///
    /// # Errors
    /// When what they need can't be had; a peer that doesn't start is noted.
    pub(crate) async fn lab_of(
        &self,
        kinds: &[Kind],
        setting: Setting,
        results: &mut Results,
    ) -> anyhow::Result<Lab> {
        let lost = |why| results.note(why);
        Lab::start(&self.programs, kinds, setting, self.key, lost).await
    }
}

/// Measures `part`.
///
/// # Errors
/// When it can't go on; what was measured until then is in the results.
pub(crate) async fn run(part: Part, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    eprintln!("\n== {}", part.name());
    match part {
        Part::Cpu => closed::run(part, plan, &small(), results).await,
        Part::Bulk => closed::run(part, plan, &large(plan.quick), results).await,
        Part::Latency => latency::run(plan, results).await,
        Part::Handshakes => handshakes::run(plan, results).await,
        Part::Idle => idle::run(plan, results).await,
        Part::Start => start::run(plan, results).await,
        Part::Scale => scale::run(plan, results).await,
    }
}

/// The load of all parts that look at something else than the load.
pub(crate) fn usual() -> Shape {
    Shape::unary("5 B, 10×10", 10, 10, 3)
}

fn small() -> Vec<Shape> {
    let mut with_headers = Shape::unary("16 headers, 10×100", 10, 100, 3);
    with_headers.headers = headers();
    vec![
        usual(),
        Shape::unary("5 B, 100×1", 100, 1, 3),
        Shape::unary("5 B, 10×100", 10, 100, 3),
        Shape::unary("1 KiB, 50×5", 50, 5, 1 << 10),
        with_headers,
    ]
}

fn large(quick: bool) -> Vec<Shape> {
    let replies = if quick { 64 } else { 256 };
    let mut stream = Shape::unary(&format!("stream of {replies} MiB"), 1, 1, 0);
    stream.download = Some(replies);
    vec![
        Shape::unary("64 KiB, 4×4", 4, 4, 64 << 10),
        Shape::unary("1 MiB, 4×2", 4, 2, 1 << 20),
        stream,
    ]
}

/// 16 fields, 900 bytes of names and values together, one of them a bearer token.
fn headers() -> Vec<String> {
    let mut headers = vec![format!("authorization: Bearer {}", token(TOKEN))];
    for number in 0..15 {
        headers.push(format!("x-product-{number:02}: {}", token(VALUE)));
    }
    headers
}

/// Letters and digits as base64 has them, always the same.
fn token(length: usize) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut state = length as u32 | 1;
    let letters = (0..length).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        LETTERS[(state >> 26) as usize] as char
    });
    letters.collect()
}

/// `authorization: Bearer ` takes 20 of the 900 bytes, each other name 12.
const TOKEN: usize = 400;
const VALUE: usize = 20;

/// Names of all shapes of closed loops, quick or not, for whoever names them too.
#[cfg(test)]
pub(crate) fn closed_shapes() -> Vec<(Part, String)> {
    let of = |part, shapes: Vec<Shape>| shapes.into_iter().map(move |shape| (part, shape.name));
    of(Part::Cpu, small())
        .chain(of(Part::Bulk, large(true)))
        .chain(of(Part::Bulk, large(false)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_headers_have_nine_hundred_bytes() {
        let headers = headers();
        let bytes: usize = headers.iter().map(|header| header.len() - ": ".len()).sum();
        assert_eq!((headers.len(), bytes), (16, 900));
    }

    #[test]
    fn tokens_are_of_base64s_letters() {
        let token = token(1000);
        assert!(
            token
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        );
        assert_eq!(token, super::token(1000));
    }
}
