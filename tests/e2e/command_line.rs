//! The program as a process: what the tests of `edge-proxy` itself can't show, because it takes clients and backends.

use std::ffi::OsString;

use e2e::{
    backend::Backend,
    certs::Broken,
    client, loopback, payload,
    pb::test_client::TestClient,
    process::Process,
    proxy::{Files, Known, Proxy, set},
    wait::{eventually, within},
};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::{net::TcpStream, task::JoinHandle};
use tonic::transport::Channel;

const PROGRAM: &str = env!("CARGO_BIN_EXE_edge-proxy-under-test");

fn run(files: &Files) -> Vec<OsString> {
    vec!["run".into(), "--config".into(), files.config().into()]
}

/// The program, ready, and its backend.
async fn serving() -> (Backend, Known, Process) {
    let backend = Backend::start().await;
    let known = Known::write(Proxy::to([&backend]));
    let program = Process::start(PROGRAM, run(&known.files));
    known.probed("/readyz", 200).await;
    (backend, known, program)
}

/// An RPC that runs until the backend's gate "end" is opened, its client, and whether it ended well.
async fn an_rpc(backend: &Backend, known: &Known) -> (TestClient<Channel>, JoinHandle<bool>) {
    let client = known.test_client().await;
    let running = tokio::spawn({
        let mut client = client.clone();
        let asked = client::request(payload(""), &[("x-test-id", "r"), ("x-test-gate", "end")]);
        async move { client.unary(asked).await.is_ok() }
    });
    backend.journal.begun("r").await;
    (client, running)
}

/// The listener is.
async fn closed(known: &Known) {
    let refused = || async { TcpStream::connect(known.listener).await.err().map(drop) };
    eventually("the listener to close", refused).await;
}

#[tokio::test]
async fn sigterm_drains_and_ends_with_0() {
    for signal in ["TERM", "INT"] {
        let (backend, known, program) = serving().await;
        let (mut client, running) = an_rpc(&backend, &known).await;
        client.unary(payload("")).await.unwrap();
        program.signal(signal).await;
        program
            .reports("the listener is closed; what runs may finish connections=1")
            .await;
        closed(&known).await;
        backend.open("end");
        assert!(within("the RPC", running).await.unwrap());
        drop(client);
        let ended = program.ended().await;
        assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
        // The access log is all of standard output; diagnostics are on standard error.
        let lines: Vec<serde_json::Value> = ended
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2, "{}", ended.stdout);
        assert!(lines.iter().all(|line| line["path"] == "/e2e.Test/Unary"));
    }
}

#[tokio::test]
async fn diagnostics_quote_a_value_of_several_words() {
    let nobody = loopback::refused().unwrap();
    let known = Known::write(Proxy::to(&[nobody]).checked());
    let program = Process::start(PROGRAM, run(&known.files));
    program.reports("unhealthy cluster=\"test\"").await;
    let log = program.stderr();
    let (_, reason) = log.split_once(" reason=\"").unwrap();
    let (reason, _) = reason.split_once("\"\n").unwrap();
    assert!(reason.contains(' '), "{log}");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once_with_1() {
    let (backend, known, program) = serving().await;
    let (_client, running) = an_rpc(&backend, &known).await;
    program.signal("TERM").await;
    closed(&known).await;
    program.signal("TERM").await;
    let ended = program.ended().await;
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
    assert!(!within("the RPC", running).await.unwrap());
}

#[tokio::test]
async fn the_first_signal_after_quitquitquit_lets_it_drain() {
    let (backend, known, program) = serving().await;
    let (client, running) = an_rpc(&backend, &known).await;
    let told = client::post(known.admin, "/quitquitquit").await.unwrap();
    assert_eq!(told.status(), 200);
    program.signal("TERM").await;
    program.reports("SIGTERM").await;
    backend.open("end");
    assert!(within("the RPC", running).await.unwrap());
    drop(client);
    let ended = program.ended().await;
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
}

#[tokio::test]
async fn too_few_open_files_are_told_at_the_start() {
    let backend = Backend::start().await;
    let known = Known::write(Proxy::to([&backend]));
    let mut arguments: Vec<OsString> = vec![
        "-c".into(),
        "ulimit -n 300; exec \"$0\" \"$@\"".into(),
        PROGRAM.into(),
    ];
    arguments.extend(run(&known.files));
    let program = Process::start("sh", arguments);
    known.probed("/readyz", 200).await;
    program.reports("room for 206 connections").await;
}

#[tokio::test]
async fn without_a_file_left_it_ends_all_the_same() {
    let (_backend, known, program) = serving().await;
    let process = Pid::from_raw(program.id().cast_signed());
    let none = Rlimit {
        current: Some(0),
        ..getrlimit(Resource::Nofile)
    };
    prlimit(process, Resource::Nofile, none).unwrap();
    // The kernel has accepted it, and accepting it there fails again and again.
    let _waiting = TcpStream::connect(known.listener).await.unwrap();
    program.reports("accept failed").await;
    program.signal("TERM").await;
    let ended = program.ended().await;
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
}

#[tokio::test]
async fn sighup_rereads_the_configuration() {
    let backend = Backend::start().await;
    let mut known = Known::write(Proxy::to([&backend]));
    // A link from a directory where nothing happens: without the signal the change would be found a minute later.
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("edge-proxy.yaml");
    std::os::unix::fs::symlink(known.files.config(), &link).unwrap();
    let arguments = ["run".into(), "--config".into(), link.into_os_string()];
    let program = Process::start(PROGRAM, arguments);
    known.probed("/readyz", 200).await;
    known
        .files
        .change(|config| set(config, "server_name", "after".into()));
    program.signal("HUP").await;
    let http2 = client::Http2::connect(known.listener, known.files.authority.client(&["h2"]))
        .await
        .unwrap();
    eventually("the new configuration", || async {
        let reply = http2.grpc("/e2e.Test/Unary", &[]).await.ok()?;
        (reply.header("server") == "after").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_port_in_use_is_one_clear_sentence_and_1() {
    for key in ["listener.address", "admin.address", "probes.address"] {
        let taken = std::net::TcpListener::bind((loopback::address(), 0)).unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let mut known = Known::write(Proxy::builder());
        known
            .files
            .change(|config| set(config, key, address.clone().into()));
        let ended = Process::run(PROGRAM, run(&known.files)).await;
        assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
        assert!(ended.stderr.contains(&address), "{key}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("in use") || ended.stderr.contains("taken"),
            "{}",
            ended.stderr
        );
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_broken_pair_at_the_start_ends_with_2() {
    for how in [
        Broken::Mismatched,
        Broken::Truncated,
        Broken::Expired,
        Broken::Garbage,
    ] {
        let known = Known::write(Proxy::builder());
        known
            .files
            .secret
            .swap(&known.files.authority.broken(how))
            .unwrap();
        let ended = Process::run(PROGRAM, run(&known.files)).await;
        assert_eq!(ended.code(), Some(2), "{how:?}: {}", ended.stderr);
        assert!(
            ended.stderr.contains("tls.crt") || ended.stderr.contains("tls.key"),
            "{how:?}: {}",
            ended.stderr
        );
    }
}

#[tokio::test]
async fn a_certificate_that_is_not_there_yet_is_waited_for_and_said() {
    let known = Known::write(Proxy::builder().without_certificate());
    let program = Process::start(PROGRAM, run(&known.files));
    known.probed("/livez", 200).await;
    known.probed("/readyz", 503).await;
    program.reports("tls.crt").await;
    program.reports("kubectl create secret tls").await;
    known
        .files
        .secret
        .swap(&known.files.authority.pair())
        .unwrap();
    known.probed("/readyz", 200).await;
    program.signal("TERM").await;
    assert_eq!(program.ended().await.code(), Some(0));
}

#[tokio::test]
async fn a_wrong_configuration_starts_nothing_and_ends_with_2() {
    let mut known = Known::write(Proxy::builder());
    known.files.change(|config| {
        config["routes"] = serde_json::json!([{ "prefix": "/", "cluster": "nowhere" }])
    });
    for command in ["run", "check"] {
        let ended = Process::run(
            PROGRAM,
            [
                command.into(),
                "--config".into(),
                known.files.config().into_os_string(),
            ],
        )
        .await;
        assert_eq!(ended.code(), Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("nowhere"), "{}", ended.stderr);
    }
    assert!(TcpStream::connect(known.probes).await.is_err());
}

#[tokio::test]
async fn a_blocked_standard_output_costs_lines_and_no_rpc() {
    let backend = Backend::start().await;
    let known = Known::write(Proxy::to([&backend]));
    // A pipe that nobody reads.
    let mut program = tokio::process::Command::new(PROGRAM)
        .args(run(&known.files))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    known.probed("/readyz", 200).await;
    let client = known.test_client().await;
    // Long lines, to have enough of them soon.
    let words = "w".repeat(250);
    eventually("lines to be dropped", || async {
        let calls: Vec<_> = (0..64)
            .map(|_| {
                let mut client = client.clone();
                let asked = client::request(
                    payload(""),
                    &[("user-agent", &words), ("x-request-id", &words[..64])],
                );
                tokio::spawn(async move { within("an RPC", client.unary(asked)).await })
            })
            .collect();
        for call in calls {
            call.await.unwrap().unwrap();
        }
        let page = client::get(known.probes, "/metrics")
            .await
            .ok()?
            .into_body();
        let dropped = client::metric(&page, "edge_access_log_dropped_lines_total", &[])?;
        (dropped > 0.0).then_some(())
    })
    .await;
    program.kill().await.unwrap();
}
