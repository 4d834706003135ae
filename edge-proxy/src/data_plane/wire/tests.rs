use std::{
    cell::{Cell, RefCell},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Wake, Waker},
};

use http2::{Config, Connection, Role};
use tokio::{
    io::{AsyncRead as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::data_plane::testing::{self, Bench, Client, backend, headers, running, until};
use crate::data_plane::tls::{Gate, Tls};

#[test]
fn an_engine_that_panicked_in_anothers_turn_is_not_asked_again() {
    let now = Instant::now();
    let engine = Connection::new(Role::Client, Config::default(), now);
    let link = Link::new(engine, Rc::default(), now);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _engine = link.engine();
        panic!("as an engine would");
    }));
    assert!(panicked.is_err());
    assert!(link.poisoned.get());
    assert!(!link.engine().can_open());
    assert!(link.engine().is_empty());
}

#[test]
fn a_drained_socket_wakes_the_task_that_asked() {
    running(|| async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut peer, mut transport) = (peer.unwrap(), Transport::Plain(accepted.unwrap().0));
        let scratch = RefCell::new(vec![0; 64].into_boxed_slice());
        peer.write_all(b"short").await.unwrap();
        let read = poll_fn(|cx| {
            let read = std::task::ready!(transport.poll_read(cx, &scratch, |_| {}));
            assert!(!transport.is_readable(cx), "it was drained");
            Poll::Ready(read)
        });
        assert_eq!(read.await.unwrap(), 5);
        drop(peer);
        // Nobody but the socket wakes this.
        poll_fn(|cx| match transport.is_readable(cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        let end = poll_fn(|cx| transport.poll_read(cx, &scratch, |_| {})).await;
        assert_eq!(end.unwrap(), 0);
    });
}

/// Something else on the worker that is always ready: looks once in each of its turns.
struct Other<T> {
    seen: Rc<RefCell<Vec<T>>>,
    task: tokio::task::JoinHandle<()>,
}

impl<T: Copy + 'static> Other<T> {
    fn looks(at: impl Fn() -> T + 'static) -> Self {
        let seen = Rc::new(RefCell::new(vec![at()]));
        let task = tokio::task::spawn_local({
            let seen = seen.clone();
            poll_fn(move |cx| {
                seen.borrow_mut().push(at());
                // As a connection does that has more to do.
                cx.waker().wake_by_ref();
                Poll::Pending
            })
        });
        Self { seen, task }
    }

    /// What it saw, two after the other.
    fn steps(self) -> Vec<(T, T)> {
        self.task.abort();
        let seen = self.seen.borrow();
        seen.windows(2).map(|two| (two[0], two[1])).collect()
    }
}

#[test]
fn others_have_their_turn_after_100_frames_of_a_client() {
    running(|| async {
        let mut listener = testing::policy();
        listener.http2.max_concurrent_streams = 1000;
        let bench = Bench::with(&[], listener.clone(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, listener).await;
        // All of it in one segment, and nothing after it: the socket stays silent.
        for _ in 0..450 {
            client
                .engine
                .open(testing::grpc("/direct/"), false, 0)
                .unwrap();
        }
        let other = Other::looks({
            let worker = bench.worker.clone();
            move || worker.rpcs.borrow().len()
        });
        client.flush().await;
        until(|| bench.worker.rpcs.borrow().len() == 450).await;
        let most = other.steps().iter().map(|(a, b)| b - a).max();
        assert_eq!(most, Some(100), "frames in one turn");
    });
}

#[test]
fn others_have_their_turn_after_100_frames_of_a_backend() {
    running(|| async {
        const STREAMS: usize = 90;
        let streams = Rc::new(RefCell::new(Vec::new()));
        let address = backend({
            let streams = streams.clone();
            move |engine, event| {
                let Event::Headers { stream, .. } = event else {
                    return;
                };
                let mut streams = streams.borrow_mut();
                streams.push(stream);
                if streams.len() == STREAMS {
                    // All in one segment; three frames each.
                    for stream in streams.iter() {
                        let head = [(":status", "200"), ("content-type", "application/grpc")];
                        engine.send_headers(*stream, &headers(&head), false);
                        engine.send_data(*stream, b"\0\0\0\0\0", false, testing::now());
                        engine.send_trailers(*stream, &headers(&[("grpc-status", "0")]));
                    }
                }
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut client = Client::connect(&bench).await;
        for _ in 0..STREAMS {
            client
                .engine
                .open(testing::grpc("/api.Echo/Echo"), true, 0)
                .unwrap();
        }
        let endpoint = bench.worker.snapshot().clusters[0].endpoints[0]
            .shared
            .clone();
        let active = move || endpoint.active.load(Ordering::Relaxed);
        let other = Other::looks({
            let active = active.clone();
            move || active()
        });
        client.flush().await;
        until(|| streams.borrow().len() == STREAMS && active() == 0).await;
        let most = other
            .steps()
            .iter()
            .map(|(a, b)| a.saturating_sub(*b))
            .max();
        // Each is three frames.
        let most = most.unwrap() as usize;
        assert!(
            (2..=100 / 3 + 1).contains(&most),
            "{most} RPCs ended in one turn"
        );
    });
}

#[test]
fn others_have_their_turn_after_64_kib() {
    running(|| async {
        const BODY: usize = 256 * 1024;
        let (mut listener, mut cluster) = (testing::policy(), testing::cluster_policy());
        listener.http2.initial_stream_window_size = 1 << 20;
        cluster.max_replay_bytes = 1 << 20;
        cluster.connect_timeout = Duration::from_secs(3600);
        // Accepts, and says nothing: what comes is kept.
        let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let bench = Bench::with(&[silent.local_addr().unwrap()], listener.clone(), cluster);
        let mut client = Client::connect_with(&bench, listener).await;
        let stream = client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        until(|| bench.worker.memory.held() > 0).await;
        let itself = bench.worker.memory.held();
        let other = Other::looks({
            let worker = bench.worker.clone();
            move || worker.memory.held() - itself
        });
        client
            .engine
            .send_data(stream, &[0; BODY], true, testing::now());
        while client.engine.pending_bytes() > 0 {
            client.flush().await;
        }
        client.flush().await;
        until(|| bench.worker.memory.held() >= BODY).await;
        let most = other
            .steps()
            .iter()
            .map(|(a, b)| b.saturating_sub(*a))
            .max();
        assert!(most <= Some(64 * 1024), "{most:?} bytes in one turn");
    });
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn who_is_woken_by_a_turn_that_broke_off_writes_once_for_all_of_it() {
    let now = Instant::now();
    let wakes = Rc::new(Wakes::default());
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(woken.clone());
    let link = |wakes: &Rc<Wakes>| {
        let engine = Connection::new(Role::Client, Config::default(), now);
        let link = Link::new(engine, wakes.clone(), now);
        *link.waker.borrow_mut() = Some(waker.clone());
        link.dirty.set(false);
        link
    };
    let (reads, writes) = (link(&wakes), link(&wakes));
    let turn = |broke_off| {
        reads.begin_turn(&Context::from_waker(&waker));
        writes.wake();
        reads.in_turn.set(false);
        wakes.end_turn(broke_off);
        woken.0.load(Ordering::Relaxed)
    };
    assert_eq!([turn(true), turn(true), turn(false)], [0, 0, 1]);
    // Outside of turns (a deadline) at once.
    writes.dirty.set(false);
    writes.wake();
    assert_eq!(woken.0.load(Ordering::Relaxed), 2);
}

#[test]
fn what_a_slow_reader_takes_of_one_batch_of_records_is_progress() {
    running(|| async {
        let (server, client) = testing::tls();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connect = std::thread::spawn(move || {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_recv_buffer_size(4096).unwrap();
            socket.connect(&address.into()).unwrap();
            let mut socket = std::net::TcpStream::from(socket);
            let name = "localhost".try_into().unwrap();
            let mut session = rustls::ClientConnection::new(client, name).unwrap();
            while session.is_handshaking() {
                session.complete_io(&mut socket).unwrap();
            }
            socket.set_nonblocking(true).unwrap();
            socket
        });
        let (accepted, _) = listener.accept().await.unwrap();
        socket2::SockRef::from(&accepted)
            .set_send_buffer_size(4096)
            .unwrap();
        let tls = Tls::accept(accepted, server, &Gate::default(), |_| {}).await;
        let mut transport = Transport::Tls(tls.unwrap().0);
        // It takes records, and needn't open them.
        let mut peer = TcpStream::from_std(connect.join().unwrap()).unwrap();

        let mut now = Instant::now();
        let engine = Connection::new(Role::Client, Config::default(), now);
        let link = Link::new(engine, Rc::default(), now);
        let mut blocked = async |now, peer: Option<&mut TcpStream>| {
            let before = link.write_blocked();
            let mut peer = peer;
            poll_fn(|cx| {
                write(&link, &mut transport, now, cx).unwrap();
                let blocked = link.write_blocked();
                let Some(peer) = peer.as_mut().filter(|_| blocked == before) else {
                    return Poll::Ready(blocked);
                };
                let mut buffer = [0; 1024];
                let mut buffer = tokio::io::ReadBuf::new(&mut buffer);
                if Pin::new(peer).poll_read(cx, &mut buffer).is_ready() {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            })
            .await
        };
        // As much as is sealed at once.
        for n in 0..64 * 1024 / 17 {
            link.engine().ping(n);
        }
        let mut since = blocked(now, None).await;
        assert_eq!(since, Some(now));
        assert!(link.engine().output().is_empty(), "all of it is sealed");
        let mut moved = 0;
        while since.is_some() {
            // While nobody reads there is none, as soon as the kernel has taken all that it does.
            loop {
                tokio::task::yield_now().await;
                now += Duration::from_secs(1);
                let still = blocked(now, None).await;
                if still == since {
                    break;
                }
                since = still;
            }
            now += Duration::from_secs(1);
            since = blocked(now, Some(&mut peer)).await;
            assert!(since.is_none_or(|since| since == now));
            moved += 1;
        }
        assert!(moved > 3, "{moved} times");
    });
}

/// Leaves something to flush for another connection with every event.
struct Passes {
    link: Link,
    to: Link,
    events: Cell<usize>,
}

impl Side for Passes {
    fn link(&self) -> &Link {
        &self.link
    }
    fn on_event(&self, _: &Rc<Worker>, _: Event<'_>, _: Instant) {
        self.events.set(self.events.get() + 1);
        self.to.dirty.set(false);
        self.to.wake();
    }
    fn on_sent(&self, _: &Rc<Worker>, _: Sent) {}
    fn check(&self, _: &Rc<Worker>, now: Instant) -> Check {
        Check::Until(now + FAR)
    }
    fn after_turn(&self, _: &Rc<Worker>, _: Instant) -> Option<End> {
        None
    }
}

#[test]
fn pieces_of_a_large_message_are_passed_on_together() {
    running(|| async {
        let bench = Bench::with(&[], testing::policy(), testing::cluster_policy());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut peer, mut transport) = (peer.unwrap(), Transport::Plain(accepted.unwrap().0));
        let now = bench.worker.tick();
        let link = |role| {
            let engine = Connection::new(role, Config::default(), now);
            Link::new(engine, bench.worker.wakes.clone(), now)
        };
        let side = Passes {
            link: link(Role::Server),
            to: link(Role::Client),
            events: Cell::new(0),
        };
        let woken = Arc::<Woken>::default();
        *side.to.waker.borrow_mut() = Some(Waker::from(woken.clone()));
        // What a client says first, a head, and two frames of a body.
        let mut client = Connection::new(Role::Client, Config::default(), now);
        side.link.engine().flush(now);
        let hello = side.link.engine().output().to_vec();
        let mut input = &hello[..];
        while client.receive(&mut input, now).unwrap().is_some() {}
        let stream = client.open(testing::grpc("/direct/"), false, 0).unwrap();
        client.flush(now);
        let mut head = client.output().to_vec();
        client.consume(head.len());
        client.send_data(stream, &[0; 10_000], false, now);
        client.flush(now);
        head.extend_from_slice(client.output());
        client.consume(client.output().len());
        client.send_data(stream, &[0; 1_000], false, now);
        client.flush(now);
        let small = client.output().to_vec();

        let mut run = pin!(run(&side, &bench.worker, &mut transport, Vec::new()));
        let mut turn = async |side: &Passes| {
            let before = side.events.get();
            poll_fn(|cx| {
                let _ = run.as_mut().poll(cx);
                match side.events.get() > before {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            })
            .await;
            woken.0.load(Ordering::Relaxed)
        };
        peer.write_all(&head).await.unwrap();
        assert_eq!(turn(&side).await, 0, "there may be more");
        assert_eq!(side.link.pieces.get(), 1);
        peer.write_all(&small).await.unwrap();
        assert!(turn(&side).await > 0, "a small piece is the last");
        assert_eq!(side.link.pieces.get(), 0);
    });
}
