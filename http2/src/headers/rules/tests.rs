use super::*;
use crate::hpack::{Decoder, Encoder};

type Fields<'a> = &'a [(&'a str, &'a str)];

const GET: Fields<'static> = &[(":method", "GET"), (":scheme", "https"), (":path", "/")];
const OK: Fields<'static> = &[(":status", "200")];

/// The rule that a list breaks, found for fields that were pushed and for the same from the wire, as literals and
/// from the dynamic table: all have to agree.
fn rule(kind: Kind, fields: &[Fields<'_>]) -> Result<(), &'static str> {
    let headers: Headers = fields.iter().flat_map(|f| f.iter().copied()).collect();
    let pushed = headers.validate(kind);
    let (mut encoder, mut decoder) = (Encoder::new(4096), Decoder::new(4096));
    for _ in 0..2 {
        let (mut block, mut read) = (Vec::new(), Headers::new());
        encoder.encode(&headers, &mut block);
        decoder
            .decode(&block, usize::MAX, &mut read)
            .expect("our own encoding");
        assert_eq!(read.validate(kind), pushed);
    }
    pushed
}

fn request(more: Fields<'_>) -> Result<(), &'static str> {
    rule(Kind::Request, &[GET, more])
}

fn fault(fault: Fault) -> Result<(), &'static str> {
    Err(FAULTS[fault as usize])
}

#[test]
fn what_clients_send_is_allowed() {
    let grpc: Fields<'_> = &[
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/api.Echo/Echo?a=%20&b={c}|d"),
        (":authority", "grpc.example.com:443"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("x-empty", ""),
        ("x-text", "a\tb \u{e9}"),
        ("cookie", "a"),
        ("cookie", "b"),
        ("!#$%&'*+-.^_`|~09az", "x"),
    ];
    assert_eq!(rule(Kind::Request, &[grpc]), Ok(()));
    assert_eq!(rule(Kind::Response, &[OK, &[("grpc-status", "0")]]), Ok(()));
    assert_eq!(rule(Kind::Response, &[&[(":status", "103")]]), Ok(()));
    assert_eq!(
        rule(
            Kind::Trailers,
            &[&[("grpc-status", "0"), ("grpc-message", "")]]
        ),
        Ok(())
    );
    assert_eq!(rule(Kind::Trailers, &[]), Ok(()));
}

#[test]
fn field_names() {
    assert_eq!(request(&[("", "x")]), fault(Fault::NameEmpty));
    assert_eq!(request(&[("X-a", "x")]), fault(Fault::NameUpperCase));
    for name in [
        "x a", "x:a", "x\0", "x\u{e9}", "x(", "x\x7f", "\"", "x,y", "x/y", "a@b",
    ] {
        assert_eq!(
            request(&[(name, "x")]),
            fault(Fault::NameCharacter),
            "{name:?}"
        );
    }
}

#[test]
fn field_values() {
    for value in [
        "a\0b",
        "a\rb",
        "a\nb",
        "\n",
        "a value that is longer than sixteen bytes\n",
    ] {
        assert_eq!(
            request(&[("x-a", value)]),
            fault(Fault::ValueLine),
            "{value:?}"
        );
    }
    for value in ["a\x01b", "a\x1fb", "a\x7fb", "a\x0bb"] {
        assert_eq!(
            request(&[("x-a", value)]),
            fault(Fault::ValueControl),
            "{value:?}"
        );
    }
    for value in [" a", "a ", "\ta", "a\t", " "] {
        assert_eq!(
            request(&[("x-a", value)]),
            fault(Fault::ValueSpace),
            "{value:?}"
        );
    }
}

#[test]
fn pseudo_header_fields_first_known_and_once() {
    let late: Fields<'_> = &[("x-a", "1"), (":authority", "a")];
    assert_eq!(request(late), Err(PSEUDO_AFTER_REGULAR));
    assert_eq!(request(&[(":method", "GET")]), Err(PSEUDO_TWICE));
    assert_eq!(rule(Kind::Response, &[OK, OK]), Err(PSEUDO_TWICE));
    assert_eq!(request(&[(":foo", "x")]), fault(Fault::PseudoUnknown));
    assert_eq!(request(&[(":", "x")]), fault(Fault::PseudoUnknown));
    assert_eq!(
        request(&[(":protocol", "websocket")]),
        fault(Fault::Protocol)
    );
    assert_eq!(request(OK), Err(STATUS_IN_REQUEST));
    assert_eq!(
        rule(Kind::Response, &[OK, &[(":path", "/")]]),
        Err(REQUEST_PSEUDO_IN_RESPONSE)
    );
    assert_eq!(rule(Kind::Trailers, &[OK]), Err(PSEUDO_IN_TRAILERS));
    assert_eq!(rule(Kind::Trailers, &[GET]), Err(PSEUDO_IN_TRAILERS));
}

#[test]
fn a_request_has_its_three() {
    assert_eq!(rule(Kind::Request, &[&GET[1..]]), Err(NO_METHOD));
    assert_eq!(rule(Kind::Request, &[&[GET[0], GET[2]]]), Err(NO_SCHEME));
    assert_eq!(rule(Kind::Request, &[&GET[..2]]), Err(NO_PATH));
    assert_eq!(rule(Kind::Request, &[]), Err(NO_METHOD));
    for method in ["", "G T", "G\u{e9}", "GET,"] {
        let all: Fields<'_> = &[(":method", method), GET[1], GET[2]];
        assert_eq!(
            rule(Kind::Request, &[all]),
            fault(Fault::Method),
            "{method:?}"
        );
    }
    let long = "h".repeat(MAX_SCHEME + 1);
    for scheme in ["", "1http", "ht tp", "http:", &long] {
        let all: Fields<'_> = &[GET[0], (":scheme", scheme), GET[2]];
        let broken = rule(Kind::Request, &[all]);
        assert_eq!(broken, fault(Fault::Scheme), "{scheme:?}");
    }
}

#[test]
fn paths() {
    let path = |method, path| {
        rule(
            Kind::Request,
            &[&[(":method", method), (":scheme", "http"), (":path", path)]],
        )
    };
    assert_eq!(path("GET", ""), fault(Fault::PathEmpty));
    assert_eq!(path("GET", "a/b"), fault(Fault::PathNoSlash));
    assert_eq!(path("GET", "http://a/"), fault(Fault::PathNoSlash));
    assert_eq!(path("GET", "*"), Err(PATH_ASTERISK));
    assert_eq!(path("OPTIONS", "*"), Ok(()));
    assert_eq!(path("OPTIONS", "/"), Ok(()));
    for wrong in [
        "/a b", "/a#b", "/\u{e9}", "/a\x7fb", "/<", "/>", "/\"", "/`",
    ] {
        assert!(path("GET", wrong).is_err(), "{wrong:?}");
    }
    assert_eq!(path("GET", "/a#b"), fault(Fault::PathCharacter));
}

#[test]
fn authorities() {
    for right in [
        "a",
        "a:1",
        "a.b-c_d:65535",
        "[::1]",
        "[::1]:80",
        "127.0.0.1:8443",
        "a:",
    ] {
        assert_eq!(request(&[(":authority", right)]), Ok(()), "{right}");
    }
    assert_eq!(
        request(&[(":authority", "user@a")]),
        fault(Fault::AuthorityUser)
    );
    for wrong in [
        "",
        ":80",
        "a:b",
        "a:1:2",
        "a/b",
        "a?b",
        "a#b",
        "a b",
        "a%41",
        "[::1",
        "[]",
        "::1",
        "[::1]x",
        "a[",
        "a\u{e9}",
        "[g]",
        "a:123456",
        "[ffff:::::::::]",
        "[:]",
        "[1.2.3.4]",
    ] {
        assert!(request(&[(":authority", wrong)]).is_err(), "{wrong:?}");
        assert!(!is_authority(wrong.as_bytes()), "{wrong:?}");
    }
    assert!(is_authority(b"[2001:db8::1]:443"));
    assert_eq!(request(&[(":authority", "a/b")]), fault(Fault::Authority));
}

#[test]
fn connect_has_an_authority_alone() {
    let connect: Fields<'_> = &[(":method", "CONNECT"), (":authority", "a:443")];
    assert_eq!(rule(Kind::Request, &[connect]), Ok(()));
    assert_eq!(
        rule(Kind::Request, &[&connect[..1]]),
        Err(CONNECT_NO_AUTHORITY)
    );
    assert_eq!(
        rule(Kind::Request, &[connect, &GET[1..2]]),
        Err(CONNECT_WITH_PATH)
    );
    assert_eq!(
        rule(Kind::Request, &[connect, &GET[2..]]),
        Err(CONNECT_WITH_PATH)
    );
}

#[test]
fn statuses() {
    assert_eq!(rule(Kind::Response, &[]), Err(NO_STATUS));
    assert_eq!(rule(Kind::Response, &[&[("server", "x")]]), Err(NO_STATUS));
    for wrong in ["", "20", "2000", "099", "600", "2x0", "+20", "000"] {
        let broken = rule(Kind::Response, &[&[(":status", wrong)]]);
        assert_eq!(broken, fault(Fault::Status), "{wrong:?}");
    }
    assert_eq!(
        rule(Kind::Response, &[&[(":status", "101")]]),
        fault(Fault::Status101)
    );
    assert_eq!(Headers::from_iter([(":status", "599")]).status(), Some(599));
    assert_eq!(Headers::from_iter([(":status", "5x9")]).status(), None);
}

#[test]
fn connection_specific_fields() {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ] {
        assert_eq!(request(&[(name, "x")]), fault(Fault::Connection), "{name}");
        assert_eq!(
            rule(Kind::Response, &[OK, &[(name, "x")]]),
            Ok(()),
            "{name}"
        );
        assert_eq!(
            rule(Kind::Response, &[OK, &[(name, "x\r")]]),
            fault(Fault::ValueLine),
            "{name}"
        );
        assert_eq!(
            rule(Kind::Trailers, &[&[(name, "x")]]),
            fault(Fault::Connection),
            "{name}"
        );
    }
    for value in ["", "gzip", "Trailers", "trailers, gzip"] {
        assert_eq!(request(&[("te", value)]), fault(Fault::Te), "{value:?}");
    }
}

#[test]
fn content_lengths() {
    let of = |more: Fields<'_>| Headers::from_iter(more.iter().copied()).content_length();
    let twice: Fields<'_> = &[
        ("content-length", "5"),
        ("x-a", "1"),
        ("content-length", "05"),
    ];
    assert_eq!(request(twice), Err(CONTENT_LENGTH_TWICE));
    assert_eq!(rule(Kind::Response, &[OK, twice]), Ok(()));
    let most: Fields<'_> = &[("content-length", "9223372036854775807")];
    assert_eq!(request(most), Ok(()));
    assert_eq!(of(most), Some(i64::MAX as u64));
    assert_eq!(of(twice), Some(5));
    assert_eq!(of(&[]), None);
    for wrong in [
        "",
        "-1",
        "+1",
        "1,1",
        "0x1",
        "1.0",
        "9223372036854775808",
        "99999999999999999999",
    ] {
        assert_eq!(
            request(&[("content-length", wrong)]),
            fault(Fault::ContentLength),
            "{wrong:?}"
        );
    }
    let differing: Fields<'_> = &[("content-length", "5"), ("content-length", "6")];
    assert_eq!(request(differing), Err(CONTENT_LENGTH_TWICE));
    assert_eq!(
        rule(Kind::Response, &[OK, differing]),
        Err(CONTENT_LENGTHS_DIFFER)
    );
}

/// The static table's entries with a value are taken as right by the decoder; those without are looked at.
#[test]
fn static_entries() {
    for index in 1..=61u8 {
        let (name, value) = crate::hpack::STATIC_TABLE.get(index);
        let mut read = Headers::new();
        Decoder::new(4096)
            .decode(&[0x80 | index], usize::MAX, &mut read)
            .expect("an index");
        let seen = read.lines().next().map(|(_, _, meta)| meta.check);
        let real = Check::of(NameId::of(name), name, value);
        assert!(
            seen == Some(real) || seen == Some(Check::UNKNOWN),
            "{index}"
        );
    }
}

#[test]
fn a_content_length_has_no_more_digits_than_servers_read() {
    let zeros = "0".repeat(18) + "9";
    assert_eq!(content_length(zeros.as_bytes()), Some(9));
    for wrong in [&*format!("0{zeros}"), "", "-1", "+1", "1 "] {
        assert_eq!(content_length(wrong.as_bytes()), None, "{wrong:?}");
    }
}
