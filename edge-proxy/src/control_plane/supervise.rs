//! Tasks that nothing brings down: owned by a handle that ends them, restarted when they panic.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio::task::AbortHandle;

/// Panics caught in the control plane, all tasks together.
#[derive(Clone, Debug, Default)]
pub(super) struct Panics(Arc<AtomicU64>);

/// Ends its task when dropped.
#[derive(Debug)]
pub(super) struct Owned(AbortHandle);

impl Panics {
    /// One more, in `task`. The panic hook has logged where.
    pub(super) fn count(&self, task: &str) {
        self.0.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            task,
            "a task of the control plane panicked; it is started again"
        );
    }

    /// So far.
    pub(super) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs `task` until it returns; after a panic anew, from its start.
pub(super) fn supervise<F>(
    name: &'static str,
    panics: Panics,
    mut task: impl FnMut() -> F + Send + 'static,
) -> Owned
where
    F: Future<Output = ()> + Send,
{
    let supervisor = tokio::spawn(async move {
        while caught(task()).await.is_err() {
            panics.count(name);
            tokio::time::sleep(RESTART).await;
        }
    });
    Owned(supervisor.abort_handle())
}

/// `future`'s output, or `Err` if it panicked.
pub(super) async fn caught<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        // What the panic left half done is the future's own state, which is dropped.
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        match polled {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}

/// A future panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Panicked;

/// From a panic to the next start: within a second, and no busy loop.
pub(super) const RESTART: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_restarts_the_task_within_a_second_and_is_counted() {
        let panics = Panics::default();
        let (starts, mut started) = mpsc::unbounded_channel();
        let begin = tokio::time::Instant::now();
        let _owned = supervise("test", panics.clone(), move || {
            let starts = starts.clone();
            async move {
                starts.send(begin.elapsed()).unwrap();
                panic!("on purpose");
            }
        });
        assert_eq!(started.recv().await, Some(Duration::ZERO));
        let second = started.recv().await.unwrap();
        assert!(second <= Duration::from_secs(1), "{second:?}");
        assert!(panics.total() >= 1);
    }

    #[tokio::test]
    async fn dropping_the_handle_ends_the_task() {
        let (alive, mut ended) = mpsc::channel::<()>(1);
        let alive = Arc::new(alive);
        let owned = supervise("test", Panics::default(), move || {
            let alive = alive.clone();
            async move {
                let _alive = alive;
                std::future::pending::<()>().await;
            }
        });
        drop(owned);
        assert_eq!(ended.recv().await, None, "the task was dropped");
    }

    #[tokio::test]
    async fn a_task_that_returns_is_done() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        assert_eq!(
            caught(async { panic!("on purpose") }).await,
            Err::<(), _>(Panicked)
        );
    }
}
