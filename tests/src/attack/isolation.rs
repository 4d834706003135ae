//! What one client does to others through a connection to a backend that they share.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Arena, CHAT, DOWNLOAD, Finding, UNARY, UPLOAD, concurrency, until};
use crate::{
    client::{Http2, Reply, grpc_request},
    frames::{self, Frame, Wire, code, flag, kind},
    h2attack::{Reader, Secured},
    scripted::framed,
};

/// 50 server streams of small messages; the client reads its socket, and gives no window.
pub(super) async fn unread_messages(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let mut wire = arena.attacker.wire(&[]).await?;
    let mut waiting = HashSet::new();
    for number in 0..50 {
        let stream = 2 * number + 1;
        let asked = download(&[("x-test-replies", "1000000"), ("x-test-reply-bytes", "20")]);
        wire.send(&open(stream, &asked)).await?;
        waiting.insert(stream);
    }
    let begun = Instant::now();
    let stall = arena.scale.of(60, 2);
    let most = Duration::from_secs(stall + 5);
    let mut ended = None;
    while let Ok(Some(frame)) = timeout(most.saturating_sub(begun.elapsed()), wire.next()).await {
        if frame.kind == kind::RST_STREAM || frame.ends_stream() {
            waiting.remove(&frame.stream);
        }
        if waiting.is_empty() {
            ended = Some(begun.elapsed());
            break;
        }
    }
    Ok(vec![
        Finding::within("all 50 streams reset", ended, most),
        Finding::exactly(
            "limit window_stall acted",
            arena.limit("window_stall").await,
            50,
        ),
    ])
}

/// 100 downloads of 1 MiB that nobody reads, on the one connection that the victim and another client have, too.
pub(super) async fn stalled_downloads(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let mut wire = arena.attacker.wire(&[]).await?;
    // In small, with the 100 that a victim has at a time when it was kept waiting, still fewer than a connection's 200.
    let count = arena.scale.of(100, 90);
    for number in 0..count {
        let asked = download(&[("x-test-reply-bytes", "1048576")]);
        wire.send(&open(2 * number + 1, &asked)).await?;
    }
    let calls = || arena.backend.journal.calls(DOWNLOAD);
    let all = count as usize;
    let begun = until(Duration::from_secs(30), || async { calls() >= all }).await;
    ensure!(
        begun.is_some(),
        "{} downloads have begun, of {all}",
        calls()
    );
    let other = arena.attacker.http2_with(&wide()).await?;
    let mut slowest = Duration::ZERO;
    for _ in 0..arena.scale.of(50, 10) {
        let begun = Instant::now();
        let asked = grpc_request(UNARY, &[("x-test-reply-bytes", "1048576")]);
        let reply = timeout(Duration::from_secs(10), call(&other, asked, &framed(b"")))
            .await
            .context("another client's download hangs")??;
        ensure!(
            reply.body.len() > 1 << 20,
            "{} bytes of 1 MiB",
            reply.body.len()
        );
        slowest = slowest.max(begun.elapsed());
        sleep(Duration::from_millis(100)).await;
    }
    let running = arena.metric("edge_rpcs_in_flight", &[]).await as usize;
    let mut ended = 0;
    for limit in ["window_stall", "settings_timeout"] {
        ended += arena.limit(limit).await;
    }
    Ok(vec![
        Finding::new(
            format!("downloads that are still stalled: {count}"),
            format!("{running} RPCs run; {ended} were ended"),
            running >= all && ended == 0,
        ),
        Finding::within(
            "another client's download of 1 MiB",
            Some(slowest),
            Duration::from_secs(arena.scale.of(1, 5)),
        ),
        Finding::exactly(
            "connections to the backend, for all of them",
            arena.backend.journal.look(|all| all.connections),
            1,
        ),
    ])
}

/// Server streams that are cancelled after their first message, at a rate.
pub(super) async fn cancelled_downloads(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let count: u32 = arena.scale.of(10_000, 1000);
    let (mut read, mut write) = arena.attacker.wire(&[]).await?.split();
    let (came, mut comes) = tokio::sync::mpsc::unbounded_channel();
    let reading = tokio::spawn(async move {
        let mut seen = HashSet::new();
        while let Some(frame) = read.next().await {
            if frame.kind == kind::GOAWAY {
                return;
            }
            if frame.kind == kind::DATA {
                let first = seen.insert(frame.stream).then_some(frame.stream);
                // Nobody waits for more.
                let _ = came.send((first, frame.payload.len() as u32));
            }
        }
    });
    let asked = download(&[
        ("x-test-replies", "1000000"),
        ("x-test-interval", "20"),
        ("x-test-reply-bytes", "20"),
        ("x-test-id", "cancelled"),
    ]);
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    let (mut opened, mut cancelled) = (0, 0);
    let whole = async {
        while cancelled < count {
            tokio::select! {
                _ = ticks.tick(), if opened < count && opened - cancelled < 100 => {
                    write.send(&open(2 * opened + 1, &asked)).await?;
                    opened += 1;
                }
                Some((first, bytes)) = comes.recv() => {
                    write.send(&[Frame::credit(0, bytes)]).await?;
                    if let Some(stream) = first {
                        write.send(&[Frame::reset(stream, code::CANCEL)]).await?;
                        cancelled += 1;
                    }
                }
                else => break,
            }
        }
        anyhow::Ok(())
    };
    let begun = Instant::now();
    let sent = timeout(Duration::from_secs(u64::from(count) / 50), whole).await;
    let rate = f64::from(cancelled) / begun.elapsed().as_secs_f64();
    let all = count as usize;
    let noticed = until(Duration::from_secs(10), || async {
        arena.backend.journal.look(|all| all.cancelled.len()) >= all
    })
    .await;
    let alive = !reading.is_finished();
    reading.abort();
    Ok(vec![
        Finding::exactly(
            "streams cancelled after their first message",
            cancelled as usize,
            all,
        ),
        Finding::new(
            "cancels a second: 500",
            format!("{rate:.0}"),
            rate > arena.scale.of(475.0, 250.0),
        ),
        Finding::new(
            "all of them noticed by the backend",
            noticed.is_some(),
            noticed.is_some(),
        ),
        Finding::new(
            "their client's connection lives",
            alive,
            alive && matches!(sent, Ok(Ok(()))),
        ),
    ])
}

/// An upload that blocks, since the backend has stopped reading, and is reset by its client.
pub(super) async fn blocked_uploads(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    const CONNECTIONS: usize = 20;
    let count = arena.scale.of(1000, 100);
    let mut wires = VecDeque::new();
    for _ in 0..CONNECTIONS {
        wires.push_back((arena.attacker.wire(&[]).await?, 1));
    }
    // Others may do the same meanwhile.
    let run: u32 = rand::random();
    let mut times = Vec::new();
    for number in 0..count {
        let (mut wire, stream) = wires.pop_front().context("there are twenty")?;
        let id = format!("blocked-{run:08x}-{number}");
        let mut headers = frames::grpc_request(UPLOAD);
        headers.extend([("x-test-gate", "never"), ("x-test-id", id.as_str())]);
        wire.send(&[Frame::headers(stream, &headers, false)])
            .await?;
        // The backend's window of 64 KiB, and a part of the proxy's. All of that isn't certain to be had: credit for
        // what was forwarded is given by half windows.
        upload(&mut wire, stream, 80_000).await?;
        let (journal, begun) = (&arena.backend.journal, Instant::now());
        let before = journal.look(|all| all.cancelled.len());
        wire.send(&[Frame::reset(stream, code::CANCEL)]).await?;
        let mut noticed = None;
        until(Duration::from_secs(10), || {
            noticed = journal.look(|all| {
                let mut since = all.cancelled[before..].iter();
                since.find(|(other, _)| *other == id).map(|(_, at)| *at)
            });
            std::future::ready(noticed.is_some())
        })
        .await;
        times.push(noticed.context("a reset is not noticed within 10 s")? - begun);
        wires.push_back((wire, stream + 2));
    }
    times.sort_unstable();
    // Whole windows on both sides: each connection can send 1 MiB again, all at once.
    let begun = Instant::now();
    let mut whole = JoinSet::new();
    for (mut wire, stream) in wires {
        whole.spawn(async move {
            // A short reply: this client gives no window for a long one.
            let mut headers = frames::grpc_request(UPLOAD);
            headers.push(("x-test-reply-bytes", "1"));
            wire.send(&[Frame::headers(stream, &headers, false)])
                .await?;
            upload(&mut wire, stream, 1 << 20).await?;
            wire.send(&[Frame::data(stream, b"", true)]).await?;
            let end = wire.until("the upload's end", |frame| {
                frame.stream == stream && (frame.ends_stream() || frame.kind == kind::RST_STREAM)
            });
            let end = end.await.context("the connection has ended")?;
            ensure!(end.kind == kind::HEADERS, "the upload was reset");
            anyhow::Ok(())
        });
    }
    let ended = timeout(Duration::from_secs(20), whole.join_all()).await;
    let good = ended.map_or(0, |all| all.iter().filter(|end| end.is_ok()).count());
    Ok(vec![
        Finding::within(
            "the slowest reset noticed by the backend",
            times.last().copied(),
            Duration::from_millis(arena.scale.of(100, 1000)),
        ),
        Finding::exactly(
            "uploads of 1 MiB afterwards, one on each connection",
            good,
            CONNECTIONS,
        ),
        Finding::within(
            "all of them",
            Some(begun.elapsed()),
            Duration::from_secs(10),
        ),
    ])
}

/// Many small messages both ways, and a backend that takes its time.
pub(super) async fn slow_backend(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let (streams, messages) = arena.scale.of((100, 10_000), (20, 300));
    let client = arena.attacker.http2_with(&wide()).await?;
    let mut all = JoinSet::new();
    for _ in 0..streams {
        let client = client.clone();
        all.spawn(async move {
            let asked = grpc_request(CHAT, &[("x-test-interval", "1")]);
            let (response, mut body) = client.open(asked, false).await?;
            let sending = tokio::spawn(async move {
                let message = Bytes::from(framed(&MESSAGE));
                for _ in 0..messages {
                    body.reserve_capacity(message.len());
                    while body.capacity() < message.len() {
                        match std::future::poll_fn(|cx| body.poll_capacity(cx)).await {
                            Some(Ok(_)) => {}
                            _ => return,
                        }
                    }
                    // When the stream has ended, its reader says how.
                    if body.send_data(message.clone(), false).is_err() {
                        return;
                    }
                }
                // As above.
                let _ = body.send_data(Bytes::new(), true);
            });
            let (_, mut replies) = response.await?.into_parts();
            let mut bytes = 0;
            while let Some(chunk) = replies.data().await {
                let chunk = chunk?;
                bytes += chunk.len();
                replies.flow_control().release_capacity(chunk.len())?;
            }
            let trailers = replies.trailers().await?.unwrap_or_default();
            sending.abort();
            let whole = messages * framed(&MESSAGE).len();
            ensure!(bytes == whole, "{bytes} bytes of {whole}");
            ensure!(
                trailers
                    .get("grpc-status")
                    .is_some_and(|status| status == "0")
            );
            anyhow::Ok(())
        });
    }
    let ended = timeout(Duration::from_secs(240), all.join_all())
        .await
        .context("they have not ended after 240 s")?;
    let errors: Vec<_> = ended.iter().filter_map(|end| end.as_ref().err()).collect();
    let first = errors
        .first()
        .map_or(String::new(), |error| format!(" ({error:#})"));
    Ok(vec![Finding::new(
        format!("of {streams} streams of {messages} messages each way, those that fail: 0"),
        format!("{}{first}", errors.len()),
        errors.is_empty(),
    )])
}

/// Uploads to a method that never reads, on the victim's connection to the backend. One second later that is congested, and
/// others' RPCs go to another one: so an upload of another client's is looked at in that second, and those after it.
pub(super) async fn unread_uploads(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let (mut stuck, mut clients) = (JoinSet::new(), Vec::new());
    // Ten of them, since a connection's window is 1 MiB. All are there before the second begins.
    for _ in 0..10 {
        clients.push(arena.attacker.http2().await?);
    }
    let other = arena.attacker.http2_with(&wide()).await?;
    for client in &clients {
        for _ in 0..10 {
            let asked = grpc_request(UPLOAD, &[("x-test-gate", "never")]);
            let (response, mut body) = client.open(asked, false).await?;
            body.send_data(Bytes::from(framed(&vec![b'x'; 1 << 20])), true)?;
            stuck.spawn(async move {
                let _body = body;
                response.await.is_ok()
            });
        }
    }
    let calls = || arena.backend.journal.calls(UPLOAD);
    let begun = until(Duration::from_secs(30), || async { calls() >= 100 }).await;
    ensure!(begun.is_some(), "{} uploads have begun, of 100", calls());
    let first = upload_beside(&other).await?;
    let connections = arena.backend.journal.look(|all| all.connections);
    let mut slowest = first;
    for _ in 1..arena.scale.of(50, 10) {
        sleep(Duration::from_millis(100)).await;
        slowest = slowest.max(upload_beside(&other).await?);
    }
    Ok(vec![
        Finding::exactly(
            "connections to the backend in the first second",
            connections,
            1,
        ),
        Finding::within(
            "another client's upload of 200 kB in that second",
            Some(first),
            Duration::from_secs(arena.scale.of(1, 10)),
        ),
        Finding::within(
            "another client's upload of 200 kB",
            Some(slowest),
            Duration::from_secs(arena.scale.of(2, 10)),
        ),
    ])
}

/// An upload of 200 kB; how long it took.
async fn upload_beside(other: &Http2) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    // One field of 200 000 bytes.
    let mut message = vec![0x0a, 0xc0, 0x9a, 0x0c];
    message.resize(message.len() + 200_000, b'y');
    let asked = grpc_request(UNARY, &[("x-test-reply-bytes", "1")]);
    let message = framed(&message);
    let reply = timeout(Duration::from_secs(10), call(other, asked, &message))
        .await
        .context("another client's upload hangs")??;
    ensure!(
        reply.grpc_status() == Some(0),
        "status {:?}",
        reply.grpc_status()
    );
    Ok(begun.elapsed())
}

/// More uploads to a method that never reads than there may be connections to the backend, one after the other: each at the
/// connection to which others were sent meanwhile.
pub(super) async fn unread_uploads_in_turn(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let client = arena.attacker.http2().await?;
    let mut stuck = JoinSet::new();
    let count = arena.scale.of(12, 4);
    for _ in 0..count {
        let asked = grpc_request(UPLOAD, &[("x-test-gate", "never")]);
        let (response, mut body) = client.open(asked, false).await?;
        body.send_data(Bytes::from(framed(&vec![b'x'; 1 << 20])), true)?;
        stuck.spawn(async move {
            let _body = body;
            response.await.is_ok()
        });
        // Longer than a connection may have no credit.
        sleep(Duration::from_millis(1200)).await;
    }
    let other = arena.attacker.http2().await?;
    let begun = Instant::now();
    let asked = grpc_request(UNARY, &[("x-test-reply-bytes", "1")]);
    let reply = timeout(Duration::from_secs(10), call(&other, asked, &framed(b"")))
        .await
        .context("another client's RPC hangs")??;
    ensure!(
        reply.grpc_status() == Some(0),
        "another client's RPC ends with status {:?}",
        reply.grpc_status()
    );
    let took = begun.elapsed();
    let calls = arena.backend.journal.calls(UPLOAD);
    Ok(vec![
        Finding::exactly("uploads that came to the backend", calls, count),
        Finding::within(
            "another client's RPC after them",
            Some(took),
            Duration::from_secs(1),
        ),
    ])
}

/// RPCs that are reset before their answer, in batches: what ends a connection to a server of `h2` at the 21st.
pub(super) async fn batched_cancels(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    const CONNECTIONS: u32 = 20;
    let count: u32 = arena.scale.of(10_000, 2000);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let (read, write) = arena.attacker.wire(&[]).await?.split();
        clients.push((Reader::start(read, true), write));
    }
    let mut headers = frames::grpc_request(CHAT);
    headers.push(("x-test-gate", "never"));
    let begun = Instant::now();
    let mut sent = 0;
    // Each round: ten RPCs on one connection, the next one 5 ms later. 2000 a second, 100 on each connection.
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    for round in 0..count / 10 {
        ticks.tick().await;
        let first = 10 * (round / CONNECTIONS);
        let streams = (first..first + 10).map(|number| 2 * number + 1);
        let (_, write) = &mut clients[(round % CONNECTIONS) as usize];
        let opening: Vec<_> = streams
            .clone()
            .map(|stream| Frame::headers(stream, &headers, false))
            .collect();
        let resetting: Vec<_> = streams
            .map(|stream| Frame::reset(stream, code::CANCEL))
            .collect();
        if round.is_multiple_of(2) {
            write.send(&[opening, resetting].concat()).await?;
        } else {
            write.send(&opening).await?;
            write.send(&resetting).await?;
        }
        sent += 10;
    }
    let rate = f64::from(sent) / begun.elapsed().as_secs_f64();
    let ends = until(Duration::from_secs(10), || async {
        let running = arena.metric("edge_attempts_in_flight", &[]).await;
        // The victim's own.
        running < 5.0 && concurrency(&arena) == 0
    })
    .await;
    let alive = clients.iter().filter(|(reader, _)| !reader.ended()).count();
    Ok(vec![
        Finding::new(
            "resets a second: 2000",
            format!("{rate:.0}"),
            rate > arena.scale.of(1900.0, 1000.0),
        ),
        Finding::exactly("connections of the clients that live", alive, clients.len()),
        Finding::within(
            "all of them ended at the backend",
            ends,
            Duration::from_secs(10),
        ),
    ])
}

/// Honest uploads that the backend ends early.
pub(super) async fn early_ends(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let (clients, rounds) = arena.scale.of((10, 100), (10, 10));
    let mut all = JoinSet::new();
    for _ in 0..clients {
        let mut wire = arena.attacker.wire(&[]).await?;
        all.spawn(async move {
            let mut ended = 0;
            for round in 0..rounds {
                let streams: Vec<u32> = (0..10).map(|n| 2 * (10 * round + n) + 1).collect();
                let mut headers = frames::grpc_request(UPLOAD);
                headers.push(("x-test-status", "7"));
                let mut frames = Vec::new();
                for stream in &streams {
                    frames.push(Frame::headers(*stream, &headers, false));
                    frames.push(Frame::data(*stream, &framed(&MESSAGE), false));
                }
                if wire.send(&frames).await.is_err() {
                    break;
                }
                let mut waiting: HashSet<u32> = streams.iter().copied().collect();
                while !waiting.is_empty() {
                    let end = wire.until("an early end", |frame| {
                        frame.ends_stream() || matches!(frame.kind, kind::RST_STREAM | kind::GOAWAY)
                    });
                    let Some(frame) = end.await.filter(|frame| frame.kind != kind::GOAWAY) else {
                        return ended;
                    };
                    if waiting.remove(&frame.stream) && frame.kind == kind::HEADERS {
                        ended += 1;
                        // What was on its way when the end came.
                        let late = Frame::data(frame.stream, &framed(&MESSAGE), true);
                        if wire.send(&[late]).await.is_err() {
                            return ended;
                        }
                    }
                }
            }
            let ping = Frame::new(kind::PING, 0, 0, *b"are you?");
            let sent = wire.send(&[ping]).await.is_ok();
            let answer = wire.until("a PING's answer", |frame| {
                frame.kind == kind::GOAWAY
                    || frame.kind == kind::PING && frame.flags & flag::ACK != 0
            });
            let alive = sent && answer.await.is_some_and(|frame| frame.kind == kind::PING);
            if alive { ended } else { 0 }
        });
    }
    // Each client does `rounds` × 10 at a time; ten clients.
    let ended: u32 = all.join_all().await.iter().sum();
    Ok(vec![Finding::exactly(
        "uploads ended early, on connections that live",
        ended as usize,
        clients * rounds as usize * 10,
    )])
}

/// The frames of a download with one request.
fn open(stream: u32, headers: &[(&str, &str)]) -> Vec<Frame> {
    vec![
        Frame::headers(stream, headers, false),
        Frame::data(stream, &framed(b""), true),
    ]
}

fn download<'a>(metadata: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut headers = frames::grpc_request(DOWNLOAD);
    headers.extend(metadata);
    headers
}

/// Sends `bytes` on `stream` as its window and the connection's allow. Both are taken to be whole at the start, and at
/// least as large as HTTP/2's default.
async fn upload(wire: &mut Wire<Secured>, stream: u32, bytes: usize) -> anyhow::Result<()> {
    let mut window = 65_535;
    let mut left = bytes;
    // Messages of 8 KiB, so that the backend's decoder goes on; the last is cut short by whoever resets.
    let chunk = framed(&[&[0x0a, 0xfd, 0x3f][..], &[b'u'; 8189]].concat());
    loop {
        while left > 0 && window >= chunk.len() {
            wire.send(&[Frame::data(stream, &chunk, false)]).await?;
            window -= chunk.len();
            left = left.saturating_sub(chunk.len());
        }
        if left == 0 {
            return Ok(());
        }
        let credit = wire.until("credit", |frame| {
            frame.stream == stream && matches!(frame.kind, kind::WINDOW_UPDATE | kind::RST_STREAM)
        });
        let credit = timeout(Duration::from_secs(10), credit)
            .await
            .context("no credit within 10 s")?
            .filter(|frame| frame.kind == kind::WINDOW_UPDATE)
            .context("the upload was ended")?;
        window += credit.number(0).unwrap_or_default() as usize;
    }
}

async fn call(client: &Http2, request: http::Request<()>, body: &[u8]) -> anyhow::Result<Reply> {
    Ok(client.call(request, body).await?)
}

/// A client with room for what it asks.
fn wide() -> h2::client::Builder {
    let mut settings = h2::client::Builder::new();
    settings
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    settings
}

/// A message of the tests' service: one field of 18 bytes, 20 in all.
const MESSAGE: [u8; 20] = *b"\x0a\x12eighteen bytes now";
