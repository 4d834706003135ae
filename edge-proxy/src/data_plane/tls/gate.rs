//! Handshakes of a worker take turns.
//!
//! A handshake is the only expensive computation of TLS (4.6 ms with an RSA-4096 key): one of them at a time computes on a
//! worker, and everything else that is ready has its turn between two. Those that wait are served in the order in which
//! they came, and each pass wakes the next one only: there may be hundreds. One that is given up meanwhile (its deadline
//! passed) hands its turn on, as tokio's semaphore promises.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Lets one handshake at a time compute.
#[derive(Debug)]
pub(crate) struct Gate(Semaphore);

/// Held while a handshake computes and until everything else that was ready has run.
pub(super) struct Pass<'a> {
    _permit: Option<SemaphorePermit<'a>>,
}

impl Gate {
    pub(super) async fn enter(&self) -> Pass<'_> {
        Pass {
            // Always there: an error says that the semaphore was closed, and this one never is.
            _permit: self.0.acquire().await.ok(),
        }
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self(Semaphore::new(1))
    }
}

impl Pass<'_> {
    /// Yields, so that what became ready while the handshake computed runs before the next one does.
    pub(super) async fn leave(self) {
        tokio::task::yield_now().await;
    }
}
