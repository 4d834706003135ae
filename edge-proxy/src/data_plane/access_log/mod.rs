//! Step 10: one line per RPC, when its stream ends.
//!
//! Each worker formats its lines straight into a buffer of its own ([`Writer`]); one thread empties
//! the buffers, at most every 50 ms, and writes them out. So an RPC costs its formatting and an
//! uncontended lock, no system call: the thread sleeps out its pause whatever comes in, and only when
//! it parked (after a pause without a line), or when a buffer is filling (`FILLING`), does a worker
//! wake it.
//!
//! When the output blocks, that thread blocks alone: the buffers fill to 1 MiB each (`BUFFER`), then
//! lines are dropped and counted. No RPC ever waits for the log.
//!
//! What a client sends is escaped, and cut to 256 bytes, in `format.rs`: a line is always one line,
//! and valid JSON.

mod format;
mod output;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

pub(crate) use self::format::FIELD;
use self::{format::Formatter, output::Output};
pub use crate::telemetry::labels::{Flag, Flags};
use crate::telemetry::{counter::SharedCounter, metrics::lock};

/// `access_log` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// `json`, `text` or `off`.
    pub format: AccessLogFormat,
    /// `None`: standard output.
    pub path: Option<PathBuf>,
}

/// `access_log.format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object a line.
    Json,
    /// `key=value` words.
    Text,
    /// None.
    Off,
}

/// What one line says. Texts are as the client sent them; `None`: it sent none.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// When the request's headers were read.
    pub time: SystemTime,
    /// `x-request-id`, the client's or ours; `None`: the proxy answered before it made one.
    pub request_id: Option<&'a [u8]>,
    /// The address of the connection's peer, as `x-forwarded-for` has it.
    pub client: &'a str,
    /// `:method`.
    pub method: Option<&'a [u8]>,
    /// `:path`.
    pub path: Option<&'a [u8]>,
    /// `:authority`, or `host`.
    pub authority: Option<&'a [u8]>,
    /// `HTTP/2`, `HTTP/1.1` or `HTTP/1.0`.
    pub protocol: &'static str,
    /// As the client got it; 0: it got none.
    pub status: u16,
    /// As the client got it; `None`: it got none, or this isn't gRPC.
    pub grpc_status: Option<u32>,
    /// What went wrong, in Envoy's letters.
    pub flags: Flags,
    /// What the proxy ended it for, in the words of its own answers. The client got them, unless its stream was reset.
    pub detail: Option<&'static str>,
    /// DATA bytes from the client.
    pub bytes_in: u64,
    /// DATA bytes to the client.
    pub bytes_out: u64,
    /// From `time` to the end of the stream.
    pub duration: Duration,
    /// From the first attempt to the response's headers.
    pub upstream_time: Option<Duration>,
    /// How many attempts on an endpoint were begun.
    pub attempts: u32,
    /// Where the route led.
    pub cluster: Option<&'a str>,
    /// Of the last attempt.
    pub endpoint: Option<&'a str>,
    /// `user-agent`.
    pub user_agent: Option<&'a [u8]>,
}

/// The log, and its thread. Dropping it writes what is there, for a second at most.
#[derive(Debug)]
pub struct AccessLog {
    /// `None`: the format is `off`.
    running: Option<Running>,
    dropped: Arc<SharedCounter>,
}

/// A worker's end of the log.
#[derive(Debug)]
pub struct Writer(Option<(Arc<Shared>, Arc<Buffer>)>);

/// Has the log's file opened anew, after SIGHUP.
#[derive(Clone, Debug)]
pub struct Reopener(Option<Arc<Shared>>);

#[derive(Debug)]
struct Running {
    shared: Arc<Shared>,
    /// Closed by the thread when it has written everything.
    ended: mpsc::Receiver<()>,
}

/// What the workers and the thread share.
#[derive(Debug)]
struct Shared {
    format: AccessLogFormat,
    buffers: Mutex<Vec<Arc<Buffer>>>,
    /// Filled in by `start`, before there is a writer.
    thread: OnceLock<thread::Thread>,
    /// Set by the thread when it sleeps until it is woken; cleared by the worker that wakes it.
    parked: AtomicBool,
    /// Set once by [`AccessLog::finish`].
    stop: AtomicBool,
    /// Set by [`Reopener::reopen`], cleared by the thread.
    reopen: AtomicBool,
    dropped: Arc<SharedCounter>,
}

#[derive(Debug)]
struct Buffer(Mutex<Lines>);

#[derive(Debug)]
struct Lines {
    bytes: Vec<u8>,
    formatter: Formatter,
}

impl AccessLog {
    /// Opens the file (or standard output) and starts the thread.
    ///
    /// # Errors
    /// The file can't be opened, or no thread can be started.
    pub fn start(config: &AccessLogConfig) -> io::Result<Self> {
        if config.format == AccessLogFormat::Off {
            return Ok(Self {
                running: None,
                dropped: Arc::default(),
            });
        }
        Self::start_with(config.format, Output::open(config.path.as_deref())?)
    }

    fn start_with(format: AccessLogFormat, output: Output) -> io::Result<Self> {
        let dropped = Arc::<SharedCounter>::default();
        let shared = Arc::new(Shared {
            format,
            buffers: Mutex::default(),
            thread: OnceLock::new(),
            parked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            reopen: AtomicBool::new(false),
            dropped: Arc::clone(&dropped),
        });
        let (end, ended) = mpsc::channel();
        let thread = thread::Builder::new().name("access-log".into()).spawn({
            let shared = Arc::clone(&shared);
            move || {
                let _end: mpsc::Sender<()> = end;
                run(&shared, output);
            }
        })?;
        // Nobody else sets it.
        let _ = shared.thread.set(thread.thread().clone());
        Ok(Self {
            running: Some(Running { shared, ended }),
            dropped,
        })
    }

    /// For one worker.
    pub fn writer(&self) -> Writer {
        Writer(self.running.as_ref().map(|running| {
            let formatter = Formatter::new(running.shared.format);
            let buffer = Arc::new(Buffer(Mutex::new(Lines {
                bytes: Vec::new(),
                formatter,
            })));
            lock(&running.shared.buffers).push(Arc::clone(&buffer));
            (Arc::clone(&running.shared), buffer)
        }))
    }

    /// Counts the lines that were dropped.
    pub fn dropped(&self) -> Arc<SharedCounter> {
        Arc::clone(&self.dropped)
    }

    /// For whoever moves the file away.
    pub fn reopener(&self) -> Reopener {
        Reopener(
            self.running
                .as_ref()
                .map(|running| Arc::clone(&running.shared)),
        )
    }

    /// Writes what is there and ends the thread; later lines are lost. `false`: it wasn't done
    /// within `limit`, because the output blocks.
    pub fn finish(&mut self, limit: Duration) -> bool {
        let Some(running) = self.running.take() else {
            return true;
        };
        running.shared.stop.store(true, Ordering::Release);
        running.shared.wake();
        running.ended.recv_timeout(limit) != Err(mpsc::RecvTimeoutError::Timeout)
    }
}

impl Reopener {
    /// Opens the file anew; the old one stays if that fails. Nothing happens once the log has ended.
    pub fn reopen(&self) {
        if let Some(shared) = &self.0 {
            shared.reopen.store(true, Ordering::Release);
            shared.wake();
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.finish(Duration::from_secs(1));
    }
}

impl Writer {
    /// Adds one line, or counts it as dropped.
    pub fn write(&self, record: &Record<'_>) {
        let Some((shared, buffer)) = &self.0 else {
            return;
        };
        let filling = {
            let mut lines = lock(&buffer.0);
            let Lines { bytes, formatter } = &mut *lines;
            let start = bytes.len();
            if start < BUFFER {
                formatter.line(bytes, record);
            }
            if start >= BUFFER || bytes.len() > BUFFER {
                bytes.truncate(start);
                shared.dropped.inc();
                return;
            }
            start < FILLING && bytes.len() >= FILLING
        };
        // Either the thread saw this line after it said that it parks, or we see here that it did:
        // both hold the buffer's lock in between.
        let parked = shared.parked.load(Ordering::Acquire);
        if filling || parked && shared.parked.swap(false, Ordering::AcqRel) {
            shared.wake();
        }
    }
}

impl Shared {
    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// The thread: writes out what there is, pauses; parks when a pause brought nothing.
fn run(shared: &Shared, mut output: Output) {
    let mut lines = Vec::new();
    loop {
        let stop = shared.stop.load(Ordering::Acquire);
        if shared.reopen.swap(false, Ordering::AcqRel) {
            output.reopen();
        }
        let wrote = write_out(shared, &mut output, &mut lines);
        if stop {
            return;
        }
        if wrote {
            pause(shared);
            continue;
        }
        shared.parked.store(true, Ordering::Release);
        if !write_out(shared, &mut output, &mut lines) {
            thread::park();
        }
        shared.parked.store(false, Ordering::Release);
    }
}

/// Lets lines gather; ends early for a filling buffer and for the end.
fn pause(shared: &Shared) {
    let start = Instant::now();
    while !shared.stop.load(Ordering::Acquire) {
        let Some(rest) = PAUSE
            .checked_sub(start.elapsed())
            .filter(|rest| !rest.is_zero())
        else {
            return;
        };
        thread::park_timeout(rest);
        let filling = |buffer: &Arc<Buffer>| lock(&buffer.0).bytes.len() >= FILLING;
        if lock(&shared.buffers).iter().any(filling) || shared.reopen.load(Ordering::Acquire) {
            return;
        }
    }
}

/// Empties every buffer into the output; `false`: there was nothing. `lines` is empty before and
/// after: it is there to keep its memory, of which what only a burst has needed goes, half by half.
fn write_out(shared: &Shared, output: &mut Output, lines: &mut Vec<u8>) -> bool {
    let mut wrote = false;
    let buffers = lock(&shared.buffers).clone();
    for buffer in buffers {
        std::mem::swap(&mut lock(&buffer.0).bytes, lines);
        if !lines.is_empty() {
            wrote = true;
            shared.dropped.add(output.write(lines));
        }
        // Buffers are exchanged all the time: each is looked at here before long.
        let used = lines.len();
        lines.clear();
        if used < lines.capacity() / 8 {
            lines.shrink_to(lines.capacity() / 2);
        }
    }
    // A buffer without its writer gets no more lines (two: the list here, and none else).
    lock(&shared.buffers)
        .retain(|buffer| Arc::strong_count(buffer) > 1 || !lock(&buffer.0).bytes.is_empty());
    wrote
}

/// Bytes of lines that a worker may have waiting.
const BUFFER: usize = 1 << 20;
/// From here on the thread is woken, whatever its pause: at 300 000 RPCs a second it then has 6 ms
/// until the buffer is full, time enough to get a processor.
const FILLING: usize = BUFFER / 4;
/// Between two looks at the buffers.
const PAUSE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{BufRead, BufReader, Read},
        os::fd::OwnedFd,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A log that writes into a pipe, and the pipe's other end.
    fn piped() -> (AccessLog, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let output = Output::of(OwnedFd::from(writer).into());
        (
            AccessLog::start_with(AccessLogFormat::Json, output).unwrap(),
            reader,
        )
    }

    #[test]
    fn lines_of_all_workers_come_out_whole_and_in_their_order() {
        let (mut log, reader) = piped();
        let workers: Vec<_> = (0..4)
            .map(|worker: u64| {
                let writer = log.writer();
                thread::spawn(move || {
                    for i in 0..1_000 {
                        let record = Record {
                            bytes_in: worker,
                            bytes_out: i,
                            ..format::tests::record()
                        };
                        writer.write(&record);
                    }
                })
            })
            .collect();
        let read = thread::spawn(move || {
            let mut next = [0; 4];
            for line in BufReader::new(reader).lines() {
                let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
                let worker = line["bytes_in"].as_u64().unwrap() as usize;
                assert_eq!(line["bytes_out"], next[worker]);
                next[worker] += 1;
            }
            next
        });
        for worker in workers {
            worker.join().unwrap();
        }
        assert!(log.finish(LONG));
        assert_eq!(read.join().unwrap(), [1_000; 4]);
        assert_eq!(log.dropped().get(), 0);
    }

    #[test]
    fn a_line_comes_out_without_another_one_behind_it() {
        let (log, reader) = piped();
        let writer = log.writer();
        let mut lines = BufReader::new(reader).lines();
        for _ in 0..3 {
            writer.write(&format::tests::record());
            assert!(lines.next().unwrap().unwrap().ends_with('}'));
        }
    }

    #[test]
    fn what_a_burst_has_needed_is_given_back() {
        let (log, reader) = piped();
        let writer = log.writer();
        let capacity = || lock(&writer.0.as_ref().unwrap().1.0).bytes.capacity();
        let mut lines = BufReader::new(reader).lines();
        let mut written = 0;
        while capacity() < FILLING {
            writer.write(&format::tests::record());
            written += 1;
        }
        for _ in 0..written {
            lines.next().unwrap().unwrap();
        }
        let mut small = 0;
        // One after the other, so that it is each buffer's turn.
        while small < 2 {
            writer.write(&format::tests::record());
            lines.next().unwrap().unwrap();
            let is_small = capacity() < FILLING / 4;
            small = if is_small { small + 1 } else { 0 };
        }
    }

    #[test]
    fn when_the_output_blocks_lines_are_dropped_and_counted_and_writers_go_on() {
        let (mut log, mut reader) = piped();
        let writer = log.writer();
        let mut written = 0;
        // Nobody reads: the pipe fills, then the thread's own buffer, then the worker's.
        while log.dropped().get() < 10 {
            writer.write(&format::tests::record());
            written += 1;
        }
        assert!(!log.finish(Duration::from_millis(1)), "the thread is stuck");
        let dropped = log.dropped();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text.lines().count() as u64 + dropped.get(), written);
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }

    #[test]
    fn lines_lost_to_a_closed_output_are_counted() {
        let (log, reader) = piped();
        drop(reader);
        let writer = log.writer();
        while log.dropped().get() == 0 {
            writer.write(&format::tests::record());
            thread::yield_now();
        }
    }

    #[test]
    fn a_file_is_appended_to_and_opened_anew_when_asked() {
        let directory = tempfile::tempdir().unwrap();
        let (path, moved) = (directory.path().join("log"), directory.path().join("log.1"));
        fs::write(&path, "first\n").unwrap();
        let config = AccessLogConfig {
            format: AccessLogFormat::Text,
            path: Some(path.clone()),
        };
        let mut log = AccessLog::start(&config).unwrap();
        let writer = log.writer();
        writer.write(&format::tests::record());
        fs::rename(&path, &moved).unwrap();
        log.reopener().reopen();
        while !path.exists() {
            thread::yield_now();
        }
        writer.write(&format::tests::record());
        assert!(log.finish(LONG));
        let lines = |path| fs::read_to_string(path).unwrap().lines().count();
        assert_eq!((lines(&moved) + lines(&path), lines(&path) >= 1), (3, true));
        assert!(fs::read_to_string(&moved).unwrap().starts_with("first\n"));
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_named() {
        let path = Some("/nowhere/at/all/access.log".into());
        let error = AccessLog::start(&AccessLogConfig {
            format: AccessLogFormat::Json,
            path,
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("/nowhere/at/all/access.log"), "{error}");
    }

    #[test]
    fn off_writes_nothing_and_needs_no_thread() {
        let config = AccessLogConfig {
            format: AccessLogFormat::Off,
            path: None,
        };
        let mut log = AccessLog::start(&config).unwrap();
        let writer = log.writer();
        writer.write(&format::tests::record());
        assert!(log.finish(Duration::ZERO));
    }

    #[test]
    fn the_buffer_of_a_worker_that_ended_is_given_back() {
        let (log, reader) = piped();
        let writer = log.writer();
        writer.write(&format::tests::record());
        drop(writer);
        let mut lines = BufReader::new(reader).lines();
        lines.next().unwrap().unwrap();
        let shared = &log.running.as_ref().unwrap().shared;
        while !lock(&shared.buffers).is_empty() {
            shared.wake();
            thread::yield_now();
        }
    }
}
