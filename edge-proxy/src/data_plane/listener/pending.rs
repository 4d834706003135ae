//! The pending handshakes, and who goes when there are too many.
//!
//! They are silent until a whole ClientHello has come and is answered, then heard. Whoever connects and says nothing can't
//! keep others out, nor who says hello and stops there, and no flood takes the place of one that comes from where few do:
//!
//! - The oldest silent one goes, of the source that has most of them.
//! - But while most are heard, the oldest of those goes, of the source that has most of them, if that is more than the
//!   newcomer's source would have.
//! - If it isn't, but is more than the newcomer's source has, the oldest of those goes all the same once it has owed its
//!   answer for [`STALLED`]: as many sources as there are places, each with one that stops there, keep nobody out. Who has
//!   answered, and waits for its turn to be read, owes nothing.
//! - Else no other source with as few has one taken away either: the newcomer takes the place of its own source's oldest
//!   silent one, or is refused.
//!
//! A heard one has had its signature computed. In a rush of clients that are all honest, behind one address or each at its
//! own, it isn't given up for the next one, which would come no farther: it is refused, and those before it end. All that
//! they need for that is one round trip.
//!
//! It is the worker that closes what is given up: while a worker is behind, only a few may wait for that, and newcomers are
//! refused instead; else a flood of connections would take as many files as it likes.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::{
    data_plane::source::Source,
    telemetry::metrics::{Limit, ListenerGauges},
};

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Pending {
    silent: Group,
    heard: Group,
    /// Those that were given up, and whose sockets aren't closed yet: in neither group.
    given_up: usize,
    /// The next one's number.
    next: u64,
    /// Where it is shown how many there are.
    gauges: Arc<ListenerGauges>,
}

/// A pending handshake.
#[derive(Debug)]
pub(super) struct Handshake {
    source: Source,
    /// Its place in the order in which those of its group came there.
    number: u64,
    pub(super) given_up: Arc<Notify>,
}

/// Handshakes that have come equally far.
#[derive(Debug, Default)]
struct Group {
    len: usize,
    /// Each source's, oldest first. None is empty.
    by_source: HashMap<Source, BTreeMap<u64, Member>>,
    /// The last one has most; of those that have as many, it has the oldest.
    ranks: BTreeSet<Rank>,
}

/// One of a group.
#[derive(Debug)]
struct Member {
    /// When it came here.
    since: Instant,
    /// Something of its client's waits to be read: it is we who are late.
    waits_for_us: bool,
    /// Tells it that it is given up.
    given_up: Arc<Notify>,
}

/// How many a source has, and the number of its oldest.
type Rank = (usize, Reverse<u64>, Source);

impl Pending {
    pub(super) fn shown_by(gauges: &Arc<ListenerGauges>) -> Self {
        Self {
            gauges: gauges.clone(),
            ..Self::default()
        }
    }

    /// One more; whether another had to go for it.
    pub(super) fn enter(
        &mut self,
        source: Source,
        limit: usize,
        now: Instant,
    ) -> Result<(Handshake, bool), Limit> {
        let full = self.count() >= limit;
        if full {
            if self.given_up >= GIVEN_UP {
                return Err(Limit::PendingHandshakes);
            }
            let other = self.take_for(source, now).ok_or(Limit::PendingHandshakes)?;
            other.notify_one();
            self.given_up += 1;
        }
        let handshake = Handshake {
            source,
            number: self.next,
            given_up: Arc::default(),
        };
        self.next += 1;
        let given_up = handshake.given_up.clone();
        let member = Member {
            since: now,
            waits_for_us: false,
            given_up,
        };
        self.silent.add(source, handshake.number, member);
        self.show();
        Ok((handshake, full))
    }

    /// A ClientHello has come and is answered, which saves it only if it isn't given up already. (There are two where the
    /// first one offers no key exchange that we know.)
    pub(super) fn heard(&mut self, handshake: &mut Handshake, now: Instant) {
        let (source, number) = (handshake.source, handshake.number);
        let silent = self.silent.remove(source, number);
        let Some(member) = silent.or_else(|| self.heard.remove(source, number)) else {
            return;
        };
        handshake.number = self.next;
        self.next += 1;
        let member = Member {
            since: now,
            waits_for_us: false,
            ..member
        };
        self.heard.add(source, handshake.number, member);
    }

    /// Whether something of the client's waits to be read, now that it was answered.
    pub(super) fn waits_for_us(&mut self, handshake: &Handshake, waits: bool) {
        let member = self.heard.member(handshake.source, handshake.number);
        if let Some(member) = member {
            member.waits_for_us = waits;
        }
    }

    /// It is through, or has failed, or is closed since it was given up.
    pub(super) fn leave(&mut self, handshake: &Handshake) {
        let (source, number) = (handshake.source, handshake.number);
        let silent = self.silent.remove(source, number);
        if silent
            .or_else(|| self.heard.remove(source, number))
            .is_some()
        {
            self.show();
        } else {
            self.given_up -= 1;
        }
    }

    /// Takes out the one that goes for one of `newcomer`.
    fn take_for(&mut self, newcomer: Source, now: Instant) -> Option<Arc<Notify>> {
        let own = self.of(newcomer);
        let mostly_heard = self.heard.len > self.silent.len;
        if mostly_heard
            && let Some((most, source)) = self.heard.largest()
            && (most > own + 1 || most > own && self.heard.is_stalled(source, now))
        {
            return self.heard.pop_oldest(source);
        }
        let (_, largest) = self.silent.largest()?;
        let is_fair = !mostly_heard || self.of(largest) > own;
        let source = if is_fair { largest } else { newcomer };
        self.silent.pop_oldest(source)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.silent.len + self.heard.len
    }

    /// How many of them are of this source.
    fn of(&self, source: Source) -> usize {
        self.silent.of(source) + self.heard.of(source)
    }

    /// Within the lock, so that the last one to show is the last one to count.
    fn show(&self) {
        let gauge = &self.gauges.handshakes_pending;
        gauge.store(self.count(), Ordering::Relaxed);
    }
}

impl Group {
    fn add(&mut self, source: Source, number: u64, member: Member) {
        self.change(source, |own| own.insert(number, member));
    }

    fn remove(&mut self, source: Source, number: u64) -> Option<Member> {
        self.change(source, |own| own.remove(&number))
    }

    fn member(&mut self, source: Source, number: u64) -> Option<&mut Member> {
        self.by_source.get_mut(&source)?.get_mut(&number)
    }

    fn pop_oldest(&mut self, source: Source) -> Option<Arc<Notify>> {
        let (_, member) = self.change(source, BTreeMap::pop_first)?;
        Some(member.given_up)
    }

    /// Whether this source's oldest has come no farther for [`STALLED`].
    fn is_stalled(&self, source: Source, now: Instant) -> bool {
        let own = self.by_source.get(&source);
        let oldest = own.and_then(BTreeMap::first_key_value);
        oldest.is_some_and(|(_, member)| !member.waits_for_us && now >= member.since + STALLED)
    }

    /// The source that has most, and how many.
    fn largest(&self) -> Option<(usize, Source)> {
        let (most, _, source) = self.ranks.last()?;
        Some((*most, *source))
    }

    fn of(&self, source: Source) -> usize {
        self.by_source.get(&source).map_or(0, BTreeMap::len)
    }

    /// Changes what a source has, and its rank with it.
    fn change<R>(
        &mut self,
        source: Source,
        change: impl FnOnce(&mut BTreeMap<u64, Member>) -> R,
    ) -> R {
        let rank = |own: &BTreeMap<u64, _>| {
            let (oldest, _) = own.first_key_value()?;
            Some((own.len(), Reverse(*oldest), source))
        };
        let own = self.by_source.entry(source).or_default();
        if let Some(rank) = rank(own) {
            self.ranks.remove(&rank);
        }
        self.len -= own.len();
        let changed = change(own);
        self.len += own.len();
        if let Some(rank) = rank(own) {
            self.ranks.insert(rank);
        } else {
            self.by_source.remove(&source);
        }
        changed
    }
}

/// Whoever means it has answered by then: five times the longest handshake over a network as it should be. How long a worker
/// takes to see what has come is a part of it, how long that waits for its turn isn't.
const STALLED: Duration = Duration::from_secs(1);

/// Handshakes that were given up and wait for their worker to close them.
pub(super) const GIVEN_UP: usize = 64;

#[cfg(test)]
mod tests {
    use std::{
        net::IpAddr,
        pin::pin,
        task::{Context, Waker},
    };

    use proptest::prelude::*;

    use super::*;

    fn source(last: u8) -> Source {
        IpAddr::from([192, 0, 2, last]).into()
    }

    fn is_given_up(handshake: &Handshake) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(handshake.given_up.notified())
            .poll(&mut context)
            .is_ready()
    }

    /// At most `limit` handshakes, and a worker that closes at once what is given up.
    struct Door {
        pending: Pending,
        limit: usize,
        now: Instant,
        /// With the number of each as it came.
        open: Vec<(u64, Handshake)>,
    }

    impl Door {
        fn new(limit: usize) -> Self {
            Self {
                pending: Pending::default(),
                limit,
                now: Instant::now(),
                open: Vec::new(),
            }
        }

        /// Somebody connects, and stops there; its number.
        fn silent(&mut self, last: u8) -> Option<u64> {
            self.silent_at(source(last))
        }

        fn silent_at(&mut self, source: Source) -> Option<u64> {
            let entered = self.pending.enter(source, self.limit, self.now);
            let (handshake, gives_up) = entered.ok()?;
            let number = handshake.number;
            let gone = self.open.extract_if(.., |(_, one)| is_given_up(one));
            let gone: Vec<_> = gone.collect();
            assert_eq!(gone.len(), usize::from(gives_up));
            for (_, gone) in &gone {
                self.pending.leave(gone);
            }
            self.open.push((number, handshake));
            Some(number)
        }

        fn passes(&mut self, time: Duration) {
            self.now += time;
        }

        fn hello(&mut self, number: u64) {
            let at = self.at(number).unwrap();
            self.pending.heard(&mut self.open[at].1, self.now);
        }

        fn waits_for_us(&mut self, number: u64, waits: bool) {
            let at = self.at(number).unwrap();
            self.pending.waits_for_us(&self.open[at].1, waits);
        }

        /// Somebody connects, says hello, and stops there.
        fn heard(&mut self, last: u8) -> Option<u64> {
            let number = self.silent(last)?;
            self.hello(number);
            Some(number)
        }

        fn ends(&mut self, number: u64) {
            let at = self.at(number).unwrap();
            self.pending.leave(&self.open.swap_remove(at).1);
        }

        fn at(&self, number: u64) -> Option<usize> {
            self.open.iter().position(|(came, _)| *came == number)
        }

        fn has(&self, number: u64) -> bool {
            self.at(number).is_some()
        }

        fn of(&self, last: u8) -> usize {
            self.pending.of(source(last))
        }
    }

    #[test]
    fn hellos_of_few_sources_keep_nobody_out() {
        let mut door = Door::new(512);
        for _ in 0..256 {
            door.heard(1).unwrap();
            door.heard(2).unwrap();
        }
        assert_eq!(door.heard(1), None, "nobody has more than it would have");
        for last in 3..=100 {
            // The oldest go.
            let newcomer = door.silent(last).unwrap();
            assert!(!door.has(u64::from(last) - 3));
            // Nor does the flood take this one's place while its hello is under way.
            for _ in 0..20 {
                door.heard(1);
                door.heard(2);
            }
            assert!(door.has(newcomer));
            door.hello(newcomer);
        }
        assert_eq!(door.pending.count(), 512);
        assert!((3..=100).all(|last| door.of(last) == 1));
        let (one, other) = (door.of(1), door.of(2));
        assert_eq!((one + other, one.abs_diff(other) <= 1), (512 - 98, true));
    }

    #[test]
    fn silence_of_one_source_or_many_leaves_others_alone() {
        let mut door = Door::new(100);
        let few = [door.heard(1), door.heard(1), door.silent(2)].map(Option::unwrap);
        for _ in 0..1000 {
            door.silent(3).unwrap();
        }
        assert!(few.iter().all(|one| door.has(*one)));
        for last in 4..=80 {
            door.silent(last).unwrap();
        }
        assert!(few.iter().all(|one| door.has(*one)));
        // From as many sources as there are places: who is heard stays, and the oldest silent one goes.
        for last in (4..=255).rev() {
            door.silent(last).unwrap();
        }
        assert_eq!(few.map(|one| door.has(one)), [true, true, false]);
        // One that has more heard than those have silent is kept out by none of them.
        for _ in 0..10 {
            door.heard(1).unwrap();
        }
        assert_eq!(door.of(1), 12);
    }

    #[test]
    fn in_a_rush_those_that_were_heard_end() {
        for sources in [1, 200] {
            let mut door = Door::new(100);
            let all: Vec<_> = (0..200).map(|n| door.heard(n % sources)).collect();
            let (first, later) = all.split_at(100);
            assert!(first.iter().all(Option::is_some) && later.iter().all(Option::is_none));
            for number in first.iter().flatten() {
                door.ends(*number);
            }
            assert_eq!(door.pending.count(), 0);
        }
    }

    #[test]
    fn who_has_most_takes_nobodys_place_but_its_own() {
        let mut door = Door::new(10);
        let other = door.silent(1).unwrap();
        for _ in 0..8 {
            door.heard(2).unwrap();
        }
        let own = door.silent(2).unwrap();
        let next = door.silent(2).unwrap();
        assert!(door.has(other) && !door.has(own));
        door.hello(next);
        assert_eq!(door.silent(2), None);
        assert!(door.has(other));
    }

    #[test]
    fn as_many_sources_as_there_are_places_keep_nobody_out_who_stop_after_their_hello() {
        let mut door = Door::new(512);
        let heard = |door: &mut Door, number: u16| {
            let address = IpAddr::from([198, 18, (number >> 8) as u8, number as u8]);
            let number = door.silent_at(address.into())?;
            door.hello(number);
            Some(number)
        };
        let all: Vec<_> = (0..512)
            .map(|number| heard(&mut door, number).unwrap())
            .collect();
        // They may all be honest.
        door.passes(STALLED - Duration::from_millis(1));
        assert_eq!(door.silent(1), None);
        door.passes(Duration::from_millis(1));
        let newcomer = door.silent(1).unwrap();
        assert!(!door.has(all[0]) && door.has(all[1]), "the oldest goes");
        // Those that come back take each other's places, and not this one's.
        for number in 512..1000 {
            heard(&mut door, number).unwrap();
        }
        assert!(door.has(newcomer));
        door.hello(newcomer);
        door.passes(Duration::from_millis(200));
        for number in 1000..2000 {
            heard(&mut door, number);
        }
        assert!(door.has(newcomer), "an honest handshake has its time");
    }

    #[test]
    fn who_has_stopped_gives_its_place_to_none_that_has_as_many() {
        let mut door = Door::new(2);
        let all = [door.heard(1), door.heard(2)].map(Option::unwrap);
        door.passes(10 * STALLED);
        assert_eq!(door.silent(1), None);
        assert!(all.iter().all(|one| door.has(*one)));
        assert!(door.silent(3).is_some());
        assert!(!door.has(all[0]));
    }

    #[test]
    fn who_has_answered_is_not_given_up_because_we_are_late() {
        let mut door = Door::new(2);
        let [late, slow] = [door.heard(1), door.heard(2)].map(Option::unwrap);
        door.passes(STALLED);
        door.waits_for_us(late, true);
        assert_eq!(door.silent(3), None, "its answer waits to be read");
        // What came isn't all that it owes.
        door.waits_for_us(late, false);
        assert!(door.silent(3).is_some());
        assert!(!door.has(late) && door.has(slow));
    }

    #[test]
    fn who_has_owed_its_answer_for_longest_goes_whoever_came_first() {
        let mut door = Door::new(2);
        let [first, second] = [door.silent(1), door.silent(2)].map(Option::unwrap);
        door.hello(second);
        door.passes(STALLED);
        door.hello(first);
        let third = door.silent(3).unwrap();
        assert!(door.has(first) && !door.has(second));
        // A second hello is answered, too, and has as long.
        door.hello(third);
        door.passes(STALLED);
        for number in [first, third] {
            door.hello(number);
        }
        assert_eq!(door.silent(4), None);
        assert!(door.has(first) && door.has(third));
    }

    proptest! {
        #[test]
        fn counts_and_ranks_are_those_of_the_handshakes(
            steps in prop::collection::vec((0u8..4, 0u8..8, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut door = Door::new(20);
            for (step, last, which) in steps {
                match step {
                    0 | 1 => {
                        door.silent(last);
                    }
                    _ if door.open.is_empty() => {}
                    2 => door.hello(which.get(&door.open).0),
                    _ => door.ends(which.get(&door.open).0),
                }
                let pending = &door.pending;
                prop_assert_eq!((pending.count(), pending.given_up), (door.open.len(), 0));
                for group in [&pending.silent, &pending.heard] {
                    let own = group.by_source.iter();
                    let ranks = own.map(|(source, own)| {
                        (own.len(), Reverse(*own.first_key_value().unwrap().0), *source)
                    });
                    prop_assert_eq!(&ranks.collect::<BTreeSet<_>>(), &group.ranks);
                    let len: usize = group.by_source.values().map(BTreeMap::len).sum();
                    prop_assert_eq!(len, group.len);
                }
            }
        }
    }
}
