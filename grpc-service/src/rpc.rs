//! The life of one RPC, from its headers to the end of its response stream.
//!
//! Everything that the generated code of a service doesn't do happens here, around all of it
//! (health, reflection and unknown methods too):
//!
//! 1. it counts, and RESOURCE_EXHAUSTED is the answer where the memory is used up (`budget`), but
//!    for health: who asks for that would take the server for a dead one, and give its RPCs to
//!    others, who have no more memory;
//! 2. the handler runs, until it answers, its `grpc-timeout` passes, or the drain cuts it off;
//! 3. a panic of it becomes INTERNAL, and the connection's other RPCs don't notice;
//! 4. whatever the answer is, it carries the header `hostname`;
//! 5. the response stream goes on under the same deadline and the same cut;
//! 6. the messages of both directions count, and RESOURCE_EXHAUSTED ends what is too much,
//!    DEADLINE_EXCEEDED what moves too slowly (`messages`);
//! 7. when it has ended, one line of the log tells method, status, duration and peer.
//!
//! tonic's own server would do 2 only up to the response's headers, and make answers of its own
//! outside of every layer that could set a header or see them.

use std::any::Any;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::Frame;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower::Service as _;

use crate::budget::{Budget, Charge, Exhausted};
use crate::messages::{Download, counted};

/// The response header that names the replica.
pub const HOSTNAME: HeaderName = HeaderName::from_static("hostname");

/// What all RPCs of a server share.
#[derive(Debug, Clone)]
pub(crate) struct Rpcs {
    /// The service, health and reflection.
    pub(crate) routes: Routes,
    /// Value of [`HOSTNAME`].
    pub(crate) hostname: HeaderValue,
    /// What all RPCs and their messages may take.
    pub(crate) budget: Budget,
    /// Cancelled when the drain's patience is over; every RPC then ends with UNAVAILABLE.
    pub(crate) cut: CancellationToken,
}

impl Rpcs {
    /// Answers one request. Dropping the future (the client went away) is the RPC's end, too.
    ///
    /// What is refused is refused by this call, and not by a task that comes to it when others
    /// have decoded a thousand heads more.
    pub(crate) fn handle<B>(
        self,
        peer: SocketAddr,
        request: Request<B>,
    ) -> impl Future<Output = Result<Response<RpcBody>, Infallible>> + Send + use<B>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        let path = request.uri().path();
        let record = Record::new(peer, path);
        let admitted = if path.starts_with(HEALTH) {
            Ok(None)
        } else {
            self.budget.rpc(&request).map(Some)
        };
        let run = match admitted {
            // In memory of its own: a refused one's future has no room for it.
            Ok(charge) => Ok(Box::pin(self.clone().run(record, charge, request))),
            Err(exhausted) => Err((record, exhausted)),
        };
        async move {
            Ok(match run {
                Ok(run) => run.await,
                Err((record, exhausted)) => self.refuse(record, exhausted),
            })
        }
    }

    async fn run<B>(
        mut self,
        record: Record,
        charge: Option<Charge>,
        request: Request<B>,
    ) -> Response<RpcBody>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<tonic::codegen::StdError>,
    {
        let deadline =
            grpc_timeout(request.headers()).and_then(|timeout| record.started.checked_add(timeout));
        let mut end = End::new(deadline, self.cut.clone());

        let (head, body) = request.into_parts();
        let (upload, download) = counted(&self.budget, charge, body);
        let mut answer = pin!(self.routes.call(Request::from_parts(head, upload)));
        let response = std::future::poll_fn(|cx| {
            if let Poll::Ready(status) = end.poll(cx) {
                return Poll::Ready(Err(status));
            }
            match catch(|| answer.as_mut().poll(cx)) {
                Ok(polled) => polled.map(|Ok(response)| download.refusal().map(|()| response)),
                Err(status) => Poll::Ready(Err(status)),
            }
        })
        .await;

        let response = response.unwrap_or_else(|status| status.into_http());
        self.answered(record, response, download, end)
    }

    fn refuse(&self, record: Record, exhausted: Exhausted) -> Response<RpcBody> {
        let response = Status::from(exhausted).into_http();
        let (_, download) = counted(&self.budget, None, ());
        let end = End::new(None, self.cut.clone());
        self.answered(record, response, download, end)
    }

    fn answered(
        &self,
        mut record: Record,
        mut response: Response<Body>,
        download: Download,
        end: End,
    ) -> Response<RpcBody> {
        response
            .headers_mut()
            .insert(HOSTNAME, self.hostname.clone());
        record.answered(&response);
        download.answered();
        response.map(|body| RpcBody {
            body: Some(body),
            download,
            end,
            record,
        })
    }
}

/// A response stream that ends early when its RPC has to, and is logged when it ends.
#[derive(Debug)]
pub(crate) struct RpcBody {
    /// None once the stream has ended.
    body: Option<Body>,
    download: Download,
    end: End,
    record: Record,
}

impl RpcBody {
    /// The next frame, or why the RPC has to end.
    fn next(&mut self, cx: &mut Context<'_>) -> Result<Polled, Status> {
        // First the end: a handler that always has something to say must not outlive it.
        if let Poll::Ready(status) = self.end.poll(cx) {
            return Err(status);
        }
        if let Some(piece) = self.download.piece() {
            return Ok(Poll::Ready(Some(Ok(Frame::data(piece)))));
        }
        let Some(body) = &mut self.body else {
            return Ok(Poll::Ready(None));
        };
        let polled = catch(|| http_body::Body::poll_frame(Pin::new(body), cx))?;
        self.download.refusal()?;
        let data = match polled {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => data,
                Err(frame) => return Ok(Poll::Ready(Some(Ok(frame)))),
            },
            other => return Ok(other),
        };
        self.download.put(data)?;
        let piece = self.download.piece().unwrap_or_default();
        Ok(Poll::Ready(Some(Ok(Frame::data(piece)))))
    }
}

impl http_body::Body for RpcBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = match this.next(cx) {
            Ok(polled) => ready!(polled),
            Err(status) => {
                this.body = None;
                this.download.clear();
                let mut trailers = HeaderMap::new();
                // It only fails for a message that can't be percent-encoded: ours are plain text.
                let _ = status.add_header(&mut trailers);
                Some(Ok(Frame::trailers(trailers)))
            }
        };
        this.record.polled(&frame);
        if frame.is_none() {
            this.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.download.is_empty() && self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }

    // No size hint: hyper would make a `content-length` of it, which an early end would break.
}

/// What a response's stream says.
type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

/// When an RPC has to end although its handler hasn't ended it.
#[derive(Debug)]
struct End {
    deadline: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl End {
    fn new(deadline: Option<Instant>, cut: CancellationToken) -> Self {
        Self {
            deadline: deadline.map(|deadline| Box::pin(sleep_until(deadline))),
            cut: Box::pin(cut.cancelled_owned()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Status::deadline_exceeded(
                "the deadline of the request has passed",
            ));
        }
        self.cut
            .as_mut()
            .poll(cx)
            .map(|()| Status::unavailable("the server is shutting down"))
    }
}

/// What the log will say of an RPC; writes its line when dropped, which is when the RPC is over.
#[derive(Debug)]
struct Record {
    peer: SocketAddr,
    /// The path, as it came, cut at [`MAX_PATH`].
    method: String,
    started: Instant,
    http_status: u16,
    /// Until the handler or its end has told: CANCELLED, for that is what an RPC is that just goes.
    grpc_status: i32,
}

impl Record {
    fn new(peer: SocketAddr, path: &str) -> Self {
        // A path is ASCII (RFC 3986), but an index that is no border must not be able to panic.
        let method = path.get(..MAX_PATH).unwrap_or(path).to_owned();
        let grpc_status = Code::Cancelled as i32;
        Self {
            peer,
            method,
            started: Instant::now(),
            http_status: 0,
            grpc_status,
        }
    }

    fn answered<B>(&mut self, response: &Response<B>) {
        self.http_status = response.status().as_u16();
        self.told(response.headers());
    }

    fn polled(&mut self, frame: &Option<Result<Frame<Bytes>, Status>>) {
        match frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.told(trailers);
                }
            }
            Some(Err(status)) => self.grpc_status = status.code() as i32,
            None => {}
        }
    }

    /// Takes the status from headers or trailers that have one.
    fn told(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.grpc_status = status.code() as i32;
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self {
            peer,
            ref method,
            started,
            http_status,
            grpc_status,
        } = *self;
        // Milliseconds, to three places.
        let duration_ms = started.elapsed().as_micros() as f64 / 1000.0;
        // The targets differ so that probes can be kept out: RUST_LOG=info,rpc::health=off
        if method.starts_with(HEALTH) {
            tracing::info!(target: "rpc::health", method, grpc_status, http_status, duration_ms, %peer, "rpc");
        } else {
            tracing::info!(target: "rpc", method, grpc_status, http_status, duration_ms, %peer, "rpc");
        }
    }
}

/// The request's `grpc-timeout` ([gRPC over HTTP/2], "Requests"): at most 8 digits and a unit. What
/// is malformed is ignored, as the proxy in front does.
///
/// [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let (unit, digits) = headers.get("grpc-timeout")?.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits
        .iter()
        .fold(0_u64, |value, digit| value * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(value * 3600),
        b'M' => Duration::from_secs(value * 60),
        b'S' => Duration::from_secs(value),
        b'm' => Duration::from_millis(value),
        b'u' => Duration::from_micros(value),
        b'n' => Duration::from_nanos(value),
        _ => return None,
    })
}

/// Runs a piece of a handler; a panic in it is INTERNAL to its own RPC. (The panic hook has
/// written the details to stderr by then.)
fn catch<T>(step: impl FnOnce() -> T) -> Result<T, Status> {
    // After a panic the handler is dropped and never polled again: no broken invariant is seen.
    catch_unwind(AssertUnwindSafe(step)).map_err(|payload: Box<dyn Any + Send>| {
        drop(payload);
        Status::internal("internal error")
    })
}

/// How the paths of health checks begin.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// Longest method in the log, in bytes.
const MAX_PATH: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn timeout(value: &'static str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", HeaderValue::from_static(value));
        grpc_timeout(&headers)
    }

    #[test]
    fn a_timeout_is_up_to_eight_digits_and_a_unit() {
        assert_eq!(timeout("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(timeout("2M"), Some(Duration::from_secs(120)));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        assert_eq!(timeout("4m"), Some(Duration::from_millis(4)));
        assert_eq!(timeout("5u"), Some(Duration::from_micros(5)));
        assert_eq!(timeout("0n"), Some(Duration::ZERO));
        assert_eq!(
            timeout("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for malformed in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", " 1S"] {
            assert_eq!(timeout(malformed), None, "{malformed:?}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }

    #[test]
    fn a_path_is_cut_for_the_log() {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        assert_eq!(Record::new(peer, &"/x".repeat(500)).method.len(), MAX_PATH);
        assert_eq!(Record::new(peer, "/api.Echo/Echo").method, "/api.Echo/Echo");
    }
}
