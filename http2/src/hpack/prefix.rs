//! What the last ordinary block that we sent began with, and as what bytes.
//!
//! The blocks of one connection are much alike, and what differs (a deadline, an id) mostly stands at the end: so the
//! fields that a block begins with in common with one before are not looked up one by one, but compared in one piece,
//! and their bytes copied. That holds as long as the table doesn't change, for then every index means what it meant.
//!
//! It is the other side of the decoder's [`memo`](super::memo). A field that might enter the table when it comes again
//! isn't remembered, nor what is behind it: it would never be asked again.

use super::memo::common;
use crate::headers::{Headers, Shape};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Prefix {
    /// The fields, name and value, one behind the other.
    lines: Vec<u8>,
    /// As what they went out.
    block: Vec<u8>,
    marks: Vec<Mark>,
    /// The version of the table that it was encoded by.
    version: u32,
    /// Blocks in a row that had less than half of it in common.
    misses: u8,
}

/// A field, but for its bytes, and where it ends in the block.
#[derive(Clone, Debug)]
struct Mark {
    shape: Shape,
    block_end: u32,
}

impl Prefix {
    /// Appends to `out` what `headers` has in common with the remembered block; says how many fields those are.
    pub(super) fn recall(&mut self, headers: &Headers, version: u32, out: &mut Vec<u8>) -> usize {
        if version != self.version || self.marks.is_empty() {
            self.misses = self.misses.saturating_add(1);
            return 0;
        }
        let shapes = headers.shapes().zip(&self.marks);
        let fields = shapes
            .take_while(|(shape, mark)| *shape == mark.shape)
            .count();
        let equal = common(headers.bytes(), &self.lines);
        let same = self.marks[..fields].partition_point(|mark| mark.shape.end() <= equal);
        self.misses = if same * 2 < self.marks.len() {
            self.misses.saturating_add(1)
        } else {
            0
        };
        if let Some(last) = self.marks[..same].last() {
            out.extend_from_slice(&self.block[..last.block_end as usize]);
        }
        same
    }

    /// Whether the block that comes is to be remembered.
    pub(super) fn wants(&self) -> bool {
        self.misses >= MISSES
    }

    /// Begins to remember a block.
    pub(super) fn begin(&mut self) {
        self.marks.clear();
        self.misses = 0;
    }

    /// A field that goes out the same each time, while the table does: up to here it is so many bytes of the block.
    pub(super) fn field(&mut self, shape: Shape, block_end: usize) {
        if shape.end().max(block_end) <= LONGEST {
            self.marks.push(Mark {
                shape,
                block_end: block_end as u32,
            });
        }
    }

    /// The block is complete; `Some`: by this version of the table before and after.
    pub(super) fn complete(&mut self, headers: &Headers, block: &[u8], version: Option<u32>) {
        let Some((version, last)) = version.zip(self.marks.last()) else {
            self.marks.clear();
            return;
        };
        self.version = version;
        self.lines.clear();
        self.lines
            .extend_from_slice(&headers.bytes()[..last.shape.end()]);
        self.block.clear();
        self.block
            .extend_from_slice(&block[..last.block_end as usize]);
    }
}

/// A block is remembered after so many in a row that had little in common with the one that is.
const MISSES: u8 = 3;
/// No more of it than this: it is memory of every connection.
const LONGEST: usize = 512;
/// Shorter blocks, trailers, aren't worth it, and would push out the heads that they come in turn with.
pub(super) const FEWEST: usize = 3;
