use std::fs;

use e2e::{
    backend::Backend,
    client::request,
    frames::{Frame, Wire, code, flag, kind},
    h2attack::Attacker,
    payload,
    proxy::Proxy,
    scripted::framed,
    wait::eventually,
};
use tempfile::TempDir;
use tonic::Code;

/// A cgroup's files (version 2), in which a limit of 100 MB is used as far as the test says.
pub(crate) struct Memory(pub(crate) TempDir);

impl Memory {
    pub(crate) fn new() -> Self {
        let memory = Self(tempfile::tempdir().unwrap());
        memory.write("memory.max", "100000000\n");
        memory.write("memory.stat", "anon 1\ninactive_file 1000000\n");
        memory.used(10);
        memory
    }

    /// So many percent are used; what the kernel can drop comes on top.
    pub(crate) fn used(&self, percent: u64) {
        self.write(
            "memory.current",
            &format!("{}\n", (percent + 1) * 1_000_000),
        );
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.path().join(file), text).unwrap();
    }
}

pub(crate) async fn at_level(proxy: &Proxy, level: f64) {
    eventually("the level", || async {
        (proxy.metric("edge_overload_level", &[]).await == level).then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_level_of_memory_does_what_it_says_and_all_is_well_again_afterwards() {
    let backend = Backend::start().await;
    let memory = Memory::new();
    let proxy = Proxy::to([&backend])
        .memory_in(memory.0.path())
        .start()
        .await;
    let mut client = proxy.test_client().await;
    client.unary(request(payload("calm"), &[])).await.unwrap();
    assert_eq!(
        proxy.metric("edge_memory_working_set_bytes", &[]).await,
        10_000_000.0
    );
    let mut idle = proxy.wire(&[]).await;
    // Its windows are 0.
    let mut stalled = proxy.wire(&[(4, 0)]).await;
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Unary");
    headers.push(("x-test-reply-bytes", "100000"));
    stalled
        .send(&[
            Frame::headers(1, &headers, false),
            Frame::data(1, &framed(b""), true),
        ])
        .await
        .unwrap();

    memory.used(86);
    at_level(&proxy, 1.0).await;
    let reset = stalled
        .until("the stalled stream's reset", |frame| {
            frame.kind == kind::RST_STREAM
        })
        .await
        .unwrap();
    assert_eq!(
        (reset.stream, reset.number(0)),
        (1, Some(code::ENHANCE_YOUR_CALM))
    );
    client.unary(request(payload("sheds"), &[])).await.unwrap();

    memory.used(93);
    at_level(&proxy, 2.0).await;
    for wire in [&mut idle, &mut stalled] {
        wire.until("a GOAWAY", |frame| frame.kind == kind::GOAWAY)
            .await
            .unwrap();
        wire.to_end("the idle connection's end").await;
    }
    // Of this one's connection too, which was idle: another is made.
    let mut client = proxy.test_client().await;
    client.unary(request(payload("parts"), &[])).await.unwrap();

    memory.used(96);
    at_level(&proxy, 3.0).await;
    let mut client = proxy.test_client().await;
    let refused = client
        .unary(request(payload("refused"), &[]))
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "overloaded")
    );

    memory.used(99);
    at_level(&proxy, 4.0).await;
    assert!(proxy.tls(&["h2"]).await.is_err());
    let limit = [("limit", "overload")];
    assert!(proxy.metric("edge_limits_total", &limit).await >= 2.0);
    // Probes are answered whatever else is refused.
    assert_eq!(proxy.probe("/livez").await.unwrap().status(), 200);

    // The levels are left 3 % below where they were entered.
    memory.used(83);
    at_level(&proxy, 1.0).await;
    memory.used(50);
    at_level(&proxy, 0.0).await;
    let mut client = proxy.test_client().await;
    let reply = client.unary(request(payload("well"), &[])).await.unwrap();
    assert_eq!(reply.into_inner().data, "well");
}

#[tokio::test]
async fn connections_that_stand_still_are_given_up_with_all_that_they_hold() {
    let backend = Backend::start().await;
    let memory = Memory::new();
    let proxy = Proxy::to([&backend])
        .memory_in(memory.0.path())
        .start()
        .await;
    let attacker = Attacker::new(proxy.address(), &proxy.tls_config(&["h2"]));
    // Wide windows, and a socket that takes next to nothing: what waits is framed and sealed, and no stream's any more.
    let tcp = attacker.narrow_tcp(4096).await.unwrap();
    let tls = attacker.tls_over(tcp).await.unwrap();
    let mut unread = Wire::client(tls, &[(4, 0x7fff_ffff)]).await.unwrap();
    let mut headers = e2e::frames::grpc_request("/e2e.Test/Download");
    headers.extend([("x-test-replies", "50"), ("x-test-reply-bytes", "1000000")]);
    unread
        .send(&[
            Frame::new(kind::SETTINGS, flag::ACK, 0, []),
            Frame::credit(0, 0x7fff_ffff - 65_535),
            Frame::headers(1, &headers, false),
            Frame::data(1, &framed(b""), true),
        ])
        .await
        .unwrap();
    // A header block whose end doesn't come.
    let mut unended = proxy.wire(&[]).await;
    let block = e2e::frames::block(&[("x-large", "v".repeat(10_000))]);
    let headers = Frame::new(kind::HEADERS, 0, 1, block);
    unended.send(&[headers]).await.unwrap();
    // Honest, and idle.
    let mut client = proxy.test_client().await;
    client.unary(request(payload("calm"), &[])).await.unwrap();

    memory.used(86);
    unended.to_end("the end of the unended").await;
    let limit = [("limit", "memory")];
    eventually("both given up", || async {
        let open = proxy
            .metric("edge_connections", &[("side", "downstream")])
            .await;
        (open == 1.0 && proxy.metric("edge_limits_total", &limit).await >= 2.0).then_some(())
    })
    .await;
    client.unary(request(payload("lives"), &[])).await.unwrap();
    drop(unread);
}

#[tokio::test]
async fn without_a_limit_nothing_is_managed() {
    let backend = Backend::start().await;
    let memory = Memory::new();
    memory.write("memory.max", "max\n");
    memory.used(1000);
    let proxy = Proxy::to([&backend])
        .memory_in(memory.0.path())
        .start()
        .await;
    let mut client = proxy.test_client().await;
    client.unary(request(payload("well"), &[])).await.unwrap();
    assert_eq!(proxy.metric("edge_overload_level", &[]).await, 0.0);
    let page = e2e::client::get(proxy.probes_address(), "/metrics")
        .await
        .unwrap();
    let page = page.body();
    assert!(!page.contains("\nedge_memory_working_set_bytes "), "{page}");
}
