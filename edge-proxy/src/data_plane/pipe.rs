//! A connection without a kernel: two ends, and a lane each way between them.
//!
//! What one end writes is *sent*; it has *arrived* when somebody has carried it over, and only then can the other end
//! read it. [`direct`] carries everything at once. [`pair`] leaves it to who holds the [`Line`]: how many bytes at a time, when, or
//! never, and whether the connection breaks under both. So a test decides, byte by byte, what a network would.
//!
//! An end behaves as a socket does where the data path can tell: a full lane takes no more bytes, one that is dropped
//! ends what the peer reads, and resets it if bytes were left unread; after a reset writes fail, and reads do once what
//! had arrived is read.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// One end of a connection.
#[derive(Debug)]
pub struct PipeEnd {
    inbound: Rc<RefCell<Lane>>,
    outbound: Rc<RefCell<Lane>>,
}

/// What lies between two ends, as the network sees it.
#[derive(Clone, Debug)]
pub struct Line {
    lanes: [Rc<RefCell<Lane>>; 2],
}

/// One direction.
#[derive(Debug)]
struct Lane {
    sent: VecDeque<u8>,
    arrived: VecDeque<u8>,
    /// Sent and arrived bytes together: above it the writer waits.
    capacity: usize,
    /// Bytes arrive as they are sent.
    direct: bool,
    /// The writer has ended its half, and the reader may know.
    ended: bool,
    end_arrived: bool,
    broken: Option<io::ErrorKind>,
    /// Nobody reads any more.
    deaf: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    carrier: Option<Waker>,
}

/// Two ends, each of whose lanes holds `capacity` bytes; everything arrives at once.
pub fn direct(capacity: usize) -> (PipeEnd, PipeEnd) {
    let (one, other, line) = pair(capacity);
    for lane in line.lanes {
        lane.borrow_mut().direct = true;
    }
    (one, other)
}

/// Two ends, each of whose lanes holds `capacity` bytes, and the line that carries them: lane 0 is the first end's to
/// write.
pub fn pair(capacity: usize) -> (PipeEnd, PipeEnd, Line) {
    let lanes = [0, 1].map(|_| Rc::new(RefCell::new(Lane::new(capacity))));
    let end = |inbound: usize, outbound: usize| PipeEnd {
        inbound: lanes[inbound].clone(),
        outbound: lanes[outbound].clone(),
    };
    (
        end(1, 0),
        end(0, 1),
        Line {
            lanes: lanes.clone(),
        },
    )
}

impl Line {
    /// Waits until there is something to carry on this lane: how many bytes, 0 for the end alone. `None`: nothing will
    /// ever come any more.
    pub async fn laden(&self, lane: usize) -> Option<usize> {
        poll_fn(|cx| {
            let mut lane = self.lanes[lane].borrow_mut();
            if lane.broken.is_some() || lane.deaf || lane.end_arrived {
                return Poll::Ready(None);
            }
            if !lane.sent.is_empty() || lane.ended {
                return Poll::Ready(Some(lane.sent.len()));
            }
            lane.carrier = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Carries so many bytes, and the end behind the last of them. Shows `look` what arrives.
    pub fn carry(&self, lane: usize, bytes: usize, look: impl FnOnce(&[u8])) {
        let mut lane = self.lanes[lane].borrow_mut();
        let bytes = bytes.min(lane.sent.len());
        let carried: Vec<u8> = lane.sent.drain(..bytes).collect();
        look(&carried);
        lane.arrived.extend(carried);
        if lane.sent.is_empty() && lane.ended {
            lane.end_arrived = true;
        }
        wake(&mut lane.reader);
    }

    /// Breaks the connection under both ends: what was on its way is lost.
    pub fn cut(&self, with: io::ErrorKind) {
        for lane in &self.lanes {
            lane.borrow_mut().break_with(with);
        }
    }

    /// Whether it can't carry anything more.
    pub fn is_over(&self) -> bool {
        self.lanes.iter().all(|lane| {
            let lane = lane.borrow();
            lane.broken.is_some() || lane.deaf || lane.end_arrived
        })
    }
}

impl PipeEnd {
    /// Whether a read would say anything; if not, the task is woken when it would.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.inbound.borrow_mut().poll_readable(cx)
    }

    /// Reads and drops what still comes, until the peer has ended or `limit` bytes came.
    pub async fn drain(&mut self, limit: usize) {
        let mut dropped = 0;
        while dropped < limit {
            poll_fn(|cx| self.poll_readable(cx)).await;
            let mut lane = self.inbound.borrow_mut();
            if lane.arrived.is_empty() {
                return;
            }
            dropped += lane.arrived.len();
            lane.arrived.clear();
            wake(&mut lane.writer);
        }
    }
}

impl AsyncRead for PipeEnd {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut lane = self.inbound.borrow_mut();
        std::task::ready!(lane.poll_readable(cx));
        if lane.arrived.is_empty() {
            return Poll::Ready(lane.broken.map_or(Ok(()), |kind| Err(kind.into())));
        }
        let (front, _) = lane.arrived.as_slices();
        let n = front.len().min(buffer.remaining());
        buffer.put_slice(&front[..n]);
        lane.arrived.drain(..n);
        wake(&mut lane.writer);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PipeEnd {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut lane = self.outbound.borrow_mut();
        if let Some(kind) = lane.broken {
            return Poll::Ready(Err(kind.into()));
        }
        if lane.deaf || lane.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = lane
            .capacity
            .saturating_sub(lane.sent.len() + lane.arrived.len());
        if room == 0 {
            lane.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let n = room.min(bytes.len());
        if lane.direct {
            lane.arrived.extend(&bytes[..n]);
            wake(&mut lane.reader);
        } else {
            lane.sent.extend(&bytes[..n]);
            wake(&mut lane.carrier);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.borrow_mut().end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        let unread = {
            let mut inbound = self.inbound.borrow_mut();
            inbound.deaf = true;
            wake(&mut inbound.writer);
            wake(&mut inbound.carrier);
            !inbound.arrived.is_empty()
        };
        let mut outbound = self.outbound.borrow_mut();
        if unread {
            outbound.break_with(io::ErrorKind::ConnectionReset);
        } else {
            outbound.end();
        }
    }
}

impl Lane {
    fn new(capacity: usize) -> Self {
        Self {
            sent: VecDeque::new(),
            arrived: VecDeque::new(),
            capacity,
            direct: false,
            ended: false,
            end_arrived: false,
            broken: None,
            deaf: false,
            reader: None,
            writer: None,
            carrier: None,
        }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.arrived.is_empty() && !self.end_arrived && self.broken.is_none() {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    fn end(&mut self) {
        self.ended = true;
        if self.direct {
            self.end_arrived = true;
        }
        self.wake_all();
    }

    fn break_with(&mut self, kind: io::ErrorKind) {
        if self.broken.is_none() && !self.end_arrived {
            self.broken = Some(kind);
            self.sent.clear();
        }
        self.wake_all();
    }

    fn wake_all(&mut self) {
        wake(&mut self.reader);
        wake(&mut self.writer);
        wake(&mut self.carrier);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::{super::testing::paused, *};

    #[test]
    fn what_is_sent_is_read_when_it_was_carried() {
        paused(|| async {
            let (mut one, mut other, line) = pair(8);
            assert_eq!(one.write(b"0123456789").await.unwrap(), 8);
            assert_eq!(line.laden(0).await, Some(8));
            line.carry(0, 3, |bytes| assert_eq!(bytes, b"012"));
            let mut buffer = [0; 16];
            assert_eq!(other.read(&mut buffer).await.unwrap(), 3);
            one.shutdown().await.unwrap();
            line.carry(0, 5, |_| {});
            assert_eq!(other.read(&mut buffer).await.unwrap(), 5);
            assert_eq!(other.read(&mut buffer).await.unwrap(), 0);
            assert_eq!(line.laden(0).await, None);
        });
    }

    #[test]
    fn an_end_that_leaves_bytes_unread_resets() {
        paused(|| async {
            let (mut one, other) = direct(8);
            one.write_all(b"abc").await.unwrap();
            drop(other);
            let mut buffer = [0; 16];
            let read = one.read(&mut buffer).await.unwrap_err();
            assert_eq!(read.kind(), io::ErrorKind::ConnectionReset);
            let written = one.write(b"d").await.unwrap_err();
            assert_eq!(written.kind(), io::ErrorKind::BrokenPipe);
        });
    }

    #[test]
    fn a_cut_loses_what_was_on_its_way() {
        paused(|| async {
            let (mut one, mut other, line) = pair(8);
            one.write_all(b"abcd").await.unwrap();
            line.carry(0, 2, |_| {});
            line.cut(io::ErrorKind::TimedOut);
            let mut buffer = [0; 16];
            assert_eq!(other.read(&mut buffer).await.unwrap(), 2);
            let read = other.read(&mut buffer).await.unwrap_err();
            assert_eq!(read.kind(), io::ErrorKind::TimedOut);
            assert!(line.is_over());
        });
    }
}
