//! What one RPC takes in the data path, in instructions, counted by valgrind's callgrind: the same on a busy machine.
//!
//! [`mod@exchange`] is run four times, this program as another process of it: with the proxy between and without, and each
//! with more RPCs and with fewer. The difference of the latter two is the RPCs', without the start; the difference of
//! those is the proxy's, without the client's and the backends' engines. Only the first thread counts, which is where
//! everything happens but the writing of the log.

/// What is counted.
mod exchange;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::peers;

pub(crate) use exchange::run as exchange;

/// The subcommand's flags.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Compare with the figure in this file: exit with 1 if the count is more than 5 % above it
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,

    /// Write the figure to this file
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Figure {
    /// Of the proxy, per RPC.
    instructions_per_rpc: u64,
    /// With whom it was compiled: another compiler, another count.
    compiler: String,
}

/// Counts, prints, compares.
///
/// # Errors
/// When valgrind can't be had or run.
pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    peers::debian(&[("valgrind", "valgrind")])?;
    let with_proxy = per_rpc(false)?;
    let without = per_rpc(true)?;
    let counted = with_proxy.saturating_sub(without);
    println!(
        "{counted} instructions per RPC in the proxy ({with_proxy} with the client's and the backend's engines, which take \
         {without})"
    );
    let figure = Figure {
        instructions_per_rpc: counted,
        compiler: compiler(),
    };
    if let Some(path) = &options.write {
        let json = serde_json::to_string_pretty(&figure)?;
        fs::write(path, format!("{json}\n"))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    match &options.check {
        Some(path) => check(&figure, path),
        None => Ok(ExitCode::SUCCESS),
    }
}

fn check(now: &Figure, path: &Path) -> anyhow::Result<ExitCode> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let committed: Figure = serde_json::from_str(&text)
        .with_context(|| format!("{} is not the bench's", path.display()))?;
    let (new, old) = (now.instructions_per_rpc, committed.instructions_per_rpc);
    let growth = grown(new, old);
    println!("{growth:+.1} % of the committed {old}");
    if now.compiler != committed.compiler {
        println!(
            "counted by {}, committed by {}",
            now.compiler, committed.compiler
        );
    }
    if growth > TOLERATED {
        eprintln!(
            "an RPC takes more than {TOLERATED} % more instructions than {}: find out why, or, if it has to be, commit \
             the new figure with the reason (bench instructions --write {})",
            path.display(),
            path.display()
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// In percent.
fn grown(new: u64, old: u64) -> f64 {
    (new as f64 / old as f64 - 1.0) * 100.0
}

fn per_rpc(direct: bool) -> anyhow::Result<u64> {
    let (few, many) = (count(FEW, direct)?, count(MANY, direct)?);
    Ok(many.saturating_sub(few) / (MANY - FEW) as u64)
}

/// Instructions of the first thread with so many RPCs.
fn count(rpcs: usize, direct: bool) -> anyhow::Result<u64> {
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let folder = tempfile::tempdir().context("cannot make a folder")?;
    let out = folder.path().join("callgrind");
    let mut command = Command::new("valgrind");
    command
        .args(["--quiet", "--tool=callgrind", "--separate-threads=yes"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(own)
        .args(["exchange", "--rpcs", &rpcs.to_string()])
        .stdin(Stdio::null());
    if direct {
        command.arg("--direct");
    }
    let status = command.status().context("cannot start valgrind")?;
    ensure!(status.success(), "{command:?}: {status}");
    let first = folder.path().join("callgrind-01");
    let text = fs::read_to_string(&first)
        .with_context(|| format!("valgrind wrote no {}", first.display()))?;
    total(&text).with_context(|| format!("{} has no total", first.display()))
}

/// `summary: N` or `totals: N` of callgrind's output.
fn total(text: &str) -> Option<u64> {
    let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
    line("totals:").or(line("summary:"))?.trim().parse().ok()
}

fn compiler() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

const FEW: usize = 1000;
const MANY: usize = 9000;
/// Percent.
const TOLERATED: f64 = 5.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callgrinds_total_is_read() {
        assert_eq!(total("events: Ir\nfn=x\n1 2\ntotals: 1234\n"), Some(1234));
        assert_eq!(total("events: Ir\nsummary: 77\n"), Some(77));
        assert_eq!(total("events: Ir\n"), None);
    }

    #[test]
    fn growth_is_in_percent() {
        assert!((grown(105, 100) - 5.0).abs() < 1e-9);
        assert!(grown(90, 100) < 0.0);
    }
}
