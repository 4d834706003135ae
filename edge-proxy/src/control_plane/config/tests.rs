// Every key that the schema knows.
mod schema;
// What ends the reading.
mod syntax;

use std::{collections::BTreeSet, path::Path};

use serde_json::Value;

use super::*;
use crate::snapshot::{EdgeHealthCheck, Http2Policy, RouteAction, Timeouts};

const MINIMAL: &str = "\
listener:
  address: 0.0.0.0:8443
  tls: { certificate_chain: tls.crt, private_key: tls.key }
routes:
  - prefix: /api.Echo/
    cluster: echo-grpc
clusters:
  - name: echo-grpc
    endpoints: [\"echo-grpc:8081\"]
";

/// Every key with the default that the documentation names.
const DEFAULTS: &str = "\
server_name: edge-proxy
workers: 0
dns: { nameservers: [] }
listener:
  address: 0.0.0.0:8443
  tls: { certificate_chain: tls.crt, private_key: tls.key }
  max_connections: 10000
  max_connections_per_source: 256
  max_pending_handshakes: 512
  max_connection_age: 30m
  keepalive: { interval: 60s, timeout: 20s }
  timeouts:
    tls_handshake: 5s
    preface: 10s
    header_block: 10s
    stream_idle: 5m
    write_stall: 30s
    stream_window_stall: 60s
    idle: 15m
  http2:
    max_concurrent_streams: 100
    initial_stream_window_size: 65536
    initial_connection_window_size: 1048576
    max_header_bytes: 8192
admin: { address: 127.0.0.1:8090 }
probes: { address: 0.0.0.0:8091 }
drain: { time: 10s, deadline: 60s }
access_log: { format: json }
routes:
  - prefix: /api.Echo/
    cluster: echo-grpc
clusters:
  - name: echo-grpc
    discovery: strict_dns
    endpoints: [\"echo-grpc:8081\"]
    dns_lookup_family: auto
    dns_refresh_rate: 5s
    lb_policy: round_robin
    connect_timeout: 5s
    panic_threshold: 0
    max_connections: 8
    per_connection_streams: 100
    http2: { initial_stream_window_size: 262144, initial_connection_window_size: 26214400 }
    max_replay_bytes: 65536
    outlier_detection:
      consecutive_local_origin_failure: 5
      consecutive_gateway_failure: 0
      consecutive_5xx: 0
      split_external_local_origin_errors: true
      interval: 10s
      base_ejection_time: 30s
      max_ejection_time: 300s
      max_ejection_percent: 10
      enforcing_consecutive_local_origin_failure: true
      enforcing_consecutive_gateway_failure: true
      enforcing_consecutive_5xx: true
    circuit_breakers: {}
";

const ROOMY: Resources = Resources {
    cores: 4,
    memory_limit: None,
};

fn parse(text: &str) -> Result<Loaded, ConfigErrors> {
    Config::parse_for(text, Path::new("edge-proxy.yaml"), &ROOMY)
}

fn config(text: &str) -> Config {
    match parse(text) {
        Ok(loaded) => loaded.config,
        Err(errors) => panic!("{errors}"),
    }
}

/// All messages about `text`, as `check` prints them.
fn messages(text: &str) -> String {
    let (errors, warnings) = match parse(text) {
        Ok(loaded) => (Vec::new(), loaded.warnings),
        Err(errors) => (errors.errors, errors.warnings),
    };
    let errors = errors.iter().map(|problem| format!("error: {problem}\n"));
    errors
        .chain(
            warnings
                .iter()
                .map(|problem| format!("warning: {problem}\n")),
        )
        .collect()
}

/// [`MINIMAL`] with `old` replaced.
fn with(old: &str, new: &str) -> String {
    assert!(MINIMAL.contains(old), "{old}");
    MINIMAL.replacen(old, new, 1)
}

#[test]
fn defaults_are_those_that_are_documented() {
    assert_eq!(config(MINIMAL), config(DEFAULTS));
    assert_eq!(messages(DEFAULTS), "");
}

#[test]
fn what_has_no_limit_unless_one_is_written() {
    let config = config(MINIMAL);
    assert_eq!(config.listener.max_connection_age_grace, None);
    assert_eq!(config.listener.health_check, None);
    let circuits = &config.clusters[0].circuit_breakers;
    assert_eq!(*circuits, CircuitLimits([None; 4]));
    assert_eq!(
        config.routes[0].action,
        RouteAction::Cluster {
            cluster: 0,
            timeout: None,
            max_grpc_timeout: None,
        }
    );
}

#[test]
fn a_health_check_has_defaults_too() {
    let text = format!("{MINIMAL}    health_check: {{}}\n");
    let written = format!(
        "{MINIMAL}    health_check: {{ service: \"\", timeout: 1s, interval: 10s, \
         unhealthy_edge_interval: 1s, unhealthy_threshold: 2, healthy_threshold: 2 }}\n"
    );
    assert_eq!(config(&text), config(&written));
    assert!(config(&text).clusters[0].health_check.is_some());
    assert!(config(MINIMAL).clusters[0].health_check.is_none());
}

#[test]
fn connections_are_limited_by_memory() {
    let limit = |bytes| {
        let resources = Resources {
            cores: 1,
            memory_limit: Some(bytes),
        };
        let loaded = Config::parse_for(MINIMAL, Path::new("f"), &resources).unwrap();
        loaded.config.listener.max_connections
    };
    assert_eq!(limit(64 << 20), 2048);
    assert_eq!(limit(1 << 40), 10_000);
    assert_eq!(limit(1), 1);
}

#[test]
fn references_are_resolved() {
    let text = MINIMAL.replace(
        "clusters:\n",
        "  - { prefix: /v, direct_response: { status: 204 } }\n\
         clusters:\n  - { name: other, endpoints: [\"o:1\"] }\n",
    );
    let config = config(&text);
    assert!(matches!(
        config.routes[0].action,
        RouteAction::Cluster { cluster: 1, .. }
    ));
    assert!(matches!(
        config.routes[1].action,
        RouteAction::DirectResponse { status: 204, .. }
    ));
}

#[test]
fn the_clusters_window_holds_all_streams() {
    let text = format!("{MINIMAL}    per_connection_streams: 10\n");
    assert_eq!(
        config(&text).clusters[0]
            .policy
            .initial_connection_window_size,
        2_621_440
    );
}

#[test]
fn zero_is_a_time_for_a_drain_only() {
    let text = format!("{MINIMAL}drain: {{ time: 0s, deadline: 0s }}\n");
    assert_eq!(config(&text).drain.time, Duration::ZERO);
    let text = with("  tls:", "  max_connection_age_grace: 0s\n  tls:");
    assert_eq!(
        config(&text).listener.max_connection_age_grace,
        Some(Duration::ZERO)
    );
}

#[test]
fn values_may_come_through_anchors() {
    let text = format!(
        "{MINIMAL}    health_check: &check {{ timeout: 2s }}\n  - name: b\n    endpoints: [\"b:1\"]\n    health_check: *check\n"
    );
    let config = config(&text);
    assert_eq!(
        config.clusters[0].health_check,
        config.clusters[1].health_check
    );
}

#[test]
fn names_and_paths_hold_no_control_characters() {
    let text = MINIMAL
        .replace("echo-grpc", "\"echo\\ngrpc\"")
        .replace("[\"\"echo\\ngrpc\":8081\"]", "[\"e:1\"]");
    assert_eq!(
        messages(&text),
        "error: edge-proxy.yaml:8:11: clusters[0].name: `echo\\ngrpc` holds a line end or another control character: \
         write it without\n"
    );
}

/// All of them from one file, in one go.
#[test]
fn mistakes_of_meaning() {
    insta::assert_snapshot!(messages(include_str!(
        "../../../tests/configurations/wrong.yaml"
    )));
}

#[test]
fn a_prefix_holds_what_a_requests_path_can_hold() {
    for inside in ['"', '<', '>', '`', ' ', 'é'] {
        let messages = messages(&with("/api.Echo/", &format!("'/api{inside}'")));
        let wanted = "holds a character that no path can have: write it as /package.Service/";
        assert!(messages.contains(wanted), "{messages}");
    }
    assert_eq!(messages(&with("/api.Echo/", "\"/a/{b}|~%20;=@\"")), "");
}

#[test]
fn what_check_warns_of() {
    let text = include_str!("../../../tests/configurations/suspicious.yaml");
    let messages = messages(text);
    assert!(!messages.contains("error: "), "{messages}");
    insta::assert_snapshot!(messages);
}

#[test]
fn the_deployed_sample_is_right() {
    let text = include_str!("../../../../deploy/edge-proxy/edge-proxy.yaml");
    assert_eq!(messages(text), "");
    let config = config(text);
    assert_eq!(config.workers, 2);
    assert_eq!(config.clusters.len(), 2);
    assert_eq!(
        config.clusters[0].policy.connect_timeout,
        Duration::from_millis(500)
    );
}

#[test]
fn a_file_that_cannot_be_read_is_one_error() {
    let errors = Config::load(Path::new("/nonexistent/edge-proxy.yaml")).unwrap_err();
    assert_eq!(
        errors.to_string(),
        "error: /nonexistent/edge-proxy.yaml: can't be read (No such file or directory (os error 2)): \
         give the path of the YAML file"
    );
}

#[test]
fn a_restart_is_needed_for_what_is_made_at_start() {
    let old = config(MINIMAL);
    assert_eq!(restart_needed(&old, &old), Vec::<&str>::new());
    let new = config(&format!(
        "{}server_name: other\nworkers: 3\nadmin: {{ address: 127.0.0.1:1 }}\n\
         probes: {{ address: 127.0.0.1:2 }}\naccess_log: {{ format: off, path: /log }}\n\
         dns: {{ nameservers: [10.0.0.10] }}\ndrain: {{ time: 1s }}\n",
        with("0.0.0.0:8443", "0.0.0.0:8444")
    ));
    assert_eq!(
        restart_needed(&old, &new),
        [
            "workers",
            "dns.nameservers",
            "listener.address",
            "admin.address",
            "probes.address",
            "access_log.format",
            "access_log.path"
        ]
    );
    let new = config(&with(
        "    cluster: echo-grpc",
        "    cluster: echo-grpc\n    timeout: 1s",
    ));
    assert_eq!(restart_needed(&old, &new), Vec::<&str>::new());
}

#[test]
fn each_listener_needs_a_port_of_its_own_where_their_addresses_overlap() {
    let overlap = |listener: &str, admin: &str| {
        let text = format!(
            "{}admin: {{ address: \"{admin}\" }}\n",
            with("0.0.0.0:8443", &format!("\"{listener}\""))
        );
        messages(&text).contains("listener.address's too")
    };
    for (listener, admin) in [
        ("0.0.0.0:80", "127.0.0.1:80"),
        ("127.0.0.1:80", "0.0.0.0:80"),
        ("[::]:80", "127.0.0.1:80"),
        ("[::]:80", "0.0.0.0:80"),
        ("[::]:80", "[::1]:80"),
        ("127.0.0.1:80", "[::ffff:127.0.0.1]:80"),
    ] {
        assert!(overlap(listener, admin), "{listener} {admin}");
    }
    for (listener, admin) in [
        ("0.0.0.0:80", "[::1]:80"),
        ("[::1]:80", "0.0.0.0:80"),
        ("127.0.0.1:80", "127.0.0.2:80"),
        ("[::]:80", "127.0.0.1:81"),
        ("0.0.0.0:0", "127.0.0.1:0"),
    ] {
        assert!(!overlap(listener, admin), "{listener} {admin}");
    }
}

proptest::proptest! {
    /// Whatever is written: an answer with its place, never a panic.
    #[test]
    fn any_text_is_answered(
        at in 0..DEFAULTS.len(),
        cut in 0..40_usize,
        put in "[ \\n\\t:,{}\\[\\]\"'&*#|>@%!?/a-z0-9.\u{0}ü-]{0,12}",
    ) {
        let end = (at + cut).min(DEFAULTS.len());
        let text = format!("{}{put}{}", &DEFAULTS[..at], &DEFAULTS[end..]);
        if let Err(errors) = parse(&text) {
            proptest::prop_assert!(!errors.errors.is_empty());
            let of_file = "edge-proxy.yaml: ";
            for error in &errors.errors {
                let whole = error.to_string();
                proptest::prop_assert!(error.place.is_some() || whole.starts_with(of_file), "{whole}");
            }
        }
    }
}
