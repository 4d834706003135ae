//! The proxy under test, in this process: its start, what it is asked, its end.

mod files;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use edge_proxy::{
    app::{App, Outcome, Running, ShutdownHandle},
    cgroup::MemoryGroup,
    control_plane::config::Config,
    telemetry::log::LogLevel,
};
use http::{Request, Response, StatusCode};
use rustls::ClientConfig;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::Channel;

pub use self::files::{Builder, Files, no_route, set};
use crate::{
    backend::Backend,
    client::{self, Http2, Reply},
    frames::{RawBackend, Wire},
    loopback,
    pb::test_client::TestClient,
    replicas::Replica,
    scripted::Scripted,
    wait::{eventually, within},
};

/// What has an address that a cluster can name.
pub trait Address {
    /// Where it listens.
    fn address(&self) -> SocketAddr;
}

/// Files for a proxy that is a process of its own: its addresses are known before it runs.
pub struct Known {
    /// What it reads.
    pub files: Files,
    /// Where it will listen for clients.
    pub listener: SocketAddr,
    /// Where its admin interface will be.
    pub admin: SocketAddr,
    /// Where its probes will be.
    pub probes: SocketAddr,
}

/// A running proxy. It ends, abruptly, with this value.
pub struct Proxy {
    /// What it reads.
    pub files: Files,
    listener: SocketAddr,
    admin: SocketAddr,
    probes: SocketAddr,
    shutdown: ShutdownHandle,
    running: Option<Running>,
}

impl Known {
    /// Writes them. The access log is what it is by default: JSON, on standard output.
    ///
    /// # Panics
    /// When the files can't be written, or the kernel has no free port left.
    pub fn write(builder: Builder) -> Self {
        let [listener, admin, probes] =
            std::array::from_fn(|_| loopback::group(1).expect("the kernel has a free port")[0]);
        let mut files = builder.write();
        files.change(|config| {
            for (key, address) in [
                ("listener.address", listener),
                ("admin.address", admin),
                ("probes.address", probes),
            ] {
                set(config, key, address.to_string().into());
            }
            set(config, "access_log", json!({}));
        });
        Self {
            files,
            listener,
            admin,
            probes,
        }
    }

    /// Waits until a probe says `status`.
    pub async fn probed(&self, path: &str, status: u16) {
        eventually(&format!("{path} to say {status}"), || async {
            let answer = client::get(self.probes, path).await.ok()?;
            (answer.status() == status).then_some(())
        })
        .await;
    }

    /// A client of the tests' service, on a connection of its own.
    ///
    /// # Panics
    /// When it can't be made.
    pub async fn test_client(&self) -> TestClient<Channel> {
        let config = self.files.authority.client(&["h2"]);
        let channel = client::channel(self.listener, config).await;
        TestClient::new(channel.expect("the proxy accepts"))
    }
}

impl Proxy {
    /// A proxy to be.
    pub fn builder() -> Builder {
        Builder::new()
    }

    /// The usual one: the tests' service at these addresses, as cluster `test`.
    pub fn to<'a, A: Address + 'a>(backends: impl IntoIterator<Item = &'a A>) -> Builder {
        let addresses: Vec<SocketAddr> = backends.into_iter().map(Address::address).collect();
        Self::builder()
            .route(TEST, "test")
            .cluster("test", addresses)
    }

    /// Starts the proxy that `files` describe.
    ///
    /// # Errors
    /// What is wrong with the configuration, or why it can't start.
    pub async fn start(files: Files) -> anyhow::Result<Self> {
        let path = files.config();
        let loaded = Config::load(&path).context("the configuration is wrong")?;
        // It may wait for the first look-up of names.
        let memory = files.memory.clone().map(MemoryGroup::at);
        let start = tokio::task::spawn_blocking(move || {
            App::start_within(loaded.config, path, LogLevel::detached(), memory)
        });
        let running = start.await?.context("the proxy can't start")?;
        Ok(Self {
            files,
            listener: running.listener(),
            admin: running.admin(),
            probes: running.probes(),
            shutdown: running.shutdown(),
            running: Some(running),
        })
    }

    /// Waits until `/readyz` says 200.
    pub async fn ready(&self) {
        eventually("the proxy to be ready", || async {
            let answer = self.probe("/readyz").await?;
            (answer.status() == StatusCode::OK).then_some(())
        })
        .await;
    }

    /// Where it listens for clients.
    pub fn address(&self) -> SocketAddr {
        self.listener
    }

    /// Where its admin interface is.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Where its probes are.
    pub fn probes_address(&self) -> SocketAddr {
        self.probes
    }

    /// TLS settings of a client that trusts it.
    pub fn tls_config(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        self.files.authority.client(protocols)
    }

    /// A TLS connection that offers `protocols`.
    ///
    /// # Errors
    /// What the socket or the handshake says.
    pub async fn tls(&self, protocols: &[&str]) -> std::io::Result<TlsStream<TcpStream>> {
        client::tls(self.listener, self.tls_config(protocols)).await
    }

    /// A tonic channel of one connection.
    ///
    /// # Panics
    /// When it can't be made.
    pub async fn channel(&self) -> Channel {
        client::channel(self.listener, self.tls_config(&["h2"]))
            .await
            .expect("the proxy accepts")
    }

    /// A client of the tests' service, on a connection of its own, for messages of any size.
    ///
    /// # Panics
    /// When it can't be made.
    pub async fn test_client(&self) -> TestClient<Channel> {
        TestClient::new(self.channel().await)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX)
    }

    /// HTTP/2 by hand.
    ///
    /// # Panics
    /// When it can't be made.
    pub async fn http2(&self) -> Http2 {
        self.http2_with(&h2::client::Builder::new()).await
    }

    /// HTTP/2 by hand, with the client's own settings.
    ///
    /// # Panics
    /// When it can't be made.
    pub async fn http2_with(&self, settings: &h2::client::Builder) -> Http2 {
        let connect = Http2::connect_with(self.listener, self.tls_config(&["h2"]), settings);
        connect.await.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// One gRPC request, with an empty message, on a connection of its own.
    ///
    /// # Panics
    /// When there is no whole answer.
    pub async fn grpc(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        let answer = self.http2().await.grpc(path, headers).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// HTTP/2 frame by frame.
    ///
    /// # Panics
    /// When it can't be made.
    pub async fn wire(&self, settings: &[(u16, u32)]) -> Wire<TlsStream<TcpStream>> {
        let stream = self.tls(&["h2"]).await.expect("the proxy accepts");
        Wire::client(stream, settings)
            .await
            .expect("the proxy reads")
    }

    /// HTTP/1.1 by hand; see [`client::http1`].
    ///
    /// # Panics
    /// When there is no whole answer.
    pub async fn http1(&self, head: &str, body: &[u8]) -> (String, Vec<u8>) {
        let answer = client::http1(self.listener, self.tls_config(&["http/1.1"]), head, body).await;
        answer.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// A page of the admin interface.
    ///
    /// # Panics
    /// When there is no whole answer.
    pub async fn admin(&self, path: &str) -> Response<String> {
        let answer = within("an admin page", client::get(self.admin, path)).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error:#}"))
    }

    /// A page of the admin interface, as JSON.
    ///
    /// # Panics
    /// When there is none.
    pub async fn admin_json(&self, path: &str) -> Value {
        let answer = self.admin(&format!("{path}?format=json")).await;
        serde_json::from_str(answer.body())
            .unwrap_or_else(|error| panic!("{path} is no JSON: {error}\n{}", answer.body()))
    }

    /// A POST to the admin interface.
    ///
    /// # Panics
    /// When there is no whole answer.
    pub async fn admin_post(&self, path: &str) -> Response<String> {
        let answer = within("an admin action", client::post(self.admin, path)).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error:#}"))
    }

    /// Any request to the admin interface.
    ///
    /// # Panics
    /// When there is no whole answer.
    pub async fn admin_request(&self, request: Request<Bytes>) -> Response<String> {
        let answer = within("an admin action", client::plain(self.admin, request)).await;
        answer.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// A probe; `None`: nobody answers.
    pub async fn probe(&self, path: &str) -> Option<Response<String>> {
        within("a probe", client::get(self.probes, path)).await.ok()
    }

    /// A metric's value, summed over the labels that aren't given; 0 if it has no sample.
    ///
    /// # Panics
    /// When there is no page of metrics, or no such metric.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = self
            .probe("/metrics")
            .await
            .expect("the probes' listener answers");
        let is_known = client::has_family(page.body(), name);
        assert!(is_known, "{name} is no metric of the proxy's");
        client::metric(page.body(), name, labels).unwrap_or(0.0)
    }

    /// The access log's records, once there are at least `count`.
    pub async fn access_log(&self, count: usize) -> Vec<Value> {
        let path = self.files.access_log();
        eventually("the access log's records", || async {
            let records = read_records(&path);
            (records.len() >= count).then_some(records)
        })
        .await
    }

    /// Starts its graceful end.
    pub fn drain(&self) {
        self.shutdown.drain();
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.shutdown.kill();
    }

    /// Waits for its end, and gives what is left: its files.
    ///
    /// # Panics
    /// When it was waited for before.
    pub async fn ended(mut self) -> Outcome {
        let running = self.running.take().expect("only this function takes it");
        let end = tokio::task::spawn_blocking(move || running.wait());
        within("the proxy's end", end)
            .await
            .expect("waiting doesn't panic")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
        if let Some(running) = self.running.take() {
            // Its threads end in a moment; a test that has failed must not hang on one that doesn't.
            let end = std::thread::spawn(move || running.wait());
            let start = std::time::Instant::now();
            while !end.is_finished() && start.elapsed() < Duration::from_secs(5) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

macro_rules! addresses {
    ($($kind:ty),*) => {
        $(impl Address for $kind {
            fn address(&self) -> SocketAddr {
                <$kind>::address(self)
            }
        })*
    };
}

addresses!(Backend, Scripted, RawBackend, Replica);

impl Address for SocketAddr {
    fn address(&self) -> SocketAddr {
        *self
    }
}

/// The prefix of the tests' service.
pub const TEST: &str = "/e2e.Test/";

/// The whole lines of the log so far.
pub fn read_records(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?} is no JSON")))
        .collect()
}
