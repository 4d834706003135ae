//! One header block in a flat arena: no allocation per field, and what RFC 9113 §8 allows in it.
//!
//! Names and values stand one after the other in one byte buffer; a [`Headers`] is that buffer and a list of entries
//! in the order of the block, duplicates included. An entry also carries what is already known of its field: the
//! number of its name ([`Known`]), the fault that a check of its characters found, a hash of its content and its index
//! in HPACK's static table. Fields that the decoder takes from a table bring these along, so that in the steady state
//! nothing of them is computed per message; a literal's hash is computed when the encoder first wants it.
//!
//! Taking a field out only drops its entry. Its bytes stay behind until they are more than half of the buffer, and then
//! the rest is moved together; a block that is edited without end stays bounded, an ordinary edit moves nothing.

mod name;
mod rules;

pub use rules::Kind;

use name::KNOWN;
pub(crate) use name::{Indexing, NameId};
pub(crate) use rules::Check;

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
    const fn bit(self) -> u32 {
        1 << self as u32
    }

    /// The field's name as it stands in a block, pseudo-header fields with their colon; `""` for [`Known::Other`].
    pub fn name(self) -> &'static str {
        name::known_name(self)
    }
}

/// Some of the [`Known`], to ask for all of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownSet(u32);

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

/// One field of a [`Headers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// What the name is, if it is one that rules ask for.
    pub known: Known,
    /// The name, in lower case, with the colon of a pseudo-header field.
    pub name: &'a [u8],
    /// The value, as it came.
    pub value: &'a [u8],
}

/// One header block: names and values in one buffer, fields in order.
///
/// Up to 4 GiB of names and values; a field that would pass that is not taken (blocks from the network are far below,
/// by the limits of the connection).
///
/// One pointer: a block is handed on a dozen times between the frame that it came in and the one that it leaves in.
#[derive(Debug, Default)]
pub struct Headers(Box<Block>);

/// What is behind the pointer.
#[derive(Debug, Default)]
struct Block {
    /// Names and values, with gaps where fields were taken out.
    bytes: Vec<u8>,
    /// The fields, in order.
    entries: Vec<Entry>,
    /// Bytes of `bytes` that belong to entries.
    live: usize,
    /// One bit for each [`Known`] that is there.
    seen: u32,
    /// One for each that is, or was, there more than once.
    repeated: u32,
    /// Where the first field of each [`Known`] stands whose bit is in `seen`; [`BEYOND`]: there, or behind it.
    first: [u8; KNOWN],
}

impl Clone for Headers {
    fn clone(&self) -> Self {
        let mut copy = Self::default();
        copy.clone_from(self);
        copy
    }

    /// Into the buffers that are there.
    fn clone_from(&mut self, other: &Self) {
        let (copy, other) = (&mut *self.0, &*other.0);
        copy.bytes.clone_from(&other.bytes);
        copy.entries.clone_from(&other.entries);
        copy.live = other.live;
        copy.seen = other.seen;
        copy.repeated = other.repeated;
        copy.first = other.first;
    }
}

/// One field: where its bytes are, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    start: u32,
    name_len: u32,
    value_len: u32,
    meta: Meta,
}

/// What is known of a field besides its bytes; it goes with the field from the decoder's table to a block and on to the
/// encoder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meta {
    /// [`content_hash`](crate::hpack::content_hash) of name and value, or 0 when it wasn't needed yet.
    pub(crate) hash: u32,
    pub(crate) name: NameId,
    /// The result of the checks of RFC 9113 §8.2 and §8.3 on this field alone.
    pub(crate) check: Check,
    /// The index of exactly this field in the static table, or 0.
    pub(crate) static_index: u8,
    /// No hop may put it in a table (RFC 7541 §6.2.3).
    pub(crate) never_indexed: bool,
}

impl Meta {
    /// What is known of a field from its name alone.
    #[inline]
    pub(crate) const fn of(name: NameId) -> Self {
        Self {
            hash: 0,
            name,
            check: Check::UNKNOWN,
            static_index: 0,
            never_indexed: false,
        }
    }
}

impl Headers {
    /// An empty block.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty block with room for `fields` fields of together `bytes` bytes.
    pub fn with_capacity(fields: usize, bytes: usize) -> Self {
        let (bytes, entries) = (Vec::with_capacity(bytes), Vec::with_capacity(fields));
        Self(Box::new(Block {
            bytes,
            entries,
            ..Block::default()
        }))
    }

    /// Appends. Pseudo-header fields first, as RFC 9113 §8.3 wants it (the caller keeps the order).
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_with(Meta::of(NameId::of(name)), name, value);
    }

    /// Appends a field of a known name, which isn't looked up. `Known::Other` has no name and adds nothing.
    pub fn push_known(&mut self, known: Known, value: &[u8]) {
        if known != Known::Other {
            let id = NameId::of_known(known);
            self.push_with(Meta::of(id), id.bytes(), value);
        }
    }

    /// Appends a field that neither our encoder nor a later hop puts in a table (RFC 7541 §7.1.3).
    pub fn push_never_indexed(&mut self, name: &[u8], value: &[u8]) {
        self.push_with(
            Meta {
                never_indexed: true,
                ..Meta::of(NameId::of(name))
            },
            name,
            value,
        );
    }

    /// Replaces the first field of this name, removes the others, or appends (a missing pseudo-header field is put
    /// behind the last pseudo-header field).
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        self.set_with(NameId::of(name), name, value);
    }

    /// [`set`](Self::set) for a known name, which isn't looked up. `Known::Other` has no name and changes nothing.
    pub fn set_known(&mut self, known: Known, value: &[u8]) {
        if known != Known::Other {
            let id = NameId::of_known(known);
            self.set_with(id, id.bytes(), value);
        }
    }

    /// Removes every field of this name.
    pub fn remove(&mut self, name: &[u8]) {
        let id = NameId::of(name);
        if id.known() == Known::Other || self.has(id.known()) {
            self.retain_entries(|bytes, e| !e.is(bytes, id, name));
        }
    }

    /// Removes every field that is `known`.
    pub fn remove_known(&mut self, known: Known) {
        if self.has(known) {
            self.retain_entries(|_, e| e.meta.name.known() != known);
        }
    }

    /// Removes every field for which `keep` is false.
    pub fn retain(&mut self, mut keep: impl FnMut(Field<'_>) -> bool) {
        self.retain_entries(|bytes, e| keep(e.field(bytes)));
    }

    /// The value of the first field of this name. Names are lower case.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let id = NameId::of(name);
        if id.known() != Known::Other && !self.has(id.known()) {
            return None;
        }
        let found = self
            .0
            .entries
            .iter()
            .find(|e| e.is(&self.0.bytes, id, name))?;
        Some(found.value(&self.0.bytes))
    }

    /// The values of all fields of this name, in order.
    pub fn get_all<'a>(&'a self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + 'a {
        let id = NameId::of(name);
        let any = id.known() == Known::Other || self.has(id.known());
        let entries = if any { self.0.entries.as_slice() } else { &[] };
        entries
            .iter()
            .filter(move |e| e.is(&self.0.bytes, id, name))
            .map(|e| e.value(&self.0.bytes))
    }

    /// The value of the first field that is `known`.
    #[inline(always)]
    pub fn known(&self, known: Known) -> Option<&[u8]> {
        let at = self.position(known)?;
        self.0.entries.get(at).map(|e| e.value(&self.0.bytes))
    }

    /// The values of all fields that are `known`, in order.
    pub fn all_known(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        let from = self.position(known).unwrap_or(self.0.entries.len());
        let of_name = self.0.entries[from..]
            .iter()
            .filter(move |e| e.meta.name.known() == known);
        of_name.map(|e| e.value(&self.0.bytes))
    }

    /// Whether there is a field that is one of `set`.
    #[inline]
    pub fn has_any(&self, set: KnownSet) -> bool {
        self.0.seen & set.0 != 0
    }

    /// The fields that are [`Known::Other`], in order.
    pub fn others(&self) -> impl Iterator<Item = Field<'_>> {
        let from = self.position(Known::Other).unwrap_or(self.0.entries.len());
        let others = self.0.entries[from..].iter();
        others
            .filter(|e| e.meta.name.known() == Known::Other)
            .map(|e| e.field(&self.0.bytes))
    }

    /// All fields, in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.0.entries.iter().map(|e| e.field(&self.0.bytes))
    }

    /// How many fields there are.
    pub fn len(&self) -> usize {
        self.0.entries.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.0.entries.is_empty()
    }

    /// The list's size as RFC 9113 §6.5.2 counts it: names, values and 32 bytes a field.
    pub fn list_size(&self) -> usize {
        self.0.live + FIELD_OVERHEAD * self.0.entries.len()
    }

    /// Removes all fields and keeps the buffers for another block.
    pub fn clear(&mut self) {
        self.0.bytes.clear();
        self.0.entries.clear();
        self.0.live = 0;
        (self.0.seen, self.0.repeated) = (0, 0);
    }

    /// `:method` of a request.
    pub fn method(&self) -> Option<&[u8]> {
        self.known(Known::Method)
    }

    /// `:scheme` of a request.
    pub fn scheme(&self) -> Option<&[u8]> {
        self.known(Known::Scheme)
    }

    /// `:authority` of a request.
    pub fn authority(&self) -> Option<&[u8]> {
        self.known(Known::Authority)
    }

    /// `:path` of a request, query included.
    pub fn path(&self) -> Option<&[u8]> {
        self.known(Known::Path)
    }

    /// `:status` of a response (three digits by the engine's validation).
    pub fn status(&self) -> Option<u16> {
        rules::status_code(self.known(Known::Status)?)
    }

    /// `content-length`, if there is one that can be read (RFC 9110 §8.6; the engine compares it with the DATA that
    /// comes, RFC 9113 §8.1.1). A valid block has one value, however often it is repeated.
    pub fn content_length(&self) -> Option<u64> {
        rules::content_length(self.known(Known::ContentLength)?)
    }

    /// Whether RFC 9113 §8 and the strictest of the servers behind us allow this block as one of `kind`; else the rule
    /// that it breaks, one of a fixed set of texts.
    pub fn validate(&self, kind: Kind) -> Result<(), &'static str> {
        rules::validate(self, kind)
    }

    #[inline]
    fn push_with(&mut self, meta: Meta, name: &[u8], value: &[u8]) {
        let start = self.0.bytes.len();
        if start + name.len() + value.len() > u32::MAX as usize {
            return;
        }
        self.0.bytes.extend_from_slice(name);
        self.0.bytes.extend_from_slice(value);
        self.commit(start, name.len(), meta);
    }

    fn set_with(&mut self, id: NameId, name: &[u8], value: &[u8]) {
        let found = match id.known() {
            Known::Other => {
                let mut entries = self.0.entries.iter();
                entries.position(|e| e.is(&self.0.bytes, id, name))
            }
            known => self.position(known),
        };
        let alone = id.known() != Known::Other && self.0.repeated & id.known().bit() == 0;
        // The new field goes to the end, and its entry to its place from there.
        let before = self.0.entries.len();
        self.push_with(Meta::of(id), name, value);
        let Some(last) = self.0.entries.get(before).copied() else {
            return;
        };
        match found {
            Some(at) => {
                self.0.entries.truncate(before);
                self.0.live -= self.0.entries[at].len();
                self.0.entries[at] = last;
                if alone {
                    self.0.repeated &= !id.known().bit();
                    return self.compact_if_worth();
                }
                let mut position = 0;
                self.retain_entries(|bytes, e| {
                    position += 1;
                    position - 1 <= at || !e.is(bytes, id, name)
                });
            }
            None if name.first() == Some(&b':') => {
                let is_pseudo =
                    |e: &Entry| self.0.bytes.get(e.start as usize) == Some(&b':') && e.name_len > 0;
                let at = self.0.entries[..before]
                    .iter()
                    .take_while(|e| is_pseudo(e))
                    .count();
                self.0.entries[at..].rotate_right(1);
                self.note_all();
            }
            None => {}
        }
    }

    fn retain_entries(&mut self, mut keep: impl FnMut(&[u8], &Entry) -> bool) {
        let (bytes, mut live, before) = (&self.0.bytes, self.0.live, self.0.entries.len());
        self.0.entries.retain(|e| {
            let kept = keep(bytes, e);
            if !kept {
                live -= e.len();
            }
            kept
        });
        self.0.live = live;
        if self.0.entries.len() != before {
            self.note_all();
        }
        self.compact_if_worth();
    }

    #[inline]
    fn compact_if_worth(&mut self) {
        if self.0.bytes.len() > 2 * self.0.live + GARBAGE {
            self.compact();
        }
    }

    /// Moves the entries' bytes together, in the order of the entries.
    fn compact(&mut self) {
        let mut bytes = Vec::with_capacity(self.0.live);
        for e in &mut self.0.entries {
            let start = bytes.len();
            bytes.extend_from_slice(&self.0.bytes[e.range()]);
            e.start = start as u32;
        }
        self.0.bytes = bytes;
    }

    /// Whether there is a field that is `known`. `Known::Other` is a field like any other here.
    #[inline]
    fn has(&self, known: Known) -> bool {
        self.0.seen & known.bit() != 0
    }

    /// The place of the first field that is `known`.
    #[inline]
    fn position(&self, known: Known) -> Option<usize> {
        if !self.has(known) {
            return None;
        }
        match self.0.first[known as usize] {
            BEYOND => {
                let is = |e: &Entry| e.meta.name.known() == known;
                let rest = self.0.entries.get(usize::from(BEYOND)..)?;
                Some(usize::from(BEYOND) + rest.iter().position(is)?)
            }
            at => Some(usize::from(at)),
        }
    }

    /// A field that is `known` stands at `at`, behind all that were noted before.
    #[inline]
    fn note(&mut self, known: Known, at: usize) {
        if self.has(known) {
            self.0.repeated |= known.bit();
        } else {
            self.0.seen |= known.bit();
            self.0.first[known as usize] = u8::try_from(at).unwrap_or(BEYOND);
        }
    }

    /// Fields have gone, or have other places.
    fn note_all(&mut self) {
        (self.0.seen, self.0.repeated) = (0, 0);
        for at in 0..self.0.entries.len() {
            self.note(self.0.entries[at].meta.name.known(), at);
        }
    }
}

/// For the decoder and the encoder: fields with what is known of them.
impl Headers {
    /// Room for an ordinary block, in two allocations, before the first field is decoded.
    #[inline]
    pub(crate) fn make_room(&mut self) {
        if self.0.entries.capacity() == 0 {
            self.0.entries.reserve(ORDINARY_FIELDS);
            self.0.bytes.reserve(ORDINARY_BYTES);
        }
    }

    /// The byte buffer, for the decoder to append a name and a value to before it calls [`commit`](Self::commit).
    #[inline]
    pub(crate) fn arena(&mut self) -> &mut Vec<u8> {
        &mut self.0.bytes
    }

    /// Makes a field of the bytes that were appended to the arena since it was `start` long. The decoder's blocks are
    /// far below the 4 GiB that the offsets can hold.
    #[inline]
    pub(crate) fn commit(&mut self, start: usize, name_len: usize, meta: Meta) {
        let len = self.0.bytes.len() - start;
        self.0.live += len;
        self.note(meta.name.known(), self.0.entries.len());
        self.0.entries.push(Entry {
            start: start as u32,
            name_len: name_len as u32,
            value_len: (len - name_len) as u32,
            meta,
        });
    }

    /// Appends a field from a table: name and value in one piece.
    #[inline]
    pub(crate) fn push_line(&mut self, line: &[u8], name_len: usize, meta: Meta) {
        let start = self.0.bytes.len();
        self.0.bytes.extend_from_slice(line);
        self.commit(start, name_len, meta);
    }

    /// The first `fields` fields of `other`, whose fields lie one behind the other in their order, as the decoder puts
    /// them. This block is empty.
    pub(crate) fn clone_first(&mut self, other: &Self, fields: usize) {
        let entries = &other.0.entries[..fields];
        let Some(last) = entries.last() else { return };
        self.0.live = last.range().end;
        self.0
            .bytes
            .extend_from_slice(&other.0.bytes[..self.0.live]);
        self.0.entries.extend_from_slice(entries);
        for (at, entry) in entries.iter().enumerate() {
            self.note(entry.meta.name.known(), at);
        }
    }

    /// Whether both have the same fields in the same order.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let mut fields = self.lines().zip(other.lines());
        self.len() == other.len()
            && fields.all(|((a, a_name, _), (b, b_name, _))| a_name == b_name && a == b)
    }

    /// What is known of each field.
    #[inline]
    pub(crate) fn metas(&self) -> impl Iterator<Item = &Meta> {
        self.0.entries.iter().map(|e| &e.meta)
    }

    /// The field at a place of [`metas`](Self::metas), looked at for its faults.
    pub(crate) fn check_at(&self, at: usize) -> Check {
        self.0.entries.get(at).map_or(Check::UNKNOWN, |e| {
            let (name, value) = self.0.bytes[e.range()].split_at(e.name_len as usize);
            Check::of(e.meta.name, name, value)
        })
    }

    /// Each field as name and value in one piece, the name's length, and what is known of it.
    #[inline]
    pub(crate) fn lines(&self) -> impl Iterator<Item = (&[u8], usize, &Meta)> {
        self.0
            .entries
            .iter()
            .map(|e| (&self.0.bytes[e.range()], e.name_len as usize, &e.meta))
    }
}

impl Entry {
    #[inline]
    fn len(&self) -> usize {
        (self.name_len + self.value_len) as usize
    }

    #[inline]
    fn range(&self) -> std::ops::Range<usize> {
        let start = self.start as usize;
        start..start + self.len()
    }

    #[inline]
    fn field<'a>(&self, bytes: &'a [u8]) -> Field<'a> {
        let (name, value) = bytes[self.range()].split_at(self.name_len as usize);
        Field {
            known: self.meta.name.known(),
            name,
            value,
        }
    }

    #[inline]
    fn value<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = self.start as usize;
        &bytes[start + self.name_len as usize..start + self.len()]
    }

    #[inline]
    fn is(&self, bytes: &[u8], id: NameId, name: &[u8]) -> bool {
        self.meta.name == id && (!id.is_other() || self.field(bytes).name == name)
    }
}

/// The same fields in the same order.
impl PartialEq for Headers {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Headers {}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> Extend<(N, V)> for Headers {
    fn extend<T: IntoIterator<Item = (N, V)>>(&mut self, fields: T) {
        for (name, value) in fields {
            self.push(name.as_ref(), value.as_ref());
        }
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Headers {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(fields: T) -> Self {
        let mut headers = Self::new();
        headers.extend(fields);
        headers
    }
}

/// RFC 9113 §6.5.2 and RFC 7541 §4.1: what a field counts besides its octets.
pub(crate) const FIELD_OVERHEAD: usize = 32;
/// A gRPC request of a proxy's client: a dozen fields, some with ids. Larger blocks grow.
const ORDINARY_FIELDS: usize = 16;
const ORDINARY_BYTES: usize = 768;
/// Unused bytes below this are never worth a move.
const GARBAGE: usize = 1024;
/// The last place that [`Block::first`] can tell.
const BEYOND: u8 = u8::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Headers {
        Headers::from_iter([
            (":method", "POST"),
            (":scheme", "https"),
            (":path", "/api.Echo/Echo"),
            ("x-a", "1"),
            ("te", "trailers"),
            ("x-a", "2"),
        ])
    }

    fn text(headers: &Headers) -> String {
        let line = |f: Field<'_>| {
            format!(
                "{}={}",
                String::from_utf8_lossy(f.name),
                String::from_utf8_lossy(f.value)
            )
        };
        headers.iter().map(line).collect::<Vec<_>>().join(" ")
    }

    fn counted(headers: &Headers) -> usize {
        headers
            .iter()
            .map(|f| f.name.len() + f.value.len() + 32)
            .sum()
    }

    #[test]
    fn order_and_duplicates_are_kept() {
        let headers = request();
        assert_eq!(
            text(&headers),
            ":method=POST :scheme=https :path=/api.Echo/Echo x-a=1 te=trailers x-a=2"
        );
        assert_eq!(headers.get_all(b"x-a").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(headers.get(b"x-b"), None);
        assert_eq!(headers.known(Known::Te), Some(&b"trailers"[..]));
        assert_eq!(headers.known(Known::Cookie), None);
        assert_eq!(headers.path(), Some(&b"/api.Echo/Echo"[..]));
        assert_eq!(headers.len(), 6);
        assert_eq!(headers.list_size(), counted(&headers));
    }

    #[test]
    fn set_replaces_the_first_and_removes_the_others() {
        let mut headers = request();
        headers.set(b"x-a", b"longer than before");
        headers.set_known(Known::Te, b"x");
        headers.set(b"x-b", b"new");
        headers.set(b":authority", b"a");
        assert_eq!(
            text(&headers),
            ":method=POST :scheme=https :path=/api.Echo/Echo :authority=a x-a=longer than before te=x x-b=new"
        );
        assert_eq!(headers.list_size(), counted(&headers));
    }

    #[test]
    fn removal_is_exact_in_size_and_order() {
        let mut headers = request();
        headers.remove(b"x-a");
        headers.remove_known(Known::Scheme);
        headers.remove(b"cookie");
        headers.retain(|f| f.known != Known::Te);
        assert_eq!(text(&headers), ":method=POST :path=/api.Echo/Echo");
        assert_eq!(headers.list_size(), counted(&headers));
        assert_eq!(headers.known(Known::Te), None);
        headers.clear();
        assert!(headers.is_empty());
        assert_eq!((headers.list_size(), headers.method()), (0, None));
    }

    #[test]
    fn endless_edits_leave_bounded_garbage() {
        let mut headers = request();
        let long = [b'v'; 100];
        for i in 0..10_000 {
            headers.set(b"x-a", &long[..i % 100]);
            assert!(headers.0.bytes.len() <= 2 * headers.0.live + GARBAGE + long.len() + 3);
            assert_eq!(headers.list_size(), counted(&headers));
        }
        assert_eq!(headers.path(), Some(&b"/api.Echo/Echo"[..]));
    }

    #[test]
    fn names_are_found_wherever_they_stand() {
        let mut headers = Headers::new();
        for at in 0..600 {
            headers.push(b"x-other", b"o");
            if at == 200 || at == 400 {
                headers.push(b"te", b"t");
            }
            if at == 500 {
                headers.push(b"host", b"h");
                headers.push(b"host", b"i");
            }
        }
        let all = |headers: &Headers, known| headers.all_known(known).count();
        assert_eq!(
            (all(&headers, Known::Te), all(&headers, Known::Host)),
            (2, 2)
        );
        assert_eq!(headers.known(Known::Host), Some(&b"h"[..]));
        // What goes from before them moves them.
        let mut seen = 0;
        headers.retain(|field| {
            seen += 1;
            field.known != Known::Other || seen > 300
        });
        assert_eq!(
            (all(&headers, Known::Te), all(&headers, Known::Host)),
            (2, 2)
        );
        headers.set_known(Known::Host, b"j");
        assert_eq!(headers.all_known(Known::Host).collect::<Vec<_>>(), [b"j"]);
        headers.set_known(Known::Host, b"k");
        headers.remove_known(Known::Te);
        assert_eq!(headers.known(Known::Te), None);
        assert!(!headers.has_any(KnownSet::of(&[Known::Te, Known::Date])));
        assert!(headers.has_any(KnownSet::of(&[Known::Date, Known::Host])));
        assert_eq!(headers.known(Known::Host), Some(&b"k"[..]));
        assert_eq!(headers.others().count() + 1, headers.len());
        assert_eq!(headers.list_size(), counted(&headers));
    }

    #[test]
    fn known_names_spell_themselves() {
        assert_eq!(Known::Http2Settings.name(), "http2-settings");
        assert_eq!(Known::Other.name(), "");
        let mut headers = Headers::new();
        headers.push_known(Known::GrpcStatus, b"0");
        headers.push_known(Known::Other, b"nothing");
        assert_eq!(text(&headers), "grpc-status=0");
    }
}
