//! Load as real gRPC clients make it, and an account of every RPC: what `edge-load` runs.
//!
//! An open loop: RPCs are sent at their times (`schedule`), in turn on each connection, and latencies count from
//! those times (`tally`). Beside it, each of a number of slots holds one stream after the other. Memory is
//! bounded by the limit of RPCs in flight: what it keeps from being sent is counted, and is a failure of the run.

/// How long to wait between attempts to connect.
pub mod backoff;

/// When each RPC is to be sent.
pub mod schedule;

/// What has become of them.
pub mod tally;

/// One connection, and what comes after it.
mod connection;

/// One RPC.
mod rpc;

/// Waiting for their times.
mod timer;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use bytes::Bytes;
use http::uri::Authority;
use prost::Message as _;
use proto::api::{EchoRequest, ReverseResponse};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until},
};
use tonic::Code;
use tonic_reflection::pb::v1::{
    ExtensionNumberResponse, ServerReflectionRequest, ServerReflectionResponse,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use connection::{Link, Target};
use rpc::{Call, Ended};
use schedule::{Due, Schedule};
use tally::{Failure, Second, Tally};

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port`.
    pub target: String,
    /// `:authority`, and whom the certificate is to name.
    pub authority: String,
    /// Whom to trust; with ALPN `h2`.
    pub tls: Arc<ClientConfig>,
    /// Unary RPCs per second, over all connections.
    pub rate: u32,
    /// Connections; at least one is made.
    pub connections: usize,
    /// How long RPCs are sent, and streams begun.
    pub duration: Duration,
    /// Every second RPC is `api.Reverse/Reverse` instead of `api.Echo/Echo`.
    pub reverse: bool,
    /// Streams at a time.
    pub streams: usize,
    /// Whose they are.
    pub stream_method: StreamMethod,
    /// How long each of them is.
    pub stream_length: Duration,
    /// Each RPC's deadline after its intended time, and each stream's after its length.
    pub timeout: Duration,
    /// Unary RPCs at a time.
    pub max_in_flight: usize,
    /// PINGs to each connection's peer: gRPC's `doc/keepalive.md`. None unless it is set, as in gRPC's libraries.
    pub keepalive: Option<Keepalive>,
    /// How ids (`x-test-id`) begin: `run-0`, `run-1`, …; streams' are `run-s0-0`, by slot and number.
    pub run: String,
}

/// Whose unary RPCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// `api.Echo/Echo`.
    Echo,
    /// `api.Reverse/Reverse`.
    Reverse,
    /// Both, in turn.
    InTurn,
}

/// A long RPC, with a reply every 100 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMethod {
    /// `e2e.Test/Download`, a server stream, of the tests' own backend.
    Download,
    /// `grpc.reflection.v1.ServerReflection/ServerReflectionInfo`, which is every gRPC service's that has server
    /// reflection: a question for each reply, and the stream ends when there are no more questions.
    Reflection,
}

/// When a connection that seems dead is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// From one PING to the next.
    pub interval: Duration,
    /// How long a PING's answer, and the acknowledgement of any data (TCP_USER_TIMEOUT), may take.
    pub timeout: Duration,
}

/// A whole number and its unit, of at most a day, as the command lines here take it.
///
/// # Errors
/// What to write instead.
pub fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time of at most a day, such as 500ms, 60s, 5m or 1h");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match number.checked_mul(millis) {
        Some(millis) if millis <= DAY => Ok(Duration::from_millis(millis)),
        _ => Err(wrong()),
    }
}

/// What all RPCs share.
struct Load {
    options: Options,
    unary: Unary,
    links: Vec<Link>,
    tally: Arc<Mutex<Tally>>,
    /// Streams that end are not followed by others.
    closing: AtomicBool,
}

/// Sends what `options` ask for, until it has all ended; after `stop` nothing more is sent. `each_second` is told
/// about every second: its number, and what happened in it.
///
/// # Errors
/// When the authority is none, or no timer can be had.
pub async fn run(
    options: Options,
    each_second: impl FnMut(u64, &Second),
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Tally> {
    let unary = Unary::of(&options);
    run_with(options, unary, each_second, stop).await
}

/// [`run`], with these unary RPCs instead of those that `options` ask for.
///
/// # Errors
/// As there.
pub async fn run_with(
    options: Options,
    unary: Unary,
    mut each_second: impl FnMut(u64, &Second),
    stop: impl Future<Output = ()>,
) -> anyhow::Result<Tally> {
    let tally = Arc::new(Mutex::new(Tally::new()));
    let target = Arc::new(target(&options)?);
    let connections = 0..options.connections.max(1);
    let load = Arc::new(Load {
        links: connections
            .map(|_| Link::start(target.clone(), tally.clone()))
            .collect(),
        options,
        unary,
        tally,
        closing: AtomicBool::new(false),
    });
    let options = &load.options;
    let start = Instant::now();
    let end = start + options.duration;
    let mut schedule = Schedule::new(start, options.rate, options.duration)?;
    let mut ticks = interval_at(start + SECOND, SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    let mut tick = || {
        number += 1;
        let second = load.tally().end_second();
        each_second(number, &second);
    };

    let mut streams = JoinSet::new();
    for slot in 0..options.streams {
        streams.spawn(load.clone().streams(slot));
    }
    let mut unary = JoinSet::new();
    let mut more = true;
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            due = schedule.next(), if more => match due? {
                Some(_) if unary.len() >= options.max_in_flight => load.tally().not_sent += 1,
                Some(due) => {
                    load.tally().sent += 1;
                    unary.spawn(load.clone().unary(due));
                }
                None => more = false,
            },
            Some(_) = unary.join_next() => {}
            _ = ticks.tick() => tick(),
            () = sleep_until(end), if !more => break,
        }
    }
    load.closing.store(true, Ordering::Relaxed);
    while !unary.is_empty() || !streams.is_empty() {
        tokio::select! {
            Some(_) = unary.join_next() => {}
            Some(_) = streams.join_next() => {}
            _ = ticks.tick() => tick(),
        }
    }
    tick();
    let tally = std::mem::take(&mut *load.tally());
    Ok(tally)
}

impl Unary {
    /// What `options` ask for.
    pub fn of(options: &Options) -> Self {
        if options.reverse {
            Self::InTurn
        } else {
            Self::Echo
        }
    }
}

impl Load {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        // Nothing panics while it is held; if it did, counts would still be counts.
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn unary(self: Arc<Self>, due: Due) {
        let begun = SystemTime::now() - due.at.elapsed();
        let options = &self.options;
        let id = format!("{}-{}", options.run, due.number);
        let reverse = match self.unary {
            Unary::Echo => false,
            Unary::Reverse => true,
            Unary::InTurn => due.number % 2 == 1,
        };
        let (path, reply) = if reverse {
            let content = id.chars().rev().collect();
            let reply = ReverseResponse { content };
            ("api.Reverse/Reverse", reply.encode_to_vec())
        } else {
            let reply = EchoRequest {
                content: id.clone(),
            };
            ("api.Echo/Echo", reply.encode_to_vec())
        };
        // All four messages have the one field `content = 1`.
        let request = EchoRequest {
            content: id.clone(),
        };
        let call = Call {
            uri: format!("https://{}/{path}", options.authority),
            id,
            metadata: Vec::new(),
            request: request.encode_to_vec().into(),
            pace: None,
            reply: reply.into(),
            replies: 1,
            deadline: due.at + options.timeout,
        };
        // The remainder is below the number of links, which fits.
        let link = &self.links[(due.number % self.links.len() as u64) as usize];
        let ended = call.perform(link).await;
        let latency = due.at.elapsed();
        let mut tally = self.tally();
        tally.transparent_retries += ended.retries;
        if ended.status.code() == Code::Ok {
            tally.ended_well(latency, ended.hostname.as_deref());
        } else {
            tally.ended_badly(Some(latency), failure(call.id, begun, ended));
        }
    }

    /// One stream after the other.
    async fn streams(self: Arc<Self>, slot: usize) {
        let options = &self.options;
        let link = &self.links[slot % self.links.len()];
        let replies = (options.stream_length.as_millis() / REPLY_INTERVAL.as_millis()).max(1);
        let replies = u64::try_from(replies).unwrap_or(u64::MAX);
        for number in 0_u64.. {
            if self.closing.load(Ordering::Relaxed) {
                return;
            }
            self.tally().streams_sent += 1;
            let begun = SystemTime::now();
            let id = format!("{}-s{slot}-{number}", options.run);
            let call = match options.stream_method {
                StreamMethod::Download => self.download(id, replies),
                StreamMethod::Reflection => self.reflection(id, replies),
            };
            let ended = call.perform(link).await;
            let good = ended.status.code() == Code::Ok;
            {
                let mut tally = self.tally();
                tally.transparent_retries += ended.retries;
                if good {
                    tally.streams_ok += 1;
                } else {
                    tally.ended_badly(None, failure(call.id, begun, ended));
                }
            }
            if !good {
                // What fails at once is not asked for in a tight loop.
                sleep(SECOND).await;
            }
        }
    }
}

impl Load {
    fn download(&self, id: String, replies: u64) -> Call {
        let message = Bytes::from(crate::payload("stream").encode_to_vec());
        Call {
            metadata: vec![
                ("x-test-replies", replies.to_string()),
                ("x-test-interval", REPLY_INTERVAL.as_millis().to_string()),
            ],
            pace: None,
            ..self.stream("e2e.Test/Download", id, message.clone(), message, replies)
        }
    }

    fn reflection(&self, id: String, replies: u64) -> Call {
        // The shortest question and answer: the extensions of a type, of which there are none. The answer has the
        // question in it, so it is known whose it is.
        let question = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::AllExtensionNumbersOfType(id.clone())),
        };
        let reply = ServerReflectionResponse {
            valid_host: String::new(),
            original_request: Some(question.clone()),
            message_response: Some(MessageResponse::AllExtensionNumbersResponse(
                ExtensionNumberResponse::default(),
            )),
        };
        let method = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        let (question, reply) = (question.encode_to_vec(), reply.encode_to_vec());
        Call {
            pace: Some(REPLY_INTERVAL),
            ..self.stream(method, id, question.into(), reply.into(), replies)
        }
    }

    fn stream(&self, method: &str, id: String, request: Bytes, reply: Bytes, replies: u64) -> Call {
        let options = &self.options;
        Call {
            uri: format!("https://{}/{method}", options.authority),
            id,
            metadata: Vec::new(),
            request,
            pace: None,
            reply,
            replies,
            deadline: Instant::now() + options.stream_length + options.timeout,
        }
    }
}

fn target(options: &Options) -> anyhow::Result<Target> {
    let authority: Authority = options
        .authority
        .parse()
        .with_context(|| format!("{:?} is no authority", options.authority))?;
    let name = ServerName::try_from(authority.host().to_owned())
        .with_context(|| format!("{:?} is no host name", authority.host()))?;
    Ok(Target {
        address: options.target.clone(),
        name,
        tls: options.tls.clone(),
        keepalive: options.keepalive,
    })
}

fn failure(id: String, begun: SystemTime, ended: Ended) -> Failure {
    Failure {
        id,
        begun,
        ended: SystemTime::now(),
        code: ended.status.code(),
        message: ended.status.message().to_owned(),
        hostname: ended.hostname,
    }
}

const SECOND: Duration = Duration::from_secs(1);
/// Between a stream's replies: often enough that one that hangs shows.
const REPLY_INTERVAL: Duration = Duration::from_millis(100);
/// In milliseconds.
const DAY: u64 = 86_400_000;
