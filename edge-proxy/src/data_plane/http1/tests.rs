mod ends;

mod refused;

use std::time::Duration;

use http2::{Connection, Event};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::{serve_on, *};
use crate::{
    data_plane::{
        testing::{
            self, Bench, at_once, backend, elapse, frozen, headers, pass, paused, running, settle,
            until,
        },
        worker::Phase,
    },
    snapshot::pressure::{Level, Pressure},
    telemetry::metrics::{Limit, ResetCause},
};

/// A client's end of a connection to `bench`.
fn connect(bench: &Bench) -> DuplexStream {
    connect_with(bench, testing::policy(), 64 * 1024)
}

fn connect_with(bench: &Bench, policy: ListenerPolicy, buffer: usize) -> DuplexStream {
    let (client, server) = tokio::io::duplex(buffer);
    accept(bench, policy, server);
    client
}

/// The proxy's end of a connection to `bench`.
fn accept(
    bench: &Bench,
    policy: ListenerPolicy,
    transport: impl AsyncRead + AsyncWrite + Unpin + 'static,
) {
    accept_keeping(bench, policy, transport, |_| 0);
}

/// [`accept`], on a transport that keeps so much memory.
fn accept_keeping<T: AsyncRead + AsyncWrite + Unpin + 'static>(
    bench: &Bench,
    policy: ListenerPolicy,
    transport: T,
    kept: fn(&T) -> usize,
) {
    let worker = bench.worker.clone();
    let policy = Arc::new(policy);
    tokio::task::spawn_local(async move {
        let peer = "192.0.2.7:4711".parse().unwrap();
        let now = worker.tick();
        serve_on(&worker, transport, kept, Vec::new(), peer, policy, now).await;
    });
}

async fn send(client: &mut DuplexStream, text: &str) {
    client.write_all(text.as_bytes()).await.unwrap();
}

/// Reads until what came ends in `end`.
async fn read_to(client: &mut DuplexStream, end: &str) -> String {
    let mut got = Vec::new();
    while !got.ends_with(end.as_bytes()) {
        let byte = client.read_u8().await.unwrap_or_else(|_| {
            panic!("closed after {:?}", String::from_utf8_lossy(&got));
        });
        got.push(byte);
    }
    String::from_utf8(got).unwrap()
}

async fn read_all(client: &mut DuplexStream) -> String {
    let mut got = String::new();
    client.read_to_string(&mut got).await.unwrap();
    got
}

/// Over HTTP/1.1 an answer is one write: it waits for no window.
#[test]
fn short_of_memory_a_request_gets_its_answer() {
    running(|| async {
        let bench = Bench::new(&[]);
        bench.worker.press(Pressure {
            level: Level::Refusing,
            used: 96,
            limit: 100,
        });
        let mut client = connect(&bench);
        let got = ask(
            &mut client,
            "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n",
            "overloaded",
        )
        .await;
        assert!(got.starts_with("HTTP/1.1 503 "), "{got}");
        assert_eq!(bench.shard.resets(ResetCause::Overload).get(), 0);
    });
}

async fn ask(client: &mut DuplexStream, request: &str, end: &str) -> String {
    send(client, request).await;
    read_to(client, end).await
}

/// Has a request answered without a backend.
async fn direct(client: &mut DuplexStream) -> String {
    let request = "GET /direct/ HTTP/1.1\r\nhost: a\r\n\r\n";
    ask(client, request, "direct").await
}

/// Answers every request, when it has ended, with its path and the length of its body.
fn echo() -> impl FnMut(&mut Connection, Event<'_>) {
    let mut bodies = std::collections::HashMap::new();
    move |engine, event| {
        let (stream, ended) = match event {
            Event::Headers {
                stream,
                headers,
                end_stream,
                ..
            } => {
                let path = String::from_utf8_lossy(headers.path().unwrap()).into_owned();
                bodies.insert(stream, (path, 0));
                (stream, end_stream)
            }
            Event::Data {
                stream,
                bytes,
                end_stream,
                ..
            } => {
                bodies.get_mut(&stream).unwrap().1 += bytes.len();
                engine.credit(stream, bytes.len());
                (stream, end_stream)
            }
            Event::Trailers { stream, .. } => (stream, true),
            _ => return,
        };
        if ended {
            let (path, length) = bodies.remove(&stream).unwrap();
            engine.send_headers(
                stream,
                &headers(&[(":status", "200"), ("x-from", "backend")]),
                false,
            );
            let body = format!("{path} {length}");
            engine.send_data(stream, body.as_bytes(), true, Instant::now());
        }
    }
}

#[test]
fn a_request_is_answered_with_server_and_date_once_and_the_connection_stays() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let mut client = connect(&bench);
        for _ in 0..3 {
            let answer = direct(&mut client).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert_eq!(answer.matches("server: edge-proxy\r\n").count(), 1);
            assert_eq!(answer.matches("date: ").count(), 1);
            assert!(answer.contains("content-length: 6\r\n"));
            assert!(!answer.contains("connection:"));
        }
        drop(client);
        let lines = bench.logged();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("HTTP/1.1"), "{}", lines[0]);
    });
}

/// Its buffers are most of what a quiet connection would take.
#[test]
fn hyper_is_there_while_a_request_is() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let mut client = connect(&bench);
        let is_there = || {
            let clients = bench.worker.clients.borrow();
            let Some(ClientConnection::Http1(connection)) = clients.values().next() else {
                unreachable!()
            };
            // By hyper's service; without it there are the worker's, the task's and the transport's.
            Rc::strong_count(connection) > 3
        };
        settle().await;
        assert!(!is_there());
        for lines in ["", "\r\n"] {
            send(&mut client, lines).await;
            settle().await;
            assert!(!is_there(), "an empty line is no request");
            send(&mut client, "GET /direct/ HT").await;
            settle().await;
            assert!(is_there());
            ask(&mut client, "TP/1.1\r\nhost: a\r\n\r\n", "direct").await;
            settle().await;
            assert!(!is_there());
        }
        // Nor is it any more when several came at once.
        let get = "GET /direct/ HTTP/1.1\r\nhost: a\r\n\r\n";
        let post = "POST /direct/ HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc";
        send(&mut client, &[get, post, get].concat()).await;
        for _ in 0..3 {
            read_to(&mut client, "direct").await;
        }
        settle().await;
        assert!(!is_there());
        direct(&mut client).await;
    });
}

#[test]
fn empty_lines_before_a_request_are_of_its_head() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let now = bench.worker.now();
        let peer = "192.0.2.7:4711".parse().unwrap();
        // hyper reads all that it has once more with each part that it gets: so one, not one a line.
        for lines in ["\n", "\r\n", "\n\r\r\n"] {
            let connection =
                super::Connection::new(&bench.worker, peer, Arc::new(testing::policy()), now);
            let head = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
            let bytes = format!("{}{head}", lines.repeat(1000));
            let both = format!("{bytes}{bytes}");
            assert_eq!(connection.on_read(both.as_bytes(), now), bytes.len());
            assert_eq!(
                connection.on_read(&both.as_bytes()[bytes.len()..], now),
                bytes.len()
            );
        }
        let mut client = connect(&bench);
        for _ in 0..2 {
            send(&mut client, &"\r\n".repeat(1000)).await;
            direct(&mut client).await;
        }
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let mut client = connect(&bench);
        let three = "GET /direct/ HTTP/1.1\r\nhost: a\r\n\r\nGET /none HTTP/1.1\r\nhost: a\r\n\r\n\
                     HEAD /direct/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        send(&mut client, three).await;
        let answers = read_all(&mut client).await;
        let statuses: Vec<_> = answers
            .lines()
            .filter(|l| l.contains("HTTP/1.1 "))
            .collect();
        assert_eq!(
            statuses,
            [
                "HTTP/1.1 200 OK",
                "directHTTP/1.1 404 Not Found",
                "HTTP/1.1 200 OK"
            ]
        );
        assert!(
            answers.ends_with("\r\n\r\n"),
            "no body after HEAD: {answers}"
        );
        assert_eq!(answers.matches("content-length: 6\r\n").count(), 2);
    });
}

#[test]
fn a_post_is_relayed_with_its_body_and_back() {
    running(|| async {
        let address = backend(echo()).await;
        let bench = Bench::new(&[address]);
        let mut client = connect(&bench);
        let answer = ask(
            &mut client,
            "POST /plain/a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
            "0\r\n\r\n",
        )
        .await;
        assert!(answer.contains("x-from: backend"), "{answer}");
        assert!(answer.contains("server: edge-proxy\r\n"), "{answer}");
        assert!(answer.contains("/plain/a 5\r\n"), "{answer}");
        let chunked = "POST /plain/b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                       3\r\nabc\r\n4\r\ndefg\r\n0\r\nx-trailer: 1\r\n\r\n";
        let answer = ask(&mut client, chunked, "0\r\n\r\n").await;
        assert!(answer.contains("/plain/b 7\r\n"), "{answer}");
    });
}

#[test]
fn an_answer_that_comes_before_the_upload_has_ended_is_whole() {
    for (size, connection) in [
        (20_000, "keep-alive"),
        (20_000, "close"),
        (200_000, "close"),
    ] {
        running(|| async {
            let address = backend(move |engine, event| {
                if let Event::Headers { stream, .. } = event {
                    let length = size.to_string();
                    let head = headers(&[(":status", "200"), ("content-length", &length)]);
                    engine.send_headers(stream, &head, false);
                    engine.send_data(stream, &vec![b'x'; size], true, Instant::now());
                }
            })
            .await;
            let bench = Bench::new(&[address]);
            for rest in ["", "defghij"] {
                // Takes what the client sends, and no whole answer.
                let mut client = connect_with(&bench, testing::policy(), 4096);
                let head = format!("host: a\r\nconnection: {connection}\r\ncontent-length: 10");
                let request = format!("POST /plain/ HTTP/1.1\r\n{head}\r\n\r\nabc");
                let mut answer = ask(&mut client, &request, "\r\n\r\n").await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                if size < MAX_HEAD {
                    // hyper has all of it.
                    until(|| bench.worker.rpcs.borrow().len() == 0).await;
                }
                send(&mut client, rest).await;
                settle().await;
                answer = read_to(&mut client, &"x".repeat(size)).await;
                assert_eq!(answer.len(), size);
                if rest.is_empty() || connection == "close" {
                    assert_eq!(read_all(&mut client).await, "");
                } else {
                    direct(&mut client).await;
                }
            }
            let whole = format!(" bytes_out={size} ");
            for line in bench.logged() {
                assert!(line.contains(" flags=- "), "{line}");
                assert!(line.contains("/direct/") || line.contains(&whole), "{line}");
            }
        });
    }
}

#[test]
fn a_large_body_passes_within_a_bounded_window() {
    running(|| async {
        let address = backend(echo()).await;
        let bench = Bench::new(&[address]);
        let mut client = connect_with(&bench, testing::policy(), 4096);
        let length = 5 << 20;
        send(
            &mut client,
            &format!("POST /plain/l HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n"),
        )
        .await;
        client.write_all(&vec![b'x'; length]).await.unwrap();
        let answer = read_to(&mut client, "0\r\n\r\n").await;
        assert!(
            answer.contains(&format!("/plain/l {length}\r\n")),
            "{answer}"
        );
    });
}

#[test]
fn an_upload_that_the_backend_does_not_read_stops_at_the_window() {
    running(|| async {
        let taken = Rc::new(Cell::new(0));
        let address = backend({
            let taken = taken.clone();
            move |_, event| {
                if let Event::Data { bytes, .. } = event {
                    taken.set(taken.get() + bytes.len());
                }
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut client = connect_with(&bench, testing::policy(), 4096);
        send(
            &mut client,
            "POST /plain/l HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await;
        let mut sent = 0;
        // No byte more is taken when all windows are shut.
        while tokio::time::timeout(Duration::from_millis(300), client.write_all(b"400\r\n"))
            .await
            .is_ok()
        {
            if tokio::time::timeout(Duration::from_millis(300), client.write_all(&[b'x'; 1024]))
                .await
                .is_err()
            {
                break;
            }
            client.write_all(b"\r\n").await.unwrap();
            sent += 1024;
        }
        until(|| taken.get() > 0).await;
        assert!(
            sent <= taken.get() + REQUEST_BOUND,
            "{sent} of {}",
            taken.get()
        );
    });
}

/// Our window, one read of hyper's more, what hyper holds itself, and the pipe.
const REQUEST_BOUND: usize = 64 * 1024 + 2 * MAX_HEAD + 3 * 4096;

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    running(|| async {
        let address = backend(echo()).await;
        let bench = Bench::new(&[address]);
        let mut client = connect(&bench);
        let head = "POST /plain/e HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n";
        let interim = ask(&mut client, head, "\r\n\r\n").await;
        assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
        let answer = ask(&mut client, "ok", "0\r\n\r\n").await;
        assert!(answer.contains("/plain/e 2"), "{answer}");
    });
}

#[test]
fn http_1_0_gets_its_answer_and_the_end() {
    running(|| async {
        let address = backend(echo()).await;
        let bench = Bench::new(&[address]);
        let mut client = connect(&bench);
        send(&mut client, "GET /plain/old HTTP/1.0\r\n\r\n").await;
        let answer = read_all(&mut client).await;
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        assert!(!answer.contains("chunked"), "{answer}");
        assert!(answer.ends_with("\r\n\r\n/plain/old 0"), "{answer}");
        let lines = bench.logged();
        assert!(lines[0].contains(" protocol=HTTP/1.0 "), "{lines:?}");
    });
}

#[test]
fn head_is_relayed_and_its_answers_data_dropped() {
    running(|| async {
        let address = backend(echo()).await;
        let bench = Bench::new(&[address]);
        let mut client = connect(&bench);
        for _ in 0..2 {
            let answer = ask(
                &mut client,
                "HEAD /plain/h HTTP/1.1\r\nhost: a\r\n\r\n",
                "\r\n\r\n",
            )
            .await;
            assert!(answer.contains("x-from: backend"), "{answer}");
        }
        let answer = ask(
            &mut client,
            "GET /plain/h HTTP/1.1\r\nhost: a\r\n\r\n",
            "0\r\n\r\n",
        )
        .await;
        assert!(answer.contains("/plain/h 0"), "{answer}");
        assert_eq!(bench.worker.rpcs.borrow().len(), 0);
    });
}

#[test]
fn interim_answers_are_dropped_and_announced_trailers_kept() {
    running(|| async {
        let address = backend(|engine, event| {
            if let Event::Headers { stream, .. } = event {
                engine.send_headers(
                    stream,
                    &headers(&[(":status", "103"), ("link", "x")]),
                    false,
                );
                let head = headers(&[(":status", "200"), ("trailer", "x-sum")]);
                engine.send_headers(stream, &head, false);
                engine.send_data(stream, b"body", false, Instant::now());
                engine.send_trailers(stream, &headers(&[("x-sum", "7")]));
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut client = connect(&bench);
        let answer = ask(
            &mut client,
            "GET /plain/ HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n",
            "x-sum: 7\r\n\r\n",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(!answer.contains("103"), "{answer}");
    });
}

#[test]
fn a_slow_reader_holds_the_backend_back() {
    frozen(|| async {
        let blocked = Rc::new(Cell::new(0));
        let address = backend({
            let blocked = blocked.clone();
            move |engine, event| {
                if let Event::Headers { stream, .. } = event {
                    engine.send_headers(stream, &headers(&[(":status", "200")]), false);
                    engine.send_data(stream, &vec![b'x'; 4 << 20], true, Instant::now());
                }
                engine.flush(Instant::now());
                blocked.set(engine.pending_bytes());
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut client = connect_with(&bench, testing::policy(), 4096);
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        read_to(&mut client, "\r\n\r\n").await;
        at_once(|| blocked.get() > 0).await;
        settle().await;
        // A stream's window upstream, what hyper buffers, and what has passed already.
        assert!(blocked.get() > (4 << 20) - (512 << 10), "{}", blocked.get());
        let rest = read_to(&mut client, "\r\n0\r\n\r\n").await;
        assert!(rest.bytes().filter(|b| *b == b'x').count() == 4 << 20);
        at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
    });
}
