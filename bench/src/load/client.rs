//! A client by hand: one RPC to see whether a peer is ready, and connections that stay.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use e2e::certs::SERVER_NAME;
use h2::client::SendRequest;
use http::Request;
use rustls::{
    ClientConfig, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    net::TcpStream,
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsConnector;

/// A connection on which nothing happens. It ends with this value.
pub(crate) struct Idle {
    send: SendRequest<Bytes>,
    driver: JoinHandle<()>,
}

impl Idle {
    async fn open(address: SocketAddr, tls: Arc<ClientConfig>) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(SERVER_NAME)?;
        let stream = TlsConnector::from(tls).connect(name, stream).await?;
        let (send, mut connection) = h2::client::handshake(stream).await?;
        let mut ping = connection.ping_pong().context("it was never asked for")?;
        let driver = tokio::spawn(async move {
            // However it ends is seen by who uses it.
            let _ = connection.await;
        });
        let idle = Self { send, driver };
        // Its answer comes after the peer's SETTINGS: the connection is complete.
        ping.ping(h2::Ping::opaque()).await?;
        Ok(idle)
    }

    /// One RPC of `api.Echo/Echo`, with a content of so many bytes.
    async fn echo(&mut self, bytes: usize) -> anyhow::Result<()> {
        let message = framed(bytes);
        let request = Request::post(format!("https://{SERVER_NAME}/api.Echo/Echo"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut send = self.send.clone().ready().await?;
        let (response, mut body) = send.send_request(request, false)?;
        body.send_data(message.clone(), true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut got = 0;
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            got += chunk.len();
            let _ = body.flow_control().release_capacity(chunk.len());
        }
        let trailers = body.trailers().await?.unwrap_or_default();
        let status = trailers
            .get("grpc-status")
            .or(head.headers.get("grpc-status"));
        let status = status.and_then(|status| status.to_str().ok());
        ensure!(
            status == Some("0") && got == message.len(),
            "HTTP {}, grpc-status {status:?}, {got} bytes",
            head.status
        );
        Ok(())
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// One RPC on a connection of its own, which has to end with status 0 and the right reply.
///
/// # Errors
/// When it doesn't.
pub(crate) async fn ask(address: SocketAddr, tls: &Arc<ClientConfig>) -> anyhow::Result<()> {
    let asking = async { Idle::open(address, tls.clone()).await?.echo(3).await };
    tokio::time::timeout(std::time::Duration::from_secs(2), asking).await?
}

/// Opens so many connections, some at a time, with one RPC on each if `echo` says of how many bytes.
///
/// # Errors
/// When one of them fails.
pub(crate) async fn hold(
    address: SocketAddr,
    tls: &Arc<ClientConfig>,
    count: usize,
    echo: Option<usize>,
) -> anyhow::Result<Vec<Idle>> {
    let mut held = Vec::with_capacity(count);
    let mut opening = JoinSet::new();
    let mut begun = 0;
    while held.len() < count {
        while begun < count && opening.len() < AT_ONCE {
            let tls = tls.clone();
            opening.spawn(async move {
                let mut idle = Idle::open(address, tls).await?;
                if let Some(bytes) = echo {
                    idle.echo(bytes).await?;
                }
                anyhow::Ok(idle)
            });
            begun += 1;
        }
        let opened = opening.join_next().await.context("none is being opened")?;
        let number = held.len();
        held.push(opened?.with_context(|| format!("connection {number} of {count}"))?);
    }
    Ok(held)
}

/// Settings of a client that trusts this certificate and speaks HTTP/2.
///
/// # Errors
/// When it is none.
pub(crate) fn trusting(certificate: CertificateDer<'static>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate)?;
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    // The same key exchange with every peer.
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(TLS_1_3)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// A message of `api.Echo` whose content has so many bytes, with gRPC's head.
pub(crate) fn framed(content: usize) -> Bytes {
    let message = message(content);
    let mut framed = vec![0];
    // A few MiB at most.
    framed.extend_from_slice(&(message.len() as u32).to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// Field 1, a string: its tag, its length as a varint, and the letters.
fn message(content: usize) -> Vec<u8> {
    let mut message = vec![0x0a];
    let mut length = content;
    while length > 0x7f {
        message.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    message.push(length as u8);
    message.resize(message.len() + content, b'e');
    message
}

const TLS_1_3: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// Below every peer's limit of handshakes that wait.
const AT_ONCE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_as_protobuf_and_grpc_have_them() {
        assert_eq!(framed(3), &b"\0\0\0\0\x05\x0a\x03eee"[..]);
        let long = framed(300);
        assert_eq!(long.len(), 5 + 1 + 2 + 300);
        assert_eq!(&long[5..8], &[0x0a, 0xac, 0x02]);
    }
}
