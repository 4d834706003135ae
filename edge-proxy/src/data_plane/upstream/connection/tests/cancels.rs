//! Cancels that a backend has to confirm before more of them may go.

use std::ops::Range;

use http2::UNCONFIRMED;
use tokio::{net::TcpListener, sync::Notify};

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
            let two_wait = UNCONFIRMED + 2;
            cancelled(&bench, &mut raw, &seen, 0..two_wait).await;
            let waiting = || connections(&bench)[0].link.engine().cancels_waiting();
            assert_eq!((waiting(), connections(&bench).len()), (2, 1));
            cancelled(&bench, &mut raw, &seen, two_wait..two_wait + 1).await;
            assert_eq!((waiting(), connections(&bench).len()), (3, 1));
            open(&mut raw, two_wait + 1).await;
            at_once(|| seen.borrow().len() == two_wait + 2).await;
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
        cancelled(&bench, &mut raw, &seen, 0..UNCONFIRMED).await;
        let first = connections(&bench).remove(0);
        let unacked = || first.link.engine().barrier_unacked_since().is_some();
        assert!(!unacked(), "so many may go without one");
        let three_wait = UNCONFIRMED + 3;
        cancelled(&bench, &mut raw, &seen, UNCONFIRMED..three_wait).await;
        at_once(unacked).await;
        assert_eq!(first.cancelling.borrow().len(), 3);
        pass(Duration::from_secs(19)).await;
        settle().await;
        assert!(!first.link.is_closed(), "19 s are not 20");
        open(&mut raw, three_wait).await;
        at_once(|| seen.borrow().len() == three_wait + 1).await;
        pass(Duration::from_secs(1)).await;
        at_once(|| first.link.is_closed()).await;
        assert!(first.cancelling.borrow().is_empty());
        let answer = raw.next_of(HEADERS).await;
        assert_eq!(answer[4] & END_STREAM, END_STREAM, "by a status alone");
        open(&mut raw, three_wait + 1).await;
        at_once(|| seen.borrow().len() == three_wait + 2).await;
        assert_eq!(connections(&bench).len(), 1, "on another one");
    });
}

/// A backend that acknowledges SETTINGS as Go's net/http2 does: while it writes, it reads on, and then all that have come
/// have one acknowledgement (`needToSendSettingsAck` in its `server.go`).
#[derive(Default)]
struct Go {
    /// What it writes takes long.
    writes: Cell<bool>,
    /// It is written.
    written: Notify,
    /// The kinds of all frames that have come.
    kinds: RefCell<Vec<u8>>,
}

impl Go {
    /// One that writes from the start, but for its SETTINGS.
    async fn new() -> (SocketAddr, Rc<Self>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let go = Rc::<Self>::default();
        go.writes.set(true);
        let served = go.clone();
        tokio::task::spawn_local(async move { served.serve(listener).await });
        (address, go)
    }

    async fn serve(&self, listener: TcpListener) {
        let (mut socket, _) = listener.accept().await.unwrap();
        let settings = testing::frame(SETTINGS, 0, 0, &[]);
        socket.write_all(&settings).await.unwrap();
        let mut unread = vec![0; PREFACE];
        socket.read_exact(&mut unread).await.unwrap();
        unread.clear();
        let mut owes = false;
        loop {
            tokio::select! {
                read = socket.read_buf(&mut unread) => {
                    if !matches!(read, Ok(1..)) {
                        return;
                    }
                }
                () = self.written.notified() => self.writes.set(false),
            }
            for frame in testing::whole_frames(&mut unread) {
                owes |= frame[3] == SETTINGS && frame[4] & ACK == 0;
                self.kinds.borrow_mut().push(frame[3]);
            }
            if owes && !self.writes.get() {
                let acknowledgement = testing::frame(SETTINGS, ACK, 0, &[]);
                socket.write_all(&acknowledgement).await.unwrap();
                owes = false;
            }
        }
    }

    /// How many frames of this kind have come.
    fn count(&self, kind: u8) -> usize {
        let kinds = self.kinds.borrow();
        kinds.iter().filter(|one| **one == kind).count()
    }

    /// RPCs of these numbers, one after the other, each cancelled when it is here.
    async fn cancelled(&self, bench: &Bench, raw: &mut Raw, numbers: Range<usize>) {
        for number in numbers {
            let stream = open(raw, number).await;
            at_once(|| self.count(HEADERS) == number + 1).await;
            let reset = testing::frame(RST_STREAM, 0, stream, &Reason::CANCEL.0.to_be_bytes());
            raw.send(&reset).await;
            at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
        }
    }
}

#[test]
fn cancels_reach_a_backend_that_acknowledges_several_settings_at_once() {
    frozen(|| async {
        let (address, go) = Go::new().await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let (mut raw, _) = Raw::open(&bench, patient()).await;
        go.cancelled(&bench, &mut raw, 0..25).await;
        at_once(|| go.count(RST_STREAM) == UNCONFIRMED).await;
        settle().await;
        go.written.notify_one();
        at_once(|| go.count(RST_STREAM) == 25).await;
        let only = connections(&bench).remove(0);
        at_once(|| only.cancelling.borrow().is_empty()).await;
        assert_eq!(only.link.engine().barrier_unacked_since(), None);
        assert_eq!(go.count(PING), 0);
    });
}

#[test]
fn a_backend_that_acknowledges_nothing_loses_its_connection_when_cancels_have_waited_for_20_s() {
    frozen(|| async {
        let (address, go) = Go::new().await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let (mut raw, _) = Raw::open(&bench, patient()).await;
        go.cancelled(&bench, &mut raw, 0..UNCONFIRMED).await;
        pass(Duration::from_secs(60)).await;
        settle().await;
        let only = connections(&bench).remove(0);
        assert!(!only.link.is_closed(), "nobody waits for it");
        go.cancelled(&bench, &mut raw, UNCONFIRMED..UNCONFIRMED + 3)
            .await;
        at_once(|| only.link.engine().barrier_unacked_since().is_some()).await;
        pass(Duration::from_secs(19)).await;
        settle().await;
        assert!(!only.link.is_closed(), "19 s are not 20");
        assert_eq!(only.cancelling.borrow().len(), 3);
        pass(Duration::from_secs(1)).await;
        at_once(|| only.link.is_closed()).await;
        assert!(only.cancelling.borrow().is_empty());
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
        cancelled(&bench, &mut raw, &seen, 0..UNCONFIRMED + 1).await;
        let first = connections(&bench).remove(0);
        assert_eq!(first.cancelling.borrow().len(), 1);
        // All but one of the streams that the backend allows.
        let most = first.link.engine().peer_max_streams() as usize;
        let all = UNCONFIRMED + most;
        cancelled(&bench, &mut raw, &seen, UNCONFIRMED + 1..all - 1).await;
        let live = open(&mut raw, all - 1).await;
        at_once(|| seen.borrow().len() == all).await;
        assert!(!first.link.engine().can_open());
        assert_eq!(first.cancelling.borrow().len(), most - 1);
        open(&mut raw, all).await;
        let waits = || bench.shard.limits(Limit::UpstreamConnections).get() == 1;
        at_once(waits).await;
        // The answer to the last stream confirms the resets of all earlier ones.
        raw.send(&testing::frame(DATA, 0, live, b"more")).await;
        at_once(|| seen.borrow().len() == all + 1).await;
        assert!(first.cancelling.borrow().is_empty());
        assert_eq!(first.link.engine().stream_count(), 2);
    });
}

#[test]
fn a_wave_of_cancels_is_no_strike_for_a_grpc_server_and_ends_nobody_elses_rpc() {
    frozen(|| async {
        const WAVE: usize = 15 * UNCONFIRMED;
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
        assert_eq!(barriers.get(), WAVE / UNCONFIRMED - 1);
        let only = connections(&bench).remove(0);
        at_once(|| only.cancelling.borrow().is_empty()).await;
        other.send(&testing::frame(DATA, 0, others, b"more")).await;
        let answer = other.next_of(HEADERS).await;
        assert_eq!(answer[4] & END_STREAM, 0, "by the backend");
        assert!(!only.link.is_closed());
    });
}
