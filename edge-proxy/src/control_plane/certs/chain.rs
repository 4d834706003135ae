//! A chain's certificates: whether they can be read, whether it is the first one's time, and what operators see of that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustls::pki_types::CertificateDer;
use x509_parser::{
    extensions::GeneralName, prelude::FromDer, public_key::PublicKey, x509::SubjectPublicKeyInfo,
};

use super::{PairFault, PairPart, pem::Broken};
use crate::control_plane::status::{CertificateInfo, now_ms};

/// What operators see of the leaf; refuses a chain with anything that isn't a certificate, or out of its time.
pub(super) fn describe(
    chain: &[CertificateDer<'_>],
    now: i64,
) -> Result<CertificateInfo, PairFault> {
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

fn day(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| format!("second {seconds} of the epoch"),
        |time| time.to_string(),
    )
}
