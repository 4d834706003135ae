use std::{
    cell::{Cell, RefCell},
    io::Write as _,
    rc::Rc,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Wake, Waker},
};

use super::*;
use crate::data_plane::testing::{self, running};

/// A session that a client has opened, and what the client writes after `talk` used it: when the session is accepted,
/// since what comes together with the handshake's end is taken otherwise.
async fn session(
    talk: impl FnOnce(&mut rustls::ClientConnection) -> Vec<u8> + Send + 'static,
) -> Box<Tls> {
    let (server, client) = testing::tls();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
        .await
        .unwrap();
    let address = listener.local_addr().unwrap();
    let (begin, begun) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let name = "localhost".try_into().unwrap();
        let mut session = rustls::ClientConnection::new(client, name).unwrap();
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        while session.is_handshaking() {
            session.complete_io(&mut socket).unwrap();
        }
        let last = talk(&mut session);
        begun.recv().unwrap();
        socket.write_all(&last).unwrap();
        // Kept open until the other side closes: what it still says is no reason to go.
        let _ = io::Read::read_to_end(&mut socket, &mut Vec::new());
    });
    let (socket, _) = listener.accept().await.unwrap();
    let accepted = Tls::accept(socket, server, &Gate::default(), |_| {}).await;
    begin.send(()).unwrap();
    accepted.unwrap().0
}

#[test]
fn between_two_handshakes_everything_else_that_is_ready_runs() {
    const CLIENTS: usize = 8;
    running(|| async {
        let (server, client) = testing::tls();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let mut clients = Vec::new();
        let mut accepted = Vec::new();
        for _ in 0..CLIENTS {
            let name = "localhost".try_into().unwrap();
            let mut session = rustls::ClientConnection::new(client.clone(), name).unwrap();
            let mut socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            session.write_tls(&mut socket).unwrap();
            clients.push(socket);
            let (socket, _) = listener.accept().await.unwrap();
            socket.readable().await.unwrap();
            accepted.push(socket);
        }
        // Every ClientHello is there; each answer to one is a signature.
        let (gate, computed) = (Rc::new(Gate::default()), Rc::new(Cell::new(0)));
        for socket in accepted {
            let (server, gate, computed) = (server.clone(), gate.clone(), computed.clone());
            tokio::task::spawn_local(async move {
                let turn = |_| computed.set(computed.get() + 1);
                let _ = Tls::accept(socket, server, &gate, turn).await;
            });
        }
        let mut before = 0;
        while before < CLIENTS {
            // An RPC's turn.
            let mut yielded = false;
            poll_fn(|cx| {
                if mem::replace(&mut yielded, true) {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            })
            .await;
            let now = computed.get();
            assert!(now - before <= 1, "{} in a row", now - before);
            before = now;
        }
    });
}

#[test]
fn a_pass_wakes_the_next_in_line_and_one_that_is_given_up_hands_its_turn_on() {
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let gate = Gate::default();
    let mut waiting: Vec<_> = (0..512)
        .map(|_| (Box::pin(gate.enter()), Arc::new(Count(AtomicUsize::new(0)))))
        .collect();
    let mut pass = None;
    for (enter, count) in &mut waiting {
        let waker = Waker::from(count.clone());
        if let Poll::Ready(entered) = enter.as_mut().poll(&mut Context::from_waker(&waker)) {
            assert!(pass.replace(entered).is_none());
        }
    }
    drop((pass.unwrap(), waiting.remove(0)));
    while !waiting.is_empty() {
        let woken: Vec<_> = waiting
            .iter()
            .map(|(_, count)| count.0.load(Ordering::Relaxed))
            .collect();
        assert_eq!((woken[0], woken.iter().sum::<usize>()), (1, 1));
        let (mut enter, count) = waiting.remove(0);
        if waiting.len() % 2 == 0 {
            // Given up between its wake-up and its turn.
            continue;
        }
        let waker = Waker::from(count);
        let entered = enter.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(entered.is_ready());
    }
}

#[test]
fn it_is_told_when_a_whole_hello_is_answered_and_when_more_waits_to_be_read() {
    running(|| async {
        let (server, client) = testing::tls();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let name = "localhost".try_into().unwrap();
        let mut session = rustls::ClientConnection::new(client, name).unwrap();
        let mut hello = Vec::new();
        session.write_tls(&mut hello).unwrap();
        let mut socket = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let (gate, turns) = (Rc::new(Gate::default()), Rc::new(RefCell::new(Vec::new())));
        tokio::task::spawn_local({
            let (gate, turns) = (gate.clone(), turns.clone());
            async move {
                let turn = |turn| turns.borrow_mut().push(turn);
                let _ = Tls::accept(accepted, server, &gate, turn).await;
            }
        });
        let (first, last) = hello.split_at(hello.len() - 1);
        tokio::io::AsyncWriteExt::write_all(&mut socket, first)
            .await
            .unwrap();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(turns.borrow().is_empty(), "half of it");
        tokio::io::AsyncWriteExt::write_all(&mut socket, last)
            .await
            .unwrap();
        testing::until(|| *turns.borrow() == [Turn::Answered]).await;
        // The next one's first byte, while another handshake computes.
        let pass = gate.enter().await;
        tokio::io::AsyncWriteExt::write_all(&mut socket, &[0x16])
            .await
            .unwrap();
        testing::until(|| turns.borrow().len() == 2).await;
        assert_eq!(turns.borrow()[1], Turn::Came);
        pass.leave().await;
        testing::until(|| turns.borrow().len() == 3).await;
        assert_eq!(turns.borrow()[2], Turn::Read);
    });
}

#[test]
fn a_client_hello_without_an_end_is_refused_at_16_kib() {
    running(|| async {
        let (server, _) = testing::tls();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let mut socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        // One that says that it has 64 KiB, and then has 20.
        let mut hello = vec![1, 0, 0xff, 0];
        hello.resize(LARGEST_HANDSHAKE + 4096, 0);
        for fragment in hello.chunks(4096) {
            let length = (fragment.len() as u16).to_be_bytes();
            socket.write_all(&[22, 3, 1]).unwrap();
            socket.write_all(&length).unwrap();
            socket.write_all(fragment).unwrap();
        }
        // Its end alone would be another error.
        socket.shutdown(std::net::Shutdown::Write).unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let accepted = Tls::accept(accepted, server, &Gate::default(), |_| {}).await;
        let Err(error) = accepted else {
            panic!("accepted");
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
    });
}

#[test]
fn a_client_hello_of_12_kib_is_answered() {
    running(|| async {
        let (server, client) = testing::tls();
        let mut client = Arc::unwrap_or_clone(client);
        client.alpn_protocols = (0..60).map(|n| vec![n; 200]).collect();
        client.alpn_protocols.push(b"h2".to_vec());
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let opened = std::thread::spawn(move || {
            let name = "localhost".try_into().unwrap();
            let mut session = rustls::ClientConnection::new(Arc::new(client), name).unwrap();
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            while session.is_handshaking() {
                session.complete_io(&mut socket).unwrap();
            }
        });
        let (socket, _) = listener.accept().await.unwrap();
        let accepted = Tls::accept(socket, server, &Gate::default(), |_| {}).await;
        assert_eq!(accepted.unwrap().1.alpn, Alpn::Http2);
        opened.join().unwrap();
    });
}

#[test]
fn what_follows_a_close_notify_is_ignored() {
    running(|| async {
        let tls = session(|session| {
            let mut bytes = Vec::new();
            session.writer().write_all(b"last words").unwrap();
            session.send_close_notify();
            session.write_tls(&mut bytes).unwrap();
            bytes.extend_from_slice(b"and more, of no record");
            bytes
        })
        .await;
        let mut transport = Transport::Tls(tls);
        let scratch = RefCell::new(vec![0; 4096].into_boxed_slice());
        let mut got = Vec::new();
        while poll_fn(|cx| transport.poll_read(cx, &scratch, |bytes| got.extend_from_slice(bytes)))
            .await
            .unwrap()
            > 0
        {}
        assert_eq!(got, b"last words");
    });
}

/// What a client's session writes now.
fn sealed(session: &mut rustls::ClientConnection, plain: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    session.set_buffer_limit(None);
    session.writer().write_all(plain).unwrap();
    while session.wants_write() {
        session.write_tls(&mut bytes).unwrap();
    }
    bytes
}

/// Reads until there are `n` bytes, with a scratch of `scratch` bytes.
async fn read(transport: &mut Transport, n: usize, scratch: usize) -> io::Result<Vec<u8>> {
    let scratch = RefCell::new(vec![0; scratch].into_boxed_slice());
    let mut got = Vec::new();
    while got.len() < n {
        let read =
            poll_fn(|cx| transport.poll_read(cx, &scratch, |bytes| got.extend_from_slice(bytes)));
        if read.await? == 0 {
            break;
        }
    }
    Ok(got)
}

fn held(transport: &Transport) -> usize {
    match transport {
        Transport::Tls(tls) => tls.unread.capacity() + tls.sealed.capacity() + tls.plain.capacity(),
        _ => 0,
    }
}

#[test]
fn records_come_in_any_pieces() {
    let message: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
    let expected = message.clone();
    running(|| async move {
        let tls = session(move |session| sealed(session, &message)).await;
        let mut transport = Transport::Tls(tls);
        // A record of 16 KiB and 22 bytes has room, and most reads end within one.
        let got = read(&mut transport, expected.len(), 17_000).await.unwrap();
        assert!(got == expected);
        // The session ticket leaves ahead of our first words.
        poll_fn(|cx| transport.poll_write(cx, b"ok")).await.unwrap();
        assert_eq!(held(&transport), 0, "a quiet connection holds nothing");
    });
}

#[test]
fn a_record_that_no_scratch_holds_is_an_error() {
    running(|| async {
        let tls = session(|session| sealed(session, &[1; 8192])).await;
        let mut transport = Transport::Tls(tls);
        let error = read(&mut transport, 8192, 4096).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    });
}

#[test]
fn a_slow_reader_gets_everything_in_order() {
    const ALL: usize = 8 * 1024 * 1024;
    let message: Vec<u8> = (0..ALL).map(|n| (n / 251) as u8).collect();
    let expected = message.clone();
    let (told, checked) = std::sync::mpsc::channel();
    running(|| async move {
        let (server, client) = testing::tls();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (begin, begun) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let name = "localhost".try_into().unwrap();
            let session = rustls::ClientConnection::new(client, name).unwrap();
            let socket = std::net::TcpStream::connect(address).unwrap();
            let mut stream = rustls::StreamOwned::new(session, socket);
            stream.flush().unwrap();
            // Not before the sockets' buffers are full.
            begun.recv().unwrap();
            let mut got = vec![0; ALL];
            io::Read::read_exact(&mut stream, &mut got).unwrap();
            told.send(got == expected).unwrap();
            io::Read::read_to_end(&mut stream, &mut Vec::new()).unwrap();
        });
        let (socket, _) = listener.accept().await.unwrap();
        let accepted = Tls::accept(socket, server, &Gate::default(), |_| {}).await;
        let mut transport = Transport::Tls(accepted.unwrap().0);
        let mut written = 0;
        let mut begin = Some(begin);
        while written < ALL || transport.wants_write() {
            let rest = &message[written..];
            let polled = poll_fn(|cx| Poll::Ready(transport.poll_write(cx, rest))).await;
            match polled {
                Poll::Ready(n) => written += n.unwrap(),
                Poll::Pending => {
                    assert!(held(&transport) > 0, "what was sealed waits");
                    if let Some(begin) = begin.take() {
                        begin.send(()).unwrap();
                    }
                    written += poll_fn(|cx| transport.poll_write(cx, rest)).await.unwrap();
                }
            }
        }
        assert!(begin.is_none(), "the sockets' buffers took everything");
        assert_eq!(held(&transport), 0);
        transport.shutdown().await.unwrap();
        assert!(checked.recv().unwrap());
    });
}

#[test]
fn the_clients_change_of_keys_is_answered_with_one() {
    running(|| async {
        let tls = session(|session| {
            session.refresh_traffic_keys().unwrap();
            sealed(session, b"new keys")
        })
        .await;
        let mut transport = Transport::Tls(tls);
        assert_eq!(read(&mut transport, 8, 4096).await.unwrap(), b"new keys");
        let n = poll_fn(|cx| transport.poll_write(cx, b"answer")).await;
        assert_eq!(n.unwrap(), 6);
        assert!(!transport.wants_write());
    });
}

#[test]
fn garbage_is_told_with_an_alert() {
    running(|| async {
        let (server, client) = testing::tls();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0))
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let (begin, begun) = std::sync::mpsc::channel();
        let talk = std::thread::spawn(move || {
            let name = "localhost".try_into().unwrap();
            let mut session = rustls::ClientConnection::new(client, name).unwrap();
            let mut socket = std::net::TcpStream::connect(address).unwrap();
            while session.is_handshaking() {
                session.complete_io(&mut socket).unwrap();
            }
            // A record of application data that nobody has sealed.
            let mut record = vec![0x17, 3, 3, 0, 64];
            record.extend_from_slice(&[7; 64]);
            begun.recv().unwrap();
            socket.write_all(&record).unwrap();
            loop {
                session.read_tls(&mut socket).unwrap();
                if let Err(error) = session.process_new_packets() {
                    return error;
                }
            }
        });
        let (socket, _) = listener.accept().await.unwrap();
        let accepted = Tls::accept(socket, server, &Gate::default(), |_| {}).await;
        begin.send(()).unwrap();
        let mut transport = Transport::Tls(accepted.unwrap().0);
        let error = read(&mut transport, 1, 4096).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac);
        assert_eq!(talk.join().unwrap(), alert);
    });
}

#[test]
fn whoever_waits_for_a_request_holds_nothing() {
    running(|| async {
        let mut tls = session(|session| sealed(session, b"GET / HTTP/1.1")).await;
        let mut got = Vec::new();
        while got.len() < 14 {
            tokio::io::AsyncReadExt::read_buf(&mut tls, &mut got)
                .await
                .unwrap();
        }
        assert_eq!(got, b"GET / HTTP/1.1");
        let mut rest = [0; 16];
        let waits = poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut rest);
            Poll::Ready(AsyncRead::poll_read(Pin::new(&mut *tls), cx, &mut buffer).is_pending())
        });
        assert!(waits.await);
        assert_eq!(tls.unread.capacity() + tls.plain.capacity(), 0);
    });
}
