//! Certificates made in code, and a directory of them that changes as a mounted Secret does.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, pem::PemObject},
};

/// The name that every test's certificate is for.
pub const SERVER_NAME: &str = "grpc.example.com";

/// A certificate authority of its own, as a company's private one.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate chain and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The leaf.
    pub chain: String,
    /// PKCS #8.
    pub key: String,
    /// The leaf's serial number, hexadecimal.
    pub serial: String,
}

/// The ways in which a pair is unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The key belongs to another certificate.
    Mismatched,
    /// The certificate's PEM ends in its middle: half a copy.
    Truncated,
    /// Its last day is long gone.
    Expired,
    /// Not PEM at all.
    Garbage,
    /// There is no key file.
    KeyMissing,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Mismatched,
        Self::Truncated,
        Self::Expired,
        Self::Garbage,
        Self::KeyMissing,
    ];
}

impl Authority {
    /// A new one: P-256, valid for decades.
    pub fn new() -> Self {
        let key = generate();
        let mut params = CertificateParams::default();
        params.distinguished_name = name("edge-grpc test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2120, 1, 1);
        let certificate = params
            .self_signed(&key)
            .expect("these parameters can be signed");
        Self {
            certificate: certificate.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    /// The authority's own certificate: what clients trust.
    pub fn pem(&self) -> &str {
        &self.certificate
    }

    /// A good pair for [`SERVER_NAME`]; each has a serial number of its own.
    pub fn pair(&self) -> Pair {
        self.issue(2120)
    }

    /// A pair that no server should serve. [`Broken::KeyMissing`] has an empty key: [`SecretDir::swap`] makes no file.
    pub fn broken(&self, how: Broken) -> Pair {
        let mut pair = self.pair();
        match how {
            Broken::Mismatched => pair.key = self.pair().key,
            Broken::Truncated => pair.chain.truncate(pair.chain.len() / 2),
            Broken::Expired => pair = self.issue(2021),
            Broken::Garbage => pair.chain = "this is no certificate\n".into(),
            Broken::KeyMissing => pair.key.clear(),
        }
        pair
    }

    /// A client's TLS settings: trusts this authority, offers `protocols` (ALPN) and any version of TLS.
    pub fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        self.client_of(rustls::ALL_VERSIONS, protocols)
    }

    /// [`client`](Self::client), with some versions of TLS only.
    pub fn client_of(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let root =
            CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("it was made above");
        roots.add(root).expect("it is a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("the provider has cipher suites for every version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }

    fn issue(&self, last_year: i32) -> Pair {
        static SERIAL: AtomicU64 = AtomicU64::new(0x1000);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let key = generate();
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])
            .expect("the name is a valid DNS name");
        params.distinguished_name = name(SERVER_NAME);
        params.serial_number = Some(SerialNumber::from(serial));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("these parameters can be signed");
        Pair {
            chain: certificate.pem(),
            key: key.serialize_pem(),
            serial: format!("{serial:x}"),
        }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}

/// A directory as the kubelet mounts a Secret: `tls.crt` and `tls.key` are links through `..data`, itself a link to
/// the directory that holds one version. A new version comes by replacing `..data`, in one step.
pub struct SecretDir {
    path: PathBuf,
    versions: AtomicU64,
    /// Removes the directory at the end, if it is ours.
    _own: Option<tempfile::TempDir>,
}

impl SecretDir {
    /// An empty one: the Secret doesn't exist yet.
    ///
    /// # Errors
    /// What the file system says.
    pub fn empty() -> io::Result<Self> {
        let own = tempfile::tempdir()?;
        Ok(Self {
            path: own.path().to_owned(),
            versions: AtomicU64::new(0),
            _own: Some(own),
        })
    }

    /// One in `path`, which is made if need be and stays at the end.
    ///
    /// # Errors
    /// What the file system says.
    pub fn at(path: &Path) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        Ok(Self {
            path: path.to_owned(),
            versions: AtomicU64::new(0),
            _own: None,
        })
    }

    /// Replaces what is mounted by `pair`, as the kubelet does.
    ///
    /// # Errors
    /// What the file system says.
    pub fn swap(&self, pair: &Pair) -> io::Result<()> {
        let old = fs::read_link(self.path.join("..data")).ok();
        let version = format!(
            "..version_{}",
            self.versions.fetch_add(1, Ordering::Relaxed)
        );
        let directory = self.path.join(&version);
        fs::create_dir(&directory)?;
        fs::write(directory.join("tls.crt"), &pair.chain)?;
        if !pair.key.is_empty() {
            fs::write(directory.join("tls.key"), &pair.key)?;
        }
        symlink(&version, self.path.join("..data_tmp"))?;
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data"))?;
        for name in ["tls.crt", "tls.key"] {
            match symlink(Path::new("..data").join(name), self.path.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        match old {
            Some(old) => fs::remove_dir_all(self.path.join(old)),
            None => Ok(()),
        }
    }

    /// Where the certificate is, or will be.
    pub fn chain(&self) -> PathBuf {
        self.path.join("tls.crt")
    }

    /// Where the key is, or will be.
    pub fn key(&self) -> PathBuf {
        self.path.join("tls.key")
    }
}

fn generate() -> KeyPair {
    KeyPair::generate().expect("the system gives random numbers")
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_changes_in_one_step_and_leaves_nothing_behind() {
        let authority = Authority::new();
        let secret = SecretDir::empty().unwrap();
        assert!(!secret.chain().exists());
        let (first, second) = (authority.pair(), authority.pair());
        secret.swap(&first).unwrap();
        assert_eq!(fs::read_to_string(secret.chain()).unwrap(), first.chain);
        secret.swap(&second).unwrap();
        assert_eq!(fs::read_to_string(secret.key()).unwrap(), second.key);
        let names = fs::read_dir(&secret.path).unwrap().count();
        assert_eq!(names, 4, "..data, one version, two links");
        secret.swap(&authority.broken(Broken::KeyMissing)).unwrap();
        assert!(!secret.key().exists());
    }

    #[test]
    fn every_pair_has_a_serial_number_of_its_own() {
        let authority = Authority::new();
        assert_ne!(authority.pair().serial, authority.pair().serial);
    }
}
