//! The six negative HTTP/2 behaviours of gRPC's interoperability tests (github.com/grpc/grpc:
//! `doc/negative-http2-interop-test-descriptions.md`): of a backend, with what the document asks of the client before
//! it, which here is the proxy; and of a client, where that has a meaning.

use std::sync::{Arc, Mutex, PoisonError};

use e2e::{
    backend::Backend,
    client::{Http2, Reply, grpc_request},
    frames::{self, Frame, RawBackend, Wire, code, flag, kind},
    proxy::Proxy,
    scripted::framed,
};
use tokio::{net::TcpStream, task::JoinSet};

/// What a backend has seen.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Event>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A request is whole: on which connection, and how many others were open there.
    Request { connection: usize, others: usize },
    /// A PING was acknowledged.
    Acknowledged([u8; 8]),
}

impl Seen {
    fn add(&self, event: Event) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(event);
    }

    fn all(&self) -> Vec<Event> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn connections(&self) -> Vec<usize> {
        let connection = |event| match event {
            Event::Request { connection, .. } => Some(connection),
            Event::Acknowledged(_) => None,
        };
        self.all().into_iter().filter_map(connection).collect()
    }
}

/// A backend that answers each whole request with `answer(stream)`.
async fn backend(
    answer: impl Fn(u32) -> Vec<Frame> + Clone + Send + Sync + 'static,
) -> (RawBackend, Seen) {
    let seen = Seen::default();
    let noted = seen.clone();
    let backend = RawBackend::start(move |stream, connection| {
        serve(stream, connection, noted.clone(), answer.clone())
    });
    (backend.await, seen)
}

async fn serve(
    stream: TcpStream,
    connection: usize,
    seen: Seen,
    answer: impl Fn(u32) -> Vec<Frame>,
) {
    let Ok(mut wire) = Wire::server(stream, &[(INITIAL_WINDOW_SIZE, 1 << 20)]).await else {
        return;
    };
    // The proxy's end is noticed by reading.
    let _ = wire.send(&[Frame::credit(0, 1 << 30)]).await;
    let mut open = 0;
    let wanted = |frame: &Frame| matches!(frame.kind, kind::HEADERS | kind::DATA | kind::PING);
    while let Some(frame) = wire.until("a request", wanted).await {
        match frame.kind {
            kind::PING if frame.flags & flag::ACK != 0 => {
                if let Ok(payload) = frame.payload.try_into() {
                    seen.add(Event::Acknowledged(payload));
                }
            }
            kind::HEADERS if !frame.ends_stream() => open += 1,
            _ if frame.ends_stream() => {
                open -= 1;
                let others = open;
                seen.add(Event::Request { connection, others });
                // As above.
                let _ = wire.send(&answer(frame.stream)).await;
            }
            _ => {}
        }
    }
}

fn headers(stream: u32) -> Frame {
    let headers = [(":status", "200"), ("content-type", "application/grpc")];
    Frame::headers(stream, &headers, false)
}

/// A message in frames, as far as `part` of it.
fn message(stream: u32, part: usize) -> Vec<Frame> {
    let bytes = framed(&vec![b'r'; LARGE]);
    let frames = bytes[..part].chunks(16_384);
    frames
        .map(|chunk| Frame::data(stream, chunk, false))
        .collect()
}

fn good(stream: u32) -> Vec<Frame> {
    let mut all = vec![headers(stream)];
    all.extend(message(stream, LARGE + 5));
    all.push(Frame::headers(stream, &[("grpc-status", "0")], true));
    all
}

async fn call(client: &Http2) -> Result<Reply, h2::Error> {
    let request = framed(&vec![b'q'; LARGE]);
    client
        .call(grpc_request("/e2e.Test/Unary", &[]), &request)
        .await
}

async fn succeeds(client: &Http2) {
    let reply = call(client).await.unwrap();
    assert_eq!(
        (reply.grpc_status(), reply.body.len()),
        (Some(0), LARGE + 5)
    );
}

/// The RPC fails as the table of answers says, and neither connection with it.
async fn fails(answer: impl Fn(u32) -> Vec<Frame> + Clone + Send + Sync + 'static) {
    let (backend, seen) = backend(answer).await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    for _ in 0..3 {
        let reply = call(&client).await.unwrap();
        assert_eq!(reply.grpc_status(), Some(14));
    }
    assert!(!client.ended());
    assert_eq!(seen.connections(), [0, 0, 0]);
}

#[tokio::test]
async fn goaway() {
    let (backend, seen) = backend(|stream| {
        let mut all = vec![Frame::goaway(stream, code::NO_ERROR)];
        all.extend(good(stream));
        all
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    succeeds(&client).await;
    succeeds(&client).await;
    assert_eq!(seen.connections(), [0, 1]);
}

#[tokio::test]
async fn rst_after_header() {
    fails(|stream| vec![headers(stream), Frame::reset(stream, code::NO_ERROR)]).await;
}

#[tokio::test]
async fn rst_during_data() {
    fails(|stream| {
        let mut all = vec![headers(stream)];
        all.extend(message(stream, LARGE / 2));
        all.push(Frame::reset(stream, code::NO_ERROR));
        all
    })
    .await;
}

#[tokio::test]
async fn rst_after_data() {
    fails(|stream| {
        let mut all = vec![headers(stream)];
        all.extend(message(stream, LARGE + 5));
        all.push(Frame::reset(stream, code::NO_ERROR));
        all
    })
    .await;
}

#[tokio::test]
async fn ping() {
    let (backend, seen) = backend(|stream| {
        let ping = |number: u8| Frame::new(kind::PING, 0, 0, [number; 8]);
        let mut all = vec![ping(1)];
        for (number, frame) in good(stream).into_iter().enumerate() {
            all.extend([frame, ping(number as u8 + 2)]);
        }
        all
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    succeeds(&client).await;
    let pings = good(1).len() as u8 + 1;
    let expected: Vec<_> = (1..=pings)
        .map(|number| Event::Acknowledged([number; 8]))
        .collect();
    e2e::wait::eventually("every PING's answer", || async {
        (seen.all()[1..] == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn max_streams() {
    let (backend, seen) = backend(|stream| {
        let mut all = good(stream);
        all.insert(0, Frame::settings(&[(MAX_CONCURRENT_STREAMS, 1)]));
        all
    })
    .await;
    let proxy = Proxy::to([&backend]).start().await;
    let client = proxy.http2().await;
    succeeds(&client).await;
    let mut all = JoinSet::new();
    for _ in 0..10 {
        let client = client.clone();
        all.spawn(async move { succeeds(&client).await });
    }
    all.join_all().await;
    // The first connection has said so; others do with their first answer.
    for event in seen.all() {
        if let Event::Request {
            connection: 0,
            others,
        } = event
        {
            assert_eq!(others, 0, "{:?}", seen.all());
        }
    }
    assert_eq!(seen.connections().len(), 11);
}

#[tokio::test]
async fn goaway_of_a_client() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut wire = proxy.wire(&[]).await;
    let mut asked = frames::grpc_request("/e2e.Test/Unary");
    asked.extend([("x-test-gate", "open"), ("x-test-id", "running")]);
    wire.send(&[
        Frame::headers(1, &asked, false),
        Frame::data(1, &framed(b""), true),
    ])
    .await
    .unwrap();
    backend.journal.begun("running").await;
    wire.send(&[Frame::goaway(0, code::NO_ERROR)])
        .await
        .unwrap();
    backend.open("open");
    let end = wire.until("the end", Frame::ends_stream).await.unwrap();
    assert_eq!((end.stream, end.kind), (1, kind::HEADERS));
}

/// RST_STREAM with NO_ERROR is a cancel, whatever was sent before it, and its connection lives.
#[tokio::test]
async fn rst_of_a_client() {
    let backend = Backend::start().await;
    let proxy = Proxy::to([&backend]).start().await;
    let mut wire = proxy.wire(&[]).await;
    let whole = framed(&[b'u'; 1000]);
    for (stream, id, data) in [
        (1, "after-header", None),
        (3, "during-data", Some(Frame::data(3, &whole[..500], false))),
        (5, "after-data", Some(Frame::data(5, &whole, true))),
    ] {
        let mut asked = frames::grpc_request("/e2e.Test/Upload");
        asked.extend([("x-test-gate", "never"), ("x-test-id", id)]);
        let mut all = vec![Frame::headers(stream, &asked, false)];
        all.extend(data);
        wire.send(&all).await.unwrap();
        backend.journal.begun(id).await;
        wire.send(&[Frame::reset(stream, code::NO_ERROR)])
            .await
            .unwrap();
        backend.journal.cancelled(id).await;
    }
    wire.send(&[Frame::new(kind::PING, 0, 0, *b"are you?")])
        .await
        .unwrap();
    let answer = |frame: &Frame| frame.kind == kind::PING && frame.flags & flag::ACK != 0;
    let answer = wire.until("a PING's answer", answer).await.unwrap();
    assert_eq!(answer.payload, b"are you?");
}

/// Of a request and of its reply: larger than a frame, and than half of what a window may be.
const LARGE: usize = 100_000;

/// RFC 9113 section 6.5.2.
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;
