//! Which of an endpoint's connections serves an RPC, if one may: the first with room, congested ones last, and the one that
//! refused it only where there is no other.

use std::{rc::Rc, time::Instant};

use super::{EndpointPool, Upstream, connection::Congestion};

impl EndpointPool {
    /// [`free_connection`](Self::free_connection), of which one that isn't congested is better: `most` is asked only where
    /// there is none, which is rare.
    pub(super) fn best_connection(
        &self,
        avoid: Option<&Rc<Upstream>>,
        most: impl FnOnce() -> Congestion,
    ) -> Option<Rc<Upstream>> {
        let free = |most| self.free_connection(avoid, most);
        free(Congestion::None).or_else(|| free(most()))
    }

    /// The first connection with room that is no more congested than this: filling them in order keeps few of them busy,
    /// and 1, 2 and 4 per endpoint cost 4.9, 5.5 and 6.7 µs an RPC.
    fn free_connection(
        &self,
        avoid: Option<&Rc<Upstream>>,
        most: Congestion,
    ) -> Option<Rc<Upstream>> {
        let limit = self.policy.borrow().per_connection_streams;
        let avoided = |connection| avoid.is_some_and(|avoid| Rc::ptr_eq(avoid, connection));
        let connections = self.connections.borrow();
        let free = connections
            .iter()
            .find(|connection| connection.has_room(limit, most) && !avoided(connection));
        free.cloned()
    }

    /// How congested a connection may be that is to be used: as many uploads that nobody reads as there may be
    /// connections must not leave an endpoint without any, nor one of them while the next connect hangs.
    pub(super) fn bearable(&self, now: Instant) -> Congestion {
        if self.may_open_another(now) && !self.opens_slowly(now) {
            Congestion::None
        } else {
            Congestion::Stream
        }
    }

    /// Whether there is another connection than this one, or may soon be.
    pub(super) fn has_other(&self, connection: &Rc<Upstream>, now: Instant) -> bool {
        let other = |other: &Rc<Upstream>| other.is_ready() && !Rc::ptr_eq(other, connection);
        let may_come = self.opening.get() > 0 || self.may_open_another(now);
        may_come && !self.opens_slowly(now) || self.connections.borrow().iter().any(other)
    }

    /// There is a connection to wait for.
    pub(super) fn is_alive(&self) -> bool {
        self.opening.get() > 0 || self.connections.borrow().iter().any(|c| c.is_ready())
    }

    /// No other connection may be opened, or none is soon: the one that refused is better than none.
    pub(super) fn accept_the_only_one(&self) {
        let connections = self.connections.borrow();
        let is_only = |refused: &Rc<Upstream>| {
            let mut ready = connections.iter().filter(|one| one.is_ready());
            ready.all(|one| Rc::ptr_eq(one, refused))
        };
        self.waiting.borrow_mut().stop_avoiding(is_only);
    }

    /// No RPC waits, and there is one before it that is ready.
    pub(super) fn can_spare(&self, connection: &Rc<Upstream>) -> bool {
        let connections = self.connections.borrow();
        let first = connections.iter().find(|one| one.is_ready());
        !self.is_waited_for() && first.is_some_and(|first| !Rc::ptr_eq(first, connection))
    }
}
