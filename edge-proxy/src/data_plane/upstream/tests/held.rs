//! What those that wait have sent, and what else of theirs is held back.

use super::*;

/// Of so many requests that wait and have sent so much some are given up, since a quarter of 256 KiB may be held.
fn given_up_when_too_much_is_held_back(calls: usize, bytes: usize) {
    running(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::within(Some(256 * 1024), &[address], policy(), cluster_policy());
        let mut client = Client::connect(&bench).await;
        let first = client.call("/api.Echo/Echo", &vec![0; bytes], false);
        for _ in 1..calls {
            client.call("/api.Echo/Echo", &vec![0; bytes], false);
        }
        assert_eq!(client.status(first).await, "8");
        until(|| !bench.worker.memory.is_exceeded()).await;
        assert!(waiting(&bench) > 0, "others wait on");
        drop(client);
        until(|| waiting(&bench) == 0 && bench.worker.memory.held() == 0).await;
    });
}

#[test]
fn what_requests_that_wait_have_sent_is_given_up_when_too_much_is_held_back() {
    given_up_when_too_much_is_held_back(4, 30 * 1024);
}

#[test]
fn requests_that_wait_count_as_held_back_whatever_they_have_sent() {
    given_up_when_too_much_is_held_back(61, 0);
}

/// Requests whose heads and trailers are as long as they may be.
async fn large(client: &mut Client, calls: usize) -> Vec<u32> {
    let value = vec![b'x'; 7900];
    let mut streams = Vec::new();
    for _ in 0..calls {
        let mut head = testing::grpc("/api.Echo/Echo");
        head.push(b"x", &value[head.list_size()..]);
        let stream = client.engine.open(head, false, 0).unwrap();
        let trailers: http2::Headers = [(b"x", &value)].into_iter().collect();
        client.engine.send_trailers(stream, &trailers);
        streams.push(stream);
    }
    client.flush().await;
    streams
}

#[test]
fn heads_and_trailers_of_rpcs_that_wait_count_as_held_back() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::new(&[address]);
        let mut client = Client::connect(&bench).await;
        let held = || bench.worker.memory.held();
        let calls = 10;
        large(&mut client, calls).await;
        at_once(|| waiting(&bench) == calls && held() >= calls * 16 * 1024).await;
        drop(client);
        at_once(|| waiting(&bench) == 0 && held() == 0).await;
    });
}

/// An answer of a route's own waits for the request's end, for as long as the client likes.
#[test]
fn rpcs_that_keep_their_own_answer_waiting_count_as_held_back() {
    running(|| async {
        let bench = Bench::within(Some(256 * 1024), &[], policy(), cluster_policy());
        let mut client = Client::connect(&bench).await;
        let held = || bench.worker.memory.held();
        let mut streams = Vec::new();
        for calls in 1..=61 {
            streams.push(client.call("/direct/", b"", false));
            if calls == 10 {
                client.flush().await;
                until(|| held() >= 10 * 2048).await;
            }
        }
        // A quarter of it may be held.
        assert_eq!(client.status(streams[0]).await, "8");
        until(|| !bench.worker.memory.is_exceeded()).await;
        assert!(held() > 0, "others wait on");
        drop(client);
        until(|| bench.worker.rpcs.borrow().len() == 0 && held() == 0).await;
    });
}

#[test]
fn while_too_much_is_held_back_few_rpcs_of_each_client_wait() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::within(Some(1 << 20), &[address], policy(), cluster_policy());
        let mut client = Client::connect(&bench).await;
        let memory = &bench.worker.memory;
        // Somebody else's.
        let others = 1 << 20;
        memory.change(0, others);
        for _ in 0..ENOUGH {
            client.call("/api.Echo/Echo", b"", true);
        }
        client.flush().await;
        at_once(|| waiting(&bench) == ENOUGH).await;
        let stream = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        assert_eq!(client.status(stream).await, "8");
        assert_eq!(bench.shard.limits(Limit::Memory).get(), 1);
        assert_eq!(waiting(&bench), ENOUGH);
        let mut other = Client::connect_from(&bench, [127, 0, 0, 2]).await;
        other.call("/api.Echo/Echo", b"", true);
        other.flush().await;
        at_once(|| waiting(&bench) == ENOUGH + 1).await;
        memory.change(others, 0);
        drop((client, other));
        at_once(|| waiting(&bench) == 0 && memory.held() == 0).await;
    });
}
