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

/// Every key, with a value that isn't its default. Where passive health counts jointly it doesn't look at
/// `consecutive_local_origin_failure`: that is the second cluster's.
const EVERY_KEY: &str = "\
server_name: mine
workers: 3
dns: { nameservers: [\"10.0.0.10:54\"] }
listener:
  address: 127.0.0.1:1
  tls: { certificate_chain: my.crt, private_key: my.key }
  health_check: { path: /alive, header: { name: x-probe, value: \"yes\" } }
  max_connections: 11
  max_connections_per_source: 12
  max_pending_handshakes: 13
  max_connection_age: 14m
  max_connection_age_grace: 15s
  keepalive: { interval: 16s, timeout: 17s }
  timeouts:
    tls_handshake: 18s
    preface: 19s
    header_block: 20s
    stream_idle: 21s
    write_stall: 22s
    stream_window_stall: 23s
    idle: 24s
  http2:
    max_concurrent_streams: 25
    initial_stream_window_size: 26000
    initial_connection_window_size: 270000
    max_header_bytes: 2800
admin: { address: 127.0.0.1:2 }
probes: { address: 127.0.0.1:3 }
drain: { time: 29s, deadline: 30s }
access_log: { format: text, path: /log }
routes:
  - { prefix: /a, cluster: a, timeout: 31s, max_grpc_timeout: 32s }
  - { prefix: /d, direct_response: { status: 418, body: tea } }
  - { prefix: /b, cluster: b }
clusters:
  - name: a
    discovery: static
    endpoints: [\"10.0.0.1:33\"]
    dns_lookup_family: v6_only
    dns_refresh_rate: 34s
    lb_policy: round_robin
    connect_timeout: 35s
    health_check:
      service: api.Echo
      timeout: 3s
      interval: 36s
      unhealthy_edge_interval: 37s
      unhealthy_threshold: 38
      healthy_threshold: 39
    panic_threshold: 40
    max_connections: 41
    per_connection_streams: 42
    http2: { initial_stream_window_size: 43000, initial_connection_window_size: 4400000 }
    max_replay_bytes: 45
    outlier_detection:
      split_external_local_origin_errors: false
      consecutive_gateway_failure: 46
      consecutive_5xx: 47
      interval: 48s
      base_ejection_time: 49s
      max_ejection_time: 50s
      max_ejection_percent: 51
      enforcing_consecutive_local_origin_failure: false
      enforcing_consecutive_gateway_failure: false
      enforcing_consecutive_5xx: false
    circuit_breakers: { max_connections: 52, max_pending_requests: 53, max_requests: 54, max_retries: 55 }
  - name: b
    endpoints: [\"b.test.:56\"]
    dns_lookup_family: v4_only
    outlier_detection: { consecutive_local_origin_failure: 57 }
";

/// What each key says has its place. A field more, and this doesn't compile.
#[test]
fn every_key_is_where_it_belongs() {
    let seconds = Duration::from_secs;
    let listener = ListenerPolicy {
        server_name: "mine".into(),
        health_check: Some(EdgeHealthCheck {
            path: "/alive".into(),
            header: Some(("x-probe".into(), "yes".into())),
        }),
        max_connections: 11,
        max_connections_per_source: 12,
        max_pending_handshakes: 13,
        max_connection_age: seconds(14 * 60),
        max_connection_age_grace: Some(seconds(15)),
        keepalive_interval: seconds(16),
        keepalive_timeout: seconds(17),
        timeouts: Timeouts {
            tls_handshake: seconds(18),
            preface: seconds(19),
            header_block: seconds(20),
            stream_idle: seconds(21),
            write_stall: seconds(22),
            stream_window_stall: seconds(23),
            idle: seconds(24),
        },
        http2: Http2Policy {
            max_concurrent_streams: 25,
            initial_stream_window_size: 26_000,
            initial_connection_window_size: 270_000,
            max_header_bytes: 2800,
        },
    };
    let routes = [
        (
            "/a",
            RouteAction::Cluster {
                cluster: 0,
                timeout: Some(seconds(31)),
                max_grpc_timeout: Some(seconds(32)),
            },
        ),
        (
            "/d",
            RouteAction::DirectResponse {
                status: 418,
                body: "tea".into(),
            },
        ),
        (
            "/b",
            RouteAction::Cluster {
                cluster: 1,
                timeout: None,
                max_grpc_timeout: None,
            },
        ),
    ];
    let first = ClusterSpec {
        name: "a".into(),
        discovery: Discovery::Static,
        targets: vec![Target {
            host: "10.0.0.1".into(),
            port: 33,
        }],
        family: LookupFamily::V6Only,
        refresh: seconds(34),
        policy: Arc::new(ClusterPolicy {
            connect_timeout: seconds(35),
            max_connections: 41,
            per_connection_streams: 42,
            initial_stream_window_size: 43_000,
            initial_connection_window_size: 4_400_000,
            max_replay_bytes: 45,
        }),
        panic_threshold: 40,
        health_check: Some(HealthCheckSpec {
            service: "api.Echo".into(),
            timeout: seconds(3),
            interval: seconds(36),
            unhealthy_edge_interval: seconds(37),
            unhealthy_threshold: 38,
            healthy_threshold: 39,
        }),
        outlier_detection: OutlierSpec {
            thresholds: Thresholds {
                local_origin: 0,
                gateway_failure: 46,
                server_error: 47,
                joined: true,
            },
            interval: seconds(48),
            base_ejection_time: seconds(49),
            max_ejection_time: seconds(50),
            max_ejection_percent: 51,
            enforcing: [false; 3],
        },
        circuit_breakers: CircuitLimits([Some(52), Some(53), Some(54), Some(55)]),
    };
    let defaults = &config(MINIMAL).clusters[0];
    let second = ClusterSpec {
        name: "b".into(),
        targets: vec![Target {
            host: "b.test.".into(),
            port: 56,
        }],
        family: LookupFamily::V4Only,
        outlier_detection: OutlierSpec {
            thresholds: Thresholds {
                local_origin: 57,
                ..Thresholds::default()
            },
            ..OutlierSpec::default()
        },
        ..defaults.clone()
    };
    assert_eq!(
        config(EVERY_KEY),
        Config {
            workers: 3,
            nameservers: vec!["10.0.0.10:54".parse().unwrap()],
            listener_address: "127.0.0.1:1".parse().unwrap(),
            listener: Arc::new(listener),
            certificate_chain: "my.crt".into(),
            private_key: "my.key".into(),
            admin: "127.0.0.1:2".parse().unwrap(),
            probes: "127.0.0.1:3".parse().unwrap(),
            drain: Drain {
                time: seconds(29),
                deadline: seconds(30),
            },
            access_log: AccessLogConfig {
                format: AccessLogFormat::Text,
                path: Some("/log".into()),
            },
            routes: routes
                .into_iter()
                .map(|(prefix, action)| Route {
                    prefix: prefix.into(),
                    action,
                })
                .collect(),
            clusters: vec![first, second],
        }
    );
}

/// That [`EVERY_KEY`] is what it is called.
#[test]
fn without_any_of_its_keys_a_configuration_is_another() {
    let schema = serde_json::to_value(Config::schema()).unwrap();
    let whole: Value = serde_saphyr::from_str(EVERY_KEY).unwrap();
    let (mut known, mut written) = (BTreeSet::new(), BTreeSet::new());
    keys_of(&schema, &schema, "", &mut known);
    let mut pointers = Vec::new();
    leaves_of(&whole, "", &mut pointers);
    for pointer in pointers {
        let steps = pointer.split('/').skip(1);
        let steps = steps.filter(|step| step.parse::<usize>().is_err());
        written.insert(steps.collect::<Vec<_>>().join("."));
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        // There is one value so far.
        if key == "lb_policy" {
            continue;
        }
        let mut file = whole.clone();
        match file.pointer_mut(parent).unwrap() {
            Value::Object(mapping) => drop(mapping.remove(key)),
            Value::Array(list) => drop(list.remove(key.parse().unwrap())),
            other => panic!("{pointer}: {other}"),
        }
        let without = parse(&file.to_string()).ok().map(|loaded| loaded.config);
        assert_ne!(without, Some(config(EVERY_KEY)), "{pointer}");
    }
    assert_eq!(written, known);
}

/// The paths of all values of the schema; lists have no step of their own.
fn keys_of(schema: &Value, node: &Value, path: &str, keys: &mut BTreeSet<String>) {
    if let Some(reference) = node["$ref"].as_str() {
        let target = schema.pointer(reference.trim_start_matches('#')).unwrap();
        return keys_of(schema, target, path, keys);
    }
    if let Some(either) = node["anyOf"].as_array() {
        return either
            .iter()
            .filter(|node| node["type"] != "null")
            .for_each(|node| keys_of(schema, node, path, keys));
    }
    if let Some(items) = node.get("items") {
        return keys_of(schema, items, path, keys);
    }
    let Some(properties) = node["properties"].as_object() else {
        keys.insert(path.to_owned());
        return;
    };
    for (key, node) in properties {
        let dot = if path.is_empty() { "" } else { "." };
        keys_of(schema, node, &format!("{path}{dot}{key}"), keys);
    }
}

/// Pointers to everything in `node` that is no mapping or list.
fn leaves_of(node: &Value, pointer: &str, pointers: &mut Vec<String>) {
    match node {
        Value::Object(mapping) => {
            for (key, node) in mapping {
                leaves_of(node, &format!("{pointer}/{key}"), pointers);
            }
        }
        Value::Array(list) => {
            for (index, node) in list.iter().enumerate() {
                leaves_of(node, &format!("{pointer}/{index}"), pointers);
            }
        }
        _ => pointers.push(pointer.to_owned()),
    }
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

/// The paths of all mappings below `node` that may be left out.
fn optional_mappings(schema: &Value, node: &Value, path: &str, paths: &mut Vec<String>) {
    let target = |node: &Value| match node["$ref"].as_str() {
        Some(reference) => schema
            .pointer(reference.trim_start_matches('#'))
            .unwrap()
            .clone(),
        None => node.clone(),
    };
    for (key, child) in node["properties"].as_object().unwrap() {
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{key}");
        for or in child["anyOf"].as_array().into_iter().flatten() {
            assert_ne!(target(or)["type"], "object", "{path} may be null");
        }
        let (child, item) = (target(child), target(&child["items"]));
        if child["type"] == "object" {
            let mut required = node["required"].as_array().into_iter().flatten();
            if !required.any(|required| required == key) {
                paths.push(path.clone());
            }
            optional_mappings(schema, &child, &path, paths);
        } else if item["type"] == "object" {
            optional_mappings(schema, &item, &format!("{path}[0]"), paths);
        }
    }
}

#[test]
fn no_mapping_may_be_nothing() {
    let listener = |lines: &str| with("  tls:", &format!("{lines}\n  tls:"));
    let cluster = |key: &str| format!("{MINIMAL}    {key}:\n");
    let top = |key: &str| format!("{MINIMAL}{key}:\n");
    let direct = with("    cluster", "    direct_response:\n    cluster");
    let cases = [
        ("dns", top("dns")),
        ("listener.health_check", listener("  health_check:")),
        (
            "listener.health_check.header",
            listener("  health_check:\n    header:"),
        ),
        ("listener.keepalive", listener("  keepalive:")),
        ("listener.timeouts", listener("  timeouts:")),
        ("listener.http2", listener("  http2:")),
        ("admin", top("admin")),
        ("probes", top("probes")),
        ("drain", top("drain")),
        ("access_log", top("access_log")),
        ("routes[0].direct_response", direct),
        ("clusters[0].health_check", cluster("health_check")),
        (
            "clusters[0].outlier_detection",
            cluster("outlier_detection"),
        ),
        ("clusters[0].circuit_breakers", cluster("circuit_breakers")),
        ("clusters[0].http2", cluster("http2")),
    ];
    for (path, text) in &cases {
        let key = path.rsplit('.').next().unwrap();
        for (value, shown, after) in [("", "nothing", 0), (" ~", "`~`", 2), (" null", "`null`", 2)]
        {
            let text = text.replace(&format!(" {key}:\n"), &format!(" {key}:{value}\n"));
            let text = text.replace(&format!("\n{key}:\n"), &format!("\n{key}:{value}\n"));
            let written = format!("{key}:{value}");
            let mut lines = text.lines().enumerate();
            let (index, line) = lines.find(|(_, line)| line.trim() == written).unwrap();
            let column = line.len() - value.len() + after;
            assert_eq!(
                messages(&text),
                format!(
                    "error: edge-proxy.yaml:{}:{column}: {path}: {shown} stands where a mapping belongs: \
                     write `key: value` lines, or `{{}}` for none\n",
                    index + 1
                )
            );
        }
    }
    let schema = serde_json::to_value(Config::schema()).unwrap();
    let mut paths = Vec::new();
    optional_mappings(&schema, &schema, "", &mut paths);
    assert_eq!(paths, cases.map(|(path, _)| path));
}

/// One mistake of syntax or one unknown key at a time, each with its place and what to write.
#[test]
fn mistakes_that_end_the_reading() {
    let mut all = String::new();
    for text in [
        String::new(),
        "listener: [".to_owned(),
        "listener: {}\n\tx: 1\n".to_owned(),
        "- a\n".to_owned(),
        "just text\n".to_owned(),
        with("address: 0.0.0.0:8443", "adress: 0.0.0.0:8443"),
        with("  tls:", "  tsl:"),
        with("  tls:", "  stream_idle: 5m\n  tls:"),
        format!("{MINIMAL}timeout: 5s\n"),
        with("    cluster: echo-grpc", "    clustr: echo-grpc"),
        with("    cluster: echo-grpc", "    zzzzzz: 1"),
        with("  address: 0.0.0.0:8443\n", ""),
        with(
            "{ certificate_chain: tls.crt, private_key: tls.key }",
            "{ certificate_chain: a }",
        ),
        with("    endpoints: [\"echo-grpc:8081\"]\n", ""),
        with("- prefix: /api.Echo/\n    cluster", "- cluster"),
        format!("{MINIMAL}workers: many\n"),
        format!("{MINIMAL}workers: -1 # less\n"),
        format!("{MINIMAL}workers: [2]\n"),
        format!("{MINIMAL}workers: 99999999999999999999\n"),
        format!("{MINIMAL}workers: 1\nworkers: 2\n"),
        format!("{MINIMAL}access_log: {{ format: jsn }}\n"),
        format!("{MINIMAL}admin:\n"),
        format!("{MINIMAL}admin: 127.0.0.1:8090\n"),
        format!("{MINIMAL}server_name: {{ a: b }}\n"),
        format!("{MINIMAL}    lb_policy: least_request\n"),
        format!("{MINIMAL}    discovery: strict_dsn\n"),
        format!("{MINIMAL}    outlier_detection: {{ consecutive_5x: 1 }}\n"),
        format!("{MINIMAL}    outlier_detection: {{ enforcing_consecutive_5xx: 100 }}\n"),
        format!("{MINIMAL}    circuit_breakers: {{ max_request: 1 }}\n"),
        format!("{MINIMAL}    name: again\n"),
        format!("{MINIMAL}    connect_timeout: *nowhere\n"),
        format!("{MINIMAL}---\n{MINIMAL}"),
        with(
            "routes:\n  - prefix: /api.Echo/\n    cluster: echo-grpc\n",
            "routes:\n",
        ),
        with("[\"echo-grpc:8081\"]", "echo-grpc:8081"),
        "[".repeat(100),
        format!("{MINIMAL}workers: {}1{}\n", "[".repeat(50), "]".repeat(50)),
        format!(
            "{MINIMAL}workers: {}1{}\n",
            "[".repeat(500),
            "]".repeat(500)
        ),
        with("  tls:", "   tls:"),
        with("  tls:", " tls:"),
        with("address: ", "address:"),
        with("- prefix", "-prefix"),
        with("    cluster", "   cluster"),
        with("cluster: echo-grpc", "cluster: @echo"),
        with("cluster: echo-grpc", "cluster: *"),
        with("cluster: echo-grpc", "cluster: echo\0"),
        with("0.0.0.0:8443", "[::1]:8443"),
        with("[\"echo-grpc:8081\"]", "[[::1]:8081]"),
        format!("{MINIMAL}\"a\\nb\": 1\n"),
        format!("{MINIMAL}access_log: {{ format: \"js\\non\" }}\n"),
        format!("{MINIMAL}    lb_policy: &a [*a]\n"),
        format!("server_name: &a many\n{MINIMAL}    max_connections: *a\n"),
    ] {
        let messages = messages(&text);
        assert_eq!(messages.lines().count(), 1, "{text}\n{messages}");
        all += &messages;
    }
    insta::assert_snapshot!(all);
}

/// Where something was opened that isn't closed, which is often lines before the parser sees that.
#[test]
fn what_is_not_closed_is_told_where_it_was_opened() {
    let endpoints = |list: &str| with("[\"echo-grpc:8081\"]", list);
    let more = |text: String| text + "    lb_policy: round_robin\n    max_connections: 4\n";
    let tls = |mapping: &str| {
        with(
            "{ certificate_chain: tls.crt, private_key: tls.key }",
            mapping,
        )
    };
    let mut all = String::new();
    for text in [
        endpoints("[\"echo-grpc:8081\""),
        more(endpoints("[\"echo-grpc:8081\"")),
        more(endpoints("[")),
        more(endpoints("[\"echo-grpc:8081\", \"b:1\" \"c:1\"]")),
        more(endpoints("[\"echo-grpc:8081\"}")),
        more(endpoints("\"echo-grpc:8081\"]")),
        tls("{ certificate_chain: tls.crt, private_key: tls.key"),
        tls("{ certificate_chain: tls.crt private_key: tls.key }"),
        tls("{ certificate_chain: [tls.crt, private_key: tls.key }"),
        tls("{\n    certificate_chain: tls.crt,\n    private_key: tls.key"),
        tls("{\n    certificate_chain: tls.crt\n    private_key: tls.key }"),
        endpoints("[\"echo-grpc:8081]"),
        more(endpoints("[\"echo-grpc:8081]")),
        more(endpoints("[echo-grpc:8081\"]")),
        more(endpoints("['echo-grpc:8081]")),
        with("0.0.0.0:8443", "\"0.0.0.0:8443"),
        with("0.0.0.0:8443", "'0.0.0.0:8443"),
        with("/api.Echo/", "\"/api.Echo/"),
        with("/api.Echo/", "'/it's/'"),
        with("/api.Echo/", "\"/api\".Echo/"),
        with("/api.Echo/", "\"/api\\.Echo/\""),
        format!("{MINIMAL}server_name: \"a\n---\n"),
        format!("{MINIMAL}server_name: [a\n---\n"),
        format!("# [ {{ \" ' \n{MINIMAL}server_name: it's {{ a: [b\n"),
    ] {
        let messages = messages(&text);
        assert_eq!(messages.lines().count(), 1, "{text}\n{messages}");
        all += &messages;
    }
    insta::assert_snapshot!(all);
}

/// Whatever bracket or quote of a whole file is left out: what a message says is open, is one, and is told where it is.
#[test]
fn what_is_said_to_be_open_is_there() {
    let mut said = 0;
    for (at, _) in DEFAULTS.match_indices(['[', ']', '{', '}', '"']) {
        let mut text = DEFAULTS.to_owned();
        text.remove(at);
        let Err(errors) = parse(&text) else { continue };
        let message = &errors.errors[0].message;
        let told = message
            .split_once("` of ")
            .or_else(|| message.split_once("begins at "));
        let Some((what, rest)) = told else { continue };
        let place = rest.split_once(' ').unwrap().0;
        let (line, column) = place.split_once(':').unwrap();
        let number = |number: &str| number.parse::<usize>().unwrap() - 1;
        let line = text.lines().nth(number(line)).unwrap();
        let there = line.chars().nth(number(column));
        let named = match what.ends_with(['[', '{']) {
            true => what.chars().last(),
            false => Some('"'),
        };
        assert_eq!(there, named, "{message}\n{text}");
        said += 1;
    }
    assert!(said > 5, "{said}");
}

/// Aliases of aliases: a few hundred bytes that stand for a thousand million values, or for gigabytes of text.
#[test]
fn what_aliases_may_repeat_is_bounded() {
    let tower = |bottom: &str, floor: &dyn Fn(usize) -> String| {
        let floors = (1..10).map(|n| format!("  - &a{n} {}\n", floor(n - 1)));
        format!(
            "{MINIMAL}bomb:\n  - &a0 {bottom}\n{}",
            floors.collect::<String>()
        )
    };
    let lists = tower("[x]", &|below| {
        format!("[{}]", vec![format!("*a{below}"); 9].join(", "))
    });
    let mappings = tower("{ x: 1 }", &|below| {
        let pairs: Vec<_> = (0..9).map(|n| format!("k{n}: *a{below}")).collect();
        format!("{{ {} }}", pairs.join(", "))
    });
    for bomb in [lists.clone(), mappings, lists.replacen(MINIMAL, "", 1)] {
        assert!(bomb.len() < 2000);
        let messages = messages(&bomb);
        assert!(
            messages.ends_with(
                ": this alias and those before it repeat more than any configuration needs: \
                 write out what they stand for\n"
            ) && messages.lines().count() == 1,
            "{messages}"
        );
    }
    let text = "x".repeat(1 << 20);
    let bomb = with(
        "[\"echo-grpc:8081\"]",
        &format!("[&text {text}{}]", ", *text".repeat(100)),
    );
    let message = messages(&bomb);
    assert!(
        message.ends_with(
            ": the file is larger or deeper than any configuration: is it the right one?\n"
        ),
        "{message}"
    );
    // A thousand clusters that share what aliases are for are well within it.
    let clusters: String = (0..1000)
        .map(|n| format!("  - {{ name: c{n}, endpoints: [\"e:1\"], health_check: *check }}\n"))
        .collect();
    let text = format!(
        "{MINIMAL}    health_check: &check {{ service: a, timeout: 2s, interval: 5s }}\n{clusters}"
    );
    assert_eq!(config(&text).clusters.len(), 1001);
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

/// What the schema says of such texts is what the validation refuses.
#[test]
fn the_schemas_pattern_is_that_of_the_validation() {
    let schema = serde_json::to_value(Config::schema()).unwrap();
    let whole: Value = serde_saphyr::from_str(DEFAULTS).unwrap();
    for (definition, key, path) in [
        ("Cluster", "name", "clusters[0].name"),
        ("Tls", "certificate_chain", "listener.tls.certificate_chain"),
        ("Tls", "private_key", "listener.tls.private_key"),
        ("AccessLog", "path", "access_log.path"),
    ] {
        let pattern = &schema["$defs"][definition]["properties"][key]["pattern"];
        assert_eq!(pattern, "^[^\\u0000-\\u001f\\u007f-\\u009f]+$", "{path}");
        let mut file = whole.clone();
        set(&mut file, path, "a@b".into());
        let file = file.to_string();
        for code in 0..0x100 {
            let file = file.replace("a@b", &format!("a\\u{code:04x}b"));
            let refused = messages(&file).contains(&format!("{path}: `a"));
            let excluded = matches!(code, 0..=0x1f | 0x7f..=0x9f);
            assert_eq!(refused, excluded, "{path}: {code:#x}");
        }
    }
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

/// A number that the schema takes is taken, and the next one beyond isn't: for each that there is.
#[test]
fn the_schemas_ranges_are_those_of_the_validation() {
    let schema = serde_json::to_value(Config::schema()).unwrap();
    let whole: Value = serde_saphyr::from_str(DEFAULTS).unwrap();
    let mut numbers = Vec::new();
    numbers_of(&schema, &schema, "", &mut numbers);
    assert!(numbers.len() >= 25, "{numbers:?}");
    for (path, least, most) in numbers {
        let refused = |number: u64| {
            let mut file = whole.clone();
            set(&mut file, &path, number.into());
            let told = format!("{path}: {number} is out of range");
            messages(&file.to_string()).contains(&told)
        };
        assert!(!refused(least) && !refused(most), "{path}");
        assert!(least == 0 || refused(least - 1), "{path}");
        assert!(refused(most + 1), "{path}");
    }
}

/// All numbers of the schema, with their ranges; of lists the first item's.
fn numbers_of(schema: &Value, node: &Value, path: &str, numbers: &mut Vec<(String, u64, u64)>) {
    if let Some(reference) = node["$ref"].as_str() {
        let target = schema.pointer(reference.trim_start_matches('#')).unwrap();
        return numbers_of(schema, target, path, numbers);
    }
    for node in node["anyOf"].as_array().into_iter().flatten() {
        numbers_of(schema, node, path, numbers);
    }
    if node["format"] == "uint64" {
        let most = node["maximum"].as_u64();
        let most = most.unwrap_or_else(|| panic!("{path} has no maximum"));
        numbers.push((path.to_owned(), node["minimum"].as_u64().unwrap(), most));
    }
    if let Some(items) = node.get("items") {
        numbers_of(schema, items, &format!("{path}[0]"), numbers);
    }
    for (key, node) in node["properties"].as_object().into_iter().flatten() {
        let dot = if path.is_empty() { "" } else { "." };
        numbers_of(schema, node, &format!("{path}{dot}{key}"), numbers);
    }
}

/// Writes `value` at `path`; mappings on the way are made.
fn set(file: &mut Value, path: &str, value: Value) {
    let mut at = file;
    for key in path.split('.') {
        at = match key.strip_suffix("[0]") {
            Some(list) => &mut at[list][0],
            None => &mut at[key],
        };
    }
    *at = value;
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
