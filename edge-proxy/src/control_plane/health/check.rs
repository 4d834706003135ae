//! One endpoint's checker: `grpc.health.v1.Health/Check` on a lasting connection of its own.
//!
//! The connection is opened by the first check and again by the next one after it ended, was refused or timed out: a
//! connection that swallowed a check can't be trusted with another. A check whose connection ended under it without
//! an error (GOAWAY with NO_ERROR, whether it covers the check's stream or not, see [`farewell`](super::farewell); or
//! before the request was written) is asked once more on a new one, within the same deadline: servers end old
//! connections as they please, and that says nothing about their health.
//!
//! An answer's message has two bytes. One of a backend that lies is as long as it likes, and is read on the thread that all
//! checks share: how long a message may be is bounded, and by the windows what comes unasked.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    Outcome,
    farewell::{Farewell, Watched},
};
use crate::{control_plane::config::HealthCheckSpec, snapshot::EndpointShared};

/// Checks one endpoint; at most one check at a time.
#[derive(Debug)]
pub(crate) struct Checker {
    endpoint: Endpoint,
    address: SocketAddr,
    service: String,
    timeout: Duration,
    /// The lasting connection; `None`: the next check opens one.
    connection: Mutex<Option<Connection>>,
}

/// The lasting connection, or one that opens when it is used.
#[derive(Clone, Debug)]
struct Connection {
    channel: Channel,
    /// How it ended, if it has.
    farewell: Arc<Farewell>,
}

/// What came of asking once.
#[derive(Debug)]
struct Answer {
    outcome: Outcome,
    /// The connection ended as HTTP/2 lets it, the backend has done nothing: worth a new connection.
    again: bool,
}

impl Checker {
    /// For `endpoint`, as `spec` says. Opens nothing yet.
    ///
    /// # Errors
    /// Never for an address that was parsed; tonic's constructors take text.
    pub(crate) fn new(
        endpoint: &EndpointShared,
        spec: &HealthCheckSpec,
    ) -> Result<Self, tonic::transport::Error> {
        let address = endpoint.address;
        let endpoint = Endpoint::from_shared(format!("http://{}", endpoint.label))?
            .user_agent(USER_AGENT)?
            .connect_timeout(spec.timeout)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        Ok(Self {
            endpoint,
            address,
            service: spec.service.clone(),
            timeout: spec.timeout,
            connection: Mutex::new(None),
        })
    }

    /// Asks once. Ends within the check's timeout.
    pub(crate) async fn check(&self) -> Outcome {
        let asked = tokio::time::timeout(self.timeout, async {
            let first = self.ask().await;
            if first.again {
                self.ask().await.outcome
            } else {
                first.outcome
            }
        });
        let outcome = asked.await.unwrap_or(Outcome::TimedOut(self.timeout));
        if !matches!(
            outcome,
            Outcome::Serving | Outcome::NotServing(_) | Outcome::Status { .. }
        ) {
            self.hang_up();
        }
        outcome
    }

    async fn ask(&self) -> Answer {
        let mut request = Request::new(HealthCheckRequest {
            service: self.service.clone(),
        });
        // tonic writes it as grpc-timeout and keeps to it, too.
        request.set_timeout(self.timeout);
        let Connection { channel, farewell } = self.connection();
        farewell.check_begins();
        let mut client = HealthClient::new(channel).max_decoding_message_size(LARGEST_ANSWER);
        let answer = match client.check(request).await {
            Ok(response) => Answer::from(match response.get_ref().status() {
                ServingStatus::Serving => Outcome::Serving,
                other => Outcome::NotServing(other.as_str_name().to_owned()),
            }),
            Err(status) => self.judge(&status, &farewell),
        };
        if answer.again {
            self.hang_up();
        }
        answer
    }

    /// tonic gives one type for what was received and for what went wrong on the way; only the latter has a source.
    fn judge(&self, status: &Status, farewell: &Farewell) -> Answer {
        let Some(source) = status.source() else {
            return Answer::from(match status.code() {
                // Every check carries our deadline: a backend that says so ran into it.
                Code::DeadlineExceeded | Code::Cancelled => Outcome::TimedOut(self.timeout),
                code => Outcome::Status {
                    code: code as u32,
                    text: match status.message() {
                        "" => format!("{code:?}"),
                        message => format!("{code:?}: {}", cut(message)),
                    },
                },
            });
        };
        if causes(source).any(is_time_out) {
            return Answer::from(Outcome::TimedOut(self.timeout));
        }
        if farewell.is_graceful() {
            return Answer {
                outcome: Outcome::GoAway,
                again: true,
            };
        }
        let deepest = causes(source).last().unwrap_or(source);
        Answer {
            outcome: Outcome::Connection(cut(&deepest.to_string())),
            again: causes(source).any(is_unsent),
        }
    }

    /// The lasting connection, or one that opens when it is used.
    fn connection(&self) -> Connection {
        self.slot()
            .get_or_insert_with(|| {
                let farewell = Arc::new(Farewell::default());
                Connection {
                    channel: self
                        .endpoint
                        .connect_with_connector_lazy(tower::service_fn({
                            let (address, farewell) = (self.address, farewell.clone());
                            move |_| connect(address, farewell.clone())
                        })),
                    farewell,
                }
            })
            .clone()
    }

    fn hang_up(&self) {
        *self.slot() = None;
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Connection>> {
        // The slot is whole whatever panicked: it is only ever replaced.
        self.connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            again: false,
        }
    }
}

async fn connect(
    address: SocketAddr,
    farewell: Arc<Farewell>,
) -> io::Result<TokioIo<Watched<TcpStream>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    farewell.connected();
    Ok(TokioIo::new(Watched::new(stream, farewell)))
}

/// An error and what is behind it, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

fn is_time_out(cause: &(dyn Error + 'static)) -> bool {
    cause.is::<tonic::TimeoutExpired>()
        || cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::TimedOut)
}

/// The connection was gone before the request was written.
fn is_unsent(cause: &(dyn Error + 'static)) -> bool {
    cause
        .downcast_ref::<hyper::Error>()
        .is_some_and(hyper::Error::is_canceled)
}

/// A backend's text is shown to operators, not trusted to be short.
fn cut(text: &str) -> String {
    let end = text
        .char_indices()
        .nth(200)
        .map_or(text.len(), |(at, _)| at);
    text[..end].escape_debug().to_string()
}

/// Bytes of an answer's message. SERVING takes two; the rest is for fields that later versions may add.
const LARGEST_ANSWER: usize = 4096;

/// Bytes that a backend may send ahead, for a stream and for the connection: HTTP/2's least for the latter.
const WINDOW: u32 = 65_535;

/// tonic adds its own name after it.
const USER_AGENT: &str = concat!("edge-proxy/HC/", env!("CARGO_PKG_VERSION"));

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, net::TcpListener};

    use super::{
        super::script::{Backend, FLOOD, Reply},
        *,
    };
    use crate::data_plane::testing::{at_once, frozen, pass};

    /// Long enough never to pass by chance.
    const LONG: Duration = Duration::from_secs(30);

    fn checker(address: SocketAddr, timeout: Duration) -> Checker {
        let spec = HealthCheckSpec {
            service: "api.Echo".into(),
            timeout,
            interval: LONG,
            unhealthy_edge_interval: LONG,
            unhealthy_threshold: 2,
            healthy_threshold: 2,
        };
        Checker::new(&EndpointShared::new(address), &spec).unwrap()
    }

    /// The outcome of one check of a backend that always does this.
    async fn outcome(reply: Reply) -> Outcome {
        let backend = Backend::start(move |_| reply).await;
        checker(backend.address, LONG).check().await
    }

    #[tokio::test]
    async fn the_request_says_who_asks_what_and_for_how_long() {
        let backend = Backend::start(|_| Reply::Health(1)).await;
        assert_eq!(
            checker(backend.address, LONG).check().await,
            Outcome::Serving
        );
        let requests = backend.requests();
        let [request] = &requests[..] else {
            panic!("{requests:?}")
        };
        assert_eq!(request.method, "POST");
        assert_eq!(request.path, "/grpc.health.v1.Health/Check");
        assert!(
            request.user_agent.starts_with("edge-proxy/HC"),
            "{}",
            request.user_agent
        );
        assert_eq!(request.grpc_timeout, "30000000u");
        assert_eq!(request.body, b"\0\0\0\0\x0a\x0a\x08api.Echo");
    }

    #[tokio::test]
    async fn checks_share_one_lasting_connection() {
        let backend = Backend::start(|_| Reply::Health(1)).await;
        let checker = checker(backend.address, LONG);
        for _ in 0..5 {
            assert_eq!(checker.check().await, Outcome::Serving);
        }
        assert_eq!(backend.connections(), 1);
    }

    #[tokio::test]
    async fn not_serving_and_statuses_are_received() {
        assert_eq!(
            outcome(Reply::Health(2)).await,
            Outcome::NotServing("NOT_SERVING".into())
        );
        assert_eq!(
            outcome(Reply::Health(0)).await,
            Outcome::NotServing("UNKNOWN".into())
        );
        for (status, code) in [("2", 2), ("5", 5), ("12", 12), ("13", 13), ("14", 14)] {
            let Outcome::Status {
                code: received,
                text,
            } = outcome(Reply::Status(status)).await
            else {
                panic!("{status} isn't received as a status")
            };
            assert_eq!(received, code);
            assert!(text.ends_with("as scripted"), "{text}");
        }
        // No gRPC in it at all is an answer as well.
        assert!(matches!(
            outcome(Reply::PlainHttp).await,
            Outcome::Status { .. }
        ));
    }

    #[tokio::test]
    async fn an_answer_that_is_too_long_to_be_one_is_not_read() {
        // One byte more than is read, of which none comes: whoever would read it waits for ever.
        let Outcome::Status { code, text } = outcome(Reply::Begin(4097)).await else {
            panic!("it is read");
        };
        assert_eq!(code, Code::OutOfRange as u32, "{text}");
    }

    #[tokio::test]
    async fn a_backend_may_send_little_ahead() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let checker = checker(listener.local_addr().unwrap(), LONG);
        let windows = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.read_exact(&mut [0; 24]).await.unwrap();
            let (mut stream, mut connection) = (65_535, 65_535);
            loop {
                let mut head = [0; 9];
                socket.read_exact(&mut head).await.unwrap();
                let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
                socket.read_exact(&mut payload).await.unwrap();
                let number = |at: &[u8]| u32::from_be_bytes(at.try_into().unwrap());
                match head[3] {
                    // HEADERS: whatever it says of the connection's window has come.
                    1 => return (stream, connection),
                    // SETTINGS_INITIAL_WINDOW_SIZE
                    4 => payload
                        .chunks(6)
                        .filter(|setting| setting[..2] == [0, 4])
                        .for_each(|setting| stream = number(&setting[2..])),
                    // WINDOW_UPDATE
                    8 => connection += number(&payload),
                    _ => {}
                }
            }
        };
        tokio::select! {
            windows = windows => assert_eq!(windows, (65_535, 65_535)),
            outcome = checker.check() => panic!("{outcome:?}"),
        }
    }

    #[tokio::test]
    async fn a_backend_that_floods_the_connection_of_its_checks_loses_it() {
        // Between two checks.
        let backend = Backend::start(|n| match n {
            0 => Reply::Flood(Some(1)),
            _ => Reply::Health(1),
        })
        .await;
        let flooded = checker(backend.address, LONG);
        assert_eq!(flooded.check().await, Outcome::Serving);
        assert!(backend.flooded().await < FLOOD, "all of it was read");
        assert_eq!(flooded.check().await, Outcome::Serving);
        assert_eq!(backend.connections(), 2);
        // In place of an answer.
        let backend = Backend::start(|_| Reply::Flood(None)).await;
        let flooded = checker(backend.address, LONG);
        let (outcome, taken) = tokio::join!(flooded.check(), backend.flooded());
        assert!(taken < FLOOD, "all of it was read");
        let Outcome::Connection(text) = outcome else {
            panic!("{outcome:?}");
        };
        assert!(text.contains("more than its checks ask for"), "{text}");
    }

    #[tokio::test]
    async fn a_backend_that_ran_into_our_deadline_is_a_time_out() {
        for status in ["4", "1"] {
            assert_eq!(
                outcome(Reply::Status(status)).await,
                Outcome::TimedOut(LONG)
            );
        }
    }

    #[test]
    fn silence_is_a_time_out_and_the_next_check_has_a_new_connection() {
        frozen(|| async {
            let backend = Backend::start(|n| {
                if n == 0 {
                    Reply::Silence
                } else {
                    Reply::Health(1)
                }
            })
            .await;
            let checker = checker(backend.address, LONG);
            let silence = async {
                at_once(|| backend.requests().len() == 1).await;
                pass(LONG).await;
            };
            let (outcome, ()) = tokio::join!(checker.check(), silence);
            assert_eq!(outcome, Outcome::TimedOut(LONG));
            assert_eq!(checker.check().await, Outcome::Serving);
            assert_eq!(backend.connections(), 2);
        });
    }

    #[tokio::test]
    async fn refused_reset_closed_and_garbage_are_failures_of_the_connection() {
        let refused = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap()
        };
        let outcomes = [
            checker(refused, LONG).check().await,
            outcome(Reply::Reset(2)).await,
            outcome(Reply::Reset(8)).await,
            outcome(Reply::GoAway(2)).await,
            outcome(Reply::Close).await,
            outcome(Reply::Garbage).await,
        ];
        for outcome in outcomes {
            assert!(matches!(outcome, Outcome::Connection(_)), "{outcome:?}");
        }
    }

    #[tokio::test]
    async fn the_connection_is_opened_again_when_it_ended() {
        let backend = Backend::start(|n| {
            if n == 1 {
                Reply::Close
            } else {
                Reply::Health(1)
            }
        })
        .await;
        let checker = checker(backend.address, LONG);
        assert_eq!(checker.check().await, Outcome::Serving);
        assert!(matches!(checker.check().await, Outcome::Connection(_)));
        assert_eq!(checker.check().await, Outcome::Serving);
        assert_eq!(backend.connections(), 2);
    }

    #[tokio::test]
    async fn a_graceful_goaway_during_a_check_is_no_failure() {
        let backend = Backend::start(|n| {
            if n == 1 {
                Reply::GoAway(0)
            } else {
                Reply::Health(1)
            }
        })
        .await;
        let checker = checker(backend.address, LONG);
        assert_eq!(checker.check().await, Outcome::Serving);
        assert_eq!(
            checker.check().await,
            Outcome::Serving,
            "asked again on a new connection"
        );
        assert_eq!(backend.connections(), 2);
        assert_eq!(backend.requests().len(), 3);
        // One that never does anything else says nothing about its health, and isn't asked for ever.
        assert_eq!(outcome(Reply::GoAway(0)).await, Outcome::GoAway);
    }

    #[tokio::test]
    async fn a_graceful_goaway_that_covers_the_check_and_then_the_end_is_no_failure() {
        let backend = Backend::start(|n| {
            if n == 1 {
                Reply::Leave(0)
            } else {
                Reply::Health(1)
            }
        })
        .await;
        let checker = checker(backend.address, LONG);
        assert_eq!(checker.check().await, Outcome::Serving);
        assert_eq!(
            checker.check().await,
            Outcome::Serving,
            "asked again on a new connection"
        );
        assert_eq!((backend.connections(), backend.requests().len()), (2, 3));
        // Nor does one say anything that does so every time.
        assert_eq!(outcome(Reply::Leave(0)).await, Outcome::GoAway);
    }

    #[tokio::test]
    async fn a_goaway_with_an_error_or_before_a_reset_of_the_check_is_a_failure() {
        for reply in [Reply::Leave(2), Reply::GoAway(11), Reply::LeaveAndReset(8)] {
            let backend = Backend::start(move |_| reply).await;
            let outcome = checker(backend.address, LONG).check().await;
            assert!(
                matches!(outcome, Outcome::Connection(_)),
                "{reply:?}: {outcome:?}"
            );
            assert_eq!(backend.requests().len(), 1, "{reply:?}: not asked again");
        }
    }

    #[tokio::test]
    async fn an_answer_after_a_graceful_goaway_counts() {
        assert_eq!(
            outcome(Reply::LeaveAnswering(2)).await,
            Outcome::NotServing("NOT_SERVING".into())
        );
        assert_eq!(outcome(Reply::LeaveAnswering(1)).await, Outcome::Serving);
    }

    #[tokio::test]
    async fn one_that_hangs_up_on_every_connection_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        for _ in 0..20 {
            let outcome = checker(address, LONG).check().await;
            assert!(matches!(outcome, Outcome::Connection(_)), "{outcome:?}");
        }
    }

    #[test]
    fn a_backends_text_is_cut_and_escaped() {
        assert_eq!(cut("a\nb"), "a\\nb");
        assert_eq!(cut(&"ü".repeat(1000)).chars().count(), 200);
    }
}
