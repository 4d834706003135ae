//! The proxy is replaced, or told to end.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{interval, sleep},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use super::{Load, Running, addresses, none_failed, text};
use crate::{
    attack::{Finding, Options, seconds, until},
    backend::Backend,
    certs::{Authority, Broken, SecretDir},
    client::{self, request},
    frames::{self, Frame},
    h2attack::Attacker,
    load, payload,
    pb::Message,
    proxy::{Address as _, Proxy},
    relay::Relay,
    scripted::framed,
};

/// As a Deployment does it: a new one is started and chosen, an old one is chosen no longer, and told to end; the next is
/// begun while it drains.
pub(super) async fn restarts(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let rounds = scale.of(10, 2);
    let (drain, length) = scale.of(
        (Duration::from_secs(10), Duration::from_secs(20)),
        (Duration::from_millis(500), Duration::from_millis(500)),
    );
    let backends = [Backend::start().await, Backend::start().await];
    // All of them have one certificate, as the pods of a Deployment have.
    let (authority, secret) = (Authority::new(), SecretDir::empty()?);
    secret.swap(&authority.pair())?;
    let files = json!({ "certificate_chain": secret.chain(), "private_key": secret.key() });
    let start = async || {
        let builder = Proxy::to(&backends)
            .route("/api.Echo/", "test")
            .set("listener.tls", files.clone())
            .set("drain.time", text(drain));
        Running::start(&options, builder).await
    };
    let mut proxies = vec![start().await, start().await];
    let chooser = Relay::among(addresses(&proxies)).await;
    let load = Load::start(load::Options {
        target: chooser.address().to_string(),
        tls: authority.client(&["h2"]),
        streams: scale.of(50, 10),
        stream_length: length,
        ..proxies[0].load(scale.of(500, 100), scale.of(20, 6))
    });

    // `drain.deadline` is 20 s.
    let longest = drain + Duration::from_secs(20 + 1);
    let mut draining = JoinSet::new();
    for turn in 0..2 * rounds {
        let new = start().await;
        let mut old = std::mem::replace(&mut proxies[turn % 2], new);
        chooser.choose(addresses(&proxies));
        old.process.signal("TERM").await;
        let ending = async move {
            let (code, took) = old.ends_within(longest).await;
            (code, took, old.process.stderr())
        };
        match scale.of(Some(PACE), None) {
            Some(pace) => {
                draining.spawn(ending);
                sleep(pace).await;
            }
            None => {
                let ended = ending.await;
                draining.spawn(std::future::ready(ended));
            }
        }
    }
    let mut badly = Vec::new();
    let mut slowest = Some(Duration::ZERO);
    for (code, took, stderr) in draining.join_all().await {
        slowest = slowest.zip(took).map(|(one, other)| one.max(other));
        if code != Some(0) || stderr.contains("panicked") {
            badly.push(format!("exit code {code:?}: {stderr}"));
        }
    }
    let tally = load.end().await?;
    let mut findings = vec![
        none_failed(&tally),
        Finding::count("connections that were refused", chooser.refused(), 0),
        Finding::count("proxies that ended badly", badly.len(), 0),
        Finding::within("the slowest proxy's end after SIGTERM", slowest, longest),
    ];
    findings.extend(badly.into_iter().map(|why| Finding::new("0", why, false)));
    findings.extend(proxies.iter_mut().map(Running::sound));
    Ok(findings)
}

/// Half of the uploads end while the proxy still accepts, half after that.
pub(super) async fn uploads(options: Options) -> anyhow::Result<Vec<Finding>> {
    let drain = options
        .scale
        .of(Duration::from_secs(10), Duration::from_millis(500));
    let backend = Backend::start().await;
    let builder = Proxy::to([&backend]).set("drain.time", text(drain));
    let mut proxy = Running::start(&options, builder).await;

    let (mut uploads, mut senders, mut clients) = (JoinSet::new(), Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let client = proxy.known.test_client().await;
        for _ in 0..UPLOADS / CONNECTIONS {
            let (sender, receiver) = mpsc::channel::<Message>(PARTS);
            for _ in 0..PARTS / 2 {
                sender.send(part()).await?;
            }
            let mut client = client.clone();
            uploads.spawn(async move { client.upload(ReceiverStream::new(receiver)).await });
            senders.push(sender);
        }
        clients.push(client);
    }
    let half = |all: &crate::journal::Entries| {
        (all.messages >= UPLOADS * PARTS / 2).then_some(all.messages)
    };
    backend.journal.wait("half of every upload", half).await;

    proxy.process.signal("TERM").await;
    let finish = async |sender: mpsc::Sender<Message>| {
        for _ in PARTS / 2..PARTS {
            // An upload that has ended meanwhile has failed, which its own result says.
            let _ = sender.send(part()).await;
        }
    };
    for sender in senders.split_off(UPLOADS / 2) {
        finish(sender).await;
    }
    // Not ready: the listener is closed.
    let closed = until(drain + MOMENT, || async {
        let ready = client::get(proxy.known.probes, "/readyz").await;
        ready.is_ok_and(|answer| answer.status() == 503)
    })
    .await;
    for sender in senders {
        finish(sender).await;
    }
    let (mut complete, mut failures) = (0, Vec::new());
    while let Some(upload) = uploads.join_next().await {
        match upload? {
            Ok(reply) if reply.get_ref().data.len() == PARTS * PART => complete += 1,
            Ok(reply) => failures.push(format!("{} bytes", reply.get_ref().data.len())),
            Err(status) => failures.push(format!("{status}")),
        }
    }
    let most = drain + Duration::from_secs(2);
    let (code, took) = proxy.ends_within(most + MOMENT).await;
    let mut findings = vec![
        Finding::exactly("uploads that complete", complete, UPLOADS),
        Finding::within("the listener closes after SIGTERM", closed, drain + MOMENT),
        Finding::within("its end after the last upload's", took, most),
        Finding::new("exit code 0", format!("{code:?}"), code == Some(0)),
    ];
    let why = failures.first().cloned();
    findings.extend(why.map(|why| Finding::new("no upload fails", why, false)));
    Ok(findings)
}

/// No byte, no preface, no PONG, windows of 0, streams without end.
pub(super) async fn hostile(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let (drain, deadline) = scale.of(
        (Duration::from_secs(10), Duration::from_secs(60)),
        (Duration::from_millis(500), Duration::from_secs(1)),
    );
    let backend = Backend::start().await;
    let builder = Proxy::to([&backend])
        .set("drain.time", text(drain))
        .set("drain.deadline", text(deadline));
    let mut proxy = Running::start(&options, builder).await;
    let attacker = Attacker::new(
        proxy.known.listener,
        &proxy.known.files.authority.client(&["h2"]),
    );

    let mut silent = Vec::new();
    for _ in 0..EACH {
        silent.push((attacker.tcp().await?, attacker.tls().await?));
    }
    let mut headers = frames::grpc_request("/e2e.Test/Download");
    headers.extend([("x-test-replies", "1000000"), ("x-test-interval", "50")]);
    let download = [
        Frame::headers(1, &headers, false),
        Frame::data(1, &framed(b""), true),
    ];
    let (mut deaf, mut shut, mut idle) = (JoinSet::new(), JoinSet::new(), Vec::new());
    for _ in 0..EACH {
        // Reads all, and never answers a PING.
        let mut wire = attacker.wire(&[]).await?;
        wire.send(&download).await?;
        deaf.spawn(async move { while wire.next().await.is_some() {} });
        // A byte now and then: it isn't reset for a window that stays shut.
        let mut wire = attacker.wire(&[(INITIAL_WINDOW_SIZE, 0)]).await?;
        wire.send(&download).await?;
        shut.spawn(async move {
            let mut ticks = interval(TRICKLE);
            // At once, too.
            while wire.send(&[Frame::credit(1, 1)]).await.is_ok() {
                ticks.tick().await;
            }
        });
        idle.push(attacker.wire(&[]).await?);
    }
    let mut client = proxy.known.test_client().await;
    let endless = request(
        payload("endless"),
        &[("x-test-replies", "1000000"), ("x-test-interval", "50")],
    );
    let mut endless = client.download(endless).await?.into_inner();
    ensure!(endless.message().await?.is_some(), "a first message");
    let begun = 2 * EACH + 1;
    let all = |all: &crate::journal::Entries| (all.requests.len() >= begun).then_some(());
    backend.journal.wait("every stream", all).await;

    proxy.process.signal("TERM").await;
    let signalled = Instant::now();
    let told = tokio::spawn(async move {
        loop {
            match endless.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return Code::Ok,
                Err(status) => return status.code(),
            }
        }
    });
    let (whole, shortly) = (
        drain + deadline,
        scale.of(Duration::from_secs(2), Duration::from_millis(300)),
    );
    let watching = tokio::spawn(last_seen(proxy.known.probes, signalled + whole - shortly));
    let most = whole + Duration::from_secs(1);
    let (code, _) = proxy.ends_within(most + MOMENT).await;
    let took = code.is_some().then(|| signalled.elapsed());
    let (at, alive) = watching.await.context("the watch has panicked")?;
    // One is the honest client's.
    let hostile = alive.saturating_sub(1);
    let told = told.await.context("the honest client has panicked")?;
    let stderr = proxy.process.stderr();
    let panicked = stderr.contains("panicked");
    drop((silent, deaf, shut, idle));
    Ok(vec![
        Finding::within("its end after SIGTERM", took, most),
        Finding::new(
            format!("hostile connections shortly before: ≥ {}", 2 * EACH),
            format!(
                "{hostile}, {} after SIGTERM",
                seconds(at.saturating_duration_since(signalled))
            ),
            hostile >= 2 * EACH,
        ),
        Finding::new("exit code 0", format!("{code:?}"), code == Some(0)),
        Finding::new(
            "an honest client's endless stream is told UNAVAILABLE",
            format!("{told:?}"),
            told == Code::Unavailable,
        ),
        Finding::new(
            "no panic",
            if panicked { &stderr } else { "none" },
            !panicked,
        ),
    ])
}

/// How many clients were connected when that was last told, at `until` at the latest.
async fn last_seen(probes: SocketAddr, until: Instant) -> (Instant, usize) {
    let mut last = (Instant::now(), 0);
    while Instant::now() < until {
        let Ok(page) = client::get(probes, "/metrics").await else {
            break;
        };
        let clients = [("side", "downstream")];
        let count = client::metric(page.body(), "edge_connections", &clients);
        last = (Instant::now(), count.unwrap_or_default() as usize);
        sleep(GLANCE).await;
    }
    last
}

/// By `..data`, as kubelet does it; each kind of broken pair is there for a moment now and then.
pub(super) async fn certificates(options: Options) -> anyhow::Result<Vec<Finding>> {
    let scale = options.scale;
    let (swaps, pace) = scale.of(
        (100, Duration::from_secs(2)),
        (10, Duration::from_millis(20)),
    );
    let backend = Backend::start().await;
    let builder = Proxy::to([&backend]).route("/api.Echo/", "test");
    let mut proxy = Running::start(&options, builder).await;
    let load = Load::start(proxy.load(scale.of(500, 100), scale.of(20, 4)));
    let files = &proxy.known.files;
    let (address, tls) = (proxy.known.listener, files.authority.client(&["h2"]));
    // Each RPC on a connection of its own.
    let (stop, stopped) = watch::channel(false);
    let connecting = tokio::spawn({
        let tls = tls.clone();
        async move {
            let (mut made, mut failed) = (0, Vec::new());
            while !*stopped.borrow() {
                let rpc = async {
                    let http2 = client::Http2::connect(address, tls.clone()).await?;
                    http2.grpc("/a.B/C", &[]).await?;
                    anyhow::Ok(())
                };
                made += 1;
                failed.extend(rpc.await.err());
            }
            (made, failed)
        }
    });
    let (mut slowest, mut broken_served) = (Some(Duration::ZERO), 0);
    let unserved = Mutex::new(Vec::new());
    for swap in 0..swaps {
        if let Some(how) = Broken::ALL.get(swap % 10) {
            let broken = files.authority.broken(*how);
            files.secret.swap(&broken)?;
            sleep(pace / 4).await;
            let leaf = CertificateDer::from_pem_slice(broken.chain.as_bytes());
            let now = served(address, &tls).await?;
            broken_served += usize::from(leaf.is_ok_and(|leaf| leaf.as_ref() == now));
        }
        let pair = files.authority.pair();
        files.secret.swap(&pair)?;
        let begun = Instant::now();
        let leaf = CertificateDer::from_pem_slice(pair.chain.as_bytes())?;
        let took = until(MOMENT, || async {
            match served(address, &tls).await {
                Ok(now) => now == leaf.as_ref(),
                Err(why) => {
                    let mut all = unserved.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push(why);
                    false
                }
            }
        })
        .await;
        slowest = slowest.zip(took).map(|(one, other)| one.max(other));
        sleep(pace.saturating_sub(begun.elapsed())).await;
    }
    // The other task may have ended, by a panic.
    let _ = stop.send(true);
    let (made, mut failed) = connecting.await?;
    failed.extend(
        unserved
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner),
    );
    let tally = load.end().await?;
    let most = scale.of(Duration::from_secs(2), Duration::from_secs(10));
    let why = failed
        .first()
        .map_or_else(String::new, |why| format!(": {why:#}"));
    Ok(vec![
        none_failed(&tally),
        Finding::new(
            "handshakes that fail: 0",
            format!("{} of {made}{why}", failed.len()),
            failed.is_empty() && made > 0,
        ),
        Finding::within("the slowest new certificate to be served", slowest, most),
        Finding::count("broken pairs that were served", broken_served, 0),
        proxy.sound(),
    ])
}

/// The certificate that a new connection is served.
async fn served(address: SocketAddr, tls: &Arc<ClientConfig>) -> anyhow::Result<Vec<u8>> {
    let stream = client::tls(address, tls.clone()).await?;
    let chain = stream.get_ref().1.peer_certificates();
    let leaf = chain.and_then(<[_]>::first).context("no certificate")?;
    Ok(leaf.to_vec())
}

fn part() -> Message {
    payload(vec![b'u'; PART])
}

/// From one replacement to the next: several old ones drain at a time.
const PACE: Duration = Duration::from_secs(10);
const CONNECTIONS: usize = 5;
const UPLOADS: usize = 50;
/// Messages of an upload, and the bytes of one: 16 KiB.
const PARTS: usize = 16;
const PART: usize = 1024;
/// Connections of each kind.
const EACH: usize = 5;
/// Between two bytes of credit.
const TRICKLE: Duration = Duration::from_secs(20);
/// Between two looks at a page of metrics, which the process has to make.
const GLANCE: Duration = Duration::from_millis(100);
/// For what is late to be seen, and measured.
const MOMENT: Duration = Duration::from_secs(20);
/// SETTINGS_INITIAL_WINDOW_SIZE.
const INITIAL_WINDOW_SIZE: u16 = 4;
