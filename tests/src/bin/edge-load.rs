//! Load on an edge proxy as real gRPC clients make it, at a fixed rate, and an account of every RPC.
//!
//! ```text
//! edge-load 127.0.0.1:8443 --ca ca.pem --authority grpc.example.com --rate 500 --connections 20 --duration 60s
//! ```
//!
//! The loop is open: RPCs are sent at their times whether or not those before have ended, and latencies count from
//! the time that an RPC was meant to be sent, so that a target that stalls can't hide it. Connections are kept as gRPC's
//! libraries keep them: after GOAWAY new RPCs go to a new connection and running ones finish; RPCs wait while one connects, and fail with UNAVAILABLE between
//! attempts, which come 1 s × 1.6 apart, up to 120 s, with jitter. Every RPC has an id in `x-test-id`, and its reply
//! is compared with what was asked for.

use std::{
    io::{IsTerminal, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use e2e::load::{self, Keepalive, Options, StreamMethod, tally::Second, time};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde_json::Value;

/// Send RPCs to an edge proxy at a fixed rate, and account for each: exit code 1 if any failed
#[derive(Debug, Parser)]
#[command(name = "edge-load", version)]
struct Cli {
    /// Where to connect to: host:port
    target: String,

    /// PEM file of the authority that signed the target's certificate
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,

    /// Whom the RPCs are for, and whom the certificate is to name
    #[arg(long, value_name = "NAME", default_value = "grpc.example.com")]
    authority: String,

    /// Unary RPCs per second, over all connections
    #[arg(long, value_name = "N", default_value_t = 100)]
    rate: u32,

    /// Connections, which take RPCs in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,

    /// How long RPCs are sent, and streams begun: 500ms, 60s, 5m, 1h
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    duration: Duration,

    /// Make every second RPC api.Reverse/Reverse instead of api.Echo/Echo
    #[arg(long)]
    reverse: bool,

    /// Streams at a time, one after the other
    #[arg(long, value_name = "N", default_value_t = 0)]
    streams: u16,

    /// Which method the streams are of; the target needs a route for it
    #[arg(long, value_enum, default_value_t = Streams::Download)]
    stream_method: Streams,

    /// How long each stream is
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time)]
    stream_length: Duration,

    /// Deadline of each RPC, and of each stream after its length
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time)]
    timeout: Duration,

    /// RPCs in flight; what is beyond is not sent, and counts as a failure
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    max_in_flight: usize,

    /// Send a PING this often on each connection, and give it up when nothing is answered in time; off when missing
    #[arg(long, value_name = "TIME", value_parser = time)]
    keepalive: Option<Duration>,

    /// What "in time" is: for PINGs, and for data (TCP_USER_TIMEOUT)
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = time)]
    keepalive_timeout: Duration,

    /// Write the account as JSON, latencies in microseconds; "-" is the standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Streams {
    /// e2e.Test/Download, a server stream of the tests' own service
    Download,
    /// grpc.reflection.v1.ServerReflection, which the deployed services have: an answer to each question
    Reflection,
}

#[tokio::main]
async fn main() -> ExitCode {
    // After the first Ctrl-C what runs may finish; the second one doesn't wait for it.
    let ended = tokio::select! {
        ended = run(Cli::parse()) => ended,
        () = interrupted(2) => return ExitCode::FAILURE,
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<bool> {
    let options = Options {
        tls: tls(&cli.ca)?,
        target: cli.target,
        authority: cli.authority,
        rate: cli.rate,
        connections: cli.connections.into(),
        duration: cli.duration,
        reverse: cli.reverse,
        streams: cli.streams.into(),
        stream_method: match cli.stream_method {
            Streams::Download => StreamMethod::Download,
            Streams::Reflection => StreamMethod::Reflection,
        },
        stream_length: cli.stream_length,
        timeout: cli.timeout,
        max_in_flight: cli.max_in_flight,
        keepalive: cli.keepalive.map(|interval| Keepalive {
            interval,
            timeout: cli.keepalive_timeout,
        }),
        run: format!("{:08x}", rand::random::<u32>()),
    };
    let terminal = std::io::stderr().is_terminal();
    let tally = load::run(
        options,
        |n, second| progress(terminal, n, second),
        interrupted(1),
    )
    .await?;
    if terminal {
        eprintln!();
    }
    let account = tally.json();
    match &cli.json {
        Some(path) if path == Path::new("-") => writeln!(std::io::stdout(), "{account:#}")?,
        Some(path) => std::fs::write(path, format!("{account:#}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => summary(&account),
    }
    Ok(tally.good())
}

/// Until Ctrl-C has come `times` times.
async fn interrupted(times: u32) {
    for _ in 0..times {
        if tokio::signal::ctrl_c().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// In place on a terminal, else line by line; on stderr, since stdout may be the JSON's.
fn progress(terminal: bool, number: u64, second: &Second) {
    let millis = |micros: u64| micros as f64 / 1000.0;
    let line = format!(
        "{number:>5} s  sent {:>6}  ok {:>6}  failed {:>5}  p50 {:>8.2} ms  p99 {:>8.2} ms  max {:>8.2} ms",
        second.sent,
        second.ok,
        second.failed,
        millis(second.p50),
        millis(second.p99),
        millis(second.max),
    );
    // Who has closed stderr doesn't want to read it.
    let _ = if terminal {
        write!(std::io::stderr(), "\r{line}\x1b[K")
    } else {
        writeln!(std::io::stderr(), "{line}")
    };
}

/// The account without its seconds, which have been shown.
fn summary(account: &Value) {
    let mut out = std::io::stdout();
    for (name, value) in account.as_object().into_iter().flatten() {
        match value {
            Value::Array(_) if name == "seconds" => {}
            Value::Array(failures) => {
                for failure in failures.iter().take(SHOWN) {
                    let _ = writeln!(out, "failure: {failure}");
                }
            }
            value => {
                let _ = writeln!(out, "{name}: {value}");
            }
        }
    }
}

fn tls(ca: &Path) -> anyhow::Result<Arc<ClientConfig>> {
    let unusable = || format!("cannot read certificates from {}", ca.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).with_context(unusable)? {
        roots.add(certificate.with_context(unusable)?)?;
    }
    anyhow::ensure!(!roots.is_empty(), "no certificate in {}", ca.display());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// Failures on the terminal; the JSON has more.
const SHOWN: usize = 10;
