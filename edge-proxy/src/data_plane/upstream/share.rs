//! What becomes of an endpoint's streams when none is left: which RPCs end for others that wait.
//!
//! The queue gives what becomes free to whoever has fewest, and nothing may become free: one address may hold every stream
//! with RPCs that move a byte now and then. A client's share is what each would have if those that have streams, or wait
//! for their first one, had equally many. Where RPCs of a client with less than that have waited for
//! [`PATIENCE`], RPCs of those with more end: of whoever has most, the one in which nothing has moved for longest;
//! [`FEW`] at a time, no more than wait, and none of a client that has no more than its share.
//!
//! What was ended for others is kept for them ([`Reserve`]). Whoever has most has RPCs waiting too, which would take it back
//! as soon as nobody else waits for a moment: then each RPC of a millisecond would wait as long as the first.
//!
//! A client that is alone shares with nobody, and so do all behind an address that stands for them: they have the streams
//! as long as they like, as they would without any of this.

use std::{
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use super::{EndpointPool, Upstream, connection::Congestion};
use crate::data_plane::{
    rpc::{self, Key},
    source::Source,
    worker::{AT_ONCE, Worker},
};

/// A stream whose end would make room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) rpc: Key,
    pub(super) client: Source,
    /// When a byte of it last came or went.
    pub(super) moved: Instant,
}

/// A client of which so many RPCs have waited for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Starving {
    pub(super) client: Source,
    /// Streams that it has as it is served by: those on connections that are leaving, too.
    pub(super) streams: u32,
    pub(super) rpcs: usize,
}

/// What follows from a look at who has how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Division {
    /// How many streams each may have.
    pub(super) share: u32,
    /// The RPCs that end.
    pub(super) ends: Vec<Key>,
}

impl Division {
    /// Of all streams that are `held`, where `newcomers` wait for their first one, and so many have ended already whose
    /// room is `coming`.
    pub(super) fn of(
        held: &[Held],
        starving: &[Starving],
        newcomers: usize,
        coming: usize,
    ) -> Self {
        let mut clients = BTreeMap::<Source, Vec<(Instant, Key)>>::new();
        for one in held {
            let streams = clients.entry(one.client).or_default();
            streams.push((one.moved, one.rpc));
        }
        let all = (clients.len() + newcomers).max(1);
        // Where there are more clients than streams, one each.
        let share = (held.len() / all).max(1);
        let wanted = starving.iter().map(|one| {
            // It gets none as long as it has its share of either.
            let has = clients.get(&one.client).map_or(0, Vec::len);
            one.rpcs
                .min(share.saturating_sub(has.max(one.streams as usize)))
        });
        let wanted = wanted.sum::<usize>().saturating_sub(coming).min(FEW);
        for streams in clients.values_mut() {
            // The last one ends first.
            streams.sort_unstable_by(|one, other| other.cmp(one));
        }
        let mut ends = Vec::new();
        while ends.len() < wanted
            && let Some(most) = clients.values_mut().max_by_key(|streams| streams.len())
            && most.len() > share
            && let Some((_, rpc)) = most.pop()
        {
            ends.push(rpc);
        }
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        Self { share, ends }
    }
}

/// Streams that are kept free for clients that have less than their share, since others' were ended for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reserve {
    streams: u32,
    share: u32,
    /// Until when, if nobody takes any of them.
    until: Instant,
}

impl Reserve {
    /// What follows when so many of `all` streams end for others, beside those that were kept `before`. However many have
    /// ended, [`FEW`] at the most are kept, and no more than half: what was ended for many is nobody's when they have left.
    pub(super) fn after(
        before: Option<Self>,
        division: &Division,
        all: usize,
        now: Instant,
    ) -> Option<Self> {
        let most = FEW.min(all / 2).max(1) as u32;
        let kept = before.filter(|before| !before.is_over(now));
        let (streams, until) = match (kept, division.ends.len() as u32) {
            (kept, 0) => (kept?.streams, kept?.until),
            (None, more) => (more.min(most), now + KEPT),
            (Some(kept), more) => ((kept.streams + more).min(most), now + KEPT),
        };
        let share = division.share;
        Some(Self {
            streams,
            share,
            until,
        })
    }

    /// Whether it is over.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// Whether a client that has so many streams may have one of those that are free. One that takes what is kept has it
    /// kept for longer. When it is over is for its owner to see, who gives what there is to those that wait then.
    pub(super) fn allows(&mut self, streams: u32, free: u32, now: Instant) -> bool {
        if free > self.streams {
            return true;
        }
        let below = streams < self.share;
        if below {
            self.until = now + KEPT;
        }
        below
    }
}

impl EndpointPool {
    /// Whether a client that has so many streams may have one of those that are free.
    #[inline]
    pub(super) fn may_have_one(&self, streams: impl FnOnce() -> u32, now: Instant) -> bool {
        let Some(mut reserve) = self.reserve.get() else {
            return true;
        };
        let limit = self.policy.borrow().per_connection_streams;
        let connections = self.connections.borrow();
        let room = connections
            .iter()
            .map(|one| one.room(limit, Congestion::Stream));
        let allowed = reserve.allows(streams(), room.sum(), now);
        self.reserve.set(Some(reserve));
        allowed
    }

    /// What was kept for those who have few is everybody's from now on: those that wait are to be served then.
    pub(super) fn keeps_no_more(&self, now: Instant) -> bool {
        let is_over = self.reserve.get().is_some_and(|kept| kept.is_over(now));
        if is_over {
            self.reserve.set(None);
        }
        is_over
    }

    /// When it is looked who has how many streams, while RPCs wait.
    pub(super) fn divides_at(&self) -> Option<Instant> {
        let since = self.waiting.borrow().first_since()?;
        let again = self.divided_at.get().map(|last| last + AGAIN);
        let at = since + self.patience();
        Some(again.map_or(at, |again| at.max(again)))
    }

    /// How long RPCs wait before others end for them: so that there is time to serve them.
    fn patience(&self) -> Duration {
        PATIENCE.min(self.policy.borrow().connect_timeout / 2)
    }

    /// Where RPCs of clients that have less than their share have waited for long, those of others end that have more. How
    /// many.
    pub(super) fn divide(&self, worker: &Rc<Worker>, now: Instant) -> usize {
        if self.divides_at().is_none_or(|at| now < at) {
            return 0;
        }
        self.divided_at.set(Some(now));
        let limit = self.policy.borrow().per_connection_streams;
        let connections = self.connections.borrow().clone();
        let has_room = |one: &Rc<Upstream>| one.has_room(limit, Congestion::Stream);
        if connections.iter().any(has_room) {
            return 0;
        }
        let by = now.checked_sub(self.patience());
        let starving = by.map(|by| self.waiting.borrow().starving(by, AT_ONCE));
        let Some(starving) = starving.filter(|starving| !starving.is_empty()) else {
            return 0;
        };
        let keys = connections.iter().flat_map(|one| one.makes_room());
        let held: Vec<Held> = keys
            .filter_map(|rpc| {
                let (client, moved) = rpc::moved(worker, rpc)?;
                Some(Held { rpc, client, moved })
            })
            .collect();
        let newcomers = self.waiting.borrow().newcomers(held.len());
        let coming = connections.iter().map(|one| one.coming()).sum();
        let division = Division::of(&held, &starving, newcomers, coming);
        self.reserve.set(Reserve::after(
            self.reserve.get(),
            &division,
            held.len(),
            now,
        ));
        for rpc in &division.ends {
            rpc::give_way(worker, *rpc, now);
        }
        division.ends.len()
    }
}

/// So many RPCs end at a time: those that wait are served by few, if theirs end soon.
pub(super) const FEW: usize = 8;

/// How long RPCs wait before others end for them, if they may wait for twice as long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two looks at who has how much.
const AGAIN: Duration = Duration::from_millis(100);

/// How long streams are kept that nobody takes.
const KEPT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn client(last: u8) -> Source {
        [192, 0, 2, last].into()
    }

    /// Each client's streams, and how long ago something moved in them, in seconds; keys count up.
    fn held(clients: &[(u8, &[u64])]) -> Vec<Held> {
        let now = Instant::now() + Duration::from_secs(1000);
        let streams = clients.iter().flat_map(|(last, streams)| {
            let of = |ago: &u64| (client(*last), now - Duration::from_secs(*ago));
            streams.iter().map(of)
        });
        let held = streams.zip(0..).map(|((client, moved), key)| Held {
            rpc: Key::from_engine(key),
            client,
            moved,
        });
        held.collect()
    }

    /// The share, and who ends.
    fn divided(
        clients: &[(u8, &[u64])],
        starving: &[(u8, usize)],
        newcomers: usize,
    ) -> (u32, Vec<u32>) {
        let starving = starving.iter().map(|(last, rpcs)| Starving {
            client: client(*last),
            streams: 0,
            rpcs: *rpcs,
        });
        let starving: Vec<_> = starving.collect();
        let division = Division::of(&held(clients), &starving, newcomers, 0);
        let ends = division.ends.iter().map(|key| key.for_engine());
        (division.share, ends.collect())
    }

    #[test]
    fn of_who_has_most_those_end_in_which_nothing_has_moved_for_longest_and_no_more_than_wait() {
        let all: &[(u8, &[u64])] = &[(1, &[5, 9, 7, 1, 3, 2])];
        assert_eq!(divided(all, &[(2, 1)], 1), (3, vec![1]));
        assert_eq!(divided(all, &[(2, 2)], 1), (3, vec![1, 2]));
        // It has its share then.
        assert_eq!(divided(all, &[(2, 9)], 1), (3, vec![1, 2, 0]));
        assert_eq!(divided(&[(1, &[0; 100])], &[(2, 90)], 1).1.len(), FEW);
    }

    #[test]
    fn what_has_ended_and_whose_room_is_coming_is_not_ended_again() {
        let starving = [Starving {
            client: client(2),
            streams: 0,
            rpcs: 3,
        }];
        for (coming, ends) in [(0, 3), (1, 2), (3, 0), (9, 0)] {
            let division = Division::of(&held(&[(1, &[1; 8])]), &starving, 1, coming);
            assert_eq!(division.ends.len(), ends);
        }
    }

    #[test]
    fn who_is_alone_or_has_its_share_ends_nobodys() {
        let nobody = vec![];
        // It waits for itself.
        assert_eq!(divided(&[(1, &[5; 8])], &[(1, 9)], 0), (8, nobody.clone()));
        let equal: &[(u8, &[u64])] = &[(1, &[5; 4]), (2, &[5; 4])];
        assert_eq!(divided(equal, &[(1, 9), (2, 9)], 0), (4, nobody.clone()));
        assert_eq!(divided(equal, &[], 1), (2, nobody.clone()));
        // It has more, but who waits has its share.
        let more: &[(u8, &[u64])] = &[(1, &[5; 7]), (2, &[5; 2]), (3, &[5; 2])];
        assert_eq!(divided(more, &[(2, 1)], 2), (2, nobody.clone()));
        assert_eq!(divided(&[], &[(1, 3)], 1), (1, nobody));
    }

    #[test]
    fn where_clients_are_more_than_streams_nobody_loses_its_only_one() {
        let ones: &[(u8, &[u64])] = &[(1, &[5]), (2, &[6])];
        assert_eq!(divided(ones, &[(3, 1), (4, 1)], 9), (1, vec![]));
        let two: &[(u8, &[u64])] = &[(1, &[5]), (2, &[1, 2])];
        assert_eq!(divided(two, &[(3, 1), (4, 1)], 9), (1, vec![2]));
    }

    #[test]
    fn whoever_has_most_gives_first_and_in_turn_when_they_have_as_many() {
        let two: &[(u8, &[u64])] = &[(1, &[9, 9, 9]), (2, &[1, 2, 3, 4, 5]), (3, &[7])];
        let (share, ends) = divided(two, &[(4, 3)], 1);
        assert_eq!((share, ends[0], ends[1]), (2, 7, 6));
        assert_eq!(ends.len(), 2, "it has two then, which is its share");
    }

    #[test]
    fn what_ended_for_others_is_kept_for_them_as_long_as_they_take_it() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let division = |ends| Division {
            share: 4,
            ends: vec![Key::from_engine(1); ends],
        };
        assert_eq!(Reserve::after(None, &division(0), 100, now), None);
        let mut kept = Reserve::after(None, &division(2), 100, now).unwrap();
        assert!(!kept.allows(4, 2, now) && !kept.allows(9, 1, now));
        assert!(kept.allows(9, 3, now), "there are others");
        assert!(kept.allows(3, 1, after(9)));
        assert!(!kept.allows(4, 1, after(18)));
        assert!(!kept.is_over(after(18)) && kept.is_over(after(19)));
        let more = Reserve::after(Some(kept), &division(3), 100, after(18)).unwrap();
        assert_eq!((more.streams, more.until), (5, after(28)));
        let anew = Reserve::after(Some(kept), &division(3), 100, after(19)).unwrap();
        assert_eq!(anew.streams, 3);
        let same = Reserve::after(Some(kept), &division(0), 100, after(18)).unwrap();
        assert_eq!((same.streams, same.until), (2, after(19)));
        assert_eq!(
            Reserve::after(Some(kept), &division(0), 100, after(19)),
            None
        );
    }

    #[test]
    fn when_all_have_left_for_whom_streams_ended_whoever_comes_has_nearly_all() {
        let now = Instant::now();
        let division = Division {
            share: 1,
            ends: vec![Key::from_engine(1); FEW],
        };
        let after = |before, all| Reserve::after(before, &division, all, now);
        // One held 800, and 100 times 8 have ended for others.
        let mut kept = (0..100).fold(None, |kept, _| after(kept, 800)).unwrap();
        assert_eq!(kept.streams, FEW as u32);
        assert!(kept.allows(200, 600, now), "there is room for all");
        assert!(!kept.allows(791, FEW as u32, now));
        assert_eq!(after(None, 4).unwrap().streams, 2);
        assert_eq!(after(None, 1).unwrap().streams, 1);
    }

    #[test]
    fn nothing_ends_for_a_client_whose_streams_are_on_connections_that_leave() {
        let starving = |streams| Starving {
            client: client(2),
            streams,
            rpcs: 1,
        };
        let ends = |streams| {
            let held = held(&[(1, &[5; 90]), (3, &[5; 10])]);
            Division::of(&held, &[starving(streams)], 0, 0).ends.len()
        };
        // The queue would not give it what became free.
        assert_eq!((ends(60), ends(50), ends(49)), (0, 0, 1));
    }
}
