//! Values that are written as text: durations, addresses, endpoints. Pure; every error says what to write.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::Target;

/// `500ms`, `10s`, `5m`, `1h`: digits and one unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let wrong = |what: &str| {
        Err(format!(
            "`{text}` {what}: write a whole number and ms, s, m or h, as 500ms, 10s or 1h"
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
        _ => Err(format!("`{text}` is more than a year: write at most 8760h")),
    }
}

/// `0.0.0.0:8443`, `[::]:8443`. Port 0 (any free one) is allowed: tests use it.
pub(super) fn socket_address(text: &str, example: SocketAddr) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let what = match text.rsplit_once(':') {
        _ if text.parse::<IpAddr>().is_ok() => "has no port",
        None => "isn't an IP address and a port",
        Some((_, port)) if port.parse::<u16>().is_err() => "has no port from 1 to 65535 at its end",
        Some(_) => "isn't an IP address before the port (names aren't looked up here)",
    };
    Err(format!("`{text}` {what}: write it as {example}"))
}

/// `10.0.0.10`, `10.0.0.10:53`, `fd00::a`, `[fd00::a]:53`.
pub(super) fn nameserver(text: &str) -> Result<SocketAddr, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, DNS_PORT));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() != 0 => Ok(address),
        _ => Err(format!(
            "`{text}` isn't a name server's address: write its IP address, as 10.0.0.10 or 10.0.0.10:53"
        )),
    }
}

/// `host:port`, the host a name or an IP address (IPv6 in brackets).
pub(super) fn endpoint(text: &str) -> Result<Target, String> {
    let Some((host, digits)) = text.rsplit_once(':') else {
        return Err(format!("`{text}` has no port: write it as {text}:8081"));
    };
    let port = match digits.parse::<u16>() {
        // `parse` would take `+80`.
        Ok(port) if port > 0 && !digits.starts_with('+') => port,
        _ => {
            return Err(format!(
                "`{digits}` isn't a port: write a number from 1 to 65535 after the colon"
            ));
        }
    };
    let host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
        None if is_host(host) => host,
        None if host.parse::<std::net::Ipv6Addr>().is_ok() => {
            return Err(format!(
                "an IPv6 address goes in brackets: write [{host}]:{port}"
            ));
        }
        _ => {
            return Err(format!(
                "`{host}` isn't a host name or an IP address: write it as echo-grpc.default.svc.cluster.local.:{port}"
            ));
        }
    };
    Ok(Target {
        host: host.to_owned(),
        port,
    })
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
        ] {
            assert!(endpoint(text).is_err(), "{text}");
        }
        assert!(endpoint("::1:80").unwrap_err().contains("[::1]:80"));
    }

    #[test]
    fn name_servers_may_leave_out_the_port() {
        let address = |text: &str| Ok(text.parse().unwrap());
        assert_eq!(nameserver("10.0.0.10"), address("10.0.0.10:53"));
        assert_eq!(nameserver("10.0.0.10:5353"), address("10.0.0.10:5353"));
        assert_eq!(nameserver("fd00::a"), address("[fd00::a]:53"));
        assert_eq!(nameserver("[fd00::a]:54"), address("[fd00::a]:54"));
        assert!(nameserver("10.0.0.10:0").is_err());
        assert!(nameserver("dns.example").is_err());
    }

    #[test]
    fn addresses_say_what_is_wrong_with_them() {
        let example = SocketAddr::from(([0, 0, 0, 0], 8443));
        let message = |text| socket_address(text, example).unwrap_err();
        assert!(message("127.0.0.1").contains("has no port"));
        assert!(message("::1").contains("has no port"));
        assert!(message("localhost:8443").contains("names aren't looked up"));
        assert!(message("0.0.0.0:99999").contains("1 to 65535"));
        assert!(message("8443").contains("isn't an IP address and a port"));
        assert!(socket_address("[::]:0", example).is_ok());
    }
}
