use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::telemetry::labels::Flag;

/// An ordinary RPC that went well.
pub(in super::super) fn record() -> Record<'static> {
    Record {
        time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_390_764_042),
        request_id: Some(b"0b6f8a52-5d0c-4f3e-9a53-0f3c3a3f2c11"),
        client: "203.0.113.9",
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
        client: "2001:db8::1",
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
            client: "203.0.113.90",
            ..record()
        },
        Record {
            protocol: "HTTP/1.1",
            ..record()
        },
        Record {
            method: None,
            ..record()
        },
        Record {
            method: Some(b"GET"),
            ..record()
        },
        Record {
            authority: Some(b""),
            ..record()
        },
        Record {
            path: Some(b"/api.Echo/Echo2"),
            ..record()
        },
        Record {
            path: Some(&[b'/'; FIELD + 1]),
            ..record()
        },
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
        Record {
            attempts: 2,
            ..record()
        },
        Record {
            cluster: None,
            ..record()
        },
        Record {
            cluster: Some("reverse-grpc"),
            ..record()
        },
        Record {
            user_agent: Some(b"grpc-go/1.70.1"),
            ..record()
        },
        Record {
            user_agent: Some(&[b'u'; FIELD + 1]),
            ..record()
        },
    ];
    for format in [AccessLogFormat::Json, AccessLogFormat::Text] {
        let mut formatter = Formatter::new(format);
        for (one, other) in records
            .iter()
            .flat_map(|one| records.iter().map(move |r| (one, r)))
        {
            // As often as it takes to be remembered.
            for record in [one, one, one, one, one, other, one, other] {
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
    let path: &[u8] = b"/\"\\\x00\x1f\x7f\n\xff\xc3\xc3\xa9\xf0\x9f\x98\x80\xc2\x85\xed\xa0\x80";
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
