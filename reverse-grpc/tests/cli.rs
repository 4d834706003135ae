//! The binary: what it shares with its twin is proven there; here, that it is this service.

#![allow(
    clippy::unwrap_used,
    reason = "clippy knows a test's functions, not its helpers"
)]

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use proto::api::ReverseRequest;
use proto::api::reverse_client::ReverseClient;

#[tokio::test]
async fn it_reverses_and_names_its_host() {
    let mut process = Command::new(env!("CARGO_BIN_EXE_reverse-grpc"))
        .args(["--port", "0", "--address", "127.0.0.1"])
        .env("HOSTNAME", "pod-8")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();

    let url = format!("http://{}", line["address"].as_str().unwrap());
    let mut client = ReverseClient::connect(url).await.unwrap();
    let request = ReverseRequest {
        content: "Grüße".to_owned(),
    };
    let response = client.reverse(request).await;
    process.kill().unwrap();
    process.wait().unwrap();

    let response = response.unwrap();
    assert_eq!(response.metadata().get("hostname").unwrap(), "pod-8");
    assert_eq!(response.into_inner().content, "eßürG");
}

#[test]
fn bad_flags_are_exit_code_2() {
    let output = Command::new(env!("CARGO_BIN_EXE_reverse-grpc"))
        .arg("--prot=1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}
