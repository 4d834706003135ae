//! What the operator typed.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};
use e2e::program::program_file;

use crate::{
    backend, instructions,
    lab::Key,
    machine::{self, Cores, Machine},
    parts::{self, Part, Plan},
    peers::{self, Kind, Programs},
    report::{self, Results},
};

/// Measure edge-proxy beside other proxies, and say where it wins and where it loses
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// CPU time per RPC and RPCs per second, small messages
    Cpu(Options),
    /// CPU time per MiB and bytes per second: 64 KiB, 1 MiB, a long server stream; memory meanwhile
    Bulk(Options),
    /// Latencies at 25, 50 and 75 % of each peer's own peak, and at 2000 RPCs a second
    Latency(Options),
    /// CPU time per TLS handshake, full and resumed
    Handshakes(Options),
    /// Memory with idle connections
    Idle(Options),
    /// Time from start to the first answer, size of the program
    Start(Options),
    /// The same load with more endpoints, routes, connections and workers
    Scale(Options),
    /// All of these
    All(Options),
    /// Write the report of results that are there: those of parts that were run apart are joined
    Report {
        /// What runs have written: results.json
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Where to
        #[arg(long, default_value = OUT)]
        out: PathBuf,
        /// Exit with 1 if a target is missed
        #[arg(long)]
        assert: bool,
    },
    /// Instructions of one RPC in edge-proxy's data path, without sockets and TLS, counted by valgrind
    Instructions(instructions::Options),
    /// What valgrind counts
    #[command(hide = true)]
    Exchange {
        /// How many
        #[arg(long)]
        rpcs: usize,
        /// Without the proxy
        #[arg(long)]
        direct: bool,
    },
    /// One of the bench's own backends
    #[command(hide = true)]
    Backend(backend::Options),
}

#[derive(Debug, Args)]
struct Options {
    /// A first impression: one short round of smaller loads, in less than three minutes for all
    #[arg(long)]
    quick: bool,

    /// Who is compared
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "edge-proxy,envoy,haproxy,nginx,caddy,haproxy-tcp"
    )]
    peers: Vec<Kind>,

    /// How often everything is measured [default: 5; 1 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,

    /// About how long a sample takes, in seconds [default: 2; 0.4 with --quick]
    #[arg(long)]
    seconds: Option<f64>,

    /// The key of the peers' certificate
    #[arg(long, value_enum, default_value_t)]
    key: Key,

    /// Where results go
    #[arg(long, default_value = OUT)]
    out: PathBuf,

    /// A binary of edge-proxy, instead of building it
    #[arg(long, value_name = "FILE", value_parser = program_file())]
    edge_proxy: Option<PathBuf>,

    /// Another one, which becomes the peer "baseline"
    #[arg(long, value_name = "FILE", value_parser = program_file())]
    baseline: Option<PathBuf>,

    /// Exit with 1 if a target is missed
    #[arg(long)]
    assert: bool,
}

impl Cli {
    /// Does it.
    ///
    /// # Errors
    /// What has gone wrong, for people.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let (options, parts) = match self.command {
            Command::Cpu(options) => (options, vec![Part::Cpu]),
            Command::Bulk(options) => (options, vec![Part::Bulk]),
            Command::Latency(options) => (options, vec![Part::Latency]),
            Command::Handshakes(options) => (options, vec![Part::Handshakes]),
            Command::Idle(options) => (options, vec![Part::Idle]),
            Command::Start(options) => (options, vec![Part::Start]),
            Command::Scale(options) => (options, vec![Part::Scale]),
            Command::All(options) => (options, Part::ALL.to_vec()),
            Command::Instructions(options) => return instructions::run(&options),
            Command::Exchange { rpcs, direct } => {
                instructions::exchange(rpcs, direct)?;
                return Ok(ExitCode::SUCCESS);
            }
            Command::Backend(options) => {
                backend::serve(&options)?;
                return Ok(ExitCode::SUCCESS);
            }
            Command::Report { files, out, assert } => {
                let results = Results::read(&files)?;
                return finish(&results, &out, assert);
            }
        };
        measure(options, &parts)
    }
}

fn measure(options: Options, parts: &[Part]) -> anyhow::Result<ExitCode> {
    let Options {
        quick,
        mut peers,
        rounds,
        seconds,
        key,
        out,
        edge_proxy,
        baseline,
        assert,
    } = options;
    if baseline.is_some() {
        peers.push(Kind::Baseline);
    }
    peers.sort_unstable();
    peers.dedup();
    ensure!(!peers.is_empty(), "no peers: there is nobody to measure");
    let rounds = rounds.unwrap_or(if quick { 1 } else { 5 });
    let seconds = seconds.unwrap_or(if quick { 0.4 } else { 2.0 });
    ensure!(
        (0.05..=600.0).contains(&seconds),
        "--seconds is between 0.05 and 600"
    );

    let machine = Machine::this();
    if machine.load_average > BUSY {
        eprintln!(
            "The machine is busy (load average {}): what is measured now is not worth keeping.",
            machine.load_average
        );
    }
    // Cargo may use all cores; what follows is told which.
    let programs = Programs::find(&peers, edge_proxy.as_deref(), baseline.as_deref())?;
    machine::raise_open_files();
    Cores::divide(1)?.pin_load()?;
    let mut results = Results::new(machine, peers::versions(&peers, &programs)?);
    results.options = format!(
        "{}rounds: {rounds}, samples of {seconds} s, key {key:?}",
        if quick { "--quick, " } else { "" },
    );
    let plan = Plan {
        programs,
        peers,
        rounds: rounds.into(),
        sample: Duration::from_secs_f64(seconds),
        quick,
        key,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("no runtime")?;
    for part in parts {
        let measured = runtime.block_on(parts::run(*part, &plan, &mut results));
        // What other parts have measured is not lost with this one.
        if let Err(error) = measured {
            results.note(format!(
                "{}: not measured to its end: {error:#}",
                part.name()
            ));
        }
        results.write(&out)?;
    }
    finish(&results, &out, assert)
}

fn finish(results: &Results, out: &std::path::Path, assert: bool) -> anyhow::Result<ExitCode> {
    results.write(out)?;
    let missed = report::print(results, out)?;
    let failed = assert && missed > 0;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Not bench/results: what is committed is moved there on purpose.
const OUT: &str = "target/bench";
/// Somebody else runs.
const BUSY: f64 = 0.5;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `bench cpu` with a flag that names a program: what is made of it.
    fn program(flag: &str, path: &str) -> Result<Option<PathBuf>, clap::Error> {
        let Command::Cpu(options) = Cli::try_parse_from(["bench", "cpu", flag, path])?.command
        else {
            unreachable!("it was asked for")
        };
        Ok(options.edge_proxy.or(options.baseline))
    }

    #[test]
    fn our_programs_are_found_from_any_working_directory_and_have_to_be_there() {
        for flag in ["--edge-proxy", "--baseline"] {
            // Tests run in their crate's folder.
            let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
            assert_eq!(program(flag, "Cargo.toml").unwrap(), Some(whole));
            let error = program(flag, "no/such/program").unwrap_err().to_string();
            assert!(
                error.contains(flag) && error.contains("no/such/program"),
                "{error}"
            );
        }
    }
}
