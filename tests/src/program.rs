//! What every program of this crate does the same: its lines, its exit code, and the options of those that start a proxy
//! and judge it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use clap::builder::{PathBufValueParser, TypedValueParser};
use serde_json::Value;

use crate::process::proxy_program;

/// `println!`, but a reader that has seen enough (`| head`) is no reason to panic.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Which proxy is judged, and where the figures go.
#[derive(Debug, clap::Args)]
pub struct Trial {
    /// The proxy's program; otherwise it is built as this one was, and figures of a debug build are worse
    #[arg(long, value_name = "FILE", value_parser = program_file())]
    proxy: Option<PathBuf>,

    /// Write the findings as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Trial {
    /// The proxy's program.
    ///
    /// # Errors
    /// When it can't be built.
    pub fn program(&self) -> anyhow::Result<PathBuf> {
        match &self.proxy {
            Some(program) => Ok(program.clone()),
            None => proxy_program(),
        }
    }

    /// Writes the findings, if a file was named.
    ///
    /// # Errors
    /// When that can't be written.
    pub fn report(&self, findings: impl FnOnce() -> Value) -> anyhow::Result<()> {
        let Some(file) = &self.json else {
            return Ok(());
        };
        std::fs::write(file, format!("{:#}\n", findings()))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// A flag's value that names a program: of a file that is there, and found from any working directory. What starts it may
/// have another one, and does so long after the flags were read.
pub fn program_file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| existing(&path))
}

fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    // Also for a mere name, which would be looked for in PATH.
    let absolute = std::path::absolute(path).context("cannot tell the working directory")?;
    ensure!(
        absolute.is_file(),
        "there is no file {}; name a program that is there",
        absolute.display()
    );
    Ok(absolute)
}

/// 0 if everything held, else 1; an error is told on standard error.
pub fn exit_code(held: anyhow::Result<bool>) -> ExitCode {
    match held {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        trial: Trial,
    }

    fn proxy(path: &str) -> Result<PathBuf, clap::Error> {
        let cli = Cli::try_parse_from(["trial", "--proxy", path])?;
        Ok(cli.trial.program().unwrap())
    }

    #[test]
    fn a_program_is_found_from_any_working_directory() {
        // Tests run in their crate's folder.
        let found = proxy("Cargo.toml").unwrap();
        assert_eq!(
            found,
            Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")
        );
    }

    #[test]
    fn a_program_that_is_not_there_is_refused_with_its_whole_path() {
        for path in ["no/such/program", "src"] {
            let error = proxy(path).unwrap_err().to_string();
            let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
            assert!(error.contains("--proxy"), "{error}");
            assert!(error.contains(&*whole.to_string_lossy()), "{error}");
        }
    }
}
