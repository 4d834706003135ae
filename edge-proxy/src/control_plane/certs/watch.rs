//! Reads the pair whenever its files may have changed, and reports what it found.
//!
//! The task keeps no state but its watch: what is new and what was told before is for the receiver to know, so that a
//! restart loses nothing.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{sync::mpsc, task::spawn_blocking, time};

use super::{
    PairError,
    pair::{Identities, Pair},
};
use crate::control_plane::{files::Directories, status::now_ms};

/// What a look at the files found.
pub(crate) type CertificateEvent = Result<Pair, PairError>;

/// Reports after each change, and every minute anyway; every second while there is no good pair. Ends when nobody
/// listens.
pub(crate) async fn watch(
    identities: Identities,
    chain: PathBuf,
    key: PathBuf,
    found: mpsc::Sender<CertificateEvent>,
) {
    loop {
        // Made before the files are read, so that a change after that is an event; and made anew each time, since the
        // directory itself may have been replaced.
        let directories = Directories::of([chain.as_path(), key.as_path()]);
        let event = match read(&identities, &chain, &key).await {
            // Somebody may be writing the two files one after the other.
            Err(error) if !error.is_missing() => {
                time::sleep(SECOND_LOOK).await;
                read(&identities, &chain, &key).await
            }
            event => event,
        };
        let poll = if event.is_ok() { POLL } else { POLL_BAD };
        if found.send(event).await.is_err() {
            return;
        }
        directories.changed(poll).await;
    }
}

async fn read(identities: &Identities, chain: &Path, key: &Path) -> CertificateEvent {
    let (identities, chain, key) = (identities.clone(), chain.to_owned(), key.to_owned());
    let now = (now_ms() / 1000) as i64;
    // A file system may hang; the control plane's thread must not.
    match spawn_blocking(move || identities.read_pair(&chain, &key, now)).await {
        Ok(event) => event,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Between looks at a good pair whose directory is watched: events can get lost.
const POLL: Duration = Duration::from_secs(60);

/// Between looks while the files are missing or bad.
const POLL_BAD: Duration = Duration::from_secs(1);

/// After a bad pair was read, before it is told.
const SECOND_LOOK: Duration = Duration::from_millis(200);
