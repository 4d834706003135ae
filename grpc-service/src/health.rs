//! `grpc.health.v1.Health` for three names: `""` (the server), the service's full name, and
//! [`LIVENESS`].
//!
//! The first two turn NOT_SERVING the moment the server is told to drain, so that balancers leave
//! it; [`LIVENESS`] stays SERVING as long as the process runs, so that a kubelet doesn't kill a
//! pod that is busy finishing its RPCs. There is no state of its own: the drain token *is* the
//! status, so none of them can lag behind.
//!
//! As the [health checking protocol] says, `Check` of an unknown name ends with NOT_FOUND, and
//! `Watch` of one answers SERVICE_UNKNOWN and stays open. (tonic-health's own server ends it.)
//!
//! [health checking protocol]: https://github.com/grpc/grpc/blob/master/doc/health-checking.md

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// The name that answers "does the process run?", for liveness probes.
pub const LIVENESS: &str = "liveness";

/// The health service of one server.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    /// Full name of the service beside which this one runs, such as `api.Echo`.
    service: &'static str,
    /// Cancelled by [`crate::Shutdown::drain`].
    draining: CancellationToken,
}

impl Health {
    pub(crate) fn new(service: &'static str, draining: CancellationToken) -> Self {
        Self { service, draining }
    }

    fn name(&self, name: &str) -> Name {
        match name {
            LIVENESS => Name::Process,
            "" => Name::Service,
            name if name == self.service => Name::Service,
            _ => Name::Unknown,
        }
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = self.name(&request.get_ref().service);
        match name.status(self.draining.is_cancelled()) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let name = self.name(&request.get_ref().service);
        let draining = self.draining.clone();
        let already = draining.is_cancelled();
        let now = tokio_stream::once(Ok(response(name.status(already))));
        // A status changes at most once, and only for a service. The stream never ends by itself:
        // the client, or the end of the drain, ends it.
        let later = tokio_stream::once(()).then(move |()| {
            let draining = draining.clone();
            async move {
                match name {
                    Name::Service if !already => draining.cancelled_owned().await,
                    Name::Service | Name::Process | Name::Unknown => std::future::pending().await,
                }
                Ok(response(ServingStatus::NotServing))
            }
        });
        let never = tokio_stream::pending();
        Ok(Response::new(Box::pin(now.chain(later).chain(never))))
    }
}

/// What a name in a request stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    /// Serving until the drain starts.
    Service,
    /// Serving as long as it can answer.
    Process,
    /// No name of ours.
    Unknown,
}

impl Name {
    fn status(self, draining: bool) -> ServingStatus {
        match self {
            Self::Process => ServingStatus::Serving,
            Self::Service if draining => ServingStatus::NotServing,
            Self::Service => ServingStatus::Serving,
            Self::Unknown => ServingStatus::ServiceUnknown,
        }
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_health::pb::health_server::Health as _;

    use super::*;

    fn health() -> (Health, CancellationToken) {
        let draining = CancellationToken::new();
        (Health::new("api.Echo", draining.clone()), draining)
    }

    async fn check(health: &Health, service: &str) -> Result<ServingStatus, Code> {
        let request = Request::new(HealthCheckRequest {
            service: service.to_owned(),
        });
        let response = health
            .check(request)
            .await
            .map_err(|status| status.code())?;
        Ok(response.get_ref().status())
    }

    #[tokio::test]
    async fn a_drain_takes_all_names_but_liveness() {
        let (health, draining) = health();
        for name in ["", "api.Echo", LIVENESS] {
            assert_eq!(
                check(&health, name).await,
                Ok(ServingStatus::Serving),
                "{name:?}"
            );
        }
        draining.cancel();
        for name in ["", "api.Echo"] {
            assert_eq!(
                check(&health, name).await,
                Ok(ServingStatus::NotServing),
                "{name:?}"
            );
        }
        assert_eq!(check(&health, LIVENESS).await, Ok(ServingStatus::Serving));
        assert_eq!(check(&health, "api.Reverse").await, Err(Code::NotFound));
    }

    async fn watch(
        health: &Health,
        service: &str,
    ) -> <Health as health_server::Health>::WatchStream {
        let request = Request::new(HealthCheckRequest {
            service: service.to_owned(),
        });
        health.watch(request).await.unwrap().into_inner()
    }

    async fn next(stream: &mut <Health as health_server::Health>::WatchStream) -> ServingStatus {
        stream.next().await.unwrap().unwrap().status()
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_tells_of_the_drain_once_and_stays_open() {
        let (health, draining) = health();
        let mut service = watch(&health, "api.Echo").await;
        let mut process = watch(&health, LIVENESS).await;
        let mut unknown = watch(&health, "api.Nobody").await;
        assert_eq!(next(&mut service).await, ServingStatus::Serving);
        assert_eq!(next(&mut process).await, ServingStatus::Serving);
        assert_eq!(next(&mut unknown).await, ServingStatus::ServiceUnknown);

        draining.cancel();
        assert_eq!(next(&mut service).await, ServingStatus::NotServing);
        for stream in [&mut service, &mut process, &mut unknown] {
            let more = tokio::time::timeout(std::time::Duration::from_secs(60), stream.next());
            assert!(more.await.is_err(), "no second change, and no end");
        }
        let mut late = watch(&health, "").await;
        assert_eq!(next(&mut late).await, ServingStatus::NotServing);
    }
}
