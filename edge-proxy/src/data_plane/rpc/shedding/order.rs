//! In which order what stands still goes: the client that holds most is the next to give something back, and of what is
//! its what has stood still for longest.
//!
//! By time alone whoever waits honestly went first, and whoever holds the memory last: a byte of window now and then, and
//! a stream has stood still for a moment only. What counts is what a client holds in all, also in what moves, and while
//! it gives back the next one may become the one that holds most.
//!
//! What is young isn't to go, and isn't asked of anybody who holds less: see [`Young`].

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use crate::data_plane::source::Source;

/// Things `T` that stand still, by client.
pub(super) struct Order<T> {
    young: Young,
    clients: BTreeMap<Source, Part<T>>,
    /// By what they hold: the clients with something that stands still, and those of which some of it isn't young.
    all: BTreeSet<(usize, Source)>,
    ripe: BTreeSet<(usize, Source)>,
}

/// What becomes of things that haven't stood still for long, where their client holds more than twice what any other does
/// that has something to give. Others' young things never go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Young {
    /// They go.
    Go,
    /// They stay, and nothing goes that is others'.
    Stay,
}

/// What is one client's.
struct Part<T> {
    /// Bytes.
    holds: usize,
    /// The last one goes first.
    still: Vec<Still<T>>,
}

/// Whether it is young, since when it stands still, and what it is.
type Still<T> = (bool, Instant, T);

impl<T: Ord> Order<T> {
    pub(super) fn new(young: Young) -> Self {
        Self {
            young,
            clients: BTreeMap::new(),
            all: BTreeSet::new(),
            ripe: BTreeSet::new(),
        }
    }

    /// This client holds so many bytes more.
    pub(super) fn holds(&mut self, client: Source, bytes: usize) {
        self.part(client).holds += bytes;
    }

    /// This is the client's, and stands still.
    pub(super) fn add(&mut self, client: Source, is_young: bool, since: Instant, what: T) {
        self.part(client).still.push((is_young, since, what));
    }

    /// All has been said.
    pub(super) fn sort(&mut self) {
        for (client, part) in &mut self.clients {
            part.still.sort_unstable_by(|one, other| other.cmp(one));
            part.enter(*client, &mut self.all, &mut self.ripe);
        }
    }

    /// What goes next, and whose it is.
    pub(super) fn next(&mut self) -> Option<(Source, T)> {
        let (ripe, mut client) = *self.ripe.last()?;
        let (most, dominant) = *self.all.last()?;
        if most / 2 > ripe {
            match self.young {
                Young::Go => client = dominant,
                Young::Stay => return None,
            }
        }
        let mut gone = None;
        self.change(client, |part| gone = part.still.pop());
        gone.map(|(_, _, what)| (client, what))
    }

    /// This client has given back so many bytes.
    pub(super) fn freed(&mut self, client: Source, bytes: usize) {
        self.change(client, |part| {
            part.holds = part.holds.saturating_sub(bytes);
        });
    }

    fn part(&mut self, client: Source) -> &mut Part<T> {
        self.clients.entry(client).or_insert_with(|| Part {
            holds: 0,
            still: Vec::new(),
        })
    }

    fn change(&mut self, client: Source, change: impl FnOnce(&mut Part<T>)) {
        if let Some(part) = self.clients.get_mut(&client) {
            let place = (part.holds, client);
            self.all.remove(&place);
            self.ripe.remove(&place);
            change(part);
            part.enter(client, &mut self.all, &mut self.ripe);
        }
    }
}

impl<T> Part<T> {
    fn enter(
        &self,
        client: Source,
        all: &mut BTreeSet<(usize, Source)>,
        ripe: &mut BTreeSet<(usize, Source)>,
    ) {
        if let Some((is_young, ..)) = self.still.last() {
            all.insert((self.holds, client));
            if !is_young {
                ripe.insert((self.holds, client));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Clients' things: of whom, how many ms it has stood still, and what it holds. From 250 ms on it isn't young.
    fn order(young: Young, things: &[(u8, u64, usize)]) -> Order<usize> {
        let now = Instant::now() + Duration::from_secs(60);
        let mut order = Order::new(young);
        for (number, (client, ms, bytes)) in things.iter().enumerate() {
            let client = [192, 0, 2, *client].into();
            order.holds(client, *bytes);
            order.add(client, *ms < 250, now - Duration::from_millis(*ms), number);
        }
        order.sort();
        order
    }

    /// Which go until so many bytes are free.
    fn gone(mut order: Order<usize>, things: &[(u8, u64, usize)], mut bytes: usize) -> Vec<usize> {
        let mut gone = Vec::new();
        while bytes > 0
            && let Some((client, number)) = order.next()
        {
            order.freed(client, things[number].2);
            bytes = bytes.saturating_sub(things[number].2);
            gone.push(number);
        }
        gone
    }

    #[test]
    fn who_holds_most_goes_before_who_has_waited_for_longest() {
        // The first one waits honestly; the second one's get a byte each 200 ms.
        let things = [(1, 900, 2), (2, 150, 64), (2, 50, 64), (2, 100, 64)];
        let go = |bytes| gone(order(Young::Go, &things), &things, bytes);
        assert_eq!(go(100), [1, 3]);
        assert_eq!(go(192), [1, 3, 2]);
        assert_eq!(go(193), [1, 3, 2, 0]);
    }

    #[test]
    fn while_it_gives_back_another_one_becomes_who_holds_most() {
        let things = [
            (1, 500, 30),
            (1, 400, 30),
            (2, 900, 20),
            (2, 300, 20),
            (3, 999, 1),
        ];
        // 60, 40 and 1; then 30; then 20.
        let all = gone(order(Young::Go, &things), &things, usize::MAX);
        assert_eq!(all, [0, 2, 1, 3, 4]);
    }

    #[test]
    fn what_moves_counts_and_of_one_client_alone_what_is_young_stays() {
        for young in [Young::Go, Young::Stay] {
            let things = [(1, 100, 50), (1, 300, 50), (1, 260, 0)];
            let all = gone(order(young, &things), &things, usize::MAX);
            assert_eq!(all, [1, 2], "as by time alone");
            let things = [(1, 300, 10), (2, 300, 20)];
            let mut order = order(young, &things);
            order.change([192, 0, 2, 1].into(), |part| part.holds += 11);
            assert_eq!(order.next().unwrap().1, 0);
        }
    }

    #[test]
    fn what_is_young_stays_and_keeps_what_others_have_unless_it_must_go() {
        let things = [(1, 900, 10), (2, 100, 20), (2, 50, 20)];
        assert!(gone(order(Young::Stay, &things), &things, 9).is_empty());
        // 40 against 10, then 20 against 10, which isn't more than twice as much.
        assert_eq!(gone(order(Young::Go, &things), &things, usize::MAX), [1, 0]);
        let things = [(1, 900, 10), (2, 100, 20)];
        assert_eq!(gone(order(Young::Stay, &things), &things, 9), [0]);
    }
}
