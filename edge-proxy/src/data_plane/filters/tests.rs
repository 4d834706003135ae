// What the filters of responses do.
mod responses;

use std::{collections::HashSet, time::Duration};

use http2::Known;
use proptest::prelude::*;

use super::*;
use crate::data_plane::testing::{headers as block, policy};

const GRPC: [(&str, &str); 6] = [
    (":method", "POST"),
    (":scheme", "https"),
    (":authority", "grpc.example.com"),
    (":path", "/api.Echo/Echo"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];
const HTTP2: RequestContext<'_> = RequestContext {
    peer: "192.0.2.7",
    secure: true,
    version: Version::Http2,
};
const HTTP1: RequestContext<'_> = RequestContext {
    version: Version::Http1,
    ..HTTP2
};
const ANY_ID: &str = "<uuid>";

fn listed(headers: &Headers) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    headers
        .iter()
        .map(|field| (text(field.name), text(field.value)))
        .collect()
}

fn run(context: RequestContext<'_>, fields: &[(&str, &str)]) -> (Headers, Facts, Filtered) {
    let mut headers = block(fields);
    let (facts, flow) = Filters::new().run(&mut headers, &context, &policy());
    (headers, facts, flow)
}

/// `GRPC` with `extra` behind it comes out as `GRPC` with `wanted` behind it.
#[track_caller]
fn passes(context: RequestContext<'_>, extra: &[(&str, &str)], wanted: &[(&str, &str)]) {
    let mut fields: Vec<_> = GRPC.to_vec();
    if context.version == Version::Http1 {
        fields[4] = ("content-type", "application/json");
    }
    let mut expected: Vec<_> = fields.clone();
    fields.extend_from_slice(extra);
    expected.extend_from_slice(wanted);
    let (headers, _, flow) = run(context, &fields);
    assert_eq!(flow, Filtered::Continue);
    let is_made = |(name, value): &(String, String)| {
        name == "x-request-id" && !extra.contains(&("x-request-id", value))
    };
    let mut got = listed(&headers);
    for field in got.iter_mut().filter(|field| is_made(field)) {
        let id = uuid::Uuid::parse_str(&field.1).unwrap();
        assert_eq!(id.get_version_num(), 4);
        field.1 = ANY_ID.into();
    }
    let expected: Vec<_> = expected
        .iter()
        .map(|(n, v)| (n.to_string(), v.to_string()))
        .collect();
    assert_eq!(got, expected);
}

/// What every request gets.
const ADDED: [(&str, &str); 3] = [
    ("x-forwarded-proto", "https"),
    ("x-forwarded-for", "192.0.2.7"),
    ("x-request-id", ANY_ID),
];

fn with_added<'a>(kept: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    kept.iter().copied().chain(ADDED).collect()
}

#[test]
fn who_is_a_grpc_request() {
    let cases = [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;charset=utf-8", true),
        ("application/grpc-web", false),
        ("application/grpc-web+proto", false),
        ("application/grpc-web-text", false),
        ("application/grpcx", false),
        ("application/grpc ", false),
        ("application/json", false),
        ("", false),
    ];
    for (content_type, grpc) in cases {
        let (_, facts, flow) = run(
            HTTP2,
            &[(":method", "POST"), ("content-type", content_type)],
        );
        assert_eq!(facts.grpc, grpc, "{content_type:?}");
        assert_eq!(flow, Filtered::Continue);
    }
    assert!(!run(HTTP2, &[(":method", "GET")]).1.grpc);
}

#[test]
fn grpc_over_http1_is_refused_and_plain_http1_passes() {
    let refused = Filtered::Respond(Respond::Failure(Failure::GrpcOverHttp1));
    assert_eq!(run(HTTP1, &GRPC).2, refused);
    assert_eq!(
        run(HTTP1, &[(":method", "GET"), (":path", "/")]).2,
        Filtered::Continue
    );
}

#[test]
fn connect_is_refused() {
    let refused = Filtered::Respond(Respond::Failure(Failure::ConnectMethod));
    assert_eq!(
        run(HTTP2, &[(":method", "CONNECT"), (":authority", "a:1")]).2,
        refused
    );
    let extended = [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":path", "/"),
    ];
    assert_eq!(run(HTTP2, &extended).2, refused);
    assert_eq!(run(HTTP2, &[(":method", "connect")]).2, Filtered::Continue);
}

#[test]
fn the_health_check_is_decided_before_every_other_rule() {
    let check = ("x-envoy-livenessprobe", "healthz");
    let path = (":path", "/healthz");
    let health = Filtered::Respond(Respond::HealthCheck);
    assert_eq!(run(HTTP2, &[(":method", "GET"), path, check]).2, health);
    assert_eq!(run(HTTP1, &[(":method", "GET"), path, check]).2, health);
    let conflict = [(":authority", "a"), path, ("host", "b"), check];
    assert_eq!(run(HTTP2, &conflict).2, health);
    assert_eq!(
        run(HTTP1, &[path, check, ("content-type", "application/grpc")]).2,
        health
    );
    // Not quite: ordinary requests.
    assert_eq!(run(HTTP2, &[path]).2, Filtered::Continue);
    assert_eq!(
        run(HTTP2, &[path, ("x-envoy-livenessprobe", "x")]).2,
        Filtered::Continue
    );
    assert_eq!(
        run(HTTP2, &[(":path", "/healthz/"), check]).2,
        Filtered::Continue
    );
    assert_eq!(
        run(HTTP2, &[(":path", "/healthz?a"), check]).2,
        Filtered::Continue
    );
}

#[test]
fn a_health_check_without_header_needs_the_path_alone_and_none_needs_nothing() {
    let mut policy = policy();
    let request = [(":method", "GET"), (":path", "/healthz")];
    policy.health_check.as_mut().unwrap().header = None;
    let flow = Filters::new().run(&mut block(&request), &HTTP2, &policy).1;
    assert_eq!(flow, Filtered::Respond(Respond::HealthCheck));
    policy.health_check = None;
    let flow = Filters::new().run(&mut block(&request), &HTTP2, &policy).1;
    assert_eq!(flow, Filtered::Continue);
}

#[test]
fn host_and_authority() {
    let refused = Filtered::Respond(Respond::Failure(Failure::InvalidAuthority));
    let authority = |fields: &[(&str, &str)]| {
        let (headers, _, flow) = run(HTTP2, fields);
        assert!(flow != Filtered::Continue || headers.known(Known::Host).is_none());
        (flow, headers.authority().map(<[u8]>::to_vec))
    };
    let a = Some(b"a.test".to_vec());
    assert_eq!(
        authority(&[(":authority", "a.test")]),
        (Filtered::Continue, a.clone())
    );
    assert_eq!(
        authority(&[(":authority", "a.test"), ("host", "A.test")]),
        (Filtered::Continue, a.clone())
    );
    assert_eq!(authority(&[("host", "a.test")]), (Filtered::Continue, a));
    assert_eq!(
        authority(&[(":authority", "a.test"), ("host", "b.test")]).0,
        refused
    );
    assert_eq!(
        authority(&[(":authority", "a.test"), ("host", "")]).0,
        refused
    );
    assert_eq!(
        authority(&[(":authority", "a.test"), ("host", "a.test:443")]).0,
        refused
    );
    assert_eq!(
        authority(&[("host", "a.test"), ("host", "b.test")]).0,
        refused
    );
    let second = [
        (":authority", "a.test"),
        ("host", "a.test"),
        ("x", "y"),
        ("host", "b.test"),
    ];
    assert_eq!(authority(&second).0, refused);
    // What no server takes in `:authority` isn't put there.
    for host in ["a b", "a%41", "<a>", "", "a/b", "a\\b", "user@a", "[:]"] {
        assert_eq!(authority(&[("host", host)]).0, refused, "{host}");
    }
}

#[test]
fn a_lone_host_takes_its_place_among_the_pseudo_headers() {
    let (headers, _, _) = run(
        HTTP2,
        &[
            (":method", "GET"),
            (":path", "/"),
            ("x-a", "1"),
            ("host", "h"),
        ],
    );
    let names: Vec<_> = listed(&headers).into_iter().map(|field| field.0).collect();
    assert_eq!(
        names,
        [
            ":method",
            ":path",
            ":authority",
            "x-a",
            "x-forwarded-proto",
            "x-forwarded-for",
            "x-request-id"
        ]
    );
}

#[test]
fn metadata_duplicates_binary_values_and_their_order_are_untouched() {
    let kept = [
        ("b", "2"),
        ("a", "1"),
        ("trace-bin", "AAEC//8"),
        ("b", "1"),
        ("grpc-encoding", "gzip"),
        ("user-agent", "grpc-go/1"),
        ("x-custom", " "),
        ("forwarded-by-us", "x"),
        ("x-envoyish", "x"),
        ("authorization", "Bearer t"),
        ("traceparent", "00-a-b-01"),
        ("x-forwarded-host", "h"),
    ];
    passes(HTTP2, &kept, &with_added(&kept));
}

#[test]
fn what_only_a_proxy_may_say_is_dropped_in_every_spelling() {
    let spoofed = [
        ("x-envoy-original-path", "/admin"),
        ("x-envoy-", "x"),
        ("x_envoy_internal", "true"),
        ("x-envoy_internal", "true"),
        ("x-forwarded-client-cert", "By=x"),
        ("x_forwarded_client_cert", "By=x"),
        ("x-real-ip", "10.0.0.1"),
        ("x_real-ip", "10.0.0.1"),
        ("forwarded", "for=10.0.0.1"),
        ("x_forwarded_for", "10.0.0.1"),
        ("x-forwarded_proto", "http"),
        ("x_request_id", "a"),
    ];
    passes(HTTP2, &spoofed, &ADDED);
    for field in spoofed {
        passes(
            HTTP2,
            &[("a", "1"), field, ("b", "2")],
            &with_added(&[("a", "1"), ("b", "2")]),
        );
    }
}

#[test]
fn hop_by_hop_fields_are_dropped_and_with_them_those_that_connection_names() {
    passes(
        HTTP1,
        &[
            ("connection", "keep-alive, X-Once ,te"),
            ("connection", "upgrade"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("http2-settings", "AAMAAABk"),
            ("expect", "100-continue"),
            ("x-once", "1"),
            ("x-twice", "2"),
        ],
        &with_added(&[("x-twice", "2")]),
    );
    // Nobody takes away what is needed.
    let fields = [
        (":path", "/"),
        ("connection", ":path, x-forwarded-for, x-request-id, te"),
        ("te", "trailers"),
        ("x-request-id", "a"),
    ];
    let (headers, _, _) = run(HTTP1, &fields);
    assert_eq!(headers.known(Known::XRequestId), Some(&b"a"[..]));
    assert_eq!(headers.path(), Some(&b"/"[..]));
    assert_eq!(headers.known(Known::Te), Some(&b"trailers"[..]));
    assert_eq!(headers.known(Known::XForwardedFor), Some(&b"192.0.2.7"[..]));
}

#[test]
fn more_than_32_options_of_connection_are_malformed() {
    let options = |number: usize| vec!["x-a"; number].join(",");
    let refused = Filtered::Respond(Respond::Failure(Failure::MalformedRequest));
    for (first, second, wanted) in [
        (32, None, Filtered::Continue),
        (33, None, refused),
        (16, Some(16), Filtered::Continue),
        (16, Some(17), refused),
    ] {
        let (first, second) = (options(first), second.map(options));
        let mut fields = vec![(":path", "/"), ("x-a", "1"), ("connection", &first)];
        fields.extend(second.as_deref().map(|options| ("connection", options)));
        let (headers, _, flow) = run(HTTP1, &fields);
        assert_eq!(flow, wanted, "{fields:?}");
        let is_dropped = headers.get(b"x-a").is_none();
        assert_eq!(is_dropped, wanted == Filtered::Continue);
    }
}

#[test]
fn te_keeps_the_word_trailers_only() {
    let te = |values: &[&str]| {
        let fields: Vec<_> = values.iter().map(|value| ("te", *value)).collect();
        let (headers, _, _) = run(HTTP1, &fields);
        let values: Vec<_> = headers.all_known(Known::Te).map(<[u8]>::to_vec).collect();
        values
    };
    assert_eq!(te(&["trailers"]), [b"trailers"]);
    assert_eq!(te(&["gzip, Trailers"]), [b"trailers"]);
    assert_eq!(te(&["gzip", "trailers"]), [b"trailers"]);
    assert_eq!(te(&["gzip"]), [b""; 0]);
    assert_eq!(te(&[]), [b""; 0]);
}

#[test]
fn the_peer_is_the_last_word_of_x_forwarded_for() {
    let value = |given: &[&str]| {
        let fields: Vec<_> = given
            .iter()
            .map(|value| ("x-forwarded-for", *value))
            .collect();
        let (headers, _, _) = run(HTTP2, &fields);
        let values: Vec<_> = headers.all_known(Known::XForwardedFor).collect();
        assert_eq!(values.len(), 1);
        String::from_utf8(values[0].to_vec()).unwrap()
    };
    assert_eq!(value(&[]), "192.0.2.7");
    assert_eq!(value(&["10.0.0.1"]), "10.0.0.1, 192.0.2.7");
    assert_eq!(
        value(&["10.0.0.1, 10.0.0.2", "", "10.0.0.3"]),
        "10.0.0.1, 10.0.0.2, 10.0.0.3, 192.0.2.7"
    );
    assert_eq!(value(&[""]), "192.0.2.7");
}

#[test]
fn x_forwarded_proto_is_ours_to_say() {
    let proto = |context: RequestContext<'_>, fields: &[(&str, &str)]| {
        let (headers, _, _) = run(context, fields);
        let values: Vec<_> = headers
            .all_known(Known::XForwardedProto)
            .map(<[u8]>::to_vec)
            .collect();
        values
    };
    let lie = [("x-forwarded-proto", "http"), ("x-forwarded-proto", "ftp")];
    assert_eq!(proto(HTTP2, &lie), [b"https"]);
    assert_eq!(
        proto(
            RequestContext {
                secure: false,
                ..HTTP2
            },
            &[]
        ),
        [b"http"]
    );
}

#[test]
fn a_request_id_is_kept_if_it_is_one_and_made_otherwise() {
    let longest = "a".repeat(64);
    for good in ["a", "0F-z", longest.as_str()] {
        passes(
            HTTP2,
            &[("x-request-id", good)],
            &[("x-request-id", good), ADDED[0], ADDED[1]],
        );
    }
    let too_long = "a".repeat(65);
    for bad in ["", "a b", "a_b", "a\"b", too_long.as_str()] {
        passes(
            HTTP2,
            &[("x-request-id", bad)],
            &[("x-request-id", ANY_ID), ADDED[0], ADDED[1]],
        );
    }
    // Two words are none.
    passes(
        HTTP2,
        &[("x-request-id", "a"), ("x-request-id", "b")],
        &[("x-request-id", ANY_ID), ADDED[0], ADDED[1]],
    );
}

#[test]
fn made_request_ids_differ() {
    let mut filters = Filters::new();
    let mut other_worker = Filters::new();
    let mut ids = HashSet::new();
    for _ in 0..100 {
        for filters in [&mut filters, &mut other_worker] {
            let mut headers = block(&GRPC);
            filters.run(&mut headers, &HTTP2, &policy());
            assert!(ids.insert(headers.known(Known::XRequestId).unwrap().to_vec()));
        }
    }
}

#[test]
fn a_timeout_is_read_for_grpc_only_and_taken_out_where_it_stands_last() {
    let request = |content_type, timeout| {
        let fields = [("content-type", content_type), ("grpc-timeout", timeout)];
        let (headers, facts, _) = run(HTTP2, &fields);
        let left = headers.known(Known::GrpcTimeout).map(<[u8]>::to_vec);
        (facts.grpc_timeout, left)
    };
    let kept = |timeout: &str| (None, Some(timeout.as_bytes().to_vec()));
    let two = Duration::from_secs(2);
    assert_eq!(request("application/grpc", "2S"), (Some(two), None));
    let zero = (Some(Duration::ZERO), None);
    assert_eq!(request("application/grpc", "0S"), zero);
    assert_eq!(request("application/grpc", "soon"), kept("soon"));
    assert_eq!(request("application/json", "2S"), kept("2S"));
    // Before others it keeps its place, and so do several.
    for more in [("x-a", "1"), ("grpc-timeout", "3S")] {
        let fields = [
            ("content-type", "application/grpc"),
            ("grpc-timeout", "2S"),
            more,
        ];
        let (headers, facts, _) = run(HTTP2, &fields);
        assert_eq!(facts.grpc_timeout, Some(two));
        assert_eq!(headers.known(Known::GrpcTimeout), Some(&b"2S"[..]));
    }
}

#[test]
fn trailers_lose_only_what_may_not_stand_in_trailers() {
    let kept = [
        ("grpc-status", "0"),
        ("a-bin", "AA"),
        ("a", "1"),
        ("a", "2"),
    ];
    let framing = [
        "connection",
        "keep-alive",
        "transfer-encoding",
        "te",
        "host",
        "content-length",
    ];
    let spoofable = ["x-forwarded-for", "x-request-id", "x-real-ip", "x_envoy_a"];
    let with = |extra: &[&'static str]| -> Vec<_> {
        kept.into_iter()
            .chain(extra.iter().map(|name| (*name, "1")))
            .collect()
    };
    let filtered = |filter: fn(&mut Headers), fields: &[(&str, &str)]| {
        let mut headers = block(fields);
        filter(&mut headers);
        listed(&headers)
    };
    let all = with(&[&framing[..], &spoofable[..]].concat());
    assert_eq!(filtered(request::trailers, &kept), owned(&kept));
    assert_eq!(filtered(request::trailers, &all), owned(&kept));
    assert_eq!(filtered(response::trailers, &kept), owned(&kept));
    assert_eq!(filtered(response::trailers, &all), owned(&with(&spoofable)));
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect()
}

proptest! {
    /// Whatever a client sends: no panic, and what reaches a backend holds nothing that was to be dropped.
    #[test]
    fn no_block_gets_through_with_a_forbidden_field(
        fields in prop::collection::vec((name(), "[ -~]{0,12}"), 0..12),
        http1 in any::<bool>(),
    ) {
        let mut headers = Headers::new();
        for (name, value) in &fields {
            headers.push(name.as_bytes(), value.as_bytes());
        }
        let context = if http1 { HTTP1 } else { HTTP2 };
        let (_, flow) = Filters::new().run(&mut headers, &context, &policy());
        if flow == Filtered::Continue {
            let added = headers.len().saturating_sub(fields.len());
            prop_assert!(request::MAX_FIELDS + added <= 100);
            for field in headers.iter() {
                prop_assert!(!classify::is_dropped(&field), "{field:?}");
                prop_assert!(field.known != Known::Host);
                prop_assert!(field.known != Known::Te || field.value == b"trailers");
            }
            let peer = headers.all_known(Known::XForwardedFor).map(<[u8]>::to_vec);
            let peer: Vec<_> = peer.collect();
            prop_assert_eq!(peer.len(), 1);
            prop_assert!(peer[0].ends_with(b"192.0.2.7"));
            prop_assert_eq!(headers.all_known(Known::XRequestId).count(), 1);
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            ":method",
            ":path",
            ":authority",
            "host",
            "te",
            "connection",
            "keep-alive",
            "upgrade",
            "x-forwarded-for",
            "x-forwarded-proto",
            "x-request-id",
            "content-type",
            "grpc-timeout",
            "x-real-ip",
            "forwarded",
            "x_envoy_x",
        ])
        .prop_map(str::to_owned),
        "[xf][-_a-z]{0,20}",
    ]
}
