//! A long run of the proxy's process under mixed load, and whether anything of it grows.
//!
//! ```text
//! cargo run --release -p e2e --bin soak -- --duration 2h
//! ```
//!
//! What happens in it, and how the figures are judged, is in the crate's `soak`.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use e2e::{
    attack::Verdict,
    load::time,
    program::{Trial, exit_code},
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

    /// Say nothing but the findings
    #[arg(long)]
    quiet: bool,

    #[command(flatten)]
    trial: Trial,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit_code(perform(Cli::parse()).await)
}

async fn perform(cli: Cli) -> anyhow::Result<bool> {
    let options = Options {
        program: cli.trial.program()?,
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
        let mark = Verdict::mark(finding.verdict);
        say!("{mark} {}: {}", finding.promise, finding.measured);
    }
    cli.trial.report(|| report.json())?;
    Ok(report.held())
}
