//! One endpoint's checker: `grpc.health.v1.Health/Check` on a lasting connection of its own.
//!
//! The connection is opened by the first check and again by the next one after it ended, was refused or timed out: a
//! connection that swallowed a check can't be trusted with another. A check whose connection ended under it without
//! an error (GOAWAY, NO_ERROR; or before the request was written) is asked once more on a new one, within the same
//! deadline: servers end old connections as they please, and that says nothing about their health.

use std::{
    error::Error,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::Outcome;
use crate::{control_plane::config::HealthCheckSpec, snapshot::EndpointShared};

/// Checks one endpoint; at most one check at a time.
#[derive(Debug)]
pub(crate) struct Checker {
    endpoint: Endpoint,
    service: String,
    timeout: Duration,
    /// The lasting connection; `None`: the next check opens one.
    channel: Mutex<Option<Channel>>,
}

impl Checker {
    /// For `endpoint`, as `spec` says. Opens nothing yet.
    ///
    /// # Errors
    /// Never for an address that was parsed; tonic's constructors take text.
    pub(crate) fn new(
        endpoint: &EndpointShared,
        spec: &HealthCheckSpec,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", endpoint.label))?
            .user_agent(USER_AGENT)?
            .connect_timeout(spec.timeout)
            .tcp_nodelay(true);
        Ok(Self {
            endpoint,
            service: spec.service.clone(),
            timeout: spec.timeout,
            channel: Mutex::new(None),
        })
    }

    /// Asks once. Ends within the check's timeout.
    pub(crate) async fn check(&self) -> Outcome {
        let asked = tokio::time::timeout(self.timeout, async {
            match self.ask().await {
                Outcome::GoAway => self.ask().await,
                outcome => outcome,
            }
        });
        let outcome = asked.await.unwrap_or(Outcome::TimedOut(self.timeout));
        if !matches!(
            outcome,
            Outcome::Serving | Outcome::NotServing(_) | Outcome::Status { .. }
        ) {
            self.hang_up();
        }
        outcome
    }

    async fn ask(&self) -> Outcome {
        let mut request = Request::new(HealthCheckRequest { service: self.service.clone() });
        // tonic writes it as grpc-timeout and keeps to it, too.
        request.set_timeout(self.timeout);
        let outcome = match HealthClient::new(self.channel()).check(request).await {
            Ok(response) => match response.get_ref().status() {
                ServingStatus::Serving => Outcome::Serving,
                other => Outcome::NotServing(other.as_str_name().to_owned()),
            },
            Err(status) => self.judge(&status),
        };
        if outcome == Outcome::GoAway {
            self.hang_up();
        }
        outcome
    }

    /// tonic gives one type for what was received and for what went wrong on the way; only the latter has a source.
    fn judge(&self, status: &Status) -> Outcome {
        let Some(source) = status.source() else {
            return match status.code() {
                // Every check carries our deadline: a backend that says so ran into it.
                Code::DeadlineExceeded | Code::Cancelled => Outcome::TimedOut(self.timeout),
                code => Outcome::Status {
                    code: code as i32,
                    text: format!("{code:?}: {}", cut(status.message())),
                },
            };
        };
        if causes(source).any(is_time_out) {
            return Outcome::TimedOut(self.timeout);
        }
        if causes(source).any(is_graceful) {
            return Outcome::GoAway;
        }
        let deepest = causes(source).last().unwrap_or(source);
        Outcome::Connection(cut(&deepest.to_string()))
    }

    /// The lasting connection, or one that opens when it is used.
    fn channel(&self) -> Channel {
        self.slot().get_or_insert_with(|| self.endpoint.connect_lazy()).clone()
    }

    fn hang_up(&self) {
        *self.slot() = None;
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Channel>> {
        // The slot is whole whatever panicked: it is only ever replaced.
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error and what is behind it, outermost first.
fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

fn is_time_out(cause: &(dyn Error + 'static)) -> bool {
    cause.is::<tonic::TimeoutExpired>()
        || cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut)
}

/// The connection ended as HTTP/2 lets it: the request wasn't processed.
fn is_graceful(cause: &(dyn Error + 'static)) -> bool {
    // The connection was gone before the request was written.
    cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
        || cause.to_string().starts_with(GOAWAY_NO_ERROR)
}

/// A backend's text is shown to operators, not trusted to be short.
fn cut(text: &str) -> String {
    let end = text.char_indices().nth(200).map_or(text.len(), |(at, _)| at);
    text[..end].escape_debug().to_string()
}

/// tonic adds its own name after it.
const USER_AGENT: &str = concat!("edge-proxy/HC/", env!("CARGO_PKG_VERSION"));

/// How h2 words a received GOAWAY with NO_ERROR (RFC 9113 §7). Its type isn't ours to name (only tonic depends on h2),
/// so the wording is what there is; a test below holds it against a real GOAWAY.
const GOAWAY_NO_ERROR: &str = "connection error received: not a result of an error";
