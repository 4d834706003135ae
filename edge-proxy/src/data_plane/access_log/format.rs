//! One record as one line: JSON, or `key=value` words.
//!
//! The same keys in the same order in every line, `null` (`-` in text) where there is nothing, so
//! that a line can be parsed by position too. Clients' bytes are looked at eight at a time for one
//! that needs an escape: nearly always there is none, and they are copied as they are.

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
    outcome: Outcome,
}

/// The formatted second that the last line was in: most lines are in the same one.
#[derive(Debug)]
struct Clock {
    second: u64,
    /// `2026-11-22T23:39:24.`
    text: Vec<u8>,
}

/// How the last line says that its RPC ended: nearly all end alike.
#[derive(Debug, Default)]
struct Outcome {
    /// The record's status, grpc-status, flags and detail.
    of: Option<(u16, Option<u32>, Flags, Option<&'static str>)>,
    /// Them with their keys.
    text: Vec<u8>,
}

/// Adds one key and its value at a time; in JSON, or as words. A constant, so that each key is a copy of known length.
struct Line<'a, const JSON: bool> {
    out: &'a mut Vec<u8>,
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
            outcome: Outcome::default(),
        }
    }

    /// Appends `record` and a newline to `out`.
    pub(super) fn line(&mut self, out: &mut Vec<u8>, record: &Record<'_>) {
        out.reserve(TYPICAL);
        if self.json {
            Line::<true> { out }.write(&mut self.clock, &mut self.outcome, record);
        } else {
            Line::<false> { out }.write(&mut self.clock, &mut self.outcome, record);
        }
    }
}

impl<const JSON: bool> Line<'_, JSON> {
    fn write(&mut self, clock: &mut Clock, outcome: &mut Outcome, record: &Record<'_>) {
        self.key(b"{\"time\":\"", b"time=");
        self.time(clock, record.time);
        self.key(b"Z\",\"request_id\":", b"Z request_id=");
        self.option(record.request_id, Self::text);
        self.key(b",\"client\":\"", b" client=");
        self.address(record.client);
        self.key(b"\",\"protocol\":\"", b" protocol=");
        self.out.extend_from_slice(record.protocol.as_bytes());
        self.key(b"\",\"method\":", b" method=");
        self.option(record.method, Self::text);
        self.key(b",\"authority\":", b" authority=");
        self.option(record.authority, Self::text);
        self.key(b",\"path\":", b" path=");
        self.option(record.path, Self::text);
        self.outcome(outcome, record);
        self.key(b",\"bytes_in\":", b" bytes_in=");
        self.number(record.bytes_in);
        self.key(b",\"bytes_out\":", b" bytes_out=");
        self.number(record.bytes_out);
        self.key(b",\"duration_ms\":", b" duration_ms=");
        self.millis(record.duration);
        self.key(b",\"upstream_ms\":", b" upstream_ms=");
        self.option(record.upstream_time, Self::millis);
        self.key(b",\"attempts\":", b" attempts=");
        self.number(record.attempts);
        self.key(b",\"cluster\":", b" cluster=");
        self.option(record.cluster.map(str::as_bytes), Self::text);
        self.key(b",\"endpoint\":", b" endpoint=");
        self.option(record.endpoint.map(str::as_bytes), Self::text);
        self.key(b",\"user_agent\":", b" user_agent=");
        self.option(record.user_agent, Self::text);
        self.key(b"}\n", b"\n");
    }

    fn outcome(&mut self, last: &mut Outcome, record: &Record<'_>) {
        let of = (
            record.status,
            record.grpc_status,
            record.flags,
            record.detail,
        );
        if last.of == Some(of) {
            self.out.extend_from_slice(&last.text);
            return;
        }
        let start = self.out.len();
        self.key(b",\"status\":", b" status=");
        self.option((record.status != 0).then_some(record.status), Self::number);
        self.key(b",\"grpc_status\":", b" grpc_status=");
        self.option(record.grpc_status, Self::number);
        self.key(b",\"flags\":\"", b" flags=");
        self.flags(record.flags);
        self.key(b"\",\"detail\":", b" detail=");
        self.option(record.detail.map(str::as_bytes), Self::text);
        last.of = Some(of);
        last.text.clear();
        last.text.extend_from_slice(&self.out[start..]);
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

    #[inline]
    fn number(&mut self, number: impl itoa::Integer) {
        self.out
            .extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Milliseconds with three decimals.
    fn millis(&mut self, duration: Duration) {
        let millis = duration.as_secs().saturating_mul(1000);
        self.number(millis.saturating_add(duration.subsec_millis().into()));
        self.out.push(b'.');
        self.three_digits((duration.subsec_micros() % 1000) as u16);
    }

    #[inline]
    fn three_digits(&mut self, number: u16) {
        let digit = |n: u16| b'0' + (n % 10) as u8;
        self.out
            .extend_from_slice(&[digit(number / 100), digit(number / 10), digit(number)]);
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
        self.three_digits(since_epoch.subsec_millis() as u16);
    }

    fn address(&mut self, address: IpAddr) {
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
const FIELD: usize = 256;
/// Room for most lines.
const TYPICAL: usize = 768;

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::telemetry::labels::Flag;

    /// An ordinary RPC that went well.
    pub(in super::super) fn record() -> Record<'static> {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_390_764_042),
            request_id: Some(b"0b6f8a52-5d0c-4f3e-9a53-0f3c3a3f2c11"),
            client: IpAddr::from([203, 0, 113, 9]),
            method: Some(b"POST"),
            path: Some(b"/api.Echo/Echo"),
            authority: Some(b"grpc.example.com"),
            protocol: "HTTP/2",
            status: 200,
            grpc_status: Some(0),
            flags: Flags::NONE,
            detail: None,
            bytes_in: 11,
            bytes_out: 1_024,
            duration: Duration::from_micros(1_234),
            upstream_time: Some(Duration::from_nanos(999_999)),
            attempts: 1,
            cluster: Some("echo-grpc"),
            endpoint: Some("10.0.0.7:8081"),
            user_agent: Some(b"grpc-go/1.70.0"),
        }
    }

    fn line(format: AccessLogFormat, record: &Record<'_>) -> String {
        let mut out = Vec::new();
        Formatter::new(format).line(&mut out, record);
        String::from_utf8(out).unwrap()
    }

    fn json(record: &Record<'_>) -> Value {
        let line = line(AccessLogFormat::Json, record);
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    #[test]
    fn json_has_every_field_in_one_line() {
        insta::assert_snapshot!(line(AccessLogFormat::Json, &record()), @r#"{"time":"2026-11-22T23:39:24.042Z","request_id":"0b6f8a52-5d0c-4f3e-9a53-0f3c3a3f2c11","client":"203.0.113.9","protocol":"HTTP/2","method":"POST","authority":"grpc.example.com","path":"/api.Echo/Echo","status":200,"grpc_status":0,"flags":"-","detail":null,"bytes_in":11,"bytes_out":1024,"duration_ms":1.234,"upstream_ms":0.999,"attempts":1,"cluster":"echo-grpc","endpoint":"10.0.0.7:8081","user_agent":"grpc-go/1.70.0"}"#);
    }

    #[test]
    fn text_has_every_field_in_one_line() {
        insta::assert_snapshot!(line(AccessLogFormat::Text, &record()), @r#"time=2026-11-22T23:39:24.042Z request_id=0b6f8a52-5d0c-4f3e-9a53-0f3c3a3f2c11 client=203.0.113.9 protocol=HTTP/2 method=POST authority=grpc.example.com path=/api.Echo/Echo status=200 grpc_status=0 flags=- detail=- bytes_in=11 bytes_out=1024 duration_ms=1.234 upstream_ms=0.999 attempts=1 cluster=echo-grpc endpoint=10.0.0.7:8081 user_agent=grpc-go/1.70.0"#);
    }

    #[test]
    fn what_is_not_there_is_null() {
        let refused = Record {
            client: "2001:db8::1".parse().unwrap(),
            status: 0,
            grpc_status: None,
            flags: Flags::from(Flag::UpstreamConnectFailure).with(Flag::UpstreamRetryLimit),
            detail: Some("connection timeout"),
            upstream_time: None,
            cluster: None,
            endpoint: None,
            request_id: None,
            user_agent: None,
            authority: Some(b""),
            ..record()
        };
        insta::assert_snapshot!(line(AccessLogFormat::Json, &refused), @r#"{"time":"2026-11-22T23:39:24.042Z","request_id":null,"client":"2001:db8::1","protocol":"HTTP/2","method":"POST","authority":"","path":"/api.Echo/Echo","status":null,"grpc_status":null,"flags":"UF,URX","detail":"connection timeout","bytes_in":11,"bytes_out":1024,"duration_ms":1.234,"upstream_ms":null,"attempts":1,"cluster":null,"endpoint":null,"user_agent":null}"#);
        insta::assert_snapshot!(line(AccessLogFormat::Text, &refused), @r#"time=2026-11-22T23:39:24.042Z request_id=- client=2001:db8::1 protocol=HTTP/2 method=POST authority="" path=/api.Echo/Echo status=- grpc_status=- flags=UF,URX detail="connection timeout" bytes_in=11 bytes_out=1024 duration_ms=1.234 upstream_ms=- attempts=1 cluster=- endpoint=- user_agent=-"#);
    }

    #[test]
    fn a_line_says_nothing_of_the_last_one() {
        let records = [
            record(),
            Record {
                status: 503,
                ..record()
            },
            Record {
                grpc_status: None,
                ..record()
            },
            Record {
                flags: Flag::NoRoute.into(),
                ..record()
            },
            Record {
                detail: Some("timeout"),
                ..record()
            },
        ];
        for format in [AccessLogFormat::Json, AccessLogFormat::Text] {
            let mut formatter = Formatter::new(format);
            for (one, other) in records
                .iter()
                .flat_map(|one| records.iter().map(move |r| (one, r)))
            {
                for record in [one, other] {
                    let mut out = Vec::new();
                    formatter.line(&mut out, record);
                    assert_eq!(String::from_utf8(out).unwrap(), line(format, record));
                }
            }
        }
    }

    #[test]
    fn text_escapes_what_would_end_a_value() {
        let odd = Record {
            path: Some(b"/a b=\"c\"\\\n\x1b[31m\xff"),
            authority: Some(b"-"),
            user_agent: Some("Gr\u{fc}\u{df}e\u{85}".as_bytes()),
            ..record()
        };
        let line = line(AccessLogFormat::Text, &odd);
        assert!(
            line.contains(r#" path="/a b=\"c\"\\\x0a\x1b[31m\xff" "#),
            "{line}"
        );
        assert!(line.contains(r#" authority="-" "#), "{line}");
        assert!(line.contains(r#" user_agent="Grüße\xc2\x85""#), "{line}");
    }

    #[test]
    fn json_escapes_and_stays_json() {
        let path: &[u8] =
            b"/\"\\\x00\x1f\x7f\n\xff\xc3\xc3\xa9\xf0\x9f\x98\x80\xc2\x85\xed\xa0\x80";
        let value = json(&Record {
            path: Some(path),
            ..record()
        });
        let replaced = "/\"\\\0\u{1f}\u{7f}\n\u{fffd}\u{fffd}é😀\u{85}\u{fffd}\u{fffd}\u{fffd}";
        assert_eq!(value["path"], replaced);
        let line = line(
            AccessLogFormat::Json,
            &Record {
                path: Some(path),
                ..record()
            },
        );
        assert!(!line.trim_end().chars().any(char::is_control), "{line}");
    }

    #[test]
    fn fields_are_cut_at_256_bytes_between_characters() {
        let cut = |path: &str| {
            let value = json(&Record {
                path: Some(path.as_bytes()),
                ..record()
            });
            value["path"].as_str().unwrap().to_owned()
        };
        assert_eq!(cut(&"a".repeat(256)), "a".repeat(256));
        assert_eq!(cut(&"a".repeat(70_000)), "a".repeat(256));
        for (character, kept) in [("é", 128), ("€", 85), ("😀", 64)] {
            assert_eq!(cut(&character.repeat(200)), character.repeat(kept));
        }
        assert_eq!(
            cut(&format!("a{}", "😀".repeat(100))),
            format!("a{}", "😀".repeat(63))
        );
        let garbage = [0x80; 300];
        let value = json(&Record {
            path: Some(&garbage),
            ..record()
        });
        assert_eq!(value["path"], "\u{fffd}".repeat(256));
    }

    #[test]
    fn times_are_utc_with_milliseconds_and_may_go_back() {
        let mut formatter = Formatter::new(AccessLogFormat::Json);
        let mut time = |millis| {
            let mut out = Vec::new();
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            formatter.line(&mut out, &Record { time, ..record() });
            let value: Value = serde_json::from_slice(&out).unwrap();
            value["time"].as_str().unwrap().to_owned()
        };
        assert_eq!(time(951_782_400_001), "2000-02-29T00:00:00.001Z");
        assert_eq!(time(951_782_400_999), "2000-02-29T00:00:00.999Z");
        assert_eq!(time(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(time(0), "1970-01-01T00:00:00.000Z");
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(
            json(&Record {
                time: before,
                ..record()
            })["time"],
            "1970-01-01T00:00:00.000Z"
        );
    }

    #[test]
    fn durations_are_milliseconds_with_three_decimals() {
        let value = json(&Record {
            duration: Duration::from_micros(61_005_007),
            ..record()
        });
        assert_eq!(value["duration_ms"], 61_005.007);
        assert_eq!(value["upstream_ms"], 0.999);
    }

    #[test]
    fn every_byte_is_found_at_every_place() {
        for byte in 0..=u8::MAX {
            for length in 1..20 {
                for at in 0..length {
                    let mut bytes = vec![b'a'; length];
                    bytes[at] = byte;
                    assert_eq!(is_plain(&bytes), is(JSON_PLAIN, byte), "{bytes:?}");
                }
            }
        }
        assert!(is_plain(b""));
    }

    proptest! {
        #[test]
        fn plain_is_what_its_bytes_are(bytes in proptest::collection::vec(0x1du8..0x83, 0..24)) {
            prop_assert_eq!(is_plain(&bytes), bytes.iter().all(|b| is(JSON_PLAIN, *b)));
        }

        #[test]
        fn any_bytes_make_one_line_of_json(
            path in proptest::collection::vec(any::<u8>(), 0..600),
            user_agent in ".{0,300}",
        ) {
            let odd = Record {
                path: Some(&path),
                user_agent: Some(user_agent.as_bytes()),
                ..record()
            };
            let value = json(&odd);
            let kept = value["user_agent"].as_str().unwrap();
            prop_assert!(user_agent.starts_with(kept));
            prop_assert!(kept.len() == user_agent.len() || kept.len() > FIELD - 4);
            prop_assert_eq!(line(AccessLogFormat::Text, &odd).lines().count(), 1);
        }
    }
}
