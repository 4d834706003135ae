//! Answers that are complete, to clients who give them no window.

use super::*;

/// A request with a head of some KiB, of a client who takes no byte of the answer's body.
async fn ask(client: &mut Browser, fields: &[(&str, &str)], count: usize) {
    let large = "v".repeat(7000);
    let fields = [fields, &[("x-large", &*large)]].concat();
    for _ in 0..count {
        client.request(&fields, b"\0\0\0\0\0", true);
    }
    client.flush().await;
}

/// What the proxy answers itself, and what a backend does.
const ASKED: [[(&str, &str); 5]; 2] = [
    [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/plain/x"),
        (":authority", "a.test"),
        ("host", "b.test"),
    ],
    [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/api.Echo/Echo"),
        (":authority", "a.test"),
        ("content-type", "application/grpc"),
    ],
];

#[test]
fn they_count_as_held_back_and_keep_no_more_of_the_request_than_its_line_says() {
    for fields in ASKED {
        stopped(|| async move {
            let bench = Bench::new(&[backend(echo()).await]);
            let mut client = Browser::connect_shut(&bench).await;
            let (memory, count) = (&bench.worker.memory, 10);
            ask(&mut client, &fields, count).await;
            let rpcs = &bench.worker.rpcs;
            let flushing = || {
                let is = |rpc: &Rpc| matches!(rpc.state, State::Flushing(_));
                rpcs.borrow().keys_where(is).len()
            };
            at_once(|| flushing() == count).await;
            settle().await;
            let each = memory.held() / count;
            assert!((2048..6 * 1024).contains(&each), "{each}");
            drop(client);
            at_once(|| memory.held() == 0).await;
            let lines = bench.logged();
            let path = format!(" path={} ", fields[2].1);
            assert!(lines.iter().all(|line| line.contains(&path)), "{lines:?}");
            assert_eq!(lines.len(), count);
        });
    }
}

#[test]
fn above_a_quarter_of_the_memory_the_longest_stalled_are_reset() {
    running(|| async {
        let granted = 4 * 64 * 1024;
        let bench = Bench::within(Some(granted), &[], policy(), cluster_policy());
        let mut client = Browser::connect_shut(&bench).await;
        ask(&mut client, &ASKED[0], 60).await;
        let memory = &bench.worker.memory;
        until(|| bench.shard.limits(Limit::Memory).get() > 0).await;
        until(|| !memory.is_exceeded()).await;
        loop {
            if let Got::Reset(_, reason) = client.next().await {
                assert_eq!(reason, Reason::ENHANCE_YOUR_CALM);
                break;
            }
        }
        drop(client);
        until(|| memory.held() == 0).await;
    });
}

#[test]
fn short_of_memory_none_is_kept_for_them() {
    stopped(|| async {
        let bench = Bench::new(&[backend(echo()).await]);
        bench.worker.press(Pressure {
            level: Level::Refusing,
            used: 96,
            limit: 100,
        });
        let mut client = Browser::connect_shut(&bench).await;
        let stream = client.request(&PLAIN, b"", true);
        while !matches!(client.next().await, Got::Reset(at, Reason::ENHANCE_YOUR_CALM) if at == stream)
        {
        }
        assert_eq!(bench.worker.rpcs.borrow().len(), 0);
        assert_eq!(bench.shard.resets(labels::ResetCause::Overload).get(), 1);
        let lines = bench.logged();
        assert!(lines[0].contains("flags=OM"), "{lines:?}");
    });
}
