//! Attacks on the proxy's process, each beside a victim, and what came of them; rollouts and failures around it, each
//! under load.
//!
//! ```text
//! attack LIST                        what there is
//! attack rapid-reset continuation    some
//! attack rollouts                    the rollouts and failures
//! attack all --json result.json      all that need no other program
//! attack h2spec                      one that does: first tests/clients/install
//! ```
//!
//! The proxy is a process of its own on loopback addresses of this process; nothing else is attacked. What is promised,
//! and by what everything is judged, is in the crate's `attack` and `rollouts`. Figures depend on the build: compare with those of a
//! release build, `--proxy target/release/edge-proxy`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use e2e::{
    attack::{self, ATTACKS, Attack, EXTERNAL, Options, Report, Scale, siege},
    program::{Trial, exit_code},
    rollouts::{self, ROLLOUTS, Rollout},
    say,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

/// Attack the proxy beside a victim, and judge: exit code 1 if a promise didn't hold
#[derive(Debug, Parser)]
#[command(name = "attack", version)]
struct Cli {
    /// By name; "attacks", "rollouts", "all", or "LIST" for their names and promises
    #[arg(required = true, value_name = "LIST|NAME…|all")]
    names: Vec<String>,

    /// Smaller counts and shorter timeouts: seconds instead of minutes
    #[arg(long)]
    quick: bool,

    /// Don't judge what depends on the machine's speed
    #[arg(long)]
    any_speed: bool,

    #[command(flatten)]
    trial: Trial,
}

/// What can be performed.
#[derive(Clone, Copy)]
enum Proof {
    Attack(&'static Attack),
    /// All attacks at once.
    Siege,
    Rollout(&'static Rollout),
    /// An attack that needs other programs: only by its name.
    External(&'static Attack),
}

impl Proof {
    fn all() -> impl Iterator<Item = Self> {
        let attacks = ATTACKS.iter().map(Self::Attack);
        attacks
            .chain([Self::Siege])
            .chain(ROLLOUTS.iter().map(Self::Rollout))
            .chain(EXTERNAL.iter().map(Self::External))
    }

    fn is_called(self, name: &str) -> bool {
        match (self, name) {
            (Self::Attack(_) | Self::Siege, "all" | "attacks")
            | (Self::Rollout(_), "all" | "rollouts") => true,
            _ => self.name() == name,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Attack(attack) | Self::External(attack) => attack.name,
            Self::Siege => siege::NAME,
            Self::Rollout(rollout) => rollout.name,
        }
    }

    fn promise(self) -> &'static str {
        match self {
            Self::Attack(attack) | Self::External(attack) => attack.promise,
            Self::Siege => siege::PROMISE,
            Self::Rollout(rollout) => rollout.promise,
        }
    }

    async fn run(self, options: &Options) -> anyhow::Result<Report> {
        match self {
            Self::Attack(attack) | Self::External(attack) => attack::run(attack, options).await,
            Self::Siege => siege::run(options).await,
            Self::Rollout(rollout) => rollouts::run(rollout, options).await,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    exit_code(perform(Cli::parse()).await)
}

async fn perform(cli: Cli) -> anyhow::Result<bool> {
    if cli
        .names
        .iter()
        .any(|name| name.eq_ignore_ascii_case("list"))
    {
        for proof in Proof::all() {
            say!("{:<24} {}", proof.name(), proof.promise());
        }
        return Ok(true);
    }
    let proofs = chosen(&cli.names)?;
    raise_open_files();
    let options = Options {
        program: cli.trial.program()?,
        scale: if cli.quick { Scale::Quick } else { Scale::Full },
        strict: !cli.any_speed,
    };
    let mut reports = Vec::new();
    let mut failed = false;
    for proof in proofs {
        match proof.run(&options).await {
            Ok(report) => {
                print(&report);
                failed |= !report.held();
                reports.push(report);
            }
            Err(error) => {
                say!("\n✗ {}: {error:#}", proof.name());
                failed = true;
            }
        }
    }
    summary(&reports);
    cli.trial.report(|| {
        json!({
            "quick": options.scale == Scale::Quick,
            "program": options.program,
            "attacks": reports.iter().map(Report::json).collect::<Vec<_>>(),
        })
    })?;
    Ok(!failed)
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<Proof>> {
    let unknown = |name: &&String| !Proof::all().any(|proof| proof.is_called(name));
    if let Some(name) = names.iter().find(unknown) {
        bail!("there is no {name:?}; LIST has all names");
    }
    let chosen = |proof: &Proof| names.iter().any(|name| proof.is_called(name));
    Ok(Proof::all().filter(chosen).collect())
}

fn print(report: &Report) {
    say!(
        "\n{} {}: {}",
        mark(report.held()),
        report.name,
        report.promise
    );
    for finding in &report.findings {
        say!(
            "  {} {}: {}",
            mark(finding.held),
            finding.promise,
            finding.measured
        );
    }
}

/// What attacks have cost.
fn summary(reports: &[Report]) {
    if reports.iter().all(|report| report.account.is_none()) {
        return;
    }
    say!(
        "\n  {:<24} {:>7} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "",
        "seconds",
        "sent KiB",
        "its CPU s",
        "CPU s",
        "MiB",
        "quiet ms",
        "p99 ms"
    );
    for report in reports {
        let Some(account) = &report.account else {
            continue;
        };
        say!(
            "{} {:<24} {:>7.1} {:>10} {:>9.2} {:>9.2} {:>9.1} {:>9.1} {:>9.1}",
            mark(report.held()),
            report.name,
            account.took.as_secs_f64(),
            account.written / 1024,
            account.attacker_cpu.as_secs_f64(),
            account.proxy_cpu.as_secs_f64(),
            account.memory as f64 / (1 << 20) as f64,
            account.quiet_p99 as f64 / 1e3,
            account.p99 as f64 / 1e3,
        );
    }
}

fn mark(held: bool) -> char {
    if held { '✓' } else { '✗' }
}

/// For this process and the proxy that it starts: both ends of 12 000 connections.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Refused: attacks that need more say so.
    let _ = setrlimit(Resource::Nofile, raised);
}
