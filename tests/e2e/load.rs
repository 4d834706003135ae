use std::{collections::HashSet, sync::Arc, time::Duration};

use e2e::{
    backend::Backend,
    certs::{Authority, Pair},
    load::{self, Keepalive, Options, StreamMethod},
    loopback,
    proxy::Proxy,
    replicas::{Kind, Replica},
    wait::within,
};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

#[tokio::test]
async fn two_seconds_of_load_lose_nothing() {
    let echo = Replica::group(Kind::Echo, 2).await;
    let reverse = Replica::group(Kind::Reverse, 1).await;
    let backend = Backend::start().await;
    let proxy = Proxy::builder()
        .cluster("echo", echo.iter().map(Replica::address))
        .cluster("reverse", reverse.iter().map(Replica::address))
        .cluster("test", [backend.address()])
        .route("/api.Echo/", "echo")
        .route("/api.Reverse/", "reverse")
        .route("/e2e.Test/", "test")
        .start()
        .await;
    let options = options(&proxy);
    let mut seconds = Vec::new();
    let loading = load::run(
        options,
        |_, second| seconds.push(*second),
        std::future::pending(),
    );
    let tally = within("the load's end", loading).await.unwrap();

    let account = tally.json();
    assert!(tally.good(), "{account:#}");
    assert_eq!((tally.sent, tally.ok, tally.failed()), (400, 400, 0));
    assert_eq!(seconds.iter().map(|second| second.ok).sum::<u64>(), 400);
    assert_eq!(tally.connections, 3);
    assert_eq!(tally.streams_sent, tally.streams_ok);
    assert!(tally.streams_ok >= 2);

    // The backend has seen each stream under an id of its own.
    let entries = backend.journal.read();
    let ids: HashSet<_> = entries
        .requests
        .iter()
        .filter_map(|request| request.header("x-test-id"))
        .collect();
    assert_eq!(ids.len() as u64, tally.streams_ok);
}

#[tokio::test]
async fn streams_of_the_services_own_are_counted_by_who_serves_them() {
    let echo = Replica::group(Kind::Echo, 2).await;
    let proxy = Proxy::builder()
        .cluster("echo", echo.iter().map(Replica::address))
        .route("/api.Echo/", "echo")
        .route("/grpc.reflection.v1.ServerReflection/", "echo")
        .start()
        .await;
    let options = Options {
        reverse: false,
        stream_method: StreamMethod::Reflection,
        keepalive: Some(Keepalive {
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(60),
        }),
        ..options(&proxy)
    };
    let loading = load::run(options, |_, _| {}, std::future::pending());
    let tally = within("the load's end", loading).await.unwrap();

    let account = tally.json();
    assert!(tally.good(), "{account:#}");
    assert_eq!(tally.streams_sent, tally.streams_ok);
    assert!(tally.streams_ok >= 2);
    let by_hostname = account["hostnames"].as_object().unwrap();
    let counts: Vec<_> = by_hostname.values().filter_map(Value::as_u64).collect();
    assert_eq!(counts.len(), 2, "{account:#}");
    assert_eq!(counts.iter().sum::<u64>(), tally.ok);
}

#[tokio::test]
async fn a_connection_whose_peer_answers_nothing_any_more_is_followed_by_another() {
    let authority = Authority::new();
    let acceptor = acceptor(&authority.pair());
    let listener = TcpListener::bind((loopback::address(), 0)).await.unwrap();
    let proxy = Proxy::builder().start().await;
    let options = Options {
        target: listener.local_addr().unwrap().to_string(),
        tls: authority.client(&["h2"]),
        connections: 1,
        duration: Duration::from_secs(3600),
        streams: 0,
        keepalive: Some(Keepalive {
            interval: Duration::from_millis(100),
            timeout: Duration::from_secs(1),
        }),
        ..options(&proxy)
    };
    // Each connection is served until its first RPC is here, and then neither read nor closed.
    let silent = async {
        let mut kept = Vec::new();
        for _ in 0..2 {
            let (stream, _) = listener.accept().await.unwrap();
            let stream = acceptor.accept(stream).await.unwrap();
            let mut connection = h2::server::handshake(stream).await.unwrap();
            let first = connection.accept().await;
            kept.push((connection, first));
        }
    };
    tokio::select! {
        () = within("the second connection", silent) => {}
        tally = load::run(options, |_, _| {}, std::future::pending()) => panic!("{:#}", tally.unwrap().json()),
    }
}

fn acceptor(pair: &Pair) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

fn options(proxy: &Proxy) -> Options {
    Options {
        target: proxy.address().to_string(),
        authority: "grpc.example.com".to_owned(),
        tls: proxy.tls_config(&["h2"]),
        rate: 200,
        connections: 3,
        duration: Duration::from_secs(2),
        reverse: true,
        streams: 2,
        stream_method: StreamMethod::Download,
        stream_length: Duration::from_millis(500),
        timeout: Duration::from_secs(60),
        max_in_flight: 1000,
        keepalive: None,
        run: "story".to_owned(),
    }
}
