//! Handshakes of a worker take turns.
//!
//! A handshake is the only expensive computation of TLS (4.6 ms with an RSA-4096 key): one of them at a time computes on a
//! worker, and everything else that is ready has its turn between two.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    task::{Poll, Waker},
};

/// Lets one handshake at a time compute.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    busy: Cell<bool>,
    waiting: RefCell<VecDeque<Waker>>,
}

/// Held while a handshake computes and until everything else that was ready has run.
pub(super) struct Pass<'a>(&'a Gate);

impl Gate {
    pub(super) async fn enter(&self) -> Pass<'_> {
        poll_fn(|cx| {
            if self.busy.replace(true) {
                self.waiting.borrow_mut().push_back(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(Pass(self))
        })
        .await
    }
}

impl Pass<'_> {
    /// Yields, so that what became ready while the handshake computed runs before the next one does.
    pub(super) async fn leave(self) {
        tokio::task::yield_now().await;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.busy.set(false);
        // All are woken: one of them may be gone (its deadline passed), and a lost wake-up would shut the gate for ever.
        for waker in self.0.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}
