//! What can be done, by POST only: a GET changes nothing, whoever made a browser send it.

use std::collections::HashMap;

use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::Pages;

/// `/healthcheck/fail`: not ready, and `/healthz` answers 503, until `/healthcheck/ok`.
pub(super) async fn fail(State(pages): State<Pages>) -> &'static str {
    tracing::warn!("told to fail health checks by the admin interface");
    pages.state.actions.set_serving(false).await;
    "OK: not ready from now on, until POST /healthcheck/ok\n"
}

/// `/healthcheck/ok`.
pub(super) async fn ok(State(pages): State<Pages>) -> &'static str {
    tracing::info!("told to pass health checks by the admin interface");
    pages.state.actions.set_serving(true).await;
    "OK\n"
}

/// `/drain_listeners`.
pub(super) async fn drain_listeners(State(pages): State<Pages>) -> &'static str {
    tracing::warn!("told to drain its listener by the admin interface");
    pages.state.actions.drain_listeners();
    "OK: draining\n"
}

/// `/quitquitquit`.
pub(super) async fn quit(State(pages): State<Pages>) -> &'static str {
    tracing::warn!("told to end by the admin interface");
    pages.state.actions.quit();
    "OK: draining, then the process ends\n"
}

/// `/logging?level=debug`; without a level it says which one it is.
pub(super) async fn logging(
    State(pages): State<Pages>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let actions = &pages.state.actions;
    if let Some(level) = query.get("level") {
        if let Err(error) = actions.set_log_level(level) {
            return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
        }
        tracing::info!(level, "log level set by the admin interface");
    }
    format!("level: {}\n", actions.log_level()).into_response()
}
