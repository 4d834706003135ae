//! The binary, as a pod runs it: flags, environment, log, signals, exit codes.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows a test's functions, not its helpers"
)]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use proto::api::EchoRequest;
use proto::api::echo_client::EchoClient;

#[test]
fn a_port_in_use_is_one_sentence_and_exit_code_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let port = address.port().to_string();
    let output = echo()
        .args(["--address", "127.0.0.1", "--port", &port])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        format!(
            "error: cannot listen on {address}: the port is in use; end the other process or \
             choose another with --port or PORT\n"
        )
    );
}

#[test]
fn flags_that_are_none_are_exit_code_2() {
    for arguments in [
        &["--prot", "1"][..],
        &["--port", "none"],
        &["--address", "localhost"],
    ] {
        let output = echo().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_variable_that_is_no_port_is_named() {
    let output = echo().env("PORT", "tcp://10.0.0.1:80").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: the environment variable PORT is \"tcp://10.0.0.1:80\", which is no TCP port: give a \
         number from 0 to 65535, or --port, or unset it\n"
    );
    assert!(output.stdout.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_serves_and_drains_with_exit_code_0() {
    let running = Running::start(echo().env("PORT", "0").env("HOSTNAME", "pod-7"));
    let url = format!("http://{}", running.address);
    let mut client = EchoClient::connect(url).await.unwrap();
    let content = "x".repeat(grpc_service::MAX_MESSAGE - 16);
    let request = EchoRequest {
        content: content.clone(),
    };
    // The client's own limit is below what the service may answer.
    client = client.max_decoding_message_size(grpc_service::MAX_MESSAGE);
    let response = client.echo(request).await.unwrap();
    assert_eq!(response.metadata().get("hostname").unwrap(), "pod-7");
    assert_eq!(response.into_inner().content, content);
    let request = EchoRequest {
        content: "x".repeat(grpc_service::MAX_MESSAGE),
    };
    assert_eq!(
        client.echo(request).await.unwrap_err().code(),
        tonic::Code::OutOfRange
    );

    // The client's connection lives on in another thread, and answers the server's last PING.
    let told = Instant::now();
    running.signal("TERM");
    let (code, log) = running.end();
    assert_eq!(code, Some(0));
    assert!(
        told.elapsed() >= Duration::from_secs(5),
        "it accepts for so long"
    );
    let methods: Vec<_> = log.iter().filter(|line| line["message"] == "rpc").collect();
    assert_eq!(methods.len(), 2, "{log:?}");
    assert_eq!(methods[0]["method"], "/api.Echo/Echo");
    assert_eq!(methods[0]["grpc_status"], 0);
    assert_eq!(log.last().unwrap()["message"], "drained");
}

#[test]
fn told_twice_to_end_it_ends_at_once_with_exit_code_1() {
    let mut running = Running::start(echo().env("PORT", "0"));
    running.signal("INT");
    let line = running.line();
    assert_eq!(line["message"], "draining");
    running.signal("TERM");
    assert_eq!(running.end().0, Some(1));
}

#[test]
fn a_level_that_is_none_does_not_silence_the_log() {
    for (wrong, told) in [("", false), ("loud", true), ("info,rpc=[", true)] {
        // It waits for the line "listening".
        let running = Running::start(echo().env("PORT", "0").env("RUST_LOG", wrong));
        assert_eq!(
            running.before.len(),
            usize::from(told),
            "{wrong}: {:?}",
            running.before
        );
        if told {
            assert_eq!(running.before[0]["RUST_LOG"], wrong);
        }
    }
}

fn echo() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_echo-grpc"));
    command
        .env_remove("PORT")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// A running service, killed with its test.
struct Running {
    process: Child,
    log: BufReader<ChildStdout>,
    /// What it logged before it listened.
    before: Vec<serde_json::Value>,
    address: SocketAddr,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut process = command
            .args(["--address", "127.0.0.1"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stdout.take().unwrap());
        let mut running = Self {
            process,
            log,
            before: Vec::new(),
            address: ([0, 0, 0, 0], 0).into(),
        };
        let mut line = running.line();
        while line["message"] != "listening" {
            running.before.push(line);
            line = running.line();
        }
        running.address = line["address"].as_str().unwrap().parse().unwrap();
        running
    }

    /// The next line of its log.
    fn line(&mut self) -> serde_json::Value {
        let mut line = String::new();
        assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "it has ended");
        serde_json::from_str(&line).unwrap()
    }

    fn signal(&self, name: &str) {
        let kill = Command::new("kill")
            .args(["-s", name, &self.process.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
    }

    /// Waits for its end: the exit code, and what it logged meanwhile.
    fn end(mut self) -> (Option<i32>, Vec<serde_json::Value>) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        let log = rest
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        (self.process.wait().unwrap().code(), log)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
