//! Closed loops, by nghttp2's h2load: so many connections, each with so many streams, each asking again as soon as it
//! has its answer.
//!
//! h2load doesn't look at trailers. So every RPC is accounted for otherwise: its HTTP status, the bytes of its reply
//! (a proxy's own answer has none), and the backends' count.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context as _, bail, ensure};
use e2e::certs::SERVER_NAME;
use tokio::process::Command;

use super::client::framed;

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// As in the tables.
    pub(crate) name: String,
    /// Connections.
    pub(crate) connections: u64,
    /// Streams on each.
    pub(crate) streams: u64,
    /// Letters of `api.Echo`'s content.
    pub(crate) content: usize,
    /// Further header fields.
    pub(crate) headers: Vec<String>,
    /// `e2e.Test/Download` instead, so many replies of a MiB.
    pub(crate) download: Option<u64>,
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// From the first connection's begin to the last answer's end.
    pub(crate) seconds: f64,
}

impl Shape {
    /// A small unary RPC: content and message of this name's sizes.
    pub(crate) fn unary(name: &str, connections: u64, streams: u64, content: usize) -> Self {
        Self {
            name: name.to_owned(),
            connections,
            streams,
            content,
            headers: Vec::new(),
            download: None,
        }
    }

    /// Bytes of one reply's DATA.
    pub(crate) fn reply(&self) -> u64 {
        match self.download {
            // Of each message: gRPC's head, the field's tag, its length (a varint of three bytes), the data.
            Some(replies) => replies * (5 + 1 + 3 + MIB),
            None => framed(self.content).len() as u64,
        }
    }

    /// Bytes of DATA that one RPC has in both directions.
    pub(crate) fn carried(&self) -> u64 {
        match self.download {
            Some(_) => self.reply(),
            None => 2 * self.reply(),
        }
    }

    /// Asks `address` for `rpcs`, and checks that each was answered rightly.
    ///
    /// # Errors
    /// When one wasn't; the message says what h2load counted.
    pub(crate) async fn run(
        &self,
        address: SocketAddr,
        folder: &Path,
        rpcs: u64,
    ) -> anyhow::Result<Run> {
        let rpcs = rpcs.max(self.connections);
        let body = folder.join("message");
        let content = if self.download.is_some() {
            0
        } else {
            self.content
        };
        std::fs::write(&body, framed(content))
            .with_context(|| format!("cannot write {}", body.display()))?;
        let method = if self.download.is_some() {
            "e2e.Test/Download"
        } else {
            "api.Echo/Echo"
        };
        let mut command = Command::new("h2load");
        command
            .args(["-t", "1", "-n", &rpcs.to_string()])
            .args(["-c", &self.connections.to_string()])
            .args(["-m", &self.streams.to_string()])
            .arg("-d")
            .arg(&body)
            .args(["--connect-to", &address.to_string()])
            .args(["-H", "content-type: application/grpc"])
            .args(["-H", "te: trailers"])
            .args(["-H", "grpc-timeout: 300S"]);
        for header in &self.headers {
            command.args(["-H", header]);
        }
        if let Some(replies) = self.download {
            command
                .args(["-H", &format!("x-test-replies: {replies}")])
                .args(["-H", &format!("x-test-reply-bytes: {MIB}")]);
        }
        let output = command
            .arg(format!("https://{SERVER_NAME}/{method}"))
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot start h2load")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let account = Account::read(&text)
            .with_context(|| format!("h2load said what isn't known here:\n{text}"))?;
        let wanted = Account {
            seconds: account.seconds,
            succeeded: rpcs,
            with_2xx: rpcs,
            data: rpcs * self.reply(),
        };
        if account != wanted {
            bail!("of {rpcs} RPCs not all were answered rightly: {account:?}, not {wanted:?}");
        }
        ensure!(account.seconds > 0.0, "h2load took no time");
        Ok(Run {
            seconds: account.seconds,
        })
    }
}

/// What h2load prints in the end.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Account {
    seconds: f64,
    succeeded: u64,
    with_2xx: u64,
    data: u64,
}

impl Account {
    fn read(text: &str) -> Option<Self> {
        let line = |start: &str| text.lines().find_map(|line| line.strip_prefix(start));
        // "finished in 1.23s, 456.78 req/s, 9.01MB/s"
        let (took, _) = line("finished in ")?.split_once(',')?;
        // "requests: 10 total, 10 started, 10 done, 10 succeeded, 0 failed, 0 errored, 0 timeout"
        let requests = line("requests: ")?;
        // "status codes: 10 2xx, 0 3xx, 0 4xx, 0 5xx"
        let codes = line("status codes: ")?;
        // "traffic: 1.20KB (1234) total, 56B (56) headers (space savings 90.00%), 110B (110) data"
        let (_, data) = line("traffic: ")?.rsplit_once('(')?;
        Some(Self {
            seconds: seconds(took)?,
            succeeded: before(requests, " succeeded")?,
            with_2xx: before(codes, " 2xx")?,
            data: data.split(')').next()?.parse().ok()?,
        })
    }
}

/// The number that stands before `word` in a list with commas.
fn before(list: &str, word: &str) -> Option<u64> {
    let item = list.split(", ").find_map(|item| item.strip_suffix(word))?;
    item.parse().ok()
}

fn seconds(text: &str) -> Option<f64> {
    for (unit, factor) in [("us", 1e-6), ("ms", 1e-3), ("min", 60.0), ("s", 1.0)] {
        if let Some(number) = text.trim().strip_suffix(unit) {
            return Some(number.parse::<f64>().ok()? * factor);
        }
    }
    None
}

/// Bytes.
const MIB: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn h2loads_account_is_read() {
        let text = "starting benchmark...\n\nfinished in 853.91ms, 46843.01 req/s, 4.74MB/s\n\
            requests: 40000 total, 40000 started, 40000 done, 39999 succeeded, 1 failed, 0 errored, 0 timeout\n\
            status codes: 39999 2xx, 0 3xx, 0 4xx, 1 5xx\n\
            traffic: 4.05MB (4243210) total, 1.22MB (1280030) headers (space savings 83.00%), 390.62KB (400000) data\n";
        let account = Account::read(text).unwrap();
        assert!((account.seconds - 0.85391).abs() < 1e-9);
        assert_eq!(
            (account.succeeded, account.with_2xx, account.data),
            (39_999, 39_999, 400_000)
        );
        assert!(Account::read("it failed").is_none());
    }

    #[test]
    fn times_have_units() {
        let near = |text: &str, value: f64| (seconds(text).unwrap() - value).abs() < 1e-9;
        assert!(near("12us", 12e-6) && near("1.50s", 1.5) && near("2min", 120.0));
        assert!(seconds("soon").is_none());
    }

    #[test]
    fn a_stream_carries_its_replies_one_way() {
        let mut shape = Shape::unary("x", 1, 1, 3);
        assert_eq!((shape.reply(), shape.carried()), (10, 20));
        shape.download = Some(2);
        // The varint of 2^20 has three bytes.
        assert_eq!(shape.carried(), 2 * (5 + 1 + 3 + (1 << 20)));
    }
}
