//! The files that a configuration names: what validation, which is pure, doesn't look at.

use super::{ConfigErrors, Loaded, Place, Problem};
use crate::control_plane::{
    certs::{HOW_TO_MAKE_THE_SECRET, Identities, PairError, PairFault},
    status::now_ms,
};

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
    /// Both files are there, and the pair would never be served.
    pub fn check_files(mut self) -> Result<Self, ConfigErrors> {
        let (chain, key) = (&self.config.certificate_chain, &self.config.private_key);
        let now = (now_ms() / 1000) as i64;
        let Err(error) = Identities::new().read_pair(chain, key, now) else {
            return Ok(self);
        };
        let missing = error.is_missing();
        let problem = self.explain(&error);
        if missing {
            self.warnings.push(problem);
            return Ok(self);
        }
        Err(ConfigErrors {
            errors: vec![problem],
            warnings: self.warnings,
        })
    }

    fn explain(&self, error: &PairError) -> Problem {
        let (key, place) = if error.path == self.config.certificate_chain {
            ("certificate_chain", self.pair.certificate_chain)
        } else {
            ("private_key", self.pair.private_key)
        };
        let advice = match error.fault {
            PairFault::Missing => format!(
                " yet: the proxy waits for it, and isn't ready until then. {HOW_TO_MAKE_THE_SECRET}"
            ),
            PairFault::Unreadable(_) => ": give a PEM file that this user may read".into(),
            PairFault::Mismatched { .. } => ": give the two that were made together".into(),
            _ => ": give another one, this one would never be served".into(),
        };
        Problem {
            file: self.file.clone(),
            place: Some(place),
            path: format!("listener.tls.{key}"),
            message: format!("{error}{advice}"),
        }
    }
}
