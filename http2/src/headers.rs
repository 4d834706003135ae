//! One header block in a flat arena: no allocation per field, and what RFC 9113 §8 allows in it.

/// Names that the proxy's rules ask for, recognised once when a block is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Known { Other, Method, Scheme, Authority, Path, Status, Protocol, ContentType, ContentLength, Te, Host, UserAgent, Server, Date, GrpcTimeout, GrpcStatus, GrpcMessage, GrpcEncoding, Connection, KeepAlive, ProxyConnection, TransferEncoding, Upgrade, Http2Settings, XForwardedFor, XForwardedProto, XRequestId, Traceparent, Authorization, Cookie, Expect }

/// One field of a [`Headers`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> { pub known: Known, pub name: &'a [u8], pub value: &'a [u8] }

/// One header block: names and values in one buffer, fields in order.
#[derive(Clone, Debug, Default)]
pub struct Headers { bytes: Vec<u8>, fields: Vec<Entry> }

#[derive(Clone, Copy, Debug)]
struct Entry { start: u32, name_len: u32, value_len: u32, known: Known }

impl Headers {
    pub fn new() -> Self { Self::default() }
    /// Appends. Pseudo-header fields first, as RFC 9113 §8.3 wants it (the caller keeps the order).
    pub fn push(&mut self, name: &[u8], value: &[u8]) { let _ = (name, value); let _ = &self.bytes; unimplemented!() }
    /// Replaces the first field of this name, removes the others, or appends.
    pub fn set(&mut self, name: &[u8], value: &[u8]) { let _ = (name, value); unimplemented!() }
    /// Removes every field for which `keep` is false.
    pub fn retain(&mut self, keep: impl FnMut(Field<'_>) -> bool) { let _ = keep; unimplemented!() }
    /// The value of the first field of this name. Names are lower case.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> { let _ = name; unimplemented!() }
    /// The value of the first field that is `known`.
    pub fn known(&self, known: Known) -> Option<&[u8]> { let _ = known; unimplemented!() }
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> { self.fields.iter().map(|e| { let s = e.start as usize; let m = s + e.name_len as usize; Field { known: e.known, name: &self.bytes[s..m], value: &self.bytes[m..m + e.value_len as usize] } }) }
    pub fn len(&self) -> usize { self.fields.len() }
    pub fn is_empty(&self) -> bool { self.fields.is_empty() }
    /// RFC 9113 §6.5.2: names, values and 32 bytes a field.
    pub fn list_size(&self) -> usize { self.bytes.len() + 32 * self.fields.len() }
    pub fn clear(&mut self) { self.bytes.clear(); self.fields.clear(); }
    /// `:status` of a response (three digits by the engine's validation).
    pub fn status(&self) -> Option<u16> { unimplemented!() }
}
