//! All wiring, top to bottom: binds, starts the control plane, the workers and the acceptor, and returns a running
//! proxy with its addresses. Nothing is global: tests run several in one process.

// The addresses that it listens on.
mod bind;

use std::{
    future::Future, io, net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc, thread, time::Duration,
};

use socket2::Socket;
use tokio::{sync::watch, task::JoinSet};

use self::bind::{LISTENER, Sockets, bind_advice, listen};
pub use crate::shutdown::{Outcome, ShutdownHandle};
use crate::{
    cgroup::{MemoryGroup, Resources},
    cli,
    control_plane::{
        ControlHandle, ControlPlane, SpawnError,
        admin::{self, Addresses},
        config::Config,
        status::ProcessState,
    },
    data_plane::{
        access_log::{AccessLog, Reopener},
        listener::{Acceptor, Room},
        memory::Memory,
        worker::{self, Handle, Parts, Phase},
    },
    open_files,
    shutdown::{Drainer, Order},
    snapshot::{Heartbeats, Hints, Reader, pressure::Pressure},
    telemetry::{
        log::{LogLevel, SetLevelError},
        metrics::Metrics,
    },
};

/// See [`App::start`].
#[derive(Debug)]
pub struct App;

/// A proxy that runs, or is about to: it listens as soon as it has a certificate and its first answers from DNS.
#[derive(Debug)]
pub struct Running {
    addresses: Addresses,
    shutdown: ShutdownHandle,
    control: ControlHandle,
    access_log: Reopener,
    life: thread::JoinHandle<Outcome>,
}

/// Why nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A port is in use, or may not be used.
    #[error("cannot listen on {address} ({key}): {}", bind_advice(source))]
    Bind {
        /// The configuration's key.
        key: &'static str,
        /// What it says.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The access log's file can't be opened.
    #[error(
        "cannot open the access log (access_log.path): make its folder, or give a path that this user may write to"
    )]
    AccessLog(#[source] io::Error),
    /// The certificate and key are there and can't be served, or a thread could not be started.
    #[error(transparent)]
    Control(#[from] SpawnError),
    /// A thread or its runtime could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

impl App {
    /// Starts everything. `source` is the file that `config` came from, to be watched and reread; `None` for a
    /// configuration that was made in memory.
    ///
    /// # Errors
    /// Nothing is left running then.
    pub fn start(
        config: Config,
        source: impl Into<Option<PathBuf>>,
    ) -> Result<Running, StartError> {
        Self::start_logging(config, source, LogLevel::detached())
    }

    /// [`start`](Self::start), with diagnostics whose level the admin pages can change.
    ///
    /// # Errors
    /// Nothing is left running then.
    pub fn start_logging(
        config: Config,
        source: impl Into<Option<PathBuf>>,
        log_level: LogLevel,
    ) -> Result<Running, StartError> {
        Self::start_within(config, source, log_level, MemoryGroup::detect())
    }

    /// [`start_logging`](Self::start_logging), with the overload manager looking at another cgroup's memory, or at none.
    ///
    /// # Errors
    /// Nothing is left running then.
    pub fn start_within(
        config: Config,
        source: impl Into<Option<PathBuf>>,
        log_level: LogLevel,
        memory_group: Option<MemoryGroup>,
    ) -> Result<Running, StartError> {
        // Bound at once, so that a port in use is told before anything runs.
        let sockets = Sockets::bind(&config)?;
        let addresses = sockets.addresses(&config);

        let resources = Resources::detect();
        let workers = match config.workers {
            0 => resources.cores,
            workers => workers,
        };
        let access_log = AccessLog::start(&config.access_log).map_err(StartError::AccessLog)?;
        let metrics = Metrics::new();
        metrics.watch_access_log(access_log.dropped());
        let hints = Arc::new(Hints::default());
        let heartbeats = Heartbeats::new(workers);
        let control = ControlPlane::spawn(config, source.into(), hints.clone())?;

        let memory = Memory::new(resources.memory_limit, workers);
        let (phase, phases) = watch::channel(Phase::Running);
        let (publish, pressure) = watch::channel(Pressure::default());
        if let Some(group) = memory_group {
            control.watch_memory(group, publish);
        }
        let workers = (0..workers)
            .map(|index| {
                worker::spawn(Parts {
                    index,
                    reader: control.reader(),
                    shard: metrics.shard(),
                    log: access_log.writer(),
                    hints: hints.clone(),
                    heartbeats: heartbeats.clone(),
                    phase: phases.clone(),
                    pressure: pressure.clone(),
                    memory: memory.clone(),
                })
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(StartError::Thread)?;

        let (shutdown, orders) = ShutdownHandle::new();
        let (process, processes) = watch::channel(ProcessState::default());
        let state = admin::State {
            status: control.status(),
            metrics: metrics.clone(),
            heartbeats: heartbeats.clone(),
            memory_limit: resources.memory_limit,
            pressure: pressure.clone(),
            process: processes,
            addresses,
            hostname: hostname(),
            actions: Arc::new(Actions {
                control: control.handle(),
                shutdown: shutdown.clone(),
                log_level,
            }),
        };
        serve_operators(&control, sockets.admin, sockets.probes, state)
            .map_err(StartError::Thread)?;

        let handle = control.handle();
        let reopener = access_log.reopener();
        let life = Life {
            listener: Some(sockets.listener),
            address: addresses.listener,
            process,
            control,
            workers,
            heartbeats,
            memory,
            open_files: open_files::raise(),
            phase,
            pressure,
            access_log,
            metrics,
            orders,
        };
        let life = thread::Builder::new()
            .name("edge-proxy".into())
            .spawn(move || life.run())
            .map_err(StartError::Thread)?;
        Ok(Running {
            addresses,
            shutdown,
            control: handle,
            access_log: reopener,
            life,
        })
    }
}

impl StartError {
    /// 2: the configuration (or a file that it names) is wrong; 1: the machine doesn't let us.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Control(SpawnError::Certificate(_)) => cli::EXIT_WRONG,
            Self::Bind { .. } | Self::AccessLog(_) | Self::Control(_) | Self::Thread(_) => {
                cli::EXIT_FAILED
            }
        }
    }
}

impl Running {
    /// Where clients connect; the real port if the configuration says 0.
    pub fn listener(&self) -> SocketAddr {
        self.addresses.listener
    }

    /// Where the admin pages are.
    pub fn admin(&self) -> SocketAddr {
        self.addresses.admin
    }

    /// Where the probes are.
    pub fn probes(&self) -> SocketAddr {
        self.addresses.probes
    }

    /// Ends it.
    pub fn shutdown(&self) -> ShutdownHandle {
        self.shutdown.clone()
    }

    /// Rereads its configuration.
    pub fn control(&self) -> ControlHandle {
        self.control.clone()
    }

    /// Opens the access log's file anew.
    pub fn access_log(&self) -> Reopener {
        self.access_log.clone()
    }

    /// Blocks until it has ended.
    pub fn wait(self) -> Outcome {
        self.life.join().unwrap_or(Outcome::Failed)
    }
}

/// Owns everything that runs, from the first answers to the last log line.
struct Life {
    /// Taken when it listens: a second descriptor would keep the port open after the acceptor has closed its own.
    listener: Option<Socket>,
    /// Its own.
    address: SocketAddr,
    /// How far this is; for operators, and read by `/readyz`.
    process: watch::Sender<ProcessState>,
    control: ControlPlane,
    workers: Vec<Handle>,
    /// Theirs.
    heartbeats: Arc<Heartbeats>,
    memory: Arc<Memory>,
    /// The limit of them.
    open_files: usize,
    phase: watch::Sender<Phase>,
    pressure: watch::Receiver<Pressure>,
    access_log: AccessLog,
    metrics: Arc<Metrics>,
    orders: watch::Receiver<Order>,
}

impl Life {
    fn run(mut self) -> Outcome {
        let outcome = match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime.block_on(self.serve()),
            Err(error) => {
                tracing::error!(%error, "cannot make a runtime");
                Outcome::Failed
            }
        };
        self.phase.send_replace(Phase::Stopped);
        for worker in self.workers {
            if worker.thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
        self.control.stop();
        if !self.access_log.finish(LOG_FLUSH) {
            tracing::warn!("the access log's output blocks: its last lines are lost");
        }
        tracing::info!(?outcome, "ended");
        outcome
    }

    async fn serve(&mut self) -> Outcome {
        let control = self.control.handle();
        let mut orders = self.orders.clone();
        let opened = async {
            control.first_answers().await;
            certificate(self.control.reader()).await
        };
        let certain = tokio::select! {
            certain = opened => certain,
            order = orders.wait_for(|order| *order >= Order::Drain) => {
                let killed = order.is_ok_and(|order| *order == Order::Kill);
                return if killed { Outcome::Killed } else { Outcome::Drained };
            }
        };
        if !certain {
            return Outcome::Failed;
        }
        let Some(listener) = self.listener.take() else {
            return Outcome::Failed;
        };
        let address = self.address;
        // Another process may have bound the address as well, and begun to listen while this one waited.
        let acceptor = listen(LISTENER, address, &listener).and_then(|()| {
            Acceptor::spawn(
                listener.into(),
                &self.workers,
                self.heartbeats.clone(),
                self.control.reader(),
                self.pressure.clone(),
                &self.metrics,
                Room {
                    by_memory: self.memory.connections(),
                    by_files: open_files::connections(self.open_files),
                    open_files: self.open_files,
                },
            )
            .map_err(StartError::Thread)
        });
        let mut acceptor = match acceptor {
            Ok(acceptor) => acceptor,
            Err(error) => {
                tracing::error!("{error}");
                return Outcome::Failed;
            }
        };
        self.process.send_replace(ProcessState::Serving);
        tracing::info!(%address, "serving");

        let (mut order, well) = tokio::select! {
            order = orders.wait_for(|order| *order > Order::Run) => {
                (order.map_or(Order::Drain, |order| *order), true)
            }
            () = any_closed(&self.workers) => {
                tracing::error!("a worker has ended: draining, since a process that starts anew serves better");
                (Order::Drain, false)
            }
        };
        if order != Order::Kill {
            let drainer = Drainer {
                // As it is by now: a reload may have changed it.
                times: self.control.status().report().configuration.config.drain,
                phase: &self.phase,
                acceptor: &mut acceptor,
                process: &self.process,
                orders: &mut self.orders,
            };
            if !drainer.run().await {
                return Outcome::Killed;
            }
            if order == Order::DrainListeners {
                tracing::info!("drained; staying until told to end");
                order = orders
                    .wait_for(|order| *order >= Order::Drain)
                    .await
                    .map_or(Order::Drain, |order| *order);
            }
        }
        match order {
            Order::Kill => Outcome::Killed,
            _ if well => Outcome::Drained,
            _ => Outcome::Failed,
        }
    }
}

/// What the admin pages can ask for.
#[derive(Debug)]
struct Actions {
    control: ControlHandle,
    shutdown: ShutdownHandle,
    log_level: LogLevel,
}

impl admin::Actions for Actions {
    fn set_serving(&self, serving: bool) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.control.set_serving(serving))
    }

    fn drain_listeners(&self) {
        self.shutdown.drain_listeners();
    }

    fn quit(&self) {
        self.shutdown.drain();
    }

    fn set_log_level(&self, level: &str) -> Result<(), SetLevelError> {
        self.log_level.set(level)
    }

    fn log_level(&self) -> String {
        self.log_level.current()
    }
}

/// Admin and probes run on the control plane's thread: a busy data path can't starve them.
fn serve_operators(
    control: &ControlPlane,
    admin_listener: Socket,
    probes_listener: Socket,
    state: admin::State,
) -> io::Result<()> {
    let runtime = control.runtime();
    let _entered = runtime.enter();
    let admin_listener = tokio::net::TcpListener::from_std(admin_listener.into())?;
    let probes_listener = tokio::net::TcpListener::from_std(probes_listener.into())?;
    // They end with the control plane's runtime.
    runtime.spawn(admin::serve(
        admin_listener,
        state.clone(),
        std::future::pending(),
    ));
    runtime.spawn(admin::probes::serve(
        probes_listener,
        state,
        std::future::pending(),
    ));
    Ok(())
}

/// Waits until one of the workers has ended.
async fn any_closed(workers: &[Handle]) {
    let mut ends = JoinSet::new();
    for worker in workers {
        let accepted = worker.accepted.clone();
        ends.spawn(async move { accepted.closed().await });
    }
    ends.join_next().await;
}

/// Waits for the first certificate; `false`: the control plane has ended.
async fn certificate(mut reader: Reader) -> bool {
    while reader.load().tls.is_none() {
        if !reader.changed().await {
            return false;
        }
    }
    true
}

/// The pod's name.
fn hostname() -> Arc<str> {
    named([
        std::env::var("HOSTNAME").ok(),
        std::fs::read_to_string("/proc/sys/kernel/hostname").ok(),
    ])
}

/// The first of them that says something: an empty variable is as good as none.
fn named(names: [Option<String>; 2]) -> Arc<str> {
    let mut names = names.iter().flatten().map(|name| name.trim());
    names
        .find(|name| !name.is_empty())
        .unwrap_or("unknown")
        .into()
}

/// For the access log's last lines.
const LOG_FLUSH: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn an_empty_hostname_is_none() {
        let kernel = || Some("node\n".to_owned());
        for (variable, name) in [
            (Some("pod-1"), "pod-1"),
            (Some(""), "node"),
            (Some(" "), "node"),
            (None, "node"),
        ] {
            let variable = variable.map(str::to_owned);
            assert_eq!(&*named([variable, kernel()]), name);
        }
        assert_eq!(&*named([None, None]), "unknown");
    }

    #[tokio::test]
    async fn it_is_seen_when_one_of_the_workers_ends() {
        let worker = || {
            let (accepted, received) = mpsc::unbounded_channel();
            let handle = Handle {
                accepted,
                load: Arc::default(),
                thread: thread::spawn(|| {}),
            };
            (handle, received)
        };
        let ((one, first), (other, second)) = (worker(), worker());
        let workers = [one, other];
        let mut ended = std::pin::pin!(any_closed(&workers));
        tokio::select! {
            biased;
            () = &mut ended => panic!("both run"),
            () = tokio::task::yield_now() => {}
        }
        drop(second);
        ended.await;
        drop(first);
    }
}
