//! Field names that we know, recognised once.
//!
//! Every name of HPACK's static table and every name that a rule of ours asks for has a number, [`NameId`]. A field
//! gets it when it enters a block (free for a field that came by index, one hash and one comparison for a literal), and
//! from then on all questions about the name are a comparison or a table look-up of one byte: is it `te`, which static
//! index stands for it, may the encoder index it.
//!
//! The look-up is an open-addressing table built at compile time; a test bounds its probes.

/// Names that the proxy's rules ask for, recognised once when a block is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(
    missing_docs,
    reason = "each is the header field of its name, as `name` spells it"
)]
pub enum Known {
    /// Any other name.
    Other,
    Method,
    Scheme,
    Authority,
    Path,
    Status,
    Protocol,
    ContentType,
    ContentLength,
    Te,
    Host,
    UserAgent,
    Server,
    Date,
    GrpcTimeout,
    GrpcStatus,
    GrpcMessage,
    GrpcEncoding,
    Connection,
    KeepAlive,
    ProxyConnection,
    TransferEncoding,
    Upgrade,
    Http2Settings,
    XForwardedFor,
    XForwardedProto,
    XRequestId,
    Traceparent,
    Authorization,
    Cookie,
    Expect,
    XEnvoyUpstreamServiceTime,
}

impl Known {
    #[inline]
    pub(super) const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// The field's name as it stands in a block, pseudo-header fields with their colon; `""` for [`Known::Other`].
    pub fn name(self) -> &'static str {
        NAMES[OF_KNOWN[self as usize] as usize].0
    }
}

/// Some of the [`Known`], to ask for all of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownSet(pub(super) u32);

impl KnownSet {
    /// Of these.
    pub const fn of(known: &[Known]) -> Self {
        let (mut bits, mut at) = (0, 0);
        while at < known.len() {
            bits |= known[at].bit();
            at += 1;
        }
        Self(bits)
    }

    /// These and `known`.
    pub const fn with(self, known: Known) -> Self {
        Self(self.0 | known.bit())
    }

    /// Whether `known` is one of them.
    #[inline]
    pub const fn contains(self, known: Known) -> bool {
        self.0 & known.bit() != 0
    }
}

/// The number of a known name. 1–61 is also the first index of the name in the static table (RFC 7541 appendix A).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameId(u8);

impl NameId {
    /// A name that is in no table of ours.
    pub(crate) const OTHER: Self = Self(0);

    /// Recognises a name, byte for byte (so an upper-case name is never a known one).
    #[inline]
    pub(crate) fn of(name: &[u8]) -> Self {
        if name.len() < SHORTEST || name.len() > LONGEST {
            return Self::OTHER;
        }
        let mut slot = slot_of(name);
        loop {
            let id = SLOTS[slot];
            if id == 0 {
                return Self::OTHER;
            }
            if NAMES[id as usize].0.as_bytes() == name {
                return Self(id);
            }
            slot = (slot + 1) % SLOTS.len();
        }
    }

    /// The name of one of the 61 entries of the static table. `index` is taken as checked: 1–61.
    #[inline]
    pub(crate) const fn of_static(index: u8) -> Self {
        // The static table repeats four names (RFC 7541 appendix A); the first index stands for each.
        Self(match index {
            3 => 2,
            5 => 4,
            7 => 6,
            9..=14 => 8,
            index => index,
        })
    }

    #[inline]
    pub(crate) fn of_known(known: Known) -> Self {
        Self(OF_KNOWN[known as usize])
    }

    #[inline]
    pub(crate) fn known(self) -> Known {
        NAMES[self.0 as usize].1
    }

    #[inline]
    pub(crate) fn indexing(self) -> Indexing {
        NAMES[self.0 as usize].2
    }

    #[inline]
    pub(crate) fn bytes(self) -> &'static [u8] {
        NAMES[self.0 as usize].0.as_bytes()
    }

    /// The first index of this name in the static table.
    #[inline]
    pub(crate) fn static_index(self) -> Option<u8> {
        (1..=STATIC_NAMES).contains(&self.0).then_some(self.0)
    }

    #[inline]
    pub(crate) fn is_other(self) -> bool {
        self.0 == 0
    }
}

/// What our encoder does with fields of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Indexing {
    /// In the dynamic table, if it fits the rules for size and repetition.
    Table,
    /// A literal each time, because the value is new with (nearly) every message: an entry would push out another
    /// that is of use, and never be hit.
    Literal,
    /// A literal that no later hop may put in a table either (RFC 7541 §7.1.3).
    Never,
}

const fn slot_of(name: &[u8]) -> usize {
    let len = name.len();
    let mix = (len as u32)
        .wrapping_mul(MIX[0])
        .wrapping_add((name[0] as u32).wrapping_mul(MIX[1]))
        .wrapping_add((name[len - 1] as u32).wrapping_mul(MIX[2]))
        .wrapping_add((name[len / 2] as u32).wrapping_mul(MIX[3]));
    (mix >> 7) as usize % 256
}

const fn slots() -> [u8; 256] {
    let mut slots = [0u8; 256];
    let mut id = 1;
    while id < NAMES.len() {
        // A repeated name of the static table has an empty text here and no slot.
        if !NAMES[id].0.is_empty() {
            let mut slot = slot_of(NAMES[id].0.as_bytes());
            while slots[slot] != 0 {
                slot = (slot + 1) % 256;
            }
            slots[slot] = id as u8;
        }
        id += 1;
    }
    slots
}

const fn of_known() -> [u8; KNOWN] {
    let mut ids = [0u8; KNOWN];
    let mut id = 1;
    while id < NAMES.len() {
        let known = NAMES[id].1 as usize;
        if known != Known::Other as usize {
            ids[known] = id as u8;
        }
        id += 1;
    }
    ids
}

const fn length(longest: bool) -> usize {
    let mut best = NAMES[1].0.len();
    let mut id = 1;
    while id < NAMES.len() {
        let len = NAMES[id].0.len();
        if len != 0 && ((longest && len > best) || (!longest && len < best)) {
            best = len;
        }
        id += 1;
    }
    best
}

/// How many [`Known`] there are.
pub(super) const KNOWN: usize = Known::XEnvoyUpstreamServiceTime as usize + 1;
// Each has a bit of a `KnownSet`.
const _: () = assert!(KNOWN <= u32::BITS as usize);
const STATIC_NAMES: u8 = 61;
const SHORTEST: usize = length(false);
const LONGEST: usize = length(true);
/// Multipliers of the name hash; found by trial so that no look-up needs more than a few probes.
const MIX: [u32; 4] = [0x073b, 0xfe61, 0xe7dd, 0x49bd];
static SLOTS: [u8; 256] = slots();
static OF_KNOWN: [u8; KNOWN] = of_known();

use Indexing::{Literal, Never, Table};

/// Name, number for the rules, treatment by the encoder. The position is the [`NameId`].
///
/// - `date` changes every second: indexed, it would save ~30 bytes a message on a busy connection and renew the whole
///   table every minute; a literal is one short copy, which is cheaper for both ends' CPU.
/// - `authorization`, `cookie` and their like are never indexed, here or by a later hop. A connection to a backend is
///   shared by all clients, so a client that can make requests and see sizes or times could guess another's secret
///   through a shared table (RFC 7541 §7.1). Their values go out as they are, without Huffman coding, which costs
///   more CPU at both ends than anything else in a block.
/// - `x-forwarded-for` differs between the clients that share a connection to a backend.
static NAMES: [(&str, Known, Indexing); 86] = [
    ("", Known::Other, Table),
    (":authority", Known::Authority, Table),
    (":method", Known::Method, Table),
    ("", Known::Other, Table),
    (":path", Known::Path, Table),
    ("", Known::Other, Table),
    (":scheme", Known::Scheme, Table),
    ("", Known::Other, Table),
    (":status", Known::Status, Table),
    ("", Known::Other, Table),
    ("", Known::Other, Table),
    ("", Known::Other, Table),
    ("", Known::Other, Table),
    ("", Known::Other, Table),
    ("", Known::Other, Table),
    ("accept-charset", Known::Other, Table),
    ("accept-encoding", Known::Other, Table),
    ("accept-language", Known::Other, Table),
    ("accept-ranges", Known::Other, Table),
    ("accept", Known::Other, Table),
    ("access-control-allow-origin", Known::Other, Table),
    ("age", Known::Other, Literal),
    ("allow", Known::Other, Table),
    ("authorization", Known::Authorization, Never),
    ("cache-control", Known::Other, Table),
    ("content-disposition", Known::Other, Table),
    ("content-encoding", Known::Other, Table),
    ("content-language", Known::Other, Table),
    ("content-length", Known::ContentLength, Literal),
    ("content-location", Known::Other, Literal),
    ("content-range", Known::Other, Literal),
    ("content-type", Known::ContentType, Table),
    ("cookie", Known::Cookie, Never),
    ("date", Known::Date, Literal),
    ("etag", Known::Other, Literal),
    ("expect", Known::Expect, Table),
    ("expires", Known::Other, Literal),
    ("from", Known::Other, Table),
    ("host", Known::Host, Table),
    ("if-match", Known::Other, Literal),
    ("if-modified-since", Known::Other, Literal),
    ("if-none-match", Known::Other, Literal),
    ("if-range", Known::Other, Literal),
    ("if-unmodified-since", Known::Other, Literal),
    ("last-modified", Known::Other, Literal),
    ("link", Known::Other, Table),
    ("location", Known::Other, Literal),
    ("max-forwards", Known::Other, Table),
    ("proxy-authenticate", Known::Other, Table),
    ("proxy-authorization", Known::Other, Never),
    ("range", Known::Other, Literal),
    ("referer", Known::Other, Table),
    ("refresh", Known::Other, Table),
    ("retry-after", Known::Other, Table),
    ("server", Known::Server, Table),
    ("set-cookie", Known::Other, Never),
    ("strict-transport-security", Known::Other, Table),
    ("transfer-encoding", Known::TransferEncoding, Table),
    ("user-agent", Known::UserAgent, Table),
    ("vary", Known::Other, Table),
    ("via", Known::Other, Table),
    ("www-authenticate", Known::Other, Table),
    // Not in the static table: names of our rules, and names whose values hardly ever repeat.
    (":protocol", Known::Protocol, Table),
    ("te", Known::Te, Table),
    ("grpc-timeout", Known::GrpcTimeout, Literal),
    ("grpc-status", Known::GrpcStatus, Table),
    ("grpc-message", Known::GrpcMessage, Literal),
    ("grpc-encoding", Known::GrpcEncoding, Table),
    ("connection", Known::Connection, Table),
    ("keep-alive", Known::KeepAlive, Table),
    ("proxy-connection", Known::ProxyConnection, Table),
    ("upgrade", Known::Upgrade, Table),
    ("http2-settings", Known::Http2Settings, Literal),
    ("x-forwarded-for", Known::XForwardedFor, Literal),
    ("x-forwarded-proto", Known::XForwardedProto, Table),
    ("x-request-id", Known::XRequestId, Literal),
    ("traceparent", Known::Traceparent, Literal),
    ("tracestate", Known::Other, Literal),
    ("baggage", Known::Other, Literal),
    ("b3", Known::Other, Literal),
    ("x-b3-traceid", Known::Other, Literal),
    ("x-b3-spanid", Known::Other, Literal),
    ("x-b3-parentspanid", Known::Other, Literal),
    ("x-cloud-trace-context", Known::Other, Literal),
    ("x-amzn-trace-id", Known::Other, Literal),
    (
        "x-envoy-upstream-service-time",
        Known::XEnvoyUpstreamServiceTime,
        Literal,
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hpack::STATIC_TABLE;

    #[test]
    fn every_name_is_found_and_no_other() {
        for (id, (name, known, _)) in NAMES.iter().enumerate().skip(1) {
            if !name.is_empty() {
                assert_eq!(NameId::of(name.as_bytes()), NameId(id as u8), "{name}");
                assert_eq!(NameId(id as u8).known(), *known);
                if *known != Known::Other {
                    assert_eq!(NameId::of_known(*known).bytes(), name.as_bytes());
                }
            }
        }
        for name in [
            "",
            "x",
            "t",
            "tE",
            "Date",
            ":pathx",
            "grpc-statuz",
            "a-name-that-is-longer-than-any-known-one",
        ] {
            assert!(NameId::of(name.as_bytes()).is_other(), "{name}");
        }
    }

    #[test]
    fn the_first_61_are_the_static_table() {
        for index in 1..=61u8 {
            let (name, _) = STATIC_TABLE.get(index);
            let id = NameId::of(name);
            assert_eq!(id, NameId::of_static(index), "{index}");
            assert!(id.static_index().is_some_and(|first| first <= index));
        }
        assert_eq!(NameId::of(b"te").static_index(), None);
    }

    #[test]
    fn look_ups_take_few_probes() {
        let probes = NAMES
            .iter()
            .enumerate()
            .filter(|(_, n)| !n.0.is_empty())
            .map(|(id, n)| {
                let start = slot_of(n.0.as_bytes());
                (0..256).position(|i| SLOTS[(start + i) % 256] as usize == id)
            });
        let most = probes.map(|p| p.expect("every name has a slot")).max();
        assert!(most <= Some(1), "{most:?}");
    }
}
