//! One record as one line: JSON, or `key=value` words.
//!
//! The same keys in the same order in every line, `null` (`-` in text) where there is nothing, so
//! that a line can be parsed by position too. Clients' bytes are copied in runs up to the next one
//! that needs an escape: nearly always that is one run.

use std::{
    io::Write,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::{AccessLogFormat, Record};
use crate::telemetry::labels::{Flags, Label};

/// Formats the lines of one worker.
#[derive(Debug)]
pub(super) struct Formatter {
    json: bool,
    clock: Clock,
}

/// The formatted second that the last line was in: most lines are in the same one.
#[derive(Debug)]
struct Clock {
    second: u64,
    /// `2026-11-22T23:39:24.`
    text: Vec<u8>,
}

/// Adds one key and its value at a time.
struct Line<'a> {
    out: &'a mut Vec<u8>,
    json: bool,
}

impl Formatter {
    pub(super) fn new(format: AccessLogFormat) -> Self {
        let clock = Clock {
            second: u64::MAX,
            text: Vec::new(),
        };
        Self {
            json: format == AccessLogFormat::Json,
            clock,
        }
    }

    /// Appends `record` and a newline to `out`.
    pub(super) fn line(&mut self, out: &mut Vec<u8>, record: &Record<'_>) {
        out.reserve(TYPICAL);
        let mut line = Line {
            out,
            json: self.json,
        };
        line.key("{\"time\":", "time=");
        line.time(&mut self.clock, record.time);
        line.key(",\"request_id\":", " request_id=");
        line.text(record.request_id);
        line.key(",\"client\":", " client=");
        line.address(record.client);
        line.key(",\"protocol\":", " protocol=");
        line.text(record.protocol.as_bytes());
        line.key(",\"method\":", " method=");
        line.text(record.method);
        line.key(",\"authority\":", " authority=");
        line.text(record.authority);
        line.key(",\"path\":", " path=");
        line.text(record.path);
        line.key(",\"status\":", " status=");
        line.number(record.status);
        line.key(",\"grpc_status\":", " grpc_status=");
        line.option(record.grpc_status, Line::number);
        line.key(",\"flags\":", " flags=");
        line.flags(record.flags);
        line.key(",\"detail\":", " detail=");
        line.option(record.detail.map(str::as_bytes), Line::text);
        line.key(",\"bytes_in\":", " bytes_in=");
        line.number(record.bytes_in);
        line.key(",\"bytes_out\":", " bytes_out=");
        line.number(record.bytes_out);
        line.key(",\"duration_ms\":", " duration_ms=");
        line.millis(record.duration);
        line.key(",\"upstream_ms\":", " upstream_ms=");
        line.option(record.upstream_time, Line::millis);
        line.key(",\"attempts\":", " attempts=");
        line.number(record.attempts);
        line.key(",\"cluster\":", " cluster=");
        line.option(record.cluster.map(str::as_bytes), Line::text);
        line.key(",\"endpoint\":", " endpoint=");
        line.option(record.endpoint.map(str::as_bytes), Line::text);
        line.key(",\"user_agent\":", " user_agent=");
        line.text(record.user_agent);
        line.key("}\n", "\n");
    }
}

impl Line<'_> {
    #[inline]
    fn key(&mut self, json: &'static str, text: &'static str) {
        self.out
            .extend_from_slice(if self.json { json } else { text }.as_bytes());
    }

    #[inline]
    fn option<T>(&mut self, value: Option<T>, some: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => some(self, value),
            None => self.key("null", "-"),
        }
    }

    #[inline]
    fn number(&mut self, number: impl itoa::Integer) {
        self.out
            .extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Milliseconds with three decimals.
    fn millis(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.number(micros / 1000);
        self.out.push(b'.');
        self.three_digits((micros % 1000) as u16);
    }

    fn three_digits(&mut self, number: u16) {
        let digit = |n: u16| b'0' + (n % 10) as u8;
        self.out
            .extend_from_slice(&[digit(number / 100), digit(number / 10), digit(number)]);
    }

    /// RFC 3339, UTC, with milliseconds.
    fn time(&mut self, clock: &mut Clock, time: SystemTime) {
        let since_epoch = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if clock.second != since_epoch.as_secs() {
            clock.set(since_epoch.as_secs());
        }
        self.key("\"", "");
        self.out.extend_from_slice(&clock.text);
        self.three_digits(since_epoch.subsec_millis() as u16);
        self.key("Z\"", "Z");
    }

    fn address(&mut self, address: IpAddr) {
        self.key("\"", "");
        match address {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                self.number(a);
                for octet in [b, c, d] {
                    self.out.push(b'.');
                    self.number(octet);
                }
            }
            IpAddr::V6(address) => {
                // Writing to a Vec can't fail.
                let _ = write!(self.out, "{address}");
            }
        }
        self.key("\"", "");
    }

    /// `UF,URX`, or Envoy's `-` for none.
    fn flags(&mut self, flags: Flags) {
        self.key("\"", "");
        if flags.is_empty() {
            self.out.push(b'-');
        }
        for (i, flag) in flags.iter().enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            self.out.extend_from_slice(flag.as_str().as_bytes());
        }
        self.key("\"", "");
    }

    /// A client's bytes: cut, and escaped so that they can't end the value, the line, or a terminal's
    /// patience.
    fn text(&mut self, bytes: &[u8]) {
        let bytes = cut(bytes);
        if self.json {
            self.out.push(b'"');
            escape(self.out, bytes, JSON_PLAIN, json_escape);
            self.out.push(b'"');
        } else if !bytes.is_empty() && bytes != b"-" && bytes.iter().all(|b| is(WORD, *b)) {
            self.out.extend_from_slice(bytes);
        } else {
            self.out.push(b'"');
            escape(self.out, bytes, JSON_PLAIN, text_escape);
            self.out.push(b'"');
        }
    }
}

impl Clock {
    fn set(&mut self, second: u64) {
        self.second = second;
        self.text.clear();
        // Only a clock beyond the year 9999 is out of range.
        let time = i64::try_from(second)
            .ok()
            .and_then(|s| jiff::Timestamp::from_second(s).ok());
        let time = time.unwrap_or(jiff::Timestamp::MAX);
        let _ = write!(self.text, "{}.", time.strftime("%Y-%m-%dT%H:%M:%S"));
    }
}

/// The first [`FIELD`] bytes; less, when those would end inside a character.
fn cut(bytes: &[u8]) -> &[u8] {
    if bytes.len() <= FIELD {
        return bytes;
    }
    let is_start = |i: &usize| bytes[*i] & 0xc0 != 0x80;
    // More than three continuation bytes aren't UTF-8: nothing to keep whole then.
    let end = (FIELD - 3..=FIELD).rev().find(is_start).unwrap_or(FIELD);
    &bytes[..end]
}

/// Copies what is `plain`, and leaves each other character to `special`, which gets the rest and says
/// how many bytes it took.
fn escape(
    out: &mut Vec<u8>,
    mut rest: &[u8],
    plain: u8,
    special: impl Fn(&mut Vec<u8>, &[u8]) -> usize,
) {
    loop {
        let run = rest
            .iter()
            .position(|b| !is(plain, *b))
            .unwrap_or(rest.len());
        out.extend_from_slice(&rest[..run]);
        rest = &rest[run..];
        if rest.is_empty() {
            return;
        }
        let taken = special(out, rest);
        rest = &rest[taken..];
    }
}

/// RFC 8259 §7. Bytes that aren't UTF-8 become U+FFFD; control characters of Unicode are escaped too.
fn json_escape(out: &mut Vec<u8>, rest: &[u8]) -> usize {
    let c = match first_char(rest) {
        Ok(c) => c,
        Err(length) => {
            out.extend_from_slice(b"\\ufffd");
            return length;
        }
    };
    match c {
        '"' => out.extend_from_slice(b"\\\""),
        '\\' => out.extend_from_slice(b"\\\\"),
        c if c.is_control() => {
            // All of them are below U+00A0; writing to a Vec can't fail.
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        }
        c => out.extend_from_slice(&rest[..c.len_utf8()]),
    }
    c.len_utf8()
}

/// Like a Rust byte string: `\"`, `\\`, `\xNN` for control characters and what isn't UTF-8.
fn text_escape(out: &mut Vec<u8>, rest: &[u8]) -> usize {
    let (bytes, plain) = match first_char(rest) {
        Ok(c @ ('"' | '\\')) => {
            out.push(b'\\');
            (c.len_utf8(), true)
        }
        Ok(c) => (c.len_utf8(), !c.is_control()),
        Err(length) => (length, false),
    };
    for byte in &rest[..bytes] {
        if plain {
            out.push(*byte);
        } else {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    bytes
}

/// The character that `bytes` (not empty) begin with, or how many bytes aren't one.
fn first_char(bytes: &[u8]) -> Result<char, usize> {
    let head = &bytes[..bytes.len().min(4)];
    // A non-empty slice has a first chunk.
    let chunk = head.utf8_chunks().next();
    match chunk.map(|chunk| (chunk.valid().chars().next(), chunk.invalid().len())) {
        Some((Some(c), _)) => Ok(c),
        Some((None, invalid)) => Err(invalid.max(1)),
        None => Err(1),
    }
}

#[inline]
fn is(class: u8, byte: u8) -> bool {
    CLASSES[byte as usize] & class != 0
}

/// Needs no escape in a JSON string.
const JSON_PLAIN: u8 = 1;
/// Needs no quotes in text.
const WORD: u8 = 2;
/// What each byte may be used for.
const CLASSES: [u8; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0x20;
    while byte < 0x7f {
        if byte != b'"' as usize && byte != b'\\' as usize {
            classes[byte] = if byte == b' ' as usize || byte == b'=' as usize {
                JSON_PLAIN
            } else {
                JSON_PLAIN | WORD
            };
        }
        byte += 1;
    }
    classes
};

/// Bytes of a client's field that are kept.
const FIELD: usize = 256;
/// Room for most lines.
const TYPICAL: usize = 768;
