//! Client role: the heads of streams that wait to be put on the wire, and how much memory they take: an output that the
//! peer doesn't read may keep them for long. They are never more than its limit on streams has room for.

use std::collections::VecDeque;

use crate::{headers::Headers, stock, stream::Handle};

/// Streams that `open` queued, ascending, with their heads.
#[derive(Debug, Default)]
pub(super) struct Opening {
    waiting: VecDeque<(Handle, Headers)>,
    /// Memory of the heads and, since a quiet connection has no room for two sums, of the blocks that streams keep: trailers
    /// that wait behind a queue, and large heads until they are taken.
    pub(super) blocks: usize,
}

impl Opening {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, at: Handle, head: Headers) {
        self.blocks += head.memory();
        self.waiting.push_back((at, head));
    }

    pub(super) fn pop(&mut self) -> Option<(Handle, Headers)> {
        let first = self.waiting.pop_front()?;
        self.blocks -= first.1.memory();
        Some(first)
    }

    /// Takes a stream out; its head.
    pub(super) fn take(&mut self, at: Handle) -> Option<Headers> {
        let place = self.waiting.iter().position(|(o, _)| *o == at)?;
        let (_, head) = self.waiting.remove(place)?;
        self.blocks -= head.memory();
        Some(head)
    }

    /// Takes the last ones out, so many at most; in their order.
    pub(super) fn drop_last(&mut self, most: usize) -> Vec<Handle> {
        let kept = self.waiting.len().saturating_sub(most);
        let last = self.waiting.drain(kept..).map(|(at, head)| {
            self.blocks -= head.memory();
            stock::recycle(head);
            at
        });
        last.collect()
    }

    pub(super) fn clear(&mut self) {
        while self.pop().is_some() {}
    }

    pub(super) fn handles(&mut self) -> impl Iterator<Item = &mut Handle> {
        self.waiting.iter_mut().map(|(at, _)| at)
    }

    pub(super) fn shrink_to_fit(&mut self) {
        self.waiting.shrink_to_fit();
    }
}
