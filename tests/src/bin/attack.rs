//! Attacks on the proxy's process, each beside a victim, and what came of them; rollouts and failures around it, each
//! under load.
//!
//! ```text
//! attack LIST                        what there is
//! attack rapid-reset continuation    some
//! attack rollouts                    the rollouts and failures
//! attack all --json result.json      all of them
//! ```
//!
//! The proxy is a process of its own on loopback addresses of this process; nothing else is attacked. What is promised,
//! and by what everything is judged, is in the crate's `attack` and `rollouts`. Figures depend on the build: compare with
//! those of a release build, `--proxy target/release/edge-proxy`.
//!
//! Some need root, or other programs (`tests/clients/install`). Where these are missing, "left out: …" says why, and they
//! aren't counted among those that held. That is no failure of a group, unless `--require-all` is given; what was asked
//! for by its own name has to be performed.

use std::process::ExitCode;

use anyhow::bail;
use clap::Parser;
use e2e::{
    attack::{self, ATTACKS, Attack, EXTERNAL, Finding, Options, Report, Scale, Verdict, siege},
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

    /// What can't be performed here is a failure
    #[arg(long)]
    require_all: bool,

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
}

impl Proof {
    fn all() -> impl Iterator<Item = Self> {
        let attacks = ATTACKS.iter().chain(EXTERNAL).map(Self::Attack);
        attacks
            .chain([Self::Siege])
            .chain(ROLLOUTS.iter().map(Self::Rollout))
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
            Self::Attack(attack) => attack.name,
            Self::Siege => siege::NAME,
            Self::Rollout(rollout) => rollout.name,
        }
    }

    fn promise(self) -> &'static str {
        match self {
            Self::Attack(attack) => attack.promise,
            Self::Siege => siege::PROMISE,
            Self::Rollout(rollout) => rollout.promise,
        }
    }

    async fn run(self, options: &Options) -> Report {
        let performed = match self {
            Self::Attack(attack) => attack::run(attack, options).await,
            Self::Siege => siege::run(options).await,
            Self::Rollout(rollout) => rollouts::run(rollout, options).await,
        };
        performed.unwrap_or_else(|error| {
            let error = Finding::new("it is performed", format!("{error:#}"), false);
            Report::of(self.name(), self.promise(), error)
        })
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
    for proof in proofs {
        let report = proof.run(&options).await;
        print(&report);
        reports.push(report);
    }
    costs(&reports);
    let count = |verdict| {
        let those = reports.iter().filter(|report| report.verdict() == verdict);
        those.count()
    };
    let (held, missed) = (count(Verdict::Held), count(Verdict::Missed));
    let left_out = count(Verdict::LeftOut);
    say!("\n{held} held, {missed} failed, {left_out} left out");
    for report in &reports {
        if report.verdict() == Verdict::LeftOut {
            for reason in report.reasons().lines() {
                say!("  {reason}");
            }
        }
    }
    cli.trial.report(|| {
        json!({
            "quick": options.scale == Scale::Quick,
            "program": options.program,
            "held": held,
            "failed": missed,
            "left_out": left_out,
            "attacks": reports.iter().map(Report::json).collect::<Vec<_>>(),
        })
    })?;
    let asked_for = |report: &Report| cli.names.iter().any(|name| name == report.name);
    Ok(reports.iter().all(|report| match report.verdict() {
        Verdict::Held => true,
        Verdict::LeftOut => !cli.require_all && !asked_for(report),
        Verdict::Missed => false,
    }))
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
    let mark = Verdict::mark(Some(report.verdict()));
    say!("\n{mark} {}: {}", report.name, report.promise);
    for finding in &report.findings {
        say!(
            "  {} {}: {}",
            Verdict::mark(finding.verdict),
            finding.promise,
            finding.measured
        );
    }
}

/// What attacks have cost.
fn costs(reports: &[Report]) {
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
            Verdict::mark(Some(report.verdict())),
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
