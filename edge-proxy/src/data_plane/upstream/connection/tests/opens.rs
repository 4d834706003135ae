//! Requests that wait to be put on the wire.

use super::*;

#[test]
fn requests_that_a_lower_limit_keeps_from_leaving_wait_in_the_queue() {
    frozen(|| async {
        const RPCS: usize = 60;
        let (ours, mut theirs) = pipe::direct(4096);
        let address = ([192, 0, 2, 1], 1).into();
        let mut cluster = testing::cluster_policy();
        cluster.max_connections = 1;
        let patience = cluster.connect_timeout;
        let bench = Bench::with(&[address], patient(), cluster);
        *bench.worker.network.borrow_mut() = Some(Rc::new(Wide(RefCell::new(Some(ours)))));
        let mut client = Client::connect_with(&bench, patient()).await;
        // All together they are more than an output holds, and the backend reads none of it.
        let large = "~".repeat(6000);
        let head = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/plain/"),
            (":authority", "a.test"),
            ("x-large", &large),
        ];
        for _ in 0..RPCS {
            client.request(&head, b"", true);
            client.flush().await;
        }
        at_once(|| bench.worker.rpcs.borrow().len() == RPCS).await;
        let mut settings = testing::frame(SETTINGS, 0, 0, &[]);
        theirs.write_all(&settings).await.unwrap();
        let streams = || connections(&bench)[0].link.engine().stream_count();
        at_once(|| streams() == RPCS && connections(&bench)[0].link.write_blocked().is_some())
            .await;
        settings = testing::frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]);
        theirs.write_all(&settings).await.unwrap();
        let waiting = || bench.worker.pool.counts().2;
        at_once(|| waiting() > 0).await;
        settle().await;
        let given_up = waiting();
        assert_eq!(given_up + streams(), RPCS);
        assert!((10..30).contains(&given_up), "{given_up}");
        pass(patience).await;
        for _ in 0..given_up {
            let got = client.next().await;
            let testing::Got::Headers(_, head, _) = &got else {
                panic!("{got:?}");
            };
            assert_eq!(head.status(), Some(503));
            let body = client.next().await;
            assert!(matches!(body, testing::Got::Data(.., true)), "{body:?}");
        }
        assert_eq!(bench.worker.rpcs.borrow().len(), RPCS - given_up);
    });
}

#[test]
fn requests_that_waited_together_all_leave_though_the_backend_says_nothing() {
    frozen(|| async {
        let (ours, mut theirs) = pipe::direct(8 << 20);
        let address = ([192, 0, 2, 1], 1).into();
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        *bench.worker.network.borrow_mut() = Some(Rc::new(Wide(RefCell::new(Some(ours)))));
        let mut client = Client::connect_with(&bench, patient()).await;
        // Too large for the table: all together they are more than an output holds.
        let large = "~".repeat(6000);
        let head = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/plain/"),
            (":authority", "a.test"),
            ("x-large", &large),
        ];
        for _ in 0..100 {
            client.request(&head, b"", true);
            client.flush().await;
        }
        at_once(|| bench.worker.pool.counts().2 == 100).await;
        let hello = [
            testing::frame(SETTINGS, 0, 0, &[]),
            testing::frame(SETTINGS, ACK, 0, &[]),
        ];
        theirs.write_all(&hello.concat()).await.unwrap();
        let heads = Rc::new(Cell::new(0));
        tokio::task::spawn_local({
            let heads = heads.clone();
            async move {
                let mut unread = vec![0; PREFACE];
                theirs.read_exact(&mut unread).await.unwrap();
                unread.clear();
                while theirs.read_buf(&mut unread).await.unwrap() > 0 {
                    let frames = testing::whole_frames(&mut unread);
                    let more = frames.iter().filter(|frame| frame[3] == HEADERS).count();
                    heads.set(heads.get() + more);
                }
            }
        });
        settle().await;
        assert_eq!(heads.get(), 100);
    });
}
