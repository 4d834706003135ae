//! The control plane's loop.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::AtomicUsize},
};

use tokio::sync::{mpsc, watch};

use super::{
    Command, ReloadError,
    config::Config,
    status::{CertificateReport, ConfigurationReport, Readiness, Report, Status, now_ms},
};
use crate::{
    data_plane::route::RouteTable,
    snapshot::{Cluster, Hints, Publisher, Reader, Snapshot},
};

/// All of the control plane's state.
pub(super) struct Core {
    publisher: Publisher,
    status: Arc<Status>,
    hints: Arc<Hints>,
    orders: mpsc::UnboundedReceiver<Command>,
    first_answered: watch::Sender<bool>,
}

impl Core {
    pub(super) fn new(
        config: Config,
        source: Option<PathBuf>,
        hints: Arc<Hints>,
        orders: mpsc::UnboundedReceiver<Command>,
        first_answered: watch::Sender<bool>,
    ) -> (Self, Reader, Arc<Status>) {
        let (publisher, reader) = Publisher::new(Snapshot {
            generation: 1,
            listener: config.listener.clone(),
            routes: Arc::new(RouteTable::new(config.routes.clone())),
            clusters: config
                .clusters
                .iter()
                .map(|cluster| {
                    Arc::new(Cluster {
                        name: cluster.name.clone(),
                        policy: cluster.policy.clone(),
                        endpoints: Vec::new(),
                        eligible: Vec::new(),
                        turn: Arc::new(AtomicUsize::new(0)),
                    })
                })
                .collect(),
            tls: None,
            serving: true,
        });
        let status = Status::new(Report {
            started_at_ms: now_ms(),
            generation: 1,
            readiness: Readiness {
                serving: true,
                certificate: false,
                warmed_up: false,
            },
            configuration: ConfigurationReport {
                source,
                loaded_at_ms: now_ms(),
                reloads: 0,
                rejected: 0,
                pending: false,
                last_error: None,
                config: Arc::new(config.clone()),
            },
            certificate: CertificateReport {
                chain_path: config.certificate_chain.clone(),
                key_path: config.private_key.clone(),
                current: None,
                loads: 0,
                rejected: 0,
                last_error: None,
            },
            clusters: Vec::new(),
            panics: 0,
        });
        (
            Self {
                publisher,
                status: status.clone(),
                hints,
                orders,
                first_answered,
            },
            reader,
            status,
        )
    }

    pub(super) async fn run(mut self) {
        self.first_answered.send_replace(true);
        loop {
            let order = tokio::select! {
                order = self.orders.recv() => order,
                () = self.hints.wait() => continue,
            };
            match order {
                None | Some(Command::Stop) => return,
                Some(Command::SetServing(serving, done)) => {
                    self.publisher.publish(Snapshot {
                        serving,
                        ..(*self.publisher.current()).clone()
                    });
                    let mut report = (*self.status.report()).clone();
                    report.readiness.serving = serving;
                    self.status.set(report);
                    let _ = done.send(());
                }
                Some(Command::Reload(done)) => {
                    let _ = done.send(Err(ReloadError("not yet".into())));
                }
            }
        }
    }
}
