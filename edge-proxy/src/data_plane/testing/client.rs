//! A client on HTTP/2, without TLS, which keeps to the rules.

use std::{collections::VecDeque, sync::Arc};

use http2::{Config, Connection, Event, Headers, Reason, Role};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};

use super::{Bench, grpc, headers, now, policy};
use crate::{
    data_plane::{downstream, tls::Transport},
    snapshot::ListenerPolicy,
};

/// A client on HTTP/2, without TLS.
pub(crate) struct Client {
    socket: TcpStream,
    pub(crate) engine: Connection,
    got: VecDeque<Got>,
    /// The last streams that GOAWAYs named.
    pub(crate) goaways: Vec<u32>,
}

/// What a [`Client`] got.
#[derive(Debug)]
pub(crate) enum Got {
    Headers(u32, Headers, bool),
    Data(u32, Vec<u8>, bool),
    Trailers(u32, Headers),
    Reset(u32, Reason),
    Closed,
}

impl Client {
    /// A connection to `bench`.
    pub(crate) async fn connect(bench: &Bench) -> Self {
        Self::connect_with(bench, policy()).await
    }

    pub(crate) async fn connect_with(bench: &Bench, policy: ListenerPolicy) -> Self {
        Self::over(http2(bench, policy).await, 65_535).await
    }

    /// A client that takes no byte of any answer's body.
    pub(crate) async fn connect_shut(bench: &Bench) -> Self {
        Self::over(http2(bench, policy()).await, 0).await
    }

    /// [`connect_shut`](Self::connect_shut), at another of this machine's addresses.
    pub(crate) async fn connect_shut_from(bench: &Bench, source: [u8; 4]) -> Self {
        Self::over(http2_from(source, bench, policy()).await, 0).await
    }

    /// A client at another of this machine's addresses.
    pub(crate) async fn connect_from(bench: &Bench, source: [u8; 4]) -> Self {
        Self::over(http2_from(source, bench, policy()).await, 65_535).await
    }

    async fn over(socket: TcpStream, stream_window: u32) -> Self {
        let config = Config {
            stream_window,
            max_header_list: 128 * 1024,
            max_header_list_hard: 128 * 1024,
            max_header_block: 128 * 1024,
            max_header_frames: 100,
            ..Config::default()
        };
        let mut client = Self {
            socket,
            engine: Connection::new(Role::Client, config, now()),
            got: VecDeque::new(),
            goaways: Vec::new(),
        };
        while !client.engine.can_open() {
            client.turn().await;
        }
        client
    }

    /// A gRPC request with this body, ended or not.
    pub(crate) fn call(&mut self, path: &str, body: &[u8], end: bool) -> u32 {
        self.begin(grpc(path), body, end)
    }

    /// Any request with a body, ended or not.
    pub(crate) fn request(&mut self, fields: &[(&str, &str)], body: &[u8], end: bool) -> u32 {
        self.begin(headers(fields), body, end)
    }

    fn begin(&mut self, head: Headers, body: &[u8], end: bool) -> u32 {
        let stream = self.engine.open(head, false, 0).unwrap();
        self.engine.send_data(stream, body, end, now());
        stream
    }

    /// The next of what came; what was sent leaves first. Credit for DATA is given.
    pub(crate) async fn next(&mut self) -> Got {
        loop {
            self.flush().await;
            if let Some(got) = self.got.pop_front() {
                if let Got::Data(stream, bytes, _) = &got {
                    self.engine.credit(*stream, bytes.len());
                }
                return got;
            }
            if !self.turn().await {
                return Got::Closed;
            }
        }
    }

    /// Reads on until `stream` has ended: its head, its body, and its trailers (or its head again, if it has no others).
    pub(crate) async fn answer(&mut self, stream: u32) -> (Headers, Vec<u8>, Headers) {
        let (mut head, mut body) = (Headers::new(), Vec::new());
        loop {
            match self.next().await {
                Got::Headers(at, headers, end) if at == stream => {
                    head = headers;
                    if end {
                        return (head.clone(), body, head);
                    }
                }
                Got::Data(at, bytes, end) if at == stream => {
                    body.extend(bytes);
                    if end {
                        return (head.clone(), body, head);
                    }
                }
                Got::Trailers(at, trailers) if at == stream => return (head, body, trailers),
                Got::Reset(at, reason) if at == stream => panic!("reset: {reason:?}"),
                Got::Closed => panic!("closed"),
                _ => {}
            }
        }
    }

    /// The `grpc-status` that `stream` ends with.
    pub(crate) async fn status(&mut self, stream: u32) -> String {
        let (_, _, trailers) = self.answer(stream).await;
        String::from_utf8_lossy(trailers.get(b"grpc-status").unwrap_or(b"none")).into_owned()
    }

    pub(crate) async fn flush(&mut self) {
        self.engine.flush(now());
        let output = self.engine.output().to_vec();
        // A server that has closed is told by the next read.
        let _ = self.socket.write_all(&output).await;
        self.engine.consume(output.len());
    }

    /// Writes, then reads once; `false`: closed.
    async fn turn(&mut self) -> bool {
        self.flush().await;
        let mut buffer = vec![0; 64 * 1024];
        let n = match self.socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return false,
            Ok(n) => n,
        };
        let mut input = &buffer[..n];
        while let Ok(Some(event)) = self.engine.receive(&mut input, now()) {
            self.got.extend(match event {
                Event::Headers {
                    stream,
                    headers,
                    end_stream,
                    ..
                } => Some(Got::Headers(stream, headers, end_stream)),
                Event::Data {
                    stream,
                    bytes,
                    end_stream,
                    ..
                } => Some(Got::Data(stream, bytes.to_vec(), end_stream)),
                Event::Trailers {
                    stream, headers, ..
                } => Some(Got::Trailers(stream, headers)),
                Event::Reset { stream, reason, .. } => Some(Got::Reset(stream, reason)),
                Event::GoAway { last_stream, .. } => {
                    self.goaways.push(last_stream);
                    None
                }
                _ => None,
            });
        }
        true
    }
}

/// The client's end of a connection on which HTTP/2 was chosen, without TLS.
pub(super) async fn http2(bench: &Bench, policy: ListenerPolicy) -> TcpStream {
    http2_from([127, 0, 0, 1], bench, policy).await
}

async fn http2_from(source: [u8; 4], bench: &Bench, policy: ListenerPolicy) -> TcpStream {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    let connected = socket.connect(listener.local_addr().unwrap()).await;
    let socket = connected.unwrap();
    let (accepted, peer) = listener.accept().await.unwrap();
    let worker = bench.worker.clone();
    tokio::task::spawn_local(async move {
        let now = worker.tick();
        let transport = Transport::Plain(accepted);
        let policy = Arc::new(policy);
        downstream::http2(worker, transport, Vec::new(), peer, policy, now, ()).await;
    });
    socket
}
