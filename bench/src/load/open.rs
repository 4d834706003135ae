//! Open loops, by the tests' own `edge-load`: RPCs at their times, whatever has become of those before, each checked
//! for its status and reply, latencies from the intended times.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::ensure;
use e2e::{
    certs::SERVER_NAME,
    load::{self, Options, StreamMethod},
};
use rustls::ClientConfig;
use tokio::time::Instant;

/// How long RPCs took, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latencies {
    /// Half of them took no longer.
    pub(crate) p50: f64,
    /// 99 of 100.
    pub(crate) p99: f64,
    /// 999 of 1000.
    pub(crate) p999: f64,
    /// RPCs that were sent.
    pub(crate) sent: u64,
    /// How long it took until the last one had ended, by the time for which they were sent.
    pub(crate) stretched: f64,
}

/// Sends `rate` RPCs a second over [`CONNECTIONS`] connections.
///
/// # Errors
/// When one of them failed, or wasn't sent.
pub(crate) async fn run(
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
    rate: u32,
    duration: Duration,
) -> anyhow::Result<Latencies> {
    let options = Options {
        target: address.to_string(),
        authority: SERVER_NAME.to_owned(),
        tls: tls.clone(),
        rate,
        connections: CONNECTIONS,
        duration,
        reverse: false,
        streams: 0,
        stream_method: StreamMethod::Download,
        stream_length: Duration::ZERO,
        timeout: Duration::from_secs(60),
        max_in_flight: 100_000,
        keepalive: None,
        run: "bench".to_owned(),
    };
    let start = Instant::now();
    let tally = load::run(options, |_, _| {}, std::future::pending()).await?;
    let stretched = start.elapsed().as_secs_f64() / duration.as_secs_f64();
    let account = tally.json();
    ensure!(
        tally.good(),
        "not all RPCs ended well: {}, first {}",
        account["failed"],
        account["first_failures"][0]
    );
    let micros = |name: &str| account["latency_us"][name].as_f64().unwrap_or(f64::NAN);
    Ok(Latencies {
        p50: micros("p50"),
        p99: micros("p99"),
        p999: micros("p99.9"),
        sent: account["sent"].as_u64().unwrap_or_default(),
        stretched,
    })
}

/// As gRPC's clients are few and lasting.
pub(crate) const CONNECTIONS: usize = 10;
