//! The proxy under test, in this process: its configuration, its start, its end.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

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
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::Channel;

use crate::{
    backend::Backend,
    certs::{Authority, SecretDir},
    client::{self, Http2},
    dns::DnsServer,
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

/// What is to be started.
pub struct Builder {
    config: Value,
    authority: Authority,
    certificate: bool,
    memory: Option<PathBuf>,
}

/// Its files: they stay as long as this value.
pub struct Files {
    directory: TempDir,
    /// The certificate's directory.
    pub secret: SecretDir,
    /// Who signed it.
    pub authority: Authority,
    /// The configuration as it was written last.
    config: Value,
    /// Where a cgroup's files are that the overload manager reads; never those of the tests' own, which other
    /// processes fill.
    memory: Option<PathBuf>,
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

impl Builder {
    /// A proxy on ports of the kernel's choice, with a good certificate, without routes.
    pub fn new() -> Self {
        let address = |port| format!("{}:{port}", loopback::address());
        let config = json!({
            "workers": 2,
            "listener": { "address": address(0) },
            "admin": { "address": address(0) },
            "probes": { "address": address(0) },
            "drain": { "time": "200ms", "deadline": "20s" },
            "routes": [],
            "clusters": [],
        });
        Self {
            config,
            authority: Authority::new(),
            certificate: true,
            memory: None,
        }
    }

    /// Sets any key, named by its path: `listener.timeouts.preface`. Members of a list go by their number.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        set(&mut self.config, path, value.into());
        self
    }

    /// Another cluster, its addresses given.
    #[must_use]
    pub fn cluster(self, name: &str, endpoints: impl IntoIterator<Item = SocketAddr>) -> Self {
        let endpoints: Vec<String> = endpoints
            .into_iter()
            .map(|address| address.to_string())
            .collect();
        self.cluster_of(json!({ "name": name, "discovery": "static", "endpoints": endpoints }))
    }

    /// Another cluster, found by DNS: all addresses of `host`, at `port`.
    #[must_use]
    pub fn dns_cluster(self, name: &str, dns: &DnsServer, host: &str, port: u16) -> Self {
        self.set("dns.nameservers", json!([dns.address().to_string()]))
            .cluster_of(json!({
                "name": name,
                "discovery": "strict_dns",
                "endpoints": [format!("{host}.:{port}")],
                "dns_refresh_rate": "50ms",
            }))
    }

    /// Another cluster, with its keys as in the file.
    #[must_use]
    pub fn cluster_of(mut self, cluster: Value) -> Self {
        let cluster = with_defaults(cluster, &[("connect_timeout", json!("5s"))]);
        list(&mut self.config, "clusters").push(cluster);
        self
    }

    /// Another key of the cluster that was added last.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let last = list(&mut self.config, "clusters")
            .last_mut()
            .expect("a cluster was added before");
        set(last, key, value.into());
        self
    }

    /// Quick health checks for the cluster that was added last.
    #[must_use]
    pub fn checked(self) -> Self {
        self.with(
            "health_check",
            json!({
                "service": "", "timeout": "1s", "interval": "100ms", "unhealthy_edge_interval": "100ms",
                "unhealthy_threshold": 2, "healthy_threshold": 2,
            }),
        )
    }

    /// Another route, to a cluster.
    #[must_use]
    pub fn route(self, prefix: &str, cluster: &str) -> Self {
        self.route_of(json!({ "prefix": prefix, "cluster": cluster }))
    }

    /// Another route, with its keys as in the file.
    #[must_use]
    pub fn route_of(mut self, route: Value) -> Self {
        list(&mut self.config, "routes").push(route);
        self
    }

    /// Writes its files, but starts nothing.
    ///
    /// # Panics
    /// When the files can't be written.
    pub fn write(self) -> Files {
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        let secret = SecretDir::empty().expect("a directory for temporary files");
        if self.certificate {
            secret
                .swap(&self.authority.pair())
                .expect("it was just made");
        }
        let mut config = self.config;
        if config["routes"].as_array().is_some_and(Vec::is_empty) {
            config["routes"] = no_route();
        }
        if config.pointer("/listener/tls").is_none() {
            let files = json!({ "certificate_chain": secret.chain(), "private_key": secret.key() });
            set(&mut config, "listener.tls", files);
        }
        if config.pointer("/access_log").is_none() {
            let path = directory.path().join("access.log");
            set(
                &mut config,
                "access_log",
                json!({ "format": "json", "path": path }),
            );
        }
        let mut files = Files {
            directory,
            secret,
            authority: self.authority,
            config,
            memory: self.memory,
        };
        files.change(|_| {});
        files
    }

    /// The overload manager reads a cgroup's files in `directory`.
    #[must_use]
    pub fn memory_in(mut self, directory: &Path) -> Self {
        self.memory = Some(directory.to_owned());
        self
    }

    /// No certificate: the Secret isn't there yet.
    #[must_use]
    pub fn without_certificate(mut self) -> Self {
        self.certificate = false;
        self
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Panics
    /// When it can't start.
    pub async fn start(self) -> Proxy {
        let proxy = self.start_unready().await;
        proxy.ready().await;
        proxy
    }

    /// Starts it and doesn't wait.
    ///
    /// # Panics
    /// When it can't start.
    pub async fn start_unready(self) -> Proxy {
        Proxy::start(self.write())
            .await
            .unwrap_or_else(|error| panic!("{error:#}"))
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Files {
    /// Where the configuration is.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join("edge-proxy.yaml")
    }

    /// Where the access log is, unless the test has set its own.
    pub fn access_log(&self) -> PathBuf {
        self.directory.path().join("access.log")
    }

    /// Changes the configuration's file: a new one takes its place in one step.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn change(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.config);
        // JSON is YAML.
        let text = serde_json::to_string_pretty(&self.config).expect("it has no keys but strings");
        self.replace(&text);
    }

    /// Replaces the configuration's file by any text.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn replace(&self, text: &str) {
        let mut file =
            tempfile::NamedTempFile::new_in(self.directory.path()).expect("a temporary file");
        file.write_all(text.as_bytes())
            .expect("space for some bytes");
        file.persist(self.config()).expect("the directory is ours");
    }
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

    /// A metric's value, summed over the labels that aren't given; 0 if it isn't there.
    ///
    /// # Panics
    /// When there is no page of metrics.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let page = self
            .probe("/metrics")
            .await
            .expect("the probes' listener answers");
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

/// Routes that lead nowhere that a test would go; a configuration without any is refused.
pub fn no_route() -> Value {
    json!([{ "prefix": "/no.Route/", "direct_response": { "status": 404 } }])
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

/// Sets the key at `path` (`a.b.0.c`), making what is missing on the way.
pub fn set(value: &mut Value, path: &str, new: Value) {
    let mut place = value;
    for key in path.split('.') {
        place = match (key.parse::<usize>(), place) {
            (Ok(index), Value::Array(list)) => &mut list[index],
            (_, place) => {
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                &mut place[key]
            }
        };
    }
    *place = new;
}

fn list<'a>(config: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    config[key].as_array_mut().expect("the builder made a list")
}

fn with_defaults(mut value: Value, defaults: &[(&str, Value)]) -> Value {
    for (key, default) in defaults {
        if value.get(*key).is_none() {
            value[*key] = default.clone();
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_set_by_their_path() {
        let mut value = json!({ "a": { "b": 1 }, "list": [{}] });
        set(&mut value, "a.c.d", json!(2));
        set(&mut value, "list.0.x", json!(3));
        assert_eq!(
            value,
            json!({ "a": { "b": 1, "c": { "d": 2 } }, "list": [{ "x": 3 }] })
        );
    }
}
