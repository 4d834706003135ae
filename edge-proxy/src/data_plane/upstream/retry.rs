//! May this RPC be attempted again? Only when it is proven that no backend processed it.
//!
//! What a failed attempt proves is its [`Outcome`]. Attempts that cost no backend any work (the connection failed, the
//! request never left) are free. Those that a backend had to refuse draw on a [`Budget`] of tokens, which grows with
//! the traffic: backends that refuse everything are asked at most 1.2 times as often, and not three times. Pure: time is
//! passed in.

use std::time::Instant;

use http2::Reason;

use crate::telemetry::labels::RetryRefusal;

/// How an attempt ended before response headers came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The connection was refused or failed.
    ConnectFailed,
    /// No connection, or no SETTINGS on it, within `connect_timeout`.
    ConnectTimeout,
    /// Its endpoint has connections, and none had room within `connect_timeout`.
    QueueTimeout,
    /// Opening the stream failed, or not a byte was written to the socket since it was opened.
    NeverSent,
    /// RST_STREAM with REFUSED_STREAM: not processed, says RFC 9113 §8.7.
    RefusedStream,
    /// The backend's GOAWAY names a lower last stream: not processed (RFC 9113 §6.8).
    AboveGoaway,
    /// Anything else after the headers left: it may have been processed.
    Other,
}

impl Outcome {
    /// Of an attempt whose stream was reset, or left behind by a GOAWAY with this reason. `unprocessed` and
    /// `headers_left` are the engine's: what the backend has proven, and whether it can have seen anything at all.
    pub fn of_reset(reason: Reason, unprocessed: bool, headers_left: bool) -> Self {
        match reason {
            _ if !headers_left => Self::NeverSent,
            Reason::REFUSED_STREAM if unprocessed => Self::RefusedStream,
            _ if unprocessed => Self::AboveGoaway,
            _ => Self::Other,
        }
    }
}

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Again, at nobody's cost.
    Free,
    /// Again; a token was taken.
    Paid,
    /// No, although it would be safe: the client is told of the failure.
    Refused(RetryRefusal),
    /// No: the client is told of the failure.
    No,
}

/// Tokens for attempts that a backend had to refuse: 0.2 for each RPC, 3 for each second. One per cluster and worker;
/// of the 3, each worker has its part.
#[derive(Clone, Debug)]
pub struct Budget {
    /// Millionths of a token, so that sums are exact but for what a division by the workers leaves.
    microtokens: u64,
    /// What a millisecond earns.
    per_millisecond: u64,
    /// Until when the time's share has been added.
    since: Instant,
}

impl Budget {
    /// One of `workers`. Full, so that a rollout in the first second goes as well as any other.
    pub fn new(now: Instant, workers: usize) -> Self {
        // As many workers as fit no u64 earn nothing, which is right.
        let workers = u64::try_from(workers).unwrap_or(u64::MAX).max(1);
        Self {
            microtokens: CAP,
            per_millisecond: PER_MILLISECOND / workers,
            since: now,
        }
    }

    /// Without a token, and none comes with time before `since`.
    #[cfg(test)]
    pub(crate) fn empty(since: Instant) -> Self {
        Self {
            microtokens: 0,
            ..Self::new(since, 1)
        }
    }

    /// An RPC began.
    pub fn deposit(&mut self) {
        self.microtokens = (self.microtokens + PER_RPC).min(CAP);
    }

    fn withdraw(&mut self, now: Instant) -> bool {
        // Whole milliseconds only: `since` keeps the rest, so that many small steps add up to the same.
        let elapsed = now.saturating_duration_since(self.since);
        let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        if milliseconds > 0 {
            let earned = milliseconds.saturating_mul(self.per_millisecond);
            self.microtokens = self.microtokens.saturating_add(earned).min(CAP);
            self.since = now - (elapsed - std::time::Duration::from_millis(milliseconds));
        }
        match self.microtokens.checked_sub(TOKEN) {
            Some(left) => {
                self.microtokens = left;
                true
            }
            None => false,
        }
    }
}

/// Judges a failed attempt, the `attempts_made`th of its RPC. `body_replayable`: what of the request's body was sent is
/// still kept. A token is taken from `budget` only if the answer is [`Retry::Paid`].
pub fn decide(
    outcome: Outcome,
    attempts_made: u32,
    body_replayable: bool,
    budget: &mut Budget,
    now: Instant,
) -> Retry {
    if attempts_made >= MAX_ATTEMPTS {
        return Retry::No;
    }
    match outcome {
        Outcome::Other => Retry::No,
        _ if !body_replayable => Retry::Refused(RetryRefusal::Body),
        Outcome::ConnectFailed
        | Outcome::ConnectTimeout
        | Outcome::QueueTimeout
        | Outcome::NeverSent => Retry::Free,
        Outcome::RefusedStream | Outcome::AboveGoaway => {
            if budget.withdraw(now) {
                Retry::Paid
            } else {
                Retry::Refused(RetryRefusal::Budget)
            }
        }
    }
}

/// An RPC's first attempt and two more.
pub const MAX_ATTEMPTS: u32 = 3;

/// One token, in millionths.
const TOKEN: u64 = 1_000_000;
/// 0.2 tokens.
const PER_RPC: u64 = 200_000;
/// 3 tokens a second, of all workers together.
const PER_MILLISECOND: u64 = 3000;
/// 100 tokens: as many as streams that one connection's GOAWAY can leave unprocessed at once.
const CAP: u64 = 100 * TOKEN;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FREE: [Outcome; 4] = [
        Outcome::ConnectFailed,
        Outcome::ConnectTimeout,
        Outcome::QueueTimeout,
        Outcome::NeverSent,
    ];
    const PAID: [Outcome; 2] = [Outcome::RefusedStream, Outcome::AboveGoaway];
    const NO_TOKEN: Retry = Retry::Refused(RetryRefusal::Budget);

    #[test]
    fn only_what_no_backend_processed_is_attempted_again() {
        let now = Instant::now();
        let mut budget = Budget::new(now, 1);
        for outcome in FREE {
            assert_eq!(
                decide(outcome, 1, true, &mut budget, now),
                Retry::Free,
                "{outcome:?}"
            );
        }
        for outcome in PAID {
            assert_eq!(
                decide(outcome, 1, true, &mut budget, now),
                Retry::Paid,
                "{outcome:?}"
            );
        }
        assert_eq!(decide(Outcome::Other, 1, true, &mut budget, now), Retry::No);
    }

    #[test]
    fn a_reset_proves_what_the_engine_knows() {
        let of = Outcome::of_reset;
        for reason in [Reason::NO_ERROR, Reason::REFUSED_STREAM, Reason::CANCEL] {
            for unprocessed in [true, false] {
                assert_eq!(of(reason, unprocessed, false), Outcome::NeverSent);
            }
            assert_eq!(of(reason, false, true), Outcome::Other);
        }
        assert_eq!(
            of(Reason::REFUSED_STREAM, true, true),
            Outcome::RefusedStream
        );
        assert_eq!(of(Reason::NO_ERROR, true, true), Outcome::AboveGoaway);
        assert_eq!(
            of(Reason::ENHANCE_YOUR_CALM, true, true),
            Outcome::AboveGoaway
        );
    }

    #[test]
    fn what_cost_no_backend_anything_is_free() {
        let now = Instant::now();
        for outcome in FREE {
            let mut budget = Budget::empty(now);
            assert_eq!(decide(outcome, 1, true, &mut budget, now), Retry::Free);
            budget = Budget::new(now, 1);
            decide(outcome, 1, true, &mut budget, now);
            assert_eq!(budget.microtokens, CAP, "{outcome:?} takes no token");
        }
        for outcome in PAID {
            let mut budget = Budget::empty(now);
            assert_eq!(decide(outcome, 1, true, &mut budget, now), NO_TOKEN);
        }
    }

    #[test]
    fn at_most_twice_and_only_with_the_whole_body() {
        let now = Instant::now();
        for outcome in FREE.into_iter().chain(PAID).chain([Outcome::Other]) {
            let mut budget = Budget::new(now, 1);
            let full = budget.microtokens;
            assert_eq!(decide(outcome, 3, true, &mut budget, now), Retry::No);
            let without_body = match outcome {
                Outcome::Other => Retry::No,
                _ => Retry::Refused(RetryRefusal::Body),
            };
            assert_eq!(decide(outcome, 1, false, &mut budget, now), without_body);
            assert_eq!(decide(outcome, 3, false, &mut budget, now), Retry::No);
            assert_eq!(budget.microtokens, full, "a refusal costs nothing");
        }
        assert_eq!(
            decide(FREE[0], 2, true, &mut Budget::empty(now), now),
            Retry::Free
        );
        assert_eq!(
            decide(PAID[0], 2, true, &mut Budget::new(now, 1), now),
            Retry::Paid
        );
    }

    #[test]
    fn five_rpcs_pay_for_one_attempt() {
        let now = Instant::now();
        let mut budget = Budget::empty(now);
        let mut again = || decide(Outcome::RefusedStream, 1, true, &mut budget, now);
        assert_eq!(again(), NO_TOKEN);
        let mut budget = Budget::empty(now);
        for _ in 0..4 {
            budget.deposit();
        }
        assert_eq!(
            decide(Outcome::RefusedStream, 1, true, &mut budget, now),
            NO_TOKEN
        );
        budget.deposit();
        assert_eq!(
            decide(Outcome::RefusedStream, 1, true, &mut budget, now),
            Retry::Paid
        );
        assert_eq!(
            decide(Outcome::RefusedStream, 1, true, &mut budget, now),
            NO_TOKEN
        );
        assert_eq!(
            decide(Outcome::ConnectFailed, 1, true, &mut budget, now),
            Retry::Free
        );
    }

    #[test]
    fn a_second_pays_for_three_however_finely_it_is_cut() {
        let start = Instant::now();
        for step in [
            Duration::from_micros(700),
            Duration::from_millis(7),
            Duration::from_secs(1),
        ] {
            let mut budget = Budget::empty(start);
            let mut paid = 0;
            let mut now = start;
            while now - start <= Duration::from_secs(1) {
                if decide(Outcome::AboveGoaway, 1, true, &mut budget, now) == Retry::Paid {
                    paid += 1;
                }
                now += step;
            }
            while decide(Outcome::AboveGoaway, 1, true, &mut budget, now) == Retry::Paid {
                paid += 1;
            }
            // `now` is up to one step past the second.
            let earned = (now - start).as_millis() as u64 * 3 / 1000;
            assert_eq!(paid, earned, "{step:?}");
        }
    }

    #[test]
    fn workers_share_what_time_pays_for() {
        let start = Instant::now();
        let later = start + Duration::from_secs(20);
        let again = |budget: &mut Budget, now| decide(Outcome::AboveGoaway, 1, true, budget, now);
        let mut paid = 0;
        for _ in 0..4 {
            let mut budget = Budget::new(start, 4);
            while again(&mut budget, start) == Retry::Paid {}
            while again(&mut budget, later) == Retry::Paid {
                paid += 1;
            }
        }
        assert_eq!(paid, 60);
    }

    #[test]
    fn the_budget_is_capped_and_time_may_stand_still_or_be_long() {
        let start = Instant::now();
        let mut budget = Budget::new(start, 1);
        for _ in 0..1000 {
            budget.deposit();
        }
        let later = start + Duration::from_secs(86_400 * 365);
        let mut paid = 0;
        while decide(Outcome::RefusedStream, 1, true, &mut budget, later) == Retry::Paid {
            paid += 1;
        }
        assert_eq!(paid, 100);
        assert_eq!(
            decide(Outcome::RefusedStream, 1, true, &mut budget, start),
            NO_TOKEN
        );
    }
}
