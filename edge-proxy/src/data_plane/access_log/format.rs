//! One record as one line: JSON, or `key=value` words.
//!
//! The same keys in the same order in every line, `null` (`-` in text) where there is nothing, so
//! that a line can be parsed by position too. Clients' bytes are looked at eight at a time for one
//! that needs an escape: nearly always there is none, and they are copied as they are.

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use super::{AccessLogFormat, Record};
use crate::telemetry::labels::{Flags, Label};

/// Formats the lines of one worker.
#[derive(Debug)]
pub(super) struct Formatter {
    json: bool,
    clock: Clock,
    repeated: Repeated,
}

/// The formatted second that the last line was in: most lines are in the same one.
#[derive(Debug)]
struct Clock {
    second: u64,
    /// `2026-11-22T23:39:24.`
    text: [u8; SECOND],
}

/// What a line says as one that was written before: most are alike in that. Each with its keys, in the order of the line.
#[derive(Debug, Default)]
struct Repeated {
    of: Option<Alike>,
    /// From the client to how its RPC ended.
    middle: Vec<u8>,
    /// How many attempts, and where the route led.
    target: Vec<u8>,
    /// With what the client asked, and the line's end.
    end: Vec<u8>,
    /// Lines in a row that say something else.
    misses: u8,
}

/// What has to be the same in a [`Record`].
#[derive(Debug)]
struct Alike {
    client: Box<str>,
    protocol: &'static str,
    method: Option<Box<[u8]>>,
    authority: Option<Box<[u8]>>,
    path: Option<Box<[u8]>>,
    status: u16,
    grpc_status: Option<u32>,
    flags: Flags,
    detail: Option<&'static str>,
    attempts: u32,
    cluster: Option<Box<str>>,
    user_agent: Option<Box<[u8]>>,
}

/// Adds one key and its value at a time; in JSON, or as words. A constant, so that each key is a copy of known length.
struct Line<'a, const JSON: bool> {
    out: &'a mut Vec<u8>,
}

impl Formatter {
    pub(super) fn new(format: AccessLogFormat) -> Self {
        let clock = Clock {
            second: u64::MAX,
            text: [b'0'; SECOND],
        };
        Self {
            json: format == AccessLogFormat::Json,
            clock,
            repeated: Repeated::default(),
        }
    }

    /// Appends `record` and a newline to `out`.
    pub(super) fn line(&mut self, out: &mut Vec<u8>, record: &Record<'_>) {
        out.reserve(TYPICAL);
        if self.json {
            Line::<true> { out }.write(&mut self.clock, &mut self.repeated, record);
        } else {
            Line::<false> { out }.write(&mut self.clock, &mut self.repeated, record);
        }
    }
}

impl<const JSON: bool> Line<'_, JSON> {
    fn write(&mut self, clock: &mut Clock, repeated: &mut Repeated, record: &Record<'_>) {
        let repeated = repeated.of::<JSON>(record);
        self.key(b"{\"time\":\"", b"time=");
        self.time(clock, record.time);
        self.key(b"Z\",\"request_id\":", b"Z request_id=");
        self.option(record.request_id, Self::text);
        match repeated {
            Some(repeated) => self.out.extend_from_slice(&repeated.middle),
            None => self.middle(record),
        }
        self.key(b",\"bytes_in\":", b" bytes_in=");
        self.number(record.bytes_in);
        self.key(b",\"bytes_out\":", b" bytes_out=");
        self.number(record.bytes_out);
        self.key(b",\"duration_ms\":", b" duration_ms=");
        self.millis(record.duration);
        self.key(b",\"upstream_ms\":", b" upstream_ms=");
        self.option(record.upstream_time, Self::millis);
        match repeated {
            Some(repeated) => self.out.extend_from_slice(&repeated.target),
            None => self.target(record),
        }
        self.key(b",\"endpoint\":", b" endpoint=");
        self.option(record.endpoint.map(str::as_bytes), Self::text);
        match repeated {
            Some(repeated) => self.out.extend_from_slice(&repeated.end),
            None => self.end(record),
        }
    }

    fn middle(&mut self, record: &Record<'_>) {
        self.key(b",\"client\":\"", b" client=");
        self.out.extend_from_slice(record.client.as_bytes());
        self.key(b"\",\"protocol\":\"", b" protocol=");
        self.out.extend_from_slice(record.protocol.as_bytes());
        self.key(b"\",\"method\":", b" method=");
        self.option(record.method, Self::text);
        self.key(b",\"authority\":", b" authority=");
        self.option(record.authority, Self::text);
        self.key(b",\"path\":", b" path=");
        self.option(record.path, Self::text);
        self.key(b",\"status\":", b" status=");
        self.option((record.status != 0).then_some(record.status), Self::number);
        self.key(b",\"grpc_status\":", b" grpc_status=");
        self.option(record.grpc_status, Self::number);
        self.key(b",\"flags\":\"", b" flags=");
        self.flags(record.flags);
        self.key(b"\",\"detail\":", b" detail=");
        self.option(record.detail.map(str::as_bytes), Self::text);
    }

    fn target(&mut self, record: &Record<'_>) {
        self.key(b",\"attempts\":", b" attempts=");
        self.number(record.attempts);
        self.key(b",\"cluster\":", b" cluster=");
        self.option(record.cluster.map(str::as_bytes), Self::text);
    }

    fn end(&mut self, record: &Record<'_>) {
        self.key(b",\"user_agent\":", b" user_agent=");
        self.option(record.user_agent, Self::text);
        self.key(b"}\n", b"\n");
    }

    #[inline(always)]
    fn key<const J: usize, const T: usize>(&mut self, json: &[u8; J], text: &[u8; T]) {
        if JSON {
            self.out.extend_from_slice(json);
        } else {
            self.out.extend_from_slice(text);
        }
    }

    #[inline]
    fn option<T>(&mut self, value: Option<T>, some: impl FnOnce(&mut Self, T)) {
        match value {
            Some(value) => some(self, value),
            None => self.key(b"null", b"-"),
        }
    }

    /// One digit, mostly: attempts, and milliseconds in a data centre.
    #[inline]
    fn number(&mut self, number: impl Into<u64>) {
        match number.into() {
            digit @ 0..10 => self.out.push(b'0' + digit as u8),
            number => {
                let mut digits = itoa::Buffer::new();
                self.out.extend_from_slice(digits.format(number).as_bytes());
            }
        }
    }

    /// Milliseconds with three decimals.
    fn millis(&mut self, duration: Duration) {
        let millis = duration.as_secs().saturating_mul(1000);
        self.number(millis.saturating_add(duration.subsec_millis().into()));
        let [a, b, c] = three_digits((duration.subsec_micros() % 1000) as u16);
        self.out.extend_from_slice(&[b'.', a, b, c]);
    }

    /// RFC 3339, UTC, with milliseconds; its `Z` stands in the key that follows.
    fn time(&mut self, clock: &mut Clock, time: SystemTime) {
        let since_epoch = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if clock.second != since_epoch.as_secs() {
            clock.set(since_epoch.as_secs());
        }
        self.out.extend_from_slice(&clock.text);
        let millis = three_digits(since_epoch.subsec_millis() as u16);
        self.out.extend_from_slice(&millis);
    }

    /// `UF,URX`, or Envoy's `-` for none.
    fn flags(&mut self, flags: Flags) {
        if flags.is_empty() {
            self.out.push(b'-');
        }
        for (i, flag) in flags.iter().enumerate() {
            if i > 0 {
                self.out.push(b',');
            }
            self.out.extend_from_slice(flag.as_str().as_bytes());
        }
    }

    /// A client's bytes: cut, and escaped so that they can't end the value, the line, or a terminal's
    /// patience.
    #[inline]
    fn text(&mut self, bytes: &[u8]) {
        let bytes = cut(bytes);
        if JSON {
            self.out.push(b'"');
            if is_plain(bytes) {
                self.out.extend_from_slice(bytes);
            } else {
                escape(self.out, bytes, json_escape);
            }
            self.out.push(b'"');
        } else if !bytes.is_empty() && bytes != b"-" && bytes.iter().all(|b| is(WORD, *b)) {
            self.out.extend_from_slice(bytes);
        } else {
            self.out.push(b'"');
            escape(self.out, bytes, text_escape);
            self.out.push(b'"');
        }
    }
}

impl Repeated {
    /// The texts of a line that is like this one. If this one isn't, and that has become the rule, it is remembered itself.
    fn of<const JSON: bool>(&mut self, record: &Record<'_>) -> Option<&Self> {
        if self.of.as_ref().is_some_and(|of| of.is(record)) {
            self.misses = 0;
            return Some(self);
        }
        self.misses += 1;
        if self.of.is_none() || self.misses >= MISSES {
            self.misses = 0;
            self.learn::<JSON>(record);
        }
        None
    }

    #[cold]
    fn learn<const JSON: bool>(&mut self, record: &Record<'_>) {
        let Some(of) = Alike::of(record) else { return };
        self.of = Some(of);
        let anew = |out: &mut Vec<u8>, write: fn(&mut Line<'_, JSON>, &Record<'_>)| {
            out.clear();
            write(&mut Line { out }, record);
        };
        anew(&mut self.middle, |line, record| line.middle(record));
        anew(&mut self.target, |line, record| line.target(record));
        anew(&mut self.end, |line, record| line.end(record));
    }
}

impl Alike {
    /// `None`: a text of it is longer than lines have it, which isn't worth the memory.
    fn of(record: &Record<'_>) -> Option<Self> {
        let texts = [
            record.method,
            record.authority,
            record.path,
            record.user_agent,
        ];
        if texts.into_iter().flatten().any(|text| text.len() > FIELD) {
            return None;
        }
        let [method, authority, path, user_agent] = texts.map(|text| text.map(Box::from));
        Some(Self {
            client: record.client.into(),
            protocol: record.protocol,
            method,
            authority,
            path,
            status: record.status,
            grpc_status: record.grpc_status,
            flags: record.flags,
            detail: record.detail,
            attempts: record.attempts,
            cluster: record.cluster.map(Box::from),
            user_agent,
        })
    }

    fn is(&self, record: &Record<'_>) -> bool {
        self.path.as_deref() == record.path
            && *self.client == *record.client
            && self.authority.as_deref() == record.authority
            && self.method.as_deref() == record.method
            && self.user_agent.as_deref() == record.user_agent
            && self.cluster.as_deref() == record.cluster
            && (self.status, self.grpc_status, self.flags, self.attempts)
                == (
                    record.status,
                    record.grpc_status,
                    record.flags,
                    record.attempts,
                )
            && self.detail == record.detail
            && self.protocol == record.protocol
    }
}

impl Clock {
    fn set(&mut self, second: u64) {
        self.second = second;
        // Only a clock beyond the year 9999 is out of range: years have four digits.
        let time = i64::try_from(second)
            .ok()
            .and_then(|s| jiff::Timestamp::from_second(s).ok());
        let time = time.unwrap_or(jiff::Timestamp::MAX);
        let _ = write!(
            &mut self.text[..],
            "{}.",
            time.strftime("%Y-%m-%dT%H:%M:%S")
        );
    }
}

/// Of what is below 1000.
#[inline]
fn three_digits(number: u16) -> [u8; 3] {
    let digit = |n: u16| b'0' + (n % 10) as u8;
    [digit(number / 100), digit(number / 10), digit(number)]
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

/// Whether no byte needs an escape, as hardly any does: eight at a time, since this is asked of every text of every line.
#[inline]
fn is_plain(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words
        .iter()
        .all(|word| plain_word(u64::from_le_bytes(*word)))
        && match bytes.last_chunk::<8>() {
            // The last eight, some of them once more.
            Some(last) if !rest.is_empty() => plain_word(u64::from_le_bytes(*last)),
            _ => rest.is_empty() || rest.iter().all(|b| is(JSON_PLAIN, *b)),
        }
}

/// [`JSON_PLAIN`] of eight bytes: the upper bit of each byte of `odd` says what is wrong with it (or with the one
/// before it, when that one is: so "nothing" is exact).
#[inline]
fn plain_word(word: u64) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let zero = |bytes: u64| bytes.wrapping_sub(ONES) & !bytes;
    let below = word.wrapping_sub(ONES * 0x20) & !word;
    let quote = zero(word ^ (ONES * b'"' as u64));
    let backslash = zero(word ^ (ONES * b'\\' as u64));
    let delete = zero(word ^ (ONES * 0x7f));
    (word | below | quote | backslash | delete) & (ONES * 0x80) == 0
}

/// Copies what is plain, and leaves each other character to `special`, which gets the rest and says how many bytes it
/// took.
#[cold]
fn escape(out: &mut Vec<u8>, mut rest: &[u8], special: impl Fn(&mut Vec<u8>, &[u8]) -> usize) {
    loop {
        let run = rest
            .iter()
            .position(|b| !is(JSON_PLAIN, *b))
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
pub(crate) const FIELD: usize = 256;
/// Another line is remembered after so many in a row that are not like the one that is: where two kinds come
/// in turn, half of them are.
const MISSES: u8 = 4;
/// The length of a second's text.
const SECOND: usize = "2026-11-22T23:39:24.".len();
/// Room for most lines.
const TYPICAL: usize = 768;

#[cfg(test)]
pub(super) mod tests;
