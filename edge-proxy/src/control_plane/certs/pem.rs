//! Certificates and keys from PEM (RFC 7468), and what is wrong with a file of them. Nothing of a key is ever shown.

use std::{collections::BTreeSet, iter};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{self, PemObject},
};

use super::{PairFault, PairPart};
use crate::control_plane::encoding::{in_utf16, is_utf16};

/// Refuses what an editor has saved in a way that hides its first section, or all.
pub(super) fn check_encoding(pem: &[u8]) -> Result<(), PairFault> {
    let fault = if is_utf16(pem) {
        format!("it {}", in_utf16("ASCII", "ascii"))
    } else if pem
        .strip_prefix(MARK)
        .is_some_and(|rest| rest.starts_with(BEGIN))
    {
        "it begins with a byte order mark, where -----BEGIN is wanted: save it as ASCII, or as UTF-8 without that mark"
            .to_owned()
    } else {
        return Ok(());
    };
    Err(PairFault::Malformed(fault))
}

pub(super) fn parse_chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Broken<'_>> {
    let chain = items(pem).collect::<Result<Vec<_>, _>>()?;
    if chain.is_empty() {
        return Err(Broken::lacking(pem));
    }
    Ok(chain)
}

pub(super) fn parse_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, PairFault> {
    let first = items(pem).next();
    first
        .unwrap_or_else(|| Err(Broken::lacking(pem)))
        .map_err(|broken| key_fault(&broken, pem))
}

pub(super) fn key_fault(broken: &Broken<'_>, pem: &[u8]) -> PairFault {
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

/// Why there is nothing to be had of a file, or of a section of it.
pub(super) struct Broken<'p> {
    error: pem::Error,
    /// The section, or all of the file if there is none of the wanted kind.
    within: &'p [u8],
}

impl<'p> Broken<'p> {
    /// It holds none of what is wanted.
    pub(super) fn lacking(pem: &'p [u8]) -> Self {
        Self {
            error: pem::Error::NoItemsFound,
            within: pem,
        }
    }

    /// Whether it is a private key's section, as far as its first line tells.
    pub(super) fn is_a_keys(&self) -> bool {
        let ends = memchr::memchr2(b'\n', b'\r', self.within);
        let first = &self.within[..ends.unwrap_or(self.within.len())];
        !matches!(self.error, pem::Error::NoItemsFound)
            && memchr::memmem::find(first, b"PRIVATE KEY").is_some()
    }

    pub(super) fn fault(&self, wanted: PairPart) -> PairFault {
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

/// RFC 7468 §2.
const BEGIN: &[u8] = b"-----BEGIN ";

/// U+FEFF in UTF-8. Before any other line of text it does no harm.
const MARK: &[u8] = b"\xef\xbb\xbf";

/// As `ENCRYPTED PRIVATE KEY`; a private key's line is longer.
const LONGEST_LABEL: usize = 40;
/// A bundle of all authorities has hundreds, all of one name.
const LABELS_SHOWN: usize = 500;
