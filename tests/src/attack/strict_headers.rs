//! Requests that one HTTP/2 stack takes and another calls a connection error: none may reach a connection that others share.

use std::{collections::HashMap, sync::Arc, time::Duration};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use tokio::time::timeout;

use super::{Arena, Finding, UNARY};
use crate::{
    frames::{self, Frame, Wire, block, code, flag, kind},
    h2attack::Secured,
    scripted::framed,
};

/// Headers of sizes about the limits, and headers made up: some stack calls each of them a connection error.
pub(super) async fn strict_headers(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let mut sizes = Vec::new();
    // Of the backend; of the edge, twice; and above 32 KiB that of the stream or the connection.
    let mut as_promised = true;
    for (size, may_be) in [
        (8191, &["answered"][..]),
        (8193, &["answered"]),
        (10_241, &["answered"]),
        (32_769, &["reset", "GOAWAY", "closed"]),
    ] {
        let mut wire = arena.attacker.wire(&[]).await?;
        let mut headers = frames::grpc_request(UNARY);
        // RFC 9113 §10.5.1: 32 bytes of each field, and its name and value.
        let used: usize = headers
            .iter()
            .map(|(name, value)| 32 + name.len() + value.len())
            .sum();
        let value = "v".repeat(size - used - 32 - "x-large".len());
        headers.push(("x-large", &value));
        let encoded = block(&headers);
        let (first, rest) = encoded.split_at(encoded.len().min(16_000));
        let last = |rest: &[u8]| {
            if rest.is_empty() {
                flag::END_HEADERS
            } else {
                0
            }
        };
        let mut all = vec![Frame::new(
            kind::HEADERS,
            last(rest) | flag::END_STREAM,
            1,
            first,
        )];
        let mut chunks = rest.chunks(16_000).peekable();
        while let Some(chunk) = chunks.next() {
            let flags = if chunks.peek().is_none() {
                flag::END_HEADERS
            } else {
                0
            };
            all.push(Frame::new(kind::CONTINUATION, flags, 1, chunk));
        }
        // The last is above what a connection may have, and ends it.
        let _ = wire.send(&all).await;
        let end = wire.until("an end", |frame| {
            frame.stream == 1 && (frame.ends_stream() || frame.kind == kind::RST_STREAM)
                || frame.kind == kind::GOAWAY
        });
        let end = end.await.map_or("closed", |frame| match frame.kind {
            kind::HEADERS => "answered",
            kind::RST_STREAM => "reset",
            _ => "GOAWAY",
        });
        as_promised &= may_be.contains(&end);
        sizes.push(format!("{size}: {end}"));
    }
    let refused = arena.limit("header_bytes").await + arena.limit("header_block").await;
    let seed = arena.scale.of(rand::random(), 7);
    let mut random = StdRng::seed_from_u64(seed);
    let count = arena.scale.of(5000, 500);
    let mut wire: Option<(Wire<Secured>, u32)> = None;
    let (mut answered, mut connections) = (HashMap::<&str, usize>::new(), 0);
    for _ in 0..count {
        let (mut open, stream) = match wire.take() {
            Some(open) => open,
            None => {
                connections += 1;
                (arena.attacker.wire(&[]).await?, 1)
            }
        };
        let written = open.send(&made_up(&mut random, stream)).await;
        let end = timeout(
            Duration::from_secs(5),
            open.until("an end", |frame| {
                frame.stream == stream && (frame.ends_stream() || frame.kind == kind::RST_STREAM)
                    || frame.kind == kind::GOAWAY
            }),
        )
        .await;
        let what = match (written, end) {
            (_, Err(_)) => "nothing",
            (_, Ok(Some(frame))) if frame.kind == kind::HEADERS => "an answer",
            (_, Ok(Some(frame))) if frame.kind == kind::RST_STREAM => "a reset",
            _ => "the connection's end",
        };
        *answered.entry(what).or_default() += 1;
        if matches!(what, "an answer" | "a reset") {
            // A stream that waits for its upload's end goes.
            let gone = open.send(&[Frame::reset(stream, code::CANCEL)]).await;
            wire = gone.is_ok().then_some((open, stream + 2));
        }
    }
    let mut list: Vec<_> = answered
        .iter()
        .map(|(what, n)| format!("{n} {what}"))
        .collect();
    list.sort_unstable();
    let of = |what: &str| answered.get(what).copied().unwrap_or_default();
    Ok(vec![
        Finding::new(
            "a list of 8191 bytes is answered by the backend, two above 8 KiB by the edge, one above 32 KiB is refused",
            format!("{}; {refused} met a limit", sizes.join(", ")),
            as_promised && refused == 3,
        ),
        Finding::new(
            format!("of {count} made-up requests (seed {seed}), those without an end: 0"),
            format!("{} on {connections} connections", list.join(", ")),
            // A fourth of them has no mistake: who refuses them all proves nothing.
            of("nothing") == 0 && of("an answer") > count / 5,
        ),
    ])
}

/// A request with one to three mistakes, or none.
fn made_up(random: &mut StdRng, stream: u32) -> Vec<Frame> {
    let mut headers: Vec<(Vec<u8>, Vec<u8>)> = frames::grpc_request(UNARY)
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let mut trailers: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let add = |list: &mut Vec<(Vec<u8>, Vec<u8>)>, name: &[u8], value: &[u8]| {
        list.push((name.to_vec(), value.to_vec()));
    };
    for _ in 0..random.random_range(0..=3) {
        let odd: [u8; 3] = random.random();
        let text = |random: &mut StdRng| -> Vec<u8> {
            let length = random.random_range(0..=20);
            (0..length).map(|_| random.random()).collect()
        };
        match random.random_range(0..20) {
            0 => add(&mut headers, &text(random), b"x"),
            1 => add(&mut headers, b"x-odd", &text(random)),
            2 => add(&mut headers, &[b'x', odd[0]], &[b'a', odd[1], b'b']),
            3 => {
                let names: [&[u8]; 8] = [
                    b"connection",
                    b"keep-alive",
                    b"proxy-connection",
                    b"transfer-encoding",
                    b"upgrade",
                    b"te",
                    b"http2-settings",
                    b"host",
                ];
                let name = names.choose(random).copied().unwrap_or(b"te");
                let values: [&[u8]; 5] =
                    [b"close", b"chunked", b"trailers", b"h2c", b"gzip, trailers"];
                add(
                    &mut headers,
                    name,
                    values.choose(random).copied().unwrap_or(b""),
                );
            }
            4 => {
                let pseudo: [&[u8]; 8] = [
                    b":method",
                    b":path",
                    b":scheme",
                    b":authority",
                    b":status",
                    b":protocol",
                    b":",
                    b":x",
                ];
                let name = pseudo.choose(random).copied().unwrap_or(b":");
                let at = random.random_range(0..=headers.len());
                headers.insert(at, (name.to_vec(), b"/".to_vec()));
            }
            5 => {
                let at = random.random_range(0..headers.len());
                headers.remove(at);
                if headers.is_empty() {
                    add(&mut headers, b"x", b"y");
                }
            }
            6 => {
                let last = headers.len() - 1;
                headers.swap(random.random_range(0..=last), random.random_range(0..=last));
            }
            7 => {
                let lengths: [&[u8]; 7] = [
                    b"-1",
                    b"0",
                    b"5",
                    b"99999999999999999999",
                    b"5, 5",
                    b"+5",
                    b"",
                ];
                add(
                    &mut headers,
                    b"content-length",
                    lengths.choose(random).copied().unwrap_or(b""),
                );
            }
            8 => {
                let timeouts: [&[u8]; 6] = [b"1", b"m", b"999999999m", b"-1S", b"0n", b"99999999H"];
                add(
                    &mut headers,
                    b"grpc-timeout",
                    timeouts.choose(random).copied().unwrap_or(b""),
                );
            }
            9 => {
                let paths: [&[u8]; 8] = [
                    b"",
                    b"*",
                    b"e2e.Test/Unary",
                    b"/e2e.Test/\x00",
                    b"/e2e.Test/ x",
                    b"/e2e.Test/\xff",
                    b"/e2e.Test/#f",
                    b"https://x/e2e.Test/Unary",
                ];
                let path = paths.choose(random).copied().unwrap_or(b"");
                if let Some(field) = headers.iter_mut().find(|(name, _)| name == b":path") {
                    field.1 = path.to_vec();
                }
            }
            10 => {
                let authorities: [&[u8]; 6] = [
                    b"",
                    b"a b",
                    b"user@host",
                    b"[::1",
                    b"\xff",
                    b"grpc.example.com:99999999",
                ];
                let authority = authorities.choose(random).copied().unwrap_or(b"");
                if let Some(field) = headers.iter_mut().find(|(name, _)| name == b":authority") {
                    field.1 = authority.to_vec();
                }
            }
            11 => {
                for number in 0..random.random_range(50..300) {
                    add(&mut headers, format!("x-{number}").as_bytes(), b"");
                }
            }
            12 => add(
                &mut headers,
                &vec![b'n'; random.random_range(100..5000)],
                b"",
            ),
            13 => add(
                &mut headers,
                b"x-long",
                &vec![b'v'; random.random_range(100..7000)],
            ),
            14 => add(&mut headers, b"x-data-bin", &text(random)),
            15 => {
                for _ in 0..random.random_range(1..40) {
                    add(&mut headers, b"cookie", b"a=b");
                }
            }
            16 => add(&mut trailers, b":path", b"/"),
            17 => add(&mut trailers, &[b'X', odd[0]], &text(random)),
            18 => add(&mut trailers, b"connection", b"close"),
            _ => add(&mut headers, b"grpc-encoding", &text(random)),
        }
    }
    let encoded = block(&headers);
    // A frame's limit; the size of headers has an attack of its own.
    let encoded = &encoded[..encoded.len().min(16_000)];
    let mut all = vec![Frame::new(
        kind::HEADERS,
        flag::END_HEADERS,
        stream,
        encoded,
    )];
    all.push(Frame::data(stream, &framed(b""), trailers.is_empty()));
    if !trailers.is_empty() {
        let flags = flag::END_HEADERS | flag::END_STREAM;
        all.push(Frame::new(kind::HEADERS, flags, stream, block(&trailers)));
    }
    all
}
