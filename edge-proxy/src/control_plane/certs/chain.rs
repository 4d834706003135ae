//! A chain's certificates: whether they can be read and lead anywhere, whether the first one can be served now, and what
//! operators see of that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls::{pki_types::CertificateDer, sign::CertifiedKey};
use x509_parser::{
    asn1_rs::Oid,
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::FromDer,
    public_key::PublicKey,
    x509::{SubjectPublicKeyInfo, X509Version},
};

use super::{PairFault, PairPart, pem::Broken};
use crate::control_plane::status::{CertificateInfo, now_ms};

/// What is known of a chain.
pub(super) struct Described {
    /// Of the first certificate, for operators.
    pub(super) info: CertificateInfo,
    /// What some clients may refuse the chain for.
    pub(super) doubt: Option<String>,
}

/// Refuses a chain with anything that isn't a certificate, or whose first is out of its time or can't be served.
pub(super) fn describe(chain: &[CertificateDer<'_>], now: i64) -> Result<Described, PairFault> {
    let parsed = (1..).zip(chain).map(|(number, der)| {
        let (rest, parsed) = X509Certificate::from_der(der).map_err(|error| {
            PairFault::Malformed(format!(
                "certificate {number} of the chain can't be read: {error}"
            ))
        })?;
        if !rest.is_empty() {
            return Err(PairFault::Malformed(format!(
                "certificate {number} of the chain has {} bytes too many",
                rest.len()
            )));
        }
        Ok(parsed)
    });
    let parsed = parsed.collect::<Result<Vec<_>, _>>()?;
    let Some((leaf, others)) = parsed.split_first() else {
        return Err(Broken::lacking(&[]).fault(PairPart::Chain));
    };
    if leaf.version() != X509Version::V3 {
        // Written from 0.
        return Err(PairFault::OldVersion(leaf.version().0.saturating_add(1)));
    }
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
    let info = CertificateInfo {
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
    };
    Ok(Described {
        info,
        doubt: doubt(leaf, others),
    })
}

/// The number, from 1, of the certificate that the key belongs to.
pub(super) fn number_of_the_keys(certified: &CertifiedKey) -> Option<usize> {
    let key = certified.key.public_key()?;
    let is_the_keys = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der).is_ok_and(|(_, c)| c.public_key().raw == &*key)
    };
    Some(certified.cert.iter().position(is_the_keys)? + 1)
}

/// Looks for the first certificate's issuer among the `others`, by its name. Which of several of that name a client needs
/// (an authority may be signed by several, crosswise), and what else there is, is for the client to find out
/// (RFC 8446 §4.4.2).
fn doubt(leaf: &X509Certificate<'_>, others: &[X509Certificate<'_>]) -> Option<String> {
    // As text: the same name may be encoded in several ways.
    let issuer = leaf.issuer().to_string();
    if others.is_empty() || leaf.subject().to_string() == issuer {
        return None;
    }
    let found = others
        .iter()
        .position(|other| other.subject().to_string() == issuer);
    let issuer = issuer.escape_debug();
    match found {
        Some(0) => None,
        Some(at) => Some(format!(
            "certificate {} in it is that of the first one's issuer, {issuer}: put it second; clients that find their own \
             way through a chain do so here, others refuse it",
            at + 2
        )),
        None => Some(format!(
            "no other certificate in it is that of the first one's issuer, {issuer}: put that one second; many clients find \
             their own way by certificates that they have, others refuse the chain"
        )),
    }
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
    let oid = |oid: &Oid<'_>| {
        let oid = oid.to_id_string();
        let known = KINDS.iter().find(|(known, _)| *known == oid);
        known.map_or(oid, |(_, name)| (*name).to_owned())
    };
    match key.parsed() {
        Ok(PublicKey::RSA(rsa)) => format!("RSA {}", rsa.key_size()),
        // The curve (RFC 5480 §2.1.1).
        Ok(PublicKey::EC(_)) => {
            let curve = key.algorithm.parameters.as_ref();
            let curve = curve.and_then(|curve| curve.as_oid().ok());
            curve.map_or_else(
                || "ECDSA".to_owned(),
                |curve| format!("ECDSA {}", oid(&curve)),
            )
        }
        _ => oid(&key.algorithm.algorithm),
    }
}

fn day(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| format!("second {seconds} of the epoch"),
        |time| time.to_string(),
    )
}

/// Curves and algorithms that certificates are seen with, by what OpenSSL calls them.
const KINDS: [(&str, &str); 7] = [
    ("1.2.840.10045.3.1.7", "P-256"),
    ("1.3.132.0.34", "P-384"),
    ("1.3.132.0.35", "P-521"),
    ("1.3.132.0.10", "secp256k1"),
    ("1.3.101.112", "Ed25519"),
    ("1.3.101.113", "Ed448"),
    ("1.2.840.113549.1.1.10", "RSA-PSS"),
];
