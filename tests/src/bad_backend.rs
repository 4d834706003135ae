//! A gRPC server that misbehaves in a way that is chosen at run time, on a real HTTP/2 server (`scripted`(crate::scripted)).
//!
//! It reads each request to its end and answers as its `Behaviour` says; `Journal::executions` tells how often it
//! has begun an RPC, by the RPC's `x-test-id`: what was executed twice must not have been.
//!
//! `Journal::executions`: crate::journal::Journal::executions

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use tokio::sync::watch;

use crate::{
    journal::Journal,
    proxy::Address,
    scripted::{Exchange, Scripted, framed, head, trailers},
};

/// A running one. It ends, abruptly, with this value.
pub struct BadBackend {
    server: Scripted,
    behaviour: Arc<watch::Sender<Behaviour>>,
}

/// What it does with an RPC. Wherever nothing else is said the answer is the request's body, status 0; to a health check
/// it is SERVING.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Behaviour {
    /// Everything right.
    #[default]
    Good,
    /// Everything right, and GOAWAY with each request of a connection whose number is a multiple of this.
    GoAwayEvery(usize),
    /// RST_STREAM with REFUSED_STREAM, before anything was looked at.
    Refuse,
    /// RST_STREAM with INTERNAL_ERROR.
    Reset(Stage),
    /// The connection ends without a word.
    Drop(Stage),
    /// Nothing more, until the client gives up.
    Hang(Stage),
    /// Trailers without `grpc-status`.
    HalfTrailers,
    /// The message ends the stream.
    NoTrailers,
    /// So many responses of status 103 before the real one.
    Informational(usize),
    /// A page of HTML with this status.
    Html(u16),
    /// So many headers of 100 bytes in the response.
    ManyHeaders(usize),
    /// A message of so many bytes, in frames of one byte each.
    SmallFrames(usize),
}

/// How far it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The request's head has come; its body isn't read.
    Head,
    /// The request has been read.
    Request,
    /// The response's headers are out.
    Headers,
    /// Half of its message, too.
    Message,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Head, Self::Request, Self::Headers, Self::Message];
}

impl BadBackend {
    /// Starts one.
    pub async fn start(behaviour: Behaviour) -> Self {
        let behaviour = Arc::new(watch::Sender::new(behaviour));
        let now = behaviour.clone();
        let server = Scripted::start(move |exchange| {
            let behaviour = *now.borrow();
            answer(exchange, behaviour)
        })
        .await;
        Self { server, behaviour }
    }

    /// From the next request on.
    pub fn set(&self, behaviour: Behaviour) {
        self.behaviour.send_replace(behaviour);
    }

    /// What arrived.
    pub fn journal(&self) -> &Journal {
        &self.server.journal
    }

    /// Its process stands still until the value is dropped: see [`Scripted::freeze`].
    #[must_use]
    pub fn freeze(&self) -> std::sync::mpsc::Sender<()> {
        self.server.freeze()
    }

    /// Listener and connections vanish.
    pub fn kill(&mut self) {
        self.server.kill();
    }
}

impl Address for BadBackend {
    fn address(&self) -> SocketAddr {
        self.server.address()
    }
}

async fn answer(mut exchange: Exchange, behaviour: Behaviour) {
    match behaviour {
        Behaviour::Refuse => return exchange.reset(Reason::REFUSED_STREAM),
        Behaviour::Reset(Stage::Head) => return exchange.reset(Reason::INTERNAL_ERROR),
        Behaviour::Drop(Stage::Head) => return exchange.drop_connection(),
        Behaviour::Hang(Stage::Head) => return exchange.hang().await,
        _ => {}
    }
    // Cut off: the client has gone.
    let Some(mut body) = exchange.body().await else {
        return;
    };
    let path = exchange.request.uri().path();
    if path.starts_with("/grpc.health.v1.Health/") {
        // HealthCheckResponse { status: SERVING }.
        body = framed(&[8, 1]);
    }
    let half = &body[..body.len() / 2];
    match behaviour {
        Behaviour::GoAwayEvery(count) => {
            if (exchange.number + 1).is_multiple_of(count) {
                exchange.goaway();
            }
            exchange.reply(head(200), &body, Some(trailers(0)));
        }
        Behaviour::Reset(Stage::Request) => exchange.reset(Reason::INTERNAL_ERROR),
        Behaviour::Reset(Stage::Headers) => {
            exchange
                .reset_after(head(200), b"", Reason::INTERNAL_ERROR)
                .await;
        }
        Behaviour::Reset(Stage::Message) => {
            exchange
                .reset_after(head(200), half, Reason::INTERNAL_ERROR)
                .await;
        }
        Behaviour::Drop(Stage::Request) => exchange.drop_connection(),
        Behaviour::Drop(stage) => exchange.drop_after(head(200), part(half, stage)).await,
        Behaviour::Hang(Stage::Request) => exchange.hang().await,
        Behaviour::Hang(stage) => {
            if let Some(mut stream) = exchange.hold(head(200), part(half, stage)) {
                // Its end, of either kind, is what is waited for.
                let _ = std::future::poll_fn(|cx| stream.poll_reset(cx)).await;
            }
        }
        Behaviour::HalfTrailers => {
            let mut half = HeaderMap::new();
            half.insert("grpc-message", HeaderValue::from_static("half"));
            exchange.reply(head(200), &body, Some(half));
        }
        Behaviour::NoTrailers => exchange.reply(head(200), &body, None),
        Behaviour::Informational(count) => {
            for _ in 0..count {
                exchange.informational(103);
            }
            exchange.reply(head(200), &body, Some(trailers(0)));
        }
        Behaviour::Html(status) => {
            let page = Response::builder()
                .status(status)
                .header("content-type", "text/html");
            let page = page.body(()).expect("a status that exists");
            exchange.reply(page, b"<html><body>What?</body></html>", None);
        }
        Behaviour::ManyHeaders(count) => {
            let mut response = head(200);
            for number in 0..count {
                let name = format!("x-many-{number}").parse::<HeaderName>();
                let value = HeaderValue::from_str(&"m".repeat(100));
                let (name, value) = (name.expect("a name"), value.expect("a value"));
                response.headers_mut().insert(name, value);
            }
            exchange.reply(response, &body, Some(trailers(0)));
        }
        Behaviour::SmallFrames(count) => {
            let message = framed(&vec![b's'; count]);
            let Some(mut stream) = exchange.hold(head(200), b"") else {
                return;
            };
            for byte in message {
                // The client has gone, which is its right; one byte at a time goes out with each turn.
                if stream
                    .send_data(Bytes::copy_from_slice(&[byte]), false)
                    .is_err()
                {
                    return;
                }
                tokio::task::yield_now().await;
            }
            // As above.
            let _ = stream.send_trailers(trailers(0));
        }
        Behaviour::Good | Behaviour::Refuse | Behaviour::Reset(_) => {
            exchange.reply(head(200), &body, Some(trailers(0)));
        }
    }
}

fn part(half: &[u8], stage: Stage) -> &[u8] {
    if stage == Stage::Message { half } else { b"" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{client::Http2, client::grpc_request, wait::within};

    /// What a client sees: the status, how many bytes came, `grpc-status`.
    async fn ask(backend: &BadBackend) -> Result<(u16, usize, Option<i32>), h2::Error> {
        let client = Http2::connect_plain(backend.address()).await.unwrap();
        let message = framed(b"four");
        let reply = client.call(grpc_request("/a.B/C", &[("x-test-id", "1")]), &message);
        let reply = within("an answer", reply).await?;
        Ok((reply.status.as_u16(), reply.body.len(), reply.grpc_status()))
    }

    #[tokio::test]
    async fn answers_wrongly() {
        let backend = BadBackend::start(Behaviour::Good).await;
        for (behaviour, seen) in [
            (Behaviour::Good, (200, 9, Some(0))),
            (Behaviour::GoAwayEvery(1), (200, 9, Some(0))),
            (Behaviour::HalfTrailers, (200, 9, None)),
            (Behaviour::NoTrailers, (200, 9, None)),
            (Behaviour::Informational(3), (200, 9, Some(0))),
            (Behaviour::Html(502), (502, 31, None)),
            (Behaviour::ManyHeaders(50), (200, 9, Some(0))),
            (Behaviour::SmallFrames(50), (200, 55, Some(0))),
        ] {
            backend.set(behaviour);
            assert_eq!(ask(&backend).await.unwrap(), seen, "{behaviour:?}");
        }
        assert_eq!(backend.journal().executions("1"), 8);
    }

    #[tokio::test]
    async fn ends_streams_and_connections_at_each_stage() {
        let backend = BadBackend::start(Behaviour::Refuse).await;
        assert_eq!(
            ask(&backend).await.unwrap_err().reason(),
            Some(Reason::REFUSED_STREAM)
        );
        for stage in Stage::ALL {
            backend.set(Behaviour::Reset(stage));
            let reset = ask(&backend).await.unwrap_err();
            assert_eq!(reset.reason(), Some(Reason::INTERNAL_ERROR), "{stage:?}");
            backend.set(Behaviour::Drop(stage));
            let dropped = ask(&backend).await.unwrap_err();
            assert!(dropped.is_io(), "{stage:?}: {dropped}");
            backend.set(Behaviour::Hang(stage));
            let hangs = tokio::time::timeout(std::time::Duration::from_millis(50), ask(&backend));
            assert!(hangs.await.is_err(), "{stage:?}");
        }
    }
}
