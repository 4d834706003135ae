//! Our halves against those of the crate `h2`, which only connections show.

use bytes::Bytes;
use http2::{
    Headers,
    headers::Kind,
    hpack::{Decoder, Encoder},
};
use proptest::{collection::vec, prelude::*};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use super::{Pairs, encode};

type Fields = Vec<(String, String)>;

/// A message's regular fields, right for the crate `http`.
fn regular() -> impl Strategy<Value = Fields> {
    let names = prop::sample::select(vec![
        "te",
        "cookie",
        "authorization",
        "grpc-timeout",
        "content-type",
        "x-a",
        "x-b",
        "x-c-bin",
        "user-agent",
        "x-request-id",
        "grpc-encoding",
        "accept-encoding",
        "cache-control",
        "etag",
    ]);
    let value = prop_oneof![
        4 => prop::sample::select(vec!["trailers", "application/grpc", "a", "b", "gzip, deflate", ""]).prop_map(str::to_owned),
        2 => "[!-~]{1,40}",
        1 => "[!-~]{300,900}",
    ];
    // The crate refuses any other `te`.
    let pair = (names, value)
        .prop_map(|(n, v)| (n.to_owned(), if n == "te" { "trailers".into() } else { v }));
    vec(pair, 0..10)
}

/// The same list in the order in which a `HeaderMap` gives it out: by name.
fn by_name<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Pairs {
    let mut list: Pairs = fields.map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

fn of_map(map: &http::HeaderMap) -> Pairs {
    by_name(
        map.iter()
            .map(|(n, v)| (n.as_str().as_bytes(), v.as_bytes())),
    )
}

fn of_headers(headers: &Headers) -> Pairs {
    by_name(
        headers
            .iter()
            .filter(|f| !f.name.starts_with(b":"))
            .map(|f| (f.name, f.value)),
    )
}

fn to_map(fields: &[(String, String)]) -> http::HeaderMap {
    let mut map = http::HeaderMap::new();
    for (name, value) in fields {
        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
        let mut value = http::HeaderValue::from_str(value).unwrap();
        value.set_sensitive(name == "authorization");
        map.append(name, value);
    }
    map
}

const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

async fn write_frame(io: &mut DuplexStream, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    io.write_all(&frame).await.unwrap();
}

async fn read_frame(io: &mut DuplexStream) -> (u8, u8, u32, Vec<u8>) {
    let mut head = [0; 9];
    io.read_exact(&mut head).await.unwrap();
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    io.read_exact(&mut payload).await.unwrap();
    (
        head[3],
        head[4],
        u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
        payload,
    )
}

/// Waits for a header block, unpadded and without priority, as `h2` writes it; acknowledges SETTINGS on the way.
async fn read_block(io: &mut DuplexStream) -> (u32, Vec<u8>) {
    let mut block = Vec::new();
    loop {
        let (kind, flags, stream, payload) = read_frame(io).await;
        match kind {
            SETTINGS if flags & 1 == 0 => write_frame(io, SETTINGS, 1, 0, &[]).await,
            HEADERS | CONTINUATION => {
                assert_eq!(flags & 0x28, 0);
                block.extend(payload);
                if flags & END_HEADERS != 0 {
                    return (stream, block);
                }
            }
            _ => {}
        }
    }
}

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(future)
}

/// Its encoder against our decoder with requests, and ours against its decoder with responses; `ours` and `theirs` are
/// the table sizes that either side announces.
async fn against_h2_client(messages: Vec<(Fields, Fields)>, ours: u32, theirs: u32) {
    let (near, mut io) = tokio::io::duplex(1 << 20);
    let mut builder = h2::client::Builder::new();
    let (client, connection) = builder
        .header_table_size(theirs)
        .handshake::<_, Bytes>(near)
        .await
        .unwrap();
    let connection = tokio::spawn(connection);
    let mut settings = vec![0, 1];
    settings.extend(ours.to_be_bytes());
    write_frame(&mut io, SETTINGS, 0, 0, &settings).await;
    let mut preface = [0; 24];
    io.read_exact(&mut preface).await.unwrap();

    let (mut decoder, mut encoder) = (Decoder::new(ours as usize), Encoder::new(4096));
    encoder.set_peer_max(theirs as usize);
    for (request, response) in messages {
        let mut head = http::Request::post("https://grpc.example.com/api.Echo/Echo")
            .body(())
            .unwrap();
        *head.headers_mut() = to_map(&request);
        let expected = of_map(head.headers());
        let (answer, _) = client
            .clone()
            .ready()
            .await
            .unwrap()
            .send_request(head, true)
            .unwrap();

        let (stream, block) = read_block(&mut io).await;
        let mut read = Headers::new();
        decoder.decode(&block, usize::MAX, &mut read).unwrap();
        assert_eq!(of_headers(&read), expected);
        assert_eq!(read.validate(Kind::Request), Ok(()));
        assert_eq!(read.method(), Some(&b"POST"[..]));
        assert_eq!(read.authority(), Some(&b"grpc.example.com"[..]));
        assert_eq!(read.path(), Some(&b"/api.Echo/Echo"[..]));

        let mut headers = Headers::from_iter([(":status", "200")]);
        headers.extend(response.iter().map(|(n, v)| (n, v)));
        let block = encode(&mut encoder, &headers);
        write_frame(&mut io, HEADERS, END_STREAM | END_HEADERS, stream, &block).await;
        let answer = answer.await.unwrap();
        assert_eq!(of_map(answer.headers()), of_headers(&headers));
    }
    connection.abort();
}

/// Our encoder against the decoder of its server, with requests, and its encoder against our decoder, with responses;
/// `theirs` is the table size that it announces.
async fn against_h2_server(messages: Vec<(Fields, Fields)>, theirs: u32) {
    let (near, mut io) = tokio::io::duplex(1 << 20);
    io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    write_frame(&mut io, SETTINGS, 0, 0, &[]).await;
    let mut builder = h2::server::Builder::new();
    let mut server = builder
        .header_table_size(theirs)
        .handshake::<_, Bytes>(near)
        .await
        .unwrap();
    let (mut decoder, mut encoder) = (Decoder::new(4096), Encoder::new(4096));
    encoder.set_peer_max(theirs as usize);
    for (number, (request, response)) in messages.into_iter().enumerate() {
        let stream = number as u32 * 2 + 1;
        let mut headers = Headers::from_iter([
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/api.Echo/Echo"),
            (":authority", "a:1"),
        ]);
        headers.extend(request.iter().map(|(n, v)| (n, v)));
        let block = encode(&mut encoder, &headers);
        write_frame(&mut io, HEADERS, END_STREAM | END_HEADERS, stream, &block).await;

        let (accepted, mut respond) = server.accept().await.unwrap().unwrap();
        assert_eq!(of_map(accepted.headers()), of_headers(&headers));
        assert_eq!(accepted.uri(), "http://a:1/api.Echo/Echo");
        let mut answer = http::Response::new(());
        *answer.headers_mut() = to_map(&response);
        let expected = of_map(answer.headers());
        respond.send_response(answer, true).unwrap();
        let (read_stream, block) = tokio::select! {
            block = read_block(&mut io) => block,
            _ = server.accept() => unreachable!("no second request"),
        };
        assert_eq!(read_stream, stream);
        let mut read = Headers::new();
        decoder.decode(&block, usize::MAX, &mut read).unwrap();
        assert_eq!(read.status(), Some(200));
        assert_eq!(of_headers(&read), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn h2_as_the_client(
        messages in vec((regular(), regular()), 1..30),
        ours in prop::sample::select(vec![4096, 8192]),
        theirs in prop::sample::select(vec![0, 300, 4096, 8192]),
    ) {
        run(against_h2_client(messages, ours, theirs));
    }

    #[test]
    fn h2_as_the_server(
        messages in vec((regular(), regular()), 1..30),
        theirs in prop::sample::select(vec![0, 300, 4096, 8192]),
    ) {
        run(against_h2_server(messages, theirs));
    }
}
