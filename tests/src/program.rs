//! What every program of this crate does the same: its lines, its exit code, and the options of those that start a proxy
//! and judge it.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
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
    #[arg(long, value_name = "FILE")]
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
