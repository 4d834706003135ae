//! Pairs good and bad.

// Kinds of certificates and keys; chains; files that aren't ASCII.
mod kinds;

// What watching their files finds.
mod watch;

use std::{fs, os::unix::fs::symlink, path::PathBuf, sync::Arc, time::Duration};

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    SupportedCipherSuite, crypto::aws_lc_rs, pki_types::ServerName,
};
use tokio::time::Instant;

use super::*;
use crate::telemetry::captured::Log;

/// PEM of a certificate for `name` and of its key.
fn pair(name: &str) -> (String, String) {
    made(name, |_| {})
}

fn made(name: &str, change: impl FnOnce(&mut CertificateParams)) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([name.to_owned(), "10.0.0.1".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2090, 1, 1);
    change(&mut params);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// A directory as Kubernetes mounts a Secret: `tls.crt` → `..data/tls.crt`, `..data` → a directory per version.
struct Secret {
    directory: tempfile::TempDir,
    versions: usize,
}

impl Secret {
    fn empty() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            versions: 0,
        }
    }

    fn with(pair: &(String, String)) -> Self {
        let mut secret = Self::empty();
        secret.swap(pair);
        secret
    }

    fn chain(&self) -> PathBuf {
        self.directory.path().join("tls.crt")
    }

    fn key(&self) -> PathBuf {
        self.directory.path().join("tls.key")
    }

    /// One atomic change of both files.
    fn swap(&mut self, (chain, key): &(String, String)) {
        let root = self.directory.path();
        self.versions += 1;
        let version = format!("..version-{}", self.versions);
        fs::create_dir(root.join(&version)).unwrap();
        fs::write(root.join(&version).join("tls.crt"), chain).unwrap();
        fs::write(root.join(&version).join("tls.key"), key).unwrap();
        symlink(&version, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        if self.versions == 1 {
            symlink("..data/tls.crt", self.chain()).unwrap();
            symlink("..data/tls.key", self.key()).unwrap();
        }
    }

    fn read(&self) -> Result<Pair, PairError> {
        Identities::new().read_pair(&self.chain(), &self.key(), NOW)
    }

    /// The fault of these two files, which must be one.
    fn fault(chain: &str, key: &str) -> PairError {
        Self::with(&(chain.into(), key.into())).read().unwrap_err()
    }
}

/// Some time in 2025.
const NOW: i64 = 1_750_000_000;

#[test]
fn a_good_pair_serves_tls_1_2_and_1_3_with_alpn_and_without_early_data() {
    let pair = Secret::with(&pair("grpc.example.com")).read().unwrap();
    assert_eq!(pair.info.names, ["grpc.example.com", "10.0.0.1"]);
    assert_eq!(pair.info.key, "ECDSA P-256");
    assert_eq!(pair.info.not_after, 3_786_912_000);
    assert_eq!(pair.identity.serial, pair.info.serial);
    assert!(!pair.info.serial.is_empty());
    let config: &ServerConfig = &pair.identity.config;
    assert_eq!(
        config.alpn_protocols,
        [b"h2".to_vec(), b"http/1.1".to_vec()]
    );
    assert_eq!(config.max_early_data_size, 0);
    assert!(config.ticketer.enabled());
}

/// The suite that a client gets which offers these, liked best first.
fn negotiated(server: &Arc<ServerConfig>, suites: &[SupportedCipherSuite]) -> CipherSuite {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = suites.to_vec();
    let client = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from("grpc.example.com").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    server.read_tls(&mut hello.as_slice()).unwrap();
    server.process_new_packets().unwrap();
    server.negotiated_cipher_suite().unwrap().suite()
}

#[test]
fn a_client_gets_the_cheapest_suite_that_it_has() {
    use aws_lc_rs::cipher_suite::*;
    let pair = Secret::with(&pair("grpc.example.com")).read().unwrap();
    let suite = |offered: &[_]| negotiated(&pair.identity.config, offered);
    let as_openssl = [
        TLS13_AES_256_GCM_SHA384,
        TLS13_CHACHA20_POLY1305_SHA256,
        TLS13_AES_128_GCM_SHA256,
    ];
    assert_eq!(suite(&as_openssl), CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(
        suite(&as_openssl[1..2]),
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
    );
    let tls_1_2 = [
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    ];
    assert_eq!(
        suite(&tls_1_2),
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
    );
}

#[test]
fn sessions_outlive_a_renewal() {
    let identities = Identities::new();
    let mut secret = Secret::with(&pair("a.example"));
    let read = |secret: &Secret| {
        let pair = identities
            .read_pair(&secret.chain(), &secret.key(), NOW)
            .unwrap();
        pair.identity.config.ticketer.clone()
    };
    let before = read(&secret);
    secret.swap(&pair("a.example"));
    let ticket = before.encrypt(b"session").unwrap();
    assert_eq!(read(&secret).decrypt(&ticket).unwrap(), b"session");
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let ((chain, _), (_, key)) = (pair("a.example"), pair("a.example"));
    let error = Secret::fault(&chain, &key);
    assert!(
        matches!(error.fault, PairFault::Mismatched { .. }),
        "{error}"
    );
    let text = error.to_string();
    assert!(
        text.contains("tls.key") && text.contains("tls.crt"),
        "{text}"
    );
}

#[test]
fn files_cut_off_anywhere_are_refused() {
    let (chain, key) = pair("a.example");
    for length in (0..chain.trim_end().len()).step_by(7) {
        let error = Secret::fault(&chain[..length], &key);
        assert!(
            matches!(error.fault, PairFault::Malformed(_)),
            "{length}: {error}"
        );
        assert!(error.path.ends_with("tls.crt") && error.part == PairPart::Chain);
    }
    for length in (0..key.trim_end().len()).step_by(7) {
        let error = Secret::fault(&chain, &key[..length]);
        assert!(
            matches!(error.fault, PairFault::Malformed(_)),
            "{length}: {error}"
        );
        assert!(error.path.ends_with("tls.key") && error.part == PairPart::Key);
    }
}

#[test]
fn a_chain_whose_second_certificate_is_broken_is_refused() {
    let (chain, key) = pair("a.example");
    let broken = format!("{chain}-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n");
    let error = Secret::fault(&broken, &key);
    assert!(
        error.to_string().contains("certificate 2 of the chain"),
        "{error}"
    );
}

#[test]
fn what_is_not_pem_is_refused_and_a_key_is_no_certificate() {
    let (chain, key) = pair("a.example");
    let error = Secret::fault("hello", &key);
    assert!(
        error.to_string().contains("no certificate in it"),
        "{error}"
    );
    let error = Secret::fault(&key, &key);
    assert!(
        error
            .to_string()
            .ends_with("tls.crt: no certificate in it, which holds PRIVATE KEY only"),
        "{error}"
    );
    let error = Secret::fault(&chain, &format!("{chain}{chain}"));
    assert!(
        error
            .to_string()
            .ends_with("tls.key: no private key in it, which holds CERTIFICATE only"),
        "{error}"
    );
}

#[test]
fn one_file_may_hold_both_and_the_part_that_is_missing_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("both.pem");
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        Identities::new().read_pair(&path, &path, NOW)
    };
    let (chain, key) = pair("a.example");
    read(&format!("{chain}{key}")).unwrap();
    read(&format!("{key}{chain}")).unwrap();
    let cut = &key[..key.len() / 2];
    let garbled = |pem: &str| pem.replacen("-----\nM", "-----\n*", 1);
    let other = pair("a.example").1;
    for (text, part, told) in [
        (
            chain.clone(),
            PairPart::Key,
            "no private key in it, which holds CERTIFICATE only",
        ),
        (
            key.clone(),
            PairPart::Chain,
            "no certificate in it, which holds PRIVATE KEY only",
        ),
        (
            format!("{chain}{cut}"),
            PairPart::Key,
            "it is cut off: the line -----END PRIVATE KEY----- is missing",
        ),
        (
            format!("{key}{}", &chain[..chain.len() / 2]),
            PairPart::Chain,
            "it is cut off: the line -----END CERTIFICATE----- is missing",
        ),
        (
            format!("{}\n{key}", &chain[..chain.len() / 2]),
            PairPart::Chain,
            "it is cut off: the line -----END CERTIFICATE----- is missing",
        ),
        (
            format!("{chain}{}", garbled(&key)),
            PairPart::Key,
            "it isn't proper PEM: the section PRIVATE KEY isn't base64",
        ),
        (
            format!("{key}{}", garbled(&chain)),
            PairPart::Chain,
            "it isn't proper PEM: the section CERTIFICATE isn't base64",
        ),
        (
            format!("{chain}-----BEGIN PRIVATE KEY\n"),
            PairPart::Key,
            "it isn't proper PEM: a line that begins with -----BEGIN doesn't end in -----",
        ),
        (
            format!("{chain}{}", with_a_password(&key)),
            PairPart::Key,
            "the private key in it is encrypted",
        ),
        (
            format!("{chain}{other}"),
            PairPart::Key,
            "this private key isn't the key of the certificate in ",
        ),
    ] {
        let error = read(&text).unwrap_err();
        assert_eq!(error.part, part, "{error}");
        assert!(error.to_string().contains(told), "{error}");
    }
}

/// As OpenSSL wrote them before PKCS #8.
fn with_a_password(key: &str) -> String {
    key.replace("PRIVATE KEY", "EC PRIVATE KEY").replacen(
        "-----\n",
        "-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n",
        1,
    )
}

#[test]
fn a_key_with_a_password_is_told_as_such() {
    let (chain, key) = pair("a.example");
    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for key in [encrypted, with_a_password(&key)] {
        let error = Secret::fault(&chain, &key);
        assert!(matches!(error.fault, PairFault::Encrypted), "{error}");
    }
}

/// What a message shows of a file that may hold a key is the names of its sections.
#[test]
fn messages_show_nothing_of_a_keys_file() {
    let (chain, key) = pair("a.example");
    let secret = key.lines().nth(1).unwrap();
    for key in [
        format!("-----BEGIN {secret}-----\n"),
        format!("-----BEGIN {}-----\n{secret}\n", &secret[..20]),
        format!("-----BEGIN {secret}\n"),
        format!("-----BEGIN PUBLIC KEY-----\n{secret}\n"),
        format!("-----BEGIN PRIVATE KEY-----\n{secret}*\n-----END PRIVATE KEY-----\n"),
    ] {
        let both = format!("{chain}{key}");
        let error = Secret::fault(&both, &both);
        assert!(!error.to_string().contains(&secret[..10]), "{error}");
        let error = Secret::fault(&chain, &key);
        let bytes = format!("{:?}", &secret.as_bytes()[..10]);
        let shown = error.to_string();
        assert!(!shown.contains(&secret[..10]), "{shown}");
        assert!(!shown.contains(bytes.trim_matches(['[', ']'])), "{shown}");
    }
}

#[test]
fn out_of_its_time_is_refused() {
    let (chain, key) = made("a.example", |params| {
        params.not_after = date_time_ymd(2021, 1, 1)
    });
    let error = Secret::fault(&chain, &key);
    assert!(matches!(&error.fault, PairFault::Expired(day) if day.starts_with("2021-01-01")));
    let (chain, key) = made("a.example", |params| {
        params.not_before = date_time_ymd(2080, 1, 1)
    });
    let error = Secret::fault(&chain, &key);
    assert!(matches!(&error.fault, PairFault::NotYetValid(day) if day.starts_with("2080-01-01")));
}

#[test]
fn missing_is_not_unreadable() {
    let secret = Secret::empty();
    assert!(secret.read().unwrap_err().is_missing());
    fs::create_dir(secret.chain()).unwrap();
    let error = secret.read().unwrap_err();
    assert!(matches!(error.fault, PairFault::Unreadable(_)), "{error}");
    // The certificate alone isn't a pair yet.
    fs::remove_dir(secret.chain()).unwrap();
    fs::write(secret.chain(), pair("a.example").0).unwrap();
    let error = secret.read().unwrap_err();
    assert!(
        error.is_missing() && error.path.ends_with("tls.key"),
        "{error}"
    );
}
