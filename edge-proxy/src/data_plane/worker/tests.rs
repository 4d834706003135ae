use tokio::time::advance;

use super::*;
use crate::data_plane::testing::{
    self, Bench, Client, at_once, cluster_policy, policy, settle, stopped,
};

#[test]
fn deadlines_that_are_the_same_fire_in_parts() {
    stopped(|| async {
        // It accepts, and says nothing.
        let silent = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await;
        let silent = silent.unwrap();
        let bench = Bench::new(&[silent.local_addr().unwrap()]);
        let timers = || bench.worker.timers.len();
        let mut head = testing::grpc("/api.Echo/Echo");
        head.push(b"grpc-timeout", b"1S");
        let mut clients = Vec::new();
        for calls in [100, 100, 50] {
            let mut client = Client::connect(&bench).await;
            for _ in 0..calls {
                client.engine.open(head.clone(), true, 0).unwrap();
            }
            client.flush().await;
            clients.push(client);
        }
        // And the queue's own.
        at_once(|| timers() == 251).await;
        advance(Duration::from_secs(1)).await;
        at_once(|| timers() < 251).await;
        assert_eq!(timers(), 151, "others have their turns now");
        at_once(|| timers() == 1).await;
    });
}

#[test]
fn searches_in_vain_take_a_tenth_of_the_time_and_others_half() {
    let begun = Instant::now();
    let ended = begun + Duration::from_millis(4);
    for (enough, all) in [(false, 40), (true, 8)] {
        let next = after_search(begun, ended, enough);
        assert_eq!(next, begun + Duration::from_millis(all));
    }
}

#[test]
fn it_is_searched_again_when_it_may_be_and_then_now_and_then() {
    stopped(|| async {
        let bench = Bench::within(Some(4 * 1024), &[], policy(), cluster_policy());
        let worker = &bench.worker;
        let next = worker.tick() + Duration::from_secs(1);
        worker.next_search.set(Some(next));
        // Nothing of it can be freed.
        for held in 1..=10 {
            worker.memory.change(0, held * 1024);
            settle().await;
        }
        assert_eq!(worker.next_search.get(), Some(next));
        for pause in [Duration::from_millis(1001), SEARCH_AGAIN, SEARCH_AGAIN] {
            let last = worker.next_search.get();
            advance(pause).await;
            at_once(|| worker.next_search.get() > last).await;
        }
    });
}

#[test]
fn what_other_workers_hold_is_a_reason_to_search_too() {
    stopped(|| async {
        let bench = Bench::new(&[]);
        let memory = Memory::new(Some(4 * 1024), 2);
        let other = Account::new(memory.clone(), 1);
        let worker = Worker::new(
            bench.worker.snapshot().snapshot.clone(),
            bench.shard.clone(),
            bench.log.borrow().writer(),
            Arc::default(),
            Account::new(memory, 0),
        );
        worker.memory.change(0, 512);
        let ended = Rc::new(Cell::new(false));
        let search = || {
            let (worker, ended) = (worker.clone(), ended.clone());
            tokio::task::spawn_local(async move {
                worker.short().await;
                ended.set(true);
            })
        };
        let search_before = search();
        settle().await;
        assert!(!ended.get(), "there is enough");
        search_before.abort();
        other.change(0, 1024);
        search();
        at_once(|| ended.get()).await;
    });
}

#[test]
fn a_new_snapshot_is_followed_at_the_moment_it_comes() {
    stopped(|| async {
        let bench = Bench::new(&[]);
        let worker = &bench.worker;
        advance(Duration::from_secs(5)).await;
        assert!(worker.now() < testing::now());
        worker.follow(worker.snapshot().snapshot.clone());
        assert_eq!(worker.now(), testing::now());
    });
}

#[test]
fn the_wall_clock_is_looked_at_again_and_again() {
    stopped(|| async {
        let bench = Bench::new(&[]);
        let worker = &bench.worker;
        worker.seed(1, SystemTime::UNIX_EPOCH);
        let began = worker.now();
        assert_eq!(worker.wall(began), SystemTime::UNIX_EPOCH);
        advance(Duration::from_secs(2)).await;
        let before = SystemTime::now();
        worker.beat();
        let [then, now] = [began, worker.now()].map(|moment| worker.wall(moment));
        assert!(now >= before && now <= SystemTime::now());
        assert_eq!(then + Duration::from_secs(2), now);
        let later = worker.wall(worker.now() + Duration::from_secs(1));
        assert_eq!(now + Duration::from_secs(1), later);
    });
}
