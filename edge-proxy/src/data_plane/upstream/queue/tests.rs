use std::time::Duration;

use super::*;

/// Of those that may avoid a number.
type Queue = super::Queue<u32>;

fn waiting(rpc: u32, until: Instant) -> Waiting {
    of(1, rpc, until)
}

fn of(client: u8, rpc: u32, until: Instant) -> Waiting {
    Waiting {
        rpc: Key::from_engine(rpc),
        client: [192, 0, 2, client].into(),
        since: until,
        until,
        _permits: Permits::default(),
    }
}

/// Serves the next, whatever it avoids.
fn serve(queue: &mut Queue) -> Option<u32> {
    let next = queue.next().map(|(turn, _)| turn).min()?;
    queue.serve(next).map(|waiting| waiting.rpc.for_engine())
}

/// All of them, in order.
fn all(mut queue: Queue) -> Vec<Key> {
    let all = std::iter::from_fn(|| queue.take_first());
    all.map(|waiting| waiting.rpc).collect()
}

#[test]
fn they_leave_in_order_or_from_where_they_are() {
    let now = Instant::now();
    let mut queue = Queue::default();
    let places: Vec<_> = (0..5)
        .map(|rpc| queue.push(waiting(rpc, now), 0, None))
        .collect();
    assert_eq!(queue.take(places[0]).unwrap().rpc, Key::from_engine(0));
    assert_eq!(queue.take(places[3]).unwrap().rpc, Key::from_engine(3));
    assert!(queue.take(places[3]).is_none(), "a place is given once");
    queue.push(waiting(5, now), 0, None);
    assert_eq!(queue.len(), 4);
    assert_eq!(all(queue), [1, 2, 4, 5].map(Key::from_engine));
}

#[test]
fn who_comes_later_is_not_among_those_up_to_a_place() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.push(waiting(1, now), 0, None);
    let last = queue.last();
    queue.push(waiting(2, now), 0, None);
    assert_eq!(
        queue.take_first_up_to(last).unwrap().rpc,
        Key::from_engine(1)
    );
    assert!(queue.take_first_up_to(last).is_none());
}

#[test]
fn the_first_to_come_is_the_first_of_all_lines() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let mut queue = Queue::default();
    queue.push(waiting(1, now), 0, None);
    queue.push(waiting(2, later), 0, Some(Rc::new(7)));
    assert_eq!(
        (queue.first_until(), queue.first_avoids()),
        (Some(now), None)
    );
    assert_eq!(queue.take_first().unwrap().rpc, Key::from_engine(1));
    assert_eq!(queue.first_until(), Some(later));
    assert_eq!(queue.first_avoids().map(|avoid| **avoid), Some(7));
    assert_eq!(queue.take_first().unwrap().rpc, Key::from_engine(2));
    assert!(queue.take_first().is_none() && queue.first_until().is_none());
}

#[test]
fn as_many_are_looked_at_as_there_are_connections_to_avoid() {
    let now = Instant::now();
    let (one, other) = (Rc::new(1), Rc::new(2));
    let mut queue = Queue::default();
    let avoids = [None, Some(&one), Some(&other), Some(&one)];
    for (rpc, avoid) in (0..10_000).zip(avoids.into_iter().cycle()) {
        queue.push(waiting(rpc, now), 0, avoid.cloned());
    }
    let mut firsts: Vec<_> = queue.next().collect();
    firsts.sort_unstable();
    // They are of one client, so they have the same turn.
    let first = |place, avoid| ((0, 1, Place(place)), avoid);
    assert_eq!(
        firsts,
        [first(1, None), first(2, Some(&one)), first(3, Some(&other))]
    );
    queue.take(Place(2)).unwrap();
    assert!(queue.next().any(|next| next == first(4, Some(&one))));
    assert_eq!(queue.len(), 9_999);
}

#[test]
fn across_lines_the_first_to_come_is_the_first() {
    let now = Instant::now();
    let (one, other) = (Rc::new(1), Rc::new(2));
    let mut queue = Queue::default();
    for (rpc, avoid) in (0..).zip([Some(&one), None, Some(&other), Some(&one), None]) {
        queue.push(waiting(rpc, now), 0, avoid.cloned());
    }
    assert_eq!(all(queue), [0, 1, 2, 3, 4].map(Key::from_engine));
}

#[test]
fn who_insists_no_more_joins_the_others_at_its_place() {
    let now = Instant::now();
    let (one, other) = (Rc::new(1), Rc::new(2));
    let mut queue = Queue::default();
    for (rpc, avoid) in (0..).zip([Some(&one), None, Some(&other), Some(&one)]) {
        queue.push(waiting(rpc, now), 0, avoid.cloned());
    }
    queue.stop_avoiding(|avoid| Rc::ptr_eq(avoid, &one));
    assert_eq!(Rc::strong_count(&one), 1, "nobody avoids it");
    let mut firsts: Vec<_> = queue.next().collect();
    firsts.sort_unstable();
    let first = |place, avoid| ((0, 1, Place(place)), avoid);
    assert_eq!(firsts, [first(1, None), first(3, Some(&other))]);
    queue.stop_avoiding(|_| true);
    assert_eq!(queue.next().count(), 1);
    assert_eq!(all(queue), [0, 1, 2, 3].map(Key::from_engine));
}

#[test]
fn a_connection_that_nobody_avoids_any_more_is_let_go() {
    let one = Rc::new(1);
    let mut queue = Queue::default();
    let place = queue.push(waiting(0, Instant::now()), 0, Some(one.clone()));
    queue.take(place).unwrap();
    assert!(queue.is_empty());
    assert_eq!(Rc::strong_count(&one), 1);
}

#[test]
fn clients_take_turns() {
    let now = Instant::now();
    let mut queue = Queue::default();
    for rpc in 0..1000 {
        queue.push(of(1, rpc, now), 0, None);
    }
    assert_eq!(serve(&mut queue), Some(0));
    queue.push(of(2, 2000, now), 0, None);
    queue.push(of(3, 3000, now), 0, None);
    queue.push(of(2, 2001, now), 0, None);
    let served: Vec<_> = std::iter::from_fn(|| serve(&mut queue)).take(6).collect();
    assert_eq!(served, [1, 2000, 3000, 2, 2001, 3]);
    // Who comes back for each RPC is no faster than who has many wait.
    for rpc in 2002..2010 {
        queue.push(of(2, rpc, now), 0, None);
        let served = [serve(&mut queue), serve(&mut queue)];
        assert_eq!(served, [Some(rpc - 1998), Some(rpc)]);
    }
    assert_eq!(
        all(queue).len(),
        1000 - 12,
        "and time is over in the order of coming"
    );
}

#[test]
fn turns_are_kept_across_lines_and_when_they_join() {
    let now = Instant::now();
    let one = Rc::new(1);
    let mut queue = Queue::default();
    for rpc in 0..4 {
        queue.push(of(1, rpc, now), 0, (rpc % 2 == 0).then(|| one.clone()));
    }
    queue.push(of(2, 20, now), 0, Some(one.clone()));
    assert_eq!(serve(&mut queue), Some(0));
    queue.stop_avoiding(|_| true);
    let served: Vec<_> = std::iter::from_fn(|| serve(&mut queue)).collect();
    assert_eq!(served, [20, 1, 2, 3]);
    assert!(queue.lines.is_empty(), "nobody is remembered");
}

#[test]
fn who_has_fewest_streams_is_served_first_and_turns_decide_between_those_who_have_as_many() {
    let now = Instant::now();
    let one = Rc::new(1);
    let mut queue = Queue::default();
    for rpc in 10..14 {
        queue.push(of(1, rpc, now), 7, None);
    }
    // Those that come later are first, in any line.
    for rpc in 20..24 {
        queue.push(of(2, rpc, now), 0, (rpc % 2 == 0).then(|| one.clone()));
    }
    queue.push(of(3, 30, now), 1, None);
    assert_eq!(serve(&mut queue), Some(20));
    queue.holds([192, 0, 2, 2].into(), 1);
    // Both have one.
    assert_eq!([serve(&mut queue), serve(&mut queue)], [30, 21].map(Some));
    queue.holds([192, 0, 2, 2].into(), 8);
    assert_eq!(serve(&mut queue), Some(10));
    queue.holds([192, 0, 2, 1].into(), 8);
    assert_eq!([serve(&mut queue), serve(&mut queue)], [11, 22].map(Some));
    queue.holds([192, 0, 2, 2].into(), 0);
    queue.stop_avoiding(|_| true);
    queue.push(of(2, 24, now), 0, Some(one.clone()));
    let served: Vec<_> = std::iter::from_fn(|| serve(&mut queue)).collect();
    assert_eq!(served, [23, 24, 12, 13]);
}

#[test]
fn a_client_that_keeps_what_it_gets_does_not_come_before_one_that_gives_it_back() {
    let now = Instant::now();
    let mut queue = Queue::default();
    for rpc in 0..100 {
        queue.push(of(1, rpc, now), 799, None);
    }
    for rpc in 200..210 {
        queue.push(of(2, rpc, now), 0, None);
        // It has what became free, and ends.
        assert_eq!(serve(&mut queue), Some(rpc));
    }
    assert_eq!(serve(&mut queue), Some(0), "nobody else wants it");
}

#[test]
fn who_starves_is_seen_among_those_that_are_served_first() {
    let start = Instant::now();
    let at = |ms| start + Duration::from_millis(ms);
    let mut queue = Queue::default();
    for rpc in 10..30 {
        queue.push(of(1, rpc, start), 9, None);
    }
    for (rpc, ms) in (40..).zip([10, 20, 30]) {
        queue.push(of(2, rpc, at(ms)), 1, None);
    }
    queue.push(of(3, 50, at(25)), 0, None);
    queue.push(of(4, 60, start), 0, Some(Rc::new(1)));
    let starving = |ms, clients| {
        let starving = queue.starving(at(ms), clients).into_iter();
        let last = |one: Starving| {
            let last = (0..=u8::MAX).find(|last| one.client == [192, 0, 2, *last].into());
            (last.unwrap(), one.rpcs)
        };
        starving.map(last).collect::<Vec<_>>()
    };
    assert_eq!(starving(9, 2), []);
    assert_eq!(starving(9, 3), [(1, FEW)]);
    assert_eq!(starving(20, 2), [(2, 2)]);
    assert_eq!(starving(25, 2), [(3, 1), (2, 2)]);
    assert_eq!((queue.newcomers(9), queue.newcomers(0)), (1, 0));
    assert_eq!(
        (queue.first_since(), queue.first_streams()),
        (Some(start), 9)
    );
}

/// Of a thousand RPCs of client 1 nearly all have left unserved: those from 990 on wait.
fn mostly_given_up() -> Queue {
    let mut queue = Queue::default();
    let now = Instant::now();
    let push = |rpc| queue.push(of(1, rpc, now), 0, None);
    let places: Vec<_> = (0..1000).map(push).collect();
    for place in &places[..990] {
        queue.take(*place).unwrap();
    }
    queue
}

#[test]
fn who_leaves_unserved_takes_no_turn_of_its_client() {
    let mut queue = mostly_given_up();
    for rpc in 2000..2005 {
        queue.push(of(2, rpc, Instant::now()), 0, None);
    }
    let served: Vec<_> = std::iter::from_fn(|| serve(&mut queue)).take(10).collect();
    let taking_turns = [990, 2000, 991, 2001, 992, 2002, 993, 2003, 994, 2004];
    assert_eq!(served, taking_turns);
    // Who comes back for each RPC gets no more.
    let mut queue = mostly_given_up();
    for (own, other) in (990..1000).zip(2000..) {
        queue.push(of(2, other, Instant::now()), 0, None);
        let served = [serve(&mut queue), serve(&mut queue)];
        assert_eq!(served, [Some(own), Some(other)]);
    }
}

#[test]
fn who_is_served_in_one_line_has_had_its_turn_in_all() {
    let now = Instant::now();
    let one = Rc::new(1);
    let mut queue = Queue::default();
    for rpc in 0..6 {
        queue.push(of(1, rpc, now), 0, (rpc % 2 == 0).then(|| one.clone()));
    }
    for rpc in 20..23 {
        queue.push(of(2, rpc, now), 0, Some(one.clone()));
    }
    let served: Vec<_> = std::iter::from_fn(|| serve(&mut queue)).collect();
    assert_eq!(served, [0, 20, 1, 21, 2, 22, 3, 4, 5]);
}

#[test]
fn lines_of_any_length_join_and_nobody_is_lost() {
    let now = Instant::now();
    for (insisting, others) in [(100, 10), (10, 100), (100, 0)] {
        let one = Rc::new(1);
        let mut queue = Queue::default();
        for rpc in 0..others {
            queue.push(of(rpc as u8 % 3, rpc, now), 0, None);
        }
        for rpc in others..others + insisting {
            queue.push(of(rpc as u8 % 5, rpc, now), 0, Some(one.clone()));
        }
        // Client 0 has a later turn here than there.
        serve(&mut queue).unwrap();
        queue.stop_avoiding(|_| true);
        assert_eq!(Rc::strong_count(&one), 1);
        assert_eq!(queue.lines.len(), 1);
        let line = &queue.lines[0];
        let firsts = line.clients.values().filter_map(Client::first);
        assert_eq!(firsts.collect::<BTreeSet<_>>(), line.turns);
        let places = line.clients.values().flat_map(|client| &client.places);
        let waiting: BTreeSet<_> = line.waiting.keys().collect();
        assert_eq!(places.collect::<BTreeSet<_>>(), waiting);
        let served = std::iter::from_fn(|| serve(&mut queue)).count();
        assert_eq!(served as u32, others + insisting - 1);
        assert!(queue.is_empty());
    }
}
