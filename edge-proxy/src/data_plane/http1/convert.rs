//! Heads and trailers between HTTP/1.1's form and ours.
//!
//! hyper has settled what is ambiguous in HTTP/1.1 (one `content-length`, none beside `transfer-encoding`; RFC 9112
//! §6.3) and allows only what the crate `http` allows in names and values. What it lets through and strict HTTP/2
//! servers don't is found here, before the request becomes an RPC: characters of the target and of `host`, and a
//! missing or second `host` (RFC 9112 §3.2).

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header, request};
use http2::{Headers, Known, headers::Kind};

use crate::data_plane::answer::Answer;

/// Why a request doesn't become an RPC.
#[derive(Debug)]
pub(super) enum Refusal {
    /// No `host`, or more than one, or one that is none; the head as far as it is known.
    Host(Headers),
    /// The rule of RFC 9113 that it breaks.
    Malformed(&'static str, Headers),
}

/// A request's head with its pseudo-header fields (RFC 9113 §8.3.1), every value byte for byte.
pub(super) fn request(head: &request::Parts) -> Result<Headers, Refusal> {
    let mut headers = Headers::with_capacity(head.headers.len() + 8, 1024);
    headers.push_known(Known::Method, head.method.as_str().as_bytes());
    let target = head.uri.authority().map(|authority| authority.as_str());
    if head.method != Method::CONNECT {
        headers.push_known(Known::Scheme, b"https");
        // An absolute target without a path is `/`, and `*` for OPTIONS (RFC 9112 §3.2.4).
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let path = match path {
            "/" if head.method == Method::OPTIONS && is_bare(head) => "*",
            path => path,
        };
        headers.push_known(Known::Path, path.as_bytes());
    }
    if let Some(target) = target {
        headers.push_known(Known::Authority, target.as_bytes());
    }
    let rule = match headers.validate(Kind::Request) {
        // The filters answer it: CONNECT is refused whatever it lacks.
        Err(_) if head.method == Method::CONNECT => Ok(()),
        result => result,
    };
    for (name, value) in &head.headers {
        headers.push(name.as_str().as_bytes(), value.as_bytes());
    }
    if let Err(rule) = rule {
        return Err(Refusal::Malformed(rule, headers));
    }
    if headers.known(Known::ContentLength).is_some() && headers.content_length().is_none() {
        return Err(Refusal::Malformed(CONTENT_LENGTH, headers));
    }
    if host_is_wrong(head) {
        return Err(Refusal::Host(headers));
    }
    Ok(headers)
}

/// A response's head: final, with everything but the pseudo-header field.
pub(super) fn response(headers: &Headers) -> http::Response<()> {
    let mut response = http::Response::new(());
    // Neither a backend's engine nor an answer of our own has another status.
    *response.status_mut() = headers
        .status()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::BAD_GATEWAY);
    *response.headers_mut() = fields(headers);
    response
}

/// An answer of ours as it goes over the wire, the last of its connection.
pub(super) fn last_answer(answer: &Answer) -> Vec<u8> {
    let head = response(&answer.headers);
    let mut bytes = format!("HTTP/1.1 {}\r\n", head.status()).into_bytes();
    for (name, value) in head.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"connection: close\r\n\r\n");
    bytes.extend_from_slice(answer.body.as_bytes());
    bytes
}

/// Fields, without pseudo-header fields. What the crate `http` can't hold was refused by the engine that read it.
pub(super) fn fields(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for field in headers.iter() {
        if let Ok(name) = HeaderName::from_bytes(field.name)
            && let Ok(value) = HeaderValue::from_bytes(field.value)
        {
            map.append(name, value);
        }
    }
    map
}

/// Trailers of a request, or the rule of RFC 9113 that they break.
pub(super) fn trailers(map: &HeaderMap) -> Result<Headers, &'static str> {
    let mut headers = Headers::with_capacity(map.len(), 256);
    for (name, value) in map {
        headers.push(name.as_str().as_bytes(), value.as_bytes());
    }
    headers.validate(Kind::Trailers)?;
    Ok(headers)
}

/// RFC 9112 §3.2: exactly one `host`, but for HTTP/1.0; and one that can stand in `:authority`, where the filters put
/// it.
fn host_is_wrong(head: &request::Parts) -> bool {
    let mut hosts = head.headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => head.version != Version::HTTP_10,
        (Some(_), Some(_)) => true,
        (Some(host), None) => !http2::is_authority(host.as_bytes()),
    }
}

/// hyper takes what fits a u64, with any number of zeros before it; not every backend does.
const CONTENT_LENGTH: &str = "content-length is no number that all servers take (RFC 9110 §8.6)";

/// The target was absolute and had nothing behind the authority.
fn is_bare(head: &request::Parts) -> bool {
    head.uri.authority().is_some() && head.uri.path() == "/" && head.uri.query().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(builder: request::Builder) -> Result<Vec<(String, String)>, Refusal> {
        let (head, ()) = builder.body(()).unwrap().into_parts();
        let headers = request(&head)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(headers
            .iter()
            .map(|field| (text(field.name), text(field.value)))
            .collect())
    }

    fn get(target: &str) -> request::Builder {
        http::Request::get(target).header("host", "a.test")
    }

    fn listed(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields
            .iter()
            .map(|(n, v)| (n.to_string(), v.to_string()))
            .collect()
    }

    #[test]
    fn a_request_gets_its_pseudo_header_fields() {
        let request = get("/a%20b?c=d").header("x-a", "1").header("x-a", "2");
        assert_eq!(
            convert(request).unwrap(),
            listed(&[
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/a%20b?c=d"),
                ("host", "a.test"),
                ("x-a", "1"),
                ("x-a", "2"),
            ])
        );
    }

    #[test]
    fn an_absolute_target_names_the_authority_and_the_filters_compare_it_with_host() {
        let headers = convert(get("http://b.test:1/x")).unwrap();
        assert_eq!(
            headers[2..5],
            listed(&[
                (":path", "/x"),
                (":authority", "b.test:1"),
                ("host", "a.test")
            ])[..]
        );
        assert_eq!(convert(get("http://b.test")).unwrap()[2].1, "/");
    }

    #[test]
    fn options_of_the_server_itself() {
        let options = |target: &str| get(target).method("OPTIONS");
        assert_eq!(convert(options("*")).unwrap()[2].1, "*");
        assert!(matches!(convert(get("*")), Err(Refusal::Malformed(..))));
    }

    #[test]
    fn connect_reaches_the_filters() {
        let connect = http::Request::connect("a.test:443").header("host", "a.test:443");
        assert_eq!(convert(connect).unwrap()[1].0, ":authority");
    }

    #[test]
    fn one_host_that_is_a_host() {
        let host = |request| matches!(convert(request), Err(Refusal::Host(_)));
        assert!(host(http::Request::get("/")));
        assert!(host(get("/").header("host", "a.test")));
        for wrong in ["", "a/b", "user@a", "a b", "a:b"] {
            assert!(
                host(http::Request::get("/").header("host", wrong)),
                "{wrong:?}"
            );
        }
        assert!(convert(http::Request::get("/").version(Version::HTTP_10)).is_ok());
    }

    #[test]
    fn targets_that_strict_servers_refuse() {
        for target in ["/\"", "/a`b"] {
            let Ok(uri) = target.parse::<http::Uri>() else {
                continue;
            };
            let request = get("/").uri(uri);
            assert!(
                matches!(convert(request), Err(Refusal::Malformed(..))),
                "{target}"
            );
        }
    }

    #[test]
    fn values_pass_byte_for_byte() {
        let value = HeaderValue::from_bytes(b"\xff\t\xc3(").unwrap();
        let (head, ()) = get("/")
            .header("x-bytes", value)
            .body(())
            .unwrap()
            .into_parts();
        let headers = request(&head).unwrap();
        assert_eq!(headers.get(b"x-bytes"), Some(&b"\xff\t\xc3("[..]));
        assert_eq!(
            fields(&headers).get("x-bytes").unwrap().as_bytes(),
            b"\xff\t\xc3("
        );
    }

    #[test]
    fn a_response_without_its_pseudo_header_field() {
        let mut headers = Headers::new();
        headers.push(b":status", b"404");
        headers.push(b"set-cookie", b"a");
        headers.push(b"set-cookie", b"b");
        let response = response(&headers);
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers().get_all("set-cookie").iter().count(), 2);
        assert_eq!(response.headers().len(), 2);
    }
}
