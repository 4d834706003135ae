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
    InconsistentKeys, ServerConfig, SupportedCipherSuite,
    crypto::{CryptoProvider, aws_lc_rs, aws_lc_rs::cipher_suite},
    server::{NoServerSessionStorage, ProducesTickets},
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{
    chain::{Described, describe, number_of_the_keys},
    pem::{check_encoding, key_fault, parse_chain, parse_key},
};
use crate::{control_plane::status::CertificateInfo, snapshot::TlsIdentity};

/// A good pair.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    /// What new connections are served with.
    pub(crate) identity: Arc<TlsIdentity>,
    /// For operators.
    pub(crate) info: CertificateInfo,
    /// What some clients may refuse the chain for.
    pub(crate) doubt: Option<String>,
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
    /// Nothing can be signed with the key; the certificate's kind is this.
    #[error(
        "this private key can't be used (the certificate's is {0}): RSA of 2048 to 8192 bits, ECDSA P-256, P-384 or \
         P-521, and Ed25519 work; make one of these, and have a certificate issued for it"
    )]
    UnusableKey(String),
    /// The key isn't the certificate's.
    #[error("this private key isn't the key of the certificate in {}", .chain.display())]
    Mismatched {
        /// The certificate's file.
        chain: PathBuf,
    },
    /// The key is that of another certificate of the chain.
    #[error(
        "certificate {number} in it is that of the private key: put it first, then its issuer's, and so on"
    )]
    Misordered {
        /// From 1.
        number: usize,
    },
    /// The certificate is of an X.509 version that has no extensions, and so no names of hosts (RFC 5280 §4.1).
    #[error(
        "the certificate is of X.509 version {0}, which many TLS libraries refuse, the one in here too: have one of \
         version 3 issued, with its names in subjectAltName (`openssl x509 -req` takes extensions from -extfile)"
    )]
    OldVersion(u32),
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
        check_encoding(&chain_pem).map_err(blame_chain)?;
        check_encoding(&key_pem).map_err(blame_key)?;

        let certificates = parse_chain(&chain_pem).map_err(|broken| {
            // One file may hold both.
            if chain == key && broken.is_a_keys() {
                blame_key(key_fault(&broken, &key_pem))
            } else {
                blame_chain(broken.fault(PairPart::Chain))
            }
        })?;
        let Described { info, doubt } = describe(&certificates, now).map_err(blame_chain)?;
        let key_der = parse_key(&key_pem).map_err(blame_key)?;
        let provider = Arc::new(provider());
        // Why it can't, the library doesn't know: it tries one kind after the other.
        let signing = provider
            .key_provider
            .load_private_key(key_der)
            .map_err(|_| blame_key(PairFault::UnusableKey(info.key.clone())))?;
        let certified = CertifiedKey::new(certificates, signing);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(rustls::Error::InconsistentKeys(_)) => {
                return Err(match number_of_the_keys(&certified) {
                    Some(number) => blame_chain(PairFault::Misordered { number }),
                    None => blame_key(PairFault::Mismatched {
                        chain: chain.to_owned(),
                    }),
                });
            }
            Err(other) => {
                let fault = format!("the certificate can't be used: {other}");
                return Err(blame_chain(PairFault::Malformed(fault)));
            }
        }

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
            doubt,
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
