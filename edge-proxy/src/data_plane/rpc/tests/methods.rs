//! Which answers give a method a label of its own.

use super::*;

/// Answers as the path's last part says.
fn scripted(engine: &mut Connection, event: Event<'_>) {
    let Event::Headers {
        stream, headers, ..
    } = event
    else {
        return;
    };
    let fields: &[_] = match headers.path().unwrap() {
        b"/api.Echo/Ok" => &[(":status", "200"), ("grpc-status", "0")],
        // As an interceptor says it, which asks for no method.
        b"/api.Echo/Unauthenticated" => &[(":status", "200"), ("grpc-status", "16")],
        b"/api.Echo/Unimplemented" => &[(":status", "200"), ("grpc-status", "12")],
        b"/api.Echo/Missing" => &[(":status", "404")],
        b"/api.Echo/Head" | b"/api.Echo/Message" => &[(":status", "200")],
        other => panic!("{other:?}"),
    };
    let mut head = testing::headers(fields);
    head.push(b"content-type", b"application/grpc");
    let ends = fields.len() == 2;
    engine.send_headers(stream, &head, ends);
    if headers.path() == Some(b"/api.Echo/Message") {
        engine.send_data(stream, b"\0\0\0\0\0", false, testing::now());
    }
}

#[test]
fn a_method_has_a_label_once_it_answered_ok_or_a_message() {
    frozen(|| async {
        let bench = Bench::new(&[backend(scripted).await]);
        let mut client = Browser::connect(&bench).await;
        for (ended, method) in [
            (true, "Ok"),
            (true, "Unauthenticated"),
            (true, "Unimplemented"),
            (false, "Missing"),
            (false, "Head"),
            (false, "Message"),
        ] {
            let stream = client.call(&format!("/api.Echo/{method}"), b"", true);
            client.flush().await;
            if ended {
                client.status(stream).await;
            } else {
                client.next().await;
                client.engine.reset(stream, Reason::CANCEL);
                client.flush().await;
            }
            at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
        }
        let mut known: Vec<_> = [
            "Ok",
            "Unauthenticated",
            "Unimplemented",
            "Missing",
            "Head",
            "Message",
        ]
        .into_iter()
        .filter(|method| {
            let path = format!("/api.Echo/{method}");
            let series =
                bench
                    .shard
                    .series(&"/api.Echo/".into(), &"backends".into(), path.as_bytes());
            series.is("/api.Echo/", "backends", path.as_bytes())
        })
        .collect();
        known.sort_unstable();
        assert_eq!(known, ["Message", "Ok"]);
    });
}
