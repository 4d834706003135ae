//! What a proxy reads: its configuration, put together key by key, its certificate, and where its log goes.
//!
//! A test says only what it is about; the rest is a good certificate, addresses of the kernel's choice and short times.
//! Keys are named by their path in the file, so that a test reads like the file that an operator would write.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::Proxy;
use crate::{
    certs::{Authority, SecretDir},
    dns::DnsServer,
    loopback,
};

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
    pub(super) memory: Option<PathBuf>,
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

    /// Another cluster, which is the last one but for its name.
    #[must_use]
    pub fn like_the_last(mut self, name: &str) -> Self {
        let clusters = list(&mut self.config, "clusters");
        let mut cluster = clusters.last().expect("a cluster was added before").clone();
        set(&mut cluster, "name", name.into());
        clusters.push(cluster);
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

/// Routes that lead nowhere that a test would go; a configuration without any is refused.
pub fn no_route() -> Value {
    json!([{ "prefix": "/no.Route/", "direct_response": { "status": 404 } }])
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
