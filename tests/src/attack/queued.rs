//! Requests that wait for a connection to a backend, thousands at a time.
//!
//! The attacker's cluster may have one connection, which its own streams fill; the victim's is another one, of the same worker.
//! All of it comes from one address: where several share an endpoint, who has most gives streams up for those that wait.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use tokio::time::{MissedTickBehavior, interval};

use super::{Arena, Finding, Scale, UNARY, floods::gated, until};
use crate::{
    frames::{self, Frame, Wire, code, flag, kind},
    h2attack::{Reader, Secured, source},
    proxy::Builder,
};

/// All that goes to the tests' service goes there.
pub(super) fn behind_one_connection(builder: Builder, _: Scale) -> Builder {
    builder
        .set("routes.0.cluster", "full")
        .like_the_last("full")
        .with("max_connections", 1)
        .with("per_connection_streams", FULL)
        .with("connect_timeout", "60s")
}

/// All of them are reset, again and again, as fast as a busy worker can read that.
pub(super) async fn resets(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let attacker = arena.attacker.from(source(0));
    let mut holder = attacker.wire(&[]).await?;
    let held = requests(numbers(0, FULL), &gated());
    acknowledged(&mut holder, &held).await?;
    let in_flight = || async {
        arena
            .metric("edge_rpcs_in_flight", &[("cluster", "full")])
            .await
    };
    ensure!(
        in_flight().await as u32 == FULL,
        "the connection isn't full"
    );

    let connections = arena.scale.of(200, 40);
    let mut clients = Vec::new();
    for _ in 0..connections {
        let mut wire = attacker.wire(&[]).await?;
        acknowledged(&mut wire, &[]).await?;
        let (read, write) = wire.split();
        clients.push((Reader::start(read, true), write));
    }
    let waiting = connections as u32 * EACH;
    let asked = frames::grpc_request(UNARY);
    let mut slowest = Some(Duration::ZERO);
    // No faster than so: what a worker has to read for each of them is others' time, however the queue is made.
    let mut ticks = interval(Duration::from_millis(5));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 0..arena.scale.of(10, 2) {
        let numbers = || numbers(round * EACH, EACH);
        for (_, write) in &mut clients {
            ticks.tick().await;
            write.send(&requests(numbers(), &asked)).await?;
        }
        let most = Duration::from_secs(20);
        let all = FULL + waiting;
        let wait = until(most, || async { in_flight().await as u32 == all }).await;
        ensure!(
            wait.is_some(),
            "{} RPCs, not {all}, wait",
            in_flight().await
        );
        for (_, write) in &mut clients {
            ticks.tick().await;
            let resets = numbers().map(|stream| Frame::reset(stream, code::CANCEL));
            write.send(&resets.collect::<Vec<_>>()).await?;
        }
        let left = until(most, || async { in_flight().await as u32 == FULL }).await;
        slowest = slowest.zip(left).map(|(slowest, left)| slowest.max(left));
    }
    let alive = clients.iter().filter(|(reader, _)| !reader.ended()).count();
    Ok(vec![
        Finding::within(
            &format!("{waiting} that waited, reset: none waits any more, after the last"),
            slowest,
            Duration::from_secs(5),
        ),
        Finding::exactly("connections of the clients that live", alive, clients.len()),
    ])
}

/// Requests without an end.
fn requests(numbers: impl Iterator<Item = u32>, headers: &[(&str, &str)]) -> Vec<Frame> {
    numbers
        .map(|stream| Frame::headers(stream, headers, false))
        .collect()
}

fn numbers(first: u32, count: u32) -> impl Iterator<Item = u32> {
    (first..first + count).map(|number| 2 * number + 1)
}

/// Sends them, and waits until they are read.
async fn acknowledged(wire: &mut Wire<Secured>, frames: &[Frame]) -> anyhow::Result<()> {
    wire.send(frames).await?;
    wire.send(&[Frame::new(kind::PING, 0, 0, *b"received")])
        .await?;
    let pong = |frame: &Frame| frame.kind == kind::PING && frame.flags & flag::ACK != 0;
    ensure!(
        wire.until("a PING's answer", pong).await.is_some(),
        "the connection has ended"
    );
    Ok(())
}

/// Streams that a connection to the backend may have, and that fill it.
const FULL: u32 = 10;
/// As many as a client's connection may have.
const EACH: u32 = 100;
