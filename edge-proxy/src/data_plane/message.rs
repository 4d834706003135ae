//! Where gRPC messages begin and end in a leg's DATA (gRPC over HTTP/2, "Length-Prefixed-Message": one byte of flags,
//! four of length, then so many bytes).
//!
//! The proxy never looks into messages; it counts them, so that when an upstream fails mid-stream it can stop at the
//! end of a message and tell a status in trailers. Cut inside a message, many clients report a broken message and
//! never read the status.

/// One leg's place in its messages. Frames may be cut anywhere, also inside a length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages {
    /// Bytes of the prefix that came, and its length field so far.
    prefix_len: u8,
    length: u32,
    /// Bytes of the payload still to come.
    payload: u32,
    /// Bytes of this message that came, its prefix too.
    begun: usize,
}

impl Messages {
    /// At the start of a body, which is a boundary.
    pub fn new() -> Self {
        Self::default()
    }

    /// `bytes` went by.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = self.step(bytes);
            bytes = &bytes[taken..];
        }
    }

    /// How many bytes of a message that isn't whole have gone by; 0 at a boundary.
    pub fn begun(&self) -> usize {
        self.begun
    }

    /// Whether the last message is whole.
    fn at_boundary(&self) -> bool {
        self.prefix_len == 0 && self.payload == 0
    }

    /// Takes a prefix, or one byte of it if it comes in parts, or all that there is of a payload; says how many. `bytes`
    /// isn't empty.
    fn step(&mut self, bytes: &[u8]) -> usize {
        let taken = self.take(bytes);
        self.begun = if self.at_boundary() {
            0
        } else {
            self.begun + taken
        };
        taken
    }

    fn take(&mut self, bytes: &[u8]) -> usize {
        if self.payload > 0 {
            let available = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let taken = available.min(self.payload);
            self.payload -= taken;
            return taken as usize;
        }
        if self.prefix_len == 0
            && let Some([_, length @ ..]) = bytes.first_chunk::<PREFIX>()
        {
            self.payload = u32::from_be_bytes(*length);
            return PREFIX;
        }
        if self.prefix_len > 0 {
            self.length = self.length << 8 | u32::from(bytes[0]);
        }
        self.prefix_len += 1;
        if usize::from(self.prefix_len) == PREFIX {
            self.payload = self.length;
            self.prefix_len = 0;
            self.length = 0;
        }
        1
    }
}

/// One byte of flags and four of length.
const PREFIX: usize = 5;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(payload: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&(payload as u32).to_be_bytes());
        // Bytes that would read as a prefix if they were taken for one.
        bytes.resize(5 + payload, 1);
        bytes
    }

    #[test]
    fn a_body_begins_and_ends_at_a_boundary() {
        let mut messages = Messages::new();
        messages.feed(&message(9)[..7]);
        assert_eq!(messages.begun(), 7);
        messages.feed(&message(9)[7..]);
        assert_eq!(messages.begun(), 0);
        messages.feed(&[]);
        assert_eq!(messages.begun(), 0);
        let body = [message(0), message(3), message(70_000)].concat();
        messages.feed(&body);
        assert_eq!(messages.begun(), 0);
    }

    #[test]
    fn an_empty_message_ends_with_its_prefix() {
        let mut messages = Messages::new();
        messages.feed(&message(0)[..4]);
        assert_eq!(messages.begun(), 4);
        messages.feed(&[0]);
        assert_eq!(messages.begun(), 0);
    }

    #[test]
    fn the_longest_length_is_counted() {
        let mut messages = Messages::new();
        messages.feed(&[1, 0xff, 0xff, 0xff, 0xff]);
        messages.feed(&[7; 1000]);
        assert_eq!(messages.payload, u32::MAX - 1000);
        assert_eq!(messages.begun(), 1005);
    }

    proptest! {
        #[test]
        fn cuts_anywhere_change_nothing(
            sizes in prop::collection::vec(0usize..40, 0..6),
            cuts in prop::collection::vec(0usize..300, 0..8),
        ) {
            let ends: Vec<usize> = sizes.iter().scan(0, |at, size| {
                *at += 5 + size;
                Some(*at)
            }).collect();
            let body: Vec<u8> = sizes.iter().flat_map(|size| message(*size)).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(body.len())).collect();
            cuts.sort_unstable();
            let mut messages = Messages::new();
            let mut from = 0;
            for cut in cuts {
                messages.feed(&body[from..cut]);
                from = cut;
                let whole = ends.iter().copied().filter(|end| *end <= cut).max().unwrap_or(0);
                prop_assert_eq!(messages.begun(), cut - whole);
            }
        }
    }
}
