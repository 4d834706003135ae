//! The name servers, asked one after the other, and the search list.

use std::{
    net::{IpAddr, SocketAddr},
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
};

use super::{Answer, lookup::Lookup};
use crate::control_plane::{config::Target, status::LookupResult};

/// The name servers in their order, each with a resolver of its own: one for all of them asks two at once, believes
/// the faster one's error, and leaves the others no time while those two are silent.
pub(super) struct Servers {
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

impl Servers {
    /// With at most `patience` for one attempt at one server.
    ///
    /// # Errors
    /// A resolver can't be made of this.
    pub(super) fn new(
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
    pub(super) async fn ask(&self, target: &Target, record_type: RecordType) -> Lookup {
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
    let mut found = server.lookup(name.clone(), record_type).await;
    // From there on once more: what isn't known must not take endpoints away.
    if let Some(alias) = found.as_ref().err().and_then(|error| end_of(error, name)) {
        found = server.lookup(alias.clone(), record_type).await;
        if found
            .as_ref()
            .is_err_and(|error| end_of(error, &alias).is_some())
        {
            return Lookup::failed(LookupResult::Error, "too many aliases".into());
        }
    }
    match found {
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

/// The alias of `name` that has no such records, or after which hickory goes no further: it tells both alike.
fn end_of(error: &NetError, name: &Name) -> Option<Name> {
    match error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let last = none.query.name();
            (none.response_code == ResponseCode::NoError && last != name).then(|| last.clone())
        }
        _ => None,
    }
}

/// One on UDP, and on TCP for what is truncated.
pub(super) fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// One attempt at one server, at most: less where several have to fit into [`WHOLE`]. Cluster DNS answers in
/// milliseconds, and within an attempt a lost datagram is sent again.
pub(super) const TRY: Duration = Duration::from_secs(2);

/// resolv.conf may say `timeout:0`, in which nobody can answer.
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);

/// Everything that is asked for one type of address, whatever the resolver does inside.
pub(super) const WHOLE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::{
        super::{
            lookup::{
                Resolver,
                tests::{address, addresses, target},
            },
            script::{NameServer, Reply},
        },
        *,
    };
    use crate::control_plane::config::LookupFamily;

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
            .look_up(&target("echo.example."), LookupFamily::V4Only, false)
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
}
