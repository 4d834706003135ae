//! The journal: what a backend saw, and when. Tests read it, and wait for its entries.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Instant};

use http::HeaderMap;
use tokio::sync::watch;

use crate::wait::within;

/// Shared by a backend and its test; cheap to clone.
#[derive(Clone, Default)]
pub struct Journal(Arc<watch::Sender<Entries>>);

/// Everything so far, in order.
#[derive(Clone, Default, Debug)]
pub struct Entries {
    /// Connections accepted.
    pub connections: usize,
    /// Connections that have ended.
    pub connections_ended: usize,
    /// Requests whose headers arrived.
    pub requests: Vec<Seen>,
    /// How many of them had each path.
    calls: HashMap<String, usize>,
    /// RPCs that were cancelled before they ended: their `x-test-id` and when the backend noticed.
    pub cancelled: Vec<(String, Instant)>,
    /// Messages that arrived on streams, of all RPCs together.
    pub messages: usize,
}

/// One request's head.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When its headers arrived.
    pub at: Instant,
    /// `:method`.
    pub method: http::Method,
    /// `:path`.
    pub path: String,
    /// `:authority`.
    pub authority: String,
    /// All of its other headers, in order of arrival per name.
    pub headers: HeaderMap,
    /// Whose connection it came on.
    pub peer: Option<SocketAddr>,
}

impl Seen {
    /// Takes down the head of `request`.
    pub fn of<B>(request: &http::Request<B>) -> Self {
        let uri = request.uri();
        Self {
            at: Instant::now(),
            method: request.method().clone(),
            path: uri
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
            authority: uri
                .authority()
                .map_or_else(String::new, ToString::to_string),
            headers: request.headers().clone(),
            peer: None,
        }
    }

    /// The header `name`, if it is there once and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.get_all(name).iter();
        let value = values.next()?.to_str().ok()?;
        values.next().is_none().then_some(value)
    }
}

impl Journal {
    /// What it holds now.
    pub fn read(&self) -> Entries {
        self.0.borrow().clone()
    }

    /// How many requests arrived.
    pub fn count(&self) -> usize {
        self.0.borrow().requests.len()
    }

    /// Looks at it without a copy.
    pub fn look<T>(&self, at: impl FnOnce(&Entries) -> T) -> T {
        at(&self.0.borrow())
    }

    /// How many requests had this path.
    pub fn calls(&self, path: &str) -> usize {
        self.look(|all| all.calls.get(path).copied().unwrap_or_default())
    }

    /// How often the RPC with this `x-test-id` was begun.
    pub fn executions(&self, id: &str) -> usize {
        let entries = self.0.borrow();
        entries
            .requests
            .iter()
            .filter(|seen| seen.header(ID) == Some(id))
            .count()
    }

    /// The last request.
    ///
    /// # Panics
    /// When there was none.
    pub fn last(&self) -> Seen {
        self.0
            .borrow()
            .requests
            .last()
            .cloned()
            .expect("a request reached the backend")
    }

    /// Waits until `found` finds what it looks for.
    pub async fn wait<T>(&self, what: &str, found: impl Fn(&Entries) -> Option<T>) -> T {
        let mut entries = self.0.subscribe();
        within(what, async {
            loop {
                if let Some(value) = found(&entries.borrow_and_update()) {
                    return value;
                }
                // The sender lives in self.
                let _ = entries.changed().await;
            }
        })
        .await
    }

    /// Waits until the RPC `id` has begun.
    pub async fn begun(&self, id: &str) -> Seen {
        let begun = |all: &Entries| {
            all.requests
                .iter()
                .find(|seen| seen.header(ID) == Some(id))
                .cloned()
        };
        self.wait(&format!("RPC {id} at the backend"), begun).await
    }

    /// Waits until the RPC `id` is cancelled, and says when the backend noticed.
    pub async fn cancelled(&self, id: &str) -> Instant {
        let gone = |all: &Entries| {
            all.cancelled
                .iter()
                .find(|(other, _)| other == id)
                .map(|(_, at)| *at)
        };
        self.wait(&format!("RPC {id} to be cancelled at the backend"), gone)
            .await
    }

    /// A request's headers have arrived; its number, from 0.
    pub(crate) fn begin(&self, seen: Seen) -> usize {
        let mut number = 0;
        self.add(|all| {
            number = all.requests.len();
            match all.calls.get_mut(&seen.path) {
                Some(count) => *count += 1,
                None => {
                    all.calls.insert(seen.path.clone(), 1);
                }
            }
            all.requests.push(seen);
        });
        number
    }

    pub(crate) fn add(&self, change: impl FnOnce(&mut Entries)) {
        self.0.send_modify(change);
    }
}

/// Metadata that names an RPC.
pub const ID: &str = "x-test-id";
