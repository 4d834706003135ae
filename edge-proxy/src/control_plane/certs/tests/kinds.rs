//! Certificates and keys of kinds that can't be served, chains that don't hang together, and files that text editors have
//! made something else of.

use rcgen::{
    BasicConstraints, IsCa, Issuer, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384,
    PKCS_ECDSA_P521_SHA512, PKCS_ED25519, PKCS_RSA_SHA256, SignatureAlgorithm,
};

use super::*;

/// A certificate and its key, in DER.
fn of_kind(algorithm: &'static SignatureAlgorithm) -> (Vec<u8>, Vec<u8>) {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.der().to_vec(), key.serialize_der())
}

fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let quads = der.chunks(3).map(|three| {
        let at = |i: usize| u32::from(three.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        let digit = |i: usize| match i {
            _ if i > three.len() => '=',
            _ => char::from(DIGITS[(bits >> (18 - 6 * i) & 63) as usize]),
        };
        (0..4).map(digit).collect::<String>()
    });
    let body = quads.collect::<Vec<_>>().concat();
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// With `from` replaced wherever it is, by as many bytes.
fn patched(der: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut der = der.to_vec();
    let places: Vec<_> = memchr::memmem::find_iter(&der, from).collect();
    assert!(!places.is_empty());
    for at in places {
        der[at..at + to.len()].copy_from_slice(to);
    }
    der
}

#[test]
fn a_certificate_without_version_3_is_to_blame_itself() {
    let (certificate, key) = of_kind(&PKCS_ECDSA_P256_SHA256);
    let key = pem("PRIVATE KEY", &key);
    // [0] EXPLICIT INTEGER, which counts from 0: RFC 5280 §4.1.
    for version in [1, 2] {
        let old = patched(
            &certificate,
            &[0xa0, 3, 2, 1, 2],
            &[0xa0, 3, 2, 1, version - 1],
        );
        let error = Secret::fault(&pem("CERTIFICATE", &old), &key);
        assert_eq!(error.part, PairPart::Chain, "{error}");
        let text = error.to_string();
        assert!(
            text.contains(&format!(
                "tls.crt: the certificate is of X.509 version {version}"
            )) && text.contains("version 3"),
            "{text}"
        );
    }
}

#[test]
fn every_kind_of_key_that_works_is_named() {
    for (algorithm, kind) in [
        (&PKCS_RSA_SHA256, "RSA 2048"),
        (&PKCS_ECDSA_P256_SHA256, "ECDSA P-256"),
        (&PKCS_ECDSA_P384_SHA384, "ECDSA P-384"),
        (&PKCS_ECDSA_P521_SHA512, "ECDSA P-521"),
        (&PKCS_ED25519, "Ed25519"),
    ] {
        let (certificate, key) = of_kind(algorithm);
        let pair = (pem("CERTIFICATE", &certificate), pem("PRIVATE KEY", &key));
        let pair = Secret::with(&pair).read().unwrap();
        assert_eq!(pair.info.key, kind);
    }
}

#[test]
fn a_key_of_another_kind_is_told_which_work() {
    const P_256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
    const P_192: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x01";
    const ED25519: &[u8] = b"\x06\x03\x2b\x65\x70";
    const ED448: &[u8] = b"\x06\x03\x2b\x65\x71";
    const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
    const RSA_PSS: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a";
    let of = |algorithm, from, to| {
        let (certificate, key) = of_kind(algorithm);
        let certificate = pem("CERTIFICATE", &patched(&certificate, from, to));
        (certificate, pem("PRIVATE KEY", &patched(&key, from, to)))
    };
    let small = (
        pair("a.example").0,
        format!("-----BEGIN RSA PRIVATE KEY-----\n{RSA_1024}-----END RSA PRIVATE KEY-----\n"),
    );
    for ((certificate, key), kind) in [
        (small, "ECDSA P-256"),
        (
            of(&PKCS_ECDSA_P256_SHA256, P_256, P_192),
            "ECDSA 1.2.840.10045.3.1.1",
        ),
        (of(&PKCS_ED25519, ED25519, ED448), "Ed448"),
        (of(&PKCS_RSA_SHA256, RSA, RSA_PSS), "RSA-PSS"),
    ] {
        let error = Secret::fault(&certificate, &key);
        assert_eq!(error.part, PairPart::Key, "{error}");
        let text = error.to_string();
        assert!(
            text.ends_with(&format!(
                "tls.key: this private key can't be used (the certificate's is {kind}): RSA of 2048 to 8192 bits, ECDSA P-256, P-384 \
                 or P-521, and Ed25519 work; make one of these, and have a certificate issued for it"
            )),
            "{text}"
        );
    }
}

#[test]
fn what_an_editor_has_saved_otherwise_is_told_by_its_name() {
    let (chain, key) = pair("a.example");
    let utf_16 = |text: &str, mark: &[u8], bytes: fn(u16) -> [u8; 2]| {
        [
            mark,
            &text.encode_utf16().flat_map(bytes).collect::<Vec<_>>(),
        ]
        .concat()
    };
    let marked = |text: &str| format!("\u{feff}{text}").into_bytes();
    let read = |chain: &[u8], key: &[u8]| {
        let directory = tempfile::tempdir().unwrap();
        let files = ["tls.crt", "tls.key"].map(|name| directory.path().join(name));
        fs::write(&files[0], chain).unwrap();
        fs::write(&files[1], key).unwrap();
        Identities::new().read_pair(&files[0], &files[1], NOW)
    };
    let told = |text: &str, part, chain: &[u8], key: &[u8]| {
        let error = read(chain, key).unwrap_err();
        assert_eq!(error.part, part, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    for (mark, bytes) in [
        (&b"\xff\xfe"[..], u16::to_le_bytes as fn(u16) -> [u8; 2]),
        (b"\xfe\xff", u16::to_be_bytes),
        (b"", u16::to_le_bytes),
    ] {
        let wide = utf_16(&chain, mark, bytes);
        told(
            "it is in UTF-16: save it as ASCII",
            PairPart::Chain,
            &wide,
            key.as_bytes(),
        );
        let wide = utf_16(&key, mark, bytes);
        told(
            "it is in UTF-16: save it as ASCII",
            PairPart::Key,
            chain.as_bytes(),
            &wide,
        );
    }
    let mark = "it begins with a byte order mark";
    told(mark, PairPart::Chain, &marked(&chain), key.as_bytes());
    told(mark, PairPart::Key, chain.as_bytes(), &marked(&key));
    // The first certificate would be taken for none, and the second for the server's.
    let two = marked(&format!("{chain}{}", pair("b.example").0));
    told(mark, PairPart::Chain, &two, key.as_bytes());
    // Before a line of text it does no harm.
    read(&marked(&format!("a.example\n{chain}")), key.as_bytes()).unwrap();
}

/// An authority; the name and its key are what it is.
fn authority(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::new([]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    (params, KeyPair::generate().unwrap())
}

/// Certificates: a server's, of an intermediate authority, which two roots have signed, and of those roots; and the server's
/// key.
struct Chain {
    server: String,
    key: String,
    intermediate: [String; 2],
    root: [String; 2],
}

fn chain() -> Chain {
    let (intermediate, intermediate_key) = authority("Middle");
    let roots = [authority("One"), authority("Other")];
    let signed = roots.each_ref().map(|(params, key)| {
        let root = Issuer::from_params(params, key);
        intermediate
            .signed_by(&intermediate_key, &root)
            .unwrap()
            .pem()
    });
    let root = roots
        .each_ref()
        .map(|(params, key)| params.self_signed(key).unwrap().pem());
    let key = KeyPair::generate().unwrap();
    let mut server = CertificateParams::new(["a.example".to_owned()]).unwrap();
    server.not_before = date_time_ymd(2020, 1, 1);
    let issuer = Issuer::from_params(&intermediate, &intermediate_key);
    Chain {
        server: server.signed_by(&key, &issuer).unwrap().pem(),
        key: key.serialize_pem(),
        intermediate: signed,
        root,
    }
}

#[test]
fn a_chain_that_leads_to_no_issuer_is_served_with_a_warning() {
    let Chain {
        server,
        key,
        intermediate: [middle, crossed],
        root: [one, other],
    } = &chain();
    let warnings = |certificates: &[&String]| {
        let log = Log::default();
        let _guard = log.capture();
        let pair = (
            certificates.iter().copied().cloned().collect::<String>(),
            key.clone(),
        );
        let secret = Secret::with(&pair);
        let served = Served::read(&secret.chain(), &secret.key()).unwrap();
        assert!(served.current().is_some());
        assert_eq!(log.lines("certificate loaded").len(), 1);
        log.lines("WARN")
    };
    for good in [
        &[server][..],
        &[server, middle],
        &[server, middle, one],
        &[server, crossed, middle, other],
        // What else there is, clients are to ignore (RFC 8446 §4.4.2).
        &[server, middle, other, one],
    ] {
        assert_eq!(warnings(good), [""; 0]);
    }
    for (chain, told) in [
        (
            &[server, one][..],
            "no other certificate in it is that of the first one's issuer, CN=Middle",
        ),
        (&[server, server], "no other certificate in it is"),
        (
            &[server, one, middle],
            "certificate 3 in it is that of the first one's issuer, CN=Middle",
        ),
    ] {
        let lines = warnings(chain);
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains(told) && lines[0].contains("tls.crt"),
            "{lines:?}"
        );
    }
    // Its own issuer.
    let (own, key) = pair("a.example");
    let log = Log::default();
    let _guard = log.capture();
    let secret = Secret::with(&(own + one, key));
    Served::read(&secret.chain(), &secret.key()).unwrap();
    assert_eq!(log.lines("WARN"), [""; 0]);
}

#[test]
fn a_chain_in_the_wrong_order_is_told_which_is_to_be_the_first() {
    let Chain {
        server,
        key,
        intermediate: [middle, _],
        root: [one, _],
    } = &chain();
    for (chain, number) in [([middle, server, one], 2), ([one, middle, server], 3)] {
        let chain = chain.map(String::as_str).concat();
        let error = Secret::fault(&chain, key);
        assert_eq!(error.part, PairPart::Chain, "{error}");
        let text = error.to_string();
        let told = format!("certificate {number} in it is that of the private key: put it first");
        assert!(text.contains(&told), "{text}");
    }
}

/// `openssl genrsa -traditional 1024`.
const RSA_1024: &str = "\
MIICXgIBAAKBgQC58F/c4Tdo9Y1Io6TrEq/Kc0IjX0oIz3mrbM8PtBd7qex1jxqAxYYsl1mg4keCpqc1XVz9JIUwZrAKtwh4YPy7
ELZdWLB+i8Wjs+PiMGgj+9aOZDSm8DaBBqEbtaNmE5Ppg/NrE68AYRHvgH7otL1S7XrYw9qMsKw0prK2q1XMPQIDAQABAoGAVQnH
fgiOw/URwbf+E/i+5zNhezX4cSEafzlLVd5Coy8q0vU45M3xuHEb78WteOZpMLHbdnb+Zw1/09a0DAInc0nTJ1KYt9QsYrZy9aFp
04W/PI5/JzGwdd8N33qglkUImtScbojzFhHsfTBqHvP7jCLX40a6SLx+V6glfHcrXQECQQDyzetdK4TPkDFOHqsPlhzsScPjVvN/
9sR9p+8yM3LAmHm/qzC68XGpzYnnpI3+CE2wNQayOH17+9omHX33Rd3BAkEAxAtMxXrku9b1YlBmLXCtdeYpY0p7ZMXVkHuq5jAi
AzopuoAcTftk8RFqH+jR18yeSFVJj6AZe4k1cEkQhVPFfQJBAKo9xXwjKlDaeiebCze3efoW0nlRGxQq8qRkHiultRzjC+Je5qD8
70QusDWxxDlMmyQkWdiWES3gbZlx7kN1QkECQQCkkbPNpx9yS73L3SAZDxid+ytNLY4uByEDW70X5Nn4iY/T/o1ELUAMWgkTZlcZ
Z6yLngTVa5lYqdLRQpR6x9rlAkEA3PamxqmTtS0oNao/DrwIgoMyEdqAIVRRvO4URPZQuP7yb2PVXyDSrelxBXWWfY8tUm1UvMXR
wtxVU9cxBWmOug==
";
