//! What neither a request, nor a slow reader, nor a machine that stood still may do to a connection that others share.

use http2::hpack::Encoder;

use super::*;
use crate::telemetry::captured::Log;

/// A backend's end of the only connection, frame by frame, on a [`frozen`] clock.
struct Backend {
    end: PipeEnd,
    unread: Vec<u8>,
    encoder: Encoder,
}

impl Backend {
    /// The other end of a connection whose lanes hold `capacity` bytes each.
    fn of(bench: &Bench, capacity: usize) -> Self {
        let (ours, end) = pipe::direct(capacity);
        *bench.worker.network.borrow_mut() = Some(Rc::new(Wide(RefCell::new(Some(ours)))));
        Self {
            end,
            unread: Vec::new(),
            encoder: Encoder::new(4096),
        }
    }

    /// Its SETTINGS, and the acknowledgement of ours.
    async fn greet(&mut self) {
        let mut preface = vec![0; PREFACE];
        self.end.read_exact(&mut preface).await.unwrap();
        self.say(&testing::frame(SETTINGS, 0, 0, &[])).await;
        self.say(&testing::frame(SETTINGS, ACK, 0, &[])).await;
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.end.write_all(bytes).await.unwrap();
    }

    /// The next frame for which `wanted` holds; those before it are dropped.
    async fn next(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        loop {
            let frames = testing::whole_frames(&mut self.unread);
            let mut frames = frames.into_iter();
            if let Some(found) = frames.find(|frame| wanted(frame)) {
                let rest: Vec<u8> = frames.flatten().collect();
                self.unread.splice(..0, rest);
                return found;
            }
            assert!(self.end.read_buf(&mut self.unread).await.unwrap() > 0);
        }
    }

    async fn next_of(&mut self, kind: u8) -> Vec<u8> {
        self.next(|frame| frame[3] == kind).await
    }

    /// An answer that is a status alone.
    async fn answer(&mut self, stream: u32) {
        let head = [
            (":status", "200"),
            ("content-type", "application/grpc"),
            ("grpc-status", "0"),
        ];
        let mut block = Vec::new();
        self.encoder.encode(&testing::headers(&head), &mut block);
        let flags = END_HEADERS | END_STREAM;
        self.say(&testing::frame(HEADERS, flags, stream, &block))
            .await;
    }
}

fn on_pipe() -> Bench {
    let address = ([192, 0, 2, 1], 1).into();
    let mut cluster = testing::cluster_policy();
    cluster.max_connections = 1;
    Bench::with(&[address], patient(), cluster)
}

fn stream_of(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[5..9].try_into().unwrap())
}

#[test]
fn what_a_backend_says_with_its_goaway_is_in_the_log() {
    frozen(|| async {
        let log = Log::default();
        let _guard = log.capture();
        let bench = on_pipe();
        let mut backend = Backend::of(&bench, 1 << 20);
        let mut client = Client::connect_with(&bench, patient()).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        backend.greet().await;
        backend.next_of(HEADERS).await;
        let said = [
            &[0, 0, 0, 1, 0, 0, 0, 11],
            &b"too_many_resets\n\xffINFO x=\""[..],
        ]
        .concat();
        let long = [said, vec![b'~'; 1000]].concat();
        backend
            .say(&testing::frame(testing::GOAWAY, 0, 0, &long))
            .await;
        backend.answer(1).await;
        assert_eq!(client.status(stream).await, "0");
        let lines = log.lines("GOAWAY from a backend");
        assert_eq!(lines.len(), 1, "{lines:?}");
        for part in [
            "endpoint=192.0.2.1:1",
            "reason=ENHANCE_YOUR_CALM",
            "last_stream=1",
            "too_many_resets",
            "xffINFO",
        ] {
            assert!(lines[0].contains(part), "{part} in {lines:?}");
        }
        assert!(lines[0].len() < 600, "256 bytes of what was said");
        assert!(lines[0].contains(&"~".repeat(230)) && !lines[0].contains(&"~".repeat(257)));
    });
}

#[test]
fn headers_of_300_kb_end_only_the_rpc_that_asked_for_them() {
    running(|| async {
        let mut echo = echo();
        let repeats = move |engine: &mut Connection, event: Event<'_>| match &event {
            Event::Headers {
                stream, headers, ..
            } if headers.get(b"x-size").is_some() => {
                let size = headers.get(b"x-size").unwrap();
                let size: usize = std::str::from_utf8(size).unwrap().parse().unwrap();
                let head = [(":status", "200"), ("content-type", "application/grpc")];
                engine.send_headers(*stream, &testing::headers(&head), false);
                let message = "name ".repeat(size / 5);
                let status = [("grpc-status", "3"), ("grpc-message", &message)];
                engine.send_trailers(*stream, &testing::headers(&status));
            }
            _ => echo(engine, event),
        };
        let address = backend(repeats).await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let mut client = Client::connect_with(&bench, patient()).await;
        let runs = client.call("/api.Echo/Echo", b"", false);
        client.flush().await;
        at_once(|| {
            connections(&bench)
                .first()
                .is_some_and(|one| one.is_ready())
        })
        .await;
        let first = connections(&bench).remove(0);
        for (size, status) in [
            (100_000, "14"),
            (300_000, "14"),
            (1000, "3"),
            (300_000, "14"),
        ] {
            let mut head = testing::grpc("/api.Echo/Echo");
            head.push(b"x-size", size.to_string().as_bytes());
            let stream = client.engine.open(head, true, 0).unwrap();
            assert_eq!(client.status(stream).await, status, "{size}");
        }
        client.engine.send_data(runs, b"", true, testing::now());
        assert_eq!(client.status(runs).await, "0");
        let all = connections(&bench);
        assert!(all.len() == 1 && Rc::ptr_eq(&all[0], &first));
    });
}

/// A server on the crate `h2` that has forgotten a stream resets it anew for each frame that crossed its reset.
#[test]
fn resets_of_streams_that_are_gone_have_the_connection_replaced_and_what_runs_there_ends_well() {
    frozen(|| async {
        let bench = on_pipe();
        let mut backend = Backend::of(&bench, 1 << 20);
        let mut client = Client::connect_with(&bench, patient()).await;
        let runs = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        backend.greet().await;
        let running = stream_of(&backend.next_of(HEADERS).await);
        let first = connections(&bench).remove(0);
        let crossed = COMPLAINTS as usize / 10;
        for number in 1..=10 {
            assert!(first.is_ready(), "{number}");
            let other = client.call("/api.Echo/Echo", b"", true);
            client.flush().await;
            let stream = stream_of(&backend.next_of(HEADERS).await);
            let reset = |code: u32| testing::frame(RST_STREAM, 0, stream, &code.to_be_bytes());
            backend.say(&reset(2)).await;
            assert_ne!(client.status(other).await, "0");
            backend.say(&reset(5).repeat(crossed)).await;
            at_once(|| first.link.engine().complaints() == number * crossed as u32).await;
        }
        at_once(|| !first.is_ready()).await;
        assert!(!first.link.is_closed());
        backend.answer(running).await;
        assert_eq!(client.status(runs).await, "0");
        at_once(|| first.link.is_closed()).await;
    });
}

/// One on the crate `h2` with an acknowledgement to write reads nothing before it has written it.
#[test]
fn a_backend_that_reads_nothing_is_read_from_all_the_same() {
    frozen(|| async {
        const STREAMS: usize = 80;
        let bench = on_pipe();
        let mut backend = Backend::of(&bench, 16 * 1024);
        let (mut raw, _) = Raw::open(&bench, patient()).await;
        let head = testing::grpc("/api.Echo/Echo");
        for number in 0..STREAMS {
            let block = raw.block(&head);
            let stream = 2 * number as u32 + 1;
            raw.send(&testing::frame(HEADERS, END_HEADERS, stream, &block))
                .await;
        }
        at_once(|| bench.worker.rpcs.borrow().len() == STREAMS).await;
        backend.greet().await;
        for _ in 0..STREAMS {
            backend.next_of(HEADERS).await;
        }
        let only = connections(&bench).remove(0);
        // What bypasses the bound on data, and is too large for a table.
        for number in 0..STREAMS {
            let large = format!("{number}{}", "~".repeat(6000));
            let block = raw.block(&testing::headers(&[("x", &large)]));
            let flags = END_HEADERS | END_STREAM;
            raw.send(&testing::frame(
                HEADERS,
                flags,
                2 * number as u32 + 1,
                &block,
            ))
            .await;
        }
        let waits = || only.link.engine().output().len();
        at_once(|| waits() > 400 * 1024).await;
        settle().await;
        backend.answer(1).await;
        let answer = raw.next_of(HEADERS).await;
        assert_eq!(
            (stream_of(&answer), answer[4] & END_STREAM),
            (1, END_STREAM)
        );
        assert!(waits() > 400 * 1024, "it hasn't read anything");
    });
}

/// How late the clock is looked at: a little, and as after a stop of the whole machine.
const STOPS: [Duration; 2] = [Duration::from_millis(5100), Duration::from_secs(3600)];

#[test]
fn settings_that_came_in_time_count_when_they_are_read_late() {
    for stop in STOPS {
        frozen(|| async {
            let bench = on_pipe();
            let mut backend = Backend::of(&bench, 1 << 20);
            let mut client = Client::connect_with(&bench, patient()).await;
            client.call("/api.Echo/Echo", b"", true);
            client.flush().await;
            at_once(|| connections(&bench).len() == 1).await;
            let first = connections(&bench).remove(0);
            settle().await;
            // All at once, as for a process that got no processor meanwhile.
            backend.greet().await;
            pass(stop).await;
            at_once(|| first.link.is_closed() || first.is_ready()).await;
            assert!(!first.link.is_closed());
        });
    }
}

/// One RPC more than may be is cancelled after the backend has seen them, and an upload of `body` bytes begins before; the stream of
/// that.
async fn asks_for_a_barrier(bench: &Bench, backend: &mut Backend, body: usize) -> u32 {
    let (mut raw, _) = Raw::open(bench, patient()).await;
    let head = testing::grpc("/api.Echo/Echo");
    let rpcs = http2::UNCONFIRMED + 2;
    for number in 0..rpcs {
        let block = raw.block(&head);
        let stream = 2 * number as u32 + 1;
        raw.send(&testing::frame(HEADERS, END_HEADERS, stream, &block))
            .await;
    }
    at_once(|| bench.worker.rpcs.borrow().len() == rpcs).await;
    backend.greet().await;
    let mut streams = Vec::new();
    while streams.len() < rpcs {
        streams.push(stream_of(&backend.next_of(HEADERS).await));
    }
    for part in vec![7; body].chunks(16_000) {
        raw.send(&testing::frame(DATA, 0, 1, part)).await;
    }
    let only = connections(bench).remove(0);
    let uploaded = || {
        let engine = only.link.engine();
        engine.output().len() + engine.pending_bytes() >= body
    };
    at_once(|| body == 0 || uploaded()).await;
    for number in 1..rpcs {
        let (stream, reason) = (2 * number as u32 + 1, Reason::CANCEL.0.to_be_bytes());
        raw.send(&testing::frame(RST_STREAM, 0, stream, &reason))
            .await;
    }
    at_once(|| bench.worker.rpcs.borrow().len() == 1).await;
    tokio::task::spawn_local(async move { while raw.next().await.is_some() {} });
    settle().await;
    streams[0]
}

#[test]
fn an_acknowledgement_that_came_in_time_counts_when_it_is_read_late_behind_much_else() {
    for stop in [Duration::from_secs(20), Duration::from_secs(3600)] {
        frozen(|| async {
            let bench = on_pipe();
            let mut backend = Backend::of(&bench, 8 << 20);
            asks_for_a_barrier(&bench, &mut backend, 0).await;
            let only = connections(&bench).remove(0);
            assert!(only.link.engine().barrier_unacked_since().is_some());
            // Frames of a type that nobody knows, more than is read at once when it is late indeed.
            let frames = if stop > Duration::from_secs(60) {
                100
            } else {
                1
            };
            for _ in 0..frames {
                let unknown = testing::frame(0xbe, 0, 0, &[0; 16_000]);
                backend.say(&unknown).await;
            }
            backend.say(&testing::frame(SETTINGS, ACK, 0, &[])).await;
            pass(stop).await;
            let settled = || only.link.engine().barrier_unacked_since().is_none();
            at_once(|| only.link.is_closed() || settled()).await;
            assert!(!only.link.is_closed());
        });
    }
}

#[test]
fn a_backend_that_reads_slowly_and_steadily_keeps_its_connection_while_cancels_wait() {
    frozen(|| async {
        let bench = on_pipe();
        let mut backend = Backend::of(&bench, 1024);
        asks_for_a_barrier(&bench, &mut backend, 60_000).await;
        let only = connections(&bench).remove(0);
        assert_eq!(only.link.engine().cancels_waiting(), 1);
        let mut read = vec![0; 1024];
        let mut seen = Vec::new();
        // It takes more than a minute to come to the barrier.
        for _ in 0.. {
            let n = backend.end.read(&mut read).await.unwrap();
            seen.extend_from_slice(&read[..n]);
            settle().await;
            if seen.ends_with(&testing::frame(SETTINGS, 0, 0, &[])) {
                break;
            }
            pass(Duration::from_secs(2)).await;
            settle().await;
            assert!(!only.link.is_closed(), "after {} bytes", seen.len());
        }
        assert!(seen.len() > 50_000);
        // It left two seconds ago.
        pass(Duration::from_secs(17)).await;
        settle().await;
        assert!(!only.link.is_closed(), "19 s are not 20");
        pass(Duration::from_secs(1)).await;
        at_once(|| only.link.is_closed()).await;
    });
}

#[test]
fn room_that_a_socket_had_in_time_counts_when_it_is_tried_late() {
    for stop in [Duration::from_secs(30), Duration::from_secs(3600)] {
        frozen(|| async {
            let bench = on_pipe();
            let mut backend = Backend::of(&bench, 4096);
            let mut client = Client::connect_with(&bench, patient()).await;
            let stream = client.call("/api.Echo/Echo", &[7; 60_000], true);
            client.flush().await;
            backend.greet().await;
            let stalled = || connections(&bench).first()?.link.write_blocked();
            at_once(|| stalled().is_some()).await;
            settle().await;
            let only = connections(&bench).remove(0);
            // All that there is, at once.
            let mut read = vec![0; 8192];
            assert!(backend.end.read(&mut read).await.unwrap() > 0);
            pass(stop).await;
            settle().await;
            assert!(!only.link.is_closed());
            backend.answer(1).await;
            assert_eq!(client.status(stream).await, "0");
        });
    }
}
