//! The configurations of `bench/peers/`, filled in.
//!
//! `@name@` stands for a value; a line that names an endpoint or a route is repeated for each of them, and is left out
//! if there is none. What isn't known stays: Envoy's own `@type`, Caddy's matchers.

use std::{fmt::Write as _, net::SocketAddr};

/// What a configuration is filled in with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Values<'a> {
    /// What stands once: name and value.
    pub(crate) once: Vec<(&'static str, String)>,
    /// `@endpoint@`, `@endpoint.ip@`, `@endpoint.port@`, `@number@`: the backends' addresses.
    pub(crate) endpoints: &'a [SocketAddr],
    /// `@route@`: prefixes that lead to the same backends and stand before the ones that are used.
    pub(crate) routes: &'a [String],
}

/// The configuration's text.
pub(crate) fn fill(template: &str, values: &Values<'_>) -> String {
    let mut text = String::with_capacity(template.len());
    for line in template.lines() {
        let line = values
            .once
            .iter()
            .fold(line.to_owned(), |line, (name, value)| {
                line.replace(&format!("@{name}@"), value)
            });
        // Writing to a string can't fail.
        if line.contains("@endpoint") {
            for (number, endpoint) in values.endpoints.iter().enumerate() {
                let line = line
                    .replace("@endpoint@", &endpoint.to_string())
                    .replace("@endpoint.ip@", &endpoint.ip().to_string())
                    .replace("@endpoint.port@", &endpoint.port().to_string())
                    .replace("@number@", &number.to_string());
                let _ = writeln!(text, "{line}");
            }
        } else if line.contains("@route@") {
            for route in values.routes {
                let _ = writeln!(text, "{}", line.replace("@route@", route));
            }
        } else {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_repeated_for_endpoints_and_left_out_without_routes() {
        let endpoints = [
            "127.0.0.1:1".parse().unwrap(),
            "127.0.0.2:1".parse().unwrap(),
        ];
        let values = Values {
            once: vec![("port", "8443".to_owned())],
            endpoints: &endpoints,
            routes: &[],
        };
        let template = "listen @port@\n\"@type\": x\nroute @route@\nserver s@number@ @endpoint@\n";
        let expected = "listen 8443\n\"@type\": x\nserver s0 127.0.0.1:1\nserver s1 127.0.0.2:1\n";
        assert_eq!(fill(template, &values), expected);
    }

    #[test]
    fn every_configuration_is_filled_in_whole() {
        let endpoints = ["127.0.0.1:1".parse().unwrap()];
        let routes = ["/x/".to_owned()];
        let once = [
            "workers",
            "listen",
            "ip",
            "port",
            "tls",
            "log",
            "out",
            "dir",
            "name",
            "connections",
        ];
        let values = Values {
            once: once.map(|name| (name, "1".to_owned())).to_vec(),
            endpoints: &endpoints,
            routes: &routes,
        };
        for kind in crate::peers::Kind::ALL {
            let text = fill(kind.template(), &values);
            let left = text.lines().find(|line| {
                let line = line.replace("@type", "").replace("@extra", "");
                line.contains('@')
            });
            assert_eq!(left, None, "{}", kind.name());
        }
    }
}
