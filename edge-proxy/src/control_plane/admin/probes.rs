//! The probes' listener, on the pod's address: `/livez`, `/readyz`, `/metrics`, nothing else.
//!
//! `/livez` says whether the process should be killed, so it depends on nothing that killing wouldn't
//! mend: only on the workers' heartbeats. `/readyz` says whether new connections should come here.

use std::{future::Future, sync::atomic::Ordering, time::Duration};

use axum::{
    Router, extract,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;

use super::{
    State,
    server::{self, Rules},
};
use crate::telemetry::exposition;

/// Serves the probes until `shutdown`.
pub async fn serve(listener: TcpListener, state: State, shutdown: impl Future<Output = ()>) {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(state);
    server::serve(listener, router, RULES, shutdown).await;
}

async fn livez(extract::State(state): extract::State<State>) -> Response {
    let age = state.heartbeats.oldest();
    if age > DEAD {
        let text = format!("a worker hasn't run for {} s\n", age.as_secs());
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    "live\n".into_response()
}

async fn readyz(extract::State(state): extract::State<State>) -> Response {
    ready(&state)
}

/// `/metrics`, and the admin's `/stats/prometheus`.
pub(super) async fn metrics(extract::State(state): extract::State<State>) -> Response {
    let content_type = [(header::CONTENT_TYPE, exposition::CONTENT_TYPE)];
    (content_type, state.exposition()).into_response()
}

/// `/readyz`, and the admin's `/ready`.
pub(super) fn ready(state: &State) -> Response {
    let readiness = state.status.report().readiness;
    let waits_for = [
        (readiness.serving, "told to fail by /healthcheck/fail\n"),
        (readiness.certificate, "no certificate is loaded yet\n"),
        (
            state.listening.load(Ordering::Relaxed),
            "the listener isn't open yet\n",
        ),
        (
            readiness.warmed_up,
            "the first health checks haven't ended yet\n",
        ),
    ];
    let missing: String = waits_for
        .iter()
        .filter(|(there, _)| !there)
        .map(|(_, text)| *text)
        .collect();
    if missing.is_empty() {
        return "ready\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, missing).into_response()
}

/// A worker beats every second; one that hasn't for so long hangs.
const DEAD: Duration = Duration::from_secs(10);

/// Anybody in the cluster can connect: one request each, and quickly.
const RULES: Rules = Rules {
    connections: 64,
    headers: Duration::from_secs(5),
    age: Duration::from_secs(10),
    keep_alive: false,
};
