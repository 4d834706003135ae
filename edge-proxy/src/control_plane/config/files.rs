//! The files that a configuration names: what validation, which is pure, doesn't look at.

use std::{fs, io, path::Path};

use super::{AccessLogFormat, Draft, Place, Problem, file::File};
use crate::control_plane::{
    certs::{HOW_TO_MAKE_THE_SECRET, Identities, PairError, PairFault, PairPart},
    status::now_ms,
};

/// Where the configuration names them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Files {
    certificate_chain: Place,
    private_key: Place,
    access_log: Option<Place>,
}

impl Files {
    pub(super) fn of(file: &File) -> Self {
        let tls = &file.listener.tls;
        Self {
            certificate_chain: tls.certificate_chain.place,
            private_key: tls.private_key.place,
            access_log: file.access_log.path.as_ref().map(|at| at.place),
        }
    }
}

impl Draft {
    /// Looks at them, once, as the start does.
    ///
    /// A pair that isn't there yet is a warning, as the proxy waits for it (a Secret is often made later); one that
    /// would never be served is an error. So is a log that can't be one; that its folder isn't there may be so on this
    /// machine only.
    pub(super) fn look_at_files(&mut self) {
        self.look_at_the_pair();
        self.look_at_the_log();
    }

    fn look_at_the_pair(&mut self) {
        let chain = self.config.certificate_chain.clone();
        let key = self.config.private_key.clone();
        // That a path is empty is told already.
        if [&chain, &key]
            .iter()
            .any(|path| path.as_os_str().is_empty())
        {
            return;
        }
        let now = (now_ms() / 1000) as i64;
        let error = match Identities::new().read_pair(&chain, &key, now) {
            Ok(pair) => {
                if let Some(doubt) = pair.doubt {
                    let message = format!("{}: {doubt}", chain.display());
                    let place = self.files.certificate_chain;
                    let problem = self.problem(place, "listener.tls.certificate_chain", message);
                    self.warnings.push(problem);
                }
                return;
            }
            Err(error) => error,
        };
        if !error.is_missing() {
            let problem = self.of_pair(&error);
            return self.errors.push(problem);
        }
        for (part, path) in [(PairPart::Chain, chain), (PairPart::Key, key)] {
            if part == error.part || is_missing(&path) {
                let fault = PairFault::Missing;
                let problem = self.of_pair(&PairError { part, path, fault });
                self.warnings.push(problem);
            }
        }
    }

    fn of_pair(&self, error: &PairError) -> Problem {
        let (key, place) = match error.part {
            PairPart::Chain => ("certificate_chain", self.files.certificate_chain),
            PairPart::Key => ("private_key", self.files.private_key),
        };
        let advice = match error.fault {
            PairFault::Missing => format!(
                " yet: the proxy waits for it, and isn't ready until then. {HOW_TO_MAKE_THE_SECRET}"
            ),
            PairFault::Unreadable(_) => ": give a PEM file that this user may read".into(),
            PairFault::Mismatched { .. } => ": give the two that were made together".into(),
            PairFault::UnusableKey(_) | PairFault::Misordered { .. } | PairFault::OldVersion(_) => {
                String::new()
            }
            PairFault::Encrypted => {
                ": give it without its password (openssl pkey -in KEY -out tls.key)".into()
            }
            _ => ": give another one, this one would never be served".into(),
        };
        self.problem(
            place,
            &format!("listener.tls.{key}"),
            format!("{error}{advice}"),
        )
    }

    fn look_at_the_log(&mut self) {
        let log = &self.config.access_log;
        let (Some(place), Some(path)) = (self.files.access_log, &log.path) else {
            return;
        };
        if log.format == AccessLogFormat::Off || path.as_os_str().is_empty() {
            return;
        }
        let shown = path.display();
        if path.is_dir() {
            let message = format!("{shown} is a folder: give the path of a file in it");
            let problem = self.problem(place, "access_log.path", message);
            return self.errors.push(problem);
        }
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let Some(folder) = folder else { return };
        let shown = folder.display();
        if is_no_folder(folder) {
            let message = format!("{shown} isn't a folder: give the path of a file in one");
            let problem = self.problem(place, "access_log.path", message);
            self.errors.push(problem);
        } else if is_missing(folder) {
            let message =
                format!("the folder {shown} isn't there yet: make it, or the proxy doesn't start");
            let problem = self.problem(place, "access_log.path", message);
            self.warnings.push(problem);
        }
    }

    fn problem(&self, place: Place, key: &str, message: String) -> Problem {
        Problem {
            file: self.file.clone(),
            place: Some(place),
            path: key.to_owned(),
            message,
        }
    }
}

fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// It is something else, or below something else.
fn is_no_folder(path: &Path) -> bool {
    match fs::metadata(path) {
        Ok(found) => !found.is_dir(),
        Err(error) => error.kind() == io::ErrorKind::NotADirectory,
    }
}
