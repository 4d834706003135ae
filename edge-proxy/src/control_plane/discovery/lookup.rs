//! One look-up: a name to its addresses, or why not.
//!
//! hickory-resolver asks the name servers (UDP, then TCP if the answer is truncated); its cache is off, and so is the
//! hosts file: what the proxy knows comes from DNS or isn't known.
//!
//! Where several things are asked that may each fail (names of the search list, servers, families), the answers are
//! weighed alike: addresses win, then a failure, and only where nothing failed there are none. What isn't known must
//! not take endpoints away.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{
    config::{ResolverConfig, ResolverOpts},
    net::{DnsError, NetError},
    proto::{op::ResponseCode, rr::RecordType},
    system_conf::read_system_conf,
};

use super::{
    Answer,
    servers::{Servers, TRY, WHOLE, name_server},
};
use crate::control_plane::{
    config::{LookupFamily, Target},
    status::LookupResult,
};

/// Asks the name servers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Resolver {
    /// `Err`: why there are none; every look-up fails with it.
    servers: Result<Arc<Servers>, String>,
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
        }
    }

    /// The addresses of `target`, asked of the name servers now; `at_six`: those that it has are IPv6.
    pub(crate) async fn look_up(
        &self,
        target: &Target,
        family: LookupFamily,
        at_six: bool,
    ) -> Lookup {
        if let Ok(address) = target.host.parse::<IpAddr>() {
            return Lookup::found([address], target.port);
        }
        match family {
            LookupFamily::V4Only => self.ask(target, RecordType::A).await,
            LookupFamily::V6Only => self.ask(target, RecordType::AAAA).await,
            LookupFamily::Auto => self.ask_both(target, at_six).await,
        }
    }

    /// AAAA, and A when there is none; asked at once, so that silence about one leaves the other its time.
    ///
    /// Where the addresses are IPv6, A is no answer while AAAA fails: a hiccup of DNS would move all connections twice.
    /// Elsewhere A's addresses wait for AAAA for [`AAAA_LAGS`]: some networks swallow that question, and each look-up would
    /// take all the time that there is. An AAAA that comes later than that once is heard the next time, since the name
    /// server knows it then, and from then on the addresses are IPv6: so they move once, and don't move back.
    async fn ask_both(&self, target: &Target, at_six: bool) -> Lookup {
        let six = self.ask(target, RecordType::AAAA);
        let four = self.ask(target, RecordType::A);
        tokio::pin!(six, four);
        let (six, four) = tokio::select! {
            six = &mut six => {
                if let Answer::Addresses(_) = six.answer {
                    return six;
                }
                (six, four.await)
            }
            four = &mut four => match four.answer {
                Answer::Addresses(_) if !at_six => {
                    let six = tokio::time::timeout(AAAA_LAGS, six).await;
                    (six.unwrap_or_else(|_| Lookup::timed_out()), four)
                }
                _ => (six.await, four),
            },
        };
        match (&six.answer, &four.answer) {
            (Answer::Addresses(_), _) | (Answer::Failed, Answer::Empty) => six,
            (Answer::Failed, Answer::Addresses(_)) if at_six => six,
            _ => four,
        }
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

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl Lookup {
    /// With these addresses, which may be none, and aren't to be more than a cluster's pods can be: each becomes an endpoint
    /// with a checker, connections and metrics.
    pub(crate) fn found(addresses: impl IntoIterator<Item = IpAddr>, port: u16) -> Self {
        let addresses: BTreeSet<_> = addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect();
        if addresses.is_empty() {
            return Self::empty("the answer has no addresses");
        }
        if addresses.len() > MOST_ADDRESSES {
            let why = format!("more than {MOST_ADDRESSES} addresses");
            return Self::failed(LookupResult::Error, why);
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

    /// No answer came.
    pub(super) fn timed_out() -> Self {
        Self::failed(
            LookupResult::Timeout,
            "no name server answered in time".into(),
        )
    }

    /// What an answer without records, or none, says.
    pub(super) fn from_error(error: &NetError) -> Self {
        match error {
            NetError::Timeout => Self::timed_out(),
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NXDomain => Self {
                    result: LookupResult::NoName,
                    ..Self::empty("NXDOMAIN: no such name")
                },
                ResponseCode::NoError => Self::empty("the name has no such records"),
                // Of those that hickory knows, none comes so.
                code => {
                    let code = u16::from(code);
                    Self::failed(LookupResult::Error, format!("response code {code}"))
                }
            },
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

/// Of one name. An answer over TCP has room for four thousand.
const MOST_ADDRESSES: usize = 1024;

/// What AAAA may take longer than A: a datagram that is lost is sent again in this time.
const AAAA_LAGS: Duration = Duration::from_secs(1);

#[cfg(test)]
pub(super) mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Instant,
    };

    use super::{
        super::script::{NameServer, Reply},
        *,
    };

    pub(in super::super) fn target(host: &str) -> Target {
        Target {
            host: host.into(),
            port: 8081,
        }
    }

    pub(in super::super) fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    pub(in super::super) fn addresses(texts: &[&str]) -> Answer {
        let socket = |text: &&str| SocketAddr::new(address(text), 8081);
        Answer::Addresses(texts.iter().map(socket).collect())
    }

    /// One look-up of `echo.example.` at a server that always says this.
    async fn look_up(family: LookupFamily, reply: Reply) -> Lookup {
        let server = NameServer::start(move |_, _| reply.clone()).await;
        Resolver::new(&[server.address])
            .look_up(&target("echo.example."), family, false)
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
                .look_up(&target("echo.example."), LookupFamily::V4Only, false)
                .await;
            assert_eq!(lookup.answer, addresses(&["10.0.0.1", "10.0.0.2"]));
            assert_eq!(lookup.error, None);
            assert_eq!(server.asked(), asked, "one question for each look-up");
        }
    }

    #[test]
    fn an_answer_with_more_addresses_than_any_service_has_is_a_failure() {
        let found = |count: u32| Lookup::found((0..count).map(|n| IpAddr::V4(n.into())), 8081);
        let Answer::Addresses(addresses) = found(1024).answer else {
            panic!("1024 are too many");
        };
        assert_eq!(addresses.len(), 1024);
        let failed = Lookup::failed(LookupResult::Error, "more than 1024 addresses".into());
        assert_eq!(found(1025), failed);
        let one = std::iter::repeat_n(address("10.0.0.1"), 4000);
        assert_eq!(
            Lookup::found(one, 8081).answer,
            self::addresses(&["10.0.0.1"]),
            "each counts once"
        );
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

    #[tokio::test]
    async fn a_response_code_that_nobody_knows_is_a_failure() {
        let code = ResponseCode::Unknown(12);
        let lookup = look_up(LookupFamily::V4Only, Reply::Code(code)).await;
        assert_eq!(
            lookup,
            Lookup::failed(LookupResult::Error, "response code 12".into())
        );
    }

    /// A look-up where the first `aliases` names are aliases, told one at a time.
    async fn look_up_through(aliases: usize, last: Reply) -> Lookup {
        let server = NameServer::start(move |name, _| {
            if name.matches("alias.").count() < aliases {
                Reply::Further
            } else {
                last.clone()
            }
        })
        .await;
        Resolver::new(&[server.address])
            .look_up(&target("echo.example."), LookupFamily::V4Only, false)
            .await
    }

    #[tokio::test]
    async fn aliases_without_an_end_are_a_failure_and_one_that_has_no_addresses_is_empty() {
        let found = || Reply::Addresses(vec![address("10.0.0.1")]);
        let none = || Reply::Code(ResponseCode::NoError);
        // hickory follows seven.
        for aliases in [1, 7, 8, 14] {
            let lookup = look_up_through(aliases, found()).await;
            assert_eq!(lookup.answer, addresses(&["10.0.0.1"]), "{aliases}");
        }
        for aliases in [1, 7] {
            let lookup = look_up_through(aliases, none()).await;
            assert_eq!(lookup.answer, Answer::Empty, "{aliases}");
        }
        let lookup = look_up_through(usize::MAX, none()).await;
        assert_eq!(lookup.answer, Answer::Failed);
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
                .look_up(&target("echo.example."), LookupFamily::V4Only, false)
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
                    .look_up(&target("echo.example."), LookupFamily::V4Only, false)
                    .await;
                assert_eq!(lookup.answer, Answer::Failed);
            }
            *said.lock().unwrap() = Reply::Addresses(vec![address("10.0.0.1")]);
            let lookup = resolver
                .look_up(&target("echo.example."), LookupFamily::V4Only, false)
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
            .look_up(&target("echo.example."), LookupFamily::V4Only, false)
            .await;
        assert_eq!(lookup.answer, Answer::Failed, "{lookup:?}");
    }

    /// By the real clock, as all that has sockets: a paused one jumps while a datagram is on its way. With two servers,
    /// AAAA takes the whole 5 s.
    #[tokio::test]
    async fn auto_takes_a_while_aaaa_is_never_answered() {
        let reply = |_: &str, kind| match kind {
            RecordType::AAAA => Reply::Silence,
            _ => Reply::Addresses(vec![address("10.0.0.1")]),
        };
        let servers = [
            NameServer::start(reply).await,
            NameServer::start(reply).await,
        ];
        let begin = Instant::now();
        let lookup = Resolver::new(&servers.each_ref().map(|server| server.address))
            .look_up(&target("echo.example."), LookupFamily::Auto, false)
            .await;
        assert_eq!(lookup.answer, addresses(&["10.0.0.1"]));
        let took = begin.elapsed();
        assert!(took < 4 * AAAA_LAGS, "{took:?}");
    }

    /// Longer than elsewhere, if the addresses are IPv6.
    #[tokio::test]
    async fn auto_waits_for_an_aaaa_that_is_late() {
        let moment = Duration::from_millis(100);
        for (at_six, late) in [(false, moment), (true, moment), (true, AAAA_LAGS + moment)] {
            let server = NameServer::start(move |_, kind| match kind {
                RecordType::AAAA => Reply::Late(late, vec![address("fd00::1")]),
                _ => Reply::Addresses(vec![address("10.0.0.1")]),
            })
            .await;
            let lookup = Resolver::new(&[server.address])
                .look_up(&target("echo.example."), LookupFamily::Auto, at_six)
                .await;
            assert_eq!(lookup.answer, addresses(&["fd00::1"]), "{at_six} {late:?}");
        }
        let server = NameServer::start(|_, kind| match kind {
            RecordType::AAAA => Reply::Silence,
            _ => Reply::Addresses(vec![address("10.0.0.1")]),
        })
        .await;
        let lookup = impatient(server.address)
            .look_up(&target("echo.example."), LookupFamily::Auto, true)
            .await;
        assert_eq!(lookup.answer, Answer::Failed);
    }

    /// A takes 4 s.
    #[tokio::test]
    async fn auto_takes_aaaa_while_a_is_never_answered() {
        let server = NameServer::start(|_, kind| match kind {
            RecordType::AAAA => Reply::Addresses(vec![address("fd00::1")]),
            _ => Reply::Silence,
        })
        .await;
        let begin = Instant::now();
        let lookup = Resolver::new(&[server.address])
            .look_up(&target("echo.example."), LookupFamily::Auto, false)
            .await;
        assert_eq!(lookup.answer, addresses(&["fd00::1"]));
        let took = begin.elapsed();
        assert!(took < 3 * AAAA_LAGS, "{took:?}");
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
        let answer = async |reply: Reply, at_six: bool| {
            *six.lock().unwrap() = reply;
            let target = target("echo.example.");
            let lookup = resolver.look_up(&target, LookupFamily::Auto, at_six);
            lookup.await.answer
        };
        let broken = || Reply::Code(ResponseCode::ServFail);
        let none = || Reply::Code(ResponseCode::NoError);
        let addresses_six = || Reply::Addresses(vec![address("fd00::1")]);
        for at_six in [false, true] {
            let found = answer(addresses_six(), at_six).await;
            assert_eq!(found, addresses(&["fd00::1"]));
            let found = answer(none(), at_six).await;
            assert_eq!(found, addresses(&["10.0.0.1"]), "DNS says so");
        }
        assert_eq!(answer(broken(), true).await, Answer::Failed);
        assert_eq!(answer(broken(), false).await, addresses(&["10.0.0.1"]));
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
            .look_up(&target("echo.example."), LookupFamily::Auto, false)
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
        };
        let lookup = resolver
            .look_up(&target("10.0.0.9"), LookupFamily::V4Only, false)
            .await;
        assert_eq!(lookup.answer, addresses(&["10.0.0.9"]));
        let lookup = resolver
            .look_up(&target("echo.example."), LookupFamily::V4Only, false)
            .await;
        assert_eq!(
            lookup,
            Lookup::failed(LookupResult::Error, "there is none".into())
        );
    }
}
