//! Who is next, and who gives way.

use super::*;
use crate::data_plane::rpc;

#[test]
fn an_rpc_waits_for_no_more_than_one_of_each_other_client() {
    frozen(|| async {
        let heads = Rc::new(RefCell::new(Vec::new()));
        let (seen, mut echo) = (heads.clone(), echo());
        let address = backend(move |engine, event| {
            if let Event::Headers { headers, .. } = &event {
                let path = headers.get(b":path").unwrap_or_default();
                seen.borrow_mut().push(path.last().copied());
            }
            echo(engine, event);
        });
        let mut cluster = cluster_policy();
        (cluster.max_connections, cluster.per_connection_streams) = (1, 1);
        let bench = Bench::with(&[address.await], policy(), cluster);
        let mut first = Client::connect(&bench).await;
        let stream = first.call("/api.Echo/0", b"", false);
        first.flush().await;
        at_once(|| heads.borrow().len() == 1).await;
        let mut clients = Vec::new();
        for (number, calls, all) in [(1, 50, 50), (2, 1, 51)] {
            let mut client = Client::connect_from(&bench, [127, 0, 1, number]).await;
            for _ in 0..calls {
                client.call(&format!("/api.Echo/{number}"), b"", true);
            }
            client.flush().await;
            at_once(|| waiting(&bench) == all).await;
            clients.push(client);
        }
        first.engine.reset(stream, Reason::CANCEL);
        first.flush().await;
        at_once(|| heads.borrow().len() == 52).await;
        assert_eq!(heads.borrow()[..4], [b'0', b'1', b'2', b'1'].map(Some));
    });
}

/// A client that holds streams with RPCs that don't end, and one whose RPCs end at once.
struct Unequal {
    bench: Bench,
    holder: Client,
    held: Vec<u32>,
    other: Client,
}

impl Unequal {
    /// The endpoint has room for so many streams.
    async fn new(streams: u32) -> Self {
        let mut cluster = cluster_policy();
        (cluster.max_connections, cluster.per_connection_streams) = (1, streams);
        let bench = Bench::with(&[backend(echo()).await], policy(), cluster);
        let mut holder = Client::connect_from(&bench, [127, 0, 1, 1]).await;
        let mut held = Vec::new();
        for _ in 0..streams {
            held.push(holder.call("/api.Echo/Echo", b"", false));
        }
        holder.flush().await;
        at_once(|| waiting(&bench) == 0 && active(&bench) == streams as usize).await;
        let other = Client::connect_from(&bench, [127, 0, 1, 2]).await;
        Self {
            bench,
            holder,
            held,
            other,
        }
    }

    /// Another RPC of the client that holds all, which waits.
    async fn holder_waits(&mut self) {
        let before = waiting(&self.bench);
        self.holder.call("/api.Echo/Echo", b"", false);
        self.holder.flush().await;
        at_once(|| waiting(&self.bench) == before + 1).await;
    }
}

/// How many streams the endpoint has.
fn active(bench: &Bench) -> usize {
    let snapshot = bench.worker.snapshot();
    let endpoint = &snapshot.clusters[0].endpoints[0].shared;
    endpoint.active.load(Ordering::Relaxed) as usize
}

#[test]
fn of_those_that_wait_who_has_fewest_streams_gets_the_next_one() {
    frozen(|| async {
        let mut both = Unequal::new(4).await;
        for _ in 0..3 {
            both.holder_waits().await;
        }
        let Unequal {
            bench,
            holder,
            held,
            other,
        } = &mut both;
        let call = |_| other.call("/api.Echo/Echo", b"", true);
        let streams: Vec<_> = (0..5).map(call).collect();
        other.flush().await;
        at_once(|| waiting(bench) == 8).await;
        holder.engine.reset(held[0], Reason::CANCEL);
        holder.flush().await;
        for stream in streams {
            assert_eq!(other.status(stream).await, "0");
        }
        // Nobody else wants it.
        at_once(|| waiting(bench) == 2 && active(bench) == 4).await;
    });
}

#[test]
fn for_those_that_have_waited_for_1_s_who_has_most_gives_the_stream_that_stands_still() {
    let ms = Duration::from_millis;
    frozen(|| async {
        let mut both = Unequal::new(4).await;
        for _ in 0..2 {
            both.holder_waits().await;
        }
        pass(ms(10)).await;
        let Unequal {
            bench,
            holder,
            held,
            other,
        } = &mut both;
        let move_now = || {
            let connections = bench.worker.pool.connections();
            let keys = connections.iter().flat_map(|one| one.makes_room());
            let moved = keys.filter_map(|key| rpc::moved(&bench.worker, key));
            moved.filter(|(_, at)| *at == testing::now()).count()
        };
        for at in [0, 1, 3] {
            let message = b"\0\0\0\0\0";
            holder
                .engine
                .send_data(held[at], message, false, testing::now());
        }
        holder.flush().await;
        at_once(|| move_now() == 3).await;
        let first = other.call("/api.Echo/Echo", b"", true);
        other.flush().await;
        at_once(|| waiting(bench) == 3).await;
        let ended = || bench.shard.limits(Limit::StreamShare).get();
        pass(ms(900)).await;
        settle().await;
        assert_eq!(ended(), 0);
        pass(ms(200)).await;
        assert_eq!(other.status(first).await, "0");
        let (_, _, trailers) = holder.answer(held[2]).await;
        assert_eq!(trailers.get(b"grpc-status"), Some(&b"8"[..]));
        let text = trailers.get(b"grpc-message").map(String::from_utf8_lossy);
        assert!(text.unwrap().starts_with("ended for others"));
        // It is kept, and those of who has most wait.
        for _ in 0..3 {
            settle().await;
            assert_eq!((waiting(bench), active(bench)), (2, 3));
            let next = other.call("/api.Echo/Echo", b"", true);
            assert_eq!(other.status(next).await, "0");
        }
        pass(ms(9900)).await;
        settle().await;
        holder.call("/api.Echo/Echo", b"", false);
        holder.flush().await;
        at_once(|| waiting(bench) == 1).await;
        assert_eq!(active(bench), 3);
        pass(ms(1100)).await;
        at_once(|| waiting(bench) == 0 && active(bench) == 4).await;
        assert_eq!(ended(), 1);
        assert!(bench.logged().iter().any(|line| line.contains("flags=OM")));
    });
}

#[test]
fn a_client_that_waits_for_nobody_but_itself_keeps_its_streams() {
    frozen(|| async {
        let mut both = Unequal::new(4).await;
        for _ in 0..20 {
            both.holder_waits().await;
        }
        for _ in 0..40 {
            pass(Duration::from_millis(110)).await;
            settle().await;
        }
        assert_eq!((waiting(&both.bench), active(&both.bench)), (20, 4));
        assert_eq!(both.bench.shard.limits(Limit::StreamShare).get(), 0);
    });
}

#[test]
fn what_a_client_holds_is_counted_by_endpoint_and_given_back() {
    frozen(|| async {
        let both = Unequal::new(3).await;
        let worker = &both.bench.worker;
        let endpoints = || worker.pool.endpoints.borrow();
        let number = endpoints().values().next().unwrap().number;
        let streams = |last| worker.holders.of([127, 0, 1, last].into()).streams(number);
        assert_eq!((streams(1), streams(2)), (3, 0));
        drop(both.holder);
        at_once(|| streams(1) == 0).await;
    });
}

#[test]
fn an_endpoint_that_comes_when_another_has_gone_is_not_taken_for_that_one() {
    frozen(|| async {
        let both = Unequal::new(3).await;
        let worker = &both.bench.worker;
        let gone = worker.pool.endpoints.take();
        let snapshot = worker.snapshot();
        let cluster = &snapshot.clusters[0];
        let endpoint = &cluster.endpoints[0].shared;
        let came = worker.pool.add(worker, endpoint, cluster);
        let holder = worker.holders.of([127, 0, 1, 1].into());
        let streams = |pool: &EndpointPool| holder.streams(pool.number);
        // Its RPCs still count there, and tell nobody here when they end.
        assert_eq!((streams(&gone[&endpoint.id]), streams(&came)), (3, 0));
    });
}
