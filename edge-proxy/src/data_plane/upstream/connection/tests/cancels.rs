//! Cancels that a backend has to confirm before more of them may go.

use std::ops::Range;

use super::*;
use crate::data_plane::testing::is_barrier;

/// A backend that acknowledges no barrier, and answers a stream when it gets DATA of it, with a head alone; and the streams that it has
/// seen.
async fn deaf() -> (SocketAddr, Rc<RefCell<Vec<u32>>>) {
    let streams = Rc::new(RefCell::new(Vec::new()));
    let seen = streams.clone();
    let address = backend_behind(
        |frame| !is_barrier(frame),
        move |engine, event| match event {
            Event::Headers { stream, .. } => seen.borrow_mut().push(stream),
            Event::Data { stream, .. } => {
                let head =
                    testing::headers(&[(":status", "200"), ("content-type", "application/grpc")]);
                engine.send_headers(stream, &head, false);
            }
            _ => {}
        },
    );
    (address.await, streams)
}

/// An RPC of this number, which goes on.
async fn open(raw: &mut Raw, number: usize) -> u32 {
    let stream = 2 * number as u32 + 1;
    let block = raw.block(&testing::grpc("/api.Echo/Echo"));
    raw.send(&testing::frame(HEADERS, END_HEADERS, stream, &block))
        .await;
    stream
}

/// RPCs of these numbers, one after the other, each cancelled when the backend has seen it.
async fn cancelled(bench: &Bench, raw: &mut Raw, seen: &RefCell<Vec<u32>>, numbers: Range<usize>) {
    for number in numbers {
        let stream = open(raw, number).await;
        at_once(|| seen.borrow().len() == number + 1).await;
        let reset = testing::frame(RST_STREAM, 0, stream, &Reason::CANCEL.0.to_be_bytes());
        raw.send(&reset).await;
        at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
    }
}

#[test]
fn a_connection_on_which_many_cancels_wait_is_used_only_if_there_is_no_other() {
    for (most, wanted) in [(1, 1), (2, 2)] {
        frozen(|| async {
            let (address, seen) = deaf().await;
            let mut cluster = testing::cluster_policy();
            (cluster.max_connections, cluster.per_connection_streams) = (most, 3);
            let bench = Bench::with(&[address], patient(), cluster);
            let (mut raw, _) = Raw::open(&bench, patient()).await;
            // Ten resets may be under way.
            cancelled(&bench, &mut raw, &seen, 0..12).await;
            let waiting = || connections(&bench)[0].link.engine().cancels_waiting();
            assert_eq!((waiting(), connections(&bench).len()), (2, 1));
            cancelled(&bench, &mut raw, &seen, 12..13).await;
            assert_eq!((waiting(), connections(&bench).len()), (3, 1));
            open(&mut raw, 13).await;
            at_once(|| seen.borrow().len() == 14).await;
            assert_eq!(connections(&bench).len(), wanted);
            let first = connections(&bench).remove(0);
            let on_first = first.link.engine().stream_count();
            assert_eq!(on_first, usize::from(most == 1));
        });
    }
}

#[test]
fn a_backend_that_leaves_cancels_unacknowledged_for_20_s_loses_its_connection() {
    frozen(|| async {
        let (address, seen) = deaf().await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let (mut raw, _) = Raw::open(&bench, patient()).await;
        cancelled(&bench, &mut raw, &seen, 0..10).await;
        let first = connections(&bench).remove(0);
        let unacked = || first.link.engine().barrier_unacked_since().is_some();
        assert!(!unacked(), "ten may go without one");
        cancelled(&bench, &mut raw, &seen, 10..13).await;
        at_once(unacked).await;
        assert_eq!(first.cancelling.borrow().len(), 3);
        pass(Duration::from_secs(19)).await;
        settle().await;
        assert!(!first.link.is_closed(), "19 s are not 20");
        open(&mut raw, 13).await;
        at_once(|| seen.borrow().len() == 14).await;
        pass(Duration::from_secs(1)).await;
        at_once(|| first.link.is_closed()).await;
        assert!(first.cancelling.borrow().is_empty());
        let answer = raw.next_of(HEADERS).await;
        assert_eq!(answer[4] & END_STREAM, END_STREAM, "by a status alone");
        open(&mut raw, 14).await;
        at_once(|| seen.borrow().len() == 15).await;
        assert_eq!(connections(&bench).len(), 1, "on another one");
    });
}

#[test]
fn cancels_that_go_make_room_for_those_that_wait() {
    frozen(|| async {
        let (address, seen) = deaf().await;
        let mut cluster = testing::cluster_policy();
        (cluster.max_connections, cluster.per_connection_streams) = (1, 1000);
        let bench = Bench::with(&[address], patient(), cluster);
        let mut policy = patient();
        policy.http2.max_concurrent_streams = 1000;
        let (mut raw, _) = Raw::open(&bench, policy).await;
        cancelled(&bench, &mut raw, &seen, 0..11).await;
        let first = connections(&bench).remove(0);
        assert_eq!(first.cancelling.borrow().len(), 1);
        // All but one of the streams that the backend allows.
        let most = first.link.engine().peer_max_streams() as usize;
        cancelled(&bench, &mut raw, &seen, 11..10 + most - 1).await;
        let live = open(&mut raw, 10 + most - 1).await;
        at_once(|| seen.borrow().len() == 10 + most).await;
        assert!(!first.link.engine().can_open());
        assert_eq!(first.cancelling.borrow().len(), most - 1);
        open(&mut raw, 10 + most).await;
        let waits = || bench.shard.limits(Limit::UpstreamConnections).get() == 1;
        at_once(waits).await;
        // The answer to the last stream confirms the resets of all earlier ones.
        raw.send(&testing::frame(DATA, 0, live, b"more")).await;
        at_once(|| seen.borrow().len() == 10 + most + 1).await;
        assert!(first.cancelling.borrow().is_empty());
        assert_eq!(first.link.engine().stream_count(), 2);
    });
}

#[test]
fn a_wave_of_cancels_is_no_strike_for_a_grpc_server_and_ends_nobody_elses_rpc() {
    frozen(|| async {
        const WAVE: usize = 90;
        let frames = Rc::new(RefCell::new(Strikes::default()));
        let (opened, barriers) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let address = backend_behind(
            {
                let (frames, barriers) = (frames.clone(), barriers.clone());
                move |frame| {
                    frames.borrow_mut().count(frame);
                    barriers.set(barriers.get() + usize::from(is_barrier(frame)));
                    true
                }
            },
            {
                let opened = opened.clone();
                move |engine, event| match event {
                    Event::Headers { .. } => opened.set(opened.get() + 1),
                    Event::Data { stream, .. } => {
                        let head = [(":status", "200"), ("content-type", "application/grpc")];
                        engine.send_headers(stream, &testing::headers(&head), false);
                    }
                    _ => {}
                }
            },
        );
        let mut cluster = testing::cluster_policy();
        (cluster.max_connections, cluster.per_connection_streams) = (1, 1000);
        let bench = Bench::with(&[address.await], patient(), cluster);
        let (mut other, _) = Raw::open(&bench, patient()).await;
        let others = open(&mut other, 0).await;
        let (mut raw, _) = Raw::open(&bench, patient()).await;
        let mut resets = Vec::new();
        for number in 0..WAVE {
            let stream = open(&mut raw, number).await;
            let reason = Reason::CANCEL.0.to_be_bytes();
            resets.extend(testing::frame(RST_STREAM, 0, stream, &reason));
        }
        at_once(|| opened.get() == 1 + WAVE).await;
        raw.send(&resets).await;
        at_once(|| frames.borrow().streams.len() == 1).await;
        assert_eq!((frames.borrow().pings, frames.borrow().strikes), (0, 0));
        assert_eq!(barriers.get(), WAVE / 10 - 1);
        let only = connections(&bench).remove(0);
        at_once(|| only.cancelling.borrow().is_empty()).await;
        other.send(&testing::frame(DATA, 0, others, b"more")).await;
        let answer = other.next_of(HEADERS).await;
        assert_eq!(answer[4] & END_STREAM, 0, "by the backend");
        assert!(!only.link.is_closed());
    });
}
