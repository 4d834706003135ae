//! One connection, either role.
//!
//! [`Connection::receive`] cuts the input into frames (`receive.rs`), applies the rules of each
//! (`data.rs`, `blocks.rs` for header blocks, `frames.rs` for the others) and returns at most one
//! event per call (`event.rs`), which borrows the input and never the connection: so the owner may
//! apply it to another connection at once. The calls that send (`send.rs`) append to one output
//! buffer, heads of new streams by way of `opening.rs`; what windows don't allow waits in the
//! streams' queues, and [`Connection::flush`] (`flush.rs`) shares the room fairly among them.
//! `cancel.rs` paces resets towards a backend, and `status.rs` answers questions.

// Bytes in: frames cut, and the rules of each kind.
mod receive;

mod data;

mod blocks;

mod frames;

// What comes of them.
mod event;

// Calls in, bytes out.
mod send;

mod opening;

mod flush;

mod cancel;

// What the owner may ask.
mod status;

use std::{collections::VecDeque, time::Instant};

pub use self::cancel::UNCONFIRMED;
pub use self::event::{
    Blocked, BlockedBy, Event, OpenError, Orphan, Refusal, Role, Sent, Unread, Windows,
};
use self::{blocks::OpenBlock, cancel::Cancels, opening::Opening, receive::Parse};
use crate::{
    error::{ConnectionError, Reason},
    flow::{RecvWindow, SendWindow},
    frame::{self, HEAD, MAX_ID},
    headers::Headers,
    hpack::{Decoder, Encoder},
    limits::Limits,
    output::Output,
    settings::{Config, Peer},
    stream::{Closed, Handle, State, Streams},
};

/// One end of an HTTP/2 connection. See the crate's head for how it is driven.
///
/// After an error of [`receive`](Self::receive), or [`close`](Self::close), the GOAWAY is the last
/// thing in the output, and all calls that send do nothing.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    config: Config,
    /// The latest time that a call told: stamps for calls without one.
    now: Instant,
    /// Why the connection ended, once it has.
    dead: Option<Box<ConnectionError>>,

    // Receiving.
    parse: Parse,
    /// Frames that `receive` may still begin, or [`UNBOUNDED`]; see [`allow`](Self::allow).
    allowed: u32,
    /// A frame's head that came in parts, and how much of it is there.
    head: [u8; HEAD],
    head_len: u8,
    /// The payload of a frame that came in parts (never DATA).
    partial: Vec<u8>,
    /// The unfinished header block that the next frame must continue.
    open_block: Option<Box<OpenBlock>>,
    /// Since when a header block, or a frame of one, is incomplete.
    header_since: Option<Instant>,
    decoder: Decoder,
    /// Resets that a GOAWAY brought, still to be told.
    #[allow(
        clippy::box_collection,
        reason = "rarely there, and every quiet connection would have its room"
    )]
    left_behind: Option<Box<VecDeque<(Orphan, Reason)>>>,
    limits: Limits,

    // Both.
    streams: Streams,
    /// The highest stream that the peer opened (server role).
    last_remote: u32,
    /// The next stream that we open (client role).
    next_id: u32,
    recv: RecvWindow,
    send: SendWindow,
    /// When `send` was last used up, after it had brought what is worth having.
    send_shut: Instant,
    /// Bytes that it has brought since.
    send_brought: u32,
    peer: Peer,
    /// The peer's first SETTINGS have come.
    peer_ready: bool,
    /// When our first SETTINGS went into the output, until they are acknowledged.
    settings_since: Option<Instant>,
    /// The last stream of the GOAWAY that the peer sent.
    peer_goaway: Option<u32>,
    /// The last stream of the GOAWAY that we sent.
    our_goaway: Option<u32>,

    // Sending.
    out: Output,
    encoder: Encoder,
    opening: Opening,
    /// Streams with queued bytes and an open stream window, in the order of their turns, and some that are gone.
    ready: VecDeque<Handle>,
    /// The last `flush` left streams in `ready`: new data has to queue behind them.
    backlog: bool,
    /// Streams with a WINDOW_UPDATE to send.
    updates: Vec<Handle>,
    /// For `take_sent`.
    sent: Vec<Sent>,
    /// Bytes in all queues.
    queued: usize,
    cancels: Cancels,
    /// Streams whose reset waits.
    doomed: u32,
    /// Answers put out since the output was last seen to move on, and where it then ended.
    answers: u32,
    answers_until: u64,
    /// WINDOW_UPDATEs for the connection, of the peer's.
    credits: u32,
    /// RST_STREAM of a server for faults of ours, as far as it can count.
    complaints: u16,
}

impl Connection {
    /// Starts a connection: the preface (client role) and our SETTINGS are in the output.
    pub fn new(role: Role, config: Config, now: Instant) -> Self {
        let mut out = Output::default();
        if role == Role::Client {
            out.frames().extend_from_slice(frame::PREFACE);
        }
        let (settings, raise) = config.announced(role);
        frame::write_settings(out.frames(), &settings);
        if raise > 0 {
            frame::write_window_update(out.frames(), 0, raise);
        }
        let peer = Peer::default();
        Self {
            role,
            config,
            now,
            dead: None,
            parse: match role {
                Role::Server => Parse::Preface(0),
                Role::Client => Parse::Head,
            },
            allowed: UNBOUNDED,
            head: [0; HEAD],
            head_len: 0,
            partial: Vec::new(),
            open_block: None,
            header_since: None,
            decoder: Decoder::new(config.decoder_table() as usize)
                .with_ceiling(config.header_list_ceiling(role)),
            left_behind: None,
            limits: Limits::new(now),
            streams: Streams::default(),
            last_remote: 0,
            next_id: 1,
            recv: RecvWindow::new(config.receive_window()),
            send: SendWindow::new(peer.initial_window),
            send_shut: now,
            send_brought: 0,
            peer,
            peer_ready: false,
            settings_since: Some(now),
            peer_goaway: None,
            our_goaway: None,
            out,
            encoder: Encoder::new(config.header_table as usize),
            opening: Opening::default(),
            ready: VecDeque::new(),
            backlog: false,
            updates: Vec::new(),
            sent: Vec::new(),
            queued: 0,
            cancels: Cancels::default(),
            doomed: 0,
            answers: 0,
            answers_until: 0,
            credits: 0,
            complaints: 0,
        }
    }

    /// Takes bytes from the front of `input` until there is an event, or `input` is empty, or as
    /// many frames have begun as [`allow`](Self::allow) said. Call it until it returns `None`; one
    /// event may follow when `input` is already empty.
    ///
    /// # Errors
    /// The peer broke a rule of the whole connection, or spent a flood budget, or the owner
    /// called [`close`](Self::close): now and ever after. The GOAWAY is in the output; the streams
    /// are still there for [`take_streams`](Self::take_streams).
    pub fn receive<'a>(
        &mut self,
        input: &mut &'a [u8],
        now: Instant,
    ) -> Result<Option<Event<'a>>, ConnectionError> {
        if let Some(e) = &self.dead {
            return Err(**e);
        }
        self.now = now;
        let outcome = self.step(input);
        if let Err(error) = &outcome {
            self.die(*error);
        }
        outcome
    }

    /// From now on `receive` begins at most so many frames, then leaves the rest of its input: an
    /// owner with many connections bounds with this what one of them does at a time. Without a
    /// call there is no bound.
    pub fn allow(&mut self, frames: usize) {
        self.allowed = u32::try_from(frames).unwrap_or(UNBOUNDED);
    }

    /// Names a stream that the peer opened; later events carry `key`.
    pub fn set_key(&mut self, stream: u32, key: u32) {
        if let Some(s) = self.streams.by_id_mut(stream) {
            s.key = key;
        }
    }

    /// `bytes` of this stream's DATA were passed on: the peer gets its windows back
    /// (WINDOW_UPDATE at half a window). More than was delivered is ignored, as are streams that
    /// are gone: what they had received was credited to the connection when they went.
    pub fn credit(&mut self, stream: u32, bytes: usize) {
        let Some(at) = self.streams.find(stream) else {
            return;
        };
        let Some(s) = self.streams.get_mut(at) else {
            return;
        };
        let n = bytes.min(s.uncredited as usize);
        s.uncredited -= n as u32;
        self.recv.give(n);
        // After END_STREAM nobody needs the stream's window (RFC 9113 §6.9).
        if !s.remote_ended() {
            s.recv.give(n);
            if s.recv.due(self.config.stream_window) && !s.in_updates {
                s.in_updates = true;
                self.updates.push(at);
            }
        }
    }

    /// Bytes to write.
    pub fn output(&self) -> &[u8] {
        self.out.bytes()
    }

    /// The socket took `n` bytes of `output`. Then call [`flush`](Self::flush): there is room.
    pub fn consume(&mut self, n: usize) {
        self.out.consume(n);
        self.cancels.left(self.out.left(), self.now);
    }

    /// Tells the peer that the connection will end, without refusing anything yet: GOAWAY with
    /// the highest id (RFC 9113 §6.8). Follow it with [`ping`](Self::ping), and with
    /// [`shutdown`](Self::shutdown) when the answer shows that the peer has seen it.
    pub fn shutdown_notice(&mut self) {
        if self.dead.is_none() && self.our_goaway.is_none() {
            self.go_away(MAX_ID, Reason::NO_ERROR);
        }
    }

    /// Ends the connection once its streams are done: GOAWAY with the last stream that was taken.
    /// Later ones are refused (REFUSED_STREAM), and `open` fails. Running streams go on.
    pub fn shutdown(&mut self, reason: Reason) {
        if self.dead.is_none() && self.our_goaway.is_none_or(|last| last > self.last_remote) {
            self.go_away(self.last_remote, reason);
        }
    }

    /// Ends the connection now, by the owner's decision: GOAWAY is put out, and `receive` returns
    /// an error from now on.
    pub fn close(&mut self, reason: Reason) {
        if self.dead.is_none() {
            self.die(ConnectionError {
                reason,
                rule: "closed by the owner",
                limit: None,
            });
        }
    }

    /// Sends a PING; its answer comes as [`Event::Pong`].
    pub fn ping(&mut self, payload: u64) {
        if self.dead.is_none() {
            frame::write_ping(self.out.frames(), payload, false);
        }
    }

    /// What was kept of a header list that was told as [`Event::HeadersTooLarge`]: its first
    /// fields, and `:method` and `content-type` wherever they stood; not validated. Once.
    pub fn take_large_head(&mut self, stream: u32) -> Option<Headers> {
        let head = self.streams.by_id_mut(stream)?.large_head.take()?;
        self.opening.blocks -= head.memory();
        Some(head)
    }

    /// Takes all live streams out, for an owner whose connection has ended; those too that a
    /// GOAWAY left unprocessed and whose `Reset` wasn't told yet (as if their HEADERS never left).
    pub fn take_streams(&mut self) -> impl Iterator<Item = Orphan> + use<> {
        let left = self.out.left();
        self.opening.clear();
        self.ready.clear();
        self.updates.clear();
        self.backlog = false;
        self.queued = 0;
        self.opening.blocks = 0;
        self.doomed = 0;
        self.cancels = Cancels::default();
        let untold = self.left_behind.take().into_iter().flat_map(|left| *left);
        let live = self.streams.take_all().into_iter().map(|(_, s)| s);
        live.filter(|s| s.doomed.is_none())
            .map(move |s| Orphan {
                stream: s.id,
                key: s.key,
                headers_left: s.headers_at < left,
            })
            .chain(untold.map(|(stream, _)| Orphan {
                headers_left: false,
                ..stream
            }))
    }

    /// Gives memory back that only busy times need. For connections that have gone quiet, whatever streams they have.
    pub fn shrink(&mut self) {
        self.out.shrink();
        self.decoder.shrink();
        self.encoder.shrink();
        self.opening.shrink_to_fit();
        self.ready.shrink_to_fit();
        self.updates.shrink_to_fit();
        self.sent.shrink_to_fit();
        self.cancels.shrink();
        let begun = match &mut self.parse {
            Parse::Data(frame) => Some(&mut frame.at),
            _ => None,
        };
        let lists = self.ready.iter_mut().chain(&mut self.updates);
        let waiting = self.opening.handles().chain(self.cancels.handles());
        self.streams.shrink(lists.chain(waiting).chain(begun));
    }

    /// The one way out of the slab: windows, queues and counters are put right. `cause` is
    /// `None` for a stream that left no trace on the wire. Returns the owner's number, unless
    /// the owner has let go of the stream already.
    fn remove(&mut self, at: Handle, cause: Option<Closed>) -> Option<u32> {
        let s = self.streams.get_mut(at)?;
        let (key, doomed) = (s.key, s.doomed.is_some());
        // What was delivered and not passed on won't be credited by anybody else.
        self.recv.give(s.uncredited as usize);
        self.queued -= s.queue.clear();
        self.opening.blocks -= s.blocks();
        if doomed {
            self.doomed -= 1;
            self.cancels.gone(at.id);
        }
        if cause == Some(Closed::Ended) {
            self.limits.stream_completed();
        }
        self.streams.remove(at, cause);
        (!doomed).then_some(key)
    }

    /// The peer's half is over.
    fn remote_end(&mut self, at: Handle) {
        let Some(s) = self.streams.get_mut(at) else {
            return;
        };
        match s.state {
            State::HalfClosedLocal => {
                self.remove(at, Some(Closed::Ended));
            }
            _ => s.state = State::HalfClosedRemote,
        }
    }

    /// Our half is over.
    fn local_end(&mut self, at: Handle) {
        let Some(s) = self.streams.get_mut(at) else {
            return;
        };
        match s.state {
            State::HalfClosedRemote => {
                self.remove(at, Some(Closed::Ended));
            }
            _ => s.state = State::HalfClosedLocal,
        }
    }

    fn go_away(&mut self, last: u32, reason: Reason) {
        // The id may only go down (RFC 9113 §6.8).
        let last = self.our_goaway.map_or(last, |before| before.min(last));
        self.our_goaway = Some(last);
        frame::write_goaway(self.out.frames(), last, reason.0);
    }

    fn die(&mut self, e: ConnectionError) {
        self.dead = Some(Box::new(e));
        self.go_away(self.last_remote, e.reason);
    }

    /// Puts waiting bytes of a stream in the order of turns.
    fn make_ready(&mut self, at: Handle) {
        if let Some(s) = self.streams.get_mut(at)
            && !s.in_ready
        {
            s.in_ready = true;
            self.ready.push_back(at);
            if self.ready.len() > 2 * self.streams.len() + SPARE {
                self.forget_gone();
            }
        }
    }

    /// Takes streams that are gone out of the order of turns. While the peer keeps the connection's window shut no turn
    /// comes to find them, and it may open and reset streams without end; each is looked at about twice.
    #[cold]
    fn forget_gone(&mut self) {
        let streams = &self.streams;
        self.ready.retain(|at| streams.get(*at).is_some());
    }
}

/// Streams that are gone and may stand in the order of turns all the same, besides as many as are live.
const SPARE: usize = 16;

/// Bytes of output beyond the limit on data at which the owner should stop reading.
const OVERFULL: usize = 64 * 1024;

/// No bound on the frames that `receive` may begin.
const UNBOUNDED: u32 = u32::MAX;
