//! Backends that misbehave, stream by stream: a handler is given each request of a real HTTP/2 server (the crate
//! `h2`) with the means to answer it in any way, or not at all.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use tokio::{net::TcpListener, runtime::Runtime, sync::mpsc};

use crate::{
    backend::own_thread,
    journal::{ID, Journal, Seen},
    loopback,
};

/// A running scripted backend. It ends, abruptly, with this value.
pub struct Scripted {
    address: SocketAddr,
    /// What arrived.
    pub journal: Journal,
    runtime: Option<Runtime>,
}

/// One request, and every way to answer it.
pub struct Exchange {
    /// The head, and the body as it comes.
    pub request: Request<RecvStream>,
    /// Which request this is at the backend, from 0.
    pub number: usize,
    /// Which connection it came on, from 0.
    pub connection: usize,
    respond: SendResponse<Bytes>,
    close: mpsc::UnboundedSender<Close>,
    journal: Journal,
}

/// How a connection ends.
enum Close {
    /// GOAWAY that tells the last stream, which then may finish.
    Graceful,
    /// GOAWAY with this reason, and the end.
    Abrupt(Reason),
    /// No word: the socket is dropped.
    Drop,
}

impl Scripted {
    /// Starts one whose requests all go to `handler`, each in a task of its own.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start<F>(handler: impl Fn(Exchange) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_with(h2::server::Builder::new(), handler).await
    }

    /// [`start`](Self::start), with settings of the HTTP/2 server.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start_with<F>(
        settings: h2::server::Builder,
        handler: impl Fn(Exchange) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = own_thread("scripted");
        let journal = Journal::default();
        let listener = runtime
            .spawn(TcpListener::bind((loopback::address(), 0)))
            .await
            .expect("binding doesn't panic")
            .expect("the kernel has a free port");
        let address = listener.local_addr().expect("it is bound");
        runtime.spawn(accept(
            listener,
            settings,
            Arc::new(handler),
            journal.clone(),
        ));
        Self {
            address,
            journal,
            runtime: Some(runtime),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process stands still, as after SIGSTOP, until the value is dropped: the kernel accepts, and nobody reads.
    #[must_use]
    pub fn freeze(&self) -> std::sync::mpsc::Sender<()> {
        let (thaw, frozen) = std::sync::mpsc::channel::<()>();
        if let Some(runtime) = &self.runtime {
            // Its one thread is kept; an error is what it waits for.
            runtime.spawn(async move { frozen.recv().is_err() });
        }
        thaw
    }

    /// Listener and connections vanish.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Exchange {
    /// Reads the body to its end, giving credit. `None`: it was cut off.
    pub async fn body(&mut self) -> Option<Vec<u8>> {
        let mut all = Vec::new();
        let body = self.request.body_mut();
        while let Some(chunk) = body.data().await {
            let chunk = chunk.ok()?;
            // Fails only when the stream is gone, which the next read tells.
            let _ = body.flow_control().release_capacity(chunk.len());
            all.extend_from_slice(&chunk);
        }
        Some(all)
    }

    /// Answers headers, `body` and trailers: everything in its place.
    pub fn reply(mut self, response: Response<()>, body: &[u8], trailers: Option<HeaderMap>) {
        let whole = body.is_empty() && trailers.is_none();
        // Every error below: the client has gone, which is its right.
        let Ok(mut stream) = self.respond.send_response(response, whole) else {
            return;
        };
        if !body.is_empty() {
            let _ = stream.send_data(Bytes::copy_from_slice(body), trailers.is_none());
        }
        if let Some(trailers) = trailers {
            let _ = stream.send_trailers(trailers);
        }
    }

    /// A good gRPC answer with one message.
    pub fn ok(self, message: &[u8]) {
        self.reply(head(200), &framed(message), Some(trailers(0)));
    }

    /// A 1xx answer before the real one.
    pub fn informational(&mut self, status: u16) {
        let response = Response::builder()
            .status(status)
            .body(())
            .expect("a status that exists");
        // As in `reply`.
        let _ = self.respond.send_informational(response);
    }

    /// RST_STREAM before anything else.
    pub fn reset(mut self, reason: Reason) {
        self.respond.send_reset(reason);
    }

    /// Headers and `body`, then RST_STREAM.
    pub async fn reset_after(mut self, response: Response<()>, body: &[u8], reason: Reason) {
        let Ok(mut stream) = self.respond.send_response(response, false) else {
            return;
        };
        if !body.is_empty() {
            // As in `reply`.
            let _ = stream.send_data(Bytes::copy_from_slice(body), false);
        }
        // `h2` drops what it hasn't written when a stream is reset: let its connection have a turn first.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        stream.send_reset(reason);
    }

    /// Headers and `body`, then the connection ends without a word.
    pub async fn drop_after(mut self, response: Response<()>, body: &[u8]) {
        let Ok(mut stream) = self.respond.send_response(response, false) else {
            return;
        };
        if !body.is_empty() {
            // As in `reply`.
            let _ = stream.send_data(Bytes::copy_from_slice(body), false);
        }
        // As in `reset_after`.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        // The connection may have ended already.
        let _ = self.close.send(Close::Drop);
    }

    /// Headers and `body`, then nothing: gives the stream, whose drop resets it.
    pub fn hold(mut self, response: Response<()>, body: &[u8]) -> Option<h2::SendStream<Bytes>> {
        let mut stream = self.respond.send_response(response, false).ok()?;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body), false).ok()?;
        }
        Some(stream)
    }

    /// Never answers; notes in the journal when the client gives up.
    pub async fn hang(mut self) {
        let reset = std::future::poll_fn(|cx| self.respond.poll_reset(cx)).await;
        if reset.is_ok() {
            let id = self
                .request
                .headers()
                .get(ID)
                .and_then(|id| id.to_str().ok());
            let entry = (id.unwrap_or_default().to_owned(), Instant::now());
            self.journal.add(|all| all.cancelled.push(entry));
        }
    }

    /// A GOAWAY that tells the last stream; running ones may finish.
    pub fn goaway(&self) {
        // The connection may have ended already.
        let _ = self.close.send(Close::Graceful);
    }

    /// GOAWAY with `reason`, then the connection ends.
    pub fn abort_connection(&self, reason: Reason) {
        // As above.
        let _ = self.close.send(Close::Abrupt(reason));
    }

    /// The connection ends without a word.
    pub fn drop_connection(&self) {
        // As above.
        let _ = self.close.send(Close::Drop);
    }
}

/// The head of a gRPC response.
pub fn head(status: u16) -> Response<()> {
    let builder = Response::builder()
        .status(status)
        .header("content-type", "application/grpc");
    builder.body(()).expect("a status that exists")
}

/// Trailers with this `grpc-status`.
pub fn trailers(status: i32) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    trailers
}

/// `message` with gRPC's five bytes before it.
pub fn framed(message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend((message.len() as u32).to_be_bytes());
    bytes.extend(message);
    bytes
}

async fn accept<H, F>(
    listener: TcpListener,
    settings: h2::server::Builder,
    handler: Arc<H>,
    journal: Journal,
) where
    H: Fn(Exchange) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    while let Ok((stream, peer)) = listener.accept().await {
        let (settings, handler, journal) = (settings.clone(), handler.clone(), journal.clone());
        let mut connection = 0;
        journal.add(|all| {
            connection = all.connections;
            all.connections += 1;
        });
        tokio::spawn(async move {
            if let Ok(http2) = settings.handshake(stream).await {
                serve(http2, connection, peer, handler.as_ref(), &journal).await;
            }
            journal.add(|all| all.connections_ended += 1);
        });
    }
}

async fn serve<H, F>(
    mut http2: h2::server::Connection<tokio::net::TcpStream, Bytes>,
    connection: usize,
    peer: SocketAddr,
    handler: &H,
    journal: &Journal,
) where
    H: Fn(Exchange) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let (close, mut closed) = mpsc::unbounded_channel();
    loop {
        let (request, respond) = tokio::select! {
            biased;
            // `close` lives here, so there is always a next one.
            Some(how) = closed.recv() => match how {
                Close::Graceful => {
                    http2.graceful_shutdown();
                    continue;
                }
                Close::Abrupt(reason) => {
                    http2.abrupt_shutdown(reason);
                    continue;
                }
                Close::Drop => return,
            },
            next = http2.accept() => match next {
                Some(Ok(stream)) => stream,
                _ => return,
            },
        };
        let mut seen = Seen::of(&request);
        seen.peer = Some(peer);
        let number = journal.begin(seen);
        let (close, journal) = (close.clone(), journal.clone());
        tokio::spawn(handler(Exchange {
            request,
            number,
            connection,
            respond,
            close,
            journal,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::grpc_request;

    #[tokio::test]
    async fn answers_as_scripted() {
        let backend = Scripted::start(async |mut exchange: Exchange| match exchange.number {
            0 => exchange.reset(Reason::REFUSED_STREAM),
            1 => {
                exchange
                    .reset_after(head(200), b"x", Reason::INTERNAL_ERROR)
                    .await
            }
            2 => exchange.drop_connection(),
            _ => {
                let body = exchange.body().await.unwrap();
                exchange.ok(&body);
            }
        })
        .await;
        let connect = async || {
            let stream = tokio::net::TcpStream::connect(backend.address())
                .await
                .unwrap();
            let (send, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            send
        };
        let mut send = connect().await;
        let ask = async |send: &mut h2::client::SendRequest<Bytes>| {
            *send = send.clone().ready().await?;
            let (response, mut body) = send.send_request(grpc_request("/a.B/C", &[]), false)?;
            body.send_data(Bytes::from_static(b"body"), true)?;
            crate::client::Reply::read(response.await?).await
        };
        let refused = ask(&mut send).await.unwrap_err();
        assert_eq!(refused.reason(), Some(Reason::REFUSED_STREAM));
        let reset = ask(&mut send).await.unwrap_err();
        assert_eq!(reset.reason(), Some(Reason::INTERNAL_ERROR));
        assert!(ask(&mut send).await.unwrap_err().is_io());
        let mut send = connect().await;
        let reply = ask(&mut send).await.unwrap();
        assert_eq!(
            (reply.grpc_status(), reply.body),
            (Some(0), framed(b"body"))
        );
        assert_eq!(backend.journal.count(), 4);
    }
}
