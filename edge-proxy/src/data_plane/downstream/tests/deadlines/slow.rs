//! Clients that take little or nothing: a window that stays shut, a turn that is long in coming, a socket.

use super::*;

/// A client that has asked for so many bytes on each of these streams, and takes what its windows let in.
async fn downloads(bytes: usize, streams: &[u32]) -> (Bench, Raw) {
    let bench = Bench::with(&[sends(bytes).await], patient(), testing::cluster_policy());
    let (mut raw, _) = Raw::open(&bench, patient()).await;
    for stream in streams {
        let block = raw.block(&testing::grpc("/api.Echo/Echo"));
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, *stream, &block))
            .await;
    }
    (bench, raw)
}

#[test]
fn a_stream_whose_window_stays_shut_ends_after_60_s_and_no_other() {
    frozen(|| async {
        let (bench, mut raw) = downloads(200 * 1024, &[1]).await;
        at_once(|| only(&bench).link.blocked(1).is_some()).await;
        pass(seconds(59)).await;
        settle().await;
        assert_eq!(bench.worker.rpcs.borrow().len(), 1);
        pass(seconds(2)).await;
        let reset = raw.next_of(RST_STREAM).await;
        assert_eq!(reset[5..], [0, 0, 0, 1, 0, 0, 0, 8]);
        assert_eq!(bench.shard.limits(Limit::WindowStall).get(), 1);
        let block = raw.block(&testing::grpc("/direct/"));
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &block))
            .await;
        assert_eq!(raw.next_of(HEADERS).await[8], 3);
    });
}

/// Reads 20 KiB a second and gives credit at half of a window, with so large a one for the connection; for so many
/// seconds. The RPCs that haven't ended then.
async fn reads_slowly(bench: &Bench, calls: usize, connection_window: u32, time: u64) -> usize {
    let (ours, mut near, line) = pipe::pair(16 * 1024);
    let line = &line;
    let worker = bench.worker.clone();
    let policy = bench.worker.snapshot().listener.clone();
    tokio::task::spawn_local(async move {
        let now = worker.tick();
        let (transport, peer) = (Transport::Memory(ours), ([192, 0, 2, 1], 1).into());
        http2(worker, transport, Vec::new(), peer, policy, now, ()).await;
    });
    let config = http2::Config {
        stream_window: 1 << 20,
        connection_window,
        ..http2::Config::default()
    };
    let mut engine = Connection::new(Role::Client, config, testing::now());
    let mut buffer = vec![0; 16 * 1024];
    // Says what it has to; then reads what has arrived.
    let mut turn = async |engine: &mut Connection| {
        poll_fn(|cx| {
            engine.flush(testing::now());
            while !engine.output().is_empty()
                && let Poll::Ready(n) = Pin::new(&mut near).poll_write(cx, engine.output())
            {
                engine.consume(n.unwrap());
            }
            line.carry(1, usize::MAX, |_| {});
            let mut into = ReadBuf::new(&mut buffer);
            while Pin::new(&mut near).poll_read(cx, &mut into).is_ready() {
                let mut input = into.filled();
                let mut read = Vec::new();
                while let Some(event) = engine.receive(&mut input, testing::now()).unwrap() {
                    if let Event::Data { stream, bytes, .. } = event {
                        read.push((stream, bytes.len()));
                    }
                }
                for (stream, bytes) in read {
                    engine.credit(stream, bytes);
                }
                into.clear();
            }
            Poll::Ready(())
        })
        .await;
    };
    while !engine.can_open() {
        turn(&mut engine).await;
        line.carry(0, usize::MAX, |_| {});
        tokio::task::yield_now().await;
    }
    for _ in 0..calls {
        let head = testing::grpc("/api.Echo/Echo");
        engine.open(head, true, 0).unwrap();
    }
    turn(&mut engine).await;
    at_once(|| bench.worker.memory.held() > calls * 48 * 1024).await;
    for _ in 0..time {
        pass(seconds(1)).await;
        for _ in 0..10 {
            line.carry(0, 2 * 1024, |_| {});
            turn(&mut engine).await;
            settle().await;
        }
    }
    bench.worker.rpcs.borrow().len()
}

#[test]
fn streams_that_wait_for_their_turn_on_a_slow_connection_wait_for_no_window() {
    // 100 times 16 KiB take 80 s.
    for window in [16 << 20, 64 * 1024] {
        frozen(|| async move {
            let bench = Bench::with(
                &[sends(64 * 1024).await],
                patient(),
                testing::cluster_policy(),
            );
            let left = reads_slowly(&bench, 100, window, 100).await;
            assert_eq!(bench.shard.limits(Limit::WindowStall).get(), 0);
            assert_eq!(left, 100, "{window}");
        });
    }
}

#[test]
fn streams_whose_connections_window_stays_shut_end_after_60_s() {
    frozen(|| async {
        let (bench, _raw) = downloads(64 * 1024, &[1, 3]).await;
        let waits = || only(&bench).link.engine().pending_bytes() == 64 * 1024 + 1;
        at_once(waits).await;
        pass(seconds(59)).await;
        settle().await;
        assert_eq!(bench.worker.rpcs.borrow().len(), 2);
        pass(seconds(2)).await;
        at_once(|| bench.shard.limits(Limit::WindowStall).get() == 2).await;
    });
}

#[test]
fn a_socket_that_takes_nothing_is_dropped_after_30_s_whatever_waits_for_it() {
    frozen(|| async {
        let address = sends(32 << 20).await;
        let bench = Bench::with(&[address], patient(), testing::cluster_policy());
        let (mut raw, _) = Raw::open(&bench, patient()).await;
        // All the windows there are; and nothing is read any more.
        raw.send(&frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]))
            .await;
        raw.send(&frame(testing::WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]))
            .await;
        let block = raw.block(&testing::grpc("/api.Echo/Echo"));
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block))
            .await;
        let stalled = || only(&bench).link.write_blocked();
        // What the kernel still moves is progress, and then it begins anew.
        loop {
            at_once(|| stalled().is_some()).await;
            let since = stalled();
            pass(Duration::from_millis(29_900)).await;
            settle().await;
            assert_eq!(open(&bench), 1, "before 30 s");
            if stalled() != since {
                continue;
            }
            pass(Duration::from_millis(200)).await;
            at_once(|| open(&bench) == 0 || stalled() != since).await;
            if open(&bench) == 0 {
                break;
            }
        }
        assert_eq!(bench.shard.limits(Limit::WriteStall).get(), 1);
        at_once(|| bench.worker.rpcs.borrow().len() == 0).await;
    });
}
