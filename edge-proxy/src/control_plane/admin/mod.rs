//! The operator's listener, on loopback: a page for people, the same as text and JSON for tools, and
//! the few things that can be done by POST.
//!
//! Paths and their meaning are Envoy's wherever Envoy has one. Nothing here is on the request path:
//! everything shown comes from the control plane's report and from the counters, added up when asked.
//! The page's links are relative, as it is often behind a port-forward or a preview with a path.

use std::{
    collections::HashSet,
    fmt::Debug,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tokio::{net::TcpListener, sync::watch, time::Instant};

use self::{
    history::{History, INTERVAL},
    scrape::Scrape,
    server::Rules,
};
use crate::{
    control_plane::status::{ProcessState, Report, Status},
    snapshot::{Heartbeats, pressure::Pressure},
    telemetry::{
        log::SetLevelError,
        metrics::{Metrics, lock},
    },
};

// The probes' listener.
pub mod probes;
// The metrics, as one scrape reads them.
pub mod scrape;

mod actions;
mod config_dump;
mod guard;
mod history;
mod overview;
mod page;
mod pages;
mod server;

/// What the pages, the probes and the metrics show. Cheap to clone.
#[derive(Clone, Debug)]
pub struct State {
    /// The control plane's side.
    pub status: Arc<Status>,
    /// The workers' side.
    pub metrics: Arc<Metrics>,
    /// Of the workers.
    pub heartbeats: Arc<Heartbeats>,
    /// Bytes that the cgroup allows; `None`: no limit.
    pub memory_limit: Option<u64>,
    /// What the overload manager publishes.
    pub pressure: watch::Receiver<Pressure>,
    /// Ready is only what listens: neither before that nor when a drain has closed the listener.
    pub process: watch::Receiver<ProcessState>,
    /// Where the process listens.
    pub addresses: Addresses,
    /// Whose pages these are: the pod's name.
    pub hostname: Arc<str>,
    /// What can be done.
    pub actions: Arc<dyn Actions>,
}

/// Where the process listens, with the ports that it really got.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// `listener.address`.
    pub listener: SocketAddr,
    /// `admin.address`.
    pub admin: SocketAddr,
    /// `probes.address`.
    pub probes: SocketAddr,
}

/// What an operator can ask the process to do.
pub trait Actions: Debug + Send + Sync {
    /// `/healthcheck/ok` (true), `/healthcheck/fail` (false). Done when `/readyz` says so.
    fn set_serving(&self, serving: bool) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// `/drain_listeners`: begins what SIGTERM begins, but the process stays when it is drained.
    fn drain_listeners(&self);

    /// `/quitquitquit`: as SIGTERM.
    fn quit(&self);

    /// `/logging?level=`.
    ///
    /// # Errors
    /// Not a level: nothing changed.
    fn set_log_level(&self, level: &str) -> Result<(), SetLevelError>;

    /// What `/logging` set.
    fn log_level(&self) -> String;
}

/// Serves the admin pages until `shutdown`.
pub async fn serve(listener: TcpListener, state: State, shutdown: impl Future<Output = ()>) {
    let history = Arc::<Mutex<History>>::default();
    let router = router(Pages {
        state: state.clone(),
        history: Arc::clone(&history),
    });
    tokio::select! {
        () = server::serve(listener, router, RULES, shutdown) => {}
        // Never ends by itself.
        () = sample(&state.metrics, &history) => {}
    }
}

/// What the handlers see.
#[derive(Clone, Debug)]
struct Pages {
    state: State,
    history: Arc<Mutex<History>>,
}

impl State {
    fn process(&self) -> ProcessState {
        *self.process.borrow()
    }

    /// Whether `/readyz` says 200 with this report.
    fn is_ready(&self, report: &Report) -> bool {
        report.readiness.ready() && self.process().is_listening()
    }

    /// `/metrics`. What a removed cluster has counted is told once more when nothing of it runs, and then no more.
    fn exposition(&self) -> String {
        let report = self.status.report();
        let text = scrape::render(&Scrape {
            metrics: &self.metrics,
            report: &report,
            ready: self.is_ready(&report),
            draining: self.process().is_draining(),
            heartbeats: &self.heartbeats,
            memory_limit: self.memory_limit,
            pressure: *self.pressure.borrow(),
        });
        let clusters = report.configuration.config.clusters.iter();
        let names: HashSet<&str> = clusters.map(|cluster| &*cluster.name).collect();
        self.metrics.forget_clusters(|name| names.contains(name));
        text
    }
}

async fn sample(metrics: &Metrics, history: &Mutex<History>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        lock(history).push(Instant::now(), &metrics.totals());
    }
}

fn router(pages: Pages) -> Router {
    let shown = Router::new()
        .route("/", get(pages::index))
        .route("/ready", get(pages::ready))
        .route("/clusters", get(pages::clusters))
        .route("/stats", get(pages::stats))
        .route("/stats/prometheus", get(pages::prometheus))
        .route("/config_dump", get(pages::config_dump))
        .route("/certs", get(pages::certs))
        .route("/listeners", get(pages::listeners))
        .route("/server_info", get(pages::server_info))
        .method_not_allowed_fallback(async || {
            not_allowed("GET,HEAD", "this only shows something: use GET\n")
        });
    let done = Router::new()
        .route("/healthcheck/fail", post(actions::fail))
        .route("/healthcheck/ok", post(actions::ok))
        .route("/drain_listeners", post(actions::drain_listeners))
        .route("/logging", post(actions::logging))
        .route("/quitquitquit", post(actions::quit))
        .method_not_allowed_fallback(async || {
            not_allowed(
                "POST",
                "this changes something: use POST, as curl -X POST does\n",
            )
        });
    shown
        .merge(done)
        .fallback(async || (StatusCode::NOT_FOUND, "no such page\n"))
        .with_state(pages)
        .layer(middleware::map_response(harden))
        .layer(middleware::from_fn(guard::guard))
}

fn not_allowed(allow: &'static str, hint: &'static str) -> impl IntoResponse {
    (
        StatusCode::METHOD_NOT_ALLOWED,
        [(header::ALLOW, allow)],
        hint,
    )
}

/// Headers that every answer has: shown as what it is, in no frame, from no cache.
async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// A handful of operators; a browser keeps a connection or six and asks every two seconds.
const RULES: Rules = Rules {
    connections: 64,
    headers: Duration::from_secs(30),
    age: Duration::from_secs(600),
    keep_alive: true,
};
