//! What a test's own thread writes to the log.

use std::{
    io,
    sync::{Arc, Mutex, OnceLock},
};

use tracing::{Dispatch, subscriber::DefaultGuard};

/// The lines so far. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// What this thread logs from now on is kept here, until the guard is dropped. A test's runtime has one thread, so
    /// its tasks are heard, too; jobs that block aren't.
    pub(crate) fn capture(&self) -> DefaultGuard {
        never_alone();
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .fmt_fields(super::log::Fields)
            .with_ansi(false)
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// Those that hold `text`.
    pub(crate) fn lines(&self, text: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let all = String::from_utf8(bytes).unwrap();
        all.lines()
            .filter(|line| line.contains(text))
            .map(str::to_owned)
            .collect()
    }
}

/// To be called before a subscriber is set for a thread. As long as there is only one, `tracing` asks that of the thread
/// which comes to a line first whether anybody wants it, and that may be another test's thread, with none.
pub(crate) fn never_alone() {
    static ANOTHER: OnceLock<Dispatch> = OnceLock::new();
    ANOTHER.get_or_init(|| Dispatch::new(tracing_subscriber::registry()));
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
