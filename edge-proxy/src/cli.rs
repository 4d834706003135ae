//! What the operator typed, and the subcommands that start nothing.
//!
//! Exit codes, also of `run`: 0 drained and done, or the configuration is right; 1 could not start, failed, or was
//! told twice to end; 2 the configuration (or the command line) is wrong.

use std::{
    env::consts::{ARCH, OS},
    ffi::OsString,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::LazyLock,
};

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

use crate::control_plane::config::{Config, ConfigErrors, Problem};

/// What to do, of what was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve until told to end.
    Run {
        /// The configuration file.
        config: PathBuf,
    },
    /// Read the configuration, tell what is wrong with it, and end.
    Check {
        /// The configuration file.
        config: PathBuf,
    },
    /// Print the configuration's JSON Schema.
    Schema,
}

/// Drained and done, or the configuration is right.
pub const EXIT_DONE: u8 = 0;

/// Could not start, failed, or was told twice to end.
pub const EXIT_FAILED: u8 = 1;

/// The configuration is wrong. The command line's own mistakes end with it too.
pub const EXIT_WRONG: u8 = 2;

/// Version and build: `0.1.0 (release, x86_64-linux)`. No commit: equal sources are to make equal binaries, and what an image
/// was built from is its label `org.opencontainers.image.revision`.
pub static VERSION: LazyLock<String> = LazyLock::new(|| {
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    format!("{} ({profile}, {ARCH}-{OS})", env!("CARGO_PKG_VERSION"))
});

/// Reads the process's arguments. Help, version and mistakes are printed here and end the process (with 0, 0, 2).
pub fn parse() -> Command {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// `check`: reads the configuration at `path` and looks at the files it names. What is wrong goes to `problems`, the
/// verdict to `verdict`. Returns the exit code.
///
/// # Errors
/// Writing failed.
pub fn check(path: &Path, verdict: &mut dyn Write, problems: &mut dyn Write) -> io::Result<u8> {
    match Config::load_with_files(path) {
        Ok(loaded) => {
            warn(&loaded.warnings, problems)?;
            writeln!(verdict, "{}: the configuration is right", path.display())?;
            Ok(EXIT_DONE)
        }
        Err(errors) => {
            refuse(&errors, problems)?;
            Ok(EXIT_WRONG)
        }
    }
}

/// One `warning: ` line each.
///
/// # Errors
/// Writing failed.
pub fn warn(warnings: &[Problem], out: &mut dyn Write) -> io::Result<()> {
    warnings
        .iter()
        .try_for_each(|warning| writeln!(out, "warning: {warning}"))
}

/// One `error: ` line each, the warnings, and how many there were.
///
/// # Errors
/// Writing failed.
pub fn refuse(wrong: &ConfigErrors, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{wrong}")?;
    warn(&wrong.warnings, out)?;
    let count = |number: usize, what| match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    };
    let errors = count(wrong.errors.len(), "error");
    writeln!(out, "{errors}, {}", count(wrong.warnings.len(), "warning"))
}

/// `schema`: the configuration's JSON Schema.
///
/// # Errors
/// Writing failed.
pub fn schema(out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, &Config::schema())?;
    writeln!(out)
}

/// An edge proxy for gRPC: TLS and clients that nobody trusts on one side, balanced h2c backends on the other.
#[derive(Debug, Parser)]
#[command(
    name = "edge-proxy",
    version = VERSION.as_str(),
    arg_required_else_help = true,
    args_conflicts_with_subcommands = true,
    after_help = "Exit codes: 0 drained and done, 1 could not start, failed, or was told twice to end, 2 the configuration is wrong."
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Subcommands>,
    /// The configuration, YAML: without a subcommand, `run` with it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Serve until told to end; the default with --config.
    Run(File),
    /// Tell what is wrong with the configuration, and end.
    Check(File),
    /// Print the configuration's JSON Schema, for editors.
    Schema,
}

#[derive(Debug, clap::Args)]
struct File {
    /// The configuration, YAML.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

fn parse_from(
    line: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Command, clap::Error> {
    let arguments = Arguments::try_parse_from(line)?;
    match (arguments.command, arguments.config) {
        (Some(Subcommands::Run(file)), _) => Ok(Command::Run {
            config: file.config,
        }),
        (Some(Subcommands::Check(file)), _) => Ok(Command::Check {
            config: file.config,
        }),
        (Some(Subcommands::Schema), _) => Ok(Command::Schema),
        (None, Some(config)) => Ok(Command::Run { config }),
        (None, None) => Err(Arguments::command().error(
            ErrorKind::MissingRequiredArgument,
            "write `edge-proxy run --config FILE`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Result<Command, clap::Error> {
        parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn run_is_the_default() {
        let run = Command::Run {
            config: "f.yaml".into(),
        };
        assert_eq!(typed("edge-proxy --config f.yaml").unwrap(), run);
        assert_eq!(typed("edge-proxy run --config f.yaml").unwrap(), run);
        assert_eq!(
            typed("edge-proxy check --config f.yaml").unwrap(),
            Command::Check {
                config: "f.yaml".into()
            }
        );
        assert_eq!(typed("edge-proxy schema").unwrap(), Command::Schema);
    }

    #[test]
    fn nothing_else_is_taken() {
        for line in [
            "edge-proxy",
            "edge-proxy run",
            "edge-proxy check",
            "edge-proxy --config",
            "edge-proxy serve",
            "edge-proxy --config a check --config b",
            "edge-proxy schema --config a",
        ] {
            assert!(typed(line).is_err(), "{line}");
        }
    }
}
