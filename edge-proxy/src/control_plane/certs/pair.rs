//! A certificate chain and its private key: read from two PEM files, judged, and made into what serves them.
//!
//! Everything that could make a handshake fail later is found here: a file that is cut off, a key that isn't the
//! certificate's, a certificate whose time hasn't come or is over. A pair that passes is a [`Pair`] and needs no
//! further check.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig, SupportedCipherSuite,
    crypto::{CryptoProvider, aws_lc_rs, aws_lc_rs::cipher_suite},
    server::{NoServerSessionStorage, ProducesTickets},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{
    chain::describe,
    pem::{key_fault, parse_chain, parse_key},
};
use crate::{control_plane::status::CertificateInfo, snapshot::TlsIdentity};

/// A good pair.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// What new connections are served with.
    pub(crate) identity: Arc<TlsIdentity>,
    /// For operators.
    pub(crate) info: CertificateInfo,
    /// The chain's file. Since the key is the one of its first certificate, a pair with the same chain is the same.
    pub(crate) chain: Vec<u8>,
}

/// Makes [`Pair`]s that share what should outlive each of them: the keys of session tickets, so that clients can
/// resume across a renewal.
#[derive(Clone)]
pub(crate) struct Identities {
    ticketer: Option<Arc<dyn ProducesTickets>>,
}

/// Why a pair isn't served.
#[derive(Debug, thiserror::Error)]
#[error("{}: {fault}", .path.display())]
pub struct PairError {
    /// The part to blame.
    pub part: PairPart,
    /// Its file, which may be the other part's too.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: PairFault,
}

/// A part of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairPart {
    /// `listener.tls.certificate_chain`.
    Chain,
    /// `listener.tls.private_key`.
    Key,
}

/// What is wrong with a file of a pair.
#[derive(Debug, thiserror::Error)]
pub enum PairFault {
    /// It isn't there. The proxy waits for it.
    #[error("the file isn't there")]
    Missing,
    /// It is there and can't be read.
    #[error("cannot read it: {0}")]
    Unreadable(#[source] io::Error),
    /// It isn't the PEM that it should be, or is cut off.
    #[error("{0}")]
    Malformed(String),
    /// The key has a password, which nobody is there to type.
    #[error("the private key in it is encrypted")]
    Encrypted,
    /// The key isn't the certificate's.
    #[error("this private key isn't the key of the certificate in {}", .chain.display())]
    Mismatched {
        /// The certificate's file.
        chain: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate expired on {0}")]
    Expired(String),
    /// The certificate's time hasn't come.
    #[error("the certificate isn't valid before {0}: is the clock right?")]
    NotYetValid(String),
}

impl Identities {
    /// With fresh ticket keys.
    pub(crate) fn new() -> Self {
        let ticketer = aws_lc_rs::Ticketer::new()
            .inspect_err(
                |error| tracing::warn!(%error, "no session tickets: every handshake is a full one"),
            )
            .ok();
        Self { ticketer }
    }

    /// Reads the pair and judges it at `now` (seconds since the epoch).
    ///
    /// # Errors
    /// [`PairError`] names the file to blame and what is wrong with it.
    pub(crate) fn read_pair(&self, chain: &Path, key: &Path, now: i64) -> Result<Pair, PairError> {
        let blame_chain = |fault| PairError {
            part: PairPart::Chain,
            path: chain.to_owned(),
            fault,
        };
        let blame_key = |fault| PairError {
            part: PairPart::Key,
            path: key.to_owned(),
            fault,
        };
        let chain_pem = read(chain).map_err(blame_chain)?;
        let key_pem = read(key).map_err(blame_key)?;

        let certificates = parse_chain(&chain_pem).map_err(|broken| {
            // One file may hold both.
            if chain == key && broken.is_a_keys() {
                blame_key(key_fault(&broken, &key_pem))
            } else {
                blame_chain(broken.fault(PairPart::Chain))
            }
        })?;
        let info = describe(&certificates, now).map_err(blame_chain)?;
        let key_der = parse_key(&key_pem).map_err(blame_key)?;
        let provider = Arc::new(provider());
        let certified = CertifiedKey::from_der(certificates, key_der, &provider).map_err(
            |error| match error {
                rustls::Error::InconsistentKeys(_) => blame_key(PairFault::Mismatched {
                    chain: chain.to_owned(),
                }),
                other => blame_key(PairFault::Malformed(format!(
                    "cannot use this key: {other}"
                ))),
            },
        )?;

        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| blame_chain(PairFault::Malformed(error.to_string())))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Sessions live in the clients' tickets; nothing is kept here for clients that never come back.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if let Some(ticketer) = &self.ticketer {
            config.ticketer = ticketer.clone();
        }
        config.ignore_client_order = true;
        // Clients keep few connections for long: one ticket each is enough. Early data stays off (its size is 0):
        // it could be replayed (RFC 8446 §8).
        config.send_tls13_tickets = 1;
        let identity = TlsIdentity {
            config: Arc::new(config),
            serial: info.serial.clone(),
            not_after: info.not_after,
        };
        Ok(Pair {
            identity: Arc::new(identity),
            info,
            chain: chain_pem,
        })
    }
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities").finish_non_exhaustive()
    }
}

impl PairError {
    /// A file isn't there: a state to wait in, not a mistake.
    pub fn is_missing(&self) -> bool {
        matches!(self.fault, PairFault::Missing)
    }
}

/// The cryptography, with our order of cipher suites.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = SUITES.to_vec();
    provider
}

fn read(path: &Path) -> Result<Vec<u8>, PairFault> {
    fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => PairFault::Missing,
        _ => PairFault::Unreadable(error),
    })
}

/// Which suite a connection gets is ours to say: all of these are good (they are Mozilla's intermediate profile), so it
/// is the cheapest that the client has. OpenSSL's clients would take AES-256 first: 14 rounds for a block instead of 10.
const SUITES: [SupportedCipherSuite; 9] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];
