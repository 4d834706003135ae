//! A certificate chain and its private key: read from two PEM files, judged, and made into what serves them.
//!
//! Everything that could make a handshake fail later is found here: a file that is cut off, a key that isn't the
//! certificate's, a certificate whose time hasn't come or is over. A pair that passes is a [`Pair`] and needs no
//! further check.

use std::{
    collections::BTreeSet,
    fs, io, iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ServerConfig, SupportedCipherSuite,
    crypto::{CryptoProvider, aws_lc_rs, aws_lc_rs::cipher_suite},
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
    server::{NoServerSessionStorage, ProducesTickets},
    sign::{CertifiedKey, SingleCertAndKey},
};
use x509_parser::{
    extensions::GeneralName, prelude::FromDer, public_key::PublicKey, x509::SubjectPublicKeyInfo,
};

use crate::{
    control_plane::status::{CertificateInfo, now_ms},
    snapshot::TlsIdentity,
};

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

/// Why there is nothing to be had of a file, or of a section of it.
struct Broken<'p> {
    error: pem::Error,
    /// The section, or all of the file if there is none of the wanted kind.
    within: &'p [u8],
}

impl<'p> Broken<'p> {
    /// It holds none of what is wanted.
    fn lacking(pem: &'p [u8]) -> Self {
        Self {
            error: pem::Error::NoItemsFound,
            within: pem,
        }
    }

    /// Whether it is a private key's section, as far as its first line tells.
    fn is_a_keys(&self) -> bool {
        let ends = memchr::memchr2(b'\n', b'\r', self.within);
        let first = &self.within[..ends.unwrap_or(self.within.len())];
        !matches!(self.error, pem::Error::NoItemsFound)
            && memchr::memmem::find(first, b"PRIVATE KEY").is_some()
    }

    fn fault(&self, wanted: PairPart) -> PairFault {
        PairFault::Malformed(match &self.error {
            pem::Error::NoItemsFound => {
                let wanted = match wanted {
                    PairPart::Chain => "certificate",
                    PairPart::Key => "private key",
                };
                let found: BTreeSet<_> = labels(self.within).take(LABELS_SHOWN).collect();
                if found.is_empty() {
                    format!("no {wanted} in it (PEM is wanted: -----BEGIN …)")
                } else {
                    let found = Vec::from_iter(found).join(" and ");
                    format!("no {wanted} in it, which holds {found} only")
                }
            }
            pem::Error::MissingSectionEnd { end_marker } => {
                let label = std::str::from_utf8(end_marker).ok();
                let label = label.filter(|label| is_label(label)).unwrap_or("…");
                format!("it is cut off: the line -----END {label}----- is missing")
            }
            // The library's text has the line.
            pem::Error::IllegalSectionStart { .. } => {
                "it isn't proper PEM: a line that begins with -----BEGIN doesn't end in -----"
                    .to_owned()
            }
            // The library's text has a byte.
            pem::Error::Base64Decode(_) => {
                let label = labels(self.within).next().unwrap_or("…");
                format!("it isn't proper PEM: the section {label} isn't base64")
            }
            other => format!("it isn't proper PEM: {other}"),
        })
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

fn parse_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Broken<'_>> {
    let chain = items(pem).collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() {
        return Err(Broken::lacking(pem));
    }
    Ok(chain)
}

fn parse_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, PairFault> {
    let first = items(pem).next();
    first
        .unwrap_or_else(|| Err(Broken::lacking(pem)))
        .map_err(|broken| key_fault(&broken, pem))
}

fn key_fault(broken: &Broken<'_>, pem: &[u8]) -> PairFault {
    // RFC 7468 §11, and RFC 1421 §4.6.1.1 in OpenSSL's older files.
    let encrypted = labels(pem).any(|label| label == "ENCRYPTED PRIVATE KEY")
        || memchr::memmem::find(pem, b"\nProc-Type: 4,ENCRYPTED").is_some();
    if encrypted {
        PairFault::Encrypted
    } else {
        broken.fault(PairPart::Key)
    }
}

/// What a file holds of one kind, section by section: so it is known whose an error is, and a section that is cut off
/// doesn't take the next one with it.
fn items<T: PemObject>(pem: &[u8]) -> impl Iterator<Item = Result<T, Broken<'_>>> {
    sections(pem).flat_map(|within| {
        T::pem_slice_iter(within).map(move |item| item.map_err(|error| Broken { error, within }))
    })
}

/// The file, cut before each line that begins a section.
fn sections(pem: &[u8]) -> impl Iterator<Item = &[u8]> {
    let begins_line = |at: &usize| *at == 0 || matches!(pem[at - 1], b'\n' | b'\r');
    let mut cuts = memchr::memmem::find_iter(pem, BEGIN)
        .filter(begins_line)
        .chain([pem.len()]);
    let mut begin = cuts.next();
    iter::from_fn(move || {
        let end = cuts.next()?;
        Some(&pem[begin.replace(end)?..end])
    })
}

/// What operators see of the leaf; refuses a chain with anything that isn't a certificate, or out of its time.
fn describe(chain: &[CertificateDer<'_>], now: i64) -> Result<CertificateInfo, PairFault> {
    let mut leaf = None;
    for (position, der) in chain.iter().enumerate() {
        let (rest, parsed) =
            x509_parser::certificate::X509Certificate::from_der(der).map_err(|error| {
                PairFault::Malformed(format!(
                    "certificate {} of the chain can't be read: {error}",
                    position + 1
                ))
            })?;
        if !rest.is_empty() {
            return Err(PairFault::Malformed(format!(
                "certificate {} of the chain has {} bytes too many",
                position + 1,
                rest.len()
            )));
        }
        leaf.get_or_insert(parsed);
    }
    let Some(leaf) = leaf else {
        return Err(Broken::lacking(&[]).fault(PairPart::Chain));
    };
    let validity = leaf.validity();
    let (not_before, not_after) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    if now < not_before {
        return Err(PairFault::NotYetValid(day(not_before)));
    }
    if now > not_after {
        return Err(PairFault::Expired(day(not_after)));
    }
    let names = match leaf.subject_alternative_name() {
        Ok(Some(names)) => names.value.general_names.iter().filter_map(name).collect(),
        _ => Vec::new(),
    };
    Ok(CertificateInfo {
        subject: leaf.subject().to_string(),
        issuer: leaf.issuer().to_string(),
        names,
        serial: leaf
            .raw_serial()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        not_before,
        not_after,
        key: key_kind(leaf.public_key()),
        loaded_at_ms: now_ms(),
    })
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes)
                .map(Ipv4Addr::from)
                .map(IpAddr::from);
            let six = <[u8; 16]>::try_from(*bytes)
                .map(Ipv6Addr::from)
                .map(IpAddr::from);
            four.or(six).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn key_kind(key: &SubjectPublicKeyInfo<'_>) -> String {
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
        Ok(PublicKey::EC(point)) => format!("ECDSA P-{}", point.key_size()),
        _ => key.algorithm.algorithm.to_id_string(),
    }
}

/// What PEM sections call themselves (RFC 7468 §3). Nothing else of a file that may hold a key is ever shown.
fn labels(pem: &[u8]) -> impl Iterator<Item = &str> {
    pem.split(|byte| *byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .filter_map(|line| {
            line.trim_end()
                .strip_prefix("-----BEGIN ")?
                .strip_suffix("-----")
        })
        .filter(|label| is_label(label))
}

fn is_label(text: &str) -> bool {
    text.len() <= LONGEST_LABEL
        && text
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ')
}

fn day(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| format!("second {seconds} of the epoch"),
        |time| time.to_string(),
    )
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

/// RFC 7468 §2.
const BEGIN: &[u8] = b"-----BEGIN ";

/// As `ENCRYPTED PRIVATE KEY`; a private key's line is longer.
const LONGEST_LABEL: usize = 40;
/// A bundle of all authorities has hundreds, all of one name.
const LABELS_SHOWN: usize = 500;
