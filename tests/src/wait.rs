//! Waiting for what has no event of its own, such as a page that another process serves.

use std::{
    future::Future,
    time::{Duration, Instant},
};

/// How long anything may take before a test fails. Far more than any of it needs, so that a slow machine passes.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks until the answer is `Some`, and gives it.
///
/// # Panics
/// After [`PATIENCE`], naming `what` was waited for.
pub async fn eventually<T, F>(what: &str, mut ask: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Runs `future` to its end.
///
/// # Panics
/// After [`PATIENCE`], naming `what` was waited for.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

/// Short enough that nobody notices, long enough that the thing waited for gets the processor.
const POLL: Duration = Duration::from_millis(5);
