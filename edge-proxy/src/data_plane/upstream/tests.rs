//! Those that wait for a connection, as many as clients like.

mod held;
mod leaving;
mod shares;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http2::{Event, Reason};
use tokio::{net::TcpListener, time::advance};

use super::*;
use crate::{
    data_plane::{
        testing::{
            self, Bench, Client, Got, at_once, backend, cluster_policy, echo, frozen, pass, policy,
            running, settle, stopped, until,
        },
        worker::AT_ONCE,
    },
    snapshot::circuit::CircuitLimits,
    telemetry::metrics::Limit,
};

/// A backend that accepts and says nothing, as long as this value is kept.
async fn silent() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A cluster of these, whose endpoints have room for one RPC each, and what is known of them.
fn narrow(backends: &[SocketAddr]) -> Bench {
    let mut rules = cluster_policy();
    (rules.max_connections, rules.per_connection_streams) = (1, 1);
    Bench::with(backends, policy(), rules)
}

/// A backend that never answers, and how many requests it has.
async fn busy() -> (SocketAddr, Rc<Cell<usize>>) {
    let heads = Rc::new(Cell::new(0));
    let seen = heads.clone();
    let address = backend(move |_, event| {
        let is_head = matches!(event, Event::Headers { .. });
        seen.set(seen.get() + usize::from(is_head));
    });
    (address.await, heads)
}

/// A client whose RPC is the first that a [`busy`] backend has.
async fn served(bench: &Bench, heads: &Cell<usize>) -> Client {
    let mut client = Client::connect(bench).await;
    client.call("/api.Echo/Echo", b"", true);
    client.flush().await;
    at_once(|| heads.get() == 1).await;
    client
}

/// How many wait.
fn waiting(bench: &Bench) -> usize {
    bench.worker.pool.counts().2
}

/// Clients with so many RPCs in all that wait.
async fn crowd(bench: &Bench, count: usize) -> Vec<(Client, usize)> {
    let mut clients = Vec::new();
    for left in (1..=count).rev().step_by(100) {
        let mut client = Client::connect(bench).await;
        let calls = left.min(100);
        for _ in 0..calls {
            client.call("/api.Echo/Echo", b"", true);
        }
        client.flush().await;
        clients.push((client, calls));
    }
    at_once(|| waiting(bench) == count).await;
    clients
}

/// The time passes in which three attempts of each are in vain.
async fn give_up() {
    for _ in 0..3 {
        advance(cluster_policy().connect_timeout).await;
        settle().await;
    }
}

/// That all of them are answered with UNAVAILABLE.
async fn all_unavailable(clients: Vec<(Client, usize)>) {
    for (mut client, calls) in clients {
        for _ in 0..calls {
            let got = client.next().await;
            let Got::Headers(_, head, true) = &got else {
                panic!("{got:?}");
            };
            assert_eq!(head.get(b"grpc-status"), Some(&b"14"[..]));
        }
    }
}

#[test]
fn a_queue_has_one_timer_however_often_it_is_left() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::new(&[address]);
        let mut client = Client::connect(&bench).await;
        // An engine keeps more cancels back.
        for _ in 0..http2::UNCONFIRMED {
            let stream = client.call("/api.Echo/Echo", b"", true);
            client.flush().await;
            at_once(|| waiting(&bench) == 1).await;
            client.engine.reset(stream, Reason::CANCEL);
            client.flush().await;
            at_once(|| waiting(&bench) == 0).await;
        }
        assert_eq!(bench.worker.timers.len(), 1);
    });
}

#[test]
fn those_that_waited_for_too_long_are_told_in_parts() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::new(&[address]);
        let clients = crowd(&bench, 250).await;
        give_up().await;
        at_once(|| waiting(&bench) == 0).await;
        all_unavailable(clients).await;
    });
}

#[test]
fn those_that_wait_in_vain_are_told_in_parts_and_nobody_is_left() {
    stopped(|| async {
        let (_silent, address) = silent().await;
        let bench = Bench::new(&[address]);
        let clients = crowd(&bench, 250).await;
        let mut without = Snapshot::clone(&bench.worker.snapshot());
        without.clusters.clear();
        bench.worker.follow(Arc::new(without));
        let in_vain = |pool: &Rc<EndpointPool>| pool.in_vain.get().is_some();
        let has_more = || bench.worker.pool.endpoints.borrow().values().any(in_vain);
        assert!(has_more(), "250 are more than are told in one go");
        at_once(|| !has_more()).await;
        give_up().await;
        at_once(|| waiting(&bench) == 0).await;
        all_unavailable(clients).await;
    });
}

#[test]
fn room_that_a_new_configuration_makes_is_given_at_once() {
    for (connections, streams) in [(1, 3), (3, 1)] {
        frozen(|| async move {
            let (address, heads) = busy().await;
            let bench = narrow(&[address]);
            let mut client = served(&bench, &heads).await;
            client.call("/api.Echo/Echo", b"", true);
            client.flush().await;
            at_once(|| waiting(&bench) == 1).await;
            let mut rules = cluster_policy();
            (rules.max_connections, rules.per_connection_streams) = (connections, streams);
            bench.reload(|cluster| cluster.policy = Arc::new(rules));
            at_once(|| heads.get() == 2).await;
            client.call("/api.Echo/Echo", b"", true);
            client.flush().await;
            at_once(|| heads.get() == 3).await;
        });
    }
}

#[test]
fn where_all_connections_stay_full_an_rpc_waits_once() {
    frozen(|| async {
        let (address, heads) = busy().await;
        let bench = narrow(&[address]);
        let mut client = served(&bench, &heads).await;
        let second = client.call("/api.Echo/Echo", b"", true);
        client.flush().await;
        at_once(|| waiting(&bench) == 1).await;
        advance(cluster_policy().connect_timeout).await;
        assert_eq!(client.status(second).await, "14");
        assert_eq!(waiting(&bench), 0);
        let line = bench.logged().pop().unwrap();
        assert!(
            line.contains(" flags=UF ") && line.contains(" attempts=1 "),
            "{line}"
        );
    });
}

#[test]
fn who_has_waited_where_all_connections_stay_full_gets_another_endpoint() {
    frozen(|| async {
        let (first, heads) = busy().await;
        let second = backend(echo()).await;
        let bench = narrow(&[first, second]);
        let mut client = Client::connect(&bench).await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(client.call("/api.Echo/Echo", b"", true));
            client.flush().await;
            at_once(|| heads.get() == 1).await;
        }
        at_once(|| waiting(&bench) == 1).await;
        advance(cluster_policy().connect_timeout).await;
        for stream in &streams[1..] {
            assert_eq!(client.status(*stream).await, "0");
        }
    });
}

#[test]
fn those_that_a_circuit_limit_refuses_are_told_in_parts() {
    frozen(|| async {
        let (address, heads) = busy().await;
        let bench = narrow(&[address]);
        let limits = CircuitLimits([None, None, Some(1), None]);
        bench.worker.snapshot().clusters[0].circuits.limit(&limits);
        let _first = served(&bench, &heads).await;
        let clients = crowd(&bench, 250).await;
        bench.reload(|cluster| cluster.policy = Arc::new(cluster_policy()));
        assert_eq!(waiting(&bench), 250 - AT_ONCE);
        for _ in 0..2 {
            pass(Duration::from_millis(1)).await;
            settle().await;
        }
        assert_eq!(waiting(&bench), 0);
        all_unavailable(clients).await;
        assert_eq!(heads.get(), 1);
    });
}
