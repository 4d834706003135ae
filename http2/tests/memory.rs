//! What a connection keeps once it is quiet, by the allocator's account: a burst leaves hardly more than one RPC does.

use std::time::Instant;

use allocation_counter::measure;
use http2::{Config, Connection, Event, Headers, Reason, Role, stock};

/// A client's engine and a server's, which answers every request that has ended.
struct Pair {
    client: Connection,
    server: Connection,
    now: Instant,
    /// Every answer has a field of its own.
    varied: bool,
    /// The stream that gets no answer.
    unanswered: Option<u32>,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let mut pair = Self {
            client: Connection::new(Role::Client, Config::default(), now),
            server: Connection::new(Role::Server, Config::default(), now),
            now,
            varied: false,
            unanswered: None,
        };
        pair.talk();
        pair
    }

    /// Opens so many streams, `varied` or all alike, and ends them if `end`; the number of the last one.
    fn open(&mut self, streams: usize, varied: bool, end: bool) -> u32 {
        let mut last = 0;
        for number in 0..streams {
            let mut head = request();
            if varied {
                head.push(b"x-varied", text(number).as_bytes());
            }
            last = self.client.open(head, false, 0).expect("a stream");
            self.client.send_data(last, &[1; 100], end, self.now);
        }
        last
    }

    /// Nothing happens for some time.
    fn quiet(&mut self) {
        self.talk();
        self.client.shrink();
        self.server.shrink();
    }

    /// Until neither has anything to say.
    fn talk(&mut self) {
        let mut deaf = false;
        while !deaf {
            let (now, varied, unanswered) = (self.now, self.varied, self.unanswered);
            let to_server = deliver(&mut self.client, &mut self.server, now, |server, event| {
                let ended = match event {
                    Event::Headers {
                        stream,
                        headers,
                        end_stream,
                        ..
                    } => {
                        stock::recycle(headers);
                        end_stream.then_some(stream)
                    }
                    Event::Data {
                        stream,
                        bytes,
                        end_stream,
                        ..
                    } => {
                        server.credit(stream, bytes.len());
                        end_stream.then_some(stream)
                    }
                    _ => None,
                };
                if let Some(stream) = ended
                    && unanswered != Some(stream)
                {
                    let mut head = response();
                    if varied {
                        head.push(b"x-varied", text(stream as usize).as_bytes());
                    }
                    server.send_headers(stream, &head, false);
                    // More than its window.
                    server.send_data(stream, &[2; 100_000], false, now);
                    server.send_trailers(stream, &trailers());
                }
            });
            let to_client =
                deliver(
                    &mut self.server,
                    &mut self.client,
                    now,
                    |client, event| match event {
                        Event::Headers { headers, .. } | Event::Trailers { headers, .. } => {
                            stock::recycle(headers);
                        }
                        Event::Data { stream, bytes, .. } => client.credit(stream, bytes.len()),
                        _ => {}
                    },
                );
            deaf = !to_server && !to_client;
        }
    }
}

/// Whether there was anything.
fn deliver(
    from: &mut Connection,
    to: &mut Connection,
    now: Instant,
    mut on: impl FnMut(&mut Connection, Event<'_>),
) -> bool {
    from.flush(now);
    let bytes = from.output().to_vec();
    from.consume(bytes.len());
    while from.take_sent().is_some() || from.take_cancelled().is_some() {}
    let mut input = &bytes[..];
    while let Some(event) = to.receive(&mut input, now).expect("no error") {
        on(to, event);
    }
    !bytes.is_empty()
}

/// Bytes that the client's and the server's connection have allocated after this.
fn kept(busy: impl Fn(&mut Pair)) -> [i64; 2] {
    [Role::Client, Role::Server].map(|role| {
        let mut connection = None;
        let info = measure(|| {
            let mut pair = Pair::new();
            busy(&mut pair);
            connection = Some(match role {
                Role::Client => pair.client,
                Role::Server => pair.server,
            });
            // What the thread has lent to both isn't theirs.
            for _ in 0..20 {
                stock::halve();
            }
        });
        drop(connection);
        info.bytes_current
    })
}

/// That a burst leaves no more than a KiB beyond this.
fn assert_little_beyond(base: [i64; 2], burst: [i64; 2], what: &str) {
    for ((base, burst), role) in base.into_iter().zip(burst).zip(["client", "server"]) {
        assert!(
            burst <= base + 1024,
            "{what}: {burst} B of a {role}, {base} without"
        );
    }
}

#[test]
fn a_burst_leaves_what_one_rpc_does() {
    let one = kept(|pair| {
        pair.open(1, false, true);
        pair.quiet();
    });
    assert!(one.iter().all(|kept| *kept < 1500), "{one:?}");
    let burst = kept(|pair| {
        for _ in 0..3 {
            pair.open(100, false, true);
            pair.talk();
        }
        pair.quiet();
    });
    assert_little_beyond(one, burst, "requests that are alike");
}

#[test]
fn the_table_of_who_sent_all_kinds_of_fields_is_given_back() {
    let one = kept(|pair| {
        pair.open(1, true, true);
        pair.quiet();
    });
    // Whoever received them has to keep them until it is told.
    let [client, _] = kept(|pair| {
        pair.open(100, true, true);
        pair.quiet();
    });
    assert_little_beyond(one, [client, 0], "requests of all kinds");
    let [_, server] = kept(|pair| {
        pair.varied = true;
        pair.open(100, false, true);
        pair.quiet();
    });
    assert_little_beyond(one, [0, server], "answers of all kinds");
    // And it is, by the next block.
    let next = kept(|pair| {
        pair.varied = true;
        pair.open(100, true, true);
        pair.quiet();
        pair.varied = false;
        pair.open(1, false, true);
        pair.quiet();
    });
    assert_little_beyond(one, next, "the next request");
}

#[test]
fn the_last_stream_of_a_burst_keeps_its_own_memory_only() {
    let one = kept(|pair| {
        pair.open(1, false, false);
        pair.quiet();
    });
    let burst = kept(|pair| {
        pair.open(99, false, true);
        pair.unanswered = Some(pair.open(1, false, true));
        pair.quiet();
        assert_eq!(pair.client.stream_count(), 1);
        assert_eq!(pair.server.stream_count(), 1);
    });
    assert_little_beyond(one, burst, "with a stream");
}

#[test]
fn streams_that_were_cancelled_leave_nothing() {
    let none = kept(Pair::quiet);
    let cancelled = kept(|pair| {
        for _ in 0..100 {
            let stream = pair.open(1, false, false);
            pair.talk();
            pair.client.reset(stream, Reason::CANCEL);
        }
        pair.talk();
        assert_eq!(pair.client.cancels_waiting(), 0);
        pair.quiet();
    });
    assert_little_beyond(none, cancelled, "cancels");
}

#[test]
fn a_frame_that_came_in_parts_leaves_nothing() {
    let none = kept(Pair::quiet);
    let parts = kept(|pair| {
        pair.quiet();
        // It has no stream: nobody thinks of giving memory back for it.
        let settings = [&[0, 0x3f, 0xfc, 4, 0, 0, 0, 0, 0][..], &[0; 0x3ffc]].concat();
        for part in settings.chunks(1000) {
            let event = pair.server.receive(&mut &part[..], pair.now);
            event.expect("no error");
        }
        pair.talk();
    });
    assert_little_beyond(none, parts, "SETTINGS in parts");
}

fn request() -> Headers {
    Headers::from_iter([
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/api.Echo/Echo"),
        (":authority", "a.test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "grpc-go/1.75.0"),
    ])
}

fn response() -> Headers {
    Headers::from_iter([
        (":status", "200"),
        ("content-type", "application/grpc"),
        ("server", "edge-proxy"),
    ])
}

fn trailers() -> Headers {
    Headers::from_iter([("grpc-status", "0")])
}

fn text(number: usize) -> String {
    format!("a value that differs: {number}")
}
