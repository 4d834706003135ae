//! The program whose instructions are counted: RPCs through edge-proxy's data path, between engines in one thread.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use edge_proxy::{
    control_plane::config::{AccessLogConfig, AccessLogFormat, Config},
    data_plane::{exchange::Exchange, route::RouteTable},
    snapshot::{Cluster, Endpoint, EndpointShared, Health, Snapshot},
};
use http2::{Connection, Event, Headers, Role};

use crate::load::client::framed;

/// Makes so many RPCs, [`STREAMS`] at a time; `direct` without the proxy between.
///
/// # Errors
/// When one of them doesn't end with status 0 and the right reply.
pub(crate) fn run(rpcs: usize, direct: bool) -> anyhow::Result<()> {
    let proxy = if direct { None } else { Some(proxy()?) };
    let now = Instant::now();
    let links = if direct { BACKENDS } else { 1 };
    let mut clients: Vec<_> = (0..links).map(|_| Client::new(now)).collect();
    let mut backends: Vec<_> = (0..BACKENDS).map(|_| Backend::new(now)).collect();
    let mut wires = Wires::default();
    let mut begun = 0;
    // The first turns are SETTINGS.
    for _ in 0..4 {
        wires.carry(proxy.as_ref(), &mut clients, &mut backends, now)?;
    }
    while begun < rpcs {
        for stream in 0..STREAMS {
            clients[stream % links].ask(now)?;
            begun += 1;
        }
        for _ in 0..MOST_TURNS {
            wires.carry(proxy.as_ref(), &mut clients, &mut backends, now)?;
            if clients.iter().map(|client| client.ended).sum::<usize>() == begun {
                break;
            }
        }
        let ended: usize = clients.iter().map(|client| client.ended).sum();
        ensure!(ended == begun, "{ended} of {begun} RPCs ended well");
    }
    Ok(())
}

/// Bytes on their way.
#[derive(Default)]
struct Wires {
    from_proxy: Vec<u8>,
    to_backends: [Vec<u8>; BACKENDS],
}

impl Wires {
    /// A turn of everyone, from the client to the backends and back.
    fn carry(
        &mut self,
        proxy: Option<&Exchange>,
        clients: &mut [Client],
        backends: &mut [Backend],
        now: Instant,
    ) -> anyhow::Result<()> {
        let Some(proxy) = proxy else {
            for (client, backend) in clients.iter_mut().zip(backends) {
                client.flush(now);
                backend.turn(client.engine.output(), now)?;
                let written = client.engine.output().len();
                client.engine.consume(written);
                client.read(backend.engine.output())?;
                backend.written();
            }
            return Ok(());
        };
        let client = clients.first_mut().context("there is one client")?;
        client.flush(now);
        self.from_proxy.clear();
        proxy.client(client.engine.output(), &mut self.from_proxy)?;
        let written = client.engine.output().len();
        client.engine.consume(written);
        for (index, backend) in backends.iter_mut().enumerate() {
            let to = &mut self.to_backends[index];
            to.clear();
            proxy.backend(index, &[], to)?;
            backend.turn(to, now)?;
            to.clear();
            proxy.backend(index, backend.engine.output(), to)?;
            backend.written();
            // Window updates and answers to SETTINGS: read with what comes next.
            if !to.is_empty() {
                backend.turn(to, now)?;
            }
        }
        proxy.client(&[], &mut self.from_proxy)?;
        client.read(&self.from_proxy)
    }
}

/// One that asks.
struct Client {
    engine: Connection,
    message: bytes::Bytes,
    /// RPCs with status 0 and the right reply.
    ended: usize,
    got: HashMap<u32, usize>,
}

impl Client {
    fn new(now: Instant) -> Self {
        Self {
            engine: Connection::new(Role::Client, http2::Config::default(), now),
            message: framed(3),
            ended: 0,
            got: HashMap::new(),
        }
    }

    fn ask(&mut self, now: Instant) -> anyhow::Result<()> {
        let mut head = http2::stock::arena();
        for (name, value) in REQUEST {
            head.push(name.as_bytes(), value.as_bytes());
        }
        let opened = self.engine.open(head, false, 0);
        let stream = opened.map_err(|(error, _)| anyhow::anyhow!("no stream: {error:?}"))?;
        self.engine.send_data(stream, &self.message, true, now);
        Ok(())
    }

    fn flush(&mut self, now: Instant) {
        self.engine.flush(now);
    }

    fn read(&mut self, mut input: &[u8]) -> anyhow::Result<()> {
        self.engine.allow(usize::MAX);
        while let Some(event) = self.engine.receive(&mut input, Instant::now())? {
            match event {
                Event::Headers { headers, .. } => http2::stock::recycle(headers),
                Event::Data { stream, bytes, .. } => {
                    *self.got.entry(stream).or_default() += bytes.len();
                    self.engine.credit(stream, bytes.len());
                }
                Event::Trailers {
                    stream, headers, ..
                } => {
                    let got = self.got.remove(&stream);
                    if headers.get(b"grpc-status") == Some(b"0") && got == Some(self.message.len())
                    {
                        self.ended += 1;
                    }
                    http2::stock::recycle(headers);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// One that answers with what it was given.
struct Backend {
    engine: Connection,
    head: Headers,
    trailers: Headers,
}

impl Backend {
    fn new(now: Instant) -> Self {
        let fields = |fields: &[(&str, &str)]| {
            let mut headers = Headers::new();
            for (name, value) in fields {
                headers.push(name.as_bytes(), value.as_bytes());
            }
            headers
        };
        Self {
            engine: Connection::new(Role::Server, http2::Config::default(), now),
            head: fields(RESPONSE),
            trailers: fields(&[("grpc-status", "0")]),
        }
    }

    fn turn(&mut self, mut input: &[u8], now: Instant) -> anyhow::Result<()> {
        self.engine.allow(usize::MAX);
        while let Some(event) = self.engine.receive(&mut input, now)? {
            match event {
                Event::Headers { headers, .. } => http2::stock::recycle(headers),
                Event::Data {
                    stream,
                    bytes,
                    end_stream,
                    ..
                } => {
                    self.engine.credit(stream, bytes.len());
                    if end_stream {
                        self.engine.send_headers(stream, &self.head, false);
                        self.engine.send_data(stream, bytes, false, now);
                        self.engine.send_trailers(stream, &self.trailers);
                    }
                }
                _ => {}
            }
        }
        self.engine.flush(now);
        Ok(())
    }

    fn written(&mut self) {
        let written = self.engine.output().len();
        self.engine.consume(written);
    }
}

/// The proxy, by a configuration as an operator would write it; its access log goes nowhere, but is written.
fn proxy() -> anyhow::Result<Exchange> {
    let config = Config::parse(CONFIGURATION, Path::new("exchange.yaml"))?.config;
    let clusters = config.clusters.iter().map(|cluster| {
        let endpoints: Vec<_> = cluster
            .targets
            .iter()
            .map(|target| {
                let address = SocketAddr::new(target.host.parse()?, target.port);
                anyhow::Ok(Arc::new(Endpoint {
                    shared: EndpointShared::new(address),
                    health: Health::Healthy,
                    close_connections: false,
                }))
            })
            .collect::<Result<_, _>>()?;
        anyhow::Ok(Arc::new(Cluster {
            name: cluster.name.clone(),
            policy: cluster.policy.clone(),
            eligible: endpoints.clone(),
            endpoints,
            turn: Arc::default(),
            circuits: Arc::default(),
        }))
    });
    let snapshot = Snapshot {
        generation: 1,
        listener: config.listener.clone(),
        routes: Arc::new(RouteTable::new(config.routes.clone())),
        clusters: clusters.collect::<Result<_, _>>()?,
        tls: None,
        serving: true,
    };
    let log = AccessLogConfig {
        format: AccessLogFormat::Json,
        path: Some("/dev/null".into()),
    };
    let peer = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 50_000);
    let exchange = Exchange::new(Arc::new(snapshot), &log, peer)?;
    ensure!(
        exchange.backends() == BACKENDS,
        "the configuration has {BACKENDS} endpoints"
    );
    Ok(exchange)
}

/// At a time, on one connection.
const STREAMS: usize = 10;
const BACKENDS: usize = 2;
/// More than any RPC takes.
const MOST_TURNS: usize = 8;

const REQUEST: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "https"),
    (":path", "/api.Echo/Echo"),
    (":authority", "grpc.example.com"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("user-agent", "grpc-rust/1.0"),
    ("grpc-timeout", "20S"),
];
const RESPONSE: &[(&str, &str)] = &[
    (":status", "200"),
    ("content-type", "application/grpc"),
    ("hostname", "echo-grpc-1"),
    ("date", "Mon, 23 Nov 2026 01:02:13 GMT"),
];
const CONFIGURATION: &str = "
workers: 1
listener:
  address: 127.0.0.1:8443
  tls: { certificate_chain: /tls.crt, private_key: /tls.key }
  health_check: { path: /healthz, header: { name: x-envoy-livenessprobe, value: healthz } }
routes:
  - { prefix: /api.Reverse/, cluster: echo-grpc }
  - { prefix: /api.Echo/, cluster: echo-grpc }
clusters:
  - { name: echo-grpc, discovery: static, endpoints: ['127.0.0.1:8081', '127.0.0.2:8081'] }
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_ends_well_with_the_proxy_and_without() {
        run(200, false).unwrap();
        run(200, true).unwrap();
    }
}
