//! Step 9: the proxy answers itself, in the client's protocol.
//!
//! A gRPC client reads its status from `grpc-status` and nowhere else, so it gets `:status: 200` and one HEADERS frame
//! that ends the stream (gRPC over HTTP/2, "Trailers-Only"); everybody else gets the HTTP status and a line of text. What
//! the statuses and texts are is `error.rs`' table. After a head was relayed only [`trailers`] can still tell.

use std::borrow::Cow;

use http2::{Headers, Known};

use super::filters::{Facts, Version};
use crate::error::{Failure, encode_grpc_message, grpc_from_http};

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// To a gRPC request over HTTP/2: everything in the head, which ends the stream.
    Grpc,
    /// To any other: status and text.
    Plain,
    /// To HEAD: as `Plain`, without the text itself (RFC 9110 §9.3.2).
    Head,
}

/// What stands in every answer.
#[derive(Clone, Copy, Debug)]
pub struct AnswerContext<'a> {
    /// The listener's `server_name`.
    pub server_name: &'a str,
    /// The time now, as an HTTP date.
    pub date: &'a [u8],
}

/// An answer of the proxy's own: the head, and a body unless it is empty. Without a body the head ends the stream.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The response's head.
    pub headers: Headers,
    /// `text/plain`; empty: the head ends the stream.
    pub body: Cow<'static, str>,
    /// As the head has it; `None` in an answer that isn't gRPC.
    pub grpc_status: Option<u32>,
}

impl Form {
    /// The form that the request behind `facts` wants. Nobody reads `grpc-status` in HTTP/1.1: a refusal of gRPC over it
    /// is plain, whatever it is for.
    pub fn of(facts: &Facts, version: Version) -> Self {
        match (facts.grpc && version == Version::Http2, facts.head) {
            (true, _) => Self::Grpc,
            (false, true) => Self::Head,
            (false, false) => Self::Plain,
        }
    }
}

/// The answer to a request that failed before a response's head was relayed.
pub fn failure(failure: Failure, form: Form, context: &AnswerContext<'_>) -> Answer {
    let form = match failure {
        // The 200 of gRPC's form would tell the client that it has its tunnel (RFC 9110 §9.3.6).
        Failure::ConnectMethod => Form::Plain,
        _ => form,
    };
    let mut answer = match form {
        Form::Grpc => grpc(failure.grpc_status(), failure.text(), context),
        form => plain(
            failure.http_status(),
            Cow::Borrowed(failure.text()),
            form,
            context,
        ),
    };
    if failure == Failure::ConnectMethod {
        // A 405 has to list what is allowed (RFC 9110 §15.5.6). On a CONNECT's target, that is nothing.
        answer.headers.push(b"allow", b"");
    }
    answer
}

/// The answer of a route's `direct_response`. A gRPC request gets its status mapped, and the body as its message.
pub fn direct_response(status: u16, body: &str, form: Form, context: &AnswerContext<'_>) -> Answer {
    match form {
        Form::Grpc => grpc(grpc_from_http(status), body, context),
        form => plain(status, Cow::Owned(body.to_owned()), form, context),
    }
}

/// The answer to the listener's health check: plain, whoever asks.
pub fn health_check(serving: bool, form: Form, context: &AnswerContext<'_>) -> Answer {
    let form = if form == Form::Head {
        Form::Head
    } else {
        Form::Plain
    };
    plain(
        if serving { 200 } else { 503 },
        Cow::Borrowed(""),
        form,
        context,
    )
}

/// The end of a gRPC stream whose head was relayed: what failed after it.
pub fn trailers(failure: Failure) -> Headers {
    let mut headers = Headers::new();
    push_status(&mut headers, failure.grpc_status(), failure.text());
    headers
}

fn grpc(status: u32, text: &str, context: &AnswerContext<'_>) -> Answer {
    let mut headers = Headers::new();
    headers.push_known(Known::Status, b"200");
    headers.push_known(Known::ContentType, b"application/grpc");
    push_status(&mut headers, status, text);
    push_common(&mut headers, context);
    Answer {
        headers,
        body: Cow::Borrowed(""),
        grpc_status: Some(status),
    }
}

fn plain(status: u16, text: Cow<'static, str>, form: Form, context: &AnswerContext<'_>) -> Answer {
    let mut headers = Headers::new();
    let mut digits = itoa::Buffer::new();
    headers.push_known(Known::Status, digits.format(status).as_bytes());
    // These have no content, and 204 not even a length (RFC 9110 §8.6, §15.3.5, §15.4.5).
    let no_content = matches!(status, 204 | 304);
    if !no_content {
        if !text.is_empty() {
            headers.push_known(Known::ContentType, b"text/plain");
        }
        headers.push_known(Known::ContentLength, digits.format(text.len()).as_bytes());
    }
    push_common(&mut headers, context);
    let body = if no_content || form == Form::Head {
        Cow::Borrowed("")
    } else {
        text
    };
    Answer {
        headers,
        body,
        grpc_status: None,
    }
}

fn push_status(headers: &mut Headers, status: u32, text: &str) {
    let mut digits = itoa::Buffer::new();
    headers.push_known(Known::GrpcStatus, digits.format(status).as_bytes());
    if !text.is_empty() {
        headers.push_known(Known::GrpcMessage, encode_grpc_message(text).as_bytes());
    }
}

fn push_common(headers: &mut Headers, context: &AnswerContext<'_>) {
    headers.push_known(Known::Server, context.server_name.as_bytes());
    headers.push_known(Known::Date, context.date);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ResetCause;

    const CONTEXT: AnswerContext<'_> = AnswerContext {
        server_name: "edge-proxy",
        date: b"Sun, 06 Nov 1994 08:49:37 GMT",
    };

    fn listed(headers: &Headers) -> Vec<String> {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        headers
            .iter()
            .map(|field| text(field.name) + "=" + &text(field.value))
            .collect()
    }

    #[test]
    fn a_grpc_request_gets_one_block_with_status_200() {
        let answer = failure(Failure::NoHealthyUpstream, Form::Grpc, &CONTEXT);
        assert_eq!(
            listed(&answer.headers),
            [
                ":status=200",
                "content-type=application/grpc",
                "grpc-status=14",
                "grpc-message=no healthy upstream",
                "server=edge-proxy",
                "date=Sun, 06 Nov 1994 08:49:37 GMT",
            ]
        );
        assert!(answer.body.is_empty());
        assert_eq!(answer.grpc_status, Some(14));
    }

    #[test]
    fn no_text_is_no_message_and_no_body() {
        let answer = failure(Failure::NoRoute, Form::Grpc, &CONTEXT);
        assert_eq!(answer.headers.known(Known::GrpcStatus), Some(&b"12"[..]));
        assert_eq!(answer.headers.known(Known::GrpcMessage), None);
        let answer = failure(Failure::NoRoute, Form::Plain, &CONTEXT);
        assert_eq!(
            listed(&answer.headers),
            [
                ":status=404",
                "content-length=0",
                "server=edge-proxy",
                "date=Sun, 06 Nov 1994 08:49:37 GMT",
            ]
        );
        assert!(answer.body.is_empty());
    }

    #[test]
    fn a_plain_request_gets_status_and_text() {
        let answer = failure(Failure::DeadlineExceeded, Form::Plain, &CONTEXT);
        assert_eq!(
            listed(&answer.headers),
            [
                ":status=504",
                "content-type=text/plain",
                "content-length=24",
                "server=edge-proxy",
                "date=Sun, 06 Nov 1994 08:49:37 GMT",
            ]
        );
        assert_eq!(answer.body, "upstream request timeout");
        assert_eq!(answer.grpc_status, None);
    }

    #[test]
    fn head_gets_the_length_and_no_text() {
        let answer = failure(Failure::DeadlineExceeded, Form::Head, &CONTEXT);
        assert_eq!(answer.headers.known(Known::ContentLength), Some(&b"24"[..]));
        assert!(answer.body.is_empty());
    }

    #[test]
    fn grpc_over_http1_is_told_in_plain_http() {
        let facts = |method: &[u8]| {
            let mut headers = Headers::new();
            headers.push_known(Known::Method, method);
            headers.push_known(Known::ContentType, b"application/grpc");
            Facts::read(&headers, None)
        };
        assert_eq!(Form::of(&facts(b"POST"), Version::Http2), Form::Grpc);
        assert_eq!(Form::of(&facts(b"POST"), Version::Http1), Form::Plain);
        assert_eq!(Form::of(&facts(b"HEAD"), Version::Http1), Form::Head);
        let answer = failure(Failure::GrpcOverHttp1, Form::Plain, &CONTEXT);
        assert_eq!(answer.headers.status(), Some(505));
        assert_eq!(answer.grpc_status, None);
    }

    #[test]
    fn connect_gets_405_with_allow() {
        for form in [Form::Plain, Form::Grpc] {
            let answer = failure(Failure::ConnectMethod, form, &CONTEXT);
            assert_eq!(answer.headers.status(), Some(405), "{form:?}");
            assert_eq!(answer.headers.get(b"allow"), Some(&b""[..]));
            assert_eq!(answer.grpc_status, None);
        }
    }

    #[test]
    fn direct_responses() {
        let plain = direct_response(200, "Grüße", Form::Plain, &CONTEXT);
        assert_eq!(plain.headers.status(), Some(200));
        assert_eq!(plain.headers.content_length(), Some(7));
        assert_eq!(plain.body, "Grüße");
        let grpc = direct_response(503, "zu spät", Form::Grpc, &CONTEXT);
        assert_eq!(grpc.grpc_status, Some(14));
        assert_eq!(
            grpc.headers.known(Known::GrpcMessage),
            Some(&b"zu sp%C3%A4t"[..])
        );
        let empty = direct_response(204, "", Form::Plain, &CONTEXT);
        assert_eq!(empty.headers.content_length(), None);
    }

    #[test]
    fn health_checks_are_plain() {
        for form in [Form::Grpc, Form::Plain, Form::Head] {
            assert_eq!(
                health_check(true, form, &CONTEXT).headers.status(),
                Some(200)
            );
            assert_eq!(
                health_check(false, form, &CONTEXT).headers.status(),
                Some(503)
            );
            assert_eq!(
                health_check(true, form, &CONTEXT)
                    .headers
                    .known(Known::GrpcStatus),
                None
            );
        }
    }

    #[test]
    fn after_the_head_trailers_tell() {
        let reset = Failure::ResetAfterHeaders(ResetCause::Termination);
        assert_eq!(
            listed(&trailers(reset)),
            [
                "grpc-status=14",
                "grpc-message=upstream disconnect/reset after headers. reset reason: connection termination",
            ]
        );
        assert_eq!(
            listed(&trailers(Failure::DeadlineExceeded)),
            ["grpc-status=4", "grpc-message=upstream request timeout"]
        );
    }
}
