//! What all threads share, counted within one.
//!
//! Cloning an `Arc` writes to a count that the other workers write to as well: an operation that waits for all writes
//! before it, on a line of memory that goes from core to core. An RPC takes and leaves a few of them. So a worker holds
//! one `Arc`, and its RPCs count that by an `Rc`.

use std::{ops::Deref, rc::Rc, sync::Arc};

/// See the module.
#[derive(Debug)]
pub(crate) struct Local<T>(Rc<Held<T>>);

#[derive(Debug)]
struct Held<T>(Arc<T>);

impl<T> From<Arc<T>> for Local<T> {
    fn from(shared: Arc<T>) -> Self {
        Self(Rc::new(Held(shared)))
    }
}

impl<T> Clone for Local<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Local<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0.0
    }
}
