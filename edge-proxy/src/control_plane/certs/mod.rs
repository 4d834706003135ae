//! The certificate: read and judged as a pair ([`pair`], of what [`pem`] and [`chain`] say), watched on disk ([`watch`]),
//! and what is served ([`Served`]).

mod chain;
mod pair;
mod pem;
#[cfg(test)]
mod tests;
mod watch;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

pub use self::pair::{PairError, PairFault, PairPart};
pub(super) use self::{
    pair::{Identities, Pair},
    watch::CertificateEvent,
};
use super::{
    status::{CertificateReport, Problem, now_ms},
    supervise::{Owned, Panics, supervise},
};

/// The pair that is served, and what became of the files since.
#[derive(Debug)]
pub(super) struct Served {
    chain: PathBuf,
    key: PathBuf,
    identities: Identities,
    current: Option<Pair>,
    loads: u64,
    rejected: u64,
    last_error: Option<Problem>,
    /// When the log was last told that the proxy waits for the files.
    waiting_told: Option<Instant>,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    found: mpsc::Receiver<CertificateEvent>,
    _task: Owned,
}

impl Served {
    /// Reads the pair now, at the start.
    ///
    /// # Errors
    /// The files are there and aren't a good pair. Files that aren't there are waited for.
    pub(super) fn read(chain: &Path, key: &Path) -> Result<Self, PairError> {
        let identities = Identities::new();
        let read = identities.read_pair(chain, key, (now_ms() / 1000) as i64);
        let mut served = Self {
            chain: chain.to_owned(),
            key: key.to_owned(),
            identities,
            current: None,
            loads: 0,
            rejected: 0,
            last_error: None,
            waiting_told: None,
            watch: None,
        };
        match read {
            Err(error) if !error.is_missing() => Err(error),
            event => {
                served.found(event, Instant::now());
                Ok(served)
            }
        }
    }

    /// Begins to watch the files. Called on the runtime, again for other files.
    pub(super) fn watch(&mut self, panics: &Panics) {
        let (found, events) = mpsc::channel(1);
        let (identities, chain, key) = (
            self.identities.clone(),
            self.chain.clone(),
            self.key.clone(),
        );
        let task = supervise("certificate watch", panics.clone(), move || {
            watch::watch(
                identities.clone(),
                chain.clone(),
                key.clone(),
                found.clone(),
            )
        });
        self.watch = Some(Watch {
            found: events,
            _task: task,
        });
    }

    /// The next look at the files that ended. Cancel safe.
    pub(super) async fn next_event(&mut self) -> CertificateEvent {
        if let Some(watch) = &mut self.watch
            && let Some(event) = watch.found.recv().await
        {
            return event;
        }
        std::future::pending().await
    }

    /// Takes what a look at the files found. True: another pair is to be served.
    pub(super) fn found(&mut self, event: CertificateEvent, now: Instant) -> bool {
        match event {
            Ok(pair)
                if self
                    .current
                    .as_ref()
                    .is_some_and(|old| old.chain == pair.chain) =>
            {
                self.last_error = None;
                false
            }
            Ok(pair) => {
                self.install(pair);
                true
            }
            Err(error) if error.is_missing() && self.current.is_none() => {
                self.wait(&error, now);
                false
            }
            Err(error) => {
                if self.note(&error) {
                    self.rejected += 1;
                    if self.current.is_some() {
                        tracing::error!(%error, "certificate refused; the one that is served stays");
                    } else {
                        tracing::error!(%error, "certificate refused; still waiting for one to serve");
                    }
                }
                false
            }
        }
    }

    /// Serves `pair`, read from other files, from now on.
    pub(super) fn replace(&mut self, chain: &Path, key: &Path, pair: Pair, panics: &Panics) {
        self.chain = chain.to_owned();
        self.key = key.to_owned();
        self.install(pair);
        self.watch(panics);
    }

    /// What is served.
    pub(super) fn current(&self) -> Option<&Pair> {
        self.current.as_ref()
    }

    /// To read other files with.
    pub(super) fn identities(&self) -> &Identities {
        &self.identities
    }

    /// For operators.
    pub(super) fn report(&self) -> CertificateReport {
        CertificateReport {
            chain_path: self.chain.clone(),
            key_path: self.key.clone(),
            current: self.current.as_ref().map(|pair| pair.info.clone()),
            loads: self.loads,
            rejected: self.rejected,
            last_error: self.last_error.clone(),
        }
    }

    fn install(&mut self, pair: Pair) {
        self.loads += 1;
        self.last_error = None;
        tracing::info!(
            subject = pair.info.subject,
            names = pair.info.names.join(" "),
            serial = pair.info.serial,
            file = %self.chain.display(),
            "certificate loaded"
        );
        if let Some(doubt) = &pair.doubt {
            tracing::warn!("{}: {doubt}", self.chain.display());
        }
        self.current = Some(pair);
    }

    /// Keeps what is wrong now, for operators; whether it is something else than before.
    fn note(&mut self, error: &PairError) -> bool {
        let message = error.to_string();
        let known = self.last_error.as_ref().map(|last| &last.message);
        let new = known != Some(&message);
        if new {
            self.last_error = Some(Problem::now(message));
        }
        new
    }

    /// One line every 10 s, as long as there is nothing to serve.
    fn wait(&mut self, error: &PairError, now: Instant) {
        self.note(error);
        if self.waiting_told.is_some_and(|told| now < told + WAITING) {
            return;
        }
        self.waiting_told = Some(now);
        let file = error.path.display();
        tracing::warn!("waiting for the certificate: {file} isn't there. {HOW_TO_MAKE_THE_SECRET}");
    }
}

/// What the log and `check` say of files that aren't there.
pub(super) const HOW_TO_MAKE_THE_SECRET: &str =
    "Make the Secret: kubectl create secret tls edge-certs --key privkey.pem --cert cert.pem";

/// Between lines of the log while there is no certificate.
const WAITING: Duration = Duration::from_secs(10);
