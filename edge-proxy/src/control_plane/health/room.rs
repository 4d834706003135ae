//! How many checks are under way at a time. Pure.
//!
//! A check costs this thread, and most at its beginning: a connection, perhaps, and a request. If all endpoints of a large
//! cluster were asked at once, each answer would be read after the others' requests, and on a busy machine that is too
//! late: healthy endpoints time out. So [`AT_A_TIME`] checks of the process have a place, and the next begins when one
//! of them ends: checks begin as fast as the machine can do them, and while there are fewer endpoints none waits.
//!
//! An endpoint that hangs would keep its place for the whole time-out, and [`AT_A_TIME`] of them everybody's. But who waits
//! costs nothing: after a quarter of its time-out, or [`LONGEST`], a check's place is another's, and it goes on without. So
//! 256 checks a second begin, though all endpoints hang. If that is too few for their number and interval, checks are
//! late, those of all endpoints alike: clusters take turns, and in each the one that has waited longest is next. Who
//! shares the process with such a cluster waits for one place.
//!
//! What is given up for that: nobody knows whether a check waits for its backend or for this thread. Where each takes more than
//! 4 ms of the thread, places are lost by checks that have had no turn yet, and more begin than can end in time; but such a
//! machine can't check more than 250 endpoints a second in any order. Nor are sockets bounded: with a time-out of 1 s,
//! 256 checks may wait at a time, with a longer one more.
//!
//! Endpoints that come together are checked in one row then, and would be at each interval. In a cluster that has more
//! than there is room for, the next check after the first comes at a random part of the interval instead, once for each.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

/// Who has a place.
#[derive(Debug, Default)]
pub(crate) struct Room {
    places: BTreeSet<Place>,
    taken: u64,
}

/// A place, until it is left or lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    until: Instant,
    number: u64,
}

impl Room {
    /// Whether another check may begin.
    pub(crate) fn is_free(&mut self, now: Instant) -> bool {
        while self.places.first().is_some_and(|place| place.until <= now) {
            self.places.pop_first();
        }
        self.places.len() < AT_A_TIME
    }

    /// A check that may take so long begins.
    pub(crate) fn take(&mut self, timeout: Duration, now: Instant) -> Place {
        self.taken += 1;
        let place = Place {
            until: now + LONGEST.min(timeout / 4),
            number: self.taken,
        };
        self.places.insert(place);
        place
    }

    /// It has ended.
    pub(crate) fn leave(&mut self, place: Place) {
        self.places.remove(&place);
    }

    /// When a place is free at the latest; `None`: one is.
    pub(crate) fn free_from(&self) -> Option<Instant> {
        let oldest = self.places.first()?;
        (self.places.len() >= AT_A_TIME).then_some(oldest.until)
    }
}

/// More than a thread can have in hand at once, and few enough for it to do within any time-out.
pub(crate) const AT_A_TIME: usize = 64;

/// Many times what an endpoint takes that answers.
const LONGEST: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn there_is_room_again_when_one_leaves() {
        let now = Instant::now();
        let mut room = Room::default();
        let mut places = Vec::new();
        while room.is_free(now) {
            assert_eq!(room.free_from(), None);
            places.push(room.take(SECOND, now));
        }
        assert_eq!(places.len(), AT_A_TIME);
        room.leave(places[7]);
        assert!(room.is_free(now));
        room.take(SECOND, now);
        assert!(!room.is_free(now));
        room.leave(places[7]);
        assert!(!room.is_free(now), "it has left already");
    }

    #[test]
    fn who_hangs_loses_its_place_long_before_its_time_is_out() {
        for (timeout, kept) in [
            (SECOND, SECOND / 4),
            (60 * SECOND, SECOND / 4),
            (SECOND / 10, SECOND / 40),
        ] {
            let now = Instant::now();
            let mut room = Room::default();
            let first = room.take(timeout, now);
            while room.is_free(now) {
                room.take(timeout, now + Duration::from_millis(1));
            }
            let from = room.free_from().unwrap();
            assert_eq!(from, now + kept);
            assert!(!room.is_free(from - Duration::from_nanos(1)));
            assert!(room.is_free(from));
            assert_eq!(room.free_from(), None);
            // Its end comes later, and changes nothing.
            room.take(timeout, from);
            room.leave(first);
            assert!(!room.is_free(from));
        }
    }
}
