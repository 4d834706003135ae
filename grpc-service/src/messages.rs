//! An RPC's two bodies, whose bytes are counted by the server's [`Budget`].
//!
//! The request's DATA counts as it is read: all of an RPC's, for what its handler has kept of it
//! isn't known here. (So a service whose requests are streams without an end needs another count;
//! there is none here but reflection, with small questions.) Above the limit the handler is told
//! by an error in its stream, the rest isn't read, and whatever the handler makes of it, the RPC's
//! status is RESOURCE_EXHAUSTED.
//!
//! The response counts what the handler has made in one go, until h2 has written the last byte of
//! it: the count goes with the bytes, as their owner. What the request counted is the response's
//! as soon as the handler has let go of the request: one is made of the other, and so an RPC whose
//! request was let in is rarely refused afterwards.
//!
//! The RPC itself counts as long as there is anything of either body, in h2's own buffers, too.
//!
//! A large response is handed out by pieces, each when h2 has room for it. Otherwise the RPC would
//! seem to be over, for its deadline and the log, while all of it waits for the client's window.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::codegen::StdError;

use crate::budget::{Budget, Charge, Exhausted, FREE};

/// Both sides of one RPC, whose request is `body`; `rpc` is its own charge, if it has one.
pub(crate) fn counted<B>(budget: &Budget, rpc: Option<Charge>, body: B) -> (Upload<B>, Download) {
    let shared = Arc::new(Shared {
        left: Mutex::new(budget.message()),
        refused: OnceLock::new(),
        _rpc: rpc,
    });
    let upload = Upload {
        body: Some(body),
        read: 0,
        charge: budget.message(),
        shared: shared.clone(),
    };
    let download = Download {
        rest: Bytes::new(),
        shared,
    };
    (upload, download)
}

#[derive(Debug)]
struct Shared {
    /// What the request counted, from the moment that the handler has let go of it.
    left: Mutex<Charge>,
    /// Set by the request when the budget has refused it.
    refused: OnceLock<Exhausted>,
    /// Until nobody has a part of the RPC any more.
    _rpc: Option<Charge>,
}

impl Shared {
    fn left(&self) -> MutexGuard<'_, Charge> {
        // A charge is a number: no panic leaves it half set.
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's body, as the handler gets it.
#[derive(Debug)]
pub(crate) struct Upload<B> {
    /// None once it was refused: then nobody reads the rest, and hyper resets the stream.
    body: Option<B>,
    /// Bytes so far.
    read: usize,
    charge: Charge,
    shared: Arc<Shared>,
}

impl<B> http_body::Body for Upload<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<StdError>,
{
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx).map_err(Into::into)?);
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref) {
            this.read = this.read.saturating_add(data.len());
            if let Err(exhausted) = this.charge.set(this.read) {
                // Its first refusal is its last: nothing is read after it.
                let _ = this.shared.refused.set(exhausted);
                this.body = None;
                return Poll::Ready(Some(Err(Status::from(exhausted).into())));
            }
        }
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(B::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, B::size_hint)
    }
}

impl<B> Drop for Upload<B> {
    fn drop(&mut self) {
        *self.shared.left() = self.charge.take();
    }
}

/// The bytes of a response on their way out; as long as it lives, the request counts.
#[derive(Debug)]
pub(crate) struct Download {
    /// What the handler has given and nobody has taken yet.
    rest: Bytes,
    shared: Arc<Shared>,
}

impl Download {
    /// Takes what the handler gives; it has to be taken by [`Self::piece`] before the next.
    pub(crate) fn put(&mut self, data: Bytes) -> Result<(), Exhausted> {
        let mut charge = None;
        if data.len() > FREE {
            let mut large = self.shared.left().take();
            large.set(data.len())?;
            charge = Some(large);
        }
        self.rest = Bytes::from_owner(Counted {
            data,
            _charge: charge,
            _shared: self.shared.clone(),
        });
        Ok(())
    }

    /// The next bytes to go out.
    pub(crate) fn piece(&mut self) -> Option<Bytes> {
        let length = self.rest.len().min(PIECE);
        (length > 0).then(|| self.rest.split_to(length))
    }

    /// Drops what hasn't gone out.
    pub(crate) fn clear(&mut self) {
        self.rest = Bytes::new();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Why the RPC has to end, if the budget has refused its request.
    pub(crate) fn refusal(&self) -> Result<(), Status> {
        match self.shared.refused.get() {
            Some(exhausted) => Err((*exhausted).into()),
            None => Ok(()),
        }
    }
}

/// Bytes that count until the last slice of them is gone, be it in h2's own buffers.
struct Counted {
    data: Bytes,
    /// A large one's.
    _charge: Option<Charge>,
    /// The RPC's.
    _shared: Arc<Shared>,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// The largest piece of a response: a DATA frame, as long as the client doesn't ask for larger ones
/// (RFC 9113 §6.5.2).
const PIECE: usize = 16 * 1024;
