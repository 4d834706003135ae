//! Requests that end at the proxy: its own answers, and those that hyper gives by itself.

use std::sync::atomic::Ordering;

use super::*;
use crate::error::Flag;

#[test]
fn local_answers() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let cases = [
            (
                "POST /api.Echo/Echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
                "505",
                "gRPC needs HTTP/2",
            ),
            ("GET / HTTP/1.1\r\nhost: a\r\n\r\n", "404", "\r\n\r\n"),
            (
                "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n",
                "503",
                "no healthy upstream",
            ),
            ("GET / HTTP/1.1\r\n\r\n", "400", "invalid authority"),
            (
                "GET http://b/direct/ HTTP/1.1\r\nhost: a\r\n\r\n",
                "400",
                "invalid authority",
            ),
            (
                "GET http://a/direct/ HTTP/1.1\r\nhost: a\r\n\r\n",
                "200",
                "direct",
            ),
            (
                "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n",
                "405",
                "CONNECT is not supported",
            ),
            (
                "GET /healthz HTTP/1.1\r\nhost: a\r\nx-envoy-livenessprobe: healthz\r\n\r\n",
                "200",
                "\r\n\r\n",
            ),
            (
                "GET /\" HTTP/1.1\r\nhost: a\r\n\r\n",
                "400",
                "malformed request",
            ),
            (
                "POST /plain/ HTTP/1.1\r\nhost: a\r\ncontent-length: 9223372036854775808\r\n\r\n",
                "400",
                "malformed request",
            ),
            (
                "POST /plain/ HTTP/1.1\r\nhost: a\r\ncontent-length: 00000000000000000001\r\n\r\n",
                "400",
                "malformed request",
            ),
        ];
        for (request, status, end) in cases {
            let mut client = connect(&bench);
            let answer = ask(&mut client, request, end).await;
            assert_eq!(
                answer.split(' ').nth(1),
                Some(status),
                "{request}: {answer}"
            );
        }
        assert_eq!(bench.logged().len(), cases.len());
    });
}

#[test]
fn a_head_above_the_limit_gets_431_ours_or_hypers() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let mut client = connect(&bench);
        let request = |bytes: usize| {
            let value = "x".repeat(bytes);
            format!("GET /direct/ HTTP/1.1\r\nhost: a\r\nx-large: {value}\r\n\r\n")
        };
        let answer = ask(
            &mut client,
            &request(9000),
            "request header fields too large",
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert!(answer.contains("server: edge-proxy"), "{answer}");
        ask(&mut client, &request(7000), "direct").await;
        // With the method, the scheme, the path and `host`.
        for (fields, status) in [(93, "200"), (94, "431")] {
            let fields = "x-user: 1\r\n".repeat(fields);
            let request = format!("GET /direct/ HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
            let end = if status == "200" {
                "direct"
            } else {
                "too large"
            };
            let answer = ask(&mut client, &request, end).await;
            assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
        }
        let mut client = connect(&bench);
        send(&mut client, &request(40_000)).await;
        let answer = read_all(&mut client).await;
        assert_is_ours(&answer, 431, "request header fields too large");
        assert_eq!(bench.shard.limits(Limit::HeaderBytes).get(), 3);
        let lines = bench.logged();
        assert_eq!(
            lines
                .iter()
                .filter(|line| line.contains(" status=431 "))
                .count(),
            3,
            "{lines:?}"
        );
    });
}

#[test]
fn what_hyper_refuses_is_answered_counted_and_logged() {
    paused(|| async {
        let bench = Bench::new(&[]);
        for request in [
            "GET /direct/ HTTP/1.1\r\nhost : a\r\n\r\n",
            "GET\r\n\r\n",
            "GET /direct/ HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",
            "POST /direct/ HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "POST /direct/ HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
            "POST /direct/ HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            let mut client = connect(&bench);
            send(&mut client, request).await;
            let answer = read_all(&mut client).await;
            assert_is_ours(&answer, 400, "malformed request");
        }
        let lines = bench.logged();
        assert_eq!(lines.len(), 6, "{lines:?}");
        let says = |line: &String| {
            line.contains(" status=400 ")
                && line.contains(" flags=DPE detail=\"malformed request\" ")
                && line.contains(" bytes_out=17 ")
        };
        assert!(lines.iter().all(says), "{lines:?}");
        assert_eq!(bench.shard.flags(Flag::DownstreamProtocolError).get(), 6);
        assert_eq!(bench.shard.unrouted().started.get(), 6);
    });
}

#[test]
fn what_hyper_refuses_behind_other_requests_is_answered_after_them() {
    paused(|| async {
        let bench = Bench::new(&[]);
        let mut client = connect(&bench);
        let direct = "GET /direct/ HTTP/1.1\r\nhost: a\r\n\r\n";
        send(&mut client, &format!("{direct}{direct}GET\r\n\r\n")).await;
        let answers = read_all(&mut client).await;
        let (before, last) = answers.rsplit_once("direct").unwrap();
        assert_eq!(before.matches("HTTP/1.1 200 OK\r\n").count(), 2);
        assert_is_ours(last, 400, "malformed request");
    });
}

#[test]
fn what_hyper_refuses_behind_an_answer_that_waits_for_the_socket_is_answered_after_it() {
    paused(|| async {
        let bench = Bench::new(&[]);
        // Takes both requests, and no whole answer.
        let mut client = connect_with(&bench, testing::policy(), 64);
        let get = "GET /direct/ HTTP/1.1\r\nhost: a\r\n\r\n";
        send(&mut client, &format!("{get}GET\r\n\r\n")).await;
        let answers = read_all(&mut client).await;
        let (before, last) = answers.rsplit_once("direct").unwrap();
        assert!(before.starts_with("HTTP/1.1 200 OK\r\n"), "{before}");
        assert_is_ours(last, 400, "malformed request");
        let lines = bench.logged();
        assert!(lines[1].contains(" bytes_out=17 "), "{lines:?}");
    });
}

/// A whole answer of the proxy's own, the last of its connection.
fn assert_is_ours(answer: &str, status: u16, text: &str) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    let length = format!("content-length: {}", text.len());
    let fields = [
        "content-type: text/plain",
        "server: edge-proxy",
        "connection: close",
        &length,
    ];
    for field in fields {
        assert_eq!(
            head.lines().filter(|line| *line == field).count(),
            1,
            "{answer}"
        );
    }
    assert_eq!(head.matches("\r\ndate: ").count(), 1, "{answer}");
    assert_eq!(body, text);
}

#[test]
fn of_two_lengths_only_the_chunks_reach_the_backend() {
    running(|| async {
        let heads = Rc::new(RefCell::new(Vec::new()));
        let mut answer = echo();
        let address = backend({
            let heads = heads.clone();
            move |engine, event| {
                if let Event::Headers { headers, .. } = &event {
                    heads.borrow_mut().push(headers.clone());
                }
                answer(engine, event);
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        for order in [
            "content-length: 4\r\ntransfer-encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 4",
        ] {
            let mut client = connect(&bench);
            let request = format!(
                "POST /plain/s HTTP/1.1\r\nhost: a\r\n{order}\r\n\r\n2\r\nab\r\n0\r\n\r\nGET /plain/smuggled HTTP/1.1\r\nhost: a\r\n\r\n"
            );
            send(&mut client, &request).await;
            let answer = read_all(&mut client).await;
            assert!(answer.contains("/plain/s 2"), "{answer}");
            assert!(
                !answer.contains("smuggled"),
                "the connection ends after it: {answer}"
            );
        }
        for head in heads.borrow().iter() {
            assert_eq!(head.get(b"content-length"), None);
            assert_eq!(head.get(b"transfer-encoding"), None);
            assert_eq!(head.get(b"connection"), None);
        }
        assert_eq!(heads.borrow().len(), 2);
    });
}

/// A request that ends in these trailers.
fn with_trailers(path: &str, trailers: &str) -> String {
    let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked");
    format!("{head}\r\n\r\n1\r\na\r\n0\r\n{trailers}\r\n")
}

/// Trailers that servers on hyper, or Kestrel, don't take, and the answers to requests that end in them.
fn refused_trailers() -> [(String, &'static str, &'static str); 5] {
    let large = "request header fields too large";
    [
        (
            format!("x-large: {}\r\n", "x".repeat(20 << 10)),
            "431",
            large,
        ),
        ("aab: c\r\n".repeat(460), "431", large),
        ("aab: c\r\n".repeat(93), "431", large),
        ("te: gzip\r\n".into(), "400", "malformed request"),
        ("upgrade: h2c\r\n".into(), "400", "malformed request"),
    ]
}

/// Sends the rest of a request, and has its answer.
async fn is_refused(client: &mut DuplexStream, rest: &str, status: &str, text: &str) {
    let answer = ask(client, rest, text).await;
    assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
}

#[test]
fn trailers_that_backends_do_not_forgive_are_refused() {
    running(|| async {
        let begun = Rc::new(Cell::new(0));
        let ends = Rc::new(RefCell::new(Vec::new()));
        let mut echo = echo();
        let address = backend({
            let (begun, ends) = (begun.clone(), ends.clone());
            move |engine, event| {
                match &event {
                    Event::Headers { .. } => begun.set(begun.get() + 1),
                    Event::Trailers { headers, .. } => ends.borrow_mut().push(headers.len()),
                    Event::Reset { .. } => ends.borrow_mut().push(0),
                    _ => {}
                }
                echo(engine, event);
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut client = connect(&bench);
        for (number, (trailers, status, text)) in (1..).zip(refused_trailers()) {
            let request = with_trailers("/plain/", &trailers);
            let (begin, end) = request.split_at(request.find("0\r\n").unwrap());
            send(&mut client, begin).await;
            until(|| begun.get() == number).await;
            is_refused(&mut client, end, status, text).await;
            until(|| ends.borrow().len() == number).await;
            is_refused(
                &mut client,
                &with_trailers("/direct/", &trailers),
                status,
                text,
            )
            .await;
        }
        // The connection stays, and so does the one to the backend; whatever else trailers hold passes.
        let fields = "x-sum: 1\r\n".repeat(92);
        let answer = ask(&mut client, &with_trailers("/plain/", &fields), "0\r\n\r\n").await;
        assert!(answer.contains("/plain/ 1\r\n"), "{answer}");
        assert_eq!(*ends.borrow(), [0, 0, 0, 0, 0, 92]);
        let endpoint = &bench.worker.snapshot().clusters[0].endpoints[0].shared;
        assert_eq!(endpoint.connections.load(Ordering::Relaxed), 1);
        assert_eq!(endpoint.failures.load(Ordering::Relaxed), 0);
        assert_eq!(bench.shard.limits(Limit::HeaderBytes).get(), 6);
        assert_eq!(bench.shard.resets(ResetCause::Malformed).get(), 5);
        let refused = |line: &&String| line.contains(" flags=DPE ");
        assert_eq!(bench.logged().iter().filter(refused).count(), 10);
    });
}

#[test]
fn such_trailers_behind_the_answers_head_end_the_connection() {
    for (trailers, ..) in refused_trailers() {
        running(|| async {
            let address = backend(|engine, event| {
                if let Event::Headers { stream, .. } = event {
                    engine.send_headers(stream, &headers(&[(":status", "200")]), false);
                }
            })
            .await;
            let bench = Bench::new(&[address]);
            let mut client = connect(&bench);
            let request = with_trailers("/plain/", &trailers);
            let (begin, end) = request.split_at(request.find("0\r\n").unwrap());
            ask(&mut client, begin, "\r\n\r\n").await;
            send(&mut client, end).await;
            assert_eq!(read_all(&mut client).await, "", "it isn't whole");
            assert_eq!(bench.shard.resets(ResetCause::Malformed).get(), 1);
        });
    }
}

#[test]
fn such_trailers_are_refused_while_the_request_waits_for_a_connection() {
    running(|| async {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let bench = Bench::new(&[listener.local_addr().unwrap()]);
        let mut client = connect(&bench);
        for (trailers, status, text) in refused_trailers() {
            is_refused(
                &mut client,
                &with_trailers("/plain/", &trailers),
                status,
                text,
            )
            .await;
        }
        assert_eq!(bench.worker.rpcs.borrow().len(), 0);
        assert_eq!(bench.shard.resets(ResetCause::Malformed).get(), 0);
    });
}
