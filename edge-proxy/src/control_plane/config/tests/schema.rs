//! The schema and what is read: every key that it knows, with the ranges that it tells.

use super::*;

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
