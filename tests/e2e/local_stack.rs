use e2e::process::Process;

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
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for flag in ["--port", "--admin-port", "--probes-port"] {
        let arguments = ANY
            .into_iter()
            .filter(|argument| !argument.starts_with(&format!("{flag}=")));
        let busy = format!("{flag}={port}");
        let ended = Process::run(PROGRAM, arguments.chain([busy.as_str()])).await;
        assert_eq!(ended.code(), Some(1));
        let sentence = format!(
            "error: port {port} of 127.0.0.1 is taken: end what listens there, or choose another with {flag}\n"
        );
        assert_eq!(ended.stderr, sentence);
        assert_eq!(ended.stdout, "");
    }
}
