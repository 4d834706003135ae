//! The whole system on one machine, with one command: two replicas of each service, a DNS server that knows them, a
//! certificate authority, and the edge proxy before them; then some RPCs through it, and a table of who served them.

use std::{
    fmt::Display,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser;
use e2e::{
    certs::SERVER_NAME,
    demonstration::{Call, RPCS, Served, demonstrate},
    replicas::Kind,
    say,
    stack::{Ports, Stack, host},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The whole system on one machine: both services, DNS, certificates, and the edge proxy
#[derive(Debug, Parser)]
#[command(name = "local-stack", version)]
struct Cli {
    /// Run the demonstration and exit: 0, or 1 if an RPC failed or the balance isn't even
    #[arg(long)]
    once: bool,

    /// Port of the edge proxy
    #[arg(long, default_value_t = 8443, value_name = "N")]
    port: u16,

    /// Port of its admin interface
    #[arg(long, default_value_t = 8090, value_name = "N")]
    admin_port: u16,

    /// Port of its probes and metrics
    #[arg(long, default_value_t = 8091, value_name = "N")]
    probes_port: u16,

    /// Port of the echo-grpc replicas, on 127.0.0.2 and 127.0.0.3
    #[arg(long, default_value_t = 8081, value_name = "N")]
    echo_port: u16,

    /// Port of the reverse-grpc replicas, on 127.0.0.4 and 127.0.0.5
    #[arg(long, default_value_t = 8082, value_name = "N")]
    reverse_port: u16,

    /// Port of the DNS server; 0: any that is free
    #[arg(long, default_value_t = 0, value_name = "N")]
    dns_port: u16,

    /// Folder for certificates, configuration and log; otherwise a temporary one, removed at the end
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,

    /// Have the tests' own service, too
    #[arg(long, hide = true)]
    with_test_service: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let ports = Ports {
        listener: cli.port,
        admin: cli.admin_port,
        probes: cli.probes_port,
        echo: cli.echo_port,
        reverse: cli.reverse_port,
        dns: cli.dns_port,
    };
    // Removed when this function ends.
    let temporary = tempfile::Builder::new()
        .prefix("local-stack-")
        .tempdir()
        .context("no temporary folder")?;
    let directory = match &cli.directory {
        Some(given) => {
            std::fs::create_dir_all(given)
                .with_context(|| format!("cannot make the folder {}", given.display()))?;
            given.canonicalize()?
        }
        None => temporary.path().to_owned(),
    };
    let stack = Stack::start(ports, &directory, cli.with_test_service).await?;
    let page = Page::new();
    page.parts(&stack);
    page.configuration(&stack)?;

    page.title(format_args!(
        "{RPCS} RPCs to each service, all on one connection"
    ));
    let shown = |call: &Call<'_>| {
        if call.number < SHOWN {
            page.call(call);
        }
    };
    let good = match demonstrate(&stack, shown).await {
        Ok(served) => page.table(&stack, &served),
        Err(error) => {
            eprintln!("\n  {} {error:#}", page.bad("failed:"));
            false
        }
    };
    if cli.once {
        stack.drain();
        stack.ended().await?;
        return Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
    // Before the words that invite one: a signal that nobody listens for ends the process.
    let signals = Signals::listen()?;
    page.commands(&stack);
    until_told(stack, signals, &page).await
}

/// Ctrl-C, and what a supervisor sends.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Waits for Ctrl-C, drains; a second Ctrl-C cuts that short.
async fn until_told(stack: Stack, mut signals: Signals, page: &Page) -> anyhow::Result<ExitCode> {
    signals.next().await;
    say!("\n  {}", page.faint("Draining; Ctrl-C again ends at once."));
    stack.drain();
    let ended = stack.ended();
    tokio::select! {
        ended = ended => {
            ended?;
            say!("  {}", page.faint("Done."));
            Ok(ExitCode::SUCCESS)
        }
        () = signals.next() => Ok(ExitCode::FAILURE),
    }
}

/// What is printed, and how: colour on a terminal only.
struct Page {
    colour: bool,
}

impl Page {
    fn new() -> Self {
        // https://no-color.org: set and not empty.
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colour: std::io::stdout().is_terminal() && !unwanted,
        }
    }

    fn parts(&self, stack: &Stack) {
        say!("\n  {}", self.strong("edge-grpc on this machine"));
        self.line(
            "edge-proxy",
            format_args!("https://{}  for {SERVER_NAME}", stack.listener),
        );
        self.line("  admin", format_args!("http://{}/", stack.admin));
        self.line(
            "  probes",
            format_args!("http://{}/readyz  /livez  /metrics", stack.probes),
        );
        for kind in [Kind::Echo, Kind::Reverse] {
            let replicas = stack.replicas.iter().filter(|(of, _)| *of == kind);
            let list: Vec<String> = replicas
                .map(|(_, one)| format!("{} {}", one.hostname(), self.faint(one.address())))
                .collect();
            self.line(kind.name(), list.join("  "));
        }
        self.line(
            "DNS",
            format_args!(
                "{}  {}  {}",
                stack.dns.address(),
                host(Kind::Echo),
                host(Kind::Reverse)
            ),
        );
        self.line("CA", stack.ca.display());
        self.line("access log", stack.access_log.display());
    }

    fn configuration(&self, stack: &Stack) -> anyhow::Result<()> {
        self.title(stack.config.display());
        for line in std::fs::read_to_string(&stack.config)?.lines() {
            say!("  {} {}", self.faint("│"), self.faint(line));
        }
        Ok(())
    }

    fn call(&self, call: &Call<'_>) {
        let time = format!("{:.1} ms", call.time.as_secs_f64() * 1e3);
        say!(
            "  {:<20} {:>8} → {:<8} {:<15} {}",
            call.method,
            format!("“{}”", call.sent),
            format!("“{}”", call.received),
            call.hostname,
            self.faint(format_args!("{time:>8}")),
        );
    }

    /// Who served what. Is the balance even?
    fn table(&self, stack: &Stack, served: &Served) -> bool {
        say!(
            "\n  {}",
            self.strong(format_args!(
                "{:<15} {:>5} {:>6}",
                "served by", "RPCs", "share"
            ))
        );
        for (_, replica) in &stack.replicas {
            let count = served.by(replica.hostname());
            let percent = count * 100 / RPCS;
            let bar = "█".repeat(percent / 5);
            let bar = if served.is_a_share(count) {
                self.good(bar)
            } else {
                self.bad(bar)
            };
            say!(
                "  {:<15} {count:>5} {percent:>5}% {bar}",
                replica.hostname()
            );
        }
        let even = served.is_even();
        let verdict = if even {
            self.good("even: every RPC is balanced, not every connection")
        } else {
            self.bad("not even")
        };
        say!("  {verdict}");
        even
    }

    fn commands(&self, stack: &Stack) {
        self.title("Try it");
        for (file, content, method) in [
            ("echo.proto", "echo", "api.Echo/Echo"),
            ("reverse.proto", "reverse", "api.Reverse/Reverse"),
        ] {
            say!(
                "  grpcurl -v -cacert {} -authority {SERVER_NAME} -proto {} -d '{{\"content\": \"{content}\"}}' {} \
                 {method}",
                stack.ca.display(),
                proto_file(file).display(),
                stack.listener,
            );
        }
        say!(
            "  curl --cacert {} --resolve {SERVER_NAME}:{}:127.0.0.1 -H 'x-envoy-livenessprobe: healthz' -i \
             https://{SERVER_NAME}:{}/healthz",
            stack.ca.display(),
            stack.listener.port(),
            stack.listener.port(),
        );
        say!("\n  {}", self.faint("Running until Ctrl-C, which drains."));
    }

    fn title(&self, text: impl Display) {
        say!("\n  {}", self.strong(text));
    }

    fn line(&self, name: &str, value: impl Display) {
        say!("  {} {value}", self.faint(format_args!("{name:<13}")));
    }

    fn strong(&self, text: impl Display) -> String {
        self.paint("1", text)
    }

    fn faint(&self, text: impl Display) -> String {
        self.paint("2", text)
    }

    fn good(&self, text: impl Display) -> String {
        self.paint("32", text)
    }

    fn bad(&self, text: impl Display) -> String {
        self.paint("31", text)
    }

    fn paint(&self, code: &str, text: impl Display) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }
}

/// The shortest path that works: relative when this is run in the repository's folder.
fn proto_file(name: &str) -> PathBuf {
    let relative = Path::new("proto/api").join(name);
    if relative.exists() {
        return relative;
    }
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../proto/api")).join(name)
}

/// How many of them are printed.
const SHOWN: usize = 4;
