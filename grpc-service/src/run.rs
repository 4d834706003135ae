//! The process of a service: log, signals, exit code.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::server::Builder;
use crate::{Args, log};

/// Serves until SIGTERM or SIGINT, then drains. For `main`, within a tokio runtime.
///
/// The exit code is 0 when the drain has ended, 1 when the server could not start (one sentence on
/// stderr says why) or when a second signal cut the drain short, and 2 when `PORT` is none, as
/// clap's for flags.
pub async fn run(args: Args, server: Builder) -> ExitCode {
    let address = match args.listen_address() {
        Ok(address) => address,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match serve(address, server).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(address: SocketAddr, server: Builder) -> anyhow::Result<ExitCode> {
    let _flush = log::start().context("cannot start the log's thread")?;
    // Before the listener: a signal that comes early must already be a graceful end.
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let server = server.bind(address).await?;
    tracing::info!(address = %server.local_addr(), "listening");

    let shutdown = server.shutdown();
    let mut serving = std::pin::pin!(server.serve());
    tokio::select! {
        () = &mut serving => return Ok(ExitCode::SUCCESS),
        () = signals.next() => shutdown.drain(),
    }
    tokio::select! {
        () = serving => {
            tracing::info!("drained");
            Ok(ExitCode::SUCCESS)
        }
        () = signals.next() => {
            tracing::warn!("told twice to end: not waiting for the RPCs that run");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The signals that end a service: SIGTERM from a kubelet, SIGINT from a terminal.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
