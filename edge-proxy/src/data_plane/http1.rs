//! HTTP/1.1, by hyper, into the same path as HTTP/2.
use super::{listener::Ticket, rpc::Key, tls::Tls, worker::Worker};
use crate::snapshot::ListenerPolicy;
use http2::Headers;
use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};
pub(crate) struct Exchange {
    peer: SocketAddr,
}
impl Exchange {
    pub(crate) fn peer_text(&self) -> &str {
        ""
    }
    pub(crate) fn peer(&self) -> SocketAddr {
        self.peer
    }
    pub(crate) fn set_key(&self, _key: Key) {}
    pub(crate) fn send_headers(&self, _headers: &Headers, _end_stream: bool) {}
    pub(crate) fn send_data(&self, _bytes: &[u8], _end_stream: bool) -> usize {
        0
    }
    pub(crate) fn send_trailers(&self, _trailers: &Headers) {}
    pub(crate) fn credit(&self, _bytes: usize) {}
    pub(crate) fn abort(&self) {}
    pub(crate) fn has_all(&self) -> bool {
        true
    }
    pub(crate) fn blocked(&self) -> Option<Instant> {
        None
    }
    pub(crate) fn check_by(&self, _at: Instant) {}
    pub(crate) fn ended(&self) {}
}
pub(crate) async fn serve(
    _worker: &Rc<Worker>,
    _tls: Tls,
    _early: Vec<u8>,
    _peer: SocketAddr,
    _policy: Arc<ListenerPolicy>,
    _accepted: Instant,
    _ticket: Ticket,
) {
}
