//! A long run of the proxy's process under mixed load, and whether anything of it grows.
//!
//! ```text
//! cargo run --release -p e2e --bin soak -- --duration 2h
//! ```
//!
//! What happens in it, and how the figures are judged, is in the crate's `soak`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use e2e::{
    load::time,
    process::proxy_program,
    program::exit_code,
    say,
    soak::{Options, run},
};

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
    exit_code(perform(Cli::parse()).await)
}

async fn perform(cli: Cli) -> anyhow::Result<bool> {
    let options = Options {
        program: match cli.proxy {
            Some(program) => program,
            None => proxy_program()?,
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
