//! How tests run, and how they wait.
//!
//! Four clocks: the kernel's, where a test has sockets and time may pass ([`running`]); one that jumps to the next timer
//! when nothing else can happen, for tests without sockets ([`paused`]); one that never jumps, which shows that something
//! needs no timer ([`stopped`]); one that only the test moves, for deadlines ([`frozen`]).

use std::{
    cell::Cell,
    panic::Location,
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use tokio::task::LocalSet;

thread_local! {
    /// The last [`at_once`] of the test, for what says that its wait was in vain.
    static WAITS_AT: Cell<Option<&'static Location<'static>>> = const { Cell::new(None) };
}

/// Runs a test with the clock standing still unless nothing else can happen.
pub(crate) fn paused<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    on(
        runtime.start_paused(true),
        Duration::from_secs(24 * 3600),
        test,
    )
}

/// Lets so much of a [`paused`] clock pass: what comes due meanwhile comes in its order, and nothing waits for it really.
pub(crate) async fn elapse(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Runs a test that has sockets.
pub(crate) fn running<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    on(&mut runtime, PATIENCE, test)
}

/// Runs a test that has sockets while the clock stands still: what is seen to happen happens with no timer in between,
/// however slow the machine is. Only the test moves time, by `tokio::time::advance`.
pub(crate) fn stopped<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        // A paused clock jumps to the next timer when nothing can run, but not while a blocking task does.
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let clock = tokio::task::spawn_blocking(move || {
            wait.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout)
        });
        let limited = tokio::time::timeout(Duration::from_secs(24 * 3600), test()).await;
        drop(done);
        assert!(!clock.await.unwrap(), "it went on only when a timer fired");
        limited.unwrap()
    })
}

/// Runs a test that has sockets, with a clock that only [`pass`] moves: the kernel may take its time with what is on its
/// way, and no deadline passes meanwhile.
pub(crate) fn frozen<F: Future>(test: impl FnOnce() -> F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let limit = Duration::from_secs(365 * 24 * 3600);
    on(runtime.start_paused(true), limit, || async {
        let started = Instant::now();
        // The paused clock moves by itself only when nothing is ready to run.
        let busy = async {
            while started.elapsed() < PATIENCE {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            output = test() => output,
            () = busy => panic!("what the test waits for doesn't come: {:?}", WAITS_AT.get()),
        }
    })
}

/// Moves a [`frozen`] clock. What is due is seen by tasks that run after this.
pub(crate) async fn pass(time: Duration) {
    tokio::time::advance(time).await;
}

/// Gives everybody on a [`frozen`] clock's worker more turns than what was due can take: for what must not happen.
pub(crate) async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

/// `limit` is far beyond what any test takes, so that a lost wake-up is a failure and no hang.
fn on<F: Future>(
    runtime: &mut tokio::runtime::Builder,
    limit: Duration,
    test: impl FnOnce() -> F,
) -> F::Output {
    let runtime = runtime.enable_all().build().unwrap();
    let limited = async { tokio::time::timeout(limit, test()).await };
    LocalSet::new().block_on(&runtime, limited).unwrap()
}

/// Waits until `condition` holds, with no timer: a clock that stands still isn't moved.
#[track_caller]
pub(crate) fn at_once(condition: impl Fn() -> bool) -> impl Future<Output = ()> {
    let at = Location::caller();
    WAITS_AT.set(Some(at));
    async move {
        let started = Instant::now();
        while !condition() {
            // While this asks again and again, no clock that stands still comes to a limit of its own.
            assert!(started.elapsed() < PATIENCE, "waited in vain: {at}");
            tokio::task::yield_now().await;
        }
    }
}

/// Waits until `condition` holds, however long that takes.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Of the kernel's time: far beyond what any test with sockets takes.
const PATIENCE: Duration = Duration::from_secs(60);
