//! The engine against itself: random calls, random windows, the bytes cut anywhere, its memory given back at any moment.

use std::time::{Duration, Instant};

use http2::{Config, Connection, Role};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::owners::{Caller, Echo, Owner};

/// One end and the bytes under way to it.
struct End<O> {
    engine: Connection,
    owner: O,
    inbox: Vec<u8>,
}

impl<O: Owner> End<O> {
    fn new(role: Role, config: Config, now: Instant, owner: O) -> Self {
        Self {
            engine: Connection::new(role, config, now),
            owner,
            inbox: Vec::new(),
        }
    }

    /// Reads some of what is under way, then writes some to `inbox`.
    fn turn(&mut self, rng: &mut StdRng, now: Instant, inbox: &mut Vec<u8>) {
        let n = some(rng, self.inbox.len());
        let mut input = &self.inbox[..n];
        while let Some(event) = self
            .engine
            .receive(&mut input, now)
            .expect("an honest peer")
        {
            self.owner.event(&mut self.engine, event, now);
        }
        assert!(input.is_empty());
        self.inbox.drain(..n);
        self.owner.turn(&mut self.engine, now);
        if rng.random_ratio(1, 4) {
            self.engine.shrink();
        }
        let n = some(rng, self.engine.output().len());
        inbox.extend_from_slice(&self.engine.output()[..n]);
        self.engine.consume(n);
    }
}

impl End<Caller> {
    /// Who has written everything flushes again only while something is said to wait: that has to be enough.
    fn check_that_nothing_is_left(&mut self, now: Instant) {
        let engine = &mut self.engine;
        let waiting = engine.pending_bytes() > 0 || engine.opens_waiting();
        if engine.output().is_empty() && !waiting {
            engine.flush(now);
            assert!(engine.output().is_empty(), "nobody would have asked for it");
        }
    }
}

/// Some of `n` bytes: often all, sometimes one or none.
fn some(rng: &mut StdRng, n: usize) -> usize {
    match rng.random_range(0..8) {
        0 => 0,
        1 => n.min(1),
        2 => n.min(rng.random_range(0..40)),
        3 | 4 => rng.random_range(0..=n),
        _ => n,
    }
}

fn config(rng: &mut StdRng) -> Config {
    Config {
        max_concurrent_streams: rng.random_range(1..20),
        stream_window: [100, 1000, 16_384, 65_535, 1 << 18][rng.random_range(0..5)],
        connection_window: [1, 80_000, 1 << 20][rng.random_range(0..3)],
        output_limit: [1, 5000, 1 << 18][rng.random_range(0..3)],
        header_table: [4096, 8192][rng.random_range(0..2)],
        ..Config::default()
    }
}

fn run(seed: u64, calls: usize) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut now = Instant::now();
    let (c, s) = (config(&mut rng), config(&mut rng));
    let caller = Caller::new(StdRng::seed_from_u64(seed + 1), calls);
    let mut client = End::new(Role::Client, c, now, caller);
    let mut server = End::new(Role::Server, s, now, Echo::default());
    let (mut turns, mut quiet) = (0, 0);
    // Ends when nothing has happened for a while.
    while quiet < 50 {
        now += Duration::from_millis(1);
        turns += 1;
        assert!(turns < 3_000_000, "seed {seed} goes nowhere");
        client.turn(&mut rng, now, &mut server.inbox);
        client.check_that_nothing_is_left(now);
        server.turn(&mut rng, now, &mut client.inbox);
        let over = client.owner.done(&client.engine)
            && server.owner.done(&server.engine)
            && [&client.inbox, &server.inbox]
                .iter()
                .all(|inbox| inbox.is_empty())
            && client.engine.output().is_empty()
            && server.engine.output().is_empty();
        quiet = if over { quiet + 1 } else { 0 };
    }
    for engine in [&client.engine, &server.engine] {
        assert_eq!(
            (engine.stream_count(), engine.pending_bytes()),
            (0, 0),
            "seed {seed}"
        );
        assert!(engine.oldest_blocked(now).is_none());
        assert!(engine.settings_unacked_since().is_none() && engine.header_block_since().is_none());
    }
    client.owner.whole
}

#[test]
fn bytes_come_back_as_they_went() {
    let whole: usize = (0..60).map(|seed| run(seed, 30)).sum();
    assert!(whole > 60 * 10, "{whole} echoes");
}

/// For longer hunts: `SEEDS=1000 cargo test -p http2 --release -- --ignored`.
#[test]
#[ignore = "a hunt, not a check"]
fn many_seeds() {
    let seeds = std::env::var("SEEDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1000);
    for seed in 1000..1000 + seeds {
        run(seed, 40);
    }
}
