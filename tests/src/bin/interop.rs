//! gRPC's interoperability cases: each client, through a process of the proxy over TLS, to each backend; a table.
//!
//! `tests/clients/interop` installs the clients and runs this.

use std::{process::ExitCode, time::Instant};

use clap::Parser;
use e2e::{
    interop::{Backend, CASES, Client, Options, Outcome, Soak, run},
    program::{Trial, exit_code},
    say,
};
use serde_json::json;

/// gRPC's interoperability cases through the proxy: exit code 1 if one failed
#[derive(Debug, Parser)]
#[command(name = "interop", version)]
struct Cli {
    /// 10 000 RPCs in rpc_soak and 1000 in channel_soak, instead of 100 and 10
    #[arg(long)]
    long: bool,

    /// Only this client: grpc-go, tonic, grpcio, grpc-js
    #[arg(long, value_name = "NAME")]
    client: Option<String>,

    /// Only this case
    #[arg(long, value_name = "NAME")]
    case: Option<String>,

    #[command(flatten)]
    trial: Trial,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit_code(perform(Cli::parse()).await)
}

async fn perform(cli: Cli) -> anyhow::Result<bool> {
    let options = Options {
        program: cli.trial.program()?,
        soak: if cli.long {
            Soak {
                rpcs: 10_000,
                channels: 1000,
            }
        } else {
            Soak {
                rpcs: 100,
                channels: 10,
            }
        },
    };
    let clients = Client::ALL
        .into_iter()
        .filter(|client| cli.client.as_ref().is_none_or(|name| name == client.name()));
    let clients: Vec<_> = clients.collect();
    let cases = CASES
        .into_iter()
        .filter(|case| cli.case.as_ref().is_none_or(|name| name == case));
    let cases: Vec<_> = cases.collect();
    let begun = Instant::now();
    let mut outcomes = Vec::new();
    for backend in Backend::ALL {
        let report = |outcome: &Outcome| {
            if let Some(failure) = &outcome.failure {
                let (client, backend) = (outcome.client.name(), outcome.backend.name());
                say!("{client} → {backend}, {}: {failure}", outcome.case);
            }
        };
        outcomes.extend(run(backend, &clients, &cases, &options, report).await?);
    }
    table(&clients, &cases, &outcomes);
    let failed = outcomes.iter().filter(|one| one.failure.is_some()).count();
    let passed = outcomes.len() - failed;
    say!(
        "\nrpc_soak {}, channel_soak {}; {:.0} s",
        options.soak.rpcs,
        options.soak.channels,
        begun.elapsed().as_secs_f64()
    );
    say!("interop: {passed} passed, {failed} failed");
    cli.trial.report(|| {
        let all: Vec<_> = outcomes.iter().map(Outcome::json).collect();
        json!({ "long": cli.long, "outcomes": all })
    })?;
    Ok(failed == 0 && passed > 0)
}

/// A line for each case, a column for each client and backend.
fn table(clients: &[Client], cases: &[&str], outcomes: &[Outcome]) {
    let columns: Vec<(Backend, Client)> = Backend::ALL
        .into_iter()
        .flat_map(|backend| clients.iter().map(move |client| (backend, *client)))
        .collect();
    let line = |first: &str, texts: Vec<&str>| {
        let rest: String = texts.iter().map(|text| format!(" {text:<8}")).collect();
        say!("{first:<28}{}", rest.trim_end());
    };
    say!("");
    line("client", columns.iter().map(|(_, c)| c.name()).collect());
    line("backend", columns.iter().map(|(b, _)| b.name()).collect());
    for case in cases {
        let marks = columns.iter().map(|(backend, client)| {
            let outcome = outcomes
                .iter()
                .find(|one| (one.backend, one.client, one.case) == (*backend, *client, *case));
            match outcome {
                Some(one) if one.failure.is_none() => "✓",
                Some(_) => "✗",
                None => "–", // one of the two doesn't have it
            }
        });
        line(case, marks.collect());
    }
}
