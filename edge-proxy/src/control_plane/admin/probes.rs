//! The probes' listener, on the pod's address: `/livez`, `/readyz`, `/metrics`, nothing else.
//!
//! `/livez` says whether the process should be killed, so it depends on nothing that killing wouldn't
//! mend: only on the workers' heartbeats. `/readyz` says whether new connections should come here.

use std::{future::Future, time::Duration};

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
use crate::{
    control_plane::status::{ProcessState, Readiness, Report, TargetReport},
    snapshot::Health,
    telemetry::exposition,
};

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
    answer("live\n", hanging(state.heartbeats.oldest()))
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
    let report = state.status.report();
    let missing = missing(report.readiness, state.process(), &awaited(&report));
    answer("ready\n", (!missing.is_empty()).then_some(missing))
}

fn answer(well: &'static str, trouble: Option<String>) -> Response {
    match trouble {
        None => well.into_response(),
        Some(text) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
    }
}

/// Says so if a worker hangs: the one that is furthest behind hasn't run for `age`.
fn hanging(age: Duration) -> Option<String> {
    (age > DEAD).then(|| format!("a worker hasn't run for {} s\n", age.as_secs()))
}

/// What readiness still waits for, a line each.
fn missing(readiness: Readiness, process: ProcessState, awaited: &str) -> String {
    let closed = if process.is_draining() {
        "the listener is closed: told to drain\n"
    } else {
        "the listener isn't open\n"
    };
    let waits_for = [
        (readiness.serving, "told to fail by /healthcheck/fail\n"),
        (readiness.certificate, "no certificate is loaded yet\n"),
        (process.is_listening(), closed),
        (readiness.warmed_up, awaited),
    ];
    waits_for
        .iter()
        .filter(|(there, _)| !there)
        .map(|(_, text)| *text)
        .collect()
}

/// What keeps it from being warmed up: names, and then checks, which can't begin before there are addresses.
fn awaited(report: &Report) -> String {
    let clusters = report.clusters.iter();
    let names: Vec<_> = clusters
        .flat_map(|cluster| {
            let nowhere = cluster.endpoints.is_empty();
            let unanswered = move |of: &&TargetReport| nowhere || of.last_answer_at_ms.is_none();
            cluster.targets.iter().filter(unanswered)
        })
        .map(|target| &*target.target)
        .collect();
    let told = names.len().min(NAMES);
    let more = match names.len() - told {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let mut endpoints = report.clusters.iter().flat_map(|of| &of.endpoints);
    let unchecked = endpoints.any(|endpoint| matches!(endpoint.health, Health::Unknown));
    let mut text = String::new();
    if !names.is_empty() {
        text = format!("no address yet for {}{more}\n", names[..told].join(", "));
    }
    if unchecked || names.is_empty() {
        text.push_str("the first health checks haven't ended yet\n");
    }
    text
}

/// So many names are told; there may be hundreds.
const NAMES: usize = 3;

/// A worker beats every second; one that hasn't for so long hangs.
const DEAD: Duration = Duration::from_secs(10);

/// Anybody in the cluster can connect: one request each, and quickly.
const RULES: Rules = Rules {
    connections: 64,
    headers: Duration::from_secs(5),
    age: Duration::from_secs(10),
    keep_alive: false,
};

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::snapshot::Heartbeats;

    #[test]
    fn a_worker_that_has_not_run_for_10_s_is_death() {
        let seconds = Duration::from_secs;
        assert_eq!(hanging(seconds(10)), None);
        for late in [1, 1999] {
            let told = hanging(seconds(10) + Duration::from_millis(late));
            let wanted = format!("a worker hasn't run for {} s\n", 10 + late / 1000);
            assert_eq!(told, Some(wanted));
        }
        // An hour is more than this test takes: both ran when the clock began, and not since.
        let hour = seconds(3600);
        let heartbeats = Heartbeats::since(Instant::now() - hour, 2);
        assert!(heartbeats.oldest() >= hour);
        heartbeats.beat(0);
        assert!(heartbeats.oldest() >= hour, "one is enough");
        heartbeats.beat(1);
        assert!(heartbeats.oldest() < hour);
    }

    #[test]
    fn ready_is_all_of_it_and_what_is_missing_is_told() {
        let all = Readiness {
            serving: true,
            certificate: true,
            warmed_up: true,
        };
        use ProcessState as P;
        for process in [P::Serving, P::Draining] {
            assert_eq!(missing(all, process, "names\n"), "", "it accepts");
        }
        for (readiness, process, told) in [
            (all, P::Starting, "the listener isn't open"),
            (all, P::Closing, "told to drain"),
            (all, P::Drained, "told to drain"),
            (
                Readiness {
                    serving: false,
                    ..all
                },
                P::Serving,
                "/healthcheck/fail",
            ),
            (
                Readiness {
                    certificate: false,
                    ..all
                },
                P::Serving,
                "certificate",
            ),
            (
                Readiness {
                    warmed_up: false,
                    ..all
                },
                P::Serving,
                "names",
            ),
        ] {
            let missing = missing(readiness, process, "names\n");
            assert!(missing.contains(told), "{missing}");
            assert_eq!(missing.lines().count(), 1);
        }
    }

    #[test]
    fn trouble_is_503() {
        assert_eq!(answer("live\n", None).status(), StatusCode::OK);
        let trouble = Some("trouble\n".to_owned());
        assert_eq!(
            answer("live\n", trouble).status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
    }
}
