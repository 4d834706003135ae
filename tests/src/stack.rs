//! The whole system on one machine, as `local-stack` shows it: certificates, DNS, two replicas of each service, and
//! the edge proxy, configured by a file that is written here.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use edge_proxy::{
    app::{App, Outcome, Running, ShutdownHandle},
    control_plane::config::Config,
};
use grpc_service::Drain;
use http::StatusCode;
use rustls::ClientConfig;

use crate::{
    backend::Backend,
    certs::{Authority, SERVER_NAME, SecretDir},
    client,
    dns::DnsServer,
    loopback,
    replicas::{Kind, Replica},
    scripted::{Exchange, Scripted},
    wait::PATIENCE,
};

/// Where everything listens. Port 0: the kernel chooses.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// The proxy's, for clients.
    pub listener: u16,
    /// The proxy's admin interface.
    pub admin: u16,
    /// The proxy's probes.
    pub probes: u16,
    /// The replicas of echo-grpc.
    pub echo: u16,
    /// The replicas of reverse-grpc.
    pub reverse: u16,
    /// The DNS server.
    pub dns: u16,
}

/// A port that is taken, in one sentence.
#[derive(Debug)]
pub struct Busy {
    address: SocketAddr,
    flag: &'static str,
    source: io::Error,
}

/// The running system. It ends, abruptly, with this value.
pub struct Stack {
    /// Where the certificate authority's own certificate is.
    pub ca: PathBuf,
    /// Where the proxy's configuration is.
    pub config: PathBuf,
    /// Where its access log is.
    pub access_log: PathBuf,
    /// Names and addresses.
    pub dns: DnsServer,
    /// Two of each service.
    pub replicas: Vec<(Kind, Replica)>,
    /// The proxy's address for clients.
    pub listener: SocketAddr,
    /// Its admin interface.
    pub admin: SocketAddr,
    /// Its probes.
    pub probes: SocketAddr,
    authority: Authority,
    shutdown: ShutdownHandle,
    running: Option<Running>,
    _test_service: Option<(Backend, Scripted)>,
}

impl Stack {
    /// Starts everything, with its files in `directory`, and waits until the proxy is ready. With `test_service`, the
    /// tests' own service is there as well, under `/e2e.Test/`, and one that never answers under `/e2e.Silent/`: not a
    /// tonic server, which would end RPCs at their deadline by itself.
    ///
    /// # Errors
    /// [`Busy`] before anything is started; or what went wrong.
    pub async fn start(ports: Ports, directory: &Path, test_service: bool) -> anyhow::Result<Self> {
        let local = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        for (port, flag) in [
            (ports.listener, "--port"),
            (ports.admin, "--admin-port"),
            (ports.probes, "--probes-port"),
            (ports.dns, "--dns-port"),
        ] {
            free(local(port), flag)?;
        }
        let echo = addresses([2, 3], ports.echo, "--echo-port")?;
        let reverse = addresses([4, 5], ports.reverse, "--reverse-port")?;

        let authority = Authority::new();
        let ca = directory.join("ca.pem");
        std::fs::write(&ca, authority.pem())
            .with_context(|| format!("cannot write {}", ca.display()))?;
        let secret = SecretDir::at(&directory.join("tls"))?;
        secret.swap(&authority.pair())?;

        let dns = DnsServer::start_at(local(ports.dns))
            .await
            .context("cannot start the DNS server")?;
        let mut replicas = Vec::new();
        for (kind, addresses) in [(Kind::Echo, &echo), (Kind::Reverse, &reverse)] {
            dns.set_addresses(&host(kind), addresses);
            for (number, address) in addresses.iter().enumerate() {
                let hostname = format!("{}-{}", kind.name(), number + 1);
                replicas.push((
                    kind,
                    Replica::start_at(kind, *address, &hostname, DRAIN).await?,
                ));
            }
        }
        let test_service = if test_service {
            let silent = Scripted::start(async |exchange: Exchange| exchange.hang().await);
            Some((Backend::start().await, silent.await))
        } else {
            None
        };

        let config = directory.join("edge-proxy.yaml");
        let access_log = directory.join("access.log");
        let text = Yaml {
            ports: &ports,
            dns: dns.address(),
            secret: &secret,
            access_log: &access_log,
            clusters: [
                (Kind::Echo, echo[0].port()),
                (Kind::Reverse, reverse[0].port()),
            ],
            test_service: test_service
                .as_ref()
                .map(|(test, silent)| [("test", test.address()), ("silent", silent.address())]),
        };
        std::fs::write(&config, text.to_string())
            .with_context(|| format!("cannot write {}", config.display()))?;
        let loaded = Config::load(&config)?;
        let source = config.clone();
        // It waits for the first look-up of names.
        let running =
            tokio::task::spawn_blocking(move || App::start(loaded.config, source)).await??;
        let stack = Self {
            ca,
            config,
            access_log,
            dns,
            replicas,
            listener: running.listener(),
            admin: running.admin(),
            probes: running.probes(),
            authority,
            shutdown: running.shutdown(),
            running: Some(running),
            _test_service: test_service,
        };
        stack.ready().await?;
        Ok(stack)
    }

    /// TLS settings of a client that trusts the proxy's certificate.
    pub fn tls_config(&self) -> Arc<ClientConfig> {
        self.authority.client(&["h2"])
    }

    /// Starts the proxy's graceful end.
    pub fn drain(&self) {
        self.shutdown.drain();
    }

    /// Ends the proxy at once.
    pub fn kill(&self) {
        self.shutdown.kill();
    }

    /// Waits for the proxy's end; its backends end after it.
    ///
    /// # Errors
    /// When its threads have failed.
    pub async fn ended(mut self) -> anyhow::Result<Option<Outcome>> {
        let Some(running) = self.running.take() else {
            return Ok(None);
        };
        Ok(Some(
            tokio::task::spawn_blocking(move || running.wait()).await?,
        ))
    }

    async fn ready(&self) -> anyhow::Result<()> {
        let asking = async {
            loop {
                if let Ok(answer) = client::get(self.probes, "/readyz").await
                    && answer.status() == StatusCode::OK
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let timed = tokio::time::timeout(PATIENCE, asking).await;
        timed.with_context(|| {
            format!(
                "the proxy isn't ready after {PATIENCE:?}; see http://{}/",
                self.admin
            )
        })
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, flag) = (self.address, self.flag);
        match self.source.kind() {
            io::ErrorKind::AddrInUse => write!(
                f,
                "port {} of {} is taken: end what listens there, or choose another with {flag}",
                address.port(),
                address.ip(),
            ),
            io::ErrorKind::AddrNotAvailable => write!(
                f,
                "{} is not an address of this machine: add it to the loopback interface (macOS: sudo ifconfig lo0 \
                 alias {})",
                address.ip(),
                address.ip(),
            ),
            _ => write!(
                f,
                "cannot listen on {address} ({}): choose another port with {flag}",
                self.source
            ),
        }
    }
}

impl std::error::Error for Busy {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}

/// The name that the cluster of `kind` is found by.
pub fn host(kind: Kind) -> String {
    format!("{}.default.svc.cluster.local.", kind.name())
}

/// Can somebody listen on `address`?
fn free(address: SocketAddr, flag: &'static str) -> Result<(), Busy> {
    let busy = |source| Busy {
        address,
        flag,
        source,
    };
    std::net::TcpListener::bind(address).map(drop).map_err(busy)
}

/// 127.0.0.`last` for each, all with `port`, or with one that the kernel chooses.
fn addresses<const N: usize>(
    last: [u8; N],
    port: u16,
    flag: &'static str,
) -> Result<Vec<SocketAddr>, Busy> {
    let ips: Vec<IpAddr> = last
        .iter()
        .map(|last| Ipv4Addr::new(127, 0, 0, *last).into())
        .collect();
    if port == 0 {
        let first = SocketAddr::new(ips[0], port);
        return loopback::with_one_port(&ips).map_err(|source| Busy {
            address: first,
            flag,
            source,
        });
    }
    ips.into_iter()
        .map(|ip| {
            let address = SocketAddr::new(ip, port);
            free(address, flag).map(|()| address)
        })
        .collect()
}

/// The proxy's configuration, as a person would write it.
struct Yaml<'a> {
    ports: &'a Ports,
    dns: SocketAddr,
    secret: &'a SecretDir,
    access_log: &'a Path,
    clusters: [(Kind, u16); 2],
    test_service: Option<[(&'static str, SocketAddr); 2]>,
}

impl fmt::Display for Yaml<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ports {
            listener,
            admin,
            probes,
            ..
        } = self.ports;
        writeln!(f, "dns: {{ nameservers: [\"{}\"] }}", self.dns)?;
        writeln!(f, "listener:")?;
        writeln!(f, "  address: 127.0.0.1:{listener}")?;
        writeln!(
            f,
            "  tls:                                      # for {SERVER_NAME}"
        )?;
        writeln!(f, "    certificate_chain: {}", quoted(&self.secret.chain()))?;
        writeln!(f, "    private_key: {}", quoted(&self.secret.key()))?;
        writeln!(
            f,
            "  health_check: {{ path: /healthz, header: {{ name: x-envoy-livenessprobe, value: healthz }} }}"
        )?;
        writeln!(f, "admin: {{ address: 127.0.0.1:{admin} }}")?;
        writeln!(f, "probes: {{ address: 127.0.0.1:{probes} }}")?;
        writeln!(
            f,
            "access_log: {{ format: json, path: {} }}",
            quoted(self.access_log)
        )?;
        writeln!(f, "drain: {{ time: 1s, deadline: 10s }}")?;
        writeln!(f, "routes:")?;
        for (kind, _) in self.clusters {
            writeln!(
                f,
                "  - {{ prefix: /{}/, cluster: {} }}",
                kind.service(),
                kind.name()
            )?;
        }
        if self.test_service.is_some() {
            writeln!(f, "  - {{ prefix: /e2e.Test/, cluster: test }}")?;
            writeln!(f, "  - {{ prefix: /e2e.Silent/, cluster: silent }}")?;
        }
        writeln!(f, "clusters:")?;
        for (kind, port) in self.clusters {
            writeln!(f, "  - name: {}", kind.name())?;
            writeln!(f, "    endpoints: [\"{}:{port}\"]", host(kind))?;
            writeln!(f, "    dns_lookup_family: v4_only")?;
            writeln!(f, "    connect_timeout: 500ms")?;
            writeln!(
                f,
                "    health_check: {{ service: {}, timeout: 1s, interval: 5s }}",
                kind.service()
            )?;
        }
        for (name, address) in self.test_service.iter().flatten() {
            writeln!(
                f,
                "  - {{ name: {name}, discovery: static, endpoints: [\"{address}\"] }}"
            )?;
        }
        Ok(())
    }
}

/// A path as a YAML string: in double quotes, as JSON has it.
fn quoted(path: &Path) -> String {
    serde_json::Value::from(path.display().to_string()).to_string()
}

/// Short: whoever presses Ctrl-C waits for it.
const DRAIN: Drain = Drain {
    accept: Duration::ZERO,
    finish: Duration::from_secs(1),
};
