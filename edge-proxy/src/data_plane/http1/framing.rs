//! Where heads and bodies end in what a client sends: enough of RFC 9112 to tell bytes of one request from those of the
//! next one. Pure.
//!
//! hyper parses all of it again, and is the one that refuses. So nothing is judged here: what can't be right goes to hyper
//! as a part of what it seems to belong to, and is the last that it takes.

/// Follows the bytes of one direction, in whatever pieces they come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framing {
    part: Part,
    line: Line,
}

/// Where in a head, or in trailers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Before a head's first line, which empty ones may come before (RFC 9112 §2.2).
    First,
    /// At the beginning of another.
    Empty,
    /// Within one.
    Text,
}

/// ```text
/// Head ──▶ Length ──────────────────────────▶ Head …
///   └────▶ Size ──▶ Data ──▶ Size … ──▶ Trailers ──▶ Head …
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A head, or the empty lines before one.
    Head,
    /// So many bytes of a body are to come.
    Length(u64),
    /// The line with a chunk's size: what it says so far, `None` for more than there is; whether its digits are over.
    Size { size: Option<u64>, over: bool },
    /// So many bytes of a chunk are to come, with its line end.
    Data(u64),
    /// The lines behind the last chunk.
    Trailers,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self {
            part: Part::Head,
            line: Line::First,
        }
    }

    /// The head that ended announces a body of `length` bytes, or of chunks.
    pub(super) fn body(&mut self, length: Option<u64>) {
        self.part = match length {
            Some(0) => Part::Head,
            Some(length) => Part::Length(length),
            None => SIZE,
        };
    }

    pub(super) fn in_body(&self) -> bool {
        self.part != Part::Head
    }

    /// How many of `bytes` are of the head or body that is under way: less than all if it ends in them. Empty lines
    /// before a head belong to it: hyper begins anew with each part that it gets.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            let (taken, next) = match self.part {
                Part::Head | Part::Trailers => match self.lines(rest) {
                    Some(end) => {
                        self.part = Part::Head;
                        return at + end;
                    }
                    None => return bytes.len(),
                },
                Part::Length(left) => {
                    let (taken, left) = skip(rest, left);
                    if left == 0 {
                        self.part = Part::Head;
                        return at + taken;
                    }
                    (taken, Part::Length(left))
                }
                Part::Data(left) => match skip(rest, left) {
                    (taken, 0) => (taken, SIZE),
                    (taken, left) => (taken, Part::Data(left)),
                },
                Part::Size { size, over } => {
                    let next = after(size, over, rest[0]);
                    if next == Part::Trailers {
                        self.line = Line::Empty;
                    }
                    (1, next)
                }
            };
            at += taken;
            self.part = next;
        }
        bytes.len()
    }

    /// Where the lines end that an empty one ends, if it is in `bytes`.
    fn lines(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate() {
            self.line = match (byte, self.line) {
                (b'\n', Line::Empty) => {
                    self.line = Line::First;
                    return Some(at + 1);
                }
                (b'\n', Line::Text) => Line::Empty,
                (b'\n' | b'\r', line) => line,
                _ => Line::Text,
            };
        }
        None
    }
}

/// How many of `bytes` are among the `left` next ones, and how many of those are still to come.
fn skip(bytes: &[u8], left: u64) -> (usize, u64) {
    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (taken, left - taken as u64)
}

/// The part after a byte of a chunk's size line (RFC 9112 §7.1): extensions are what is behind the digits.
fn after(size: Option<u64>, over: bool, byte: u8) -> Part {
    match (byte, char::from(byte).to_digit(16)) {
        (b'\n', _) => match size {
            Some(0) => Part::Trailers,
            // With the line end behind the data.
            Some(size) => Part::Data(size.saturating_add(2)),
            // hyper ends the connection.
            None => Part::Data(u64::MAX),
        },
        (_, Some(digit)) if !over => {
            let size = size.and_then(|size| size.checked_mul(16)?.checked_add(digit.into()));
            Part::Size { size, over }
        }
        _ => Part::Size { size, over: true },
    }
}

/// The beginning of a chunk.
const SIZE: Part = Part::Size {
    size: Some(0),
    over: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes of `text` are of the body that begins there, if they come in pieces of `piece`.
    fn taken(length: Option<u64>, text: &str, piece: usize) -> usize {
        let mut framing = Framing::new();
        framing.body(length);
        let mut taken = 0;
        for piece in text.as_bytes().chunks(piece) {
            taken += framing.take(piece);
            if !framing.in_body() {
                break;
            }
        }
        taken
    }

    #[test]
    fn a_body_ends_where_it_says_however_it_comes() {
        let next = "GET / HTTP/1.1\r\nho";
        for (length, body) in [
            (Some(3), "a\r\n"),
            (None, "0\r\n\r\n"),
            (None, "3\r\na\r\n\r\n0\r\n\r\n"),
            (None, "0000A\r\n0\r\n\r\n0\r\n\r\n\r\n0;last=1\r\n\r\n"),
            (
                None,
                "a;x=\"y;0\"\r\n0123456789\r\n1 \t;e\r\nx\r\n00\r\nx-trailer: 0\r\ny: 1\r\n\r\n",
            ),
        ] {
            let text = format!("{body}{next}");
            for piece in 1..=text.len() {
                assert_eq!(taken(length, &text, piece), body.len(), "{body:?} {piece}");
            }
        }
    }

    #[test]
    fn heads_end_with_an_empty_line_one_by_one() {
        let text = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n\r\nGET / HTTP/1.1\nhost: a\n\nGET";
        let mut framing = Framing::new();
        let mut rest = &text[..];
        let mut heads = Vec::new();
        while !rest.is_empty() {
            let n = framing.take(rest);
            heads.push(n);
            rest = &rest[n..];
            assert!(!framing.in_body());
        }
        assert_eq!(heads, [27, 26, 3]);
    }

    #[test]
    fn no_body_is_none() {
        let mut framing = Framing::new();
        framing.body(Some(0));
        assert!(!framing.in_body());
    }

    #[test]
    fn a_size_above_all_numbers_is_never_over() {
        for size in ["fffffffffffffffff", "ffffffffffffffff"] {
            let text = format!("{size}\r\n{}0\r\n\r\n", "x".repeat(1000));
            assert_eq!(taken(None, &text, 7), text.len(), "{size}");
        }
    }

    proptest::proptest! {
        /// Never more than there is, and something of anything.
        #[test]
        fn any_bytes_are_taken(bytes in proptest::collection::vec(0_u8.., 0..200), chunked in 0..2_u8) {
            let mut framing = Framing::new();
            framing.body((chunked == 0).then_some(50));
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let n = framing.take(rest);
                proptest::prop_assert!(0 < n && n <= rest.len());
                rest = &rest[n..];
            }
        }
    }
}
