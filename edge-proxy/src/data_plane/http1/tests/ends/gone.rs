//! One side goes away, and the other is told.

use super::*;

#[test]
fn a_client_that_goes_away_is_told_to_the_backend() {
    running(|| async {
        let (bench, resets, requests) = unanswered().await;
        // While the backend is silent, and in the middle of an upload.
        for request in [
            "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n",
            "POST /plain/ HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nabc",
        ] {
            let before = requests.get();
            let mut client = connect(&bench);
            send(&mut client, request).await;
            until(|| requests.get() > before).await;
            drop(client);
            until(|| resets.get() > before).await;
        }
        assert_eq!(bench.worker.rpcs.borrow().len(), 0);
        assert_eq!(bench.worker.clients.borrow().len(), 0);
    });
}

#[test]
fn a_client_that_ends_its_half_before_the_answer_has_gone_away() {
    running(|| async {
        let (bench, resets, requests) = unanswered().await;
        let mut client = connect(&bench);
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        until(|| requests.get() == 1).await;
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await, "");
        until(|| resets.get() == 1).await;
        let lines = bench.logged();
        assert!(lines[0].contains(" flags=DC "), "{lines:?}");
    });
}

#[test]
fn an_upload_that_breaks_off_is_the_clients_end_and_one_that_cannot_be_read_its_fault() {
    running(|| async {
        let (bench, resets, requests) = unanswered().await;
        let counted = || {
            let of = |cause| bench.shard.resets(cause).get();
            (of(ResetCause::ConnectionClosed), of(ResetCause::Malformed))
        };
        let chunked = "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        let uploads = ["content-length: 9\r\n\r\nabc", chunked];
        for (before, upload) in uploads.iter().enumerate() {
            let mut client = connect(&bench);
            send(
                &mut client,
                &format!("POST /plain/ HTTP/1.1\r\nhost: a\r\n{upload}"),
            )
            .await;
            until(|| requests.get() > before).await;
            drop(client);
            until(|| resets.get() > before).await;
        }
        assert_eq!(counted(), (2, 0));
        let mut client = connect(&bench);
        send(
            &mut client,
            &format!("POST /plain/ HTTP/1.1\r\nhost: a\r\n{chunked}no size\r\n"),
        )
        .await;
        assert_eq!(read_all(&mut client).await, "");
        until(|| bench.worker.rpcs.borrow().len() == 0).await;
        assert_eq!(counted(), (2, 1));
        let lines = bench.logged();
        for (line, flag) in lines.iter().zip(["DC", "DC", "DPE"]) {
            assert!(line.contains(&format!(" flags={flag} ")), "{lines:?}");
        }
    });
}

#[test]
fn a_client_that_goes_away_with_another_request_behind() {
    running(|| async {
        let (bench, resets, requests) = unanswered().await;
        let get = "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n";
        // At once, later, and as much as is read ahead.
        let behind = [(get.len(), 0), (0, get.len()), (10, 30_000)];
        for (before, (at_once, later)) in behind.into_iter().enumerate() {
            let next = get.repeat(1 + 30_000 / get.len());
            let mut client = connect(&bench);
            send(&mut client, &format!("{get}{}", &next[..at_once])).await;
            until(|| requests.get() > before).await;
            send(&mut client, &next[at_once..at_once + later]).await;
            settle().await;
            drop(client);
            until(|| resets.get() > before).await;
        }
        assert_eq!(requests.get(), 3);
        let lines = bench.logged();
        assert!(
            lines.iter().all(|line| line.contains(" flags=DC ")),
            "{lines:?}"
        );
    });
}

#[test]
fn what_a_client_sends_behind_a_request_is_read_ahead_within_bounds() {
    running(|| async {
        let (bench, _, requests) = unanswered().await;
        let mut client = connect_with(&bench, testing::policy(), 4096);
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        until(|| requests.get() == 1).await;
        let mut sent = 0;
        let write = async {
            loop {
                sent += client.write(&[b'x'; 1024]).await.unwrap();
            }
        };
        tokio::select! {
            () = write => {}
            () = settle() => {}
        }
        assert!(sent <= 32 * 1024 + 2 * 4096, "{sent}");
    });
}

/// Its request has a backend that takes its time, and nothing else would count what it holds.
#[test]
fn what_is_read_ahead_counts_as_held_back_and_its_connection_goes_when_memory_is_short() {
    frozen(|| async {
        let (resets, requests) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let address = backend(silent(resets.clone(), requests.clone())).await;
        // A quarter of it may be held: two of these and not three.
        let (policy, cluster) = (testing::policy(), testing::cluster_policy());
        let bench = Bench::within(Some(320 * 1024), &[address], policy, cluster);
        let held = || bench.worker.memory.held();
        let mut clients = Vec::new();
        for number in 1..=3 {
            let mut client = connect(&bench);
            send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
            at_once(|| requests.get() == number).await;
            let before = held();
            pass(Duration::from_millis(300)).await;
            send(&mut client, &"x".repeat(30_000)).await;
            if number < 3 {
                at_once(|| held() >= before + 30_000).await;
            }
            clients.push(client);
        }
        at_once(|| resets.get() == 1).await;
        // The connection, and its RPC.
        assert_eq!(bench.shard.limits(Limit::Memory).get(), 2);
        assert_eq!(bench.shard.resets(ResetCause::Overload).get(), 1);
        assert_eq!(read_all(&mut clients.remove(0)).await, "");
        assert!(!bench.worker.memory.is_exceeded());
        drop(clients);
        at_once(|| resets.get() == 3 && held() == 0).await;
    });
}

/// Of hyper's buffers nobody else knows.
#[test]
fn a_head_that_is_not_whole_counts_as_held_back_and_its_connection_goes_when_memory_is_short() {
    frozen(|| async {
        // A quarter of it may be held: two of these and not three.
        let (policy, cluster) = (testing::policy(), testing::cluster_policy());
        let bench = Bench::within(Some(240 * 1024), &[], policy, cluster);
        let held = || bench.worker.memory.held();
        let begin = format!("GET /direct/ HTTP/1.1\r\nx: {}", "x".repeat(6000));
        let end = "\r\nhost: a\r\n\r\n";
        let mut clients = Vec::new();
        for number in 1..=3 {
            let mut client = connect(&bench);
            // Not of a first request only.
            if number == 2 {
                direct(&mut client).await;
                settle().await;
            }
            let before = held();
            send(&mut client, &begin).await;
            if number < 3 {
                at_once(|| held() >= before + 20_000).await;
            }
            clients.push(client);
            pass(Duration::from_millis(300)).await;
        }
        at_once(|| bench.shard.limits(Limit::Memory).get() == 1).await;
        assert_eq!(read_all(&mut clients.remove(0)).await, "");
        assert!(!bench.worker.memory.is_exceeded());
        for client in &mut clients {
            ask(client, end, "direct").await;
        }
        at_once(|| held() == 0).await;
    });
}

/// Before its task's turn, that is: it may be far behind those of many that take more.
#[test]
fn what_is_shed_goes_at_once() {
    frozen(|| async {
        let bench = Bench::new(&[]);
        let mut client = connect(&bench);
        send(&mut client, "GET /direct/ HT").await;
        at_once(|| bench.worker.memory.held() > 0).await;
        let clients: Vec<_> = bench.worker.clients.borrow().values().cloned().collect();
        clients[0].shed(&bench.worker, bench.worker.tick());
        let mut byte = [0];
        let mut buffer = tokio::io::ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        let read = Pin::new(&mut client).poll_read(&mut cx, &mut buffer);
        assert!(matches!(read, Poll::Ready(Ok(()))), "nobody has closed it");
        assert!(buffer.filled().is_empty());
        drop(clients);
        at_once(|| bench.worker.clients.borrow().is_empty()).await;
    });
}

#[test]
fn what_hyper_has_of_an_answer_counts_while_its_client_takes_nothing() {
    frozen(|| async {
        let address = backend(|engine, event| {
            if let Event::Headers { stream, .. } = event {
                engine.send_headers(stream, &headers(&[(":status", "200")]), false);
                engine.send_data(stream, &[b'x'; 30_000], true, Instant::now());
            }
        })
        .await;
        // One may be held, and not two.
        let (policy, cluster) = (testing::policy(), testing::cluster_policy());
        let bench = Bench::within(Some(240 * 1024), &[address], policy, cluster);
        let held = || bench.worker.memory.held();
        let get = "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n";
        let (mut first, mut second) = {
            let client = || connect_with(&bench, testing::policy(), 4096);
            (client(), client())
        };
        send(&mut first, get).await;
        at_once(|| bench.worker.rpcs.borrow().len() == 0 && held() > 30_000).await;
        pass(Duration::from_millis(300)).await;
        send(&mut second, get).await;
        at_once(|| bench.shard.limits(Limit::Memory).get() == 1).await;
        let cut = read_all(&mut first).await;
        assert!(cut.len() < 30_000, "{}", cut.len());
        let whole = read_to(&mut second, "\r\n0\r\n\r\n").await;
        assert!(whole.len() > 30_000, "{}", whole.len());
        at_once(|| held() == 0).await;
    });
}

/// A record without an end, say, of which no head has begun.
#[test]
fn what_the_transport_keeps_counts_while_no_request_is_answered() {
    frozen(|| async {
        let (bench, _, requests) = unanswered().await;
        let held = || bench.worker.memory.held();
        let (mut client, server) = tokio::io::duplex(4096);
        accept_keeping(&bench, testing::policy(), server, |_| 5000);
        at_once(|| held() == 5000).await;
        let now = bench.worker.tick();
        let clients = bench.worker.clients.borrow().clone();
        assert!(clients.values().all(|one| one.stalled() == Some(now)));
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        at_once(|| requests.get() == 1 && held() == 0).await;
    });
}

#[test]
fn a_client_that_goes_away_while_its_request_waits_for_a_connection() {
    running(|| async {
        // Accepts, and never says anything: no SETTINGS, no stream.
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let bench = Bench::new(&[listener.local_addr().unwrap()]);
        let mut client = connect(&bench);
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        until(|| bench.worker.rpcs.borrow().len() == 1).await;
        drop(client);
        until(|| bench.worker.rpcs.borrow().len() == 0).await;
        let lines = bench.logged();
        assert!(lines[0].contains("DC"), "{lines:?}");
    });
}

/// hyper closes as soon as the response is whole by its head, which may be before the backend's stream ends.
#[test]
fn a_client_that_got_all_before_the_connection_ended_has_not_gone_away() {
    running(|| async {
        let resets = Rc::new(Cell::new(0));
        let address = backend({
            let resets = resets.clone();
            move |engine, event| match event {
                Event::Headers {
                    stream,
                    headers: request,
                    ..
                } => {
                    let status = match request.path() {
                        Some(b"/plain/204") => "204",
                        Some(b"/plain/304") => "304",
                        _ => "200",
                    };
                    let mut head = vec![(":status", status)];
                    if status == "200" {
                        head.push(("content-length", "4"));
                    }
                    engine.send_headers(stream, &headers(&head), false);
                    if request.known(http2::Known::Method) == Some(&b"GET"[..]) && status == "200" {
                        engine.send_data(stream, b"body", false, Instant::now());
                    }
                }
                Event::Reset { .. } => resets.set(resets.get() + 1),
                _ => {}
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let requests = [
            "GET /plain/",
            "HEAD /plain/",
            "GET /plain/204",
            "GET /plain/304",
        ];
        for (number, request) in requests.iter().enumerate() {
            let mut client = connect(&bench);
            let request = format!("{request} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
            send(&mut client, &request).await;
            let answer = read_all(&mut client).await;
            assert_eq!(answer.ends_with("body"), number == 0, "{answer}");
            // What the backend might still say is nobody's.
            until(|| resets.get() == number + 1).await;
        }
        assert_eq!(bench.shard.resets(ResetCause::ConnectionClosed).get(), 0);
        let lines = bench.logged();
        assert_eq!(lines.len(), requests.len(), "{lines:?}");
        let well = |line: &String| line.contains(" flags=- ");
        assert!(lines.iter().all(well), "{lines:?}");
    });
}

#[test]
fn a_client_that_did_not_take_all_has_gone_away() {
    running(|| async {
        let address = backend(|engine, event| {
            if let Event::Headers { stream, .. } = event {
                let head = headers(&[(":status", "200"), ("content-length", "4000")]);
                engine.send_headers(stream, &head, false);
                engine.send_data(stream, &[b'x'; 4000], false, Instant::now());
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut client = connect_with(&bench, testing::policy(), 1000);
        let request = "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n";
        ask(&mut client, request, "xxx").await;
        drop(client);
        until(|| bench.worker.rpcs.borrow().len() == 0).await;
        assert_eq!(bench.shard.resets(ResetCause::ConnectionClosed).get(), 1);
        let lines = bench.logged();
        assert!(lines[0].contains(" flags=DC "), "{lines:?}");
    });
}

#[test]
fn a_backend_that_fails_in_the_middle_ends_the_connection_without_the_last_chunk() {
    running(|| async {
        let address = backend(|engine, event| {
            if let Event::Headers { stream, .. } = event {
                engine.send_headers(stream, &headers(&[(":status", "200")]), false);
                engine.send_data(stream, b"half", false, Instant::now());
                engine.flush(Instant::now());
                engine.reset(stream, http2::Reason::INTERNAL_ERROR);
            }
        })
        .await;
        let bench = Bench::new(&[address]);
        let mut client = connect(&bench);
        send(&mut client, "GET /plain/ HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let answer = read_all(&mut client).await;
        assert!(!answer.contains("\r\n0\r\n"), "{answer}");
        assert_eq!(bench.worker.rpcs.borrow().len(), 0);
    });
}

/// Of HTTP/1.0, where the connection's end is the response's.
#[test]
fn a_response_that_breaks_off_has_no_close_notify() {
    running(|| async {
        let address = backend(|engine, event| {
            if let Event::Headers {
                stream,
                headers: request,
                ..
            } = event
            {
                engine.send_headers(stream, &headers(&[(":status", "200")]), false);
                let ends = request.path() == Some(b"/plain/whole");
                engine.send_data(stream, b"all or half", ends, Instant::now());
            }
        })
        .await;
        let (server, client) = testing::tls();
        for (path, end) in [
            ("/plain/whole", Ok(0)),
            ("/plain/half", Err(ErrorKind::UnexpectedEof)),
        ] {
            let bench = Bench::new(&[address]);
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
                .await
                .unwrap();
            let to = listener.local_addr().unwrap();
            let name = "localhost".try_into().unwrap();
            let session = rustls::ClientConnection::new(client.clone(), name).unwrap();
            let read = Arc::new(AtomicBool::new(false));
            let reading = read.clone();
            let client = std::thread::spawn(move || {
                let socket = std::net::TcpStream::connect(to).unwrap();
                let mut stream = rustls::StreamOwned::new(session, socket);
                let request = format!("GET {path} HTTP/1.0\r\n\r\n");
                stream.write_all(request.as_bytes()).unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"all or half") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    answer.extend(byte);
                }
                reading.store(true, Ordering::Relaxed);
                stream
                    .read_to_end(&mut answer)
                    .map_err(|error| error.kind())
            });
            let (socket, _) = listener.accept().await.unwrap();
            let tls = Tls::accept(socket, server.clone(), &bench.worker.gate, |_| {}).await;
            accept(&bench, testing::policy(), tls.unwrap().0);
            until(|| read.load(Ordering::Relaxed)).await;
            // What isn't whole by now is broken off.
            bench.worker.enter(Phase::Cutting);
            until(|| client.is_finished()).await;
            assert_eq!(client.join().unwrap(), end, "{path}");
        }
    });
}
