//! An input as a sequence of steps: a byte that says what, then its arguments. An input that ends goes on with zeros.

/// What is left of it.
pub(crate) struct Steps<'a>(pub(crate) &'a [u8]);

impl<'a> Steps<'a> {
    /// 0 behind the end.
    pub(crate) fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    /// 0 behind the end.
    /// Their number, then they.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let n = usize::from(self.byte()).min(self.0.len());
        let (bytes, rest) = self.0.split_at(n);
        self.0 = rest;
        bytes
    }

    /// The number of one of a few streams.
    pub(crate) fn stream(&mut self) -> u32 {
        u32::from(self.byte() % 16)
    }
}
