//! One request of an HTTP/1.1 connection and its response: where hyper's bodies meet the RPC.
//!
//! The two sides are never in one call: the RPC's steps only put something here and wake the connection's task, and
//! that task, in its turn, hands on what hyper read ([`Exchange::pump`]) and lets hyper take what waits ([`Body`]).

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    io::{self, ErrorKind},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use http2::Headers;
use hyper::body::{Frame, Incoming};

use super::{Connection, convert};
use crate::{
    data_plane::{
        holder::Holder,
        rpc::{self, Key},
    },
    error::{Failure, Flag},
    telemetry::metrics::{Limit, ResetCause},
};

/// See the module's head.
pub(crate) struct Exchange {
    connection: Rc<Connection>,
    protocol: &'static str,
    /// Fields of the request's head.
    fields: usize,
    /// The RPC, from its start to its end.
    key: Cell<Option<Key>>,
    /// What is still to be read of the request; `None` when it has ended, or nobody wants more of it.
    request: RefCell<Option<Incoming>>,
    /// Bytes that went to the RPC and that it gave no credit for.
    outstanding: Cell<usize>,
    response: RefCell<Response>,
    /// The response can't be completed: hyper is to end the connection without its end.
    aborted: Cell<bool>,
    /// hyper takes no more of this response, since its head says that there is no content (HEAD, 204, 304), or no more
    /// than came (`content-length`): what still comes is dropped.
    deaf: Cell<bool>,
}

/// What hyper hasn't taken of the response.
struct Response {
    head: Option<http::Response<()>>,
    chunks: VecDeque<Bytes>,
    /// Bytes in `chunks`.
    queued: usize,
    trailers: Option<HeaderMap>,
    /// Nothing comes after what is here.
    ended: bool,
    /// When hyper took something last, or `chunks` was empty.
    moved: Instant,
}

/// hyper waits for the response's head.
pub(super) struct Responding(Rc<Exchange>);

/// The response's body, as hyper takes it.
pub(super) struct Body(Rc<Exchange>);

/// The response was given up.
#[derive(Debug, thiserror::Error)]
#[error("the exchange was given up before its response was complete")]
pub(super) struct Aborted;

/// For [`rpc`].
impl Exchange {
    pub(crate) fn peer_text(&self) -> &str {
        &self.connection.peer_text
    }

    /// Whom others share with.
    pub(crate) fn holder(&self) -> &Rc<Holder> {
        self.connection.holder()
    }

    pub(crate) fn protocol(&self) -> &'static str {
        self.protocol
    }

    /// Bytes of the response that hyper hasn't taken.
    pub(super) fn queued(&self) -> usize {
        self.response.borrow().queued
    }

    pub(crate) fn set_key(&self, key: Key) {
        self.key.set(Some(key));
    }

    /// The response's head. Interim heads (1xx) are dropped: hyper can't send them.
    pub(crate) fn send_headers(&self, headers: &Headers, end_stream: bool) {
        if headers.status().is_some_and(|status| status < 200) {
            return;
        }
        let mut head = convert::response(headers);
        if self.connection.leaving.get().is_some() {
            let close = HeaderValue::from_static("close");
            head.headers_mut().insert(header::CONNECTION, close);
        }
        let mut response = self.response.borrow_mut();
        response.head = Some(head);
        response.ended = end_stream;
        self.connection.wake();
    }

    /// Response DATA; returns what needs no wait, which is nothing as long as hyper takes bodies.
    pub(crate) fn send_data(&self, bytes: &[u8], end_stream: bool) -> usize {
        let mut response = self.response.borrow_mut();
        response.ended |= end_stream;
        self.connection.wake();
        if self.deaf.get() || self.aborted.get() {
            return bytes.len();
        }
        if !bytes.is_empty() {
            if response.chunks.is_empty() {
                let now = self.connection.worker.now();
                response.moved = now;
                let stall = self.connection.policy.timeouts.stream_window_stall;
                self.connection.check_by(now + stall);
            }
            response.queued += bytes.len();
            self.connection.worker.memory.change(0, bytes.len());
            response.chunks.push_back(Bytes::copy_from_slice(bytes));
        }
        0
    }

    pub(crate) fn send_trailers(&self, trailers: &Headers) {
        let mut response = self.response.borrow_mut();
        response.trailers = Some(convert::fields(trailers));
        response.ended = true;
        self.connection.wake();
    }

    /// `bytes` of the request went on.
    pub(crate) fn credit(&self, bytes: usize) {
        let left = self.outstanding.get().saturating_sub(bytes);
        self.outstanding.set(left);
        self.connection.wake();
    }

    /// Ends the exchange. If the response is complete, only the rest of the request is given up.
    pub(crate) fn abort(&self) {
        let complete = self.has_all();
        self.aborted.set(!complete);
        let dropped = {
            let mut response = self.response.borrow_mut();
            response.chunks.clear();
            std::mem::take(&mut response.queued)
        };
        self.connection.worker.memory.change(dropped, 0);
        if let Some(request) = self.request.borrow_mut().take() {
            self.connection.give_up(request);
        }
        self.connection.wake();
    }

    /// Whether hyper has all of the response, or has only to ask for it.
    pub(crate) fn has_all(&self) -> bool {
        let response = self.response.borrow();
        response.ended && response.chunks.is_empty()
    }

    /// Since when hyper has taken nothing of what waits.
    pub(crate) fn blocked(&self) -> Option<Instant> {
        let response = self.response.borrow();
        (!response.chunks.is_empty()).then_some(response.moved)
    }

    pub(crate) fn check_by(&self, at: Instant) {
        self.connection.check_by(at);
    }

    /// The RPC has ended.
    pub(crate) fn ended(&self) {
        self.key.set(None);
        self.connection
            .exchanges
            .borrow_mut()
            .retain(|other| !std::ptr::eq(&**other, self));
        self.connection.wake();
    }
}

/// For the connection.
impl Exchange {
    pub(super) fn new(
        connection: Rc<Connection>,
        protocol: &'static str,
        fields: usize,
        request: Option<Incoming>,
    ) -> Rc<Self> {
        let moved = connection.worker.now();
        Rc::new(Self {
            connection,
            protocol,
            fields,
            key: Cell::new(None),
            request: RefCell::new(request),
            outstanding: Cell::new(0),
            response: RefCell::new(Response {
                head: None,
                chunks: VecDeque::new(),
                queued: 0,
                trailers: None,
                ended: false,
                moved,
            }),
            aborted: Cell::new(false),
            deaf: Cell::new(false),
        })
    }

    /// The RPC was started. One that was turned away without an answer leaves none to wait for.
    pub(super) fn started(&self) {
        if self.key.get().is_none() && !self.response.borrow().ended {
            self.aborted.set(true);
        }
    }

    pub(super) fn key(&self) -> Option<Key> {
        self.key.get()
    }

    /// Whether hyper was told all that its response is to be, though the backend hasn't ended it yet.
    pub(super) fn is_told(&self) -> bool {
        self.deaf.get() && !self.aborted.get()
    }

    /// Hands on what hyper has read of the request, as far as there is credit.
    pub(super) fn pump(&self, cx: &mut Context<'_>, now: Instant) {
        let worker = &self.connection.worker;
        while let Some(key) = self.key.get()
            && self.outstanding.get() < REQUEST_WINDOW
        {
            let (frame, ended) = {
                let mut request = self.request.borrow_mut();
                let Some(body) = request.as_mut() else { return };
                match hyper::body::Body::poll_frame(Pin::new(&mut *body), cx) {
                    Poll::Pending => return,
                    Poll::Ready(frame) => {
                        let ended = match &frame {
                            Some(Ok(frame)) => {
                                frame.is_trailers() || hyper::body::Body::is_end_stream(body)
                            }
                            Some(Err(_)) | None => true,
                        };
                        if ended {
                            *request = None;
                        }
                        (frame, ended)
                    }
                }
            };
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => {
                    self.outstanding.set(self.outstanding.get() + data.len());
                    rpc::request_data(worker, key, &data, ended, now);
                }
                Some(Ok(Err(frame))) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    match self.judge(&trailers) {
                        Ok(trailers) => rpc::request_trailers(worker, key, trailers, now),
                        Err(failure) => rpc::refuse_trailers(worker, key, failure, now),
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(peer = %self.connection.peer, %error, "a request's body broke off");
                    if is_gone(&error) {
                        rpc::client_gone(worker, key);
                    } else {
                        worker.shard.resets(ResetCause::Malformed).inc();
                        rpc::client_reset(worker, key, Flag::DownstreamProtocolError);
                    }
                }
                None => rpc::request_data(worker, key, &[], true, now),
            }
        }
    }

    /// The request's trailers, if they keep to what HTTP/2's engine asks of its clients: a backend may end the connection that
    /// all clients share for what is above its own limit, which is 16 KiB in hyper and 100 fields in Kestrel.
    fn judge(&self, trailers: &HeaderMap) -> Result<Headers, Failure> {
        let headers = convert::trailers(trailers).map_err(|rule| {
            tracing::debug!(peer = %self.connection.peer, rule, "malformed trailers");
            Failure::MalformedRequest
        })?;
        if self.connection.is_too_large(&headers, self.fields) {
            let shard = &self.connection.worker.shard;
            shard.limits(Limit::HeaderBytes).inc();
            return Err(Failure::HeadersTooLarge);
        }
        Ok(headers)
    }
}

impl Responding {
    pub(super) fn new(exchange: Rc<Exchange>) -> Self {
        Self(exchange)
    }
}

impl Future for Responding {
    type Output = Result<http::Response<Body>, Aborted>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        let exchange = &self.0;
        if exchange.aborted.get() {
            return Poll::Ready(Err(Aborted));
        }
        let head = exchange.response.borrow_mut().head.take();
        match head {
            Some(head) => Poll::Ready(Ok(head.map(|()| Body(exchange.clone())))),
            // The task is woken when there is one: hyper is polled with its context and no other.
            None => Poll::Pending,
        }
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Aborted;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Aborted>>> {
        let exchange = &self.0;
        if exchange.aborted.get() {
            return Poll::Ready(Some(Err(Aborted)));
        }
        let worker = &exchange.connection.worker;
        let mut response = exchange.response.borrow_mut();
        if let Some(chunk) = response.chunks.pop_front() {
            response.queued -= chunk.len();
            worker.memory.change(chunk.len(), 0);
            response.moved = worker.now();
            let all = response.ended && response.chunks.is_empty();
            drop(response);
            if let Some(key) = exchange.key.get() {
                rpc::response_sent(worker, key, chunk.len(), all);
            }
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Some(trailers) = response.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        if response.ended {
            return Poll::Ready(None);
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.0.has_all() && self.0.response.borrow().trailers.is_none() && !self.0.aborted.get()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let queued = self.response.get_mut().queued;
        self.connection.worker.memory.change(queued, 0);
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let exchange = &self.0;
        exchange.connection.responded();
        exchange.deaf.set(true);
        let (dropped, ended) = {
            let mut response = exchange.response.borrow_mut();
            response.chunks.clear();
            (std::mem::take(&mut response.queued), response.ended)
        };
        exchange.connection.worker.memory.change(dropped, 0);
        if let Some(key) = exchange.key.get()
            && !std::thread::panicking()
        {
            rpc::response_sent(&exchange.connection.worker, key, dropped, ended);
        }
    }
}

/// Whether a request's body broke off because its connection did.
fn is_gone(error: &hyper::Error) -> bool {
    let cause =
        std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| {
        matches!(
            cause.kind(),
            ErrorKind::UnexpectedEof
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::TimedOut
        )
    })
}

/// As a stream's window towards HTTP/2 clients. One frame more may be on its way, which is at most hyper's buffer.
const REQUEST_WINDOW: usize = 64 * 1024;
