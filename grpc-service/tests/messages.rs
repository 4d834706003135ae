//! Large messages and many RPCs against the budget, over real sockets: what is refused, and that
//! everything is given back.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows a test's functions, not its helpers"
)]

#[expect(dead_code, reason = "the other program of tests needs the rest")]
mod support;

use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use grpc_service::{Budget, MAX_MESSAGE};
use tonic::client::Grpc;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_prost::ProstCodec;

use self::support::{Answer, Running, ask, within};

#[tokio::test]
async fn of_a_hundred_at_once_some_pass_and_the_others_are_refused() {
    let budget = Budget::new(2 * MAX_MESSAGE);
    let server = with(&budget).await;
    let channel = server.channel().await;
    let calls: Vec<_> = (0..100)
        .map(|_| tokio::spawn(echo(Grpc::new(channel.clone()), LARGE)))
        .collect();
    let mut passed = 0;
    for call in calls {
        match within(call).await.unwrap() {
            Ok(length) => {
                assert_eq!(length, LARGE);
                passed += 1;
            }
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let limit = "its limit of 8388608 bytes";
                assert!(status.message().contains(limit), "{status}");
            }
        }
    }
    // The last one has the whole budget for itself.
    assert!(passed > 0);
    nothing_in_work(&budget).await;
}

#[tokio::test]
async fn a_refused_upload_is_not_read_to_its_end() {
    let budget = Budget::new(LARGE / 2);
    let server = with(&budget).await;
    let mut client = server.client().await;
    // Twice what the connection's window has: it gets back what nobody reads.
    for _ in 0..25 {
        let (response, mut upload) = client.start("/test.Probe/Echo", None).await;
        upload.send_data(message(LARGE), false).unwrap();
        let answer = Answer::read(within(response).await.unwrap()).await;
        assert_eq!(answer.status(), Code::ResourceExhausted);
        assert_eq!(answer.hostname(), "replica-1");
        let reason = within(std::future::poll_fn(|cx| upload.poll_reset(cx))).await;
        assert_eq!(reason.unwrap(), h2::Reason::NO_ERROR);
    }
    nothing_in_work(&budget).await;
}

/// A handler of streams ends well when its requests do, and would not tell.
#[tokio::test]
async fn a_stream_is_refused_whatever_its_handler_says() {
    let budget = Budget::new(LARGE / 2);
    let server = with(&budget).await;
    let mut client = server.client().await;
    let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let (response, mut upload) = client.start(path, None).await;
    upload.send_data(message(LARGE), false).unwrap();
    let answer = Answer::read(within(response).await.unwrap()).await;
    assert_eq!(answer.status(), Code::ResourceExhausted);
    nothing_in_work(&budget).await;
}

#[tokio::test]
async fn a_cancel_gives_everything_back() {
    let budget = Budget::new(16 * LARGE);
    let server = with(&budget).await;
    let mut client = server.client().await;
    let mut uploads = Vec::new();
    for _ in 0..10 {
        let (response, mut upload) = client.start("/test.Probe/Echo", None).await;
        upload
            .send_data(message(LARGE).split_to(LARGE - 100), false)
            .unwrap();
        uploads.push((response, upload));
    }
    until(|| budget.used() > 9 * LARGE).await;
    uploads.truncate(5);
    until(|| budget.used() < 5 * LARGE).await;
    assert!(budget.used() > 4 * LARGE);
    // And so does the end of the connection.
    client.connection.abort();
    nothing_in_work(&budget).await;
}

#[tokio::test]
async fn who_reads_no_answers_holds_the_budget_and_not_the_server() {
    let budget = Budget::new(2 * MAX_MESSAGE);
    let server = with(&budget).await;
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut client = server.client().await;
        let (response, mut upload) = client.start("/test.Probe/Echo", None).await;
        upload.send_data(message(LARGE), true).unwrap();
        unread.push((within(response).await.unwrap(), client));
    }
    // A client's window is 64 KiB: nearly all of both answers is still here.
    assert!(budget.used() > 7_800_000, "{}", budget.used());

    let other = server.channel().await;
    let status = within(echo(Grpc::new(other.clone()), LARGE))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(within(echo(Grpc::new(other), 8000)).await.unwrap(), 8000);
    within(server.health().await.check(ask(""))).await.unwrap();
    assert!(budget.used() <= budget.limit());

    // One of them reads on, which another can use.
    let (read, _client) = unread.pop().unwrap();
    assert_eq!(Answer::read(read).await.status(), Code::Ok);
    until(|| budget.used() < LARGE).await;
    let call = echo(Grpc::new(server.channel().await), LARGE);
    assert_eq!(within(call).await.unwrap(), LARGE);
    drop(unread);
    nothing_in_work(&budget).await;
}

/// With a byte now and then it would hold the budget for ever.
#[tokio::test]
async fn who_sends_too_slowly_is_told_so() {
    let budget = Budget::new(LARGE);
    let server = with(&budget).await;
    let mut client = server.client().await;
    let (response, mut upload) = client.start("/test.Probe/Echo", None).await;
    let mut message = message(LARGE);
    upload.send_data(message.split_to(400_000), false).unwrap();
    until(|| budget.used() > 390_000).await;
    pass(Duration::from_secs(29)).await;
    upload.send_data(message.split_to(1), false).unwrap();
    assert_eq!(
        client.call("/test.Probe/Read", None).await.status(),
        Code::Ok
    );
    assert!(budget.used() > 390_000);
    pass(Duration::from_secs(26)).await;
    let answer = Answer::read(within(response).await.unwrap()).await;
    assert_eq!(answer.status(), Code::DeadlineExceeded);
    assert_eq!(answer.hostname(), "replica-1");
    let reason = within(std::future::poll_fn(|cx| upload.poll_reset(cx))).await;
    assert_eq!(reason.unwrap(), h2::Reason::NO_ERROR);
    nothing_in_work(&budget).await;
}

#[tokio::test]
async fn who_reads_too_slowly_holds_the_budget_no_longer() {
    let budget = Budget::new(LARGE);
    let server = with(&budget).await;
    let mut client = server.client().await;
    let (response, mut upload) = client.start("/test.Probe/Echo", None).await;
    upload.send_data(message(LARGE), true).unwrap();
    let unread = within(response).await.unwrap();
    // Its window is used up: five pieces of the answer have been taken.
    let kept = LARGE - 5 * 16 * 1024;
    until(|| budget.used() < kept + 2 * 16 * 1024).await;
    pass(Duration::from_secs(15)).await;
    assert!(budget.used() > kept);
    pass(Duration::from_secs(25)).await;
    // What h2 has got is a piece, and one that hyper holds.
    until(|| budget.used() <= 2 * 16 * 1024).await;
    let call = echo(Grpc::new(server.channel().await), LARGE - 100_000);
    assert_eq!(within(call).await.unwrap(), LARGE - 100_000);
    assert_eq!(Answer::read(unread).await.status(), Code::DeadlineExceeded);
    nothing_in_work(&budget).await;
}

/// What is made here counts, too, and not only what comes in.
#[tokio::test]
async fn an_answer_that_does_not_fit_is_refused() {
    let budget = Budget::new(1024 * 1024);
    let server = with(&budget).await;
    let mut client = server.client().await;
    let answer = client.call("/test.Probe/Large", None).await;
    assert_eq!(answer.status(), Code::ResourceExhausted);
    nothing_in_work(&budget).await;
}

/// RPCs that send next to nothing are many, and each takes memory; those that ask for health are let
/// in all the same.
#[tokio::test]
async fn who_opens_many_rpcs_holds_the_budget_and_not_the_server() {
    // Two and a half times that is for all RPCs, which is 78 of them with their heads.
    let budget = Budget::new(1024 * 1024);
    let server = with(&budget).await;
    let mut client = server.client().await;
    let mut open = Vec::new();
    for _ in 0..78 {
        let (response, mut upload) = client.start("/test.Probe/Echo", None).await;
        upload.send_data(message(100).split_to(5), false).unwrap();
        open.push((response, upload));
    }
    until(|| budget.used_by_rpcs() > 78 * 32 * 1024).await;
    let full = budget.used_by_rpcs();

    let mut other = server.client().await;
    let answer = other.call("/test.Probe/Read", None).await;
    assert_eq!(answer.status(), Code::ResourceExhausted);
    assert_eq!(answer.hostname(), "replica-1");
    let path = "/grpc.health.v1.Health/Check";
    assert_eq!(other.call(path, None).await.status(), Code::Ok);
    assert_eq!(budget.used(), 0);

    open.pop();
    until(|| budget.used_by_rpcs() < full).await;
    let answer = other.call("/test.Probe/Read", None).await;
    assert_eq!(answer.status(), Code::Ok);
    drop(open);
    nothing_in_work(&budget).await;
}

/// When h2 has all of an answer, the RPC is over for everybody else.
#[tokio::test]
async fn a_small_answer_counts_until_it_has_left() {
    let budget = Budget::new(LARGE);
    let server = with(&budget).await;
    let stream = tokio::net::TcpStream::connect(server.address);
    let handshake = h2::client::Builder::new()
        .initial_window_size(1)
        .handshake::<_, Bytes>(stream.await.unwrap());
    let (send, connection) = within(handshake).await.unwrap();
    let mut client = support::Client {
        send,
        connection: tokio::spawn(connection),
    };
    let (response, mut upload) = client.start("/test.Probe/Echo", None).await;
    upload.send_data(message(1000), true).unwrap();
    let mut response = within(response).await.unwrap();
    let first = within(response.body_mut().data()).await.unwrap().unwrap();
    assert_eq!(first.len(), 1);
    // What is behind it on the same connection is answered: it isn't that the server has been slow.
    assert_eq!(
        client.call("/test.Probe/Read", None).await.status(),
        Code::Ok
    );
    assert!(budget.used_by_rpcs() > 32 * 1024);
    let flow = response.body_mut().flow_control();
    flow.release_capacity(1).unwrap();
    assert_eq!(Answer::read(response).await.status(), Code::Ok);
    nothing_in_work(&budget).await;
}

async fn with(budget: &Budget) -> Running {
    Running::of(|builder| builder.budget(budget.clone())).await
}

/// The length of what comes back.
async fn echo(
    mut client: Grpc<tonic::transport::Channel>,
    length: usize,
) -> Result<usize, tonic::Status> {
    client
        .ready()
        .await
        .map_err(|error| tonic::Status::unknown(error.to_string()))?;
    let codec = ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
    let request = Request::new(ask(&"x".repeat(length)));
    let path = "/test.Probe/Echo".parse().unwrap();
    let response = client.unary(request, path, codec).await?;
    Ok(response.into_inner().service.len())
}

/// A message whose text has `length` bytes, as it is on the wire.
fn message(length: usize) -> Bytes {
    let mut text = BytesMut::new();
    prost::Message::encode(&ask(&"x".repeat(length)), &mut text).unwrap();
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(text.len().try_into().unwrap());
    message.put(text);
    message.freeze()
}

/// So much time passes at once; what waits for the kernel meanwhile goes by the machine's clock.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

async fn nothing_in_work(budget: &Budget) {
    until(|| budget.used() == 0 && budget.used_by_rpcs() == 0).await;
}

async fn until(condition: impl Fn() -> bool) {
    within(async {
        while !condition() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// The text of a large message.
const LARGE: usize = 4_000_000;
