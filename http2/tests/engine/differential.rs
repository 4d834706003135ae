//! Both roles against the crate `h2`: random calls, windows, SETTINGS and cuts of the byte stream.
//!
//! `h2` judges every frame that we send, and ends the connection or the stream over a wrong one;
//! we judge that every body comes back as it went.

use std::{future::poll_fn, task::Poll, time::Duration};

use bytes::Bytes;
use http2::{Config, Connection, Event, Role};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    time::Instant,
};

use crate::owners::{Caller, Echo, Owner, Plan, body, path, plan};
use crate::support::list;

/// Drives one engine over `io` until its owner is done or the peer hangs up.
async fn drive<O: Owner>(role: Role, config: Config, io: DuplexStream, owner: &mut O, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut engine = Connection::new(role, config, Instant::now().into_std());
    let (mut reader, mut writer) = tokio::io::split(io);
    let mut buf = vec![0; 70_000];
    loop {
        owner.turn(&mut engine, Instant::now().into_std());
        if role == Role::Client && owner.done(&engine) && engine.output().is_empty() {
            return;
        }
        let most = [1, 10, 1000, 70_000][rng.random_range(0..4)];
        let size = rng.random_range(1..=most);
        let out = engine.output();
        let out = out[..out.len().min(most)].to_vec();
        tokio::select! {
            // The seed alone decides, so that a failure comes again.
            biased;
            read = reader.read(&mut buf[..size]) => {
                let Ok(n @ 1..) = read else { break };
                let mut input = &buf[..n];
                let now = Instant::now().into_std();
                while let Some(event) = engine.receive(&mut input, now).expect("h2 is honest") {
                    owner.event(&mut engine, event, now);
                }
            }
            wrote = writer.write(&out), if !out.is_empty() => match wrote {
                Ok(n) => engine.consume(n),
                Err(_) => break,
            },
            // Owners act at random: give them turns.
            () = tokio::time::sleep(Duration::from_millis(1)) => {}
        }
    }
    assert!(role == Role::Server, "the h2 server hung up");
    assert_eq!((engine.stream_count(), engine.pending_bytes()), (0, 0));
}

fn config(rng: &mut StdRng) -> Config {
    Config {
        max_concurrent_streams: rng.random_range(1..20),
        stream_window: [1000, 16_384, 65_535, 1 << 18][rng.random_range(0..4)],
        connection_window: [1, 80_000, 1 << 20][rng.random_range(0..3)],
        output_limit: [1, 5000, 1 << 18][rng.random_range(0..3)],
        ..Config::default()
    }
}

fn window(rng: &mut StdRng) -> u32 {
    [500, 16_384, 65_535, 1 << 20][rng.random_range(0..4)]
}

/// Windows that `h2` announces while streams run. They only grow: when one shrinks after its
/// streams' data was consumed, `h2` never announces what was consumed, and both sides wait for
/// ever (seen with 0.4.20). `windows.rs` has the shrinking ones.
struct Changes {
    rng: StdRng,
    stream: u32,
    connection: u32,
    left: u32,
}

impl Changes {
    fn new(stream: u32, connection: u32, seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            stream,
            connection,
            left: 30,
        }
    }

    /// Now and then, new sizes of a stream's window and of the connection's.
    fn next(&mut self) -> Option<(u32, u32)> {
        // Not more than what our budget for SETTINGS allows at once: no time passes here.
        if self.left == 0 || !self.rng.random_bool(0.05) {
            return None;
        }
        self.left -= 1;
        self.stream += self.rng.random_range(0..20_000);
        self.connection += self.rng.random_range(0..20_000);
        Some((self.stream, self.connection))
    }
}

/// Sends a body through `h2`, in random pieces; `end`: the stream's end with the last of them.
async fn send(
    stream: &mut h2::SendStream<Bytes>,
    mut body: Bytes,
    end: bool,
    mut rng: StdRng,
) -> Result<(), h2::Error> {
    while !body.is_empty() {
        let want = body.len().min(rng.random_range(1..=50_000));
        stream.reserve_capacity(want);
        let Some(n) = poll_fn(|cx| stream.poll_capacity(cx)).await else {
            return Ok(());
        };
        let n = n?.min(body.len());
        if rng.random_bool(0.2) {
            tokio::task::yield_now().await;
        }
        stream.send_data(body.split_to(n), end && body.is_empty())?;
    }
    Ok(())
}

/// One call of the `h2` client to our echo; whether the whole echo came.
async fn call(
    client: h2::client::SendRequest<Bytes>,
    number: usize,
    mut rng: StdRng,
) -> Result<bool, h2::Error> {
    let (plan, body) = (plan(&mut rng), Bytes::from(body(&mut rng)));
    let request = http::Request::post(format!("http://a{}", path(plan, number)))
        .header("x-number", number.to_string())
        .header("x-same", "the same in all calls, for the table")
        .body(())
        .unwrap();
    let mut client = client.ready().await?;
    let end = body.is_empty() && plan != Plan::Trailers;
    let (response, mut stream) = client.send_request(request, end)?;
    if plan == Plan::Cancel(0) {
        stream.send_reset(h2::Reason::CANCEL);
        return Ok(false);
    }
    let sent = body.clone();
    let trailers = plan == Plan::Trailers;
    let sender = tokio::spawn(async move {
        if !end {
            // Early answers end this early.
            if send(&mut stream, sent, !trailers, rng).await.is_ok() && trailers {
                let mut map = http::HeaderMap::new();
                map.insert("x-trailer", "1".parse().unwrap());
                let _ = stream.send_trailers(map);
            }
        }
        stream
    });
    let (_, mut incoming) = response.await?.into_parts();
    let mut back = Vec::new();
    while let Some(bytes) = incoming.data().await {
        let bytes = bytes?;
        back.extend_from_slice(&bytes);
        if matches!(plan, Plan::Cancel(n) if back.len() >= n) {
            sender.abort();
            return Ok(false);
        }
        incoming.flow_control().release_capacity(bytes.len())?;
    }
    let end = incoming.trailers().await?.expect("trailers");
    if plan == Plan::Early {
        return Ok(false);
    }
    assert_eq!(end["x-length"], body.len().to_string());
    assert!(back == body, "the echo differs");
    Ok(true)
}

async fn our_server(seed: u64) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let (ours, theirs) = tokio::io::duplex(rng.random_range(1..100_000));
    let config = config(&mut rng);
    let server = tokio::spawn(async move {
        let mut echo = Echo::default();
        drive(Role::Server, config, ours, &mut echo, seed + 1).await;
        echo.seen
    });
    let (stream, target) = (window(&mut rng), 65_535 + window(&mut rng));
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(stream)
        .initial_connection_window_size(target)
        .max_frame_size(rng.random_range(16_384..100_000))
        .header_table_size([0, 100, 4096, 10_000][rng.random_range(0..4)])
        .initial_max_send_streams(1);
    let (client, mut connection) = builder.handshake::<_, Bytes>(theirs).await.unwrap();
    let mut changes = Changes::new(stream, target, seed + 2);
    let connection = tokio::spawn(async move {
        poll_fn(|cx| {
            if let Some((stream, target)) = changes.next() {
                // Refused while an earlier change isn't acknowledged.
                let _ = connection.set_initial_window_size(stream);
                connection.set_target_window_size(target);
            }
            std::pin::Pin::new(&mut connection).poll(cx)
        })
        .await
    });
    let calls: Vec<_> = (0..40)
        .map(|n| tokio::spawn(call(client.clone(), n, StdRng::seed_from_u64(rng.random()))))
        .collect();
    drop(client);
    let mut whole = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(echoed) => whole += usize::from(echoed),
            Err(e) => assert!(e.is_reset() && e.is_remote(), "seed {seed}: {e:?}"),
        }
    }
    connection
        .await
        .unwrap()
        .unwrap_or_else(|e| panic!("seed {seed}: {e:?}"));
    assert!(server.await.unwrap() > 0);
    whole
}

/// The echo as a server of the crate `h2`.
async fn echo(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    mut rng: StdRng,
) -> Result<(), h2::Error> {
    let path = request.uri().path().to_string();
    let mut incoming = request.into_body();
    if path.starts_with("/reset") {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        return Ok(());
    }
    if path.ends_with('1') {
        respond.send_informational(http::Response::builder().status(103).body(()).unwrap())?;
    }
    let mut stream = respond.send_response(http::Response::new(()), false)?;
    let mut length = 0;
    if !path.starts_with("/early") {
        while let Some(bytes) = incoming.data().await {
            let bytes = bytes?;
            length += bytes.len();
            incoming.flow_control().release_capacity(bytes.len())?;
            send(
                &mut stream,
                bytes,
                false,
                StdRng::seed_from_u64(rng.random()),
            )
            .await?;
        }
        incoming.trailers().await?;
    }
    let mut map = http::HeaderMap::new();
    map.insert("grpc-status", "0".parse().unwrap());
    map.insert("x-length", length.to_string().parse().unwrap());
    stream.send_trailers(map)
}

async fn our_client(seed: u64) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let (ours, theirs) = tokio::io::duplex(rng.random_range(1..100_000));
    let (stream, target) = (window(&mut rng), 65_535 + window(&mut rng));
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(stream)
        .initial_connection_window_size(target)
        .max_frame_size(rng.random_range(16_384..100_000))
        .header_table_size([0, 100, 4096, 10_000][rng.random_range(0..4)])
        .max_concurrent_streams(rng.random_range(1..30));
    let mut changes = Changes::new(stream, target, seed + 2);
    let server = tokio::spawn(async move {
        let mut connection = builder.handshake::<_, Bytes>(theirs).await.unwrap();
        let mut accepted = 0;
        loop {
            let next = poll_fn(|cx| {
                if let Some((stream, target)) = changes.next() {
                    let _ = connection.set_initial_window_size(stream);
                    connection.set_target_window_size(target);
                }
                connection.poll_accept(cx)
            });
            match next.await {
                Some(Ok((request, respond))) => {
                    accepted += 1;
                    let rng = StdRng::seed_from_u64(changes.rng.random());
                    tokio::spawn(echo(request, respond, rng));
                }
                Some(Err(e)) => {
                    // The client hangs up without a word when all is done.
                    assert!(e.is_io(), "seed {seed}: {e:?}");
                    return accepted;
                }
                None => return accepted,
            }
        }
    });
    let config = config(&mut rng);
    let mut caller = Caller::new(StdRng::seed_from_u64(seed + 3), 40);
    drive(Role::Client, config, ours, &mut caller, seed + 1).await;
    assert!(server.await.unwrap() > 0);
    caller.whole
}

/// Opens streams and cancels each in the next turn, then makes one call to its end.
#[derive(Default)]
struct Canceller {
    cancelled: usize,
    open: Option<u32>,
    answered: bool,
}

impl Canceller {
    const CANCELS: usize = 95;
}

impl Owner for Canceller {
    fn event(&mut self, _: &mut Connection, event: Event<'_>, _: std::time::Instant) {
        match event {
            Event::Headers { .. } | Event::Settings { .. } => {}
            Event::Trailers { stream, .. } => self.answered |= self.open == Some(stream),
            other => panic!("{other:?}"),
        }
    }

    fn turn(&mut self, engine: &mut Connection, now: std::time::Instant) {
        match self.open {
            Some(stream) if self.cancelled < Self::CANCELS => {
                engine.reset(stream, http2::Reason::CANCEL);
                self.cancelled += 1;
                self.open = None;
            }
            None if engine.can_open() => {
                let head = list(&[(":method", "POST"), (":scheme", "http"), (":path", "/")]);
                self.open = engine.open(head, self.cancelled == Self::CANCELS, 0).ok();
            }
            _ => {}
        }
        engine.flush(now);
    }

    fn done(&self, engine: &Connection) -> bool {
        self.answered && engine.is_empty()
    }
}

/// A backend that stands still, as in a long collection of garbage, then reads all at once what
/// was cancelled meanwhile: `h2` would end the connection at the 21st reset of a stream that it
/// hasn't accepted. `displaced`: between two times, its thread is so often taken away while it accepts,
/// when it has acknowledged what it has read and taken one stream.
async fn stalled_server(seed: u64, displaced: usize) -> usize {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let mut connection = h2::server::handshake(theirs).await.unwrap();
        let mut open = true;
        for turn in (0..=displaced).cycle() {
            if !open {
                break;
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
            // As hyper does it: accept until there is nothing more to read.
            open = poll_fn(|cx| {
                loop {
                    match connection.poll_accept(cx) {
                        Poll::Ready(Some(next)) => {
                            let (request, respond) =
                                next.unwrap_or_else(|e| panic!("seed {seed}: {e:?}"));
                            let rng = StdRng::seed_from_u64(seed);
                            tokio::spawn(echo(request, respond, rng));
                            if turn < displaced {
                                return Poll::Ready(true);
                            }
                        }
                        Poll::Ready(None) => return Poll::Ready(false),
                        Poll::Pending => return Poll::Ready(true),
                    }
                }
            })
            .await;
        }
    });
    let mut owner = Canceller::default();
    drive(Role::Client, Config::default(), ours, &mut owner, seed).await;
    owner.cancelled
}

#[test]
fn cancels_at_a_stalled_server_leave_its_connection_whole() {
    // Once it is only our first SETTINGS, and twice pairs, that are acknowledged so.
    for displaced in 0..4 {
        let whole = run(0..5, |seed| stalled_server(seed, displaced));
        assert_eq!(whole, 5 * Canceller::CANCELS);
    }
}

/// Time is paused: it moves on only when everything waits, so a stall shows at once.
fn run<F: Future<Output = usize>>(seeds: std::ops::Range<u64>, f: impl Fn(u64) -> F) -> usize {
    let mut whole = 0;
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        whole += runtime
            .block_on(async { tokio::time::timeout(Duration::from_secs(3600), f(seed)).await })
            .unwrap_or_else(|_| panic!("seed {seed} goes nowhere"));
    }
    whole
}

#[test]
fn our_server_and_the_client_of_h2() {
    assert!(run(0..20, our_server) > 20 * 15);
}

#[test]
fn our_client_and_the_server_of_h2() {
    assert!(run(0..20, our_client) > 20 * 15);
}

/// For longer hunts: `SEEDS=1000 cargo test -p http2 -- --ignored`.
#[test]
#[ignore = "a hunt, not a check"]
fn many_seeds() {
    let seeds = std::env::var("SEEDS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(500);
    run(1000..1000 + seeds, our_server);
    run(1000..1000 + seeds, our_client);
}
