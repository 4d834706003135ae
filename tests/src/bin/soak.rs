//! A long run of the proxy's process under mixed load, and whether anything of it grows.
//!
//! ```text
//! cargo run --release -p e2e --bin soak -- --duration 2h
//! ```
//!
//! What happens in it, and how the figures are judged, is in the crate's `soak`.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Parser;
use e2e::{
    load::time,
    soak::{Options, run},
};

/// `println!`, but a reader that has seen enough (`| head`) is no reason to panic.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Run the proxy for long, and judge: exit code 1 if a promise didn't hold
#[derive(Debug, Parser)]
#[command(name = "soak", version)]
struct Cli {
    /// How long, with the warm-up: 60s, 5m, 2h
    #[arg(long, default_value = "5m", value_parser = time)]
    duration: Duration,

    /// RPCs a second, beside streams, cancels and new connections
    #[arg(long, default_value_t = 200)]
    rate: u32,

    /// The proxy's program; otherwise the one beside this, built anew
    #[arg(long, value_name = "FILE")]
    proxy: Option<PathBuf>,

    /// Say nothing but the findings
    #[arg(long)]
    quiet: bool,

    /// Write them as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match perform(Cli::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn perform(cli: Cli) -> anyhow::Result<bool> {
    let options = Options {
        program: match cli.proxy {
            Some(program) => program,
            None => build()?,
        },
        duration: cli.duration,
        rate: cli.rate,
    };
    let report = run(&options, |line| {
        if !cli.quiet {
            say!("{line}");
        }
    })
    .await?;
    for (what, count) in &report.happened {
        say!("  {count:>7} {what}");
    }
    for finding in &report.findings {
        let mark = if finding.held { '✓' } else { '✗' };
        say!("{mark} {}: {}", finding.promise, finding.measured);
    }
    if let Some(file) = &cli.json {
        std::fs::write(file, format!("{:#}\n", report.json()))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(report.held())
}

/// The tests' copy of the proxy's program lies beside this one; cargo makes sure that it is there, and new.
fn build() -> anyhow::Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let mut build = Command::new(cargo);
    build.args(["build", "--package", "e2e", "--bin", PROGRAM]);
    if own.components().any(|part| part.as_os_str() == "release") {
        build.arg("--release");
    }
    let status = build
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("cannot run cargo; --proxy names a program that exists")?;
    if !status.success() {
        bail!("cargo cannot build {PROGRAM}: {status}");
    }
    Ok(own.with_file_name(PROGRAM))
}

const PROGRAM: &str = "edge-proxy-under-test";
