//! What a seed decides before a run: each peer's limits, and each RPC.

use std::time::Duration;

use http2::Config;
use rand::{RngExt as _, rngs::SmallRng};

use super::world::{Answer, Plan};

/// A peer's limits.
pub(super) fn engine(random: &mut SmallRng) -> Config {
    Config {
        max_concurrent_streams: [100, 100, 30, 7][random.random_range(0..4)],
        stream_window: [65_535, 65_535, 5_000, 1 << 20][random.random_range(0..4)],
        connection_window: [1 << 20, 65_535][random.random_range(0..2)],
        max_header_list: 64 * 1024,
        max_header_list_hard: 64 * 1024,
        output_limit: [256 * 1024, 2_000][random.random_range(0..2)],
        ..Config::default()
    }
}

pub(super) fn plan(random: &mut SmallRng, clients: usize, span: Duration) -> Plan {
    let answer = match random.random_range(0..20) {
        0..=8 => Answer::Unary,
        9..=14 => Answer::Stream,
        15 => Answer::Early,
        16 => Answer::Hang,
        17 => Answer::Status(5),
        18 => Answer::ResetBefore,
        _ => Answer::ResetAfter,
    };
    let milliseconds =
        |random: &mut SmallRng, most: u64| Duration::from_millis(random.random_range(0..most));
    let streams = answer != Answer::Unary || random.random_bool(0.2);
    let lengths = |random: &mut SmallRng| -> Vec<usize> {
        let count = if streams {
            random.random_range(0..8)
        } else {
            1
        };
        let largest = [20, 200, 200, 5_000, 30_000, 120_000][random.random_range(0..6)];
        (0..count)
            .map(|_| random.random_range(0..=largest))
            .collect()
    };
    let (request, response) = (lengths(random), lengths(random));
    let slow = random.random_bool(0.1);
    let mut cancel = random
        .random_bool(0.15)
        .then(|| milliseconds(random, 3_000));
    let deadline = random
        .random_bool(0.3)
        .then(|| Duration::from_millis(random.random_range(1..10_000)));
    if answer == Answer::Hang && deadline.is_none() && cancel.is_none() {
        cancel = Some(milliseconds(random, 5_000));
    }
    let gap = [0, 0, 50, 800][random.random_range(0..4)];
    Plan {
        client: random.random_range(0..clients),
        at: span.mul_f64(random.random()),
        request,
        response,
        request_gap: Duration::from_millis(gap),
        response_gap: Duration::from_millis([0, 0, 50, 800][random.random_range(0..4)]),
        backend_reads: Duration::from_millis(if slow { random.random_range(0..300) } else { 0 }),
        client_reads: Duration::from_millis(if slow { random.random_range(0..300) } else { 0 }),
        answer,
        refusals: [0, 0, 0, 0, 0, 0, 0, 1, 2, 4][random.random_range(0..10)],
        cancel,
        deadline,
    }
}
