//! Backends on sockets, in plain text: an engine, and a script that says what it does with each event.

use std::{cell::RefCell, net::SocketAddr, rc::Rc};

use http2::{Config, Connection, Event, Role};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{SETTINGS, now};

/// A backend on h2c that does with every event what `script` says; returns its address.
pub(crate) async fn backend(
    script: impl FnMut(&mut Connection, Event<'_>) + 'static,
) -> SocketAddr {
    backend_behind(|_| true, script).await
}

/// [`backend`], which sees only the frames of which `pass` says so.
pub(crate) async fn backend_behind(
    pass: impl FnMut(&[u8]) -> bool + 'static,
    script: impl FnMut(&mut Connection, Event<'_>) + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let script = Rc::new(RefCell::new(script));
    let pass = Rc::new(RefCell::new(pass));
    tokio::task::spawn_local(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (script, pass) = (script.clone(), pass.clone());
            tokio::task::spawn_local(serve_behind(
                socket,
                move |frame| pass.borrow_mut()(frame),
                move |connection: &mut Connection, event: Event<'_>| {
                    script.borrow_mut()(connection, event);
                },
            ));
        }
    });
    address
}

/// Whether it is SETTINGS that say nothing, for whose acknowledgement cancels wait.
pub(crate) fn is_barrier(frame: &[u8]) -> bool {
    frame[3..] == [SETTINGS, 0, 0, 0, 0, 0]
}

pub(crate) async fn serve(socket: TcpStream, script: impl FnMut(&mut Connection, Event<'_>)) {
    serve_behind(socket, |_| true, script).await;
}

async fn serve_behind(
    mut socket: TcpStream,
    mut pass: impl FnMut(&[u8]) -> bool,
    mut script: impl FnMut(&mut Connection, Event<'_>),
) {
    let mut engine = Connection::new(Role::Server, Config::default(), now());
    let mut buffer = vec![0; 64 * 1024];
    let mut unseen = Vec::new();
    let mut preface = PREFACE;
    loop {
        loop {
            engine.flush(now());
            let output = engine.output().to_vec();
            if output.is_empty() {
                break;
            }
            if socket.write_all(&output).await.is_err() {
                return;
            }
            engine.consume(output.len());
        }
        let n = match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(n) => n,
        };
        unseen.extend_from_slice(&buffer[..n]);
        let mut seen = Vec::new();
        if unseen.len() >= preface {
            seen.extend(unseen.drain(..std::mem::take(&mut preface)));
            for frame in whole_frames(&mut unseen) {
                if pass(&frame) {
                    seen.extend(frame);
                }
            }
        }
        let mut input = &seen[..];
        loop {
            match engine.receive(&mut input, now()) {
                Ok(Some(event)) => script(&mut engine, event),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// Takes all whole frames from the front of `bytes`.
pub(crate) fn whole_frames(bytes: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while let Some(&[a, b, c]) = bytes.first_chunk() {
        let len = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
        if bytes.len() < len {
            break;
        }
        frames.push(bytes.drain(..len).collect());
    }
    frames
}

/// Of the client's preface (RFC 9113 §3.4).
const PREFACE: usize = 24;
