//! The program as the operator meets it: what it prints and the code it ends with.

use std::{
    fs,
    io::{self, BufRead as _, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, Socket, Type};

/// Runs the program in this package's folder, so that messages name files by the same path everywhere.
fn edge_proxy(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edge-proxy"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the program starts")
}

/// Exit code, standard output and standard error, for a snapshot.
fn told(output: &Output) -> String {
    format!(
        "exit code: {}\n--- stdout\n{}--- stderr\n{}",
        output.status.code().expect("it ends by itself"),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    )
}

/// `check` of a minimal configuration with this pair; the directory's name is left out.
fn check_pair(directory: &Path, certificate_chain: &str, private_key: &str) -> String {
    let path = |name: &str| directory.join(name).display().to_string();
    let file = path("edge-proxy.yaml");
    let text = format!(
        "\
listener:
  address: 127.0.0.1:0
  tls:
    certificate_chain: {}
    private_key: {}
routes: [{{ prefix: /, cluster: echo }}]
clusters: [{{ name: echo, endpoints: [\"echo:1\"] }}]
",
        path(certificate_chain),
        path(private_key)
    );
    fs::write(&file, text).expect("the file is written");
    let told = told(&edge_proxy(&["check", "--config", &file]));
    told.replace(&directory.display().to_string(), "DIR")
}

/// Two pairs: `one.crt`, `one.key`, `two.crt`, `two.key`.
fn pairs() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for name in ["one", "two"] {
        let pair = rcgen::generate_simple_self_signed(["grpc.example.com".to_owned()])
            .expect("a certificate is made");
        let write = |extension, text: String| {
            fs::write(directory.path().join(format!("{name}.{extension}")), text)
                .expect("the file is written");
        };
        write("crt", pair.cert.pem());
        write("key", pair.signing_key.serialize_pem());
    }
    directory
}

#[test]
fn check_tells_every_mistake_at_once() {
    let output = edge_proxy(&["check", "--config", "tests/configurations/wrong.yaml"]);
    insta::assert_snapshot!(told(&output));
}

#[test]
fn check_warns_and_accepts() {
    let output = edge_proxy(&["check", "--config", "tests/configurations/suspicious.yaml"]);
    insta::assert_snapshot!(told(&output));
}

#[test]
fn check_accepts_the_deployed_sample() {
    // On this machine the certificate may be there or not: only the verdict is the same everywhere.
    let output = edge_proxy(&["check", "--config", "../deploy/edge-proxy/edge-proxy.yaml"]);
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    assert!(
        !String::from_utf8_lossy(&output.stderr).contains("error"),
        "{}",
        told(&output)
    );
}

#[test]
fn check_looks_at_the_certificate() {
    let directory = pairs();
    let key = rcgen::KeyPair::generate().expect("a key is made");
    let mut expired =
        rcgen::CertificateParams::new(["grpc.example.com".to_owned()]).expect("the name is a name");
    expired.not_before = rcgen::date_time_ymd(2019, 1, 1);
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let expired = expired.self_signed(&key).expect("a certificate is made");
    let mut authority = rcgen::CertificateParams::default();
    authority
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Authority");
    let authority_key = rcgen::KeyPair::generate().expect("a key is made");
    let issued = rcgen::CertificateParams::new(["grpc.example.com".to_owned()])
        .expect("the name is a name")
        .signed_by(
            &key,
            &rcgen::Issuer::from_params(&authority, &authority_key),
        )
        .expect("a certificate is made")
        .pem();
    let authority = authority
        .self_signed(&authority_key)
        .expect("a certificate is made")
        .pem();
    for (name, text) in [
        ("old.crt", expired.pem()),
        ("old.key", key.serialize_pem()),
        ("empty.crt", String::new()),
        ("stray.crt", format!("{issued}{}", expired.pem())),
        ("upside-down.crt", format!("{authority}{issued}")),
        (
            "locked.key",
            key.serialize_pem().replace("PRIVATE", "ENCRYPTED PRIVATE"),
        ),
    ] {
        fs::write(directory.path().join(name), text).expect("the file is written");
    }
    let whole = fs::read_to_string(directory.path().join("one.key")).expect("the key is there");
    fs::write(directory.path().join("cut.key"), &whole[..whole.len() / 2])
        .expect("the file is written");
    let told = [
        ("one.crt", "one.key"),
        ("one.crt", "two.key"),
        ("one.crt", "later.key"),
        ("later.crt", "later.key"),
        ("old.crt", "old.key"),
        ("empty.crt", "one.key"),
        ("one.crt", "cut.key"),
        ("one.crt", "one.crt"),
        ("one.key", "one.key"),
        ("later.pem", "later.pem"),
        ("one.crt", "locked.key"),
        (".", "one.key"),
        ("stray.crt", "old.key"),
        ("upside-down.crt", "old.key"),
    ]
    .map(|(chain, key)| {
        format!(
            "=== {chain} and {key}\n{}",
            check_pair(directory.path(), chain, key)
        )
    })
    .join("\n");
    insta::assert_snapshot!(told);
}

/// What is wrong with the configuration, with the pair and with the log, all of it.
#[test]
fn check_looks_at_every_file_in_one_go() {
    let directory = pairs();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let check = |workers: u32, chain: &str, key: &str, log: &str| {
        let text = format!(
            "\
workers: {workers}
listener:
  address: 127.0.0.1:0
  tls:
    certificate_chain: {}
    private_key: {}
access_log: {{ path: {} }}
routes: [{{ prefix: /, cluster: echo }}]
clusters: [{{ name: echo, endpoints: [\"echo:1\"] }}]
",
            path(chain),
            path(key),
            path(log)
        );
        let file = path("edge-proxy.yaml");
        fs::write(&file, text).expect("the file is written");
        let told = told(&edge_proxy(&["check", "--config", &file]));
        told.replace(&directory.path().display().to_string(), "DIR")
    };
    let all = [
        check(5000, "one.crt", "two.key", "."),
        check(5000, "later.crt", "later.key", "later/log"),
        check(1, "later.crt", "later.key", "later/log"),
        check(1, "later.crt", "one.key", "log"),
        check(1, "one.crt", "one.key", "one.key/log"),
        check(1, "one.crt", "one.key", "one.key/below/log"),
    ];
    insta::assert_snapshot!(all.join("\n"));
    assert!(!directory.path().join("log").exists());
}

#[test]
fn a_wrong_configuration_starts_nothing() {
    for arguments in [
        &["run", "--config", "tests/configurations/wrong.yaml"][..],
        &["--config", "tests/configurations/wrong.yaml"],
    ] {
        let output = edge_proxy(arguments);
        let check = edge_proxy(&["check", "--config", "tests/configurations/wrong.yaml"]);
        assert_eq!(told(&output), told(&check));
    }
}

#[test]
fn a_missing_configuration_starts_nothing() {
    let run = edge_proxy(&["run", "--config", "tests/configurations/none.yaml"]);
    insta::assert_snapshot!(told(&run));
}

/// A configuration that can be run, with the pair in `directory`.
fn minimal(directory: &Path, more: &str) -> String {
    let path = |name: &str| directory.join(name).display().to_string();
    format!(
        "\
listener:
  address: 127.0.0.1:0
  tls: {{ certificate_chain: {}, private_key: {} }}
admin: {{ address: 127.0.0.1:0 }}
probes: {{ address: 127.0.0.1:0 }}
{more}routes: [{{ prefix: /, cluster: echo }}]
clusters: [{{ name: echo, endpoints: [\"127.0.0.1:1\"] }}]
",
        path("one.crt"),
        path("one.key"),
    )
}

#[test]
fn a_log_that_cannot_be_opened_starts_nothing() {
    let directory = pairs();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let log = format!("access_log: {{ path: {} }}\n", path("later/log"));
    let text = minimal(directory.path(), &log);
    let file = path("edge-proxy.yaml");
    fs::write(&file, text).expect("the file is written");
    let output = edge_proxy(&["run", "--config", &file]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for part in [
        "error: cannot start\n",
        "  because: cannot open the access log (access_log.path): make its folder, or give a path that this user may write to\n",
        "/later/log: No such file or directory",
    ] {
        assert!(told.contains(part), "{told}");
    }
}

/// `run`, with its diagnostics to be read.
fn start(file: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_edge-proxy"))
        .args(["run", "--config", file])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

/// Two processes may bind the same address until one of them listens, and a certificate is waited for between the two.
#[test]
fn an_address_that_another_has_taken_meanwhile_is_told_by_its_key() {
    let directory = pairs();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("it is allowed");
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any_port.into()).expect("a free port");
    let address = socket.local_addr().expect("it is bound").as_socket();
    let address = address.expect("it is one of IPv4").to_string();
    let text = minimal(directory.path(), "").replacen("127.0.0.1:0", &address, 1);
    let (file, later) = (path("edge-proxy.yaml"), path("later.crt"));
    fs::write(&file, text).expect("the file is written");
    fs::rename(path("one.crt"), &later).expect("it is moved away");
    let mut process = start(&file);
    let stderr = process.stderr.take().expect("it is piped");
    let mut lines = io::BufReader::new(stderr).lines();
    let mut until = |what: &str| {
        let mut lines = lines.by_ref().map(|line| line.expect("it writes text"));
        lines.find(|line| line.contains(what))
    };
    until("waiting for the certificate").expect("it waits");
    socket.listen(1).expect("nobody listens yet");
    fs::rename(later, path("one.crt")).expect("it is there again");
    let line = until(" ERROR ").expect("it can't listen");
    for part in [
        "listener.address",
        &address,
        "the port is in use; end the process that has it, or choose another port",
    ] {
        assert!(line.contains(part), "{line}");
    }
    assert!(until("outcome=Failed").is_some());
    assert_eq!(process.wait().expect("it ends").code(), Some(1));
}

/// One that comes while the configuration is being read: whoever can write to a FIFO has a reader.
#[test]
fn a_signal_during_the_start_drains() {
    let directory = pairs();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let text = minimal(directory.path(), "");
    for (name, text, code) in [("good", text.as_str(), 0), ("wrong", "wrokers: 1\n", 2)] {
        let file = path(name);
        let made = Command::new("mkfifo").arg(&file).status();
        assert!(made.expect("mkfifo starts").success());
        let mut process = start(&file);
        let stderr = process.stderr.take().expect("it is piped");
        let ended = thread::spawn({
            let file = file.clone();
            move || {
                let told = io::read_to_string(stderr).expect("it writes text");
                // Should it have ended before it opened the FIFO, whoever opens that as well lets the opening below go on.
                let both = fs::OpenOptions::new().read(true).write(true).open(file);
                (told, both.expect("the FIFO is there"))
            }
        });
        let mut configuration = fs::OpenOptions::new()
            .write(true)
            .open(&file)
            .expect("the program opens the other end");
        let id = i32::try_from(process.id()).expect("a process id");
        let id = Pid::from_raw(id).expect("it isn't 0");
        kill_process(id, Signal::TERM).expect("nobody has waited for it");
        let written = configuration.write_all(text.as_bytes());
        drop(configuration);
        let (told, _) = ended.join().expect("it reads");
        let status = process.wait().expect("it ends");
        assert_eq!(status.code(), Some(code), "{told}");
        assert_eq!(told.contains("SIGTERM: draining"), code == 0, "{told}");
        assert_eq!(told.contains("wrokers"), code == 2, "{told}");
        assert!(written.is_ok(), "{written:?}: {told}");
    }
}

/// As an editor on Windows, or PowerShell's `>`, may save it.
#[test]
fn a_configuration_in_utf_16_is_told_by_its_name() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = directory.path().join("edge-proxy.yaml");
    let text =
        fs::read_to_string("../deploy/edge-proxy/edge-proxy.yaml").expect("the sample is there");
    let units = std::iter::once(0xfeff).chain(text.encode_utf16());
    fs::write(&file, units.flat_map(u16::to_le_bytes).collect::<Vec<_>>())
        .expect("the file is written");
    let output = edge_proxy(&["check", "--config", &file.display().to_string()]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("edge-proxy.yaml: is in UTF-16: save it as UTF-8"),
        "{told}"
    );
}

#[test]
fn the_schema_is_json_that_knows_every_key() {
    let output = edge_proxy(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("the schema is JSON");
    insta::assert_snapshot!(serde_json::to_string_pretty(&schema).expect("JSON is text"));
}

#[test]
fn help_and_version() {
    insta::assert_snapshot!(told(&edge_proxy(&["--help"])));
    let version = edge_proxy(&["--version"]);
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    assert_eq!(version.status.code(), Some(0));
    assert!(
        text.starts_with(concat!("edge-proxy ", env!("CARGO_PKG_VERSION"), " (")),
        "{text}"
    );
    assert_eq!(edge_proxy(&[]).status.code(), Some(2));
    insta::assert_snapshot!("mistyped", told(&edge_proxy(&["chekc", "--config", "f"])));
}
