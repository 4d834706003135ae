use bytes::Bytes;
use e2e::{
    backend::{Backend, FAILED},
    client::{grpc_request, request},
    payload,
    pb::test_client::TestClient,
    process::Process,
    proxy::{Files, Proxy, set},
    scripted::framed,
    wait::{eventually, within},
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, transport::Channel};

#[tokio::test]
async fn unary() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let reply = client.unary(payload("hello")).await.unwrap();
    assert_eq!(reply.into_inner().data, "hello");

    let failure = client
        .unary(request(payload(""), &[("x-test-status", "9")]))
        .await
        .unwrap_err();
    assert_eq!(
        (failure.code(), failure.message()),
        (Code::FailedPrecondition, FAILED)
    );
}

#[tokio::test]
async fn client_streaming() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let messages = tokio_stream::iter((0..100).map(|number| payload(format!("{number:03}"))));
    let reply = client.upload(messages).await.unwrap().into_inner();
    assert_eq!(reply.data.len(), 300);
    assert!(reply.data.starts_with(b"000001002"));
}

#[tokio::test]
async fn server_streaming() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let asked = request(payload("x"), &[("x-test-replies", "1000")]);
    let mut replies = client.download(asked).await.unwrap().into_inner();
    let mut count = 0;
    while let Some(reply) = replies.message().await.unwrap() {
        assert_eq!(reply.data, "x");
        count += 1;
    }
    assert_eq!(count, 1000);
}

#[tokio::test]
async fn a_stream_can_fail_in_its_trailers() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let asked = request(
        payload("x"),
        &[("x-test-replies", "3"), ("x-test-late-status", "13")],
    );
    let mut replies = client.download(asked).await.unwrap().into_inner();
    for _ in 0..3 {
        assert!(replies.message().await.unwrap().is_some());
    }
    let failure = replies.message().await.unwrap_err();
    assert_eq!(
        (failure.code(), failure.message()),
        (Code::Internal, FAILED)
    );
}

#[tokio::test]
async fn bidirectional_streaming_is_not_held_back() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let (sender, receiver) = mpsc::channel(1);
    sender.send(payload("0")).await.unwrap();
    let mut replies = client
        .chat(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    // Each reply must come before the next request is sent.
    for number in 0..200 {
        let reply = within("a reply", replies.message()).await.unwrap().unwrap();
        assert_eq!(reply.data, number.to_string());
        sender
            .send(payload((number + 1).to_string()))
            .await
            .unwrap();
    }
    drop(sender);
    assert_eq!(replies.message().await.unwrap().unwrap().data, "200");
    assert!(replies.message().await.unwrap().is_none());
}

#[tokio::test]
async fn headers_go_down_before_the_first_message() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let (_sender, receiver) = mpsc::channel(1);
    let opened = within(
        "response headers",
        client.chat(ReceiverStream::new(receiver)),
    )
    .await;
    assert!(opened.unwrap().metadata().contains_key("x-test-backend"));
}

#[tokio::test]
async fn four_mebibytes_pass_both_ways() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut client = proxy.test_client().await;
    let data: Bytes = (0..4 << 20).map(|index: u32| (index % 251) as u8).collect();
    let reply = client
        .unary(payload(data.clone()))
        .await
        .unwrap()
        .into_inner();
    assert!(reply.data == data, "4 MiB come back as they were sent");
}

#[tokio::test]
async fn large_messages_pass_on_many_streams_at_once() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.test_client().await;
    let data = Bytes::from(vec![b'x'; 1 << 20]);
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (mut client, data) = (client.clone(), data.clone());
            tokio::spawn(async move { client.unary(payload(data)).await })
        })
        .collect();
    for call in calls {
        let reply = within("a large reply", call).await.unwrap().unwrap();
        assert_eq!(reply.into_inner().data.len(), 1 << 20);
    }
}

#[tokio::test]
async fn early_trailers_stop_an_upload() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    let asked = grpc_request("/e2e.Test/Upload", &[("x-test-status", "8")]);
    let (response, mut upload) = client.open(asked, false).await.unwrap();
    upload
        .send_data(Bytes::from(framed(b"first")), false)
        .unwrap();
    let response = within("early trailers", response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "8");
    let reset = within("a reset", std::future::poll_fn(|cx| upload.poll_reset(cx)))
        .await
        .unwrap();
    assert_eq!(reset, h2::Reason::NO_ERROR);
    // The connection lives.
    assert_eq!(
        client
            .grpc("/e2e.Test/Unary", &[])
            .await
            .unwrap()
            .grpc_status(),
        Some(0)
    );
}

/// The proxy as a process of its own, whose memory nobody else uses.
async fn alone(backend: &Backend) -> (Process, Files, TestClient<Channel>) {
    let mut files = Proxy::to([backend]).write();
    let address = e2e::loopback::group(1).unwrap()[0];
    files.change(|config| set(config, "listener.address", address.to_string().into()));
    let program = Process::start(
        env!("CARGO_BIN_EXE_edge-proxy-under-test"),
        [
            "run".as_ref(),
            "--config".as_ref(),
            files.config().as_os_str(),
        ],
    );
    let channel = eventually("the program's listener", || async {
        e2e::client::channel(address, files.authority.client(&["h2"]))
            .await
            .ok()
    })
    .await;
    let mut client = TestClient::new(channel).max_decoding_message_size(usize::MAX);
    client.unary(payload("warm")).await.unwrap();
    (program, files, client)
}

#[tokio::test]
async fn a_slow_reader_holds_back_the_backend_and_not_the_memory() {
    let backend = Backend::start().await;
    let (program, _files, mut client) = alone(&backend).await;
    let before = program.resident_memory();

    // 400 MiB are asked for by ten readers; one message of each is read, and then nothing for a while.
    let mut readers = Vec::new();
    for _ in 0..10 {
        let asked = request(
            payload(""),
            &[("x-test-replies", "40"), ("x-test-reply-bytes", "1048576")],
        );
        let mut replies = client.download(asked).await.unwrap().into_inner();
        within("a first message", replies.message())
            .await
            .unwrap()
            .unwrap();
        readers.push(replies);
    }
    // While others are served, whatever could be buffered is.
    for _ in 0..200 {
        client.unary(payload("busy")).await.unwrap();
    }
    let grown = program.resident_memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more than before", grown >> 20);

    for reader in &mut readers {
        let rest = within("the rest of a download", reader.collect::<Vec<_>>()).await;
        assert_eq!(rest.len(), 39);
        assert!(rest.iter().all(Result::is_ok));
    }
}

#[tokio::test]
async fn a_slow_backend_holds_back_the_client_and_not_the_memory() {
    let backend = Backend::start().await;
    let (program, _files, mut client) = alone(&backend).await;
    let before = program.resident_memory();

    // 150 MiB are to be uploaded to ten handlers that don't read.
    let data = Bytes::from(vec![b'u'; 1 << 20]);
    let mut uploads = Vec::new();
    for number in 0..10 {
        let messages = tokio_stream::iter(vec![payload(data.clone()); 15]);
        let id = format!("upload-{number}");
        let asked = request(messages, &[("x-test-id", &id), ("x-test-gate", "read")]);
        let mut client = client.clone();
        uploads.push(tokio::spawn(async move { client.upload(asked).await }));
        backend.journal.begun(&id).await;
    }
    for _ in 0..200 {
        client.unary(payload("busy")).await.unwrap();
    }
    let grown = program.resident_memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more than before", grown >> 20);

    backend.open("read");
    for upload in uploads {
        let reply = within("an upload", upload).await.unwrap().unwrap();
        assert_eq!(reply.into_inner().data.len(), 15 << 20);
    }
}
