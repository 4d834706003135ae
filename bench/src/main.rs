//! edge-proxy beside Envoy, HAProxy, nginx and Caddy on one machine: what each costs, and whether ours keeps its targets.
//!
//! Read it in this order. A *part* is what one subcommand measures, a *shape* is one load within it (10 connections of
//! 10 streams, 5-byte messages), a *figure* is what rounds have measured of one peer at one shape. The method, and why
//! it is fair, is in `bench/README.md`.

// What the operator typed.
mod cli;

// Who is compared: configurations from bench/peers/, programs from Debian and PyPI.
mod peers;

// Which core is whose, and what machine this is.
mod machine;

// Certificate, backends, peers: everything that a part needs, running.
mod lab;

// What answers behind all peers.
mod backend;

// Requests, connections, handshakes.
mod load;

// CPU time and memory of a peer's processes.
mod measure;

// What is measured, one file for each subcommand.
mod parts;

// Medians, verdicts, tables, the plot.
mod report;

// What one RPC takes in the data path, beside nobody and whatever the machine does.
mod instructions;

use std::process::ExitCode;

use clap::Parser as _;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
