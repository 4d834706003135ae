//! What of a request is kept for another attempt, and until when; and an attempt that never left.

use super::*;

/// An RPC with a body of so many bytes, at its backend.
async fn asked(client: &mut Browser, noted: &Noted, path: &str, bytes: usize) -> u32 {
    let before = noted.requests();
    let stream = client.call(path, &vec![0; bytes], false);
    client.flush().await;
    at_once(|| noted.requests() == before + 1).await;
    stream
}

#[test]
fn copies_count_as_held_until_the_first_frame_of_the_response() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let bench = Bench::new(&[backend(noting(&noted)).await]);
        let memory = &bench.worker.memory;
        // So many copied bytes, and no small head.
        let held = |bytes: usize| at_once(move || (bytes..bytes + 2048).contains(&memory.held()));
        let mut client = Browser::connect(&bench).await;
        let waits = asked(&mut client, &noted, "/api.Echo/silent", 16_384).await;
        held(16_384).await;
        let begun = asked(&mut client, &noted, "/api.Echo/begun", 5000).await;
        until_begun(&mut client, begun).await;
        held(16_384).await;
        // Nor is anything kept from there on.
        client
            .engine
            .send_data(begun, &[0; 5000], false, testing::now());
        client.engine.reset(waits, Reason::CANCEL);
        client.flush().await;
        at_once(|| noted.resets() == 1).await;
        held(0).await;
        assert_eq!(bench.worker.rpcs.borrow().len(), 1);
        drop(client);
        at_once(|| memory.held() == 0).await;
    });
}

#[test]
fn copies_are_given_back_when_memory_gets_short() {
    stopped(|| async {
        let noted = Rc::<Noted>::default();
        let address = backend(noting(&noted)).await;
        let bench = Bench::within(Some(4 * 10_000), &[address], policy(), cluster_policy());
        let mut client = Browser::connect(&bench).await;
        let mut head = testing::grpc("/api.Echo/silent");
        head.push(b"x", &[b'x'; 4000]);
        let stream = client.engine.open(head, false, 0).unwrap();
        client
            .engine
            .send_data(stream, &[0; 1000], false, testing::now());
        let trailers = testing::headers(&[("x", "y")]);
        client.engine.send_trailers(stream, &trailers);
        client.flush().await;
        at_once(|| noted.requests() == 1 && bench.worker.memory.held() > 5000).await;
        // As much as may be held, by others.
        bench.worker.memory.change(0, 10_000);
        at_once(|| bench.worker.memory.held() < 11_000).await;
        // The RPC itself goes on.
        assert_eq!((bench.worker.rpcs.borrow().len(), noted.resets()), (1, 0));
        assert_eq!(bench.shard.limits(Limit::Memory).get(), 0);
    });
}

#[test]
fn an_attempt_whose_stream_can_not_be_opened_is_made_again() {
    stopped(|| async {
        let (listener, bench) = silent().await;
        let mut client = Browser::connect(&bench).await;
        let stream = client.call("/api.Echo/Echo", b"\0\0\0\0\0", true);
        client.flush().await;
        let worker = &bench.worker;
        at_once(|| worker.pool.connections().len() == 1 && worker.rpcs.borrow().len() == 1).await;
        let key = worker.rpcs.borrow().keys()[0];
        // It has come to the head of the queue, and its connection can't take it after all.
        let mut waits = None;
        worker.rpcs.borrow().for_each(|_, rpc| {
            if let State::Waiting(endpoint, place) = &rpc.state {
                waits = Some((endpoint.id, *place));
            }
        });
        let (endpoint, place) = waits.unwrap();
        worker.pool.forget(endpoint, place);
        let upstream = worker.pool.connections().remove(0);
        connected(worker, key, upstream);
        assert_eq!(worker.pool.counts().2, 1, "it waits again");
        let socket = listener.accept().await.unwrap().0;
        tokio::task::spawn_local(serve(socket, echo()));
        assert_eq!(client.status(stream).await, "0");
        let series = bench.shard.cluster(&"backends".into());
        assert_eq!(series.retries.get(), 1);
        let lines = bench.logged();
        assert!(lines[0].contains(" attempts=2 "), "{lines:?}");
    });
}
