//! Attacks on a proxy's process beside a victim, and the bar that they are judged by.
//!
//! Each attack is one function of `isolation.rs`, `queued.rs`, `strict_headers.rs`, `floods.rs` or `slow.rs`, and one line of `ATTACKS`
//! (`external.rs` and `EXTERNAL`: with programs that aren't this workspace's): its name, what is promised,
//! how the proxy is configured for it. `run` performs one in an `Arena` of its own: a process of the real program
//! with one worker, one backend behind it, and a victim that sends 200 RPCs a second on a connection of its own, to the
//! same backend, for the whole time. What can't be performed, for want of root or of a program, is left out, which is a
//! verdict of its own: neither held nor missed. The attack's own findings are judged by what it promises, and every attack
//! by the same bar:
//!
//! - the victim: it has sent at its rate, no RPC fails, p99 ≤ max(2 × quiet, 50 ms), its connection is never lost;
//! - connections to the backend that were destroyed: none;
//! - no panic;
//! - resident memory within 10 % or 8 MiB, and open files within 5, of what they were before, 60 s later at most;
//! - at its worst, less than 100 bytes of memory per byte that the attacker has sent, and less than 100 seconds of
//!   processor time per second of the attacker's (below 8 MiB and 0.2 s nothing is judged).

/// One proxy's process, its backend and its victim.
mod arena;

/// What one client does to others through a connection that they share.
mod isolation;

/// What waits for a connection to a backend.
mod queued;

/// Headers that stacks disagree about.
mod strict_headers;

/// Too much of something.
mod floods;

/// Too slowly, or too many at a time.
mod slow;

/// All of it at once, on a process with little memory.
pub mod siege;

/// With programs that aren't this workspace's.
mod external;

/// Memory, files and processor time, as the kernel counts them.
mod usage;

use std::{
    fmt::Display,
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

pub use arena::{Arena, run};
pub(crate) use arena::{Threads, are_back, sound, start};
use external::Stack;
pub(crate) use usage::Usage;

use crate::proxy::Builder;

/// One attack.
#[derive(Clone, Copy)]
pub struct Attack {
    /// What it is called.
    pub name: &'static str,
    /// What is promised besides the bar.
    pub promise: &'static str,
    /// What of this machine it lacks; `None`: it can be performed.
    lacks: fn() -> Option<String>,
    /// Whose HTTP/2 is behind the proxy.
    stack: Stack,
    /// Configures the proxy.
    configure: fn(Builder, Scale) -> Builder,
    perform: fn(Arc<Arena>) -> Performance,
}

/// An attack under way.
pub(crate) type Performance = Pin<Box<dyn Future<Output = anyhow::Result<Vec<Finding>>> + Send>>;

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// As promised: counts and timeouts as they are deployed. Minutes.
    Full,
    /// Smaller counts and shorter timeouts, with more patience for a machine that does other things. Seconds.
    Quick,
}

/// How to run attacks.
#[derive(Clone, Debug)]
pub struct Options {
    /// The proxy's program.
    pub program: PathBuf,
    /// How much of them.
    pub scale: Scale,
    /// Whether what depends on the machine's speed (p99, processor time, memory that comes back) is judged. Not where
    /// other tests run beside it.
    pub strict: bool,
}

/// One thing that was measured, and whether it is as promised.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What is promised.
    pub promise: String,
    /// What was measured, or why nothing could be.
    pub measured: String,
    /// Whether it is as promised; `None`: it is for the record, and nothing is promised of it here.
    pub verdict: Option<Verdict>,
}

/// What came of a promise. Of several, the greatest counts: what wasn't tried is no success, and a failure is one
/// whatever else wasn't tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It was tried, and held.
    Held,
    /// It can't be tried here: no root, no cgroup, a program that is missing.
    LeftOut,
    /// It didn't hold.
    Missed,
}

/// The outcome of one attack.
#[derive(Debug)]
pub struct Report {
    /// Its name.
    pub name: &'static str,
    /// What is promised besides the bar.
    pub promise: &'static str,
    /// What the attack promises, then the bar.
    pub findings: Vec<Finding>,
    /// What the attacker spent, and what the proxy did, for the record; `None`: nobody attacks.
    pub account: Option<Account>,
}

/// What was spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// How long the attack took.
    pub took: Duration,
    /// Bytes that the attacker wrote.
    pub written: u64,
    /// The attacker's processor time.
    pub attacker_cpu: Duration,
    /// The proxy's, less what the victim alone costs.
    pub proxy_cpu: Duration,
    /// Most memory of the proxy, over what it had before.
    pub memory: u64,
    /// The victim's p99 before the attack, in microseconds.
    pub quiet_p99: u64,
    /// And with it.
    pub p99: u64,
}

impl Scale {
    /// One of two numbers.
    pub fn of<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

impl Verdict {
    /// For people.
    pub fn mark(verdict: Option<Self>) -> char {
        match verdict {
            Some(Self::Held) => '✓',
            Some(Self::LeftOut) => '–',
            Some(Self::Missed) => '✗',
            None => '·',
        }
    }

    /// For programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::LeftOut => "left out",
            Self::Missed => "missed",
        }
    }
}

impl Finding {
    /// Anything.
    pub fn new(promise: impl Into<String>, measured: impl ToString, held: bool) -> Self {
        let verdict = if held { Verdict::Held } else { Verdict::Missed };
        Self {
            promise: promise.into(),
            measured: measured.to_string(),
            verdict: Some(verdict),
        }
    }

    /// What is measured for the record.
    pub fn noted(what: impl Into<String>, measured: impl ToString) -> Self {
        Self {
            promise: what.into(),
            measured: measured.to_string(),
            verdict: None,
        }
    }

    /// What can't be tried here, and why.
    pub fn left_out(promise: impl Into<String>, why: impl Display) -> Self {
        Self {
            promise: promise.into(),
            measured: format!("left out: {why}"),
            verdict: Some(Verdict::LeftOut),
        }
    }

    /// A count.
    pub fn count(what: &str, measured: usize, most: usize) -> Self {
        let promise = match most {
            0 => format!("{what}: 0"),
            _ => format!("{what}: ≤ {most}"),
        };
        Self::new(promise, measured, measured <= most)
    }

    /// A number that has to be met.
    pub fn exactly(what: &str, measured: usize, wanted: usize) -> Self {
        Self::new(format!("{what}: {wanted}"), measured, measured == wanted)
    }

    /// A time; `None`: it never happened.
    pub fn within(what: &str, measured: Option<Duration>, most: Duration) -> Self {
        let text = measured.map_or_else(|| "never".to_owned(), seconds);
        let held = measured.is_some_and(|took| took <= most);
        Self::new(format!("{what}: ≤ {}", seconds(most)), text, held)
    }
}

impl Report {
    /// Of what could not be performed at all.
    pub fn of(name: &'static str, promise: &'static str, finding: Finding) -> Self {
        Self {
            name,
            promise,
            findings: vec![finding],
            account: None,
        }
    }

    /// The worst of its findings'. Where nothing was judged, nothing held.
    pub fn verdict(&self) -> Verdict {
        let verdicts = self.findings.iter().filter_map(|finding| finding.verdict);
        verdicts.max().unwrap_or(Verdict::Missed)
    }

    /// The findings that make it what it is, a line each.
    pub fn reasons(&self) -> String {
        let verdict = Some(self.verdict());
        let worst = self.findings.iter().filter(|one| one.verdict == verdict);
        worst
            .map(|finding| format!("{}: {}: {}\n", self.name, finding.promise, finding.measured))
            .collect()
    }

    /// Everything, for programs.
    pub fn json(&self) -> Value {
        let findings = self.findings.iter().map(|finding| {
            let Finding {
                promise,
                measured,
                verdict,
            } = finding;
            json!({ "promise": promise, "measured": measured, "verdict": verdict.map(Verdict::name) })
        });
        json!({
            "name": self.name,
            "promise": self.promise,
            "verdict": self.verdict().name(),
            "findings": findings.collect::<Vec<_>>(),
            "account": self.account.as_ref().map(Account::json),
        })
    }
}

impl Account {
    fn json(&self) -> Value {
        let Self {
            took,
            written,
            attacker_cpu,
            proxy_cpu,
            memory,
            quiet_p99,
            p99,
        } = self;
        json!({
            "seconds": took.as_secs_f64(),
            "attacker": { "bytes": written, "cpu_seconds": attacker_cpu.as_secs_f64() },
            "proxy": { "memory_bytes": memory, "cpu_seconds": proxy_cpu.as_secs_f64() },
            "victim_p99_us": { "quiet": quiet_p99, "attacked": p99 },
        })
    }
}

/// A time as people read it.
pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.1} ms", time.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}

/// Bytes as people read them.
pub(crate) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

/// Asks until it is so, at most so long; how long it took.
pub(crate) async fn until<F>(most: Duration, mut so: impl FnMut() -> F) -> Option<Duration>
where
    F: Future<Output = bool>,
{
    let begun = Instant::now();
    loop {
        if so().await {
            return Some(begun.elapsed());
        }
        if begun.elapsed() >= most {
            return None;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// RPCs at the backend that wait for a gate: all of an attack's.
fn concurrency(arena: &Arena) -> usize {
    let journal = &arena.backend.journal;
    let gone = journal.look(|all| all.cancelled.len());
    journal.calls(CHAT).saturating_sub(gone)
}

/// Methods of the tests' service.
const UNARY: &str = "/e2e.Test/Unary";
const UPLOAD: &str = "/e2e.Test/Upload";
const DOWNLOAD: &str = "/e2e.Test/Download";
const CHAT: &str = "/e2e.Test/Chat";

/// Short against everything that is measured in this way.
const POLL: Duration = Duration::from_millis(5);

macro_rules! attacks {
    (@configure) => { |builder, _| builder };
    (@configure $configure:expr) => { $configure };
    ($($name:literal $promise:literal $perform:path $(, $configure:expr)?;)*) => {
        /// Those that need no other program.
        pub const ATTACKS: &[Attack] = &[$(Attack {
            name: $name,
            promise: $promise,
            lacks: || None,
            stack: Stack::Tonic,
            configure: attacks!(@configure $($configure)?),
            perform: |arena| Box::pin($perform(arena)),
        }),*];
    };
}

attacks! {
    "unread-messages"
    "50 server streams of 20-byte messages whose client gives no window: reset within 65 s"
    isolation::unread_messages, |builder, scale| timeouts(builder, scale, "stream_window_stall", "2s");

    "stalled-downloads"
    "100 downloads of 1 MiB that nobody reads: others' downloads go on"
    isolation::stalled_downloads, |builder, _| builder.with("per_connection_streams", 200);

    "cancelled-downloads"
    "10 000 server streams cancelled after the first message, 500 a second: no connection ends for it"
    isolation::cancelled_downloads;

    "blocked-uploads"
    "an upload that the backend doesn't read is reset, 1000 times: noticed within 100 ms, windows whole again"
    isolation::blocked_uploads;

    "slow-backend"
    "100 streams of 10 000 messages of 20 bytes each way, a slow but honest backend: none fails"
    isolation::slow_backend;

    "unread-uploads"
    "100 uploads of 1 MiB to a method that never reads: others' uploads go on"
    isolation::unread_uploads, |builder, _| builder.with("per_connection_streams", 200);

    "unread-uploads-in-turn"
    "more uploads to a method that never reads than connections to the backend, one each 1.2 s: others' RPCs go on"
    isolation::unread_uploads_in_turn, |builder, scale| match scale {
        Scale::Full => builder,
        Scale::Quick => builder.with("max_connections", 2),
    };

    "batched-cancels"
    "10 000 RPCs reset in batches before their answer, 2000 a second: no connection ends for it"
    isolation::batched_cancels;

    "queued-resets"
    "20 000 RPCs that wait for a connection to the backend are reset, 100 each 5 ms, again and again: others don't notice"
    queued::resets, queued::behind_one_connection;

    "early-ends"
    "10 000 uploads that the backend ends early: their clients' connections live"
    isolation::early_ends;

    "strict-headers"
    "headers that one HTTP/2 stack takes and another calls a connection error, 5000 requests: none reaches a backend's connection"
    strict_headers::strict_headers;

    "rapid-reset"
    "resets in bursts: the connection ends, with at most 1000 RPCs at the backend"
    floods::rapid_reset;

    "rapid-reset-paced"
    "resets after the proxy has accepted: the connection ends, with at most 1000 RPCs at the backend"
    floods::rapid_reset_paced;

    "slow-resets"
    "200 resets a second, after the proxy has accepted: the connection lives"
    floods::slow_resets;

    "made-you-reset"
    "stream errors that make the proxy reset, six ways: GOAWAY by the 1025th, at most 100 RPCs at a time at the backend"
    floods::made_you_reset;

    "continuation"
    "CONTINUATION without end: closed by the 7th frame or 32 KiB"
    floods::continuation;

    "open-header-block"
    "a header block that stays open: closed within 11 s"
    slow::open_header_block, |builder, scale| timeouts(builder, scale, "header_block", "1s");

    "control-frames"
    "PING and SETTINGS without end, read and unread: the connection ends"
    floods::control_frames;

    "empty-data"
    "empty and padded DATA without end: the connection ends"
    floods::empty_data;

    "hpack-bombs"
    "header blocks that unfold a thousandfold: refused, memory stays"
    floods::hpack_bombs;

    "unacknowledged-settings"
    "SETTINGS that are never acknowledged: nothing grows, GOAWAY within 11 s"
    floods::unacknowledged_settings, |builder, scale| timeouts(builder, scale, "preface", "3s");

    "zero-stream-windows"
    "streams whose window is 0: reset within 65 s"
    slow::zero_stream_windows, |builder, scale| timeouts(builder, scale, "stream_window_stall", "2s");

    "zero-tcp-window"
    "sockets that take nothing: closed within 35 s"
    slow::zero_tcp_window, |builder, scale| timeouts(builder, scale, "write_stall", "2s");

    "slow-handshakes"
    "2000 TLS handshakes byte by byte: each closed within 5.5 s, others' handshakes p99 ≤ 200 ms"
    slow::slow_handshakes, |builder, scale| timeouts(builder, scale, "tls_handshake", "1s");

    "slow-prefaces"
    "TLS and then silence: closed within 10.5 s"
    slow::slow_prefaces, |builder, scale| timeouts(builder, scale, "preface", "1s");

    "handshake-flood"
    "ClientHellos without end: at most 512 handshakes at a time"
    slow::handshake_flood;

    "connections"
    "12 000 connections, and 300 from one address: 10 000 and 256 kept"
    slow::connections, |builder, scale| match scale {
        Scale::Full => builder,
        Scale::Quick => builder.set("listener.max_connections", 200).set("listener.max_connections_per_source", 40),
    };

    "no-files-left"
    "file descriptors run out: accepting goes on within 1 s of having some, and doesn't spin"
    slow::no_files_left;
}

/// Those that need programs that aren't this workspace's (`tests/clients/install`).
pub const EXTERNAL: &[Attack] = &[
    Attack {
        name: "h2spec",
        promise: "all cases of h2spec, plain and strict, 20 runs of each in a row",
        lacks: external::lacks_h2spec,
        stack: Stack::Tonic,
        configure: external::h2spec_rules,
        perform: |arena| Box::pin(external::h2spec(arena)),
    },
    Attack {
        name: "strict-headers-grpcio",
        promise: "strict-headers, with a backend of grpcio",
        lacks: external::lacks_python,
        stack: Stack::Python,
        configure: |builder, _| builder,
        perform: |arena| Box::pin(strict_headers::strict_headers(arena)),
    },
    Attack {
        name: "strict-headers-grpc-js",
        promise: "strict-headers, with a backend of grpc-js",
        lacks: external::lacks_node,
        stack: Stack::Node,
        configure: |builder, _| builder,
        perform: |arena| Box::pin(strict_headers::strict_headers(arena)),
    },
];

/// A shorter time-out where it is to be quick.
fn timeouts(builder: Builder, scale: Scale, key: &str, quick: &str) -> Builder {
    match scale {
        Scale::Full => builder,
        Scale::Quick => builder.set(&format!("listener.timeouts.{key}"), quick),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_no_success_and_hides_no_failure() {
        let of = |findings: Vec<Finding>| Report {
            findings,
            ..Report::of("name", "promise", Finding::noted("a figure", 1))
        };
        let held = Finding::new("a", "b", true);
        let left_out = Finding::left_out("c", "no root");
        let missed = Finding::new("d", "e", false);
        let noted = Finding::noted("f", "g");
        assert_eq!(
            of(vec![held.clone(), noted.clone()]).verdict(),
            Verdict::Held
        );
        let partly = of(vec![held.clone(), left_out.clone(), noted.clone()]);
        assert_eq!(partly.verdict(), Verdict::LeftOut);
        assert_eq!(partly.reasons(), "name: c: left out: no root\n");
        assert_eq!(partly.json()["verdict"], "left out");
        assert_eq!(of(vec![missed, left_out, held]).verdict(), Verdict::Missed);
        assert_eq!(
            of(vec![noted]).verdict(),
            Verdict::Missed,
            "nothing was judged"
        );
    }
}
