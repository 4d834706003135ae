//! Flood budgets, pure: what a peer may cost us without bringing useful traffic.
//!
//! Every frame that makes work and carries nothing draws on a token bucket. Buckets fill with
//! time, so that idle connections may PING; and with useful traffic (payload, streams opened,
//! RPCs ended), so that honest load never meets them however fast it is: clients that send a PING
//! per round trip, a WINDOW_UPDATE per message, or a million messages of 20 bytes earn more than
//! they spend. An empty bucket ends the connection with ENHANCE_YOUR_CALM (RFC 9113 §10.5).

use std::time::{Duration, Instant};

use crate::error::{ConnectionError, Limit, Reason};

/// What a connection's peer may still cost.
#[derive(Debug)]
pub(crate) struct Limits {
    /// PING, SETTINGS, PRIORITY, unknown frames, 1xx heads.
    control: Bucket<CONTROL, CONTROL_PER_SECOND>,
    /// WINDOW_UPDATE.
    updates: Bucket<UPDATES, UPDATES_PER_SECOND>,
    /// DATA frames without END_STREAM, in bytes: small ones cost more than they bring.
    data: Bucket<DATA, DATA_PER_SECOND>,
    /// Stream errors that the peer makes us answer with RST_STREAM.
    provoked: Tokens<PROVOKED>,
    /// HEADERS and RST_STREAM for streams that we reset.
    late: Tokens<LATE>,
    resets: Resets,
}

impl Limits {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            control: Bucket::new(now),
            updates: Bucket::new(now),
            data: Bucket::new(now),
            provoked: Tokens(PROVOKED),
            late: Tokens(LATE),
            resets: Resets::from(now),
        }
    }

    /// PING, PRIORITY or an unknown frame came, or an acknowledgement that nobody asked for.
    #[inline]
    pub(crate) fn control(&mut self, now: Instant) -> Verdict {
        self.control
            .draw(1, now, "flood of control frames (RFC 9113 §10.5)")
    }

    /// SETTINGS came: dearer, since they touch every stream.
    pub(crate) fn settings(&mut self, now: Instant) -> Verdict {
        self.control
            .draw(SETTINGS_COST, now, "flood of SETTINGS (RFC 9113 §10.5)")
    }

    /// WINDOW_UPDATE came.
    #[inline]
    pub(crate) fn update(&mut self, now: Instant) -> Verdict {
        self.updates
            .draw(1, now, "flood of WINDOW_UPDATE (RFC 9113 §10.5)")
    }

    /// A DATA frame of `payload` bytes came, padding not counted.
    #[inline]
    pub(crate) fn data(&mut self, payload: usize, end_stream: bool, now: Instant) -> Verdict {
        if end_stream || payload >= DATA_COST {
            self.data.earn(payload as u32);
            self.control.earn(1);
            return Ok(());
        }
        let rule = "flood of empty or tiny DATA (RFC 9113 §10.5)";
        self.data.draw((DATA_COST - payload) as u32, now, rule)
    }

    /// We sent a DATA frame of `payload` bytes, `all` that there was for its stream or not: the peer may answer with updates
    /// and PINGs, as grpc-go does for each frame, and with a frame of its own, however small: what a backend echoes are all
    /// clients' bytes, and each of them has paid for its own.
    #[inline]
    pub(crate) fn data_sent(&mut self, payload: usize, all: bool) {
        // Small frames that a window has cut earn nothing: a peer that gives a byte of window at a time must not pay
        // for the next WINDOW_UPDATE with the frame that the last one caused.
        if all || payload >= EARNING_PAYLOAD {
            self.updates.earn(2 + (payload / 64) as u32);
            self.control.earn(1);
            self.data.earn(DATA_COST as u32);
        }
    }

    /// The peer opened a stream (server role), or answered one (client role).
    pub(crate) fn stream_opened(&mut self, now: Instant) {
        self.updates.earn(2);
        self.control.earn(2);
        self.resets.roll(now);
        self.resets.opened += 1;
    }

    /// The owner refused a stream that the peer opened: it had no chance to be reset, and hides nobody's resets.
    pub(crate) fn stream_refused(&mut self) {
        self.resets.opened = self.resets.opened.saturating_sub(1);
    }

    /// A stream ended with both halves whole.
    pub(crate) fn stream_completed(&mut self) {
        self.provoked.earn(1);
        self.data.earn(64);
    }

    /// We reset a stream of our own accord: its head, trailers and RST_STREAM may still come, and the latter when it is
    /// forgotten who reset it.
    pub(crate) fn stream_cancelled(&mut self) {
        self.late.earn(4);
        self.control.earn(1);
    }

    /// HEADERS or RST_STREAM came for a stream that we reset.
    pub(crate) fn late(&mut self) -> Verdict {
        self.late.draw(
            1,
            "flood of frames on streams that were reset (RFC 9113 §5.1)",
        )
    }

    /// The peer broke a stream rule, and we answer with RST_STREAM ("MadeYouReset",
    /// CVE-2025-8671).
    pub(crate) fn provoked(&mut self) -> Verdict {
        self.provoked
            .draw(1, "too many stream errors (RFC 9113 §10.5)")
    }

    /// The peer reset a stream. `early`: before a byte of our response ("rapid reset",
    /// CVE-2023-44487).
    pub(crate) fn reset(&mut self, early: bool, now: Instant) -> Verdict {
        self.resets.roll(now);
        if !early {
            return Ok(());
        }
        self.resets.early += 1;
        let r = &self.resets;
        if r.opened >= RAPID_STREAMS && r.early > r.opened / 2 {
            return Err(calm(
                Limit::RapidReset,
                "rapid reset: most new streams were reset (RFC 9113 §10.5)",
            ));
        }
        Ok(())
    }
}

/// `Err`: the connection ends.
pub(crate) type Verdict = Result<(), ConnectionError>;

pub(crate) fn calm(limit: Limit, rule: &'static str) -> ConnectionError {
    ConnectionError {
        reason: Reason::ENHANCE_YOUR_CALM,
        rule,
        limit: Some(limit),
    }
}

/// Tokens that fill with earnings, up to `CAP`.
#[derive(Debug)]
struct Tokens<const CAP: u32>(u32);

impl<const CAP: u32> Tokens<CAP> {
    #[inline]
    fn draw(&mut self, cost: u32, rule: &'static str) -> Verdict {
        match self.0.checked_sub(cost) {
            Some(left) => {
                self.0 = left;
                Ok(())
            }
            None => Err(calm(Limit::Flood, rule)),
        }
    }

    #[inline]
    fn earn(&mut self, tokens: u32) {
        self.0 = self.0.saturating_add(tokens).min(CAP);
    }
}

/// Tokens that fill with time too.
#[derive(Debug)]
struct Bucket<const CAP: u32, const PER_SECOND: u32> {
    tokens: Tokens<CAP>,
    /// Up to where time has been paid out.
    paid: Instant,
}

impl<const CAP: u32, const PER_SECOND: u32> Bucket<CAP, PER_SECOND> {
    fn new(now: Instant) -> Self {
        Self {
            tokens: Tokens(CAP),
            paid: now,
        }
    }

    #[inline]
    fn draw(&mut self, cost: u32, now: Instant, rule: &'static str) -> Verdict {
        if self.tokens.0 < cost {
            // Time is looked at only when it matters: the hot path is one comparison.
            self.refill(now);
        }
        self.tokens.draw(cost, rule)
    }

    fn refill(&mut self, now: Instant) {
        let step = Duration::from_secs(1) / PER_SECOND;
        let passed = now.saturating_duration_since(self.paid);
        let earned = (passed.as_nanos() / step.as_nanos()).min(u128::from(CAP)) as u32;
        if earned == CAP {
            self.paid = now;
        } else {
            // The remainder stays owed, so that frequent looks lose nothing.
            self.paid += step * earned;
        }
        self.earn(earned);
    }

    #[inline]
    fn earn(&mut self, tokens: u32) {
        self.tokens.earn(tokens);
    }
}

/// Streams opened and reset before a response, second by second.
#[derive(Debug)]
struct Resets {
    /// When the second ends.
    until: Instant,
    opened: u32,
    early: u32,
}

impl Resets {
    fn from(now: Instant) -> Self {
        Self {
            until: now + Duration::from_secs(1),
            opened: 0,
            early: 0,
        }
    }

    #[inline]
    fn roll(&mut self, now: Instant) {
        if now >= self.until {
            *self = Self::from(now);
        }
    }
}

/// PING and the like: grpc clients probe the bandwidth with one per round trip, browsers send
/// a handful of PRIORITY per page.
const CONTROL: u32 = 1000;
const CONTROL_PER_SECOND: u32 = 100;

/// A hundred SETTINGS in a row, then ten a second.
const SETTINGS_COST: u32 = 10;

/// WINDOW_UPDATE beyond two per DATA frame that we sent.
const UPDATES: u32 = 4000;
const UPDATES_PER_SECOND: u32 = 500;

/// A DATA frame costs as many bytes as the smallest gRPC message has (its prefix), and brings
/// its payload: only frames below that size ever draw. A thousand empty ones in a row.
const DATA_COST: usize = 5;
const DATA: u32 = 1000 * DATA_COST as u32;
const DATA_PER_SECOND: u32 = 100 * DATA_COST as u32;

/// Frames below this, with more behind them, earn the peer no WINDOW_UPDATE.
const EARNING_PAYLOAD: usize = 16;

/// The 1025th stream error that the peer provokes without completing streams in between.
const PROVOKED: u32 = 1024;

/// Late frames beyond the ones of streams that we have reset.
const LATE: u32 = 1000;

/// Streams within a second before the share of resets among them is looked at.
const RAPID_STREAMS: u32 = 500;

#[cfg(test)]
mod tests {
    use super::*;

    fn many(n: u32, mut f: impl FnMut() -> Verdict) -> u32 {
        (0..n).find(|_| f().is_err()).unwrap_or(n)
    }

    #[test]
    fn pings_have_a_burst_and_a_rate() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        assert_eq!(many(5000, || l.control(t)), CONTROL);
        let t = t + Duration::from_millis(500);
        assert_eq!(many(5000, || l.control(t)), CONTROL_PER_SECOND / 2);
        let t = t + Duration::from_secs(3600);
        assert_eq!(
            many(5000, || l.control(t)),
            CONTROL,
            "never more than the burst"
        );
    }

    #[test]
    fn settings_are_dearer_than_pings() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        assert_eq!(many(5000, || l.settings(t)), CONTROL / SETTINGS_COST);
    }

    #[test]
    fn a_ping_per_data_frame_is_honest() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        for _ in 0..100_000 {
            l.data_sent(16_384, false);
            assert!(l.control(t).is_ok() && l.update(t).is_ok() && l.update(t).is_ok());
        }
    }

    #[test]
    fn so_is_one_per_message_however_small() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        for _ in 0..100_000 {
            l.data_sent(7, true);
            assert!(l.control(t).is_ok() && l.update(t).is_ok());
        }
    }

    #[test]
    fn window_updates_by_the_byte_are_a_flood() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        let n = many(100_000, || {
            l.data_sent(1, false);
            l.update(t)
        });
        assert_eq!(n, UPDATES);
    }

    #[test]
    fn empty_and_tiny_data_is_a_flood_and_small_messages_are_not() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        assert_eq!(many(5000, || l.data(0, false, t)), 1000);
        let mut l = Limits::new(t);
        assert_eq!(many(5000, || l.data(1, false, t)), 1250);
        let mut l = Limits::new(t);
        assert_eq!(many(1_000_000, || l.data(25, false, t)), 1_000_000);
        assert_eq!(
            many(1_000_000, || l.data(5, false, t)),
            1_000_000,
            "empty gRPC messages"
        );
    }

    #[test]
    fn an_echo_of_tiny_data_is_no_flood() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        for _ in 0..100_000 {
            l.data_sent(1, true);
            assert!(l.data(1, false, t).is_ok());
        }
        let saved_up = many(5000, || l.data(0, false, t));
        assert!(saved_up <= 1000, "{saved_up}");
    }

    #[test]
    fn the_1025th_provoked_stream_error_ends_it_unless_rpcs_complete() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        assert_eq!(many(5000, || l.provoked()), 1024);
        let mut l = Limits::new(t);
        let n = many(5000, || {
            l.stream_completed();
            l.provoked()
        });
        assert_eq!(n, 5000);
    }

    #[test]
    fn rapid_reset_needs_500_streams_and_more_than_half_of_them_within_a_second() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        let n = many(5000, || {
            l.stream_opened(t);
            l.reset(true, t)
        });
        assert_eq!(n, RAPID_STREAMS - 1, "the 500th stream's reset is the one");

        let mut l = Limits::new(t);
        let n = many(5000, || {
            l.stream_opened(t);
            l.stream_opened(t);
            l.reset(true, t)
        });
        assert_eq!(n, 5000, "half of them is not more than half");

        let mut l = Limits::new(t);
        let mut now = t;
        let n = many(5000, || {
            now += Duration::from_millis(3);
            l.stream_opened(now);
            l.reset(true, now)
        });
        assert_eq!(n, 5000, "333 a second");

        let mut l = Limits::new(t);
        let n = many(5000, || {
            l.stream_opened(t);
            l.reset(false, t)
        });
        assert_eq!(n, 5000, "resets after a response began are ordinary");
    }

    #[test]
    fn refused_streams_do_not_hide_that_all_others_are_reset() {
        let now = Instant::now();
        let mut l = Limits::new(now);
        let n = many(5000, || {
            for _ in 0..9 {
                l.stream_opened(now);
                l.stream_refused();
            }
            l.stream_opened(now);
            l.reset(true, now)
        });
        assert_eq!(n, RAPID_STREAMS - 1);
    }

    #[test]
    fn late_headers_are_paid_by_our_own_resets() {
        let t = Instant::now();
        let mut l = Limits::new(t);
        for _ in 0..10_000 {
            l.stream_cancelled();
            assert!(l.late().is_ok() && l.late().is_ok());
        }
        assert_eq!(many(5000, || l.late()), LATE - 2);
    }
}
