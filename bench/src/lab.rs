//! Everything that a part needs, running: a certificate, two backends, the peers.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::ValueEnum;
use e2e::certs::SERVER_NAME;
use rcgen::{
    CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, date_time_ymd,
};
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::{
    backend::Backend,
    load::client,
    machine::Cores,
    peers::{Folders, Kind, Peer, Programs, Setting},
};

/// The key of the certificate that all peers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Key {
    /// What most certificates have.
    #[default]
    Rsa2048,
    /// The tutorial's.
    Rsa4096,
    /// The cheapest to sign with.
    P256,
}

/// The running system. It ends with this value.
pub(crate) struct Lab {
    /// In the order of their names' list; each round begins with another.
    pub(crate) peers: Vec<Peer>,
    setting: Setting,
    folders: Folders,
    endpoints: Vec<SocketAddr>,
    /// Both of them, each with half of the endpoints.
    backends: Vec<Backend>,
    /// What a client trusts.
    pub(crate) tls: Arc<ClientConfig>,
    /// Where files may be put.
    pub(crate) folder: PathBuf,
    _own: TempDir,
}

impl Lab {
    /// Starts the peers `kinds`, configured as `setting` says, and waits until each has answered an RPC. One that doesn't
    /// is told to `lost`, and the others go on without it.
    ///
    /// # Errors
    /// When the rest can't be had.
    pub(crate) async fn start(
        programs: &Programs,
        kinds: &[Kind],
        setting: Setting,
        key: Key,
        mut lost: impl FnMut(String),
    ) -> anyhow::Result<Self> {
        let own = TempDir::with_prefix("bench-").context("cannot make a folder")?;
        let folder = own.path().to_owned();
        let folders = Folders {
            tls: folder.join("tls"),
            root: folder.join("peers"),
        };
        let tls = certificate(&folders, key)?;
        let (backends, endpoints) = backends(setting.endpoints)?;
        let mut lab = Self {
            peers: Vec::new(),
            setting,
            folders,
            endpoints,
            backends,
            tls,
            folder,
            _own: own,
        };
        for kind in kinds {
            let peer = lab.begin(programs, *kind)?;
            lab.peers.push(peer);
        }
        for mut peer in std::mem::take(&mut lab.peers) {
            match ready(&mut peer, &lab.tls).await {
                Ok(_) => lab.peers.push(peer),
                Err(error) => lost(format!("{}: {error:#}", peer.kind.name())),
            }
        }
        lab.settle()?;
        Ok(lab)
    }

    /// Starts a peer, and ends it when it has answered an RPC; how long that took.
    ///
    /// # Errors
    /// When it doesn't.
    pub(crate) async fn launch(&self, programs: &Programs, kind: Kind) -> anyhow::Result<Duration> {
        let mut peer = self.begin(programs, kind)?;
        ready(&mut peer, &self.tls).await
    }

    fn begin(&self, programs: &Programs, kind: Kind) -> anyhow::Result<Peer> {
        let cores = Cores::divide(self.setting.workers)?;
        let program = programs.get(kind)?;
        Peer::start(
            kind,
            program,
            &self.folders,
            self.setting,
            &self.endpoints,
            &cores,
        )
    }

    /// RPCs that the backends have answered.
    ///
    /// # Errors
    /// When one has ended.
    pub(crate) fn answered(&mut self) -> anyhow::Result<Vec<u64>> {
        self.backends.iter_mut().map(Backend::answered).collect()
    }

    /// Empties the logs: what was asked to see whether a peer is ready is no part of any sample.
    fn settle(&mut self) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_millis(600);
        while Instant::now() < until {
            for peer in &mut self.peers {
                peer.log_lines(0)?;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// Waits until a peer answers an RPC; how long it took since its start.
async fn ready(peer: &mut Peer, tls: &Arc<ClientConfig>) -> anyhow::Result<Duration> {
    loop {
        let asked = client::ask(peer.address, tls).await;
        let elapsed = peer.started.elapsed();
        let Err(error) = asked else {
            return Ok(elapsed);
        };
        peer.check()?;
        if elapsed > READY {
            let name = peer.kind.name();
            return Err(error.context(format!("{name} isn't ready after {READY:?}")));
        }
        tokio::time::sleep(Duration::from_micros(500)).await;
    }
}

/// The indices of `count` peers, as round `round` goes through them: each begins with another.
pub(crate) fn turn(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |index| (index + round) % count)
}

/// Two backends; every second endpoint is the other's.
fn backends(endpoints: usize) -> anyhow::Result<(Vec<Backend>, Vec<SocketAddr>)> {
    let first = Backend::start(0, endpoints.div_ceil(2).max(1))?;
    let second = Backend::start(1, (endpoints / 2).max(1))?;
    let all = (0..endpoints)
        .filter_map(|index| {
            [&first, &second][index % 2]
                .addresses
                .get(index / 2)
                .copied()
        })
        .collect();
    Ok((vec![first, second], all))
}

fn certificate(folders: &Folders, key: Key) -> anyhow::Result<Arc<ClientConfig>> {
    let key = match key {
        Key::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        Key::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        Key::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
    }
    .context("cannot make a key")?;
    let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
    params.is_ca = rcgen::IsCa::ExplicitNoCa;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    let certificate = params
        .self_signed(&key)
        .context("cannot sign a certificate")?;
    let (chain, secret) = (certificate.pem(), key.serialize_pem());
    fs::create_dir_all(&folders.tls).context("cannot make a folder")?;
    for (name, text) in [
        ("tls.crt", &chain),
        ("tls.key", &secret),
        ("both.pem", &format!("{chain}{secret}")),
    ] {
        fs::write(folders.tls.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    client::trusting(certificate.der().clone())
}

/// 1000 health checks on a busy machine, and Envoy's own start.
const READY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peer_is_first_in_its_turn() {
        let order = |round| turn(3, round).collect::<Vec<_>>();
        assert_eq!(order(0), [0, 1, 2]);
        assert_eq!(order(1), [1, 2, 0]);
        assert_eq!(order(3), [0, 1, 2]);
    }
}
