//! What every program of this crate does the same: its lines, and its exit code.

use std::process::ExitCode;

/// `println!`, but a reader that has seen enough (`| head`) is no reason to panic.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
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
