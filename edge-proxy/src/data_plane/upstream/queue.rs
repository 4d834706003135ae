//! The RPCs that wait for a connection to one endpoint: the client that has the fewest streams there is the next to be
//! served, those that have as many take turns, and of one client's RPCs the first to come is the first to be served.
//!
//! A client may have as many wait as it has streams. Served in the order in which they came, the one RPC of another client
//! would wait for all of them, and under a siege honest clients got what was left: most of theirs waited until memory was
//! short or their deadlines had passed. So clients have turns (start-time fair queueing with equal weights): the one after
//! the last that was served. Whoever comes waits for one RPC of each other client that has no more streams than it, and no
//! more. A client is a source, as for `max_connections_per_source`: behind one that stands for many they share its turns
//! and what it has, and wait in the order in which they came, as they would without any of this.
//!
//! Turns alone share out how often a client is served, and not what it has then: one whose RPCs don't end got every other
//! stream that became free, and kept it, until another's RPCs of a millisecond had none. So what counts first is how many
//! streams a client has at this endpoint, from this worker (max-min).
//!
//! Only the first of a client's RPCs has a turn, and leaves it to the next if it goes unserved. When each had one of its own
//! from the start, a client paid for those that were cancelled or waited too long: with all of these its next turn was far
//! behind what the others got meanwhile, and it got nothing.
//!
//! Clients decide how many wait and when they leave: ten thousand of them may, and reset all of their streams in a row. So
//! each knows its [`Place`] and leaves from there. When it was searched for, a frame of 13 bytes took 62 µs on average while
//! 20 000 left (`attack queued-resets`), which is how one client kept a worker from all others.
//!
//! A backend decides how many insist on another connection than the one that has refused them: it may refuse all, and let
//! the next connect hang. Nobody is to walk over them, so those that avoid the same connection stand in a line of their
//! own, and only the first of each line is looked at. There is at most one line per connection, and one for those that
//! take any.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    mem,
    rc::Rc,
    time::Instant,
};

use super::{
    Upstream,
    share::{FEW, Starving},
};
use crate::{
    data_plane::{rpc::Key, source::Source},
    snapshot::circuit::Permits,
};

/// Where an RPC stands in its endpoint's queue: later ones are larger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(u64);

/// See the module's head. `C` is what they may avoid.
pub(super) struct Queue<C = Upstream> {
    /// In no order, and none is empty.
    lines: Vec<Line<C>>,
    last: Place,
    /// The largest turn that was served: nobody's is beyond the one after it.
    served: u64,
}

/// Those that get the same. Trees, so that they give their memory back.
struct Line<C> {
    /// The connection that has refused them: another one may not. `None`: any will do.
    avoid: Option<Rc<C>>,
    /// In the order in which they came, which is that of their deadlines.
    waiting: BTreeMap<Place, Waiting>,
    /// Those of whom they are.
    clients: BTreeMap<Source, Client>,
    /// Each client's first, in the order in which they are served.
    turns: BTreeSet<Turn>,
}

/// When an RPC is served: how many streams its client has, its client's turn, and when it came.
pub(super) type Turn = (u32, u64, Place);

/// A client's part of a line.
struct Client {
    /// Those that it has.
    streams: u32,
    /// When its first one is served, of clients that have as many.
    turn: u64,
    /// Never empty.
    places: BTreeSet<Place>,
}

/// An RPC without a stream.
pub(super) struct Waiting {
    pub(super) rpc: Key,
    pub(super) client: Source,
    pub(super) since: Instant,
    pub(super) until: Instant,
    /// Given back when it waits no more.
    pub(super) _permits: Permits,
}

impl<C> Queue<C> {
    /// Adds one, for another connection than `avoid`; its client has so many streams.
    pub(super) fn push(&mut self, waiting: Waiting, streams: u32, avoid: Option<Rc<C>>) -> Place {
        self.last.0 += 1;
        let place = self.last;
        let turn = self.served + 1;
        self.line(avoid).insert(place, streams, turn, waiting);
        place
    }

    /// A client has so many streams now.
    pub(super) fn holds(&mut self, client: Source, streams: u32) {
        for line in &mut self.lines {
            line.change(client, |client| client.streams = streams);
        }
    }

    /// Takes the one at `place` out; `None`: it isn't there any more.
    pub(super) fn take(&mut self, place: Place) -> Option<Waiting> {
        let mut lines = self.lines.iter_mut().enumerate();
        let (line, found) = lines.find_map(|(at, line)| Some((at, line.remove(place)?)))?;
        if self.lines[line].waiting.is_empty() {
            self.lines.swap_remove(line);
        }
        Some(found)
    }

    /// Takes out the one whose turn it is: one of the [`next`](Self::next). It was its client's, in all lines.
    pub(super) fn serve(&mut self, (_, turn, place): Turn) -> Option<Waiting> {
        let served = self.take(place)?;
        self.served = self.served.max(turn);
        let next = self.served + 1;
        for line in &mut self.lines {
            line.change(served.client, |client| client.turn = client.turn.max(next));
        }
        Some(served)
    }

    /// The last place that was given.
    pub(super) fn last(&self) -> Place {
        self.last
    }

    /// Takes the first one out, if it stands there or before.
    pub(super) fn take_first_up_to(&mut self, last: Place) -> Option<Waiting> {
        let (first, _) = self.first()?.waiting.first_key_value()?;
        if *first > last {
            return None;
        }
        self.take(*first)
    }

    /// Takes the first one out.
    pub(super) fn take_first(&mut self) -> Option<Waiting> {
        let (first, _) = self.first()?.waiting.first_key_value()?;
        self.take(*first)
    }

    /// When the first one's time is over.
    pub(super) fn first_until(&self) -> Option<Instant> {
        let (_, first) = self.first()?.waiting.first_key_value()?;
        Some(first.until)
    }

    /// When the first one came.
    pub(super) fn first_since(&self) -> Option<Instant> {
        let (_, first) = self.first()?.waiting.first_key_value()?;
        Some(first.since)
    }

    /// How many streams its client has.
    pub(super) fn first_streams(&self) -> u32 {
        let client = self.first().and_then(|line| {
            let (_, first) = line.waiting.first_key_value()?;
            line.clients.get(&first.client)
        });
        client.map_or(0, |client| client.streams)
    }

    /// Those that came by then of the clients that are served first, so many of these at most: of whoever takes any
    /// connection.
    pub(super) fn starving(&self, by: Instant, clients: usize) -> Vec<Starving> {
        let line = self.lines.iter().find(|line| line.avoid.is_none());
        let line = line.into_iter();
        let firsts = line.flat_map(|line| line.turns.iter().map(move |turn| (line, turn)));
        let starving = firsts
            .take(clients)
            .filter_map(|(line, (streams, _, first))| {
                let client = line.waiting.get(first)?.client;
                let came =
                    |place: &&Place| line.waiting.get(place).is_some_and(|one| one.since <= by);
                let places = &line.clients.get(&client)?.places;
                let rpcs = places.iter().take(FEW).take_while(came).count();
                let streams = *streams;
                (rpcs > 0).then_some(Starving {
                    client,
                    streams,
                    rpcs,
                })
            });
        starving.collect()
    }

    /// How many of those clients have no stream, so many at most.
    pub(super) fn newcomers(&self, most: usize) -> usize {
        let line = self.lines.iter().find(|line| line.avoid.is_none());
        let turns = line.into_iter().flat_map(|line| &line.turns);
        let without = turns.take(most).take_while(|(streams, ..)| *streams == 0);
        without.count()
    }

    /// What the first one avoids.
    pub(super) fn first_avoids(&self) -> Option<&Rc<C>> {
        self.first()?.avoid.as_ref()
    }

    /// Who is served next in each line, in no order, and what its line avoids.
    pub(super) fn next(&self) -> impl Iterator<Item = (Turn, Option<&Rc<C>>)> {
        self.lines.iter().filter_map(|line| {
            let turn = line.turns.first()?;
            Some((*turn, line.avoid.as_ref()))
        })
    }

    /// Those that avoid a connection for which `matches` holds take any from now on.
    pub(super) fn stop_avoiding(&mut self, matches: impl Fn(&Rc<C>) -> bool) {
        let avoids = |line: &mut Line<C>| line.avoid.as_ref().is_some_and(&matches);
        let accepting: Vec<_> = self.lines.extract_if(.., avoids).collect();
        for line in accepting {
            self.line(None).join(line);
        }
    }

    /// How many RPCs of this client wait.
    pub(super) fn of(&self, client: Source) -> usize {
        let parts = self
            .lines
            .iter()
            .filter_map(|line| line.clients.get(&client));
        parts.map(|part| part.places.len()).sum()
    }

    pub(super) fn len(&self) -> usize {
        self.lines.iter().map(|line| line.waiting.len()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The line of the one that came first of all.
    fn first(&self) -> Option<&Line<C>> {
        let lines = self.lines.iter();
        lines.min_by_key(|line| line.waiting.first_key_value().map(|(place, _)| *place))
    }

    /// The line of those that avoid this one, for somebody to join it.
    fn line(&mut self, avoid: Option<Rc<C>>) -> &mut Line<C> {
        let is_it = |line: &Line<C>| match (&line.avoid, &avoid) {
            (Some(one), Some(other)) => Rc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        let at = self.lines.iter().position(is_it).unwrap_or_else(|| {
            self.lines.push(Line::new(avoid));
            self.lines.len() - 1
        });
        &mut self.lines[at]
    }
}

impl<C> Line<C> {
    fn new(avoid: Option<Rc<C>>) -> Self {
        Self {
            avoid,
            waiting: BTreeMap::new(),
            clients: BTreeMap::new(),
            turns: BTreeSet::new(),
        }
    }

    /// The last to come; `streams` and `turn`: its client's, if none of that is here.
    fn insert(&mut self, place: Place, streams: u32, turn: u64, waiting: Waiting) {
        match self.clients.entry(waiting.client) {
            Entry::Occupied(mut client) => {
                client.get_mut().places.insert(place);
            }
            Entry::Vacant(client) => {
                let places = BTreeSet::from([place]);
                client.insert(Client {
                    streams,
                    turn,
                    places,
                });
                self.turns.insert((streams, turn, place));
            }
        }
        self.waiting.insert(place, waiting);
    }

    /// If it was its client's first, the next one has its turn.
    fn remove(&mut self, place: Place) -> Option<Waiting> {
        let waiting = self.waiting.remove(&place)?;
        if let Entry::Occupied(mut client) = self.clients.entry(waiting.client) {
            let (streams, turn) = (client.get().streams, client.get().turn);
            client.get_mut().places.remove(&place);
            if self.turns.remove(&(streams, turn, place)) {
                self.turns.extend(client.get().first());
            }
            if client.get().places.is_empty() {
                client.remove();
            }
        }
        Some(waiting)
    }

    /// Changes when a client is served.
    fn change(&mut self, client: Source, change: impl FnOnce(&mut Client)) {
        if let Some(client) = self.clients.get_mut(&client)
            && let Some(first) = client.first()
        {
            self.turns.remove(&first);
            change(client);
            self.turns.extend(client.first());
        }
    }

    /// Those of `other` stand here too; of a client's two turns the earlier one counts.
    fn join(&mut self, mut other: Self) {
        // Who is moved is looked at: the fewer. Whoever is moved stands among twice as many then.
        if other.waiting.len() > self.waiting.len() {
            mem::swap(&mut self.waiting, &mut other.waiting);
            mem::swap(&mut self.clients, &mut other.clients);
            mem::swap(&mut self.turns, &mut other.turns);
        }
        for (source, joining) in other.clients {
            match self.clients.entry(source) {
                Entry::Occupied(mut client) => {
                    let client = client.get_mut();
                    if let Some(first) = client.first() {
                        self.turns.remove(&first);
                    }
                    client.turn = client.turn.min(joining.turn);
                    client.places.extend(joining.places);
                    self.turns.extend(client.first());
                }
                Entry::Vacant(client) => {
                    self.turns.extend(joining.first());
                    client.insert(joining);
                }
            }
        }
        self.waiting.extend(other.waiting);
    }
}

impl Client {
    fn first(&self) -> Option<Turn> {
        Some((self.streams, self.turn, *self.places.first()?))
    }
}

impl<C> Default for Queue<C> {
    fn default() -> Self {
        Self {
            lines: Vec::new(),
            last: Place::default(),
            served: 0,
        }
    }
}

#[cfg(test)]
mod tests;
