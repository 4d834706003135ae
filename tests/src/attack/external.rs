//! Attacks with programs that aren't this workspace's: `h2spec`, and backends of other HTTP/2 stacks.
//!
//! `tests/clients/install` installs them; what isn't installed is left out.

use std::{net::SocketAddr, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{Arena, Finding, Scale};
use crate::{
    process::other_clients,
    proxy::{Address, Builder},
    relay::Relay,
    wait::PATIENCE,
};

/// Whose HTTP/2 is behind the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stack {
    /// tonic's: [`Backend`](crate::backend::Backend).
    Tonic,
    /// grpcio's: `tests/clients/python/server.py`.
    Python,
    /// grpc-js': `tests/clients/node/server.js`.
    Node,
}

/// A backend that is a program, behind a relay that tells how many of its connections have ended.
pub(super) struct Other {
    relay: Relay,
    /// Killed with this value.
    _child: Child,
}

impl Other {
    /// Starts one, unless it is tonic's.
    pub(super) async fn start(stack: Stack) -> anyhow::Result<Option<Self>> {
        let folder = other_clients();
        let mut command = match stack {
            Stack::Tonic => return Ok(None),
            Stack::Python => {
                let mut command = Command::new(folder.join("python/bin/python"));
                command.arg("clients/python/server.py");
                command
            }
            Stack::Node => {
                let mut command = Command::new("node");
                command.arg("clients/node/server.js");
                command.env("NODE_PATH", folder.join("node/node_modules"));
                command
            }
        };
        let mut child = command
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // They complain of each made-up header that the proxy lets pass.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("no {stack:?} (tests/clients/install)"))?;
        let stdout = child.stdout.take().context("its output is piped")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(PATIENCE, lines.next_line()).await??;
        let line = line.context("the backend doesn't say where it listens")?;
        let address: SocketAddr = line.trim().parse().context(line)?;
        Ok(Some(Self {
            relay: Relay::to(&address).await,
            _child: child,
        }))
    }

    /// How many of its connections have ended.
    pub(super) fn connections_ended(&self) -> usize {
        self.relay.connections_ended()
    }
}

impl Address for Other {
    fn address(&self) -> SocketAddr {
        self.relay.address()
    }
}

/// What `h2spec` lacks.
pub(super) fn lacks_h2spec() -> Option<String> {
    lacks("h2spec", "h2spec")
}

/// What a backend of grpcio lacks.
pub(super) fn lacks_python() -> Option<String> {
    // Written when all is there.
    lacks("python/installed", "python")
}

/// What a backend of grpc-js lacks.
pub(super) fn lacks_node() -> Option<String> {
    let version = std::process::Command::new("node").arg("--version").output();
    match version {
        Ok(output) if output.status.success() => lacks("node/installed", "node"),
        _ => Some("there is no node".to_owned()),
    }
}

fn lacks(file: &str, what: &str) -> Option<String> {
    let file = other_clients().join(file);
    let why = || format!("no {} (tests/clients/install {what})", file.display());
    (!file.exists()).then(why)
}

/// As many connections as h2spec has cases, all from one address.
pub(super) fn h2spec_rules(builder: Builder, _: Scale) -> Builder {
    builder.set("listener.max_connections_per_source", 2000)
}

/// All cases of h2spec, plain and strict, again and again.
pub(super) async fn h2spec(arena: Arc<Arena>) -> anyhow::Result<Vec<Finding>> {
    let runs = arena.scale.of(20, 1);
    let program = other_clients().join("h2spec");
    let listener = arena.known.listener;
    let mut findings = Vec::new();
    for mode in [None, Some("--strict")] {
        let (mut good, mut cases, mut report) = (0, 0, String::new());
        for _ in 0..runs {
            let mut command = Command::new(&program);
            // A request without content, to which a real backend answers headers, DATA and trailers: an empty upload.
            command.args(["-t", "-k", "-o", "5", "-P", "/e2e.Test/Upload"]);
            command.args(["-h", &listener.ip().to_string()]);
            command.args(["-p", &listener.port().to_string()]);
            command.args(mode).stdin(Stdio::null()).kill_on_drop(true);
            let output = command
                .output()
                .await
                .with_context(|| format!("no {} (tests/clients/install)", program.display()))?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            match all_passed(&text) {
                Some(passed) => (good, cases) = (good + 1, passed),
                None => report = text,
            }
        }
        let name = mode.unwrap_or("plain");
        findings.push(Finding::new(
            format!("h2spec {name}, runs in which every case passes: {runs}"),
            format!("{good}, {cases} cases {report}"),
            good == runs,
        ));
    }
    ensure!(
        arena.backend.journal.calls("/e2e.Test/Upload") > 0,
        "h2spec's requests don't reach the backend"
    );
    Ok(findings)
}

/// How many cases there were, if all of them passed: `146 tests, 146 passed, 0 skipped, 0 failed`. h2spec ends with 0
/// also when it ran nothing.
fn all_passed(report: &str) -> Option<usize> {
    let last = report.trim_end().lines().last()?;
    let mut numbers = last.split(", ").map(|part| {
        let (number, what) = part.split_once(' ')?;
        Some((number.parse::<usize>().ok()?, what))
    });
    let (tests, _) = numbers.next()??;
    let (passed, "passed") = numbers.next()?? else {
        return None;
    };
    (tests == passed && tests >= FEWEST).then_some(passed)
}

/// Cases that h2spec has.
const FEWEST: usize = 145;

/// More than the twenty runs take.
pub(super) const MOST: Duration = Duration::from_secs(1800);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_good_only_if_all_cases_passed() {
        let good = "\nFinished in 1.0 seconds\n146 tests, 146 passed, 0 skipped, 0 failed\n";
        assert_eq!(all_passed(good), Some(146));
        for bad in [
            "146 tests, 145 passed, 1 skipped, 0 failed",
            "146 tests, 145 passed, 0 skipped, 1 failed",
            "0 tests, 0 passed, 0 skipped, 0 failed",
            "",
        ] {
            assert_eq!(all_passed(bad), None, "{bad}");
        }
    }
}
