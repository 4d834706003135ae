//! Who waits for a backend's credit, and what follows: new streams go elsewhere, and of a window that is used up for others
//! the largest part is taken back.
//!
//! Looked at each second at most, at the end of a turn, and only while bytes wait. A stream's own window stops nobody
//! else, so its connection is only the last one to be used; the connection's window, and its socket, stop all.
//! Some servers (hyper's default) give all uploads of a connection no more window than one of them may take.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use http2::{Blocked, BlockedBy};

use super::Upstream;
use crate::{
    data_plane::{
        rpc::{self, Key},
        worker::Worker,
    },
    telemetry::metrics::Limit,
};

/// Who has waited for a backend's credit for [`CONGESTED_AFTER`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::data_plane::upstream) enum Congestion {
    None,
    /// A stream, for its own window: new streams go elsewhere, if there is an elsewhere.
    Stream,
    /// All of them: no new streams.
    Connection,
}

impl Upstream {
    /// Notes since when the window is used up, and looks at least each [`CONGESTED_AFTER`] who has waited for long: at the
    /// end of a turn, when all was read and written that could be, so that a worker that got no processor for a while
    /// takes that for nobody's fault.
    pub(super) fn watch_credit(&self, worker: &Rc<Worker>, now: Instant) {
        let mut look = self.look.replace(false);
        let engine = self.link.engine();
        let waiting = engine.pending_bytes() > 0;
        let shut = self.congestion.get() == Congestion::Connection;
        if waiting || shut {
            let windows = engine.windows();
            let before = self.used_up.get();
            let same = before.filter(|(_, credits)| *credits == windows.credits);
            let used_up = same.unwrap_or((now, windows.credits));
            self.used_up.set((windows.send == 0).then_some(used_up));
            // There is some again: for those too that wait for a connection.
            look |= shut && windows.send > 0 && self.link.write_blocked().is_none();
        }
        drop(engine);
        if waiting {
            self.link.check_by(now + CONGESTED_AFTER);
        }
        if look && let Some(at) = self.note_congestion(worker, now) {
            self.link.check_by(at);
        }
    }

    /// Notes whether a stream has waited too long for credit; names the moment when that would next be so.
    fn note_congestion(&self, worker: &Rc<Worker>, now: Instant) -> Option<Instant> {
        let (some, shared) = self.waiting_since(now);
        // Slow readers are legitimate: as long a time as clients have to take what they asked for.
        let stall = || worker.with_snapshot(|now| now.listener.timeouts.stream_window_stall);
        if shared.is_some_and(|since| now >= since + stall()) {
            self.free_window(worker, now);
        }
        let is_long = |since: Option<Instant>| since.is_some_and(|at| now >= at + CONGESTED_AFTER);
        let congestion = match (is_long(some), is_long(shared)) {
            (_, true) => Congestion::Connection,
            (true, false) => Congestion::Stream,
            (false, false) => Congestion::None,
        };
        if self.congestion.replace(congestion) > congestion {
            self.made_room.set(true);
        }
        let due = |since: Option<Instant>| {
            let since = if is_long(since) { Some(now) } else { since };
            since.map(|since| since + CONGESTED_AFTER)
        };
        [due(some), due(shared)].into_iter().flatten().min()
    }

    /// If the window is used up and others wait for it than the stream that holds most of it, that one ends: one at a
    /// time, since what it held may be enough.
    fn free_window(&self, worker: &Rc<Worker>, now: Instant) {
        let engine = self.link.engine();
        // What the socket doesn't take, no reset gives back.
        if engine.windows().send > 0 || self.link.write_blocked().is_some() {
            return;
        }
        let Some(most) = engine.most_unread() else {
            return;
        };
        let mut blocked = engine.blocked_streams();
        let is_other = |b: Blocked| {
            b.by == BlockedBy::ConnectionWindow
                && b.stream != most.stream
                && now >= b.since + CONGESTED_AFTER
        };
        let wanted = blocked.any(is_other) || self.pool.lacks_room();
        drop(blocked);
        drop(engine);
        if wanted {
            let key = Key::from_engine(most.key);
            rpc::shed_one(worker, key, Limit::UpstreamWindow, now);
        }
    }

    /// Since when some stream's bytes have waited for credit, and since when for what all streams share: the connection's
    /// window, or the socket. A stream that waits for its own window waits for those too, as long as they are used up.
    fn waiting_since(&self, now: Instant) -> (Option<Instant>, Option<Instant>) {
        let engine = self.link.engine();
        let Some(some) = engine.oldest_blocked(now) else {
            return (None, None);
        };
        let used_up = self.used_up.get().map(|(since, _)| since);
        let none_left = [used_up, self.link.write_blocked()];
        let none_left = none_left.into_iter().flatten().min();
        let shared = engine
            .blocked_streams()
            .filter(|b| b.since < now)
            .filter_map(|b| match b.by {
                BlockedBy::StreamWindow => Some(b.since.max(none_left?)),
                BlockedBy::ConnectionWindow | BlockedBy::Output => Some(b.since),
            })
            .min();
        (Some(some.since), shared)
    }
}

/// A stream without credit for this long marks its connection congested.
const CONGESTED_AFTER: Duration = Duration::from_secs(1);
