//! A client that says what it is told, frame by frame.

use http2::{Headers, hpack::Encoder};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Bench, at_once, client::http2};
use crate::{
    data_plane::{downstream::ClientConnection, wire::Side as _},
    snapshot::ListenerPolicy,
};

/// A client that says what it is told, frame by frame.
pub(crate) struct Raw {
    socket: TcpStream,
    pub(crate) encoder: Encoder,
    unread: Vec<u8>,
}

/// Every client has acknowledged the worker's SETTINGS.
fn all_acknowledged(bench: &Bench) -> bool {
    let clients = bench.worker.clients.borrow();
    clients.values().all(|client| match client {
        ClientConnection::Http2(connection) => {
            let engine = connection.link().engine();
            engine.settings_unacked_since().is_none()
        }
        ClientConnection::Http1(_) => true,
    })
}

impl Raw {
    /// It hasn't said anything yet.
    pub(crate) async fn connect(bench: &Bench, policy: ListenerPolicy) -> Self {
        Self {
            socket: http2(bench, policy).await,
            encoder: Encoder::new(4096),
            unread: Vec::new(),
        }
    }

    /// It has said its preface and SETTINGS, and acknowledged those that it got, which are returned with the window's
    /// update behind them.
    pub(crate) async fn open(bench: &Bench, policy: ListenerPolicy) -> (Self, Vec<Vec<u8>>) {
        let mut raw = Self::connect(bench, policy).await;
        let settings = frame(SETTINGS, 0, 0, &[]);
        raw.send(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings].concat())
            .await;
        let mut got = Vec::new();
        loop {
            let next = raw.next().await.unwrap();
            if next[3] == SETTINGS && next[4] == ACK {
                raw.send(&frame(SETTINGS, ACK, 0, &[])).await;
                // A clock that the test moves must not overtake it.
                at_once(|| all_acknowledged(bench)).await;
                return (raw, got);
            }
            got.push(next);
        }
    }

    /// One that has closed is noticed by who reads.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = self.socket.write_all(bytes).await;
    }

    /// The block of a header list.
    pub(crate) fn block(&mut self, headers: &Headers) -> Vec<u8> {
        let mut block = Vec::new();
        self.encoder.encode(headers, &mut block);
        block
    }

    /// The next frame; `None`: the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let whole = match self.unread.first_chunk() {
                Some(&[a, b, c]) => 9 + u32::from_be_bytes([0, a, b, c]) as usize,
                None => 9,
            };
            if self.unread.len() >= whole {
                return Some(self.unread.drain(..whole).collect());
            }
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.unread.extend_from_slice(&buffer[..n]),
            }
        }
    }

    /// The next frame of this kind; those before it are dropped.
    pub(crate) async fn next_of(&mut self, kind: u8) -> Vec<u8> {
        loop {
            let next = self.next().await.expect("the connection goes on");
            if next[3] == kind {
                return next;
            }
        }
    }
}

/// A frame as it is on the wire.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

// RFC 9113 §6.
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
