//! What is remembered of an RPC for its log line and its counters.

use std::{
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http2::{Headers, Known};

use super::{
    Client, Worker,
    head::{Head, Logged},
};
use crate::{
    data_plane::{
        access_log,
        local::Local,
        upstream::retry::{self, Outcome},
        worker::ClusterState,
    },
    error::{Failure, Flag, ResetCause, grpc},
    snapshot::{Cluster, EndpointShared, Route, streak::Ending},
    telemetry::{
        labels::{AttemptResult, Flags},
        metrics::{RpcEnd, Series},
    },
};

/// Filled in step by step, written when the stream ends.
#[derive(Debug)]
pub(super) struct Record {
    started: Instant,
    /// When the first attempt began.
    attempted: Option<Instant>,
    /// From the first attempt's start to the response's head.
    upstream_time: Option<Duration>,
    status: u16,
    /// As the response has it; what the client got of it is another matter, see `told`.
    grpc_status: Option<u32>,
    /// The response's head came from a backend.
    answered: bool,
    /// So did its end: what happens then says nothing of the attempt.
    completed: bool,
    failure: Option<Failure>,
    /// How the last attempt ended, if it did so without a response and none follows.
    given_up: Option<Outcome>,
    flags: Flags,
    attempts: u32,
    series: Option<Local<Series>>,
    cluster: Option<Rc<ClusterState>>,
    endpoint: Option<Arc<EndpointShared>>,
    client_left: bool,
    /// The stream was reset before the response's end had left.
    cut_off: bool,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

impl Record {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            attempted: None,
            upstream_time: None,
            status: 0,
            grpc_status: None,
            answered: false,
            completed: false,
            failure: None,
            given_up: None,
            flags: Flags::NONE,
            attempts: 0,
            series: None,
            cluster: None,
            endpoint: None,
            client_left: false,
            cut_off: false,
            bytes_in: 0,
            bytes_out: 0,
        }
    }

    /// A route was found.
    pub(super) fn routed(
        &mut self,
        worker: &Worker,
        route: &Route,
        cluster: Option<&Cluster>,
        path: &[u8],
    ) {
        let name = cluster.map(|cluster| &cluster.name);
        let counted = worker.counted(&route.prefix, name, path);
        counted.series.started.inc();
        if let Some(state) = &counted.cluster {
            state.budget.borrow_mut().deposit();
        }
        self.series = Some(counted.series);
        self.cluster = counted.cluster;
    }

    /// The cluster that it is counted in.
    pub(super) fn cluster(&self) -> Option<&Rc<ClusterState>> {
        self.cluster.as_ref()
    }

    /// An attempt on `endpoint` begins, whether or not it can be connected to.
    pub(super) fn attempted(&mut self, endpoint: &Arc<EndpointShared>, now: Instant) {
        if let Some(state) = &self.cluster
            && self.attempts > 0
        {
            state.series.retries.inc();
        }
        self.attempts += 1;
        self.attempted.get_or_insert(now);
        self.endpoint = Some(endpoint.clone());
    }

    /// An attempt ended so, without a response, and isn't the RPC's last word.
    pub(super) fn attempt_failed(&mut self, worker: &Worker, outcome: Outcome, failure: Failure) {
        if let (Some(endpoint), Some(ending)) = (&self.endpoint, unanswered(outcome, failure)) {
            worker.hints.attempted(endpoint, ending, 1);
        }
        if let Some(state) = &self.cluster {
            let result = if refused(outcome) {
                Some(AttemptResult::Refused)
            } else {
                failed_attempt(failure)
            };
            if let Some(result) = result {
                state.series.attempts(result).inc();
            }
        }
    }

    /// An attempt ended so, and none follows.
    pub(super) fn given_up(&mut self, outcome: Outcome) {
        self.given_up = Some(outcome);
        if outcome != Outcome::Other && self.attempts >= retry::MAX_ATTEMPTS {
            self.flags.insert(Flag::UpstreamRetryLimit);
        }
    }

    /// The response's head went to the client. In one that doesn't end the stream, `grpc-status` is metadata like any
    /// other: clients await it in trailers.
    pub(super) fn responded(
        &mut self,
        status: u16,
        headers: &Headers,
        end_stream: bool,
        now: Instant,
    ) {
        self.status = status;
        self.grpc_status = grpc_status(headers).filter(|_| end_stream);
        self.answered = self.failure.is_none() && self.attempted.is_some();
        if self.answered {
            self.upstream_time = self
                .attempted
                .map(|sent| now.saturating_duration_since(sent));
        }
    }

    /// The response's trailers are the client's as soon as all before them is.
    pub(super) fn trailers(&mut self, headers: &Headers) {
        self.grpc_status = grpc_status(headers).or(self.grpc_status);
    }

    /// The backend has ended its response.
    pub(super) fn completed(&mut self) {
        self.completed = true;
    }

    /// The proxy answered, or cut the answer short.
    pub(super) fn failed_with(&mut self, failure: Failure) {
        self.failure = Some(failure);
        self.flags.insert(failure.flag());
    }

    /// The stream is reset for this, with the end of the response still here. What the response was cut short for, if it
    /// was, stays the reason.
    pub(super) fn cut_off(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        self.flags.insert(failure.flag());
        self.cut_off = true;
    }

    /// The client didn't wait for the end.
    pub(super) fn client_left(&mut self, flag: Flag) {
        self.flags.insert(flag);
        self.client_left = true;
    }

    /// Nothing has gone wrong with it so far.
    pub(super) fn is_unblemished(&self) -> bool {
        self.failure.is_none()
    }

    /// The client's window stayed shut, and the stream is reset.
    pub(super) fn unread(&mut self) {
        self.flags.insert(Flag::LocalReset);
        self.cut_off = true;
    }

    /// The backend's answer is one of failure: a server error, or gRPC without a status.
    pub(super) fn failed(&self, is_grpc: bool) -> bool {
        match self.grpc_status {
            Some(status) => matches!(
                status,
                grpc::UNKNOWN
                    | grpc::DEADLINE_EXCEEDED
                    | grpc::RESOURCE_EXHAUSTED
                    | grpc::INTERNAL
                    | grpc::UNAVAILABLE
                    | grpc::DATA_LOSS
            ),
            None => is_grpc || self.status >= 500,
        }
    }

    /// The line, and the counters.
    pub(super) fn write(
        &self,
        worker: &Rc<Worker>,
        client: &Client,
        head: &Head,
        is_grpc: bool,
        now: Instant,
    ) {
        let duration = now.saturating_duration_since(self.started);
        let path = head.value(Logged::Path);
        let told = self.told(is_grpc);
        let end = match told {
            Some(status) => RpcEnd::Grpc(status),
            None if is_grpc || self.is_cut_short() => RpcEnd::Without,
            None => RpcEnd::Http(self.status),
        };
        match &self.series {
            Some(series) => {
                series.ended(end).inc();
                if self.answered && self.shows_a_method(is_grpc) {
                    series.learn(path.unwrap_or_default());
                }
            }
            None => {
                let unrouted = worker.shard.unrouted();
                unrouted.started.inc();
                unrouted.ended(end).inc();
            }
        }
        if let Some(state) = &self.cluster {
            let series = &state.series;
            series.duration.record(duration);
            if let Some(result) = self.attempt_result(is_grpc) {
                series.attempts(result).inc();
            }
        }
        if let (Some(endpoint), Some(ending)) = (&self.endpoint, self.ending(is_grpc)) {
            worker.hints.attempted(endpoint, ending, 1);
        }
        for flag in self.flags.iter() {
            worker.shard.flags(flag).inc();
        }
        worker.log.write(&access_log::Record {
            time: worker.wall(self.started),
            request_id: head.value(Logged::RequestId),
            client: client.peer_text(),
            method: head.value(Logged::Method),
            path,
            authority: head
                .value(Logged::Authority)
                // HTTP/1.1's, of a request that was answered before the filters put it in its place.
                .or_else(|| head.value(Logged::Host)),
            protocol: client.protocol(),
            status: self.status,
            grpc_status: told,
            flags: self.flags,
            detail: self.detail(),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            duration,
            upstream_time: self.upstream_time,
            attempts: self.attempts,
            cluster: self.cluster.as_ref().map(|state| &*state.name),
            endpoint: self.endpoint.as_ref().map(|endpoint| &*endpoint.label),
            user_agent: head.value(Logged::UserAgent),
        });
    }

    /// The `grpc-status` that the client got, or made up itself; `None`: neither, or this isn't gRPC.
    fn told(&self, is_grpc: bool) -> Option<u32> {
        if !is_grpc || self.cut_off {
            None
        } else if self.client_left {
            // Who broke a rule was told of that.
            let cancelled = !self.flags.contains(Flag::DownstreamProtocolError);
            cancelled.then_some(grpc::CANCELLED)
        } else {
            self.grpc_status
        }
    }

    /// The backend's answer is one that only a method gives: OK, or messages. A status alone is also that of what stands
    /// before all methods, as authorisation or a deadline do.
    fn shows_a_method(&self, is_grpc: bool) -> bool {
        self.grpc_status == Some(grpc::OK) || is_grpc && self.status == 200 && self.bytes_out > 0
    }

    /// The client didn't get the response whole. Where the proxy failed before it had one, its own is the response.
    fn is_cut_short(&self) -> bool {
        self.client_left || self.cut_off || (self.answered && self.failure.is_some())
    }

    /// The client got no more, before the backend had ended its response.
    fn left_early(&self) -> bool {
        (self.client_left || self.cut_off) && !self.completed
    }

    /// What the proxy ended the RPC for, in the words of its own answers.
    fn detail(&self) -> Option<&'static str> {
        Some(self.failure?.text()).filter(|text| !text.is_empty())
    }

    /// How the last attempt ended; `None`: there was none since the last one that was counted.
    fn attempt_result(&self, is_grpc: bool) -> Option<AttemptResult> {
        if self.attempts == 0 {
            return None;
        }
        if self.given_up.is_some_and(refused) {
            return Some(AttemptResult::Refused);
        }
        Some(match self.failure {
            Some(failure) if !self.completed => return failed_attempt(failure),
            _ if self.left_early() => AttemptResult::Cancelled,
            _ if is_grpc && self.grpc_status.is_none() => AttemptResult::ProtocolError,
            _ if !is_grpc && self.status >= 500 => AttemptResult::ErrorStatus,
            _ if self.grpc_status.unwrap_or(0) == 0 => AttemptResult::Ok,
            _ => AttemptResult::ErrorStatus,
        })
    }

    /// What the last attempt's end says about its endpoint.
    fn ending(&self, is_grpc: bool) -> Option<Ending> {
        if let Some(failure) = self.failure.filter(|_| !self.completed) {
            return unanswered(self.given_up.unwrap_or(Outcome::Other), failure);
        }
        if self.left_early() || !self.answered {
            return None;
        }
        Some(match (self.grpc_status, self.status) {
            (Some(grpc::UNAVAILABLE), _) => Ending::GatewayFailure,
            (Some(grpc::UNKNOWN | grpc::INTERNAL | grpc::DATA_LOSS), _) => Ending::ServerError,
            // 4 and 12 are failures of the backend's too, as Envoy counts; but whoever asks can have them at will.
            (Some(_), _) => Ending::Well,
            (None, 502..=504) => Ending::GatewayFailure,
            (None, 500..) => Ending::ServerError,
            (None, _) if is_grpc => Ending::ServerError,
            (None, _) => Ending::Well,
        })
    }
}

/// What an attempt without a whole response says about its endpoint. Failures of connections are counted where they are
/// met, in `upstream/`: one may end many RPCs.
fn unanswered(outcome: Outcome, failure: Failure) -> Option<Ending> {
    match failure {
        // Whoever says GOAWAY may do so.
        _ if outcome == Outcome::AboveGoaway => None,
        // It takes no RPCs, as one that can't be connected to.
        _ if outcome == Outcome::RefusedStream => Some(Ending::LocalOrigin),
        Failure::ResetBeforeHeaders(cause) | Failure::ResetAfterHeaders(cause) => match cause {
            ResetCause::RemoteReset | ResetCause::ProtocolError => Some(Ending::GatewayFailure),
            ResetCause::Termination => None,
        },
        _ => None,
    }
}

/// The backend said that it hasn't processed the attempt.
fn refused(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::RefusedStream | Outcome::AboveGoaway)
}

/// How an attempt ended that failed so; `None`: there can't have been one.
fn failed_attempt(failure: Failure) -> Option<AttemptResult> {
    Some(match failure {
        Failure::ConnectFailed => AttemptResult::ConnectFailed,
        Failure::ConnectTimeout => AttemptResult::ConnectTimedOut,
        Failure::ResetBeforeHeaders(cause) | Failure::ResetAfterHeaders(cause) => match cause {
            ResetCause::Termination => AttemptResult::ConnectionClosed,
            ResetCause::RemoteReset => AttemptResult::Reset,
            ResetCause::ProtocolError => AttemptResult::ProtocolError,
        },
        Failure::DeadlineExceeded | Failure::StreamIdle => AttemptResult::TimedOut,
        Failure::Draining
        | Failure::Internal
        | Failure::Overloaded
        | Failure::AboveShare
        | Failure::MalformedRequest
        | Failure::HeadersTooLarge => AttemptResult::Cancelled,
        Failure::NoRoute
        | Failure::NoEndpoint
        | Failure::NoHealthyUpstream
        | Failure::InvalidAuthority
        | Failure::CircuitLimit(_)
        | Failure::GrpcOverHttp1
        | Failure::ConnectMethod => return None,
    })
}

/// `grpc-status` of trailers, or of a head that ends the stream.
fn grpc_status(headers: &Headers) -> Option<u32> {
    match headers.known(Known::GrpcStatus)? {
        [digit @ b'0'..=b'9'] => Some(u32::from(digit - b'0')),
        value => std::str::from_utf8(value).ok()?.parse().ok(),
    }
}
