//! An RPC's two bodies, whose bytes are counted by the server's [`Budget`].
//!
//! The request's DATA counts as it is read: all of an RPC's, for what its handler has kept of it
//! isn't known here. (So a service whose requests are streams without an end needs another count;
//! there is none here but reflection, with small questions.) Above the limit the handler is told
//! by an error in its stream, the rest isn't read, and whatever the handler makes of it, the RPC's
//! status is RESOURCE_EXHAUSTED.
//!
//! The response counts what the handler has made in one go, until h2 has written the last byte of
//! it: each piece that goes to h2 takes its part of the count along, as its owner. What the request
//! counted is the response's as soon as the handler has let go of the request: one is made of the
//! other, and so an RPC whose request was let in is rarely refused afterwards.
//!
//! The RPC itself counts as long as there is anything of either body, in h2's own buffers, too.
//!
//! A large response is handed out by pieces, each when h2 has room for it. Otherwise the RPC would
//! seem to be over, for its deadline and the log, while all of it waits for the client's window.
//!
//! What counts has to move, or a client could keep others out for as long as it likes, with a byte
//! now and then: see [`due`]. DEADLINE_EXCEEDED ends a request that doesn't come whole in its time,
//! and a response that isn't taken in its own. The pieces of the latter are copies: so the rest can
//! go, whatever h2 still has to write. Who answers before the request has ended takes one message
//! after the other, and may wait for the next one for ever.

use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use thiserror::Error;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;
use tonic::codegen::StdError;

use crate::budget::{Budget, Charge, Exhausted, FREE};

/// Both sides of one RPC, whose request is `body`; `rpc` is its own charge, if it has one.
pub(crate) fn counted<B>(budget: &Budget, rpc: Option<Charge>, body: B) -> (Upload<B>, Download) {
    let shared = Arc::new(Shared {
        left: Mutex::new(budget.message()),
        refused: OnceLock::new(),
        answered: AtomicBool::new(false),
        _rpc: rpc,
    });
    let upload = Upload {
        body: Some(body),
        read: 0,
        messages: Messages::default(),
        pace: None,
        charge: budget.message(),
        shared: shared.clone(),
    };
    let download = Download {
        small: Bytes::new(),
        large: None,
        shared,
    };
    (upload, download)
}

#[derive(Debug)]
struct Shared {
    /// What the request counted, from the moment that the handler has let go of it.
    left: Mutex<Charge>,
    /// Set by the body that was refused first.
    refused: OnceLock<Refused>,
    /// Set when the handler has answered, be the request under way or not.
    answered: AtomicBool,
    /// Until nobody has a part of the RPC any more.
    _rpc: Option<Charge>,
}

impl Shared {
    fn left(&self) -> MutexGuard<'_, Charge> {
        lock(&self.left)
    }
}

/// Why an RPC has to end for what its bodies count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
enum Refused {
    #[error(transparent)]
    Exhausted(#[from] Exhausted),
    #[error(
        "the request did not come whole within {} s and one more for each {} KiB of it; \
         send less at a time, or faster",
        GRACE.as_secs(),
        A_SECOND / 1024
    )]
    SlowRequest,
    #[error(
        "the response was not taken within {} s and one more for each {} KiB of it; \
         read faster, or ask for less",
        GRACE.as_secs(),
        A_SECOND / 1024
    )]
    SlowReader,
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Exhausted(exhausted) => exhausted.into(),
            Refused::SlowRequest | Refused::SlowReader => {
                Self::deadline_exceeded(refused.to_string())
            }
        }
    }
}

/// A request's body, as the handler gets it.
#[derive(Debug)]
pub(crate) struct Upload<B> {
    /// None once it was refused: then nobody reads the rest, and hyper resets the stream.
    body: Option<B>,
    /// Bytes so far.
    read: usize,
    messages: Messages,
    /// Since what counts was waited for.
    pace: Option<Pace>,
    charge: Charge,
    shared: Arc<Shared>,
}

impl<B> Upload<B> {
    fn count(&mut self, data: &[u8]) -> Result<(), Exhausted> {
        self.read = self.read.saturating_add(data.len());
        self.charge.set(self.read)?;
        if self.messages.take(data) && self.is_answered() {
            self.pace = None;
        }
        Ok(())
    }

    /// When nothing has come for too long, while what has come counts.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let answered = self.is_answered();
        if self.read <= FREE || (answered && self.messages.under_way == 0) {
            self.pace = None;
            return Poll::Pending;
        }
        let moved = if answered {
            self.messages.under_way
        } else {
            self.read as u64
        };
        self.pace.get_or_insert_with(Pace::new).poll(moved, cx)
    }

    fn is_answered(&self) -> bool {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Its first refusal is its last: nothing is read after it.
    fn refuse(&mut self, refused: Refused) -> StdError {
        let _ = self.shared.refused.set(refused);
        self.body = None;
        Status::from(refused).into()
    }
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
        let Poll::Ready(frame) = Pin::new(body).poll_frame(cx).map_err(Into::into)? else {
            ready!(this.poll_late(cx));
            return Poll::Ready(Some(Err(this.refuse(Refused::SlowRequest))));
        };
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref)
            && let Err(exhausted) = this.count(data)
        {
            return Poll::Ready(Some(Err(this.refuse(exhausted.into()))));
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
    /// What the handler has given and nobody has taken yet, if that isn't much.
    small: Bytes,
    /// If it is.
    large: Option<Large>,
    shared: Arc<Shared>,
}

impl Download {
    /// The handler has answered.
    pub(crate) fn answered(&self) {
        self.shared.answered.store(true, Ordering::Relaxed);
    }

    /// Takes what the handler gives; it has to be taken by [`Self::piece`] before the next.
    pub(crate) fn put(&mut self, data: Bytes) -> Result<(), Exhausted> {
        if data.len() > FREE {
            let mut charge = self.shared.left().take();
            charge.set(data.len())?;
            self.large = Some(Large::new(data, charge, self.shared.clone()));
        } else {
            self.small = data;
        }
        Ok(())
    }

    /// The next bytes to go out.
    pub(crate) fn piece(&mut self) -> Option<Bytes> {
        let (data, charge) = match &self.large {
            None => (mem::take(&mut self.small), None),
            Some(large) => {
                let (data, charge, is_last) = large.piece();
                if is_last {
                    self.large = None;
                }
                (data, Some(charge))
            }
        };
        if data.is_empty() {
            return None;
        }
        Some(Bytes::from_owner(Counted {
            data,
            _charge: charge,
            _shared: self.shared.clone(),
        }))
    }

    /// Drops what hasn't gone out.
    pub(crate) fn clear(&mut self) {
        self.small = Bytes::new();
        self.large = None;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.small.is_empty() && self.large.is_none()
    }

    /// Why the RPC has to end, if one of its bodies was refused.
    pub(crate) fn refusal(&self) -> Result<(), Status> {
        match self.shared.refused.get() {
            Some(refused) => Err((*refused).into()),
            None => Ok(()),
        }
    }
}

/// What is left of a large part of a response.
#[derive(Debug)]
struct Large {
    rest: Arc<Mutex<Rest>>,
    /// Empties it if it isn't taken in its time.
    _watch: JoinSet<()>,
}

#[derive(Debug)]
struct Rest {
    data: Bytes,
    /// Bytes that were taken.
    taken: u64,
    charge: Charge,
    shared: Arc<Shared>,
}

impl Large {
    fn new(data: Bytes, charge: Charge, shared: Arc<Shared>) -> Self {
        let rest = Arc::new(Mutex::new(Rest {
            data,
            taken: 0,
            charge,
            shared,
        }));
        // hyper, while there is no window, doesn't ask for more, and nobody here could tell the time.
        let mut watch = JoinSet::new();
        watch.spawn(watch_over(Arc::downgrade(&rest)));
        Self {
            rest,
            _watch: watch,
        }
    }

    /// The next bytes to go out with their part of the charge, and whether they are the last.
    fn piece(&self) -> (Bytes, Charge, bool) {
        let mut rest = lock(&self.rest);
        let length = rest.data.len().min(PIECE);
        let piece = Bytes::copy_from_slice(&rest.data.split_to(length));
        rest.taken += length as u64;
        (piece, rest.charge.split(length), rest.data.is_empty())
    }
}

impl Rest {
    /// When more of it has to be taken. If too little was by now, there is nothing left.
    fn due(&mut self, began: Instant, now: Instant) -> Option<Instant> {
        let due = due(began, self.taken);
        if now < due {
            return Some(due);
        }
        let _ = self.shared.refused.set(Refused::SlowReader);
        self.data = Bytes::new();
        // Less always fits.
        let _ = self.charge.set(0);
        None
    }
}

async fn watch_over(rest: Weak<Mutex<Rest>>) {
    let began = Instant::now();
    while let Some(kept) = rest.upgrade() {
        let due = lock(&kept).due(began, Instant::now());
        drop(kept);
        match due {
            Some(due) => sleep_until(due).await,
            None => return,
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

/// Where in its messages a request is: each is a flag, a length of four bytes, and so many bytes
/// ([gRPC over HTTP/2], "Length-Prefixed-Message").
///
/// [gRPC over HTTP/2]: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
#[derive(Debug, Default)]
struct Messages {
    /// Bytes of the message under way, with its prefix; 0 between two.
    under_way: u64,
    /// What the prefix says, as far as it is here.
    length: u64,
}

impl Messages {
    /// Follows the next bytes; whether a message ended in them.
    fn take(&mut self, mut data: &[u8]) -> bool {
        let mut ended = false;
        while let Some((byte, behind)) = data.split_first() {
            if self.under_way < PREFIX {
                if self.under_way > 0 {
                    self.length = self.length << 8 | u64::from(*byte);
                }
                self.under_way += 1;
                data = behind;
            } else {
                let left = PREFIX + self.length - self.under_way;
                let n = usize::try_from(left).map_or(data.len(), |left| left.min(data.len()));
                self.under_way += n as u64;
                data = &data[n..];
            }
            if self.under_way >= PREFIX && self.under_way == PREFIX + self.length {
                *self = Self::default();
                ended = true;
            }
        }
        ended
    }
}

/// How long bytes are waited for.
#[derive(Debug)]
struct Pace {
    began: Instant,
    late: Pin<Box<Sleep>>,
}

impl Pace {
    fn new() -> Self {
        let began = Instant::now();
        Self {
            began,
            late: Box::pin(sleep_until(due(began, 0))),
        }
    }

    /// Ready when `moved` bytes are too few.
    fn poll(&mut self, moved: u64, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.late.as_mut().poll(cx));
            let due = due(self.began, moved);
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            // Not with each byte that comes: a timer costs more than a byte.
            self.late.as_mut().reset(due);
        }
    }
}

/// When more than `moved` bytes have to have moved, which began to count `began`.
fn due(began: Instant, moved: u64) -> Instant {
    began + GRACE + Duration::from_secs(moved / A_SECOND)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Numbers, and bytes that are whole at any time: no panic leaves them half set.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The largest piece of a response: a DATA frame, as long as the client doesn't ask for larger ones
/// (RFC 9113 §6.5.2).
const PIECE: usize = 16 * 1024;

/// Bytes of a message before its own.
const PREFIX: u64 = 5;

/// A link that is down for a while, and its retransmissions.
const GRACE: Duration = Duration::from_secs(30);

/// So many bytes give a second more: 128 kbit/s, which the slowest mobile links have.
const A_SECOND: u64 = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::sync::mpsc;
    use tokio::time::{sleep, timeout};
    use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
    use tonic::Code;

    use super::*;

    type Sender = mpsc::UnboundedSender<Vec<u8>>;

    /// An RPC whose request is what is sent here.
    fn rpc(
        budget: &Budget,
    ) -> (
        Sender,
        Upload<impl http_body::Body<Data = Bytes, Error = Infallible> + Unpin>,
        Download,
    ) {
        let (sender, receiver) = mpsc::unbounded_channel::<Vec<u8>>();
        let frames = UnboundedReceiverStream::new(receiver);
        let body = StreamBody::new(frames.map(|data| Ok(Frame::data(data.into()))));
        let (upload, download) = counted(budget, None, body);
        (sender, upload, download)
    }

    /// Reads until the request is refused; how many bytes came before.
    async fn read<B>(upload: &mut Upload<B>) -> usize
    where
        B: http_body::Body<Data = Bytes, Error = Infallible> + Unpin,
    {
        let mut read = 0;
        while let Some(Ok(frame)) = upload.frame().await {
            read += frame.into_data().unwrap().len();
        }
        read
    }

    fn code(download: &Download) -> Option<Code> {
        download.refusal().err().map(|status| status.code())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_counts_has_its_time_to_be_whole() {
        let budget = Budget::new(1 << 20);
        for (sent, seconds) in [(FREE + 1, 30), (16 * 1024, 31), (500_000, 60)] {
            let (sender, mut upload, download) = rpc(&budget);
            let began = Instant::now();
            sender.send(vec![0; sent]).unwrap();
            assert_eq!(read(&mut upload).await, sent);
            assert_eq!(began.elapsed().as_secs(), seconds, "{sent}");
            assert_eq!(code(&download), Some(Code::DeadlineExceeded));
        }
        assert_eq!(budget.used(), 0);
        // What doesn't count keeps nobody out.
        let (sender, mut upload, download) = rpc(&budget);
        sender.send(vec![0; FREE]).unwrap();
        timeout(HOUR, read(&mut upload)).await.unwrap_err();
        assert_eq!(code(&download), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_now_and_then_is_too_slow_and_a_slow_link_is_not() {
        let budget = Budget::new(1 << 20);
        for (bytes, comes) in [(1, false), (16 * 1024, true)] {
            let (sender, mut upload, download) = rpc(&budget);
            tokio::spawn(async move {
                sender.send(vec![0; FREE + 1]).unwrap();
                for _ in 0..60 {
                    sleep(Duration::from_secs(1)).await;
                    // Nobody takes them any more where it is too slow.
                    let _ = sender.send(vec![0; bytes]);
                }
            });
            let began = Instant::now();
            let whole = FREE + 1 + 60 * bytes;
            assert_eq!(read(&mut upload).await == whole, comes, "{bytes}");
            let seconds = if comes { 60 } else { 30 };
            assert_eq!(began.elapsed().as_secs(), seconds, "{bytes}");
            assert_eq!(code(&download).is_none(), comes, "{bytes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_say_nothing_between_its_messages() {
        let budget = Budget::new(1 << 20);
        let (sender, mut upload, download) = rpc(&budget);
        let mut message = vec![0, 0, 0, 0x4e, 0x20];
        message.resize(5 + 20_000, 0);
        for together in [[&message[..], &message].concat(), message.clone()] {
            sender.send(together).unwrap();
            let _ = upload.frame().await;
            download.answered();
            timeout(HOUR, upload.frame()).await.unwrap_err();
        }
        // But not in the middle of one.
        sender.send(message[..100].to_vec()).unwrap();
        let began = Instant::now();
        assert_eq!(read(&mut upload).await, 100);
        assert_eq!(began.elapsed().as_secs(), 30);
        assert_eq!(code(&download), Some(Code::DeadlineExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_counts_has_its_time_to_be_taken() {
        let budget = Budget::new(1 << 20);
        let (_sender, _upload, mut download) = rpc(&budget);
        download.put(vec![0; 1 << 20].into()).unwrap();
        // Who takes all of it in a minute is in time.
        while let Some(piece) = download.piece() {
            assert_eq!(piece.len(), PIECE);
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!((code(&download), budget.used()), (None, 0));

        download.put(vec![0; 1 << 20].into()).unwrap();
        let kept = [download.piece().unwrap(), download.piece().unwrap()];
        sleep(Duration::from_millis(31_900)).await;
        assert_eq!(budget.used(), (1 << 20) - FREE);
        sleep(Duration::from_millis(200)).await;
        assert_eq!(budget.used(), 2 * PIECE, "what h2 still has");
        assert!(!download.is_empty(), "the end is still to be said");
        assert_eq!(download.piece(), None);
        assert_eq!(code(&download), Some(Code::DeadlineExceeded));
        drop(kept);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn messages_end_where_their_prefix_says_however_they_come() {
        let text = [
            &[0, 0, 0, 1, 0][..],
            &[7; 256],
            &[1, 0, 0, 0, 0],
            &[0, 0, 0],
        ]
        .concat();
        for piece in 1..=text.len() {
            let mut messages = Messages::default();
            let ends = text.chunks(piece).filter(|data| messages.take(data));
            assert!((1..=2).contains(&ends.count()), "{piece}");
            assert_eq!(messages.under_way, 3, "{piece}");
        }
        let mut longest = Messages::default();
        assert!(!longest.take(&[0xff; 1000]));
        assert_eq!(longest.length, u64::from(u32::MAX));
    }

    #[test]
    fn who_is_late_is_told_what_to_do() {
        assert_eq!(
            Status::from(Refused::SlowRequest).message(),
            "the request did not come whole within 30 s and one more for each 16 KiB of it; \
             send less at a time, or faster"
        );
        assert_eq!(
            Status::from(Refused::SlowReader).message(),
            "the response was not taken within 30 s and one more for each 16 KiB of it; \
             read faster, or ask for less"
        );
    }

    const HOUR: Duration = Duration::from_secs(3600);
}
