//! One RPC: its request, its transparent retries, and the check of its replies.
//!
//! Transparent retries are those of gRFC A6: an RPC that never left this client is sent on the next connection, as
//! often as necessary; one that left it, but that the peer says it hasn't looked at (REFUSED_STREAM, or beyond
//! GOAWAY's last stream), is sent once more. Everything else that fails has failed.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{Reason, SendStream, client::ResponseFuture};
use http::{HeaderMap, Request, StatusCode};
use tokio::time::{Instant, interval, timeout_at};
use tonic::{Code, Status};

use super::connection::Link;

/// What is to be sent, and what is to come back.
#[derive(Clone, Debug)]
pub(super) struct Call {
    /// `https://authority/service/method`.
    pub(super) uri: String,
    /// `x-test-id`.
    pub(super) id: String,
    /// Further metadata.
    pub(super) metadata: Vec<(&'static str, String)>,
    /// The request's message.
    pub(super) request: Bytes,
    /// `Some`: the message is sent as often as there are replies to be, this far apart. `None`: once.
    pub(super) pace: Option<Duration>,
    /// Each reply's message.
    pub(super) reply: Bytes,
    /// How many replies there are to be.
    pub(super) replies: u64,
    /// DEADLINE_EXCEEDED from then on.
    pub(super) deadline: Instant,
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// OK means that the replies were right, too.
    pub(super) status: Status,
    /// The peer's `hostname`, or `x-test-backend`.
    pub(super) hostname: Option<String>,
    /// Transparent retries.
    pub(super) retries: u64,
}

/// Why an attempt is not the end.
enum Again {
    NeverSent,
    NotProcessed(Status),
    No(Status),
}

impl Call {
    /// Sends it on `link` and reads everything that comes back.
    pub(super) async fn perform(&self, link: &Link) -> Ended {
        let mut hostname = None;
        let mut retries = 0;
        let trying = async {
            let mut left_once = false;
            loop {
                match self.attempt(link, &mut hostname).await {
                    Ok(()) => return Status::new(Code::Ok, ""),
                    Err(Again::NeverSent) => {}
                    Err(Again::NotProcessed(_)) if !left_once => left_once = true,
                    Err(Again::NotProcessed(status) | Again::No(status)) => return status,
                }
                retries += 1;
            }
        };
        let status = timeout_at(self.deadline, trying)
            .await
            .unwrap_or_else(|_| Status::deadline_exceeded("no end within the client's deadline"));
        Ended {
            status,
            hostname,
            retries,
        }
    }

    async fn attempt(&self, link: &Link, hostname: &mut Option<String>) -> Result<(), Again> {
        let connection = link.ready().await.map_err(Again::No)?;
        let begin = async {
            let mut send = connection.send.clone().ready().await?;
            let request = self.head().map_err(|_| Reason::INTERNAL_ERROR)?;
            send.send_request(request, false)
        };
        let (response, body) = match begin.await {
            Ok(streams) => streams,
            Err(error) if error.is_go_away() || error.is_io() => {
                link.lost(&connection);
                return Err(Again::NeverSent);
            }
            Err(error) => return Err(Again::No(status_of(&error))),
        };
        // Else it would keep the connection open after GOAWAY; the stream does that on its own.
        drop(connection);
        let mut receiving = std::pin::pin!(self.receive(response, hostname));
        tokio::select! {
            biased;
            ended = &mut receiving => ended,
            () = self.send(body) => receiving.await,
        }
    }

    /// The request's messages. When the stream ends meanwhile, its response says why.
    async fn send(&self, mut body: SendStream<Bytes>) {
        let message = framed(&self.request);
        if let Some(pace) = self.pace {
            let mut ticks = interval(pace);
            for _ in 1..self.replies {
                ticks.tick().await;
                if body.send_data(message.clone(), false).is_err() {
                    return;
                }
            }
            ticks.tick().await;
        }
        let _ = body.send_data(message, true);
    }

    async fn receive(
        &self,
        response: ResponseFuture,
        hostname: &mut Option<String>,
    ) -> Result<(), Again> {
        let (head, mut body) = match response.await {
            Ok(response) => response.into_parts(),
            Err(error) if not_processed(&error) => {
                return Err(Again::NotProcessed(status_of(&error)));
            }
            Err(error) => return Err(Again::No(status_of(&error))),
        };
        *hostname = ["hostname", "x-test-backend"]
            .iter()
            .find_map(|name| Some(head.headers.get(*name)?.to_str().ok()?.to_owned()));
        if let Some(status) = Status::from_header_map(&head.headers) {
            return self.end(status, 0);
        }
        if head.status != StatusCode::OK {
            return Err(Again::No(status_of_http(head.status)));
        }
        let failed = |error: h2::Error| Again::No(status_of(&error));
        let mut messages = Messages::default();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.map_err(failed)?;
            // Of what has just come: there is that much to give back.
            let _ = body.flow_control().release_capacity(chunk.len());
            messages.read(&chunk, &self.reply).map_err(Again::No)?;
        }
        let trailers = body.trailers().await.map_err(failed)?;
        self.end(status_in(trailers.as_ref()), messages.count)
    }

    fn head(&self) -> http::Result<Request<()>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        // At most eight digits: gRPC over HTTP2, "Timeout".
        let millis = left.as_millis().clamp(1, 99_999_999);
        let mut request = Request::post(&self.uri)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", format!("{millis}m"))
            .header(
                "user-agent",
                concat!("edge-load/", env!("CARGO_PKG_VERSION")),
            )
            .header("x-test-id", &self.id);
        for (name, value) in &self.metadata {
            request = request.header(*name, value);
        }
        request.body(())
    }

    fn end(&self, status: Status, replies: u64) -> Result<(), Again> {
        if status.code() != Code::Ok {
            return Err(Again::No(status));
        }
        if replies != self.replies {
            let text = format!("OK after {replies} of {} replies", self.replies);
            return Err(Again::No(Status::data_loss(text)));
        }
        Ok(())
    }
}

/// Replies, cut out of DATA as it comes. Holds one message at most.
#[derive(Default)]
struct Messages {
    buffer: BytesMut,
    count: u64,
}

impl Messages {
    fn read(&mut self, chunk: &[u8], expected: &[u8]) -> Result<(), Status> {
        self.buffer.extend_from_slice(chunk);
        while let Some(head) = self.buffer.first_chunk::<HEAD>() {
            let [compressed, length @ ..] = *head;
            let length = u32::from_be_bytes(length) as usize;
            // A wrong length is a wrong reply, and need not be waited for.
            if compressed != 0 || length != expected.len() {
                return Err(Status::data_loss("the reply is not the one expected"));
            }
            if self.buffer.len() < HEAD + length {
                break;
            }
            self.buffer.advance(HEAD);
            if self.buffer.split_to(length) != expected {
                return Err(Status::data_loss("the reply is not the one expected"));
            }
            self.count += 1;
        }
        Ok(())
    }
}

/// A message with its Length-Prefixed-Message head.
fn framed(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(HEAD + message.len());
    framed.put_u8(0);
    // What this program sends is a few bytes long.
    framed.put_u32(message.len() as u32);
    framed.put_slice(message);
    framed.freeze()
}

fn status_in(trailers: Option<&HeaderMap>) -> Status {
    trailers
        .and_then(Status::from_header_map)
        .unwrap_or_else(|| Status::unknown("the response ended without grpc-status"))
}

fn not_processed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// gRPC over HTTP2, "HTTP2 Transport Mapping", "Errors".
fn status_of(error: &h2::Error) -> Status {
    let code = match error.reason() {
        _ if error.is_io() || error.is_go_away() => Code::Unavailable,
        Some(Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(Reason::CANCEL) => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        _ => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// gRPC's `doc/http-grpc-status-mapping.md`.
fn status_of_http(status: StatusCode) -> Status {
    let code = match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    };
    Status::new(code, format!("HTTP status {status} without grpc-status"))
}

/// Compressed-Flag and Message-Length.
const HEAD: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_found_however_they_are_cut() {
        let bytes = [framed(b"reply"), framed(b"reply")].concat();
        for size in 1..=bytes.len() {
            let mut messages = Messages::default();
            for chunk in bytes.chunks(size) {
                messages.read(chunk, b"reply").unwrap();
            }
            assert_eq!(messages.count, 2, "{size}");
        }
    }

    #[test]
    fn another_reply_is_data_loss_before_it_is_waited_for() {
        for bytes in [
            &b"\0\0\0\0\x05other"[..],
            b"\0\xff\xff\xff\xff",
            b"\x01\0\0\0\x05",
        ] {
            let status = Messages::default().read(bytes, b"reply").unwrap_err();
            assert_eq!(status.code(), Code::DataLoss);
        }
    }

    #[test]
    fn a_missing_status_is_unknown_and_a_gateways_502_is_unavailable() {
        assert_eq!(status_in(None).code(), Code::Unknown);
        assert_eq!(
            status_of_http(StatusCode::BAD_GATEWAY).code(),
            Code::Unavailable
        );
    }

    #[test]
    fn resets_are_mapped_as_grpc_says() {
        for (reason, code) in [
            (Reason::REFUSED_STREAM, Code::Unavailable),
            (Reason::CANCEL, Code::Cancelled),
            (Reason::ENHANCE_YOUR_CALM, Code::ResourceExhausted),
            (Reason::PROTOCOL_ERROR, Code::Internal),
        ] {
            assert_eq!(status_of(&reason.into()).code(), code);
        }
    }
}
