//! A backend for the tests: a real socket, and per connection and request whatever the test wants to happen.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use http2::{Config, Connection, Event, Headers, Role};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// What happens to one request.
#[derive(Clone, Copy, Debug)]
pub(in crate::control_plane) enum Reply {
    /// Status 0 and this serving status: 1 is SERVING, 2 NOT_SERVING.
    Health(u8),
    /// A trailers-only response with this grpc-status.
    Status(&'static str),
    /// The beginning of a message of so many bytes, and nothing more.
    Begin(u32),
    /// A response without gRPC in it.
    PlainHttp,
    /// Nothing, for ever.
    Silence,
    /// RST_STREAM with this error code.
    Reset(u8),
    /// GOAWAY that says that the request wasn't processed, with this error code; then the end.
    GoAway(u8),
    /// GOAWAY that covers the request, with this error code; then the end, without an answer.
    Leave(u8),
    /// GOAWAY with NO_ERROR that covers the request, and RST_STREAM with this error code.
    LeaveAndReset(u8),
    /// GOAWAY with NO_ERROR that covers the request, and this serving status.
    LeaveAnswering(u8),
    /// This serving status, or no answer, then frames of a type that nobody knows, [`FLOOD`] bytes or until the
    /// connection ends.
    Flood(Option<u8>),
    /// The connection's end.
    Close,
    /// Bytes that aren't HTTP/2, then the connection's end.
    Garbage,
}

/// The running backend; it ends with the test's runtime.
#[derive(Debug)]
pub(in crate::control_plane) struct Backend {
    pub(in crate::control_plane) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Request>>>,
    flooded: Arc<watch::Sender<Option<usize>>>,
}

/// A request as the backend saw it.
#[derive(Clone, Debug)]
pub(in crate::control_plane) struct Request {
    pub(in crate::control_plane) method: String,
    pub(in crate::control_plane) path: String,
    pub(in crate::control_plane) user_agent: String,
    pub(in crate::control_plane) grpc_timeout: String,
    pub(in crate::control_plane) body: Vec<u8>,
}

impl Backend {
    /// Answers request `n` (from 0, over all connections) as `reply(n)` says.
    pub(in crate::control_plane) async fn start(
        reply: impl Fn(usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let backend = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            requests: Arc::default(),
            flooded: Arc::default(),
        };
        let (connections, requests) = (backend.connections.clone(), backend.requests.clone());
        let flooded = backend.flooded.clone();
        let reply = Arc::new(reply);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let (requests, flooded) = (requests.clone(), flooded.clone());
                tokio::spawn(serve(socket, requests, flooded, reply.clone()));
            }
        });
        backend
    }

    /// Connections accepted so far.
    pub(in crate::control_plane) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Requests so far.
    pub(in crate::control_plane) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits for the end of a flood: how many bytes of it the sockets took.
    pub(in crate::control_plane) async fn flooded(&self) -> usize {
        let mut flooded = self.flooded.subscribe();
        let ended = flooded.wait_for(Option::is_some).await.unwrap();
        ended.unwrap_or_default()
    }
}

async fn serve(
    mut socket: TcpStream,
    requests: Arc<Mutex<Vec<Request>>>,
    flooded: Arc<watch::Sender<Option<usize>>>,
    reply: Arc<impl Fn(usize) -> Reply>,
) {
    let mut connection = Connection::new(Role::Server, Config::default(), Instant::now());
    let mut buffer = vec![0; 4096];
    let mut open = Vec::new();
    let mut floods = false;
    loop {
        connection.flush(Instant::now());
        if socket.write_all(connection.output()).await.is_err() {
            return;
        }
        connection.consume(connection.output().len());
        if floods {
            flooded.send_replace(Some(flood(&mut socket).await));
            return;
        }
        let Ok(read @ 1..) = socket.read(&mut buffer).await else {
            return;
        };
        let mut input = &buffer[..read];
        let mut whole = Vec::new();
        while let Some(event) = connection.receive(&mut input, Instant::now()).unwrap() {
            match event {
                Event::Headers {
                    stream, headers, ..
                } => {
                    let text = |name: &[u8]| {
                        let value = headers.get(name).unwrap_or_default();
                        String::from_utf8(value.to_vec()).unwrap()
                    };
                    let request = Request {
                        method: text(b":method"),
                        path: text(b":path"),
                        user_agent: text(b"user-agent"),
                        grpc_timeout: text(b"grpc-timeout"),
                        body: Vec::new(),
                    };
                    open.push((stream, request));
                }
                Event::Data {
                    stream,
                    bytes,
                    end_stream,
                    ..
                } => {
                    let at = open.iter().position(|(id, _)| *id == stream).unwrap();
                    open[at].1.body.extend_from_slice(bytes);
                    if end_stream {
                        whole.push(open.remove(at));
                    }
                }
                _ => {}
            }
        }
        for (stream, request) in whole {
            let number = {
                let mut requests = requests.lock().unwrap();
                requests.push(request);
                requests.len() - 1
            };
            let reply = reply(number);
            if let Reply::LeaveAndReset(_) | Reply::LeaveAnswering(_) = reply {
                let _ = socket.write_all(&goaway(stream, 0)).await;
            }
            floods = matches!(reply, Reply::Flood(_));
            let frame = match reply {
                Reply::Health(status)
                | Reply::LeaveAnswering(status)
                | Reply::Flood(Some(status)) => {
                    connection.send_headers(stream, &head("application/grpc", &[]), false);
                    let message = [0, 0, 0, 0, 2, 8, status];
                    connection.send_data(stream, &message, false, Instant::now());
                    let mut trailers = Headers::new();
                    trailers.push(b"grpc-status", b"0");
                    connection.send_trailers(stream, &trailers);
                    continue;
                }
                Reply::Status(status) => {
                    let fields = [("grpc-status", status), ("grpc-message", "as scripted")];
                    connection.send_headers(stream, &head("application/grpc", &fields), true);
                    continue;
                }
                Reply::Begin(length) => {
                    connection.send_headers(stream, &head("application/grpc", &[]), false);
                    let [a, b, c, d] = length.to_be_bytes();
                    connection.send_data(stream, &[0, a, b, c, d], false, Instant::now());
                    continue;
                }
                Reply::PlainHttp => {
                    connection.send_headers(stream, &head("text/html", &[]), true);
                    continue;
                }
                Reply::Silence | Reply::Flood(None) => continue,
                Reply::Reset(code) | Reply::LeaveAndReset(code) => {
                    let mut frame = vec![0, 0, 4, 3, 0];
                    frame.extend(stream.to_be_bytes());
                    frame.extend([0, 0, 0, code]);
                    let _ = socket.write_all(&frame).await;
                    continue;
                }
                Reply::GoAway(code) => goaway(0, code),
                Reply::Leave(code) => goaway(stream, code),
                Reply::Close => Vec::new(),
                Reply::Garbage => b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            };
            let _ = socket.write_all(&frame).await;
            return;
        }
    }
}

/// Returns the bytes of it that the socket took.
async fn flood(socket: &mut TcpStream) -> usize {
    let frames = [0, 0, 0, 0xfa, 0, 0, 0, 0, 0].repeat(1024);
    let mut taken = 0;
    while taken < FLOOD && socket.write_all(&frames).await.is_ok() {
        taken += frames.len();
    }
    taken
}

/// More than the kernel keeps for two sockets.
pub(in crate::control_plane) const FLOOD: usize = 64 << 20;

fn goaway(last: u32, code: u8) -> Vec<u8> {
    let mut frame = vec![0, 0, 8, 7, 0, 0, 0, 0, 0];
    frame.extend(last.to_be_bytes());
    frame.extend([0, 0, 0, code]);
    frame
}

fn head(content_type: &str, fields: &[(&str, &str)]) -> Headers {
    let mut head = Headers::new();
    head.push(b":status", b"200");
    head.push(b"content-type", content_type.as_bytes());
    for (name, value) in fields {
        head.push(name.as_bytes(), value.as_bytes());
    }
    head
}
