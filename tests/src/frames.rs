//! Peers that misbehave frame by frame: HTTP/2 written by hand, in either role, on any byte stream.
//!
//! Header blocks are written as literals without indexing (RFC 7541 section 6.2.2) and never decoded: who wants to
//! read headers uses the crate `h2`. What matters here is which frames come, in which order, on which stream.

use std::{future::Future, io, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};

use crate::{backend::own_thread, loopback, wait::within};

/// One frame (RFC 9113 section 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// `kind::*`.
    pub kind: u8,
    /// `flag::*`.
    pub flags: u8,
    /// 0: the connection's.
    pub stream: u32,
    /// What follows the nine bytes.
    pub payload: Vec<u8>,
}

/// Frame types.
#[allow(missing_docs, reason = "named as in RFC 9113 section 6")]
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags.
#[allow(missing_docs, reason = "named as in RFC 9113 section 6")]
pub mod flag {
    pub const ACK: u8 = 1;
    pub const END_STREAM: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
}

impl Frame {
    /// Any frame.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            kind,
            flags,
            stream,
            payload: payload.into(),
        }
    }

    /// A whole header block.
    pub fn headers(stream: u32, headers: &[(&str, &str)], end: bool) -> Self {
        let flags = flag::END_HEADERS | if end { flag::END_STREAM } else { 0 };
        Self::new(kind::HEADERS, flags, stream, block(headers))
    }

    /// DATA.
    pub fn data(stream: u32, bytes: &[u8], end: bool) -> Self {
        Self::new(kind::DATA, u8::from(end), stream, bytes)
    }

    /// RST_STREAM.
    pub fn reset(stream: u32, code: u32) -> Self {
        Self::new(kind::RST_STREAM, 0, stream, code.to_be_bytes())
    }

    /// GOAWAY.
    pub fn goaway(last: u32, code: u32) -> Self {
        let mut payload = last.to_be_bytes().to_vec();
        payload.extend(code.to_be_bytes());
        Self::new(kind::GOAWAY, 0, 0, payload)
    }

    /// WINDOW_UPDATE.
    pub fn credit(stream: u32, bytes: u32) -> Self {
        Self::new(kind::WINDOW_UPDATE, 0, stream, bytes.to_be_bytes())
    }

    /// SETTINGS.
    pub fn settings(settings: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        Self::new(kind::SETTINGS, 0, 0, payload)
    }

    /// Does it end its stream's direction?
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & flag::END_STREAM != 0
    }

    /// The four bytes at `at` of the payload: an error code, a stream id, an increment.
    pub fn number(&self, at: usize) -> Option<u32> {
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    /// As it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let [_, length @ ..] = (self.payload.len() as u32).to_be_bytes();
        let mut bytes = length.to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// A connection of frames.
pub struct Wire<S> {
    stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// The client's side: writes the preface and SETTINGS.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn client(mut stream: S, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(Frame::settings(settings).bytes());
        stream.write_all(&bytes).await?;
        stream.flush().await?;
        Ok(Self { stream })
    }

    /// The server's side: reads the preface, and writes SETTINGS.
    ///
    /// # Errors
    /// What the socket says; or that the client doesn't speak HTTP/2.
    pub async fn server(mut stream: S, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await?;
        if preface != *PREFACE {
            return Err(io::Error::other("no HTTP/2 preface"));
        }
        stream.write_all(&Frame::settings(settings).bytes()).await?;
        stream.flush().await?;
        Ok(Self { stream })
    }

    /// Any byte stream, as it is.
    pub fn bare(stream: S) -> Self {
        Self { stream }
    }

    /// Two halves, for peers that write while they read.
    pub fn split(self) -> (Wire<ReadHalf<S>>, Wire<WriteHalf<S>>) {
        let (read, write) = tokio::io::split(self.stream);
        (Wire { stream: read }, Wire { stream: write })
    }

    /// Reads until a frame that `wanted` accepts, answering SETTINGS and PING on the way. `None`: the connection
    /// ended first.
    pub async fn until(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        within(what, async {
            loop {
                let frame = self.next().await?;
                let answer = match frame.kind {
                    kind::SETTINGS if frame.flags & flag::ACK == 0 => {
                        Some(Frame::new(kind::SETTINGS, flag::ACK, 0, []))
                    }
                    kind::PING if frame.flags & flag::ACK == 0 => {
                        Some(Frame::new(kind::PING, flag::ACK, 0, frame.payload.clone()))
                    }
                    _ => None,
                };
                if let Some(answer) = answer {
                    // A peer that is gone is noticed by the next read.
                    let _ = self.send(&[answer]).await;
                }
                if wanted(&frame) {
                    return Some(frame);
                }
            }
        })
        .await
    }

    /// Reads to the connection's end, answering as [`until`](Self::until), and gives what came.
    pub async fn to_end(&mut self, what: &str) -> Vec<Frame> {
        let mut all = Vec::new();
        while let Some(frame) = self.until(what, |_| true).await {
            all.push(frame);
        }
        all
    }
}

impl<S: AsyncWrite + Unpin> Wire<S> {
    /// Writes frames, in one go.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn send(&mut self, frames: &[Frame]) -> io::Result<()> {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        self.send_bytes(&bytes).await
    }

    /// Writes bytes as they are.
    ///
    /// # Errors
    /// What the socket says.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }
}

impl<S: AsyncRead + Unpin> Wire<S> {
    /// The next frame; `None`: the connection has ended.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
            payload,
        })
    }
}

/// A backend whose connections are scripts. It ends, abruptly, with this value.
pub struct RawBackend {
    address: SocketAddr,
    _runtime: Thread,
}

/// Ends without waiting.
struct Thread(Option<Runtime>);

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl RawBackend {
    /// Starts one that runs `script` for each connection, with the connection's number, from 0.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start<F>(script: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = own_thread("raw backend");
        let listener = runtime
            .spawn(TcpListener::bind((loopback::address(), 0)))
            .await
            .expect("binding doesn't panic")
            .expect("the kernel has a free port");
        let address = listener.local_addr().expect("it is bound");
        let script = Arc::new(script);
        runtime.spawn(async move {
            let mut number = 0;
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(script(stream, number));
                number += 1;
            }
        });
        Self {
            address,
            _runtime: Thread(Some(runtime)),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A header block of literals that enter no table.
pub fn block<N: AsRef<[u8]>, V: AsRef<[u8]>>(headers: &[(N, V)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in headers {
        bytes.push(0);
        for text in [name.as_ref(), value.as_ref()] {
            length(text.len(), &mut bytes);
            bytes.extend(text);
        }
    }
    bytes
}

/// The request headers of a gRPC call.
pub fn grpc_request(path: &str) -> Vec<(&str, &str)> {
    vec![
        (":method", "POST"),
        (":scheme", "https"),
        (":path", path),
        (":authority", "grpc.example.com"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]
}

/// RFC 7541 section 5.1, with a 7-bit prefix and no Huffman coding.
fn length(mut value: usize, bytes: &mut Vec<u8>) {
    if value < 127 {
        bytes.push(value as u8);
        return;
    }
    bytes.push(127);
    value -= 127;
    while value >= 128 {
        bytes.push((value % 128) as u8 | 128);
        value /= 128;
    }
    bytes.push(value as u8);
}

/// RFC 9113 section 3.4.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Error codes (RFC 9113 section 7).
#[allow(missing_docs, reason = "named as in RFC 9113 section 7")]
pub mod code {
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const SETTINGS_TIMEOUT: u32 = 4;
    pub const STREAM_CLOSED: u32 = 5;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn speaks_with_the_crate_h2() {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let server = tokio::spawn(async move {
            let mut connection = h2::server::handshake(theirs).await.unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            assert_eq!(request.uri().path(), "/a.B/C");
            respond
                .send_response(http::Response::new(()), true)
                .unwrap();
            // Flushes, then sees the client's end.
            while connection.accept().await.is_some() {}
        });
        let mut wire = Wire::client(ours, &[]).await.unwrap();
        let mut headers = grpc_request("/a.B/C");
        let long = "x".repeat(5000);
        headers.push(("x-long", &long));
        wire.send(&[Frame::headers(1, &headers, true)])
            .await
            .unwrap();
        let reply = wire
            .until("a reply", |frame| frame.kind == kind::HEADERS)
            .await
            .unwrap();
        assert!(reply.ends_stream());
        drop(wire);
        server.await.unwrap();
    }
}
