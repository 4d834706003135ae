//! One look-up: a name to its addresses, or why not.
//!
//! hickory-resolver asks the name servers (UDP, then TCP if the answer is truncated); its cache is off, and so is the
//! hosts file: what the proxy knows comes from DNS or isn't known.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{
        ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
        ServerOrderingStrategy,
    },
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{RData, RecordType},
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
    /// `Err`: why there is none; every look-up fails with it.
    resolver: Result<TokioResolver, String>,
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
        let configured = if nameservers.is_empty() {
            read_system_conf().map_err(|error| format!("cannot read /etc/resolv.conf: {error}"))
        } else {
            let servers = nameservers.iter().map(name_server).collect();
            Ok((ResolverConfig::from_name_servers(servers), ResolverOpts::default()))
        };
        let resolver = configured.and_then(|(config, mut options)| {
            options.cache_size = 0;
            options.use_hosts_file = ResolveHosts::Never;
            options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
            options.timeout = options.timeout.min(TRY);
            options.attempts = options.attempts.min(2);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
                .with_options(options)
                .build()
                .map_err(|error| format!("cannot set up the resolver: {error}"))
        });
        Self { resolver }
    }

    /// The addresses of `target`, asked of the name servers now.
    pub(crate) async fn look_up(&self, target: &Target, family: LookupFamily) -> Lookup {
        if let Ok(address) = target.host.parse::<IpAddr>() {
            return Lookup::found([address], target.port);
        }
        let asked = tokio::time::timeout(WHOLE, async {
            match family {
                LookupFamily::V4Only => self.ask(target, RecordType::A).await,
                LookupFamily::V6Only => self.ask(target, RecordType::AAAA).await,
                LookupFamily::Auto => self.ask_both(target).await,
            }
        });
        asked.await.unwrap_or_else(|_| Lookup::timed_out())
    }

    /// AAAA, and A when there is none. That there are no addresses is believed only if both say so.
    async fn ask_both(&self, target: &Target) -> Lookup {
        let six = self.ask(target, RecordType::AAAA).await;
        if matches!(six.answer, Answer::Addresses(_)) {
            return six;
        }
        let four = self.ask(target, RecordType::A).await;
        match (&four.answer, &six.answer) {
            (Answer::Empty, Answer::Failed) => six,
            _ => four,
        }
    }

    async fn ask(&self, target: &Target, record_type: RecordType) -> Lookup {
        let resolver = match &self.resolver {
            Ok(resolver) => resolver,
            Err(why) => return Lookup::failed(LookupResult::Error, why.clone()),
        };
        match resolver.lookup(target.host.as_str(), record_type).await {
            Ok(lookup) => {
                let found = lookup.answers().iter().filter_map(|record| match &record.data {
                    RData::A(a) if record_type == RecordType::A => Some(IpAddr::V4(a.0)),
                    RData::AAAA(a) if record_type == RecordType::AAAA => Some(IpAddr::V6(a.0)),
                    _ => None,
                });
                Lookup::found(found, target.port)
            }
            Err(error) => Lookup::from_error(&error),
        }
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
        let addresses: BTreeSet<_> =
            addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect();
        if addresses.is_empty() {
            return Self::empty("the answer has no addresses");
        }
        Self { answer: Answer::Addresses(addresses), result: LookupResult::Answer, error: None }
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
        Self { answer: Answer::Failed, result, error: Some(why) }
    }

    fn timed_out() -> Self {
        Self::failed(LookupResult::Timeout, "no name server answered in time".into())
    }

    fn from_error(error: &NetError) -> Self {
        match error {
            NetError::Timeout => Self::timed_out(),
            NetError::Dns(DnsError::NoRecordsFound(none)) => {
                if none.response_code == ResponseCode::NXDomain {
                    Self { result: LookupResult::NoName, ..Self::empty("NXDOMAIN: no such name") }
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

/// One question to one server. Cluster DNS answers in milliseconds; a lost datagram is asked again soon.
const TRY: Duration = Duration::from_secs(2);

/// A whole look-up, whatever the resolver does inside.
const WHOLE: Duration = Duration::from_secs(5);
