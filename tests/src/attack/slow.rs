//! Connections that stand still, crawl, or are too many: what they hold is given up in time, and others get in.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::process::{Resource, Rlimit, getrlimit};
use tokio::{
    io::AsyncWriteExt as _,
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Arena, CHAT, DOWNLOAD, Finding, UNARY, until};
use crate::{
    frames::{self, Frame, Wire, block, flag, kind},
    h2attack::{Metered, Secured, source},
    scripted::framed,
};

/// A header block that stays open, in silence.
pub(super) async fn open_header_block(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let (count, most) = (20, Duration::from_secs(arena.scale.of(11, 4)));
    let mut all = JoinSet::new();
    for number in 0..count {
        let mut wire = arena.attacker.wire(&[]).await?;
        let start = block(&frames::grpc_request(CHAT));
        // Half of them in the middle of a frame.
        let mut bytes = Frame::new(kind::HEADERS, 0, 1, start).bytes();
        if number % 2 == 0 {
            bytes.truncate(bytes.len() / 2);
        }
        wire.send_bytes(&bytes).await?;
        all.spawn(async move { closes(wire, most + Duration::from_secs(5)).await });
    }
    Ok(vec![
        slowest("each closed", all.join_all().await, most),
        Finding::exactly(
            "limit header_block_timeout acted",
            arena.limit("header_block_timeout").await,
            count,
        ),
    ])
}

/// Streams that can't be answered, since their windows are 0.
pub(super) async fn zero_stream_windows(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let most = Duration::from_secs(arena.scale.of(60, 2) + 5);
    let mut wire = arena.attacker.wire(&[(INITIAL_WINDOW_SIZE, 0)]).await?;
    let mut headers = frames::grpc_request(UNARY);
    headers.push(("x-test-reply-bytes", "100000"));
    for number in 0..100 {
        let stream = 2 * number + 1;
        wire.send(&[
            Frame::headers(stream, &headers, false),
            Frame::data(stream, &framed(b""), true),
        ])
        .await?;
    }
    let begun = Instant::now();
    let (mut reset, mut last) = (0, None);
    while let Ok(Some(frame)) = timeout(most.saturating_sub(begun.elapsed()), wire.next()).await {
        if frame.kind == kind::RST_STREAM || frame.ends_stream() {
            reset += 1;
            last = Some(begun.elapsed());
        }
        if reset == 100 {
            break;
        }
    }
    Ok(vec![
        Finding::exactly("streams that were reset", reset, 100),
        Finding::within("the last of them", last, most),
    ])
}

/// Windows that are wide open, and sockets from which nothing is read.
pub(super) async fn zero_tcp_window(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let most = Duration::from_secs(arena.scale.of(30, 2) + 5);
    let mut headers = frames::grpc_request(DOWNLOAD);
    headers.extend([("x-test-replies", "50"), ("x-test-reply-bytes", "1000000")]);
    let mut wires = Vec::new();
    let count = arena.scale.of(50, 10);
    for _ in 0..count {
        let tcp = arena.attacker.narrow_tcp(4096).await?;
        let settings = [(INITIAL_WINDOW_SIZE, 0x7fff_ffff)];
        let mut wire = arena.attacker.wire_over(tcp, &settings).await?;
        wire.send(&[
            Frame::credit(0, 0x7fff_ffff - 65_535),
            Frame::headers(1, &headers, false),
            Frame::data(1, &framed(b""), true),
        ])
        .await?;
        wires.push(wire);
    }
    let files = arena.before.files;
    let begun = Instant::now();
    let closed = until(most + Duration::from_secs(5), || async {
        // The cheap look first: the page of metrics is the proxy's work.
        arena.usage().files <= files + 5 && arena.limit("write_stall").await >= count
    })
    .await;
    drop(wires);
    Ok(vec![Finding::within(
        &format!("{count} sockets closed"),
        closed.map(|_| begun.elapsed()),
        most,
    )])
}

/// A byte of a ClientHello every so often.
pub(super) async fn slow_handshakes(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let count = arena.scale.of(2000, 200);
    let most = Duration::from_millis(arena.scale.of(5500, 4000));
    let hello = arena.attacker.client_hello();
    let mut all = JoinSet::new();
    for number in 0..count {
        let mut tcp = arena.attacker.tcp_from(source(number / 200)).await?;
        let hello = hello.clone();
        all.spawn(async move {
            let begun = Instant::now();
            for byte in hello {
                if tcp.write_all(&[byte]).await.is_err() {
                    return Some(begun.elapsed());
                }
                if tcp.closes(Duration::from_millis(250)).await {
                    return Some(begun.elapsed());
                }
                if begun.elapsed() > most * 3 {
                    return None;
                }
            }
            None
        });
    }
    // Honest clients meanwhile.
    let mut handshakes = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < most {
        let started = Instant::now();
        let tcp = arena.attacker.tcp_from(source(40)).await?;
        let tls = timeout(Duration::from_secs(5), arena.attacker.tls_over(tcp)).await;
        ensure!(matches!(tls, Ok(Ok(_))), "an honest handshake failed");
        handshakes.push(started.elapsed());
        sleep(Duration::from_millis(20)).await;
    }
    handshakes.sort_unstable();
    let p99 = handshakes.get(handshakes.len() * 99 / 100).copied();
    Ok(vec![
        slowest("each closed", all.join_all().await, most),
        Finding::within(
            "others' handshakes, p99",
            p99,
            Duration::from_millis(arena.scale.of(200, 2000)),
        ),
    ])
}

/// TLS, and then nothing; or the preface byte by byte.
pub(super) async fn slow_prefaces(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let most = Duration::from_millis(arena.scale.of(10_500, 4000));
    let mut all = JoinSet::new();
    for number in 0..arena.scale.of(400, 40) {
        let begun = Instant::now();
        let tcp = arena.attacker.tcp_from(source(number / 200)).await?;
        let tls = arena.attacker.tls_over(tcp).await?;
        all.spawn(async move {
            let mut wire = Wire::bare(tls);
            if number.is_multiple_of(2) {
                return closes(wire, most * 3).await.map(|_| begun.elapsed());
            }
            for byte in frames::PREFACE {
                if wire.send_bytes(&[*byte]).await.is_err() {
                    break;
                }
                if let Ok(None) = timeout(Duration::from_millis(900), wire.next()).await {
                    break;
                }
            }
            Some(begun.elapsed())
        });
    }
    Ok(vec![slowest("each closed", all.join_all().await, most)])
}

/// ClientHellos whose answers nobody waits for, and as many that wait for ever.
pub(super) async fn handshake_flood(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let time = Duration::from_secs(arena.scale.of(10, 2));
    let hello = arena.attacker.client_hello();
    let files = arena.before.files;
    let begun = Instant::now();
    let (mut number, mut highest) = (0, 0);
    // The last thousand stay open.
    let mut open = std::collections::VecDeque::new();
    // Twice as many as there may be at a time, however long that takes.
    while begun.elapsed() < time || number < 1200 {
        let mut tcp = arena.attacker.tcp_from(source(number / 200 % 40)).await?;
        // The proxy may have had enough.
        let _ = tcp.write_all(&hello).await;
        open.push_back(tcp);
        if open.len() > 1000 {
            open.pop_front();
        }
        number += 1;
        if number.is_multiple_of(50) {
            highest = highest.max(arena.usage().files.saturating_sub(files));
        }
    }
    let rate = number as f64 / begun.elapsed().as_secs_f64();
    let limited = arena.limit("pending_handshakes").await;
    Ok(vec![
        // 64 that were given up may wait for the worker; the socket of one that is being refused counts for a moment.
        Finding::count(
            "handshakes at a time, by open files",
            highest,
            512 + 64 + 16,
        ),
        Finding::new("limit pending_handshakes acted", limited, limited > 0),
        Finding::noted("ClientHellos a second", format!("{rate:.0}")),
    ])
}

/// More connections than there may be, in all and from one address.
pub(super) async fn connections(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let (offered, kept) = arena.scale.of((12_000, 10_000), (240, 200));
    let (same, from_one) = arena.scale.of((300, 256), (50, 40));
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    ensure!(
        most > offered as u64 + 300,
        "{offered} connections need as many open files; `ulimit -n` is {most}"
    );
    let one: Vec<usize> = vec![0; same];
    let alive = hold(&arena, &one).await?;
    let mut findings = vec![Finding::exactly(
        &format!("of {same} connections from one address, kept"),
        alive.len(),
        from_one,
    )];
    drop(alive);
    let files = arena.before.files;
    until(Duration::from_secs(10), || async {
        arena.usage().files <= files + 5
    })
    .await;
    let many: Vec<usize> = (0..offered).map(|number| 1 + number / from_one).collect();
    let alive = hold(&arena, &many).await?;
    // The victim's connection is one of them.
    let here = alive.len() + 1;
    findings.push(Finding::exactly(
        &format!("of {offered} connections, kept"),
        here,
        kept,
    ));
    let grown = arena.usage().memory.saturating_sub(arena.before.memory);
    findings.push(Finding::new(
        "memory of each: ≤ 32 KiB",
        format!("{:.1} KiB", grown as f64 / 1024.0 / here as f64),
        grown / here as u64 <= 32 << 10,
    ));
    Ok(findings)
}

/// Connections until the proxy has no file left.
pub(super) async fn no_files_left(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let before = getrlimit(Resource::Nofile);
    // The proxy keeps some for itself: only a limit that shrinks while it runs leaves it none.
    let files = arena.before.files + 40;
    let few = Rlimit {
        current: Some(files as u64),
        maximum: before.maximum,
    };
    let enough = arena.limit_files(few)?;
    let mut held = Vec::new();
    for number in 0..200 {
        held.push(arena.attacker.tcp_from(source(number / 200)).await?);
    }
    // They stay as long as a handshake may take, 5 s.
    sleep(Duration::from_millis(500)).await;
    let before = arena.usage();
    let time = Duration::from_secs(2);
    sleep(time).await;
    let spent = arena.usage().cpu - before.cpu;
    drop(held);
    arena.limit_files(enough)?;
    let connected = until(Duration::from_secs(5), || async {
        matches!(
            timeout(Duration::from_secs(5), arena.attacker.wire(&[])).await,
            Ok(Ok(_))
        )
    });
    Ok(vec![
        // The kernel counts numbers, of which one may be free below another that is used.
        Finding::new(
            format!("files that were open: {files}"),
            before.files,
            before.files + 2 >= files,
        ),
        Finding::within(
            "processor time in 2 s without a file left",
            Some(spent),
            time / 4,
        ),
        Finding::within(
            "a new connection after there are files again",
            connected.await,
            Duration::from_secs(1),
        ),
    ])
}

/// Connections that have got through HTTP/2's beginning, and still answer a PING after all have tried.
async fn hold(arena: &Arc<Arena>, sources: &[usize]) -> anyhow::Result<Vec<Wire<Secured>>> {
    let wires = Arc::new(Mutex::new(Vec::new()));
    let places = Arc::new(Semaphore::new(100));
    let mut all = JoinSet::new();
    for number in sources.iter().copied() {
        let (arena, wires) = (arena.clone(), wires.clone());
        let place = places
            .clone()
            .acquire_owned()
            .await
            .context("nobody closes it")?;
        all.spawn(async move {
            let _place = place;
            let connecting = async {
                let tcp: Metered = arena.attacker.tcp_from(source(number)).await?;
                arena.attacker.wire_over(tcp, &[]).await
            };
            if let Ok(Ok(wire)) = timeout(Duration::from_secs(30), connecting).await {
                let mut wires = wires.lock().unwrap_or_else(PoisonError::into_inner);
                wires.push(wire);
            }
        });
    }
    all.join_all().await;
    let wires = std::mem::take(&mut *wires.lock().unwrap_or_else(PoisonError::into_inner));
    let mut asking = JoinSet::new();
    for mut wire in wires {
        asking.spawn(async move {
            wire.send(&[Frame::new(kind::PING, 0, 0, *b"are you?")])
                .await
                .ok()?;
            let pong = |frame: &Frame| frame.kind == kind::PING && frame.flags & flag::ACK != 0;
            wire.until("a PING's answer", pong).await?;
            Some(wire)
        });
    }
    Ok(asking.join_all().await.into_iter().flatten().collect())
}

/// Waits for the end of a connection.
async fn closes(mut wire: Wire<Secured>, most: Duration) -> Option<Duration> {
    let begun = Instant::now();
    let reading = async { while wire.next().await.is_some() {} };
    timeout(most, reading).await.ok().map(|()| begun.elapsed())
}

fn slowest(what: &str, times: Vec<Option<Duration>>, most: Duration) -> Finding {
    let all: Option<Vec<Duration>> = times.into_iter().collect();
    Finding::within(what, all.and_then(|all| all.into_iter().max()), most)
}

/// RFC 9113 section 6.5.2.
const INITIAL_WINDOW_SIZE: u16 = 4;
