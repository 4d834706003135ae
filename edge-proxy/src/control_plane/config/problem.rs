//! What is wrong with a configuration, as the operator reads it: `FILE:LINE:COLUMN: KEY: what, and what to write`.

use std::{
    fmt::{self, Write as _},
    path::{Path, PathBuf},
};

use super::place::{Outline, Place};

/// One mistake, or one thing to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The configuration file.
    pub file: PathBuf,
    /// `None` when the file as a whole is meant, or couldn't be read.
    pub place: Option<Place>,
    /// `clusters[1].connect_timeout`; empty when the file as a whole is meant.
    pub path: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

/// Why a configuration was refused: every mistake that was found, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors {
    /// At least one.
    pub errors: Vec<Problem>,
    /// What `check` tells besides.
    pub warnings: Vec<Problem>,
}

/// Collects while validation goes on.
pub(super) struct Report<'a> {
    file: &'a Path,
    outline: &'a Outline,
    errors: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Problem {
    /// About the whole file.
    pub fn of_file(file: &Path, message: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            place: None,
            path: String::new(),
            message: message.into(),
        }
    }
}

impl ConfigErrors {
    pub(super) fn one(problem: Problem) -> Self {
        Self {
            errors: vec![problem],
            warnings: Vec::new(),
        }
    }
}

impl<'a> Report<'a> {
    pub(super) fn new(file: &'a Path, outline: &'a Outline) -> Self {
        Self {
            file,
            outline,
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    pub(super) fn error(&mut self, place: Place, message: impl Into<String>) {
        self.errors.push(self.problem(place, message.into()));
    }

    pub(super) fn warning(&mut self, place: Place, message: impl Into<String>) {
        self.warnings.push(self.problem(place, message.into()));
    }

    /// Errors and warnings.
    pub(super) fn finish(self) -> (Vec<Problem>, Vec<Problem>) {
        (self.errors, self.warnings)
    }

    fn problem(&self, place: Place, message: String) -> Problem {
        Problem {
            file: self.file.to_owned(),
            place: Some(place),
            path: self.outline.path(place),
            message,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(place) = self.place {
            write!(f, ":{place}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// One `error: ` line each; warnings are the caller's to print.
impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "error: {error}")?;
        }
        Ok(())
    }
}

/// A text of the file as messages repeat it: cut, and with nothing in it that ends the line or tells a terminal anything.
pub(super) struct Shown<'a>(pub(super) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(LONGEST_SHOWN) {
            match c {
                '"' | '\'' | '\\' => f.write_char(c)?,
                _ => write!(f, "{}", c.escape_debug())?,
            }
        }
        if chars.next().is_some() {
            f.write_char('…')?;
        }
        Ok(())
    }
}

/// ` Did you mean ...?` for the candidate nearest to `written`, if one is near enough to be meant.
pub(super) fn did_you_mean<'a>(
    written: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> String {
    // A third of the letters may differ: `ecoh-grpc` is meant to be `echo-grpc`, `name` isn't meant to be `tls`.
    let length = written.chars().count();
    let limit = (length / 3).max(1);
    candidates
        .into_iter()
        // The comparison takes time and memory by the product of both lengths.
        .filter(|candidate| length.max(candidate.chars().count()) <= LONGEST_SHOWN)
        .map(|candidate| (strsim::damerau_levenshtein(written, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map_or_else(String::new, |(_, candidate)| {
            format!("did you mean `{}`? ", Shown(candidate))
        })
}

/// Characters: more than a DNS label or an address with its port has.
const LONGEST_SHOWN: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_text_stays_in_its_line() {
        let shown = |text: &str| Shown(text).to_string();
        assert_eq!(shown("grüße /\"'\\"), "grüße /\"'\\");
        assert_eq!(
            shown("a\nb\r\t\u{1b}[2J\u{85}\u{202e}"),
            "a\\nb\\r\\t\\u{1b}[2J\\u{85}\\u{202e}"
        );
        let long = "ü".repeat(LONGEST_SHOWN);
        assert_eq!(shown(&long), long);
        assert_eq!(shown(&format!("{long}x")), format!("{long}…"));
    }

    #[test]
    fn a_text_of_any_length_costs_nothing_to_compare() {
        let long = "x".repeat(1 << 20);
        assert_eq!(did_you_mean(&long, [long.as_str(), "x"]), "");
        assert_eq!(
            did_you_mean("ecoh", [long.as_str(), "echo"]),
            "did you mean `echo`? "
        );
    }
}
