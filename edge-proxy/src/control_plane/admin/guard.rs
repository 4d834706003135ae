//! Who may use the admin listener: not another site's page in the operator's browser.
//!
//! The listener is on loopback, and whoever can connect there may use it. But a browser connects for
//! any page it shows. Two rules close that way:
//! - Every request: `Host` must be an IP address, `localhost`, or a name that only a preview of the
//!   operator's own makes ([`PREVIEWS`]). A page whose name was made to resolve to 127.0.0.1 (DNS
//!   rebinding) has its own name there. A port-forward keeps `localhost` or the address.
//! - POST: `Origin`, if there is one, must be the `Host`; and `Sec-Fetch-Site` mustn't say that
//!   another site asks. Browsers send them with every POST; curl sends neither.

use axum::{
    extract::Request,
    http::{HeaderMap, Method, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

/// Refuses what the rules refuse.
pub(super) async fn guard(request: Request, next: Next) -> Response {
    match check(request.method(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(why) => (StatusCode::FORBIDDEN, why).into_response(),
    }
}

fn check(method: &Method, headers: &HeaderMap) -> Result<(), &'static str> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or(""));
    let host = text(header::HOST);
    if !host.is_none_or(is_ours) {
        return Err(
            "refused: the Host isn't this machine; open the page as http://localhost:PORT/\n",
        );
    }
    if method == Method::POST {
        let origin = text(header::ORIGIN);
        let same = |origin: &str| {
            origin
                .split_once("://")
                .is_some_and(|(_, o)| Some(o) == host)
        };
        let site = headers.get("sec-fetch-site");
        if !origin.is_none_or(same)
            || site.is_some_and(|site| site != "same-origin" && site != "none")
        {
            return Err("refused: another site's page asks\n");
        }
    }
    Ok(())
}

/// Whether `host` (with or without its port) is an address or a name of this machine's.
fn is_ours(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority.host().to_ascii_lowercase();
    let ip = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(&name);
    ip.parse::<std::net::IpAddr>().is_ok()
        || name == "localhost"
        || name.ends_with(".localhost")
        || PREVIEWS.iter().any(|suffix| name.ends_with(suffix))
}

/// Names under which a cloud shell shows a port of its own, to its owner only.
const PREVIEWS: [&str; 1] = [".cloudshell.dev"];

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(method: &Method, headers: &[(&'static str, &str)]) -> bool {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        check(method, &headers.collect()).is_ok()
    }

    #[test]
    fn a_name_that_is_not_this_machine_is_refused() {
        for host in [
            "localhost",
            "localhost:8090",
            "LOCALHOST:1",
            "127.0.0.1:8090",
            "[::1]:8090",
            "proxy.localhost",
            "8080-cs-1-default.cs-europe-west1-abcd.cloudshell.dev",
        ] {
            assert!(allowed(&Method::GET, &[("host", host)]), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8090",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "cloudshell.dev.evil.example",
            "evilcloudshell.dev",
            "",
            "a b",
            "[::1",
        ] {
            assert!(!allowed(&Method::GET, &[("host", host)]), "{host}");
        }
        assert!(allowed(&Method::GET, &[]), "HTTP/1.0 has none");
    }

    #[test]
    fn a_post_for_another_site_is_refused() {
        let host = ("host", "localhost:8090");
        assert!(allowed(&Method::POST, &[host]));
        assert!(allowed(
            &Method::POST,
            &[host, ("origin", "http://localhost:8090")]
        ));
        assert!(allowed(
            &Method::POST,
            &[host, ("sec-fetch-site", "same-origin")]
        ));
        for origin in [
            "http://localhost:8091",
            "https://evil.example",
            "null",
            "",
            "localhost:8090",
        ] {
            assert!(
                !allowed(&Method::POST, &[host, ("origin", origin)]),
                "{origin}"
            );
            assert!(
                allowed(&Method::GET, &[host, ("origin", origin)]),
                "{origin}"
            );
        }
        assert!(!allowed(
            &Method::POST,
            &[host, ("sec-fetch-site", "cross-site")]
        ));
        assert!(!allowed(
            &Method::POST,
            &[("origin", "http://localhost:8090")]
        ));
    }
}
