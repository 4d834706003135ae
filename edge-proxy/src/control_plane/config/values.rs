//! Values that are written as text: durations, addresses, endpoints. Pure; every error says what to write.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use super::{Target, problem::Shown};

/// `500ms`, `10s`, `5m`, `1h`: digits and one unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let wrong = |what: &str| {
        Err(format!(
            "`{}` {what}: write a whole number and ms, s, m or h, as 500ms, 10s or 1h",
            Shown(text)
        ))
    };
    if number.is_empty() {
        return wrong("isn't a duration");
    }
    let millis_per_unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => return wrong("has no unit"),
        _ => return wrong("isn't a duration"),
    };
    let millis = number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(millis_per_unit));
    match millis.map(Duration::from_millis) {
        Some(duration) if duration <= LONGEST => Ok(duration),
        _ => Err(format!(
            "`{}` is more than a year: write at most 8760h",
            Shown(text)
        )),
    }
}

/// `0.0.0.0:8443`, `[::]:8443`. Port 0 (any free one) is allowed: tests use it.
pub(super) fn socket_address(text: &str, example: SocketAddr) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let shown = Shown(text);
    if let Some(advice) = bare_ipv6(text, example.port()) {
        return Err(advice);
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let port = example.port();
        return Err(format!("`{shown}` has no port: write it as {ip}:{port}"));
    }
    if is_port(text) {
        let ip = example.ip();
        return Err(format!(
            "`{shown}` is a port without an IP address: write it as {ip}:{text}"
        ));
    }
    let what = match text.rsplit_once(':') {
        None => "isn't an IP address and a port",
        Some((_, port)) if port.parse::<u16>().is_err() => "has no port from 1 to 65535 at its end",
        Some(("", _)) => "has no IP address before the port",
        Some((host, _)) if is_dotted_numbers(host) => NO_IPV4,
        Some(_) => "isn't an IP address before the port (names aren't looked up here)",
    };
    Err(format!("`{shown}` {what}: write it as {example}"))
}

/// `10.0.0.10`, `10.0.0.10:53`, `fd00::a`, `[fd00::a]:53`.
pub(super) fn nameserver(text: &str) -> Result<SocketAddr, String> {
    let shown = Shown(text);
    if let Ok(ip) = text.parse::<IpAddr>() {
        // Of name servers' ports, that is: `2620:fe::fe:9` is one that people do write.
        let both = unbracketed(text).filter(|(_, port)| port.ends_with("53"));
        return match both {
            None => Ok(SocketAddr::new(ip, DNS_PORT)),
            Some((host, port)) => Err(format!(
                "`{shown}` can be read in two ways: write \"[{host}]:{port}\" for port {port} of {host}, or \
                 \"[{text}]:{DNS_PORT}\" for the address {text}"
            )),
        };
    }
    if let Some(advice) = bare_ipv6(text, DNS_PORT) {
        return Err(advice);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(format!(
            "`{shown}` isn't a name server's address: write its IP address, as 10.0.0.10 or 10.0.0.10:53"
        )),
    }
}

/// `host:port`, the host a name or an IP address (IPv6 in brackets).
pub(super) fn endpoint(text: &str) -> Result<Target, String> {
    let shown = Shown(text);
    if let Some((_, rest)) = text.split_once("://") {
        let authority = rest.split('/').next().unwrap_or_default();
        return Err(format!(
            "`{shown}` is a URL: write its host and port only, as {}",
            Shown(authority)
        ));
    }
    if let Some(advice) = bare_ipv6(text, EXAMPLE_PORT) {
        return Err(advice);
    }
    if is_port(text) {
        return Err(format!(
            "`{shown}` is a port without a host: write it as {EXAMPLE_HOST}:{text}"
        ));
    }
    let Some((host, digits)) = text.rsplit_once(':') else {
        return Err(format!(
            "`{shown}` has no port: write it as {shown}:{EXAMPLE_PORT}"
        ));
    };
    let port = match digits.parse::<u16>() {
        // `parse` would take `+80`.
        Ok(port) if port > 0 && !digits.starts_with('+') => port,
        _ => {
            return Err(format!(
                "`{}` isn't a port: write a number from 1 to 65535 after the colon",
                Shown(digits)
            ));
        }
    };
    let bracketed = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let (host, what) = match bracketed {
        Some(inner) if inner.parse::<Ipv6Addr>().is_ok() => (inner, None),
        None if is_dotted_numbers(host) && host.parse::<IpAddr>().is_err() => (host, Some(NO_IPV4)),
        None if is_host(host) => (host, None),
        _ => (host, Some("isn't a host name or an IP address")),
    };
    match what {
        None => Ok(Target {
            host: host.to_owned(),
            port,
        }),
        Some(what) => Err(format!(
            "`{}` {what}: write it as {EXAMPLE_HOST}:{port}",
            Shown(host)
        )),
    }
}

/// What to write instead of an IPv6 address that lacks its brackets or its port.
fn bare_ipv6(text: &str, default_port: u16) -> Option<String> {
    let shown = Shown(text);
    if let Some((host, port)) = unbracketed(text) {
        return Some(format!(
            "`{shown}` is an IPv6 address without brackets: write \"[{host}]:{port}\""
        ));
    }
    let ip = text.strip_prefix('[').and_then(|ip| ip.strip_suffix(']'));
    let ip: Ipv6Addr = ip.unwrap_or(text).parse().ok()?;
    Some(format!(
        "`{shown}` has no port: write \"[{ip}]:{default_port}\""
    ))
}

/// An IPv6 address and a port, written without brackets: the last group is the port, if the rest is an address and that
/// can be one.
fn unbracketed(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once(':')
        .filter(|(host, port)| host.parse::<Ipv6Addr>().is_ok() && is_port(port))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// As nothing but an IPv4 address is: no top-level domain is a number (RFC 1123 §2.1), and one number alone would be an
/// address to the C library.
fn is_dotted_numbers(host: &str) -> bool {
    !host.is_empty()
        && host
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// RFC 1123 §2.1 (letters, digits, hyphens; labels up to 63, names up to 253), and the underscore that DNS itself
/// allows and some service names use.
fn is_host(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    name.len() <= 253
        && name.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        })
}

/// A year: nothing runs longer, and adding it to any clock's reading can't overflow.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// RFC 1035 §4.2.
const DNS_PORT: u16 = 53;

const NO_IPV4: &str = "isn't an IPv4 address, which is four numbers from 0 to 255";

// In messages.
const EXAMPLE_HOST: &str = "echo-grpc.default.svc.cluster.local.";
const EXAMPLE_PORT: u16 = 8081;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_number_and_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        assert_eq!(duration("8760h"), Ok(LONGEST));
        for text in [
            "", "s", "10", "1.5s", "-1s", "1 s", "1d", "10S", "ms", "1s1ms", "٣s",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("8761h").unwrap_err().contains("at most 8760h"));
        assert!(
            duration("99999999999999999999h")
                .unwrap_err()
                .contains("at most 8760h")
        );
        assert!(duration("10").unwrap_err().contains("has no unit"));
    }

    #[test]
    fn endpoints_are_a_host_and_a_port() {
        let target = |host: &str, port| {
            Ok(Target {
                host: host.to_owned(),
                port,
            })
        };
        assert_eq!(
            endpoint("echo.default.svc.:8081"),
            target("echo.default.svc.", 8081)
        );
        assert_eq!(endpoint("127.0.0.2:1"), target("127.0.0.2", 1));
        assert_eq!(endpoint("[::1]:65535"), target("::1", 65535));
        assert_eq!(endpoint("_x.a-b:80"), target("_x.a-b", 80));
        for text in [
            "echo",
            "echo:",
            "echo:0",
            "echo:65536",
            "echo:+80",
            ":80",
            "[echo]:80",
            "::1:80",
            "a..b:80",
            "-a:80",
            "a b:80",
            "http://a:80",
            ".:80",
            "[]:80",
            "grüße:80",
            "300.1.1.1:80",
            "10.0.0.07:80",
            "10.0.0:80",
            "10.0.0.1.:80",
            "8081",
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
        // A namespace may be a number.
        assert_eq!(endpoint("echo.7:80"), target("echo.7", 80));
        let message = |text| endpoint(text).unwrap_err();
        assert_eq!(
            message("::1:80"),
            "`::1:80` is an IPv6 address without brackets: write \"[::1]:80\""
        );
        assert_eq!(message("::1"), "`::1` has no port: write \"[::1]:8081\"");
        assert_eq!(
            message("[::1]"),
            "`[::1]` has no port: write \"[::1]:8081\""
        );
        assert_eq!(
            message("300.1.1.1:80"),
            "`300.1.1.1` isn't an IPv4 address, which is four numbers from 0 to 255: \
             write it as echo-grpc.default.svc.cluster.local.:80"
        );
        assert_eq!(
            message("8081"),
            "`8081` is a port without a host: write it as echo-grpc.default.svc.cluster.local.:8081"
        );
        assert_eq!(
            message("http://echo:8081/x"),
            "`http://echo:8081/x` is a URL: write its host and port only, as echo:8081"
        );
        let long = message(&"x".repeat(1 << 20));
        assert!(long.len() < 1000, "{} bytes", long.len());
    }

    #[test]
    fn name_servers_may_leave_out_the_port() {
        let address = |text: &str| Ok(text.parse().unwrap());
        assert_eq!(nameserver("10.0.0.10"), address("10.0.0.10:53"));
        assert_eq!(nameserver("10.0.0.10:5353"), address("10.0.0.10:5353"));
        assert_eq!(nameserver("fd00::a"), address("[fd00::a]:53"));
        assert_eq!(nameserver("[fd00::a]:54"), address("[fd00::a]:54"));
        assert_eq!(nameserver("::1"), address("[::1]:53"));
        assert_eq!(
            nameserver("2001:4860:4860::8888"),
            address("[2001:4860:4860::8888]:53")
        );
        assert_eq!(
            nameserver("fd00:1:2:3:4:5:6:53"),
            address("[fd00:1:2:3:4:5:6:53]:53")
        );
        assert!(nameserver("10.0.0.10:0").is_err());
        assert!(nameserver("dns.example").is_err());
    }

    #[test]
    fn a_name_server_that_can_be_read_in_two_ways_is_refused() {
        let message = |text| nameserver(text).unwrap_err();
        assert_eq!(
            message("::1:53"),
            "`::1:53` can be read in two ways: write \"[::1]:53\" for port 53 of ::1, or \"[::1:53]:53\" for the \
             address ::1:53"
        );
        assert!(message("fd00::a:5353").contains("[fd00::a]:5353"));
        assert!(nameserver("[::1:53]:53").is_ok() && nameserver("[::1]:53").is_ok());
        // These can't.
        assert_eq!(
            message("fd00:1:2:3:4:5:6:7:53"),
            "`fd00:1:2:3:4:5:6:7:53` is an IPv6 address without brackets: write \"[fd00:1:2:3:4:5:6:7]:53\""
        );
        assert_eq!(message("[::1]"), "`[::1]` has no port: write \"[::1]:53\"");
        assert_eq!(
            message("fd00::a:65535"),
            "`fd00::a:65535` is an IPv6 address without brackets: write \"[fd00::a]:65535\""
        );
        for one in ["::1:ff", "::1:0", "2620:fe::fe:9", "fd00::a:54"] {
            assert!(nameserver(one).is_ok(), "{one}");
        }
    }

    #[test]
    fn addresses_say_what_is_wrong_with_them() {
        let example = SocketAddr::from(([0, 0, 0, 0], 8443));
        let message = |text| socket_address(text, example).unwrap_err();
        for (text, told) in [
            ("127.0.0.1", "has no port: write it as 127.0.0.1:8443"),
            ("::1", "has no port: write \"[::1]:8443\""),
            ("[::1]", "has no port: write \"[::1]:8443\""),
            (
                "::1:8443",
                "is an IPv6 address without brackets: write \"[::1]:8443\"",
            ),
            (
                ":::8443",
                "is an IPv6 address without brackets: write \"[::]:8443\"",
            ),
            (
                "fd00:1:2:3:4:5:6:7:8443",
                "is an IPv6 address without brackets: write \"[fd00:1:2:3:4:5:6:7]:8443\"",
            ),
            (
                "8081",
                "is a port without an IP address: write it as 0.0.0.0:8081",
            ),
            (
                ":8081",
                "has no IP address before the port: write it as 0.0.0.0:8443",
            ),
            (
                "300.1.1.1:80",
                "isn't an IPv4 address, which is four numbers from 0 to 255: write it as 0.0.0.0:8443",
            ),
            (
                "localhost:8443",
                "isn't an IP address before the port (names aren't looked up here): write it as 0.0.0.0:8443",
            ),
            (
                "0.0.0.0:99999",
                "has no port from 1 to 65535 at its end: write it as 0.0.0.0:8443",
            ),
            (
                "",
                "isn't an IP address and a port: write it as 0.0.0.0:8443",
            ),
        ] {
            assert_eq!(message(text), format!("`{text}` {told}"));
        }
        assert!(socket_address("[::]:0", example).is_ok());
    }
}
