//! Windows and credit, pure (RFC 9113 §5.2, §6.9).
//!
//! A [`SendWindow`] is what the peer lets us send; it may go below zero when the peer shrinks
//! SETTINGS_INITIAL_WINDOW_SIZE. A [`RecvWindow`] is what we let the peer send. Credit that the
//! owner gives is announced once it makes half a window: one WINDOW_UPDATE per half window
//! instead of one per frame, and the other half keeps the peer sending meanwhile.

use crate::frame::MAX_ID;

/// A window would pass 2³¹−1: FLOW_CONTROL_ERROR (RFC 9113 §6.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflow;

/// The initial size of every window (RFC 9113 §6.9.2).
pub(crate) const DEFAULT_WINDOW: u32 = 65_535;

/// What the peer lets us send, for a stream or the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SendWindow(i32);

impl SendWindow {
    /// `initial` is at most 2³¹−1 by the validation of SETTINGS.
    pub(crate) fn new(initial: u32) -> Self {
        Self(initial.min(MAX_ID) as i32)
    }

    /// Bytes that may go now.
    #[inline]
    pub(crate) fn available(self) -> usize {
        self.0.max(0) as usize
    }

    /// `n` bytes went; the caller took no more than [`available`](Self::available).
    #[inline]
    pub(crate) fn take(&mut self, n: usize) {
        debug_assert!(n <= self.available());
        self.0 -= n as i32;
    }

    /// A WINDOW_UPDATE, or the difference of two SETTINGS_INITIAL_WINDOW_SIZE.
    pub(crate) fn shift(&mut self, by: i64) -> Result<(), Overflow> {
        // The sum of an i32 and a difference of two u31 fits an i64 easily; below −2³¹ it can't
        // get, since a window is never above what SETTINGS and updates gave.
        let sum = i64::from(self.0) + by;
        if sum > i64::from(MAX_ID) {
            return Err(Overflow);
        }
        self.0 = sum.max(i64::from(i32::MIN)) as i32;
        Ok(())
    }
}

/// What we let the peer send, for a stream or the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecvWindow {
    /// Bytes that the peer may still send, by what we have announced.
    open: i64,
    /// Credit given by the owner that we haven't announced yet.
    credit: u32,
}

impl RecvWindow {
    pub(crate) fn new(size: u32) -> Self {
        Self {
            open: i64::from(size),
            credit: 0,
        }
    }

    /// A frame of `n` flow-controlled bytes begins. `slack`: bytes that the peer may send beyond
    /// the window, because it hasn't acknowledged a smaller one yet (RFC 9113 §6.9.3).
    #[inline]
    pub(crate) fn take(&mut self, n: usize, slack: u32) -> Result<(), Overflow> {
        let left = self.open - n as i64;
        // A frame without a byte may come whatever the window is (RFC 9113 §6.9.1), also below zero.
        if n > 0 && left < -i64::from(slack) {
            return Err(Overflow);
        }
        self.open = left;
        Ok(())
    }

    /// The owner gives `n` bytes back.
    #[inline]
    pub(crate) fn give(&mut self, n: usize) {
        self.credit += n as u32;
    }

    /// Whether enough credit has come together to be worth a WINDOW_UPDATE.
    #[inline]
    pub(crate) fn due(&self, size: u32) -> bool {
        self.credit > 0 && self.credit >= size / 2
    }

    /// [`due`](Self::due), for the connection's window, which streams of `stream` bytes share. Streams that stand still
    /// hold a part of it; when that is more than half, the others never bring half of it together, and would starve.
    /// So credit is also announced once it is as much as what is still open, and worth an update to a stream.
    #[inline]
    pub(crate) fn due_shared(&self, size: u32, stream: u32) -> bool {
        self.due(size) || (self.due(stream) && i64::from(self.credit) >= self.open)
    }

    /// What the peer may still send, and the credit that isn't announced yet.
    pub(crate) fn parts(&self) -> (i64, u32) {
        (self.open, self.credit)
    }

    /// Announces all credit: the increment of the WINDOW_UPDATE.
    pub(crate) fn announce(&mut self) -> u32 {
        let n = std::mem::take(&mut self.credit);
        self.open += i64::from(n);
        n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_send_window_may_go_below_zero_by_settings_and_comes_back() {
        let mut w = SendWindow::new(DEFAULT_WINDOW);
        w.take(65_000);
        w.shift(-65_535).unwrap();
        assert_eq!(w.available(), 0);
        w.shift(64_999).unwrap();
        assert_eq!(
            w.available(),
            0,
            "one byte below zero is 65 000 − 64 999 short"
        );
        w.shift(466).unwrap();
        assert_eq!(w.available(), 465);
    }

    #[test]
    fn a_send_window_above_the_maximum_is_an_overflow() {
        let mut w = SendWindow::new(MAX_ID);
        assert_eq!(w.shift(1), Err(Overflow));
        assert_eq!(w.shift(0), Ok(()));
        w.take(1);
        assert_eq!(w.shift(1), Ok(()));
    }

    #[test]
    fn a_receive_window_refuses_more_than_announced() {
        let mut w = RecvWindow::new(100);
        assert_eq!(w.take(100, 0), Ok(()));
        assert_eq!(w.take(1, 0), Err(Overflow));
        assert_eq!(w.take(1, 5), Ok(()), "the old, larger window still holds");
        assert_eq!(w.take(5, 5), Err(Overflow));
        assert_eq!(w.take(0, 0), Ok(()), "below zero, and nothing more");
    }

    #[test]
    fn credit_is_announced_at_half_a_window() {
        let mut w = RecvWindow::new(100);
        w.take(100, 0).unwrap();
        w.give(49);
        assert!(!w.due(100));
        w.give(1);
        assert!(w.due(100));
        assert_eq!(w.announce(), 50);
        assert!(!w.due(100));
        assert_eq!(w.take(51, 0), Err(Overflow));
        assert_eq!(w.take(50, 0), Ok(()));
        assert!(!RecvWindow::new(1).due(1), "nothing to announce");
    }

    #[test]
    fn credit_of_a_shared_window_is_announced_however_much_of_it_is_held() {
        let mut w = RecvWindow::new(100);
        w.take(70, 0).unwrap();
        // 70 bytes are held by streams that stand still; the others live on 30.
        for _ in 0..10 {
            w.take(14, 0).unwrap();
            w.give(14);
            assert!(!w.due_shared(100, 20));
            w.take(2, 0).unwrap();
            w.give(2);
            assert!(w.due_shared(100, 20));
            assert!(!w.due_shared(100, 40), "not for a few bytes");
            assert_eq!(w.announce(), 16);
        }
        assert!(!RecvWindow::new(0).due_shared(0, 0), "nothing to announce");
    }
}
