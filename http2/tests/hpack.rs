//! HPACK by random input: our two halves against each other, the decoder against a model that follows the RFC word by
//! word, and both against the crate `h2` over an in-memory connection.

#![expect(
    clippy::unwrap_used,
    reason = "what is impossible here should end the test"
)]

use std::collections::VecDeque;

use bytes::Bytes;
use http2::{
    Headers,
    headers::Kind,
    hpack::{Decoder, Encoder},
};
use proptest::{collection::vec, prelude::*};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;
type Fields = Vec<(String, String)>;

fn pairs(headers: &Headers) -> Pairs {
    headers
        .iter()
        .map(|f| (f.name.to_vec(), f.value.to_vec()))
        .collect()
}

fn encode(encoder: &mut Encoder, headers: &Headers) -> Vec<u8> {
    let mut block = Vec::new();
    encoder.encode(headers, &mut block);
    block
}

/// Names and values that repeat, so that tables are hit and overflow, and some that don't.
fn field() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let names = prop::sample::select(vec![
        ":method",
        ":path",
        ":status",
        "te",
        "cookie",
        "authorization",
        "grpc-timeout",
        "content-type",
        "x-a",
        "x-b",
        "x-c",
        "x-d-bin",
        "user-agent",
        "x-request-id",
        "grpc-status",
        "date",
    ]);
    let values = prop::sample::select(vec![
        "",
        "GET",
        "POST",
        "/",
        "/api.Echo/Echo",
        "200",
        "trailers",
        "application/grpc",
        "0",
        "a",
        "b",
        "c",
    ]);
    prop_oneof![
        8 => (names.clone(), values).prop_map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())),
        2 => (names, vec(any::<u8>(), 0..600)).prop_map(|(n, v)| (n.as_bytes().to_vec(), v)),
        1 => (vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..40)),
    ]
}

/// What happens to a connection's encoder.
#[derive(Clone, Debug)]
enum Turn {
    Block(Pairs),
    /// The peer announces another table size.
    Resize(usize),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        9 => vec(field(), 0..12).prop_map(Turn::Block),
        1 => prop::sample::select(vec![0, 40, 100, 300, 1000, 4096, 9000]).prop_map(Turn::Resize),
    ];
    vec(turn, 0..40)
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(turns in turns(), cap in prop::sample::select(vec![0, 200, 1000, 4096, 9000])) {
        let (mut encoder, mut decoder) = (Encoder::new(cap), Decoder::new(9000));
        let mut relayed = (Encoder::new(cap), Decoder::new(9000));
        for turn in turns {
            match turn {
                Turn::Resize(size) => {
                    encoder.set_peer_max(size);
                    relayed.0.set_peer_max(size);
                }
                Turn::Block(fields) => {
                    let headers: Headers = fields.iter().map(|(n, v)| (n, v)).collect();
                    let mut read = Headers::new();
                    let block = encode(&mut encoder, &headers);
                    let decoded = decoder.decode(&block, usize::MAX, &mut read).unwrap();
                    prop_assert_eq!(pairs(&read), fields.clone());
                    prop_assert_eq!(decoded.list_size, headers.list_size());
                    for kind in [Kind::Request, Kind::Response, Kind::Trailers] {
                        prop_assert_eq!(read.validate(kind), headers.validate(kind));
                    }

                    // As a proxy does it: what one connection brought goes out on another.
                    let mut again = Headers::new();
                    let block = encode(&mut relayed.0, &read);
                    relayed.1.decode(&block, usize::MAX, &mut again).unwrap();
                    prop_assert_eq!(pairs(&again), fields);
                }
            }
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(blocks in vec(vec(any::<u8>(), 0..200), 1..8), keep in 0..500usize) {
        let mut decoder = Decoder::new(4096);
        let mut headers = Headers::new();
        for block in blocks {
            headers.clear();
            let result = decoder.decode(&block, keep, &mut headers);
            // The one method and the one content type that may stand beyond.
            prop_assert!(headers.list_size() <= keep + 2 * (128 + 32));
            let sum: usize = headers.iter().map(|f| f.name.len() + f.value.len() + 32).sum();
            prop_assert_eq!(headers.list_size(), sum);
            let _ = headers.validate(Kind::Request);
            match result {
                Ok(decoded) => prop_assert!(decoded.list_size >= sum),
                Err(_) => break,
            }
        }
    }

    #[test]
    fn the_decoder_does_what_the_model_does(
        blocks in vec((vec(0..4200usize, 0..2), vec(op(), 0..12)), 1..12),
        announced in prop::sample::select(vec![4096usize, 5000]),
        keep in prop_oneof![Just(usize::MAX), 0..600usize],
    ) {
        let (mut decoder, mut model) = (Decoder::new(announced), Model::default());
        for (updates, ops) in blocks {
            let mut block = Vec::new();
            let mut expected = Some(Vec::new());
            for size in updates {
                integer(size, 5, 0x20, &mut block);
                if size > announced { expected = None } else { model.resize(size) }
            }
            for op in ops {
                op.write(&mut block);
                expected = expected.and_then(|mut list| { list.push(model.apply(&op)?); Some(list) });
            }
            let mut read = Headers::new();
            let result = decoder.decode(&block, keep, &mut read);
            let Some(list) = expected else {
                prop_assert!(result.is_err());
                return Ok(());
            };
            let size = |list: &[(Vec<u8>, Vec<u8>)]| list.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>();
            prop_assert_eq!(result.unwrap().list_size, size(&list));
            let kept = (0..=list.len()).rev().find(|&n| size(&list[..n]) <= keep).unwrap();
            let mut expected = list[..kept].to_vec();
            for (name, value) in &list[kept..] {
                let forms = [&b":method"[..], b"content-type"].contains(&&name[..]);
                let first = expected.iter().all(|(other, _)| other != name);
                if keep > 0 && forms && first && name.len() + value.len() <= 128 {
                    expected.push((name.clone(), value.clone()));
                }
            }
            prop_assert_eq!(pairs(&read), expected);
        }
    }

    #[test]
    fn edits_leave_what_a_list_would_hold(start in vec(field(), 0..12), edits in vec((0..4u8, field()), 0..40)) {
        let mut headers: Headers = start.iter().map(|(n, v)| (n, v)).collect();
        let mut list = start;
        for (kind, (name, value)) in edits {
            match kind {
                0 => {
                    headers.push(&name, &value);
                    list.push((name, value));
                }
                1 => {
                    headers.set(&name, &value);
                    if let Some(at) = list.iter().position(|(n, _)| *n == name) {
                        list[at].1 = value;
                        let mut nth = 0;
                        list.retain(|(n, _)| { nth += 1; nth - 1 <= at || *n != name });
                    } else {
                        let pseudo = list.iter().take_while(|(n, _)| n.starts_with(b":")).count();
                        let at = if name.starts_with(b":") { pseudo } else { list.len() };
                        list.insert(at, (name, value));
                    }
                }
                2 => {
                    headers.remove(&name);
                    list.retain(|(n, _)| *n != name);
                }
                _ => {
                    headers.retain(|f| f.value != value);
                    list.retain(|(_, v)| *v != value);
                }
            }
            prop_assert_eq!(pairs(&headers), list.clone());
            prop_assert_eq!(headers.list_size(), list.iter().map(|(n, v)| n.len() + v.len() + 32).sum::<usize>());
            for (name, _) in &list {
                let values: Vec<_> = list.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_slice()).collect();
                prop_assert_eq!(headers.get(name), values.first().copied());
                prop_assert_eq!(headers.get_all(name).collect::<Vec<_>>(), values);
            }
        }
    }
}

/// One field's representation (RFC 7541 §6); strings are never Huffman-coded here.
#[derive(Clone, Debug)]
enum Op {
    Indexed(usize),
    Literal {
        form: Form,
        name: Result<usize, Vec<u8>>,
        value: Vec<u8>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Incremental,
    Without,
    Never,
}

fn op() -> impl Strategy<Value = Op> {
    let index = || prop_oneof![prop::sample::select(vec![2usize, 8, 15, 61]), 62..75usize];
    let form = prop::sample::select(vec![
        Form::Incremental,
        Form::Incremental,
        Form::Without,
        Form::Never,
    ]);
    let text = || prop_oneof![4 => vec(any::<u8>(), 0..20), 1 => vec(any::<u8>(), 0..1500)];
    let name = prop_oneof![
        index().prop_map(Ok),
        text().prop_map(Err),
        text().prop_map(Err)
    ];
    prop_oneof![
        index().prop_map(Op::Indexed),
        (form, name, text()).prop_map(|(form, name, value)| Op::Literal { form, name, value }),
    ]
}

impl Op {
    fn write(&self, out: &mut Vec<u8>) {
        let string = |text: &[u8], out: &mut Vec<u8>| {
            integer(text.len(), 7, 0, out);
            out.extend_from_slice(text);
        };
        match self {
            Self::Indexed(index) => integer(*index, 7, 0x80, out),
            Self::Literal { form, name, value } => {
                let (prefix, flags) = match form {
                    Form::Incremental => (6, 0x40),
                    Form::Without => (4, 0),
                    Form::Never => (4, 0x10),
                };
                match name {
                    Ok(index) => integer(*index, prefix, flags, out),
                    Err(name) => {
                        out.push(flags);
                        string(name, out);
                    }
                }
                string(value, out);
            }
        }
    }
}

/// A dynamic table without any art.
struct Model {
    table: VecDeque<(Vec<u8>, Vec<u8>)>,
    max: usize,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            table: VecDeque::new(),
            max: 4096,
        }
    }
}

impl Model {
    fn resize(&mut self, max: usize) {
        self.max = max;
        self.evict(max);
    }

    fn evict(&mut self, max: usize) {
        while self
            .table
            .iter()
            .map(|(n, v)| n.len() + v.len() + 32)
            .sum::<usize>()
            > max
        {
            self.table.pop_back();
        }
    }

    fn entry(&self, index: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let (name, value) = match index {
            2 => (":method", "GET"),
            8 => (":status", "200"),
            15 => ("accept-charset", ""),
            61 => ("www-authenticate", ""),
            index => return self.table.get(index - 62).cloned(),
        };
        Some((name.into(), value.into()))
    }

    fn apply(&mut self, op: &Op) -> Option<(Vec<u8>, Vec<u8>)> {
        match op {
            Op::Indexed(index) => self.entry(*index),
            Op::Literal { form, name, value } => {
                let name = match name {
                    Ok(index) => self.entry(*index)?.0,
                    Err(name) => name.clone(),
                };
                if *form == Form::Incremental {
                    let size = name.len() + value.len() + 32;
                    self.evict(self.max.saturating_sub(size));
                    if size <= self.max {
                        self.table.push_front((name.clone(), value.clone()));
                    }
                }
                Some((name, value.clone()))
            }
        }
    }
}

/// RFC 7541 §5.1.
fn integer(mut value: usize, prefix: u32, flags: u8, out: &mut Vec<u8>) {
    let most = (1 << prefix) - 1;
    if value < most {
        return out.push(flags | value as u8);
    }
    out.push(flags | most as u8);
    value -= most;
    while value >= 128 {
        out.push((value % 128 + 128) as u8);
        value /= 128;
    }
    out.push(value as u8);
}

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
