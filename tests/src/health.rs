//! `grpc.health.v1.Health` as backends answer it, switched at run time.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::watch;
use tokio_stream::Stream;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health,
};

use crate::wait::within;

/// How a health check is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With this serving status.
    Is(ServingStatus),
    /// With a gRPC status that is not OK.
    Fails(Code),
    /// Never.
    Hangs,
}

/// SERVING, what a backend starts with.
pub const SERVING: Answer = Answer::Is(ServingStatus::Serving);

/// NOT_SERVING.
pub const NOT_SERVING: Answer = Answer::Is(ServingStatus::NotServing);

/// The switch, and what was asked. Cheap to clone.
#[derive(Clone)]
pub struct HealthSwitch(Arc<Inner>);

struct Inner {
    answer: Mutex<Answer>,
    checks: watch::Sender<Vec<Check>>,
}

/// One check, as it arrived.
#[derive(Clone, Debug)]
pub struct Check {
    /// When.
    pub at: Instant,
    /// `service` of the request.
    pub service: String,
    /// `user-agent`.
    pub user_agent: String,
    /// `grpc-timeout`.
    pub timeout: Option<String>,
    /// The checker's address: the same as long as it keeps its connection.
    pub peer: Option<std::net::SocketAddr>,
}

impl HealthSwitch {
    /// From now on checks are answered so.
    pub fn set(&self, answer: Answer) {
        *self.0.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }

    /// All checks so far.
    pub fn checks(&self) -> Vec<Check> {
        self.0.checks.borrow().clone()
    }

    /// Waits for `more` checks from now on.
    pub async fn checked(&self, more: usize) {
        let mut checks = self.0.checks.subscribe();
        let goal = checks.borrow().len() + more;
        let enough = checks.wait_for(|all| all.len() >= goal);
        within("a health check", enough)
            .await
            .expect("the sender lives in self");
    }
}

impl Default for HealthSwitch {
    fn default() -> Self {
        Self(Arc::new(Inner {
            answer: Mutex::new(SERVING),
            checks: watch::Sender::default(),
        }))
    }
}

#[tonic::async_trait]
impl Health for HealthSwitch {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let text = |name: &str| Some(request.metadata().get(name)?.to_str().ok()?.to_owned());
        let check = Check {
            at: Instant::now(),
            service: request.get_ref().service.clone(),
            user_agent: text("user-agent").unwrap_or_default(),
            timeout: text("grpc-timeout"),
            peer: request.remote_addr(),
        };
        self.0.checks.send_modify(|all| all.push(check));
        let answer = *self.0.answer.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Answer::Is(status) => Ok(Response::new(HealthCheckResponse {
                status: status.into(),
            })),
            Answer::Fails(code) => Err(Status::new(code, "as the test says")),
            Answer::Hangs => std::future::pending().await,
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented(
            "the tests' backends are checked, not watched",
        ))
    }
}
