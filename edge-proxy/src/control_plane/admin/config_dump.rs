//! The configuration in force, every default filled in, with the keys of the file.
//!
//! JSON is YAML: what `/config_dump` shows can be given back to `edge-proxy check`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    control_plane::config::{
        AccessLogFormat, ClusterSpec, Config, Discovery, HealthCheckSpec, LookupFamily,
        OutlierSpec, Target,
    },
    snapshot::{
        Http2Policy, ListenerPolicy, Route, RouteAction,
        circuit::{Circuit, CircuitLimits},
        streak::{Detector, Thresholds},
    },
};

/// `config` as the file would say it. Keys without a value are left out.
pub(super) fn dump(config: &Config) -> Value {
    without_nulls(json!({
        "server_name": config.listener.server_name,
        "workers": config.workers,
        "dns": { "nameservers": config.nameservers },
        "listener": listener(config),
        "admin": { "address": config.admin },
        "probes": { "address": config.probes },
        "drain": { "time": span(config.drain.time), "deadline": span(config.drain.deadline) },
        "access_log": {
            "format": match config.access_log.format {
                AccessLogFormat::Json => "json",
                AccessLogFormat::Text => "text",
                AccessLogFormat::Off => "off",
            },
            "path": config.access_log.path,
        },
        "routes": config.routes.iter().map(|r| route(r, &config.clusters)).collect::<Vec<_>>(),
        "clusters": config.clusters.iter().map(cluster).collect::<Vec<_>>(),
    }))
}

fn listener(config: &Config) -> Value {
    let ListenerPolicy {
        server_name: _,
        health_check,
        max_connections,
        max_connections_per_source,
        max_pending_handshakes,
        max_connection_age,
        max_connection_age_grace,
        keepalive_interval,
        keepalive_timeout,
        timeouts,
        http2,
    } = &*config.listener;
    let Http2Policy {
        max_concurrent_streams,
        initial_stream_window_size,
        initial_connection_window_size,
        max_header_bytes,
    } = http2;
    json!({
        "address": config.listener_address,
        "tls": { "certificate_chain": config.certificate_chain, "private_key": config.private_key },
        "health_check": health_check.as_ref().map(|check| json!({
            "path": check.path,
            "header": check.header.as_ref().map(|(name, value)| json!({ "name": name, "value": value })),
        })),
        "max_connections": max_connections,
        "max_connections_per_source": max_connections_per_source,
        "max_pending_handshakes": max_pending_handshakes,
        "max_connection_age": span(*max_connection_age),
        "max_connection_age_grace": max_connection_age_grace.map(span),
        "keepalive": { "interval": span(*keepalive_interval), "timeout": span(*keepalive_timeout) },
        "timeouts": {
            "tls_handshake": span(timeouts.tls_handshake),
            "preface": span(timeouts.preface),
            "header_block": span(timeouts.header_block),
            "stream_idle": span(timeouts.stream_idle),
            "write_stall": span(timeouts.write_stall),
            "stream_window_stall": span(timeouts.stream_window_stall),
            "idle": span(timeouts.idle),
        },
        "http2": {
            "max_concurrent_streams": max_concurrent_streams,
            "initial_stream_window_size": initial_stream_window_size,
            "initial_connection_window_size": initial_connection_window_size,
            "max_header_bytes": max_header_bytes,
        },
    })
}

fn route(route: &Route, clusters: &[ClusterSpec]) -> Value {
    match &route.action {
        RouteAction::Cluster {
            cluster,
            timeout,
            max_grpc_timeout,
        } => json!({
            "prefix": route.prefix,
            "cluster": clusters.get(*cluster).map(|cluster| &cluster.name),
            "timeout": timeout.map(span),
            "max_grpc_timeout": max_grpc_timeout.map(span),
        }),
        RouteAction::DirectResponse { status, body } => json!({
            "prefix": route.prefix,
            "direct_response": { "status": status, "body": body },
        }),
    }
}

fn cluster(cluster: &ClusterSpec) -> Value {
    let policy = &cluster.policy;
    json!({
        "name": cluster.name,
        "discovery": match cluster.discovery {
            Discovery::Static => "static",
            Discovery::StrictDns => "strict_dns",
        },
        "endpoints": cluster.targets.iter().map(target).collect::<Vec<_>>(),
        "dns_lookup_family": match cluster.family {
            LookupFamily::V4Only => "v4_only",
            LookupFamily::V6Only => "v6_only",
            LookupFamily::Auto => "auto",
        },
        "dns_refresh_rate": span(cluster.refresh),
        "lb_policy": "round_robin",
        "connect_timeout": span(policy.connect_timeout),
        "panic_threshold": cluster.panic_threshold,
        "max_connections": policy.max_connections,
        "per_connection_streams": policy.per_connection_streams,
        "http2": {
            "initial_stream_window_size": policy.initial_stream_window_size,
            "initial_connection_window_size": policy.initial_connection_window_size,
        },
        "max_replay_bytes": policy.max_replay_bytes,
        "health_check": cluster.health_check.as_ref().map(health_check),
        "outlier_detection": outlier_detection(&cluster.outlier_detection),
        "circuit_breakers": circuit_breakers(&cluster.circuit_breakers),
    })
}

fn outlier_detection(spec: &OutlierSpec) -> Value {
    let Thresholds {
        local_origin,
        gateway_failure,
        server_error,
        joined,
    } = spec.thresholds;
    let mut keys = json!({
        "consecutive_gateway_failure": gateway_failure,
        "consecutive_5xx": server_error,
        "split_external_local_origin_errors": !joined,
        "interval": span(spec.interval),
        "base_ejection_time": span(spec.base_ejection_time),
        "max_ejection_time": span(spec.max_ejection_time),
        "max_ejection_percent": spec.max_ejection_percent,
    });
    if !joined {
        keys["consecutive_local_origin_failure"] = local_origin.into();
    }
    for (detector, enforcing) in Detector::ALL.iter().zip(spec.enforcing) {
        keys[format!("enforcing_{}", detector.key())] = enforcing.into();
    }
    keys
}

fn circuit_breakers(limits: &CircuitLimits) -> Value {
    let limits = Circuit::ALL.iter().zip(limits.0);
    limits
        .map(|(circuit, limit)| (circuit.key().to_owned(), json!(limit)))
        .collect()
}

fn health_check(check: &HealthCheckSpec) -> Value {
    json!({
        "service": check.service,
        "timeout": span(check.timeout),
        "interval": span(check.interval),
        "unhealthy_edge_interval": span(check.unhealthy_edge_interval),
        "unhealthy_threshold": check.unhealthy_threshold,
        "healthy_threshold": check.healthy_threshold,
    })
}

fn target(target: &Target) -> String {
    let Target { host, port } = target;
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// In the largest unit that says it exactly.
fn span(duration: Duration) -> String {
    let millis = duration.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units
        .into_iter()
        .find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{}{name}", millis / unit),
        None => format!("{millis}ms"),
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let there = map.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                there
                    .map(|(key, value)| (key, without_nulls(value)))
                    .collect(),
            )
        }
        Value::Array(values) => values.into_iter().map(without_nulls).collect(),
        value => value,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cgroup::Resources;

    #[test]
    fn what_it_shows_is_the_same_configuration() {
        let text = "
            server_name: edge
            workers: 3
            dns: { nameservers: ['10.0.0.10', '[fd00::a]:5353'] }
            listener:
              address: 0.0.0.0:8443
              tls: { certificate_chain: /tls/tls.crt, private_key: /tls/tls.key }
              health_check: { path: /healthz, header: { name: x-probe, value: 'a\"b' } }
              max_connection_age_grace: 90s
              keepalive: { interval: 61s }
              http2: { max_concurrent_streams: 50 }
            access_log: { format: text, path: /tmp/log }
            routes:
              - { prefix: /api.Echo/, cluster: echo, timeout: 1500ms, max_grpc_timeout: 2h }
              - { prefix: /, direct_response: { status: 418, body: tea } }
            clusters:
              - name: echo
                endpoints: ['echo.default.svc.cluster.local.:8081', '[fd00::1]:1']
                dns_lookup_family: v4_only
                connect_timeout: 500ms
                panic_threshold: 50
                max_connections: 4
                health_check: { service: api.Echo, interval: 5s }
                outlier_detection: { consecutive_5xx: 7, enforcing_consecutive_5xx: false, interval: 3s }
                circuit_breakers: { max_requests: 100, max_retries: 3 }
              - name: joined
                endpoints: ['joined:1']
                outlier_detection:
                  consecutive_gateway_failure: 3
                  split_external_local_origin_errors: false
                  base_ejection_time: 10m
                  max_ejection_percent: 50
        ";
        let parse = |text: &str| {
            Config::parse(text, Path::new("edge-proxy.yaml"))
                .unwrap()
                .config
        };
        let config = parse(text);
        let dumped = serde_json::to_string_pretty(&dump(&config)).unwrap();
        assert_eq!(parse(&dumped), config, "{dumped}");
    }

    /// `tests/e2e/readme.rs` compares the schema's texts with the README's.
    #[test]
    fn the_schemas_defaults_are_in_force() {
        let text = "
            listener:
              address: 0.0.0.0:8443
              tls: { certificate_chain: /tls/tls.crt, private_key: /tls/tls.key }
              health_check: {}
            routes: [{ prefix: /, cluster: a }, { prefix: /b, direct_response: { status: 200 } }]
            clusters: [{ name: a, endpoints: ['a:1'], health_check: {} }]
        ";
        let machine = Resources {
            cores: 2,
            memory_limit: None,
        };
        let parsed = Config::parse_for(text, Path::new("edge-proxy.yaml"), &machine);
        let dumped = dump(&parsed.unwrap().config);
        let schema = serde_json::to_value(Config::schema()).unwrap();
        let mut seen = 0;
        compare(&schema, &schema, &dumped, &mut seen);
        assert!(seen > 50, "{seen} defaults");
    }

    /// Goes down the schema's `node` and `value` of the dump together, and counts the defaults that it has compared.
    fn compare(schema: &Value, node: &Value, value: &Value, seen: &mut usize) {
        if let Some(reference) = node["$ref"].as_str() {
            let target = schema.pointer(reference.trim_start_matches('#')).unwrap();
            compare(schema, target, value, seen);
        }
        for node in node["anyOf"].as_array().into_iter().flatten() {
            compare(schema, node, value, seen);
        }
        for value in value.as_array().into_iter().flatten() {
            compare(schema, &node["items"], value, seen);
        }
        for (key, node) in node["properties"].as_object().into_iter().flatten() {
            let value = &value[key];
            // As it is wrapped in the source.
            let words = node["description"]
                .as_str()
                .unwrap_or_default()
                .split_whitespace();
            let description = words.collect::<Vec<_>>().join(" ");
            let default = description.rsplit_once("Default: ").map(|(_, text)| text);
            if let Some(default) = default
                && !value.is_object()
            {
                *seen += 1;
                assert!(says(default, value), "{key}: {default} {value}");
            }
            if !value.is_null() {
                compare(schema, node, value, seen);
            }
        }
    }

    /// Whether the text of a default says `value`.
    fn says(default: &str, value: &Value) -> bool {
        let default = default.trim_end_matches('.');
        let first = default.split([',', ' ']).next().unwrap();
        match value {
            // Left out of the dump: no value is in force.
            Value::Null => ["none", "no", "as", "standard"].contains(&first),
            Value::Array(values) => values.is_empty() && first == "empty",
            Value::String(text) if text.is_empty() => first == "empty",
            Value::String(text) => {
                default.split([',', ' ']).any(|word| word == text)
                    || milliseconds(text).is_some_and(|is| milliseconds(first) == Some(is))
            }
            // 100 streams of 256 KiB.
            Value::Number(number) if first == "per_connection_streams" => {
                number.as_u64() == Some(100 * 262_144)
            }
            Value::Number(number) => first
                .parse()
                .is_ok_and(|first: serde_json::Number| first == *number),
            Value::Bool(is) => first.parse() == Ok(*is),
            Value::Object(_) => false,
        }
    }

    /// Of a duration as it is written.
    fn milliseconds(text: &str) -> Option<u64> {
        let end = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(end);
        let factor = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        Some(number.parse::<u64>().ok()? * factor)
    }

    #[test]
    fn durations_are_short() {
        for (millis, text) in [
            (0, "0ms"),
            (500, "500ms"),
            (1_500, "1500ms"),
            (60_000, "1m"),
            (5_400_000, "90m"),
        ] {
            assert_eq!(span(Duration::from_millis(millis)), text);
        }
    }
}
