//! The process's log: lines on stdout, in JSON unless a person is watching.
//!
//! Why so: a pod's stdout is collected as "info" and its stderr as "error" by the usual
//! collectors, and JSON spares them a parser. On a terminal the same events are text.
//!
//! Lines pass a bounded queue to a thread of their own: when stdout blocks (a collector that is
//! stuck, a full pipe), lines are dropped and counted, and RPCs never wait for it.

use std::io::{self, IsTerminal as _, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Makes the log the process's own and starts its thread. What it says is chosen by `RUST_LOG`
/// (`info` unless set; `info,rpc::health=off` leaves the probes out).
///
/// Keep the result until the process ends: dropping it writes what is still queued.
pub(crate) fn start() -> io::Result<Flush> {
    let queue = Queue::start(io::stdout())?;
    let text = std::env::var(EnvFilter::DEFAULT_ENV).unwrap_or_default();
    let filter = filter(&text);
    let wrong = filter.is_none();
    let filter = filter.unwrap_or_else(|| EnvFilter::new(DEFAULT));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(queue.clone());
    // It only fails if the process has a log already, which is then as good.
    let _ = if io::stdout().is_terminal() {
        tracing::subscriber::set_global_default(subscriber.finish())
    } else {
        tracing::subscriber::set_global_default(
            subscriber
                .json()
                .flatten_event(true)
                .with_ansi(false)
                .finish(),
        )
    };
    if wrong {
        tracing::warn!(
            RUST_LOG = text,
            "RUST_LOG can't be read: logging at level {DEFAULT}"
        );
    }
    Ok(Flush(queue))
}

/// What `RUST_LOG` asks for; `None` if that can't be read. (`EnvFilter` takes nothing for `error`, and any word for a target,
/// which is all that is logged then; a lone word is a level here, as in the proxy.)
fn filter(text: &str) -> Option<EnvFilter> {
    let text = match text.trim() {
        "" => DEFAULT,
        text => text,
    };
    let lone = !text.contains(['=', ',', '[']);
    if lone && text.parse::<LevelFilter>().is_err() {
        return None;
    }
    EnvFilter::builder().parse(text).ok()
}

/// Writes what is queued when dropped, or gives up after a second.
#[derive(Debug)]
pub(crate) struct Flush(Queue);

impl Drop for Flush {
    fn drop(&mut self) {
        let deadline = Instant::now() + FLUSH_PATIENCE;
        let (done, flushed) = sync_channel(1);
        while self.0.lines.try_send(Message::Flush(done.clone())).is_err() {
            if Instant::now() >= deadline {
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let patience = deadline.saturating_duration_since(Instant::now());
        // Flushed, too late, or no thread any more: the wait is over, and nobody is left to tell.
        let _ = flushed.recv_timeout(patience);
    }
}

/// The way to the writing thread.
#[derive(Debug, Clone)]
struct Queue {
    lines: SyncSender<Message>,
    /// Lines that found the queue full since the thread last told.
    dropped: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Queue {
    fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (lines, queued) = sync_channel(QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&dropped);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || write(&queued, output, &counter))?;
        Ok(Self { lines, dropped })
    }
}

impl MakeWriter<'_> for Queue {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Write for Queue {
    /// Takes one line: tracing-subscriber formats an event whole and writes it once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread: writes what comes, with one flush for all that has come meanwhile.
fn write(queued: &Receiver<Message>, output: impl Write, dropped: &AtomicU64) {
    let mut output = io::BufWriter::with_capacity(BUFFER, output);
    while let Ok(first) = queued.recv() {
        let mut next = Some(first);
        while let Some(message) = next.take() {
            // A closed stdout leaves nobody to tell: go on, so that RPCs do.
            let _ = match message {
                Message::Line(line) => output.write_all(&line),
                Message::Flush(done) => {
                    let flushed = output.flush();
                    let _ = done.try_send(());
                    flushed
                }
            };
            next = queued.try_recv().ok();
        }
        let _ = output.flush();
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            lines => eprintln!("{lines} log lines were dropped: stdout did not take them in time"),
        }
    }
}

const DEFAULT: &str = "info";

/// Lines that may wait: some seconds of a busy service.
const QUEUE: usize = 4096;

/// Bytes written at a time.
const BUFFER: usize = 64 * 1024;

const FLUSH_PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// An output that writes nothing while somebody else holds the lock.
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_rust_log_says_is_a_level_or_directives() {
        let read = |text| filter(text).map(|filter| filter.to_string());
        assert_eq!(read("").as_deref(), Some("info"));
        assert_eq!(read(" ").as_deref(), Some("info"));
        assert_eq!(read("Debug").as_deref(), Some("debug"));
        let both = read("info,rpc::health=off").unwrap();
        assert!(
            both.contains("rpc::health=off") && both.contains("info"),
            "{both}"
        );
        for wrong in ["loud", "info,rpc=[", "rpc=loud"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lines_are_written_in_order_before_the_flush_returns() {
        let output = Output::default();
        let mut queue = Queue::start(output.clone()).unwrap();
        for line in ["one\n", "two\n"] {
            queue.write_all(line.as_bytes()).unwrap();
        }
        drop(Flush(queue));
        assert_eq!(&*output.0.lock().unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn a_blocked_output_costs_lines_and_never_time() {
        let output = Output::default();
        let blocked = output.0.lock().unwrap();
        let mut queue = Queue::start(output.clone()).unwrap();
        let line = vec![b'x'; 1024];
        // More than the queue, the buffer and what is being written can hold.
        for _ in 0..3 * QUEUE {
            assert_eq!(queue.write(&line).unwrap(), line.len());
        }
        assert!(queue.dropped.load(Ordering::Relaxed) > 0);
        drop(blocked);
    }
}
