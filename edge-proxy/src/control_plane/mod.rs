//! What changes over time; never on the request path.
//!
//! One thread, `control`, with one current-thread runtime, so that a busy data path can't starve health checks, probes
//! and metrics, and the other way round. On it runs one loop (`core.rs`) that owns all state: it starts look-ups and
//! checks when they are due, applies what they report to pure machines (`discovery`, `health`), and after each
//! change publishes a whole new [`Snapshot`](crate::snapshot::Snapshot) downwards, and soon a whole new
//! [`Report`](status::Report) for operators (`assemble.rs`). `certs` and `config/reload.rs` watch files. The admin
//! pages and probes are served on the same runtime ([`ControlPlane::runtime`]), where `app.rs` spawns them.

// The configuration: as written, as validated, reloaded.
pub mod config;

// Plain data for the admin pages, the probes and the metrics.
pub mod status;

// The operator's listener and its pages; the probes' listener.
pub mod admin;

// What to do when memory runs short.
pub mod overload;

// The loop that owns all state.
mod core;
// Of one cluster: its targets and endpoints, what is due, what came of it.
mod cluster;
// Names to endpoints.
mod discovery;
// Health checks.
mod health;
// When something is due again, and when it is late.
mod pace;
// Look-ups and checks: by sockets, or by a test's script.
mod network;
// From that state to a snapshot and a report.
mod assemble;
// The pair of certificate and key, watched.
mod certs;
// Files that change: mounted ones too, whose folder is swapped.
mod files;
// UTF-16, which nothing here reads, told by its name.
mod encoding;
// Tasks that begin again when they panic.
mod supervise;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};

use tokio::sync::{mpsc, oneshot, watch};

pub use self::certs::{PairError, PairFault, PairPart};
#[cfg(any(test, fuzzing))]
pub use self::discovery::exercise::exercise_dns_answers;
use self::{
    config::Config,
    core::{Core, Wires},
    network::Sockets,
    status::Status,
    supervise::Panics,
};
use crate::{
    cgroup::MemoryGroup,
    snapshot::{Hints, Reader, pressure::Pressure},
};

/// The running control plane. Dropping it stops it.
#[derive(Debug)]
pub struct ControlPlane {
    handle: ControlHandle,
    reader: Reader,
    runtime: tokio::runtime::Handle,
    panics: Panics,
    thread: Option<thread::JoinHandle<()>>,
}

/// Orders for the control plane; cheap to clone, for the admin pages and the signal handler.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    commands: mpsc::UnboundedSender<Command>,
    first_answers: watch::Receiver<bool>,
    status: Arc<Status>,
}

/// Why the control plane could not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The thread or its runtime could not be made: exit 1.
    #[error("cannot start the control plane's thread: {0}")]
    Thread(#[source] io::Error),
    /// The certificate's files are there and can't be served: exit 2.
    #[error(transparent)]
    Certificate(#[from] PairError),
}

/// Why a reload changed nothing. The text is for the operator who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ReloadError(pub String);

/// What the loop is asked to do.
#[derive(Debug)]
enum Command {
    SetServing(bool, oneshot::Sender<()>),
    Reload(oneshot::Sender<Result<(), ReloadError>>),
    Stop,
}

impl ControlPlane {
    /// Starts the thread, reads the certificate, and begins to resolve and check the clusters of `config`.
    ///
    /// `source` is the file that `config` was read from: it is watched, and reread by [`ControlHandle::reload`];
    /// `None` for a configuration made in memory, which can't be reloaded. `hints` are the workers' way back.
    ///
    /// A certificate whose files aren't there yet is waited for (not ready until then).
    ///
    /// # Errors
    /// [`SpawnError`]: nothing was started.
    pub fn spawn(
        config: Config,
        source: Option<PathBuf>,
        hints: Arc<Hints>,
    ) -> Result<Self, SpawnError> {
        let certificate = certs::Served::read(&config.certificate_chain, &config.private_key)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SpawnError::Thread)?;
        let runtime_handle = runtime.handle().clone();
        let (commands, orders) = mpsc::unbounded_channel();
        let (first_answered, first_answers) = watch::channel(false);
        let panics = Panics::default();
        let network = {
            // The resolver takes the runtime that it is made on.
            let _on = runtime.enter();
            Box::new(Sockets::new(&config.nameservers))
        };
        let wires = Wires {
            hints,
            orders,
            first_answered,
            network,
            panics: panics.clone(),
        };
        let (core, reader, status) = Core::new(config, source, certificate, wires);
        let thread = thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                runtime.block_on(core.run());
                // A read that hangs on its file system must not keep the process.
                runtime.shutdown_timeout(Duration::from_secs(1));
            })
            .map_err(SpawnError::Thread)?;
        Ok(Self {
            handle: ControlHandle {
                commands,
                first_answers,
                status,
            },
            reader,
            runtime: runtime_handle,
            panics,
            thread: Some(thread),
        })
    }

    /// A reader of the snapshots, for one worker.
    pub fn reader(&self) -> Reader {
        self.reader.clone()
    }

    /// For the admin pages, the probes and the metrics.
    pub fn status(&self) -> Arc<Status> {
        self.handle.status.clone()
    }

    /// For whoever gives orders.
    pub fn handle(&self) -> ControlHandle {
        self.handle.clone()
    }

    /// The control thread's runtime: admin and probes are spawned here. They end with the control plane.
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    /// Has the overload manager look at `group`'s memory, and publish what is to be done.
    pub fn watch_memory(&self, group: MemoryGroup, publish: watch::Sender<Pressure>) {
        let usage = move || group.usage();
        // Ends with the runtime.
        self.runtime
            .spawn(overload::watch(usage, publish, self.panics.clone()));
    }

    /// Stops all look-ups and checks, everything spawned on [`runtime`](Self::runtime), and waits for the thread's end.
    pub fn stop(mut self) {
        let _ = self.handle.commands.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was logged by the panic hook; there is nothing left to save.
            let _ = thread.join();
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.handle.commands.send(Command::Stop);
    }
}

impl ControlHandle {
    /// Waits until every cluster has had a first answer from DNS, or 5 s have passed since the start: then the
    /// listener may open.
    pub async fn first_answers(&self) {
        // An error means that the control plane has ended: nobody will answer any more.
        let _ = self
            .first_answers
            .clone()
            .wait_for(|answered| *answered)
            .await;
    }

    /// `/healthcheck/fail` (false) and `/healthcheck/ok` (true): returns once `/readyz` and `/healthz` say so.
    pub async fn set_serving(&self, serving: bool) {
        let (done, wait) = oneshot::channel();
        if self
            .commands
            .send(Command::SetServing(serving, done))
            .is_ok()
        {
            let _ = wait.await;
        }
    }

    /// Rereads the configuration, as SIGHUP asks. Returns once the new one is in force (its new clusters have been
    /// resolved and checked, at most 5 s) or has been refused.
    ///
    /// # Errors
    /// [`ReloadError`]: nothing was changed; the same text is in the log and in [`Status`].
    pub async fn reload(&self) -> Result<(), ReloadError> {
        let (done, wait) = oneshot::channel();
        let ended = || ReloadError("the control plane has ended".into());
        self.commands
            .send(Command::Reload(done))
            .map_err(|_| ended())?;
        wait.await.unwrap_or_else(|_| Err(ended()))
    }

    /// See [`Status::ready`].
    pub fn ready(&self) -> bool {
        self.status.ready()
    }

    /// For the admin pages, the probes and the metrics.
    pub fn status(&self) -> Arc<Status> {
        self.status.clone()
    }
}
