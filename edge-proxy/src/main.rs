//! Flags, configuration, the app, the exit code; nothing else.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use edge_proxy::{
    app::{App, Outcome},
    cli::{self, Command},
    control_plane::config::Config,
    shutdown::Signals,
    telemetry::log,
};

/// Gives memory back and costs the least per RPC of the allocators that were tried.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let ended = match cli::parse() {
        Command::Run { config } => run(config),
        Command::Check { config } => {
            cli::check(&config, &mut io::stdout(), &mut io::stderr()).context("cannot print")
        }
        Command::Schema => cli::schema(&mut io::stdout())
            .map(|()| cli::EXIT_DONE)
            .context("cannot print"),
    };
    ExitCode::from(ended.unwrap_or_else(|error| {
        // Standard error is the last resort: when it is closed there is nobody to tell.
        let _ = tell(&error);
        cli::EXIT_FAILED
    }))
}

/// Serves until told to end, or fails before anything was started.
fn run(source: PathBuf) -> anyhow::Result<u8> {
    let signals = Signals::catch().context("cannot handle signals")?;
    let loaded = match Config::load_with_files(&source) {
        Ok(loaded) => loaded,
        Err(wrong) => {
            cli::refuse(&wrong, &mut io::stderr()).context("cannot print")?;
            return Ok(cli::EXIT_WRONG);
        }
    };
    cli::warn(&loaded.warnings, &mut io::stderr()).context("cannot print")?;
    let log_level = log::init().context("cannot send diagnostics to standard error")?;
    let running = match App::start_logging(loaded.config, source, log_level) {
        Ok(running) => running,
        Err(error) => {
            let code = error.exit_code();
            tell(&anyhow::Error::new(error).context("cannot start")).context("cannot print")?;
            return Ok(code);
        }
    };
    signals.obey(&running).context("cannot handle signals")?;
    let (admin, probes) = (running.admin(), running.probes());
    tracing::info!(version = %*cli::VERSION, %admin, %probes, "started");
    Ok(match running.wait() {
        Outcome::Drained => cli::EXIT_DONE,
        Outcome::Killed | Outcome::Failed => cli::EXIT_FAILED,
    })
}

/// The error and what caused it, in one block.
fn tell(error: &anyhow::Error) -> io::Result<()> {
    let mut out = io::stderr().lock();
    writeln!(out, "error: {error}")?;
    error
        .chain()
        .skip(1)
        .try_for_each(|cause| writeln!(out, "  because: {cause}"))
}
