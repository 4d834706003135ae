//! One look-up: a name to its addresses, or why not.
//!
//! hickory-resolver asks the name servers (UDP, then TCP if the answer is truncated); its cache is off, and so is the
//! hosts file: what the proxy knows comes from DNS or isn't known.
//!
//! Where several things are asked that may each fail (names of the search list, servers, families), the answers are
//! weighed alike: addresses win, then a failure, and only where nothing failed there are none. What isn't known must
//! not take endpoints away.

use std::{
    collections::{BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{IntoName as _, Name, RData, RecordType},
    },
    system_conf::read_system_conf,
};

use super::Answer;
use crate::control_plane::{
    config::{LookupFamily, Target},
    status::LookupResult,
};

/// Asks the name servers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resolver {
    /// `Err`: why there are none; every look-up fails with it.
    servers: Result<Arc<Servers>, String>,
    /// Hosts whose last addresses by `auto` were IPv6.
    six: Arc<Mutex<HashSet<String>>>,
}

/// The name servers in their order, each with a resolver of its own: one for all of them asks two at once, believes
/// the faster one's error, and leaves the others no time while those two are silent.
struct Servers {
    each: Vec<TokioResolver>,
    /// How often each may be asked.
    attempts: usize,
    /// For one attempt at one server.
    patience: Duration,
    /// What is appended to a host without a dot at its end.
    suffixes: Vec<Name>,
    /// A host with as many dots is first asked for as it is.
    ndots: usize,
}

/// How a look-up ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lookup {
    /// What it says about the target.
    pub(crate) answer: Answer,
    /// In one word.
    pub(crate) result: LookupResult,
    /// In words for operators, if it gave no addresses.
    pub(crate) error: Option<String>,
}

impl Resolver {
    /// Of `nameservers`, or of `/etc/resolv.conf` if there are none. A resolv.conf that can't be read makes every
    /// look-up fail with the reason; it is no reason not to start.
    pub(crate) fn new(nameservers: &[SocketAddr]) -> Self {
        Self::with(nameservers, TRY)
    }

    /// With at most `patience` for one attempt at one server.
    fn with(nameservers: &[SocketAddr], patience: Duration) -> Self {
        let configured = if nameservers.is_empty() {
            read_system_conf().map_err(|error| format!("cannot read /etc/resolv.conf: {error}"))
        } else {
            let servers = nameservers.iter().map(name_server).collect();
            Ok((
                ResolverConfig::from_name_servers(servers),
                ResolverOpts::default(),
            ))
        };
        let servers =
            configured.and_then(|(config, options)| Servers::new(&config, options, patience));
        Self {
            servers: servers.map(Arc::new),
            six: Arc::default(),
        }
    }

    /// The addresses of `target`, asked of the name servers now.
    pub(crate) async fn look_up(&self, target: &Target, family: LookupFamily) -> Lookup {
        if let Ok(address) = target.host.parse::<IpAddr>() {
            return Lookup::found([address], target.port);
        }
        match family {
            LookupFamily::V4Only => self.ask(target, RecordType::A).await,
            LookupFamily::V6Only => self.ask(target, RecordType::AAAA).await,
            LookupFamily::Auto => self.ask_both(target).await,
        }
    }

    /// AAAA, and A when there is none; asked at once, so that silence about one leaves the other its time. While AAAA
    /// fails for a host that has had some, A is no answer: a hiccup of DNS would move all connections twice.
    async fn ask_both(&self, target: &Target) -> Lookup {
        let (six, four) = tokio::join!(
            self.ask(target, RecordType::AAAA),
            self.ask(target, RecordType::A)
        );
        // A panic elsewhere leaves a set of strings whole.
        let mut known = self.six.lock().unwrap_or_else(PoisonError::into_inner);
        let lookup = match (&six.answer, &four.answer) {
            (Answer::Addresses(_), _) | (Answer::Failed, Answer::Empty) => six,
            (Answer::Failed, Answer::Addresses(_)) if known.contains(&target.host) => six,
            _ => four,
        };
        match &lookup.answer {
            Answer::Addresses(addresses) if addresses.iter().all(SocketAddr::is_ipv6) => {
                known.insert(target.host.clone());
            }
            Answer::Addresses(_) | Answer::Empty => {
                known.remove(&target.host);
            }
            Answer::Failed => {}
        }
        lookup
    }

    async fn ask(&self, target: &Target, record_type: RecordType) -> Lookup {
        let servers = match &self.servers {
            Ok(servers) => servers,
            Err(why) => return Lookup::failed(LookupResult::Error, why.clone()),
        };
        tokio::time::timeout(WHOLE, servers.ask(target, record_type))
            .await
            .unwrap_or_else(|_| Lookup::timed_out())
    }
}

impl Servers {
    fn new(
        config: &ResolverConfig,
        mut options: ResolverOpts,
        patience: Duration,
    ) -> Result<Self, String> {
        let attempts = options.attempts.clamp(1, 2);
        // At least one each, since a configuration without a name server isn't one.
        let turns = u32::try_from(config.name_servers().len() * attempts).unwrap_or(u32::MAX);
        let patience = options
            .timeout
            .max(LEAST_TIMEOUT)
            .min(patience)
            .min(WHOLE / turns.max(1));
        options.timeout = patience;
        // Of its own, after the first.
        options.attempts = 0;
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        let resolver = |server: &NameServerConfig| {
            let config = ResolverConfig::from_name_servers(vec![server.clone()]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                .with_options(options.clone())
                .build()
                .map_err(|error| format!("cannot set up the resolver: {error}"))
        };
        Ok(Self {
            each: config
                .name_servers()
                .iter()
                .map(resolver)
                .collect::<Result<_, _>>()?,
            attempts,
            patience,
            suffixes: config
                .domain()
                .into_iter()
                .chain(config.search())
                .cloned()
                .collect(),
            ndots: options.ndots,
        })
    }

    /// The names that `host` may stand for, in the order in which they are asked for. (hickory's own search tells the
    /// last one's answer: "no such name" where another one failed.)
    fn names(&self, host: &str) -> Result<Vec<Name>, NetError> {
        let mut name = host.into_name()?;
        if name.is_fqdn() {
            return Ok(vec![name]);
        }
        let longer = self.suffixes.iter();
        // A name that would be too long is none.
        let mut names: Vec<_> = longer
            .filter_map(|suffix| name.clone().append_domain(suffix).ok())
            .collect();
        let as_it_is_first = usize::from(name.num_labels()) > self.ndots || name.is_localhost();
        name.set_fqdn(true);
        names.retain(|longer| *longer != name);
        names.insert(if as_it_is_first { 0 } else { names.len() }, name);
        Ok(names)
    }

    /// The first server's answer; the next one's if that fails. That there are no addresses, said by a server after one
    /// that failed, is no answer.
    async fn ask(&self, target: &Target, record_type: RecordType) -> Lookup {
        let names = match self.names(&target.host) {
            Ok(names) => names,
            Err(error) => return Lookup::from_error(&error),
        };
        let mut failed = Lookup::timed_out();
        for _ in 0..self.attempts {
            let mut known = true;
            for server in &self.each {
                let search = search(server, &names, record_type, target.port);
                let lookup = tokio::time::timeout(self.patience, search)
                    .await
                    .unwrap_or_else(|_| Lookup::timed_out());
                match lookup.answer {
                    Answer::Addresses(_) => return lookup,
                    Answer::Empty if known => return lookup,
                    Answer::Empty => {}
                    Answer::Failed => (failed, known) = (lookup, false),
                }
            }
        }
        failed
    }
}

/// The first of `names` that has addresses. That there are none is believed only if `server` says so of each.
async fn search(
    server: &TokioResolver,
    names: &[Name],
    record_type: RecordType,
    port: u16,
) -> Lookup {
    let mut found_none = Lookup::empty("there is no name to ask for");
    for name in names {
        let lookup = ask_one(server, name, record_type, port).await;
        match lookup.answer {
            Answer::Addresses(_) => return lookup,
            Answer::Empty if found_none.answer == Answer::Failed => {}
            Answer::Empty | Answer::Failed => found_none = lookup,
        }
    }
    found_none
}

async fn ask_one(
    server: &TokioResolver,
    name: &Name,
    record_type: RecordType,
    port: u16,
) -> Lookup {
    match server.lookup(name.clone(), record_type).await {
        Ok(lookup) => {
            let found = lookup
                .answers()
                .iter()
                .filter_map(|record| match &record.data {
                    RData::A(a) if record_type == RecordType::A => Some(IpAddr::V4(a.0)),
                    RData::AAAA(a) if record_type == RecordType::AAAA => Some(IpAddr::V6(a.0)),
                    _ => None,
                });
            Lookup::found(found, port)
        }
        Err(error) => Lookup::from_error(&error),
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Lookup {
    /// With these addresses, which may be none.
    pub(crate) fn found(addresses: impl IntoIterator<Item = IpAddr>, port: u16) -> Self {
        let addresses: BTreeSet<_> = addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect();
        if addresses.is_empty() {
            return Self::empty("the answer has no addresses");
        }
        Self {
            answer: Answer::Addresses(addresses),
            result: LookupResult::Answer,
            error: None,
        }
    }

    /// There are no addresses, as DNS says.
    pub(crate) fn empty(why: &str) -> Self {
        Self {
            answer: Answer::Empty,
            result: LookupResult::Empty,
            error: Some(why.to_owned()),
        }
    }

    /// DNS says nothing about the target.
    pub(crate) fn failed(result: LookupResult, why: String) -> Self {
        Self {
            answer: Answer::Failed,
            result,
            error: Some(why),
        }
    }

    fn timed_out() -> Self {
        Self::failed(
            LookupResult::Timeout,
            "no name server answered in time".into(),
        )
    }

    fn from_error(error: &NetError) -> Self {
        match error {
            NetError::Timeout => Self::timed_out(),
            NetError::Dns(DnsError::NoRecordsFound(none)) => {
                if none.response_code == ResponseCode::NXDomain {
                    Self {
                        result: LookupResult::NoName,
                        ..Self::empty("NXDOMAIN: no such name")
                    }
                } else {
                    Self::empty("the name has no such records")
                }
            }
            NetError::Dns(DnsError::ResponseCode(ResponseCode::ServFail)) => {
                Self::failed(LookupResult::ServFail, "SERVFAIL".into())
            }
            NetError::Dns(DnsError::ResponseCode(ResponseCode::Refused)) => {
                Self::failed(LookupResult::Refused, "REFUSED".into())
            }
            other => Self::failed(LookupResult::Error, other.to_string()),
        }
    }
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// One attempt at one server, at most: less where several have to fit into [`WHOLE`]. Cluster DNS answers in
/// milliseconds, and within an attempt a lost datagram is sent again.
const TRY: Duration = Duration::from_secs(2);

/// resolv.conf may say `timeout:0`, in which nobody can answer.
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that is asked for one type of address, whatever the resolver does inside.
const WHOLE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::{
        super::script::{NameServer, Reply},
        *,
    };

    fn target(host: &str) -> Target {
        Target {
            host: host.into(),
            port: 8081,
        }
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn addresses(texts: &[&str]) -> Answer {
        let socket = |text: &&str| SocketAddr::new(address(text), 8081);
        Answer::Addresses(texts.iter().map(socket).collect())
    }

    /// One look-up of `echo.example.` at a server that always says this.
    async fn look_up(family: LookupFamily, reply: Reply) -> Lookup {
        let server = NameServer::start(move |_, _| reply.clone()).await;
        Resolver::new(&[server.address])
            .look_up(&target("echo.example."), family)
            .await
    }

    #[tokio::test]
    async fn an_answer_is_deduplicated_and_nothing_of_it_is_cached() {
        let both = vec![
            address("10.0.0.2"),
            address("10.0.0.1"),
            address("10.0.0.2"),
        ];
        let server = NameServer::start(move |_, _| Reply::Addresses(both.clone())).await;
        let resolver = Resolver::new(&[server.address]);
        for asked in 1..=3 {
            let lookup = resolver
                .look_up(&target("echo.example."), LookupFamily::V4Only)
                .await;
            assert_eq!(lookup.answer, addresses(&["10.0.0.1", "10.0.0.2"]));
            assert_eq!(lookup.error, None);
            assert_eq!(server.asked(), asked, "one question for each look-up");
        }
    }

    #[tokio::test]
    async fn an_alias_is_followed() {
        let lookup = look_up(LookupFamily::V4Only, Reply::Alias(address("10.0.0.1"))).await;
        assert_eq!(lookup.answer, addresses(&["10.0.0.1"]));
    }

    #[tokio::test]
    async fn no_such_name_and_no_records_are_empty() {
        let lookup = look_up(LookupFamily::V4Only, Reply::Code(ResponseCode::NXDomain)).await;
        assert_eq!(
            (lookup.answer, lookup.result),
            (Answer::Empty, LookupResult::NoName)
        );
        let lookup = look_up(LookupFamily::V4Only, Reply::Code(ResponseCode::NoError)).await;
        assert_eq!(
            (lookup.answer, lookup.result),
            (Answer::Empty, LookupResult::Empty)
        );
        assert!(lookup.error.is_some());
    }

    #[tokio::test]
    async fn an_answer_of_the_other_family_is_empty() {
        let reply = Reply::Addresses(vec![address("fd00::1")]);
        assert_eq!(
            look_up(LookupFamily::V4Only, reply).await.answer,
            Answer::Empty
        );
    }

    #[tokio::test]
    async fn servfail_and_refused_are_failures() {
        let lookup = look_up(LookupFamily::V4Only, Reply::Code(ResponseCode::ServFail)).await;
        assert_eq!(
            (lookup.answer, lookup.result),
            (Answer::Failed, LookupResult::ServFail)
        );
        let lookup = look_up(LookupFamily::V4Only, Reply::Code(ResponseCode::Refused)).await;
        assert_eq!(
            (lookup.answer, lookup.result),
            (Answer::Failed, LookupResult::Refused)
        );
    }

    /// A resolver that doesn't let a test wait.
    fn impatient(server: SocketAddr) -> Resolver {
        Resolver::with(&[server], Duration::from_millis(100))
    }

    #[tokio::test]
    async fn silence_and_garbage_are_failures() {
        for reply in [Reply::Silence, Reply::Garbage] {
            let server = NameServer::start(move |_, _| reply.clone()).await;
            let resolver = impatient(server.address);
            let lookup = resolver
                .look_up(&target("echo.example."), LookupFamily::V4Only)
                .await;
            assert_eq!(lookup.answer, Answer::Failed, "{lookup:?}");
            assert!(lookup.error.is_some());
        }
    }

    #[tokio::test]
    async fn a_server_that_answers_again_is_heard_again() {
        let said = Arc::new(Mutex::new(Reply::Silence));
        let says = said.clone();
        let server = NameServer::start(move |_, _| says.lock().unwrap().clone()).await;
        let resolver = impatient(server.address);
        for broken in [
            Reply::Silence,
            Reply::Garbage,
            Reply::Code(ResponseCode::ServFail),
        ] {
            *said.lock().unwrap() = broken;
            for _ in 0..3 {
                let lookup = resolver
                    .look_up(&target("echo.example."), LookupFamily::V4Only)
                    .await;
                assert_eq!(lookup.answer, Answer::Failed);
            }
            *said.lock().unwrap() = Reply::Addresses(vec![address("10.0.0.1")]);
            let lookup = resolver
                .look_up(&target("echo.example."), LookupFamily::V4Only)
                .await;
            assert_eq!(lookup.answer, addresses(&["10.0.0.1"]));
        }
    }

    #[tokio::test]
    async fn no_server_there_is_a_failure() {
        let nobody = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = nobody.local_addr().unwrap();
        drop(nobody);
        let resolver = impatient(address);
        let lookup = resolver
            .look_up(&target("echo.example."), LookupFamily::V4Only)
            .await;
        assert_eq!(lookup.answer, Answer::Failed, "{lookup:?}");
    }

    /// Servers that say this, one after the other.
    async fn servers<const N: usize>(replies: [Reply; N]) -> Vec<NameServer> {
        let mut servers = Vec::new();
        for reply in replies {
            servers.push(NameServer::start(move |_, _| reply.clone()).await);
        }
        servers
    }

    async fn look_up_at(servers: &[NameServer]) -> Lookup {
        let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
        Resolver::new(&addresses)
            .look_up(&target("echo.example."), LookupFamily::V4Only)
            .await
    }

    /// By the real clock, since hickory's pool of servers has a deadline of its own by that.
    #[tokio::test]
    async fn the_last_of_four_servers_is_asked_while_the_others_are_silent() {
        let answer = Reply::Addresses(vec![address("10.0.0.1")]);
        let servers = servers([Reply::Silence, Reply::Silence, Reply::Silence, answer]).await;
        let lookup = look_up_at(&servers).await;
        assert_eq!(lookup.answer, addresses(&["10.0.0.1"]));
    }

    #[tokio::test]
    async fn the_next_server_is_asked_only_after_a_failure() {
        let answer = || Reply::Addresses(vec![address("10.0.0.1")]);
        let code = Reply::Code;
        for (first, second, expected) in [
            (code(ResponseCode::ServFail), answer(), None),
            (code(ResponseCode::Refused), answer(), None),
            (
                code(ResponseCode::NXDomain),
                answer(),
                Some(LookupResult::NoName),
            ),
            (
                code(ResponseCode::ServFail),
                code(ResponseCode::NXDomain),
                Some(LookupResult::ServFail),
            ),
        ] {
            let lookup = look_up_at(&servers([first.clone(), second]).await).await;
            match expected {
                None => assert_eq!(lookup.answer, addresses(&["10.0.0.1"]), "{first:?}"),
                Some(result) => assert_eq!(lookup.result, result, "{first:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_timeout_of_0_leaves_time_to_answer() {
        let server = NameServer::start(|_, _| Reply::Addresses(vec![address("10.0.0.1")])).await;
        let config = ResolverConfig::from_name_servers(vec![name_server(&server.address)]);
        let mut options = ResolverOpts::default();
        options.timeout = Duration::ZERO;
        let servers = Servers::new(&config, options, TRY).unwrap();
        assert_eq!(servers.patience, LEAST_TIMEOUT);
        let lookup = servers.ask(&target("echo.example."), RecordType::A).await;
        assert_eq!(lookup.answer, addresses(&["10.0.0.1"]));
    }

    /// The look-up of `host` with two suffixes and `ndots:1`, and how often the server was asked.
    async fn search_for(
        host: &str,
        reply: impl Fn(&str) -> Reply + Send + 'static,
    ) -> (Lookup, usize) {
        let server = NameServer::start(move |name, _| reply(name)).await;
        let suffixes = ["default.svc.cluster.local.", "svc.cluster.local."];
        let suffixes = suffixes.map(|suffix| suffix.into_name().unwrap());
        let config = vec![name_server(&server.address)];
        let config = ResolverConfig::from_parts(None, suffixes.into(), config);
        let mut options = ResolverOpts::default();
        options.ndots = 1;
        let servers = Servers::new(&config, options, TRY).unwrap();
        let lookup = servers.ask(&target(host), RecordType::A).await;
        (lookup, server.asked())
    }

    #[tokio::test]
    async fn servfail_for_one_name_of_the_search_list_is_a_failure() {
        for host in ["echo.default.svc.cluster.local", "echo"] {
            let (lookup, _) = search_for(host, |name| {
                Reply::Code(match name {
                    "echo.default.svc.cluster.local." => ResponseCode::ServFail,
                    _ => ResponseCode::NXDomain,
                })
            })
            .await;
            assert_eq!(
                (lookup.answer, lookup.result),
                (Answer::Failed, LookupResult::ServFail),
                "{host}"
            );
        }
    }

    #[tokio::test]
    async fn the_search_list_is_walked_until_a_name_has_addresses() {
        let only = |has: &'static str| {
            move |name: &str| {
                if name == has {
                    Reply::Addresses(vec![address("10.0.0.1")])
                } else {
                    Reply::Code(ResponseCode::NXDomain)
                }
            }
        };
        for (host, has, asked) in [
            ("echo", "echo.default.svc.cluster.local.", 1),
            ("echo", "echo.svc.cluster.local.", 2),
            ("echo", "echo.", 3),
            ("echo.example", "echo.example.", 1),
            ("echo.example", "echo.example.svc.cluster.local.", 3),
            ("echo.", "echo.", 1),
        ] {
            let (lookup, questions) = search_for(host, only(has)).await;
            assert_eq!(lookup.answer, addresses(&["10.0.0.1"]), "{host}: {has}");
            assert_eq!(questions, asked, "{host}: {has}");
        }
        let (lookup, questions) = search_for("echo", only("another.")).await;
        assert_eq!((lookup.result, questions), (LookupResult::NoName, 3));
    }

    /// With two servers, AAAA takes the whole 5 s. A datagram on the loopback is there at once, so time passes only in
    /// silence.
    #[tokio::test(start_paused = true)]
    async fn auto_takes_a_while_aaaa_is_never_answered() {
        let reply = |_: &str, kind| match kind {
            RecordType::AAAA => Reply::Silence,
            _ => Reply::Addresses(vec![address("10.0.0.1")]),
        };
        let servers = [
            NameServer::start(reply).await,
            NameServer::start(reply).await,
        ];
        let lookup = Resolver::new(&servers.each_ref().map(|server| server.address))
            .look_up(&target("echo.example."), LookupFamily::Auto)
            .await;
        assert_eq!(lookup.answer, addresses(&["10.0.0.1"]));
    }

    #[tokio::test]
    async fn auto_keeps_to_ipv6_while_aaaa_fails() {
        let six = Arc::new(Mutex::new(Reply::Silence));
        let says = six.clone();
        let server = NameServer::start(move |_, kind| match kind {
            RecordType::AAAA => says.lock().unwrap().clone(),
            _ => Reply::Addresses(vec![address("10.0.0.1")]),
        })
        .await;
        let resolver = Resolver::new(&[server.address]);
        let answer = async |reply: Reply| {
            *six.lock().unwrap() = reply;
            let target = target("echo.example.");
            resolver.look_up(&target, LookupFamily::Auto).await.answer
        };
        let broken = || Reply::Code(ResponseCode::ServFail);
        let addresses_six = || Reply::Addresses(vec![address("fd00::1")]);
        assert_eq!(answer(broken()).await, addresses(&["10.0.0.1"]));
        assert_eq!(answer(addresses_six()).await, addresses(&["fd00::1"]));
        assert_eq!(answer(broken()).await, Answer::Failed);
        assert_eq!(
            answer(broken()).await,
            Answer::Failed,
            "as long as it lasts"
        );
        assert_eq!(answer(addresses_six()).await, addresses(&["fd00::1"]));
        let none = Reply::Code(ResponseCode::NoError);
        assert_eq!(answer(none).await, addresses(&["10.0.0.1"]), "DNS says so");
        assert_eq!(answer(broken()).await, addresses(&["10.0.0.1"]));
    }

    /// What `auto` makes of the answers for AAAA and for A.
    async fn auto(six: Reply, four: Reply) -> Lookup {
        let server = NameServer::start(move |_, kind| match kind {
            RecordType::AAAA => six.clone(),
            _ => four.clone(),
        })
        .await;
        let resolver = Resolver::new(&[server.address]);
        resolver
            .look_up(&target("echo.example."), LookupFamily::Auto)
            .await
    }

    #[tokio::test]
    async fn auto_takes_aaaa_and_a_when_there_is_none() {
        let six = || Reply::Addresses(vec![address("fd00::1")]);
        let four = || Reply::Addresses(vec![address("10.0.0.1")]);
        let none = || Reply::Code(ResponseCode::NoError);
        let broken = || Reply::Code(ResponseCode::ServFail);
        assert_eq!(auto(six(), four()).await.answer, addresses(&["fd00::1"]));
        assert_eq!(auto(none(), four()).await.answer, addresses(&["10.0.0.1"]));
        assert_eq!(
            auto(broken(), four()).await.answer,
            addresses(&["10.0.0.1"])
        );
        assert_eq!(auto(none(), none()).await.answer, Answer::Empty);
        assert_eq!(auto(none(), broken()).await.answer, Answer::Failed);
        assert_eq!(
            auto(broken(), none()).await.answer,
            Answer::Failed,
            "half of it isn't known"
        );
    }

    #[tokio::test]
    async fn v6_only_asks_for_aaaa() {
        let reply = Reply::Addresses(vec![address("10.0.0.1"), address("fd00::1")]);
        assert_eq!(
            look_up(LookupFamily::V6Only, reply).await.answer,
            addresses(&["fd00::1"])
        );
    }

    #[tokio::test]
    async fn an_address_as_the_host_needs_no_server() {
        let resolver = Resolver {
            servers: Err("there is none".into()),
            six: Arc::default(),
        };
        let lookup = resolver
            .look_up(&target("10.0.0.9"), LookupFamily::V4Only)
            .await;
        assert_eq!(lookup.answer, addresses(&["10.0.0.9"]));
        let lookup = resolver
            .look_up(&target("echo.example."), LookupFamily::V4Only)
            .await;
        assert_eq!(
            lookup,
            Lookup::failed(LookupResult::Error, "there is none".into())
        );
    }
}
