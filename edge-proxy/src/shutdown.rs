//! How the process ends: who may ask for it, and in which order things happen.
//!
//! ```text
//! Run ──DrainListeners──▶ (drained, but stays) ──┐
//!  ├──────────────────────Drain─────────────────▶├─▶ GOAWAYs over drain.time, still accepting
//!  │                                             │   listener closes
//!  │                                             │   what runs may finish: drain.deadline
//!  │                                             └─▶ the rest gets 14, connections close ─▶ Drained
//!  └──────Kill (a second signal), at any moment ─────────────────────────────────────────▶ Killed
//! ```
//!
//! A load balancer goes on sending for some seconds after a pod was told to end, so closing the listener first would
//! lose connections; and GOAWAYs all at once would send every client to the remaining pods in one moment.

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};

use crate::{
    app::Running,
    control_plane::{config::Drain, status::ProcessState},
    data_plane::{listener::Acceptor, worker::Phase},
};

/// What the process was asked to do; a later one never takes back an earlier one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    /// Serve.
    #[default]
    Run,
    /// Drain, but stay.
    DrainListeners,
    /// Drain and end.
    Drain,
    /// End at once.
    Kill,
}

/// How the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that ran had its time: exit 0.
    Drained,
    /// Told twice: exit 1.
    Killed,
    /// A part of the process ended that never should: exit 1.
    Failed,
}

/// Asks the process to end. Cheap to clone; for signals, `/quitquitquit` and tests.
#[derive(Clone, Debug)]
pub struct ShutdownHandle {
    orders: Arc<watch::Sender<Order>>,
}

impl ShutdownHandle {
    pub(crate) fn new() -> (Self, watch::Receiver<Order>) {
        let (orders, receiver) = watch::channel(Order::Run);
        (
            Self {
                orders: Arc::new(orders),
            },
            receiver,
        )
    }

    /// As the first SIGTERM: drain, then end.
    pub fn drain(&self) {
        self.order(Order::Drain);
    }

    /// As `/drain_listeners`: drain, but stay for whoever wants to look.
    pub fn drain_listeners(&self) {
        self.order(Order::DrainListeners);
    }

    /// As the second SIGTERM: end now.
    pub fn kill(&self) {
        self.order(Order::Kill);
    }

    fn order(&self, order: Order) {
        self.orders.send_if_modified(|current| {
            let later = order > *current;
            *current = order.max(*current);
            later
        });
    }
}

/// SIGTERM and SIGINT (drain; the second time: end at once) and SIGHUP (reread the configuration, reopen the access
/// log). From [`catch`](Self::catch) on they end the process no more but wait for [`obey`](Self::obey).
#[derive(Debug)]
pub struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Called by `main`, once, before all else: a signal that finds no handler ends the process as if it had crashed, or
    /// does nothing at all if that is PID 1.
    ///
    /// # Errors
    /// The handlers can't be installed.
    pub fn catch() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (terminate, interrupt, hangup) = {
            let _runtime = runtime.enter();
            (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
                signal(SignalKind::hangup())?,
            )
        };
        Ok(Self {
            runtime,
            terminate,
            interrupt,
            hangup,
        })
    }

    /// Does what they say, and said before, on a thread of its own, for as long as the process lives.
    ///
    /// # Errors
    /// The thread can't be started.
    pub fn obey(mut self, running: &Running) -> io::Result<()> {
        let (handle, control, access_log) =
            (running.shutdown(), running.control(), running.access_log());
        let mut told: Option<Instant> = None;
        let serve = move || loop {
            let Some(name) = self.next() else {
                tracing::info!("SIGHUP: rereading the configuration");
                access_log.reopen();
                let control = control.clone();
                // A task, since a new cluster may take seconds to answer and SIGTERM must not wait for it.
                // What is wrong with the file is logged where it is found.
                self.runtime.spawn(async move { control.reload().await });
                continue;
            };
            let now = Instant::now();
            if told.is_some_and(|told| now < told + SAME_SIGNAL) {
                // `timeout` and some init processes signal a process and then its whole group.
                continue;
            }
            // Not `/quitquitquit`: who has that asked before the pod's end (preStop) gets SIGTERM all the same.
            if told.replace(now).is_some() {
                tracing::warn!("{name} again: ending at once");
                handle.kill();
            } else {
                tracing::info!("{name}: draining");
                handle.drain();
            }
        };
        thread::Builder::new().name("signals".into()).spawn(serve)?;
        Ok(())
    }

    /// The next that asks for the end; `None`: SIGHUP came.
    fn next(&mut self) -> Option<&'static str> {
        self.runtime.block_on(async {
            tokio::select! {
                _ = self.terminate.recv() => Some("SIGTERM"),
                _ = self.interrupt.recv() => Some("SIGINT"),
                _ = self.hangup.recv() => None,
            }
        })
    }
}

/// The drain itself, driven by the application's thread.
pub(crate) struct Drainer<'a> {
    pub(crate) times: Drain,
    pub(crate) phase: &'a watch::Sender<Phase>,
    pub(crate) acceptor: &'a mut Acceptor,
    pub(crate) process: &'a watch::Sender<ProcessState>,
    pub(crate) orders: &'a mut watch::Receiver<Order>,
}

impl Drainer<'_> {
    /// Returns when nothing is open any more, or nothing may be: `true`; or when told to end at once: `false`.
    pub(crate) async fn run(self) -> bool {
        let since = Instant::now();
        let until = since + self.times.time;
        self.process.send_replace(ProcessState::Draining);
        self.phase.send_replace(Phase::Draining { since, until });

        // Still accepting: a load balancer learns late.
        let counts = self.acceptor.counts.clone();
        let (mut arrived, mut quiet_since) = (counts.arrived(), since);
        let mut tick = tokio::time::interval(TICK);
        let closing = async {
            loop {
                tick.tick().await;
                let now = Instant::now();
                if counts.arrived() != arrived || counts.open() > 0 {
                    (arrived, quiet_since) = (counts.arrived(), now);
                }
                if now >= until || now >= quiet_since + QUIET {
                    return;
                }
            }
        };
        tokio::select! {
            () = closing => {}
            () = killed(self.orders) => return false,
        }
        self.acceptor.close();
        // From here on nothing can come in: `/readyz` says so, whatever `/healthcheck/ok` says.
        self.process.send_replace(ProcessState::Closing);
        tracing::info!(
            connections = counts.open(),
            "the listener is closed; what runs may finish"
        );
        self.phase.send_replace(Phase::Closing);

        let finished = empty(&counts, self.times.deadline);
        tokio::select! {
            all = finished => if !all {
                tracing::warn!("{} connections outlived drain.deadline: ending their RPCs", counts.open());
                self.phase.send_replace(Phase::Cutting);
                empty(&counts, LAST_WORDS).await;
            },
            () = killed(self.orders) => return false,
        }
        self.process.send_replace(ProcessState::Drained);
        true
    }
}

/// Waits until no connection is open, at most for `limit`; says whether that came true.
async fn empty(counts: &crate::data_plane::listener::Counts, limit: Duration) -> bool {
    let emptied = async {
        let mut tick = tokio::time::interval(TICK);
        while counts.open() > 0 {
            tick.tick().await;
        }
    };
    tokio::time::timeout(limit, emptied).await.is_ok()
}

async fn killed(orders: &mut watch::Receiver<Order>) {
    // All senders gone means that nobody is left who could ask for it.
    if orders
        .wait_for(|order| *order == Order::Kill)
        .await
        .is_err()
    {
        std::future::pending::<()>().await;
    }
}

/// Signals that come this close together are one order.
const SAME_SIGNAL: Duration = Duration::from_millis(100);
/// How often the counts are looked at.
const TICK: Duration = Duration::from_millis(20);
/// The listener closes early when nothing has been open and nothing has arrived for this long.
const QUIET: Duration = Duration::from_secs(1);
/// For trailers and GOAWAYs to leave after `drain.deadline`: half of the second that a process has to end in then.
const LAST_WORDS: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_order_never_takes_back_an_earlier_one() {
        let (handle, orders) = ShutdownHandle::new();
        handle.drain_listeners();
        assert_eq!(*orders.borrow(), Order::DrainListeners);
        handle.drain();
        handle.drain_listeners();
        assert_eq!(*orders.borrow(), Order::Drain);
        handle.kill();
        handle.drain();
        assert_eq!(*orders.borrow(), Order::Kill);
    }
}
