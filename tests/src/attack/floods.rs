//! Too much of something, as fast as it can be written.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{Arena, CHAT, Finding, UNARY, UPLOAD, concurrency, seconds, until};
use crate::{
    frames::{self, Frame, Wire, block, code, flag, kind},
    h2attack::{Flood, Plan, Reader},
    scripted::framed,
};

/// HEADERS and RST_STREAM, as fast as they can be written (CVE-2023-44487).
pub(super) async fn rapid_reset(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let headers = gated();
    let mut floods = Vec::new();
    for _ in 0..arena.scale.of(10, 2) {
        let wire = arena.attacker.wire(&[]).await?;
        let before = arena.backend.journal.calls(CHAT);
        let flood = arena
            .attacker
            .flood(wire, plan(5000, true), |round| {
                (20 * round..20 * round + 20)
                    .flat_map(|number| {
                        let stream = 2 * number + 1;
                        [
                            Frame::headers(stream, &headers, false),
                            Frame::reset(stream, code::CANCEL),
                        ]
                    })
                    .collect()
            })
            .await;
        settle().await;
        floods.push((flood, arena.backend.journal.calls(CHAT) - before));
    }
    let acted = arena.limit("reset_flood").await;
    Ok(vec![
        ended(
            "connections that were ended",
            floods.iter().map(|(flood, _)| flood),
        ),
        most(
            "RPCs at the backend, of each",
            floods.iter().map(|(_, calls)| *calls),
            1000,
        ),
        Finding::exactly("limit reset_flood acted", acted, floods.len()),
    ])
}

/// The same, but a PING is answered between opening and resetting: the proxy has accepted each stream.
pub(super) async fn rapid_reset_paced(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let pace = Pace::of(&arena, Duration::ZERO, Duration::from_secs(20)).await?;
    settle().await;
    let calls = arena.backend.journal.calls(CHAT);
    let mut findings = pace.judge(calls).to_vec();
    findings.push(all_ended(&arena).await);
    Ok(findings)
}

/// So many that nobody need mind: fewer than half of what the rule forbids, however fast the machine is.
pub(super) async fn slow_resets(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let time = Duration::from_secs(arena.scale.of(20, 4));
    let pace = Pace::of(&arena, Duration::from_millis(250), time).await?;
    settle().await;
    let calls = arena.backend.journal.calls(CHAT);
    Ok(vec![
        Finding::new("the connection lives", &pace, !pace.closed),
        Finding::new(
            format!("RPCs at the backend: some of {}", pace.opened()),
            calls,
            (1..=pace.opened()).contains(&calls),
        ),
        all_ended(&arena).await,
    ])
}

/// What became of streams that were opened fifty at a time, and reset once a PING sent after them was answered.
struct Pace {
    /// When each fifty were written, and when the proxy was known to have read them.
    batches: Vec<(Instant, Instant)>,
    took: Duration,
    /// The connection has ended.
    closed: bool,
}

impl Pace {
    async fn of(arena: &Arena, pause: Duration, time: Duration) -> anyhow::Result<Self> {
        let mut wire = arena.attacker.wire(&[]).await?;
        let headers = gated();
        let begun = Instant::now();
        let (mut batches, mut closed) = (Vec::new(), false);
        while !closed && batches.len() < 1000 && begun.elapsed() < time {
            let first = AT_ONCE * batches.len() as u32;
            let streams = (first..first + AT_ONCE).map(|number| 2 * number + 1);
            let resetting: Vec<_> = streams
                .clone()
                .map(|stream| Frame::reset(stream, code::CANCEL))
                .collect();
            let mut opening: Vec<_> = streams
                .map(|stream| Frame::headers(stream, &headers, false))
                .collect();
            opening.push(Frame::new(kind::PING, 0, 0, *b"accepted"));
            let written = Instant::now();
            let whole = async {
                wire.send(&opening).await.ok()?;
                let pong = wire.until("a PING's answer", |frame| {
                    frame.kind == kind::GOAWAY
                        || frame.kind == kind::PING && frame.flags & flag::ACK != 0
                });
                pong.await.filter(|frame| frame.kind == kind::PING)?;
                batches.push((written, Instant::now()));
                wire.send(&resetting).await.ok()
            };
            let whole = timeout(Duration::from_secs(10), whole).await;
            closed = whole.context("a PING has no answer")?.is_none();
            sleep(pause).await;
        }
        Ok(Self {
            took: begun.elapsed(),
            batches,
            closed,
        })
    }

    /// By the rule, at whatever speed this machine has: a flood ends the connection, nothing else does, and what reaches
    /// the backend is bounded either way.
    fn judge(&self, calls: usize) -> [Finding; 3] {
        let most = self.tolerated();
        let what = "the connection ends, if more than 500 a second are reset";
        [
            if self.closed || self.opened() > most {
                Finding::new(what, self, self.closed)
            } else {
                Finding::left_out(what, format!("only {self}"))
            },
            Finding::new(
                "it ends for nothing less than 500 in a second",
                self,
                !self.closed || self.is_flood(),
            ),
            Finding::count("RPCs at the backend", calls, most),
        ]
    }

    fn opened(&self) -> usize {
        self.batches.len() * AT_ONCE as usize
    }

    /// How many the proxy takes at most in that time. It counts by seconds of its own, two of which are cut short at
    /// most, and each has its end at the 500th.
    fn tolerated(&self) -> usize {
        FLOOD * (self.took.as_secs() as usize + 2)
    }

    /// Whether 500 may have been within a second of the proxy's: those times lie within the ones known here.
    fn is_flood(&self) -> bool {
        let second = Duration::from_secs(1);
        let mut tens = self.batches.windows(FLOOD / AT_ONCE as usize);
        tens.any(|ten| {
            let ((_, first), (last, _)) = (ten[0], ten[ten.len() - 1]);
            last.saturating_duration_since(first) <= second
        })
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = if self.closed { "ended" } else { "lives" };
        let (opened, took) = (self.opened(), seconds(self.took));
        let rate = opened as f64 / self.took.as_secs_f64();
        write!(
            f,
            "{rate:.0} a second: {opened} resets, after {took} it {end}"
        )
    }
}

/// Frames that are a stream's error, so that the proxy resets, and counts no stream of the client's any more
/// (CVE-2025-8671).
pub(super) async fn made_you_reset(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    type Mistake = fn(u32) -> Frame;
    let ways: [(&str, bool, Mistake); 6] = [
        ("WINDOW_UPDATE of 0", false, |stream| {
            Frame::credit(stream, 0)
        }),
        ("a window above 2^31-1", false, |stream| {
            Frame::credit(stream, 0x7fff_ffff)
        }),
        ("DATA after END_STREAM", true, |stream| {
            Frame::data(stream, b"more", false)
        }),
        ("HEADERS after END_STREAM", true, |stream| {
            Frame::headers(stream, &[("late", "1")], true)
        }),
        ("PRIORITY of 4 bytes", false, |stream| {
            Frame::new(kind::PRIORITY, 0, stream, [0; 4])
        }),
        ("trailers without END_STREAM", false, |stream| {
            Frame::headers(stream, &[("late", "1")], false)
        }),
    ];
    let mut findings = Vec::new();
    for (what, end, mistake) in ways {
        let headers = gated();
        let frames = |round: u32, lag: u32| {
            let mut frames = vec![Frame::headers(2 * round + 1, &headers, end)];
            if let Some(before) = round.checked_sub(lag) {
                frames.push(mistake(2 * before + 1));
            }
            frames
        };
        let running = Running::watch(&arena);
        // A stream a round, a little apart, so that what is counted is what the proxy bears, not what is on its way; and
        // its mistake 50 rounds later, so that it has begun at the backend.
        let slow = Plan {
            pause: Duration::from_micros(500),
            ..plan(3000, true)
        };
        let wire = arena.attacker.wire(&[]).await?;
        let flood = arena
            .attacker
            .flood(wire, slow, |round| frames(round, LAG))
            .await;
        settle().await;
        // What was written after the 1025th was on its way.
        let (rounds, spare) = (flood.rounds as usize, 100);
        let held = flood.goaway == Some(code::ENHANCE_YOUR_CALM) && rounds <= 1025 + spare;
        let gone = match (flood.ended, flood.goaway) {
            (_, Some(code)) => format!("GOAWAY with code {code}"),
            (Some(_), None) => "ended without a word".to_owned(),
            (None, None) => "lives".to_owned(),
        };
        findings.push(Finding::new(
            format!("{what}: GOAWAY by the 1025th"),
            format!("{gone}, {rounds} were written"),
            held,
        ));
        // So far the client alone keeps to fewer than it may have. With more under way it is the proxy that does, and an
        // attacker's mistakes are to win it no place.
        let wire = arena.attacker.wire(&[]).await?;
        let (read, mut write) = wire.split();
        let _reader = Reader::start(read, true);
        for round in 0..MANY + LAG {
            if write.send(&frames(round, MANY)).await.is_err() {
                break;
            }
            // The backend reads a reset before the next stream.
            sleep(Duration::from_millis(3)).await;
        }
        let highest = running.end();
        findings.push(Finding::new(
            format!("RPCs at a time at the backend, {what}: ≤ 100, and more than {LAG}"),
            highest,
            highest <= 100 && highest > LAG as usize + 1,
        ));
    }
    Ok(findings)
}

/// Looks how many of an attack's RPCs run at the backend, until it is dropped.
struct Running {
    most: Arc<AtomicUsize>,
    looking: JoinHandle<()>,
}

impl Running {
    fn watch(arena: &Arc<Arena>) -> Self {
        let most = Arc::new(AtomicUsize::new(0));
        let looking = tokio::spawn({
            let (arena, most) = (arena.clone(), most.clone());
            async move {
                // What is left of others goes meanwhile.
                let mut others = usize::MAX;
                loop {
                    let now = concurrency(&arena);
                    others = others.min(now);
                    most.fetch_max(now - others, Ordering::Relaxed);
                    sleep(Duration::from_millis(2)).await;
                }
            }
        });
        Self { most, looking }
    }

    /// The most that there were.
    fn end(self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.looking.abort();
    }
}

/// A header block that never ends: many small frames, and large ones.
pub(super) async fn continuation(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (size, most) in [(4, 7), (16_370, 3)] {
        let (read, mut write) = arena.attacker.wire(&[]).await?.split();
        let mut reader = Reader::start(read, true);
        let start = block(&frames::grpc_request(CHAT));
        write
            .send(&[Frame::new(kind::HEADERS, 0, 1, start)])
            .await?;
        let mut sent = 1;
        while sent < 50 && !reader.ended() {
            let more = block(&[("a", "b".repeat(size))]);
            if write
                .send(&[Frame::new(kind::CONTINUATION, 0, 1, more)])
                .await
                .is_err()
            {
                break;
            }
            sent += 1;
            // Frame by frame, so that what is counted isn't what was on its way.
            reader.goaway(Duration::from_secs(1)).await;
        }
        findings.push(Finding::count(
            &format!("frames of a block with {size}-byte fields"),
            sent,
            most,
        ));
    }
    findings.push(Finding::exactly(
        "limit header_block acted",
        arena.limit("header_block").await,
        2,
    ));
    Ok(findings)
}

/// PING and SETTINGS, while the answers are read, and while they aren't.
pub(super) async fn control_frames(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for reading in [true, false] {
        for (what, frame) in [
            ("PING", Frame::new(kind::PING, 0, 0, *b"12345678")),
            ("SETTINGS", Frame::settings(&[])),
            (
                "SETTINGS of 100 windows",
                Frame::settings(&[(4, 65_535); 100]),
            ),
            (
                "PRIORITY",
                Frame::new(kind::PRIORITY, 0, 1, [0, 0, 0, 3, 0]),
            ),
            ("an unknown type", Frame::new(77, 0, 0, [0; 8])),
        ] {
            let wire = arena.attacker.wire(&[]).await?;
            let flood = arena
                .attacker
                .flood(wire, plan(20_000, reading), |_| vec![frame.clone(); 10])
                .await;
            let how = if reading { "read" } else { "unread" };
            findings.push(ended(&format!("{what}, {how}: ended"), [&flood]));
        }
    }
    Ok(findings)
}

/// DATA that carries nothing.
pub(super) async fn empty_data(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut padded = vec![255];
    padded.extend([0; 255]);
    for (what, frame) in [
        ("empty DATA", Frame::data(1, b"", false)),
        (
            "padding alone",
            Frame::new(kind::DATA, flag::PADDED, 1, padded),
        ),
        ("byte by byte", Frame::data(1, b"\0", false)),
    ] {
        let mut wire = arena.attacker.wire(&[]).await?;
        wire.send(&[Frame::headers(1, &frames::grpc_request(UPLOAD), false)])
            .await?;
        let flood = arena
            .attacker
            .flood(wire, plan(20_000, true), |_| vec![frame.clone(); 10])
            .await;
        findings.push(ended(&format!("{what}: ended"), [&flood]));
    }
    Ok(findings)
}

/// A large field enters the table, and the block names it again and again; and tables that change their size.
pub(super) async fn hpack_bombs(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut bomb = block(&frames::grpc_request(UNARY));
    // A literal that enters the table (RFC 7541 section 6.2.1), of almost all of its 4096 bytes, then its index, 62.
    let field = block(&[("x-bomb", "b".repeat(4000))]);
    bomb.push(0x40);
    bomb.extend(&field[1..]);
    bomb.extend([0x80 | 62; 10_000]);
    // Two octets are a literal of that name, which takes the entry's place (the same section).
    let mut copies = block(&frames::grpc_request(UNARY));
    copies.push(0x40);
    copies.extend(&block(&[("b".repeat(4064), "")])[1..]);
    copies.extend([0x40 | 62, 0].repeat(6000));
    // From the smallest to the largest table and back (section 6.3), without a field.
    let resizes = [0x20, 0x3f, 0xe1, 0x1f].repeat(4000);
    for (what, payload, ends) in [
        ("a field named 10 000 times", bomb, true),
        ("a name copied 6000 times", copies, true),
        ("4000 sizes of the table", resizes, false),
    ] {
        let before = arena.usage().memory;
        let wire = arena.attacker.wire(&[]).await?;
        // The connection may live: nobody waits for its end.
        let short = Plan {
            time: Duration::from_secs(5),
            ..plan(200, true)
        };
        let flood = arena
            .attacker
            .flood(wire, short, |round| {
                vec![Frame::new(
                    kind::HEADERS,
                    flag::END_HEADERS | flag::END_STREAM,
                    2 * round + 1,
                    payload.clone(),
                )]
            })
            .await;
        settle().await;
        let grown = arena.usage().memory.saturating_sub(before);
        let how = if flood.ended.is_some() {
            "ended"
        } else {
            "lives"
        };
        if ends {
            let ended = flood.ended.is_some();
            findings.push(Finding::new(
                format!("{what}: the connection ends"),
                how,
                ended,
            ));
        }
        findings.push(Finding::new(
            format!("{what}: memory grows by ≤ 8 MiB"),
            format!(
                "{:.1} MiB; after {} the connection {how}",
                grown as f64 / (1 << 20) as f64,
                flood.rounds
            ),
            grown <= 8 << 20,
        ));
    }
    findings.push(Finding::count(
        "of them at the backend",
        arena.backend.journal.calls(UNARY),
        0,
    ));
    Ok(findings)
}

/// SETTINGS stay unacknowledged while RPCs run, and more is sent than the windows say; then the connection is ended for it.
pub(super) async fn unacknowledged_settings(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let rounds = arena.scale.of(2000, 300);
    let most = Duration::from_secs(arena.scale.of(11, 6));
    let before = arena.usage().memory;
    // Not the attacker's own, which acknowledges.
    let mut wire = Wire::client(arena.attacker.tls().await?, &[]).await?;
    let begun = Instant::now();
    let (mut answers, mut reason, mut ended) = (0, None, None);
    let headers = frames::grpc_request(UNARY);
    'rpcs: for round in 0..rounds {
        let stream = 2 * round + 1;
        let frames = [
            Frame::headers(stream, &headers, false),
            Frame::data(stream, &framed(b""), true),
        ];
        if wire.send(&frames).await.is_err() {
            break;
        }
        // Not `until`, which would acknowledge.
        while let Ok(Some(frame)) = timeout(Duration::from_secs(5), wire.next()).await {
            if frame.kind == kind::GOAWAY {
                (reason, ended) = (frame.number(4), Some(begun.elapsed()));
                break 'rpcs;
            }
            if frame.ends_stream() && frame.stream == stream {
                answers += 1;
                break;
            }
        }
    }
    let grown = arena.usage().memory.saturating_sub(before);
    while ended.is_none()
        && let Ok(Some(frame)) = timeout(most.saturating_sub(begun.elapsed()), wire.next()).await
    {
        if frame.kind == kind::GOAWAY {
            (reason, ended) = (frame.number(4), Some(begun.elapsed()));
        }
    }
    Ok(vec![
        Finding::new(
            "memory grows by ≤ 8 MiB",
            format!(
                "{:.1} MiB after {answers} RPCs",
                grown as f64 / (1 << 20) as f64
            ),
            answers > 0 && grown <= 8 << 20,
        ),
        Finding::within("GOAWAY", ended, most),
        Finding::new(
            "with SETTINGS_TIMEOUT",
            format!("{reason:?}"),
            reason == Some(code::SETTINGS_TIMEOUT),
        ),
    ])
}

/// What the proxy and the backend still have on their way gets there.
async fn settle() {
    sleep(Duration::from_millis(300)).await;
}

/// Nothing of the attack is left at the backend.
async fn all_ended(arena: &Arena) -> Finding {
    let most = Duration::from_secs(10);
    let none = until(most, || async { concurrency(arena) == 0 }).await;
    Finding::within("all of them ended at the backend", none, most)
}

/// A request that the backend answers when it is told to.
pub(super) fn gated() -> Vec<(&'static str, &'static str)> {
    let mut headers = frames::grpc_request(CHAT);
    headers.push(("x-test-gate", "never"));
    headers
}

fn plan(rounds: u32, reading: bool) -> Plan {
    Plan {
        rounds,
        time: Duration::from_secs(40),
        pause: Duration::ZERO,
        reading,
    }
}

fn ended<'a>(what: &str, floods: impl IntoIterator<Item = &'a Flood>) -> Finding {
    let floods: Vec<&Flood> = floods.into_iter().collect();
    let gone = floods.iter().filter(|flood| flood.ended.is_some()).count();
    let slowest = floods.iter().filter_map(|flood| flood.ended).max();
    let rounds = floods.iter().map(|flood| flood.rounds).max();
    Finding::new(
        what,
        format!(
            "{gone} of {}, after {} and {} rounds at most",
            floods.len(),
            slowest.map_or_else(|| "never".to_owned(), seconds),
            rounds.unwrap_or_default(),
        ),
        gone == floods.len(),
    )
}

fn most(what: &str, counts: impl Iterator<Item = usize>, most: usize) -> Finding {
    Finding::count(what, counts.max().unwrap_or_default(), most)
}

/// Rounds from a stream's beginning to its mistake.
const LAG: u32 = 50;

/// The same, of more than a client may have at a time.
const MANY: u32 = 130;

/// Streams that are opened together.
const AT_ONCE: u32 = 50;

/// Streams within a second before the proxy looks how many of them are reset: `RAPID_STREAMS` of `http2`.
const FLOOD: usize = 500;

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    /// So many batches, one each `apart`.
    fn pace(batches: u32, apart: Duration, closed: bool) -> Pace {
        let begun = Instant::now();
        let at = |number| begun + apart * number;
        Pace {
            batches: (0..batches).map(|n| (at(n), at(n))).collect(),
            took: apart * batches,
            closed,
        }
    }

    fn verdicts(pace: &Pace, calls: usize) -> [Verdict; 3] {
        pace.judge(calls).map(|finding| finding.verdict.unwrap())
    }

    #[test]
    fn a_pace_is_judged_by_the_rule_at_any_speed() {
        use Verdict::{Held, LeftOut, Missed};
        let (fast, slow) = (Duration::from_millis(5), Duration::from_millis(200));
        assert_eq!(verdicts(&pace(11, fast, true), 520), [Held; 3]);
        // 10 000 in a second, and it lives.
        let tolerant = pace(200, fast, false);
        assert_eq!(verdicts(&tolerant, 1501), [Missed, Held, Missed]);
        // 250 a second.
        assert_eq!(
            verdicts(&pace(100, slow, false), 5000),
            [LeftOut, Held, Held]
        );
        assert_eq!(
            verdicts(&pace(100, slow, true), 5000),
            [Held, Missed, Held],
            "ended for nothing"
        );
        assert_eq!(verdicts(&pace(9, fast, true), 450), [Held, Missed, Held]);
    }
}
