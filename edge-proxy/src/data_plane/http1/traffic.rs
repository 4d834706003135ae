//! What passes between the client and hyper: which bytes either gets, and what they tell of where the connection stands.

use std::time::Instant;

use hyper::body::Incoming;

use super::{Connection, Output, Stage};

impl Connection {
    /// Whether hyper gets what comes next: a request's head only when the answer before it has left. It wouldn't parse it
    /// earlier, and a slow reader would have its next head's deadline pass meanwhile. Nor what is left of a body, when
    /// hyper has all of the answer: at its end it closes a connection that isn't to stay, whatever it still has to write.
    pub(super) fn may_read(&self) -> bool {
        let is_wanted = self.stage.get() == Stage::Busy && self.framing.get().in_body();
        self.output.get() != Output::Answering || is_wanted
    }

    /// These bytes came, and hyper doesn't get them yet.
    pub(super) fn put_off(&self, bytes: &[u8]) {
        let begins = !self.framing.get().in_body() && begins_a_head(bytes);
        self.put_off.set(Some(begins));
    }

    /// Whether hyper has nothing to do but to wait for a next request.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(
            self.stage.get(),
            Stage::First { begun: false } | Stage::Idle(_)
        ) && self.output.get() == Output::Quiet
            && !self.framing.get().in_body()
            && self.exchanges.borrow().is_empty()
            && self.given_up.borrow().is_none()
    }

    /// Nobody wants the rest of this request.
    pub(super) fn give_up(&self, request: Incoming) {
        if self.output.get() == Output::Answering {
            self.given_up.replace(Some(request));
        }
    }

    /// Bytes came from the client (none: it closed): says how many of them hyper gets now, which are of one head or body.
    pub(super) fn on_read(&self, bytes: &[u8], now: Instant) -> usize {
        self.put_off.set(None);
        let mut framing = self.framing.get();
        let of_body = framing.in_body();
        let n = framing.take(bytes);
        self.framing.set(framing);
        if !of_body {
            self.head.set(self.head.get() + n);
        }
        let begins = !of_body && begins_a_head(&bytes[..n]);
        match self.stage.get() {
            Stage::First { .. } if begins => self.stage.set(Stage::First { begun: true }),
            Stage::Idle(_) if begins => self.head_began(now),
            _ => {}
        }
        n
    }

    /// The socket takes nothing, or takes something again.
    pub(super) fn on_write(&self, blocked: bool) {
        if !blocked {
            self.write_blocked.set(None);
        } else if self.write_blocked.get().is_none() {
            let now = self.worker.now();
            self.write_blocked.set(Some(now));
            self.check_by(now + self.policy.timeouts.write_stall);
        }
    }

    /// hyper writes: whether that is to reach the client.
    pub(super) fn may_write(&self) -> bool {
        if self.output.get() != Output::Answering {
            self.output.set(Output::Refused);
            return false;
        }
        true
    }

    /// What hyper has written has left.
    pub(super) fn on_flush(&self) {
        if self.output.get() == Output::Answering && self.stage.get() != Stage::Busy {
            self.output.set(Output::Quiet);
            self.given_up.take();
            // What was put off, the end of a connection that is leaving, or hyper's.
            self.wake();
        }
    }

    /// hyper has all of a response, and awaits the next request.
    pub(super) fn responded(&self) {
        let now = self.worker.now();
        self.stage.set(Stage::Idle(now));
        self.check_by(now + self.worker.idle(&self.policy.timeouts));
    }

    /// Whether hyper may be told that the connection is to end. A request whose head is under way is served before; and
    /// when an answer is only still on its way out, hyper would end without the rest of it.
    pub(super) fn may_leave(&self) -> bool {
        match self.stage.get() {
            Stage::First { begun } => !begun,
            Stage::Busy => true,
            Stage::Idle(_) => {
                self.output.get() == Output::Quiet && self.put_off.get() != Some(true)
            }
            Stage::Head(_) => false,
        }
    }
}

/// Empty lines before a head aren't the beginning of one (RFC 9112 §2.2): old clients end a body so.
fn begins_a_head(bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| !b"\r\n".contains(byte))
}
