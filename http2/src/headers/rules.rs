//! What RFC 9113 §8 allows in a header block, and what servers behind us would not forgive.
//!
//! Two kinds of rule. Those of one field alone (characters, syntax of some values, names that HTTP/2 forbids) are
//! decided once, when the field is decoded, and their result, a [`Check`], stays with it: a field that comes from the
//! dynamic table costs one comparison. Those of the whole block (order, number and presence of pseudo-header fields)
//! are one pass over the entries.
//!
//! Where the RFC leaves a choice we refuse what h2 (tonic's servers), grpc-core, nghttp2 or Node refuse: many clients
//! share one connection to a backend, and some servers end the connection for what we let through.

use core::net::Ipv6Addr;

use super::{Entry, Headers, Known, KnownSet, Meta, NameId};

/// Which rules a block stands under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request's head (RFC 9113 §8.3.1).
    Request,
    /// A response's head, final or 1xx (RFC 9113 §8.3.2). It may hold fields that speak of one connection, which
    /// RFC 9113 §8.2.2 calls malformed: a backend that says `connection: close` out of habit has served the RPC, and
    /// whoever passes the head on drops them, as RFC 9110 §7.6.1 has it of every intermediary.
    Response,
    /// Trailers, either way (RFC 9113 §8.1).
    Trailers,
}

/// What the rules of one field alone say about a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Check(u8);

impl Check {
    /// Not looked at yet.
    pub(crate) const UNKNOWN: Self = Self(0);
    /// Nothing wrong.
    pub(crate) const FINE: Self = Self(1);
    /// Nothing wrong but that it speaks of one connection.
    const CONNECTION: Self = Self(Fault::Connection as u8 + 2);

    /// Looks at a field. `name` is the number of the field's name, whose characters are right by definition.
    #[inline]
    pub(crate) fn of(id: NameId, name: &[u8], value: &[u8]) -> Self {
        match fault(id, name, value) {
            None => Self::FINE,
            Some(fault) => Self(fault as u8 + 2),
        }
    }

    #[inline]
    fn rule(self) -> Result<(), &'static str> {
        match self.0 {
            0 | 1 => Ok(()),
            fault => Err(FAULTS.get(fault as usize - 2).copied().unwrap_or_default()),
        }
    }
}

/// See [`Headers::validate_beyond`].
pub(super) fn validate(headers: &Headers, known: usize, kind: Kind) -> Result<(), &'static str> {
    let is_pseudo = |entry: &Entry| PSEUDO.contains(entry.meta.name.known());
    let entries = &headers.0.entries;
    // Once a regular field has come, all that are rules of the whole block have been met.
    let last = known.checked_sub(1).and_then(|last| entries.get(last));
    let known = last.filter(|last| !is_pseudo(last)).map_or(0, |_| known);
    let mut pseudo = 0u32;
    let mut regular = known > 0;
    for (at, entry) in entries.iter().enumerate().skip(known) {
        let meta = &entry.meta;
        if meta.check != Check::FINE {
            let mut check = meta.check;
            if check == Check::UNKNOWN {
                check = headers.check_at(at);
            }
            if check != Check::CONNECTION || kind != Kind::Response {
                check.rule()?;
            }
        }
        // A pseudo-header field of an unknown name is at fault alone, so it doesn't come here.
        if !is_pseudo(entry) {
            regular = true;
            continue;
        }
        let bit = pseudo_bit(meta, kind)?;
        if regular {
            return Err(PSEUDO_AFTER_REGULAR);
        }
        if pseudo & bit != 0 {
            return Err(PSEUDO_TWICE);
        }
        pseudo |= bit;
    }
    match kind {
        _ if known > 0 => {}
        Kind::Request => request_line(headers, pseudo)?,
        Kind::Response if pseudo & Known::Status.bit() == 0 => return Err(NO_STATUS),
        Kind::Response | Kind::Trailers => {}
    }
    content_lengths(headers, kind)
}

/// The bit of a pseudo-header field, if `kind` may have it (RFC 9113 §8.3).
#[inline]
fn pseudo_bit(meta: &Meta, kind: Kind) -> Result<u32, &'static str> {
    use Known::{Authority, Method, Path, Scheme, Status};
    match (kind, meta.name.known()) {
        (Kind::Trailers, _) => Err(PSEUDO_IN_TRAILERS),
        (Kind::Request, known @ (Method | Scheme | Authority | Path)) => Ok(known.bit()),
        (Kind::Response, known @ Status) => Ok(known.bit()),
        (Kind::Request, Status) => Err(STATUS_IN_REQUEST),
        (Kind::Response, Method | Scheme | Authority | Path) => Err(REQUEST_PSEUDO_IN_RESPONSE),
        _ => Err(PSEUDO_UNKNOWN),
    }
}

fn request_line(headers: &Headers, pseudo: u32) -> Result<(), &'static str> {
    use Known::{Authority, Method, Path, Scheme};
    let Some(method) = headers.method().filter(|_| pseudo & Method.bit() != 0) else {
        return Err(NO_METHOD);
    };
    if method == b"CONNECT" {
        if pseudo & (Scheme.bit() | Path.bit()) != 0 {
            return Err(CONNECT_WITH_PATH);
        }
        return if pseudo & Authority.bit() == 0 {
            Err(CONNECT_NO_AUTHORITY)
        } else {
            Ok(())
        };
    }
    if pseudo & Scheme.bit() == 0 {
        return Err(NO_SCHEME);
    }
    match headers.path() {
        None => Err(NO_PATH),
        Some(b"*") if method != b"OPTIONS" => Err(PATH_ASTERISK),
        Some(_) => Ok(()),
    }
}

/// RFC 9110 §8.6: a second one may be the same, or what has it be invalid. Kestrel ends the connection for it.
fn content_lengths(headers: &Headers, kind: Kind) -> Result<(), &'static str> {
    let mut values = headers.all_known(Known::ContentLength).map(content_length);
    let Some(first) = values.next() else {
        return Ok(());
    };
    match kind {
        Kind::Request if values.next().is_some() => Err(CONTENT_LENGTH_TWICE),
        _ if values.all(|other| other == first) => Ok(()),
        _ => Err(CONTENT_LENGTHS_DIFFER),
    }
}

/// RFC 9110 §8.6: digits only. A number that i64 can't hold is no length of anything that could follow, and Kestrel ends
/// the connection for it.
pub(super) fn content_length(value: &[u8]) -> Option<u64> {
    // The crate `h2` takes no more digits than a u64 has, be they zeros.
    let digits = matches!(value.len(), 1..20) && value.iter().all(u8::is_ascii_digit);
    let text = digits.then(|| std::str::from_utf8(value).ok())??;
    text.parse::<i64>().ok()?.try_into().ok()
}

/// Three digits, 100–599 (RFC 9110 §15).
pub(super) fn status_code(value: &[u8]) -> Option<u16> {
    let [a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9'] = value else {
        return None;
    };
    Some(u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0'))
}

/// The rules of one field alone.
fn fault(id: NameId, name: &[u8], value: &[u8]) -> Option<Fault> {
    if id.is_other()
        && let Some(fault) = name_fault(name)
    {
        return Some(fault);
    }
    if let Some(fault) = value_fault(value) {
        return Some(fault);
    }
    let wrong = |fine: bool, fault: Fault| if fine { None } else { Some(fault) };
    match id.known() {
        Known::Method => wrong(is_token(value), Fault::Method),
        Known::Scheme => wrong(is_scheme(value), Fault::Scheme),
        Known::Authority => authority_fault(value),
        Known::Path => path_fault(value),
        Known::Status => match status_code(value) {
            None => Some(Fault::Status),
            Some(101) => Some(Fault::Status101),
            Some(_) => None,
        },
        Known::Protocol => Some(Fault::Protocol),
        Known::Te => wrong(value == b"trailers", Fault::Te),
        Known::ContentLength => wrong(content_length(value).is_some(), Fault::ContentLength),
        Known::Connection
        | Known::KeepAlive
        | Known::ProxyConnection
        | Known::TransferEncoding
        | Known::Upgrade
        | Known::Http2Settings => Some(Fault::Connection),
        _ => None,
    }
}

fn name_fault(name: &[u8]) -> Option<Fault> {
    match name {
        [] => Some(Fault::NameEmpty),
        // The pseudo-header fields that exist are all known names.
        [b':', ..] => Some(Fault::PseudoUnknown),
        _ if name.iter().all(|&b| class(b, TCHAR)) => None,
        _ if name.iter().any(u8::is_ascii_uppercase) => Some(Fault::NameUpperCase),
        _ => Some(Fault::NameCharacter),
    }
}

fn value_fault(value: &[u8]) -> Option<Fault> {
    // Written without an early exit, so that the compiler looks at 16 bytes at a time.
    let control = |b: u8| (b < 0x20 && b != b'\t') | (b == 0x7f);
    if value.iter().fold(false, |bad, &b| bad | control(b)) {
        let line = value.iter().any(|b| matches!(b, 0 | b'\r' | b'\n'));
        return Some(if line {
            Fault::ValueLine
        } else {
            Fault::ValueControl
        });
    }
    match (value.first(), value.last()) {
        (Some(b' ' | b'\t'), _) | (_, Some(b' ' | b'\t')) => Some(Fault::ValueSpace),
        _ => None,
    }
}

/// Whether this may stand in `:path`; for who configures what paths are compared with.
pub fn is_path(value: &[u8]) -> bool {
    path_fault(value).is_none()
}

fn path_fault(value: &[u8]) -> Option<Fault> {
    match value {
        [] => Some(Fault::PathEmpty),
        b"*" => None,
        [b'/', ..] if value.iter().all(|&b| class(b, PATH)) => None,
        [b'/', ..] => Some(Fault::PathCharacter),
        _ => Some(Fault::PathNoSlash),
    }
}

/// Whether this may stand in `:authority`; for who puts another field's value there, as of `host`.
pub fn is_authority(value: &[u8]) -> bool {
    authority_fault(value).is_none()
}

/// `host`, `host:port`, `[IPv6]`, `[IPv6]:port` (RFC 3986 §3.2, without user information).
fn authority_fault(value: &[u8]) -> Option<Fault> {
    if value.contains(&b'@') {
        return Some(Fault::AuthorityUser);
    }
    let (host_fine, rest) = match value {
        [b'[', rest @ ..] => {
            let end = rest.iter().position(|&b| b == b']').unwrap_or(0);
            let (address, rest) = rest.split_at(end);
            let address = std::str::from_utf8(address).unwrap_or_default();
            let fine = address.parse::<Ipv6Addr>().is_ok();
            (fine, rest.get(1..).unwrap_or_default())
        }
        _ => {
            let end = value.iter().position(|&b| b == b':').unwrap_or(value.len());
            let (host, rest) = value.split_at(end);
            (end > 0 && host.iter().all(|&b| class(b, HOST)), rest)
        }
    };
    let port_fine = match rest {
        [] => true,
        [b':', port @ ..] => port.len() <= 5 && port.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if host_fine && port_fine {
        None
    } else {
        Some(Fault::Authority)
    }
}

fn is_token(value: &[u8]) -> bool {
    // A method may have upper case (RFC 9110 §9.1), a field name in HTTP/2 may not.
    !value.is_empty()
        && value
            .iter()
            .all(|&b| class(b, TCHAR) || b.is_ascii_uppercase())
}

fn is_scheme(value: &[u8]) -> bool {
    let rest = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
    value.first().is_some_and(u8::is_ascii_alphabetic)
        && value.len() <= MAX_SCHEME
        && value.iter().all(rest)
}

/// What the crate `http` takes.
const MAX_SCHEME: usize = 64;

/// RFC 9113 §8.3.
const PSEUDO: KnownSet = KnownSet::of(&[
    Known::Method,
    Known::Scheme,
    Known::Authority,
    Known::Path,
    Known::Status,
    Known::Protocol,
]);

#[inline]
fn class(byte: u8, class: u8) -> bool {
    CLASS[byte as usize] & class != 0
}

const fn classes() -> [u8; 256] {
    let mut table = [0u8; 256];
    let mut i = 0;
    while i < 256 {
        let b = i as u8;
        let alphanumeric = matches!(b, b'a'..=b'z' | b'0'..=b'9');
        if alphanumeric || contains(b"!#$%&'*+-.^_`|~", b) {
            table[i] |= TCHAR;
        }
        if alphanumeric || b.is_ascii_uppercase() || contains(b"-._~!$&'()*+,;=", b) {
            table[i] |= HOST;
        }
        if b.is_ascii_graphic() && !contains(b"\"#<>`", b) {
            table[i] |= PATH;
        }
        i += 1;
    }
    table
}

const fn contains(set: &[u8], b: u8) -> bool {
    let mut i = 0;
    while i < set.len() {
        if set[i] == b {
            return true;
        }
        i += 1;
    }
    false
}

/// A token's characters (RFC 9110 §5.6.2) without the upper-case letters.
const TCHAR: u8 = 1;
/// A registered name's characters (RFC 3986 §3.2.2) without `%`, which the crate `http` refuses in a host.
const HOST: u8 = 2;
/// What the crate `http`, on which tonic's servers stand, takes in paths: visible ASCII but `"#<>` and the backtick.
const PATH: u8 = 4;
static CLASS: [u8; 256] = classes();

/// Faults of one field; the number indexes [`FAULTS`].
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Fault {
    NameEmpty,
    NameUpperCase,
    NameCharacter,
    PseudoUnknown,
    ValueLine,
    ValueControl,
    ValueSpace,
    Method,
    Scheme,
    Authority,
    AuthorityUser,
    PathEmpty,
    PathNoSlash,
    PathCharacter,
    Status,
    Status101,
    Protocol,
    Te,
    ContentLength,
    Connection,
}

static FAULTS: [&str; 20] = [
    "an empty field name (RFC 9113 §8.2.1)",
    "an upper-case letter in a field name (RFC 9113 §8.2.1)",
    "a character that is not allowed in a field name (RFC 9113 §8.2.1)",
    PSEUDO_UNKNOWN,
    "NUL, CR or LF in a field value (RFC 9113 §8.2.1)",
    "a control character in a field value (RFC 9110 §5.5)",
    "a space or tab at an end of a field value (RFC 9113 §8.2.1)",
    ":method is not a token (RFC 9113 §8.3.1, RFC 9110 §9.1)",
    ":scheme is not a scheme (RFC 9113 §8.3.1, RFC 3986 §3.1)",
    ":authority is not host[:port] (RFC 9113 §8.3.1, RFC 3986 §3.2)",
    ":authority with user information (RFC 9113 §8.3.1)",
    ":path is empty (RFC 9113 §8.3.1)",
    ":path does not start with a slash (RFC 9113 §8.3.1)",
    "a character that is not allowed in :path (RFC 9113 §8.3.1, RFC 3986 §3.3)",
    ":status is not a code of 100 to 599 (RFC 9113 §8.3.2, RFC 9110 §15)",
    ":status is 101 (RFC 9113 §8.6)",
    ":protocol without the extension that defines it (RFC 9113 §8.3, RFC 8441 §4)",
    "te is not trailers (RFC 9113 §8.2.2)",
    "content-length is not a number (RFC 9110 §8.6)",
    "a connection-specific field (RFC 9113 §8.2.2)",
];

const PSEUDO_UNKNOWN: &str = "an unknown pseudo-header field (RFC 9113 §8.3)";
const PSEUDO_AFTER_REGULAR: &str = "a pseudo-header field after a regular field (RFC 9113 §8.3)";
const PSEUDO_TWICE: &str = "a pseudo-header field more than once (RFC 9113 §8.3)";
const PSEUDO_IN_TRAILERS: &str = "a pseudo-header field in trailers (RFC 9113 §8.1)";
const STATUS_IN_REQUEST: &str = ":status in a request (RFC 9113 §8.3)";
const REQUEST_PSEUDO_IN_RESPONSE: &str =
    "a request's pseudo-header field in a response (RFC 9113 §8.3)";
const NO_STATUS: &str = "a response without :status (RFC 9113 §8.3.2)";
const NO_METHOD: &str = "a request without :method (RFC 9113 §8.3.1)";
const NO_SCHEME: &str = "a request without :scheme (RFC 9113 §8.3.1)";
const NO_PATH: &str = "a request without :path (RFC 9113 §8.3.1)";
const PATH_ASTERISK: &str = ":path is * and :method is not OPTIONS (RFC 9113 §8.3.1)";
const CONNECT_WITH_PATH: &str = "CONNECT with :scheme or :path (RFC 9113 §8.5)";
const CONNECT_NO_AUTHORITY: &str = "CONNECT without :authority (RFC 9113 §8.5)";
const CONTENT_LENGTH_TWICE: &str = "content-length more than once (RFC 9110 §8.6)";
const CONTENT_LENGTHS_DIFFER: &str = "content-length values that differ (RFC 9110 §8.6)";

#[cfg(test)]
mod tests;
