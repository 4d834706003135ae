use e2e::{
    demonstration::{RPCS, demonstrate},
    process::Process,
    stack::{Ports, Stack},
    wait::eventually,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_local-stack");
const ANY: [&str; 5] = [
    "--port=0",
    "--admin-port=0",
    "--probes-port=0",
    "--echo-port=0",
    "--reverse-port=0",
];

#[tokio::test]
async fn once_shows_an_even_balance_and_ends_with_0() {
    let ended = Process::run(PROGRAM, ANY.into_iter().chain(["--once"])).await;
    assert_eq!(ended.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    for name in [
        "echo-grpc-1",
        "echo-grpc-2",
        "reverse-grpc-1",
        "reverse-grpc-2",
    ] {
        let row = ended
            .stdout
            .lines()
            .find(|line| line.trim_start().starts_with(name) && line.contains('%'));
        assert!(
            row.is_some_and(|row| row.contains("10") && row.contains("50%")),
            "{}",
            ended.stdout
        );
    }
    assert!(
        ended.stdout.contains("“Grüße” → “eßürG”"),
        "{}",
        ended.stdout
    );
    assert!(
        ended.stdout.contains("prefix: /api.Echo/"),
        "it shows its configuration"
    );
    assert!(
        !ended.stdout.contains('\x1b'),
        "no colours but on a terminal"
    );
}

#[tokio::test]
async fn it_runs_until_ctrl_c() {
    let program = Process::start(PROGRAM, ANY);
    program.prints("Running until Ctrl-C").await;
    program.signal("INT").await;
    let ended = program.ended().await;
    assert_eq!(ended.code(), Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("grpcurl -v -cacert "));
    assert!(ended.stdout.contains("Draining"));
}

#[tokio::test]
async fn a_busy_port_is_one_clear_sentence() {
    for (flag, address) in [
        ("--port", "127.0.0.1"),
        ("--admin-port", "127.0.0.1"),
        ("--probes-port", "127.0.0.1"),
        ("--dns-port", "127.0.0.1"),
        ("--echo-port", "127.0.0.3"),
        ("--reverse-port", "127.0.0.4"),
    ] {
        let taken = std::net::TcpListener::bind((address, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let arguments = ANY
            .into_iter()
            .filter(|argument| !argument.starts_with(&format!("{flag}=")));
        let busy = format!("{flag}={port}");
        let ended = Process::run(PROGRAM, arguments.chain([busy.as_str()])).await;
        assert_eq!(ended.code(), Some(1));
        let sentence = format!(
            "error: port {port} of {address} is taken: end what listens there, or choose another with {flag}\n"
        );
        assert_eq!(ended.stderr, sentence);
        assert_eq!(ended.stdout, "");
    }
}

#[tokio::test]
async fn what_is_not_even_or_fails_is_not_called_even() {
    let directory = tempfile::tempdir().unwrap();
    let ports = Ports {
        listener: 0,
        admin: 0,
        probes: 0,
        echo: 0,
        reverse: 0,
        dns: 0,
    };
    let mut stack = Stack::start(ports, directory.path(), false).await.unwrap();
    let served = demonstrate(&stack, |_| {}).await.unwrap();
    assert!(served.is_even(), "{served:?}");
    // Without one of its replicas, and then without both.
    let (_, second) = stack.replicas.remove(1);
    second.kill();
    second.ended().await;
    eventually("one replica to serve all", || async {
        let served = demonstrate(&stack, |_| {}).await.ok()?;
        (served.by("echo-grpc-1") == RPCS).then(|| assert!(!served.is_even()))
    })
    .await;
    let (_, first) = stack.replicas.remove(0);
    first.kill();
    first.ended().await;
    let failure = demonstrate(&stack, |_| {}).await.unwrap_err().to_string();
    assert!(
        failure.starts_with("api.Echo/Echo ended with Unavailable"),
        "{failure}"
    );
}
