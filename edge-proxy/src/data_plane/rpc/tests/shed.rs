//! Whose RPCs go when memory is short.

use super::*;

/// An RPC that waits for the rest of its request, and one after another of a client that takes no byte of the answers.
struct Two {
    bench: Bench,
    honest: Browser,
    waits: u32,
    greedy: Browser,
}

impl Two {
    /// The honest one has waited for 900 ms when the other one comes.
    async fn new(granted: Option<u64>) -> Self {
        let bench = Bench::within(granted, &[], policy(), cluster_policy());
        let mut honest = Browser::connect_from(&bench, [127, 0, 1, 1]).await;
        let waits = honest.request(&DIRECT, b"", false);
        honest.flush().await;
        at_once(|| bench.worker.rpcs.borrow().len() == 1).await;
        testing::pass(Duration::from_millis(900)).await;
        let greedy = Browser::connect_shut_from(&bench, [127, 0, 1, 2]).await;
        Self {
            bench,
            honest,
            waits,
            greedy,
        }
    }

    /// So many answers wait for a window.
    async fn ask(&mut self, count: usize) {
        for _ in 0..count {
            self.greedy.request(&PLAIN_REFUSED, b"", true);
        }
        self.greedy.flush().await;
    }

    fn shed(&self) -> u64 {
        self.bench.shard.limits(Limit::Memory).get()
    }

    /// The honest one's RPC is answered when it has sent all of it.
    async fn honest_is_served(mut self) {
        let now = testing::now();
        self.honest.engine.send_data(self.waits, b"", true, now);
        let (head, body, _) = self.honest.answer(self.waits).await;
        assert_eq!(head.known(Known::Status), Some(&b"200"[..]));
        assert_eq!(body, b"direct");
    }
}

/// Answered when all of it is there.
const DIRECT: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/direct/"),
    (":authority", "a.test"),
];

/// Answered at once, with a body.
const PLAIN_REFUSED: [(&str, &str); 5] = [
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/plain/x"),
    (":authority", "a.test"),
    ("host", "b.test"),
];

#[test]
fn above_a_quarter_of_the_memory_who_holds_most_gives_back_first() {
    frozen(|| async {
        // 64 KiB may be held.
        let mut two = Two::new(Some(4 * 64 * 1024)).await;
        two.ask(60).await;
        at_once(|| two.shed() > 0).await;
        at_once(|| !two.bench.worker.memory.is_exceeded()).await;
        two.honest_is_served().await;
    });
}

#[test]
fn near_the_limit_nobody_pays_for_who_holds_more_and_moves_a_byte_now_and_then() {
    frozen(|| async {
        let mut two = Two::new(None).await;
        two.ask(10).await;
        let memory = &two.bench.worker.memory;
        at_once(|| memory.held() > 11 * 2048).await;
        let press = || {
            let limit = 1_000_000;
            // Some answers would be enough.
            let used = limit / 100 * Level::Shedding.percent() + 8192;
            let level = Level::Refusing;
            two.bench.worker.press(Pressure { level, used, limit });
        };
        press();
        assert_eq!(two.shed(), 0);
        testing::pass(Duration::from_millis(300)).await;
        press();
        assert!(two.shed() > 0, "it stands still");
        two.honest_is_served().await;
    });
}
