//! Any header block: the rules never panic, and nothing forbidden reaches a backend or a client. The first byte says
//! what the client speaks, each further line is `name=value`.

#![no_main]

use std::{
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use edge_proxy::{
    control_plane::config::Config,
    data_plane::{
        answer::{self, AnswerContext, Form},
        filters::{
            Filtered, Filters, RequestContext, Respond, Version, request,
            response::{self, ResponseContext},
        },
    },
    snapshot::ListenerPolicy,
};
use http2::{Headers, Known};
use libfuzzer_sys::fuzz_target;

const DATE: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";
const PEER: &str = "192.0.2.7";

fuzz_target!(|input: &[u8]| {
    let Some((first, lines)) = input.split_first() else {
        return;
    };
    let mut block = Headers::new();
    for line in lines.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b'=');
        block.push(
            parts.next().unwrap_or_default(),
            parts.next().unwrap_or_default(),
        );
    }
    check_request(block.clone(), first & 1 == 1);
    check_response(block);
});

fn check_request(mut headers: Headers, http1: bool) {
    let version = if http1 {
        Version::Http1
    } else {
        Version::Http2
    };
    let context = RequestContext {
        peer: PEER,
        secure: true,
        version,
    };
    let mut trailers = headers.clone();
    request::trailers(&mut trailers);
    assert!(
        trailers
            .iter()
            .all(|field| !forbidden(field.known, field.name))
    );

    let (facts, flow) = Filters::new().run(&mut headers, &context, &POLICY);
    if let Filtered::Respond(respond) = flow {
        let form = Form::of(&facts, context.version);
        let context = AnswerContext {
            server_name: "edge-proxy",
            date: DATE,
        };
        let answer = match respond {
            Respond::HealthCheck => answer::health_check(true, form, &context),
            Respond::Failure(failure) => answer::failure(failure, form, &context),
        };
        assert!(answer.headers.status().is_some());
        return;
    }
    assert!(!(facts.grpc && http1));
    for field in headers.iter() {
        assert!(!forbidden(field.known, field.name), "{field:?}");
        assert!(field.known != Known::Host);
        assert!(field.known != Known::Te || field.value == b"trailers");
    }
    let peers: Vec<_> = headers.all_known(Known::XForwardedFor).collect();
    assert!(peers.len() == 1 && peers[0].ends_with(PEER.as_bytes()));
    assert_eq!(
        headers
            .all_known(Known::XForwardedProto)
            .collect::<Vec<_>>(),
        [b"https"]
    );
    let ids: Vec<_> = headers.all_known(Known::XRequestId).collect();
    assert!(ids.len() == 1 && matches!(ids[0].len(), 1..=64));
}

fn check_response(mut headers: Headers) {
    let context = ResponseContext {
        server_name: "edge-proxy",
        date: DATE,
        upstream_time: Some(Duration::from_millis(1)),
    };
    response::head(&mut headers, &context);
    assert_eq!(
        headers.all_known(Known::Server).collect::<Vec<_>>(),
        [b"edge-proxy"]
    );
    assert!(headers.known(Known::Date).is_some());
    assert!(headers.known(Known::Connection).is_none());
}

/// Written apart from the rules, by their text.
fn forbidden(known: Known, name: &[u8]) -> bool {
    let dashed: Vec<u8> = name
        .iter()
        .map(|b| if *b == b'_' { b'-' } else { *b })
        .collect();
    let hop_by_hop = [
        Known::Connection,
        Known::KeepAlive,
        Known::ProxyConnection,
        Known::TransferEncoding,
        Known::Upgrade,
        Known::Http2Settings,
    ];
    hop_by_hop.contains(&known)
        || dashed.starts_with(b"x-envoy-")
        || [&b"x-forwarded-client-cert"[..], b"x-real-ip", b"forwarded"].contains(&&dashed[..])
        || (name.contains(&b'_')
            && [
                &b"x-forwarded-for"[..],
                b"x-forwarded-proto",
                b"x-request-id",
            ]
            .contains(&&dashed[..]))
}

/// All defaults, and the health check that the deployed configuration has.
static POLICY: LazyLock<Arc<ListenerPolicy>> = LazyLock::new(|| {
    let text = "
listener:
  address: 127.0.0.1:8443
  tls: { certificate_chain: /tls.crt, private_key: /tls.key }
  health_check: { path: /healthz, header: { name: x-envoy-livenessprobe, value: healthz } }
routes: [{ prefix: /, direct_response: { status: 200, body: '' } }]
clusters: []
";
    let parsed = Config::parse(text, Path::new("fuzz.yaml"));
    parsed.expect("it is right").config.listener
});
