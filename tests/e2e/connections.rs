use std::time::Duration;

use e2e::{
    certs::SERVER_NAME,
    client,
    proxy::Proxy,
    wait::{eventually, within},
};
use rustls::{
    pki_types::ServerName,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

#[tokio::test]
async fn one_source_has_only_so_many_connections() {
    let proxy = Proxy::builder()
        .set("listener.max_connections_per_source", 3)
        .start()
        .await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let client = proxy.http2().await;
        assert_eq!(
            client.grpc("/a.B/C", &[]).await.unwrap().grpc_status(),
            Some(12)
        );
        kept.push(client);
    }
    let one_more = async || {
        let client = client::Http2::connect(proxy.address(), proxy.tls_config(&["h2"]))
            .await
            .ok()?;
        client.grpc("/a.B/C", &[]).await.ok()
    };
    assert!(one_more().await.is_none());
    kept.pop();
    eventually("room for another", one_more).await;
}

#[tokio::test]
async fn tls_12_and_13_and_nothing_older() {
    let proxy = Proxy::builder().start().await;
    for version in [&TLS12, &TLS13] {
        let config = proxy.files.authority.client_of(&[version], &["h2"]);
        let client = client::Http2::connect(proxy.address(), config)
            .await
            .unwrap();
        assert_eq!(
            client.grpc("/a.B/C", &[]).await.unwrap().grpc_status(),
            Some(12)
        );
    }
    // A ClientHello of TLS 1.0, without the extension that names newer versions.
    let mut hello = vec![22, 3, 1, 0, 45, 1, 0, 0, 41, 3, 1];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0, 0x2f, 1, 0]);
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut answer = Vec::new();
    let _ = within("an alert", stream.read_to_end(&mut answer)).await;
    assert!(
        answer.is_empty() || answer[0] == 21,
        "an alert, or nothing: {answer:?}"
    );
}

#[tokio::test]
async fn bytes_that_are_no_tls_hurt_nobody() {
    let proxy = Proxy::builder().start().await;
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[22, 3, 1, 255, 255, 1, 2, 3],
    ] {
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        // It may be told to go before it has said all.
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer))
            .await
            .unwrap();
    }
    assert_eq!(
        proxy
            .http2()
            .await
            .grpc("/a.B/C", &[])
            .await
            .unwrap()
            .grpc_status(),
        Some(12)
    );
}

#[tokio::test]
async fn when_handshakes_pile_up_the_oldest_silent_one_goes() {
    let proxy = Proxy::builder()
        .set("listener.max_pending_handshakes", 2)
        .set("listener.timeouts.tls_handshake", "1h")
        .start()
        .await;
    let mut silent = Vec::new();
    for _ in 0..2 {
        silent.push(TcpStream::connect(proxy.address()).await.unwrap());
    }
    let client = proxy.http2().await;
    assert_eq!(
        client.grpc("/a.B/C", &[]).await.unwrap().grpc_status(),
        Some(12)
    );
    let mut rest = Vec::new();
    let _ = within("the end of the oldest", silent[0].read_to_end(&mut rest)).await;
    let limit = [("limit", "pending_handshakes")];
    assert_eq!(proxy.metric("edge_limits_total", &limit).await, 1.0);
    // The other one stayed: when it speaks at last, it is heard.
    let name = ServerName::try_from(SERVER_NAME).unwrap();
    let connector = TlsConnector::from(proxy.tls_config(&["h2"]));
    let stayed = connector.connect(name, silent.pop().unwrap());
    within("the other one's handshake", stayed).await.unwrap();
}

#[tokio::test]
async fn connections_have_a_limit_in_all() {
    let proxy = Proxy::builder()
        .set("listener.max_connections", 2)
        .start()
        .await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let client = proxy.http2().await;
        client.grpc("/a.B/C", &[]).await.unwrap();
        kept.push(client);
    }
    let one_more = async || {
        let connect = client::Http2::connect(proxy.address(), proxy.tls_config(&["h2"]));
        let client = tokio::time::timeout(Duration::from_secs(1), connect)
            .await
            .ok()?
            .ok()?;
        tokio::time::timeout(Duration::from_secs(1), client.grpc("/a.B/C", &[]))
            .await
            .ok()?
            .ok()
    };
    assert!(one_more().await.is_none());
    kept.pop();
    eventually("room for another", one_more).await;
}
