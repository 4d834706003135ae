//! The files that a configuration names: what validation, which is pure, doesn't look at.

use std::{io, path::Path};

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject},
    sign::CertifiedKey,
};

use super::{ConfigErrors, Loaded, Place, Problem};

/// Where the configuration names the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PairPlaces {
    pub(super) certificate_chain: Place,
    pub(super) private_key: Place,
}

impl Loaded {
    /// Looks at the certificate and its key: `check` and the start do, once.
    ///
    /// A file that isn't there yet is a warning, as the proxy waits for it (a Secret is often made later).
    ///
    /// # Errors
    /// Both files are there and are no pair, or can't be read as PEM.
    pub fn check_files(mut self) -> Result<Self, ConfigErrors> {
        let config = &self.config;
        let pair = [
            (
                "certificate_chain",
                &config.certificate_chain,
                self.pair.certificate_chain,
            ),
            ("private_key", &config.private_key, self.pair.private_key),
        ];
        let about = |index: usize, message: String| Problem {
            file: self.file.clone(),
            place: Some(pair[index].2),
            path: format!("listener.tls.{}", pair[index].0),
            message,
        };
        let missing = |index: &usize| {
            pair[*index]
                .1
                .metadata()
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        };
        let waits: Vec<_> = (0..pair.len())
            .filter(missing)
            .map(|index| {
                let message = format!(
                    "{} isn't there yet: the proxy waits for it, and isn't ready until then",
                    pair[index].1.display()
                );
                about(index, message)
            })
            .collect();
        let wrong = if waits.is_empty() {
            check_pair(pair[0].1, pair[1].1)
                .err()
                .map(|(index, message)| about(index, message))
        } else {
            None
        };
        self.warnings.extend(waits);
        match wrong {
            None => Ok(self),
            Some(error) => Err(ConfigErrors {
                errors: vec![error],
                warnings: self.warnings,
            }),
        }
    }
}

/// The index says which of the two files the message is about.
fn check_pair(chain: &Path, key: &Path) -> Result<(), (usize, String)> {
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| (0, unreadable(chain, "certificate", &error)))?;
    if certificates.is_empty() {
        return Err((
            0,
            unreadable(chain, "certificate", &pem::Error::NoItemsFound),
        ));
    }
    let private_key = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| (1, unreadable(key, "private key", &error)))?;
    match CertifiedKey::from_der(certificates, private_key, &aws_lc_rs::default_provider()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err((
            1,
            format!(
                "{} isn't the key of the first certificate in {}: give the two that were made together",
                key.display(),
                chain.display()
            ),
        )),
        Err(error) => Err((0, format!("{} can't be served: {error}", chain.display()))),
    }
}

fn unreadable(file: &Path, kind: &str, error: &pem::Error) -> String {
    let file = file.display();
    match error {
        pem::Error::Io(error) => {
            format!("{file} can't be read ({error}): give a PEM file that this user may read")
        }
        pem::Error::NoItemsFound => {
            format!("{file} holds no {kind}: give a PEM file with its `-----BEGIN` line")
        }
        pem::Error::MissingSectionEnd { .. } => {
            format!("{file} is cut off before its `-----END` line: write it again")
        }
        other => format!("{file} isn't PEM ({other}): write it again"),
    }
}
