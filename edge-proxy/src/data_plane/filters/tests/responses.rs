use super::*;

fn respond(fields: &[(&str, &str)], upstream_time: Option<Duration>) -> Vec<(String, String)> {
    let mut headers = block(fields);
    let context = response::ResponseContext {
        server_name: "edge-proxy",
        date: b"Sun, 06 Nov 1994 08:49:37 GMT",
        upstream_time,
    };
    response::head(&mut headers, &context);
    listed(&headers)
}

#[test]
fn a_response_names_us_and_the_time_and_what_the_backend_took() {
    assert_eq!(
        respond(
            &[(":status", "200"), ("a", "1")],
            Some(Duration::from_micros(12_999))
        ),
        owned(&[
            (":status", "200"),
            ("a", "1"),
            ("server", "edge-proxy"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("x-envoy-upstream-service-time", "12"),
        ])
    );
}

#[test]
fn a_backends_server_is_overwritten_its_date_kept_its_timing_dropped() {
    let fields = [
        (":status", "200"),
        ("server", "backend"),
        ("server", "twice"),
        ("x-envoy-upstream-service-time", "99"),
        ("date", "then"),
        ("connection", "close"),
        ("keep-alive", "1"),
        ("proxy-connection", "1"),
        ("transfer-encoding", "chunked"),
        ("grpc-status", "5"),
    ];
    assert_eq!(
        respond(&fields, None),
        owned(&[
            (":status", "200"),
            ("server", "edge-proxy"),
            ("date", "then"),
            ("grpc-status", "5"),
        ])
    );
}

#[test]
fn an_interim_head_gets_nothing() {
    let mut headers = block(&[
        (":status", "103"),
        ("link", "</a>"),
        ("connection", "close"),
    ]);
    response::interim(&mut headers);
    assert_eq!(
        listed(&headers),
        owned(&[(":status", "103"), ("link", "</a>")])
    );
}
