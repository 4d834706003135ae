//! What `local-stack` shows: both services called through the proxy, and who served how much of it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use proto::api::{
    EchoRequest, ReverseRequest, echo_client::EchoClient, reverse_client::ReverseClient,
};
use tonic::{Response, Status};

use crate::{client, stack::Stack};

/// One RPC that went well.
#[derive(Debug)]
pub struct Call<'a> {
    /// Which one of its service's, from 0.
    pub number: usize,
    /// `package.Service/Method`.
    pub method: &'static str,
    /// The content of the request.
    pub sent: &'static str,
    /// The content of the response.
    pub received: &'a str,
    /// Who served it.
    pub hostname: &'a str,
    /// From the call to its response.
    pub time: Duration,
}

/// How many RPCs each replica served.
#[derive(Debug, Default)]
pub struct Served(BTreeMap<String, usize>);

impl Served {
    /// The RPCs that the replica of this name served.
    pub fn by(&self, hostname: &str) -> usize {
        self.0.get(hostname).copied().unwrap_or(0)
    }

    /// Is this the count of a replica, in an even balance?
    pub fn is_a_share(&self, count: usize) -> bool {
        count * REPLICAS == RPCS
    }

    /// Has each of the four replicas served the same?
    pub fn is_even(&self) -> bool {
        self.0.len() == 2 * REPLICAS && self.0.values().all(|count| self.is_a_share(*count))
    }
}

/// Calls both services [`RPCS`] times through the proxy, all on one connection, and tells `each` call.
///
/// # Errors
/// The first RPC that fails.
pub async fn demonstrate(stack: &Stack, mut each: impl FnMut(&Call<'_>)) -> anyhow::Result<Served> {
    let channel = client::channel(stack.listener, stack.tls_config())
        .await
        .context("cannot connect")?;
    let mut echo = EchoClient::new(channel.clone());
    let mut reverse = ReverseClient::new(channel);
    let mut served = Served::default();
    let mut tell = |call: Call<'_>| {
        each(&call);
        *served.0.entry(call.hostname.to_owned()).or_default() += 1;
    };
    for number in 0..RPCS {
        let (method, sent, start) = ("api.Echo/Echo", "echo", Instant::now());
        let content = sent.to_owned();
        let reply = echo.echo(EchoRequest { content }).await;
        let reply = reply.map_err(|status| failure(method, &status))?;
        tell(Call {
            number,
            method,
            sent,
            received: &reply.get_ref().content,
            hostname: hostname(&reply)?,
            time: start.elapsed(),
        });
    }
    for number in 0..RPCS {
        let (method, sent, start) = ("api.Reverse/Reverse", "Grüße", Instant::now());
        let content = sent.to_owned();
        let reply = reverse.reverse(ReverseRequest { content }).await;
        let reply = reply.map_err(|status| failure(method, &status))?;
        tell(Call {
            number,
            method,
            sent,
            received: &reply.get_ref().content,
            hostname: hostname(&reply)?,
            time: start.elapsed(),
        });
    }
    Ok(served)
}

fn hostname<T>(reply: &Response<T>) -> anyhow::Result<&str> {
    let value = reply
        .metadata()
        .get("hostname")
        .context("a response without the header hostname")?;
    Ok(value.to_str()?)
}

fn failure(method: &str, status: &Status) -> anyhow::Error {
    anyhow::anyhow!(
        "{method} ended with {:?}: {}",
        status.code(),
        status.message()
    )
}

/// To each service: a multiple of the replicas' number, so that an even balance is exact.
pub const RPCS: usize = 20;
/// Of each service.
const REPLICAS: usize = 2;
