//! Where the lines go: standard output or a file, written without a buffer in between.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// An open file, and its path if it can be opened again.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    path: Option<PathBuf>,
    /// When a failed write was last reported.
    reported: Option<Instant>,
}

impl Output {
    /// The file at `path`, to append to; standard output without one.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let file = match path {
            Some(path) => append_to(path)?,
            // Not through `io::stdout()`: its line buffer would cut every batch into lines.
            None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
        };
        Ok(Self {
            path: path.map(Path::to_owned),
            ..Self::of(file)
        })
    }

    /// A file without a path.
    pub(super) fn of(file: File) -> Self {
        Self {
            file,
            path: None,
            reported: None,
        }
    }

    /// Opens the path again; keeps the file as it is when that fails, and for standard output.
    pub(super) fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match append_to(path) {
            Ok(file) => self.file = file,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "could not reopen the access log; the old file stays");
            }
        }
    }

    /// Writes whole lines, however long it takes. Says how many were lost to an error.
    pub(super) fn write(&mut self, mut lines: &[u8]) -> u64 {
        while !lines.is_empty() {
            match self.file.write(lines) {
                Ok(0) => return self.lost(lines, &io::ErrorKind::WriteZero.into()),
                Ok(n) => lines = &lines[n..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Whoever gave us the pipe made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
                Err(error) => return self.lost(lines, &error),
            }
        }
        0
    }

    fn lost(&mut self, lines: &[u8], error: &io::Error) -> u64 {
        if self
            .reported
            .is_none_or(|last| last.elapsed() > REPORT_EVERY)
        {
            self.reported = Some(Instant::now());
            tracing::warn!(%error, "could not write the access log; its lines are lost");
        }
        memchr::memchr_iter(b'\n', lines).count() as u64
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("could not open the access log {}: {error}", path.display()),
            )
        })
}

const RETRY: Duration = Duration::from_millis(5);
const REPORT_EVERY: Duration = Duration::from_secs(60);
