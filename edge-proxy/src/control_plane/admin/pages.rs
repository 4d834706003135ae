//! What can be seen: each page as text, and with `?format=json` as JSON.

use std::fmt::Write;

use axum::{
    Json,
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Addresses, Pages, config_dump,
    overview::{Overview, Server},
    page, probes,
};
use crate::{
    control_plane::status::{EndpointReport, Report},
    snapshot::Health,
    telemetry::metrics::lock,
};

/// `?format=json`; anything else is text.
#[derive(Debug, Deserialize)]
pub(super) struct Format {
    #[serde(default)]
    format: String,
}

impl Format {
    fn is_json(&self) -> bool {
        self.format == "json"
    }
}

/// `/`: the page, or what it shows.
pub(super) async fn index(State(pages): State<Pages>, format: Query<Format>) -> Response {
    let report = pages.state.status.report();
    let overview = Overview::new(&pages.state, &report, &lock(&pages.history));
    if format.is_json() {
        Json(overview).into_response()
    } else {
        page::render(&overview)
    }
}

/// `/ready`: as `/readyz`.
pub(super) async fn ready(State(pages): State<Pages>, format: Query<Format>) -> Response {
    let text = probes::ready(&pages.state);
    if !format.is_json() {
        return text;
    }
    let report = pages.state.status.report();
    let answer = json!({
        "ready": pages.state.is_ready(&report),
        "readiness": report.readiness,
        "state": pages.state.process(),
        "listening": pages.state.process().is_listening(),
    });
    (text.status(), Json(answer)).into_response()
}

/// `/clusters`: one line per fact, `cluster::endpoint::fact::value`, as Envoy's.
pub(super) async fn clusters(State(pages): State<Pages>, format: Query<Format>) -> Response {
    let report = pages.state.status.report();
    if format.is_json() {
        return Json(json!({ "clusters": report.clusters })).into_response();
    }
    cluster_lines(&report).into_response()
}

/// `/stats`: every sample of the metrics, one a line.
pub(super) async fn stats(State(pages): State<Pages>, format: Query<Format>) -> Response {
    let text = pages.state.exposition();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    if format.is_json() {
        let pairs = samples.filter_map(|line| line.rsplit_once(' '));
        // Every value that we write is a number that JSON has too.
        let number = |value: &str| {
            value
                .parse::<serde_json::Number>()
                .map_or(Value::Null, Value::Number)
        };
        let stats: serde_json::Map<_, _> = pairs
            .map(|(name, value)| (name.to_owned(), number(value)))
            .collect();
        return Json(json!({ "stats": stats })).into_response();
    }
    samples
        .flat_map(|line| [line, "\n"])
        .collect::<String>()
        .into_response()
}

/// `/stats/prometheus`: as `/metrics`.
pub(super) async fn prometheus(pages: State<Pages>, format: Query<Format>) -> Response {
    if format.is_json() {
        return stats(pages, format).await;
    }
    probes::metrics(State(pages.0.state)).await
}

/// `/config_dump`: the configuration in force. It is JSON in both formats, which is YAML too.
pub(super) async fn config_dump(State(pages): State<Pages>, format: Query<Format>) -> Response {
    let report = pages.state.status.report();
    let dump = config_dump::dump(&report.configuration.config);
    if format.is_json() {
        return Json(json!({ "configuration": report.configuration, "config": dump }))
            .into_response();
    }
    pretty(&dump)
}

/// `/certs`: the certificate that is served, and what was wrong with the last one.
pub(super) async fn certs(State(pages): State<Pages>, format: Query<Format>) -> Response {
    let report = pages.state.status.report();
    answer(&format, json!(report.certificate))
}

/// `/listeners`.
pub(super) async fn listeners(State(pages): State<Pages>, format: Query<Format>) -> Response {
    let Addresses {
        listener,
        admin,
        probes,
    } = pages.state.addresses;
    let listeners = json!({
        "proxy": { "address": listener },
        "admin": { "address": admin },
        "probes": { "address": probes },
    });
    answer(&format, listeners)
}

/// `/server_info`: version, uptime, state.
pub(super) async fn server_info(State(pages): State<Pages>, format: Query<Format>) -> Response {
    let report = pages.state.status.report();
    answer(&format, json!(Server::new(&pages.state, &report)))
}

/// JSON as it is, or as `key: value` lines.
fn answer(format: &Format, value: Value) -> Response {
    if format.is_json() {
        return Json(value).into_response();
    }
    let mut text = String::new();
    flatten(&mut text, "", &value);
    text.into_response()
}

fn pretty(value: &Value) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (content_type, format!("{value:#}\n")).into_response()
}

/// One line per leaf of `value`. (Writing to a `String` can't fail.)
fn flatten(text: &mut String, path: &str, value: &Value) {
    let child = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| flatten(text, &child(key), value)),
        Value::Array(values) => {
            let lines = values.iter().enumerate();
            lines.for_each(|(i, value)| flatten(text, &child(&i.to_string()), value));
        }
        Value::String(string) => {
            let _ = writeln!(text, "{path}: {}", one_line(string));
        }
        value => {
            let _ = writeln!(text, "{path}: {value}");
        }
    }
}

fn cluster_lines(report: &Report) -> String {
    let mut text = String::new();
    for cluster in &report.clusters {
        let name = &cluster.name;
        let _ = writeln!(text, "{name}::discovery::{}", cluster.discovery);
        let _ = writeln!(text, "{name}::eligible::{}", cluster.eligible);
        let _ = writeln!(text, "{name}::panic::{}", cluster.panic);
        for target in &cluster.targets {
            let error = target
                .last_error
                .as_ref()
                .map_or("none".into(), |e| one_line(&e.message));
            let _ = writeln!(text, "{name}::{}::last_error::{error}", target.target);
        }
        for endpoint in &cluster.endpoints {
            endpoint_lines(&mut text, name, endpoint);
        }
    }
    text
}

fn endpoint_lines(text: &mut String, cluster: &str, endpoint: &EndpointReport) {
    // As the JSON has it, so that both say the same.
    let Value::Object(facts) = json!(endpoint) else {
        return;
    };
    let address = &endpoint.shared.label;
    for (fact, value) in facts.iter().filter(|(_, v)| !v.is_object() && !v.is_null()) {
        let value = value.as_str().map_or_else(|| value.to_string(), one_line);
        let _ = writeln!(text, "{cluster}::{address}::{fact}::{value}");
    }
    if matches!(endpoint.health, Health::Healthy) {
        return;
    }
    if let Some(check) = &endpoint.last_check {
        let _ = writeln!(
            text,
            "{cluster}::{address}::last_check::{}",
            one_line(&check.detail)
        );
    }
}

/// Messages may have several lines; a fact has one.
fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("; ")
}
