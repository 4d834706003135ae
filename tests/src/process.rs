//! Programs as processes of their own: signals, exit codes, what they print, how much memory they take.

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
    task::JoinHandle,
};

use crate::wait::within;

/// A running program. It is killed with this value.
pub struct Process {
    child: Child,
    stdout: Output,
    stderr: Output,
}

/// What a program has printed so far on one of its streams.
struct Output {
    text: Arc<watch::Sender<String>>,
    reader: JoinHandle<()>,
}

/// What is left of a program.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Ended {
    /// Its exit code, unless a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl Process {
    /// Starts `program`.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let stdout = Output::of(child.stdout.take().expect("it is piped"));
        let stderr = Output::of(child.stderr.take().expect("it is piped"));
        Self {
            child,
            stdout,
            stderr,
        }
    }

    /// Runs `program` to its end.
    ///
    /// # Panics
    /// When it can't be started, or doesn't end.
    pub async fn run<S: AsRef<OsStr>>(
        program: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Ended {
        Self::start(program, arguments).ended().await
    }

    /// Sends it a signal, named as in `kill -TERM`.
    ///
    /// # Panics
    /// When the signal can't be sent.
    pub async fn signal(&self, name: &str) {
        let id = self.id();
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {id}")])
            .status()
            .await;
        assert!(
            sent.expect("there is a shell").success(),
            "kill -{name} {id}"
        );
    }

    /// Waits until its standard output holds `text`.
    pub async fn prints(&self, text: &str) {
        self.stdout.holds(text).await;
    }

    /// Waits until its standard error holds `text`.
    pub async fn reports(&self, text: &str) {
        self.stderr.holds(text).await;
    }

    /// Its standard error so far.
    pub fn stderr(&self) -> String {
        self.stderr.text.borrow().clone()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// When it doesn't end.
    pub async fn ended(mut self) -> Ended {
        let status = within("a program's end", self.child.wait())
            .await
            .expect("it is our child");
        Ended {
            status,
            stdout: self.stdout.all().await,
            stderr: self.stderr.all().await,
        }
    }

    /// Waits for its end, however long it takes.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn exit(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it has ended.
    pub fn id(&self) -> u32 {
        self.child.id().expect("nobody has waited for it")
    }

    /// Has it ended by itself?
    ///
    /// # Panics
    /// When the kernel doesn't know the process, which is our child.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("it is our child").is_some()
    }

    /// Its resident memory, in bytes.
    ///
    /// # Panics
    /// When it has ended.
    pub fn resident_memory(&self) -> usize {
        let id = self.id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap_or_default();
        let kibibytes = line.trim().trim_end_matches(" kB").parse::<usize>();
        kibibytes.expect("VmRSS is a number of kB (proc(5))") * 1024
    }
}

impl Output {
    fn of(stream: impl AsyncRead + Unpin + Send + 'static) -> Self {
        let text = Arc::new(watch::Sender::default());
        let sender = text.clone();
        let reader = tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while stream
                .read_until(b'\n', &mut line)
                .await
                .is_ok_and(|length| length > 0)
            {
                sender
                    .send_modify(|all: &mut String| all.push_str(&String::from_utf8_lossy(&line)));
                line.clear();
            }
        });
        Self { text, reader }
    }

    async fn holds(&self, text: &str) {
        let mut reader = self.text.subscribe();
        let found = tokio::time::timeout(
            crate::wait::PATIENCE,
            reader.wait_for(|all| all.contains(text)),
        );
        if found.await.is_err() {
            panic!(
                "no {text:?} in what the program printed:\n{}",
                self.text.borrow().as_str()
            );
        }
    }

    async fn all(self) -> String {
        // A panic in it can't be: it only copies bytes.
        let _ = within("the end of a program's output", self.reader).await;
        self.text.borrow().clone()
    }
}

/// The proxy's program, for programs that no test starts: the tests' copy of it, which lies beside the running one.
/// Cargo makes sure that it is there, and new.
///
/// # Errors
/// When it can't be built.
pub fn proxy_program() -> anyhow::Result<PathBuf> {
    const PROGRAM: &str = "edge-proxy-under-test";
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let own = std::env::current_exe().context("cannot tell which program this is")?;
    let mut build = std::process::Command::new(cargo);
    build.args(["build", "--package", "e2e", "--bin", PROGRAM]);
    if own.components().any(|part| part.as_os_str() == "release") {
        build.arg("--release");
    }
    let status = build
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("cannot run cargo; --proxy names a program that exists")?;
    if !status.success() {
        bail!("cargo cannot build {PROGRAM}: {status}");
    }
    Ok(own.with_file_name(PROGRAM))
}

/// Where `tests/clients/install` puts programs that aren't this workspace's.
pub fn other_clients() -> PathBuf {
    if let Some(folder) = std::env::var_os("EDGE_GRPC_CLIENTS") {
        return folder.into();
    }
    let cache = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) => cache.into(),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
    };
    cache.join("edge-grpc/clients")
}
