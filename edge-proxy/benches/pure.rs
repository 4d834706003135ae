//! How long the pure decisions of one RPC take: `cargo bench -p edge-proxy`.
//!
//! What one RPC takes in all, in instructions and beside other proxies, is the crate `bench`'s to say.

use std::{path::Path, sync::Arc, time::Duration};

use divan::{Bencher, black_box};
use edge_proxy::{
    control_plane::config::Config,
    data_plane::{
        balance,
        filters::{Filters, RequestContext, Version, response, timeout},
        route::RouteTable,
    },
    snapshot::{Cluster, Endpoint, EndpointShared, Health, ListenerPolicy, Route, RouteAction},
};
use http2::Headers;

fn main() {
    divan::main();
}

/// Step 6.
#[divan::bench(args = [2, 100, 1000])]
fn route(bencher: Bencher<'_, '_>, routes: usize) {
    let route = |number| Route {
        prefix: format!("/company.product{number:04}.v1.Service/").into(),
        action: RouteAction::Cluster {
            cluster: 0,
            timeout: None,
            max_grpc_timeout: None,
        },
    };
    let table = RouteTable::new((0..routes).map(route).collect());
    let path = format!("/company.product{:04}.v1.Service/Method", routes - 1);
    bencher.bench(|| table.find(black_box(path.as_bytes())).is_some());
}

/// Step 7.
#[divan::bench(args = [2, 100, 1000])]
fn pick(bencher: Bencher<'_, '_>, endpoints: usize) {
    let cluster = cluster(endpoints);
    bencher.bench(|| balance::pick(black_box(&cluster), &[]).is_some());
}

/// Step 5: a gRPC request as clients send it, through all filters.
#[divan::bench]
fn request_headers(bencher: Bencher<'_, '_>) {
    let policy = listener();
    let mut filters = Filters::new();
    let context = RequestContext {
        peer: "192.0.2.7",
        secure: true,
        version: Version::Http2,
    };
    bencher
        .with_inputs(|| headers(REQUEST))
        .bench_local_values(|mut headers| {
            let flow = filters.run(&mut headers, &context, &policy);
            (headers, flow)
        });
}

/// Step 5, on the way back.
#[divan::bench]
fn response_headers(bencher: Bencher<'_, '_>) {
    let context = response::ResponseContext {
        server_name: "edge-proxy",
        date: b"Mon, 23 Nov 2026 01:02:13 GMT",
        upstream_time: Some(Duration::from_millis(1)),
    };
    bencher
        .with_inputs(|| headers(RESPONSE))
        .bench_local_values(|mut headers| {
            response::head(&mut headers, &context);
            headers
        });
}

/// `grpc-timeout`, read.
#[divan::bench(args = ["20S", "1500m", "99999999u"])]
fn timeout_parse(text: &str) -> Option<Duration> {
    timeout::parse(black_box(text.as_bytes()))
}

/// `grpc-timeout`, written for the backend.
#[divan::bench]
fn timeout_format() -> timeout::Text {
    timeout::format(black_box(Duration::from_nanos(19_999_876_543)))
}

/// All defaults.
fn listener() -> Arc<ListenerPolicy> {
    let text = "
listener: { address: '127.0.0.1:0', tls: { certificate_chain: /tls.crt, private_key: /tls.key } }
routes: [{ prefix: /, direct_response: { status: 200, body: '' } }]
clusters: []
";
    let loaded = Config::parse(text, Path::new("bench.yaml"));
    // It is the text above.
    loaded.expect("this configuration is valid").config.listener
}

fn cluster(endpoints: usize) -> Cluster {
    let text = "
listener: { address: '127.0.0.1:0', tls: { certificate_chain: /tls.crt, private_key: /tls.key } }
routes: [{ prefix: /, cluster: all }]
clusters: [{ name: all, discovery: static, endpoints: ['127.0.0.1:1'] }]
";
    let loaded = Config::parse(text, Path::new("bench.yaml"));
    // It is the text above.
    let config = loaded.expect("this configuration is valid").config;
    let endpoint = |number: usize| {
        let address = ([127, 0, (number / 250) as u8, (1 + number % 250) as u8], 1).into();
        Arc::new(Endpoint {
            shared: EndpointShared::new(address),
            health: Health::Healthy,
            close_connections: false,
        })
    };
    let endpoints: Vec<_> = (0..endpoints).map(endpoint).collect();
    Cluster {
        name: config.clusters[0].name.clone(),
        policy: config.clusters[0].policy.clone(),
        eligible: endpoints.clone(),
        endpoints,
        turn: Arc::default(),
        circuits: Arc::default(),
    }
}

fn headers(fields: &[(&str, &str)]) -> Headers {
    fields.iter().copied().collect()
}

const REQUEST: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/api.Echo/Echo"),
    (":authority", "grpc.example.com"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("user-agent", "grpc-rust/1.0"),
    ("grpc-timeout", "20S"),
    ("x-request-id", "not one: it is made anew"),
];
const RESPONSE: &[(&str, &str)] = &[
    (":status", "200"),
    ("content-type", "application/grpc"),
    ("hostname", "echo-grpc-1"),
    ("date", "Mon, 23 Nov 2026 01:02:13 GMT"),
];
