//! TLS handshakes, one after the other: TCP connection, TLS 1.3 with X25519, the peer's SETTINGS, the end.
//!
//! Blocking, with rustls and a socket: what happens is what is written here. A resumed handshake offers the ticket that
//! the one before it was given, and has to be taken: the peer saves the signature.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use e2e::certs::SERVER_NAME;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, Stream, client::Resumption,
    pki_types::ServerName,
};

/// What kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// With the certificate and a signature.
    Full,
    /// With a ticket.
    Resumed,
}

/// Makes so many connections.
///
/// # Errors
/// When one fails, or isn't of the kind that was asked for.
pub(crate) fn run(
    address: SocketAddr,
    tls: &ClientConfig,
    kind: Handshake,
    count: usize,
) -> anyhow::Result<()> {
    let mut config = tls.clone();
    config.resumption = match kind {
        Handshake::Full => Resumption::disabled(),
        Handshake::Resumed => Resumption::in_memory_sessions(8),
    };
    let config = Arc::new(config);
    if kind == Handshake::Resumed {
        one(address, &config)?;
    }
    for number in 0..count {
        let got = one(address, &config).with_context(|| format!("handshake {number}"))?;
        let right = match kind {
            Handshake::Full => got == HandshakeKind::Full,
            Handshake::Resumed => got == HandshakeKind::Resumed,
        };
        ensure!(right, "handshake {number} was {got:?}, not {kind:?}");
    }
    Ok(())
}

fn one(address: SocketAddr, config: &Arc<ClientConfig>) -> anyhow::Result<HandshakeKind> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut tls = ClientConnection::new(config.clone(), ServerName::try_from(SERVER_NAME)?)?;
    let mut stream = Stream::new(&mut tls, &mut socket);
    stream.write_all(PREFACE)?;
    // The peer's SETTINGS; tickets came before them, in what was read on the way.
    let mut first = [0; 9];
    stream.read_exact(&mut first)?;
    let kind = tls.handshake_kind().context("no handshake")?;
    tls.send_close_notify();
    while tls.wants_write() {
        tls.write_tls(&mut socket)?;
    }
    Ok(kind)
}

/// RFC 9113, 3.4, with empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PATIENCE: Duration = Duration::from_secs(5);
