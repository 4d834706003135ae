//! The network loses all that is sent.
//!
//! A backend listens in a network namespace of its own, at the other end of a pair of virtual interfaces; the fault is a
//! filter of nftables there, which drops everything: no FIN, no RST, no ICMP, as when a node loses its power. It takes
//! root, and is left out, with the reason, where there is none.

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::AsFd as _,
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::time::sleep;

use super::{Load, Running, backends::health_check, moment};
use crate::{
    attack::{Finding, Options, seconds},
    backend::Backend,
    load,
    proxy::Proxy,
};

/// A network namespace, with a link to it. Gone with this value.
struct Namespace {
    name: String,
    address: Ipv4Addr,
}

/// One of three.
pub(super) async fn black_hole(options: Options) -> anyhow::Result<Vec<Finding>> {
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(why) => {
            let left_out = Finding::left_out("a network namespace of its own", format!("{why:#}"));
            return Ok(vec![left_out]);
        }
    };
    let scale = options.scale;
    let lost = Backend::on(namespace.listener()?)?;
    let others = [Backend::start().await, Backend::start().await];
    let all = [lost.address(), others[0].address(), others[1].address()];
    let builder = Proxy::to(&all)
        .route("/api.Echo/", "test")
        .with("health_check", health_check(scale))
        .with("connect_timeout", "500ms");
    let mut proxy = Running::start(&options, builder).await;
    ensure!(
        proxy
            .has_eligible(3, Duration::from_secs(20))
            .await
            .is_some(),
        "the backends' first checks"
    );
    // What hangs waits for its end, which is to come from the proxy, and each connection has 100 streams.
    let load = Load::start(load::Options {
        timeout: Duration::from_secs(60),
        ..proxy.load(scale.of(500, 100), 40)
    });
    sleep(scale.of(Duration::from_secs(10), Duration::from_secs(1))).await;
    let before = lost.journal.count();
    namespace.drop_everything()?;
    let fault = SystemTime::now();
    let most = scale.of(Duration::from_secs(16), Duration::from_secs(8));
    let ejected = proxy.has_eligible(2, 2 * most).await;
    sleep(scale.of(Duration::from_secs(30), Duration::from_secs(1))).await;
    let tally = load.end().await?;

    let since = |at: SystemTime| at.duration_since(fault).unwrap_or_default();
    let late = ejected.map_or(most, |took| took.min(most));
    let begun_later = tally
        .failures()
        .iter()
        .filter(|f| since(f.begun) > late + moment(&options));
    let begun_later = begun_later.count();
    let longest = tally.failures().iter().map(|f| since(f.ended)).max();
    Ok(vec![
        Finding::new("before the fault it served", before, before > 0),
        Finding::within("its ejection", ejected, most),
        Finding::new(
            format!(
                "RPCs begun more than {} after the fault that fail: 0",
                seconds(late)
            ),
            format!("{begun_later} of {}; {} before", tally.sent, tally.failed()),
            begun_later == 0 && tally.not_sent == 0,
        ),
        Finding::within(
            "the end of the last RPC that was running there",
            Some(longest.unwrap_or_default()),
            most,
        ),
        proxy.sound(),
    ])
}

impl Namespace {
    fn new() -> anyhow::Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "this takes root");
        let process = std::process::id();
        // TEST-NET-1 (RFC 5737), in nets of four addresses.
        let net = 4 * (process % 60) as u8;
        let (here, there) = (
            Ipv4Addr::new(192, 0, 2, net + 1),
            Ipv4Addr::new(192, 0, 2, net + 2),
        );
        let namespace = Self {
            name: format!("edge-e2e-{process}"),
            address: there,
        };
        let (name, near, far) = (
            &namespace.name,
            &format!("ee{process}a"),
            &format!("ee{process}b"),
        );
        ip(&format!("netns add {name}"))?;
        ip(&format!(
            "link add {near} type veth peer name {far} netns {name}"
        ))?;
        ip(&format!("addr add {here}/30 dev {near}"))?;
        ip(&format!("link set {near} up"))?;
        ip(&format!("-n {name} addr add {there}/30 dev {far}"))?;
        ip(&format!("-n {name} link set {far} up"))?;
        // That there is nftables is known before anything depends on it.
        namespace.filter("add table inet fault")?;
        Ok(namespace)
    }

    /// A socket belongs to the namespace that its thread was in when it was made.
    fn listener(&self) -> anyhow::Result<TcpListener> {
        let namespace = File::open(format!("/run/netns/{}", self.name))?;
        let address = SocketAddr::from((self.address, 0));
        let there = std::thread::spawn(move || {
            let network = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), network)?;
            TcpListener::bind(address)
        });
        let bound: io::Result<_> = there.join().expect("binding doesn't panic");
        bound.with_context(|| format!("cannot listen on {address}"))
    }

    fn drop_everything(&self) -> anyhow::Result<()> {
        for hook in ["input", "output"] {
            self.filter(&format!(
                "add chain inet fault {hook} {{ type filter hook {hook} priority 0; policy drop; }}"
            ))?;
        }
        Ok(())
    }

    fn filter(&self, rule: &str) -> anyhow::Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, "nft", rule]);
        succeeds(command)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The interfaces and the filter go with it.
        if let Err(why) = ip(&format!("netns delete {}", self.name)) {
            eprintln!("{why:#}");
        }
    }
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    succeeds(command)
}

fn succeeds(mut command: Command) -> anyhow::Result<()> {
    let told = format!("{command:?}");
    let output = command.output().with_context(|| told.clone())?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{told}: {}", why.trim());
    Ok(())
}
