//! More than the backends can do.
//!
//! The backend is a model: so many RPCs at a time, each for so long, and all others wait in a queue without end, as they do in
//! a server that limits nothing. An RPC whose client has gone is worked on all the same. So its capacity is known, and an
//! overload that nobody stops makes every RPC wait for longer than its client does.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::{sync::Semaphore, time::sleep};
use tonic::Code;

use super::{Load, Running};
use crate::{
    attack::{Finding, Options, seconds},
    load::{self, tally::Tally},
    proxy::Proxy,
    scripted::{Exchange, Scripted, head, trailers},
};

/// Three times as much as it can do, with `circuit_breakers.max_requests` at twice what it has at a time.
pub(super) async fn backends(options: Options) -> anyhow::Result<Vec<Finding>> {
    let time = options
        .scale
        .of(Duration::from_secs(20), Duration::from_secs(2));
    let limits = json!({ "max_requests": 2 * AT_A_TIME });
    let (peak, _) = offered(&options, 1, limits.clone(), time).await?;
    let (overloaded, mut proxy) = offered(&options, 3, limits, time).await?;
    let good = |tally: &Tally| tally.ok as f64 / time.as_secs_f64();
    let share = good(&overloaded) / good(&peak).max(1.0);
    let mut refused: Vec<_> = overloaded
        .failures()
        .iter()
        .map(|failure| {
            failure
                .ended
                .duration_since(failure.begun)
                .unwrap_or_default()
        })
        .collect();
    refused.sort();
    let at = |share: usize| refused.get(refused.len() * share / 100).copied();
    let told = overloaded
        .failures()
        .iter()
        .filter(|failure| failure.message.ends_with("max_requests"))
        .count();
    // On a machine that has no time, for this model or for the load, RPCs run out of their own.
    let late = overloaded
        .failures()
        .iter()
        .filter(|failure| failure.code == Code::DeadlineExceeded)
        .count();
    let mut findings = vec![
        Finding::exactly(
            "of the failed, refused by the limit, or out of time",
            told + late,
            refused.len(),
        ),
        Finding::new(
            "of the failed, refused by the limit: some",
            told.to_string(),
            told > 0,
        ),
    ];
    if options.strict {
        findings.push(Finding::new(
            "RPCs answered: ≥ 80 % of what is answered without overload",
            format!(
                "{:.0} %: {:.0} a second, without {:.0}",
                100.0 * share,
                good(&overloaded),
                good(&peak)
            ),
            share >= 0.8,
        ));
        findings.push(Finding::exactly("of the failed, out of time", late, 0));
        let median = at(50).map_or_else(|| "none".to_owned(), seconds);
        findings.push(Finding::within(
            &format!("p99 of the refusals (half of them: {median})"),
            at(99),
            Duration::from_millis(20),
        ));
    }
    findings.push(proxy.sound());
    Ok(findings)
}

/// The account of so many times the backend's capacity.
async fn offered(
    options: &Options,
    times: u32,
    limits: serde_json::Value,
    time: Duration,
) -> anyhow::Result<(Tally, Running)> {
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let backend = Scripted::start(move |mut exchange: Exchange| {
        let places = places.clone();
        async move {
            let body = exchange.body().await.unwrap_or_default();
            // It is never closed.
            if let Ok(_place) = places.acquire().await {
                sleep(EACH).await;
            }
            exchange.reply(head(200), &body, Some(trailers(0)));
        }
    })
    .await;
    let builder = Proxy::to([&backend])
        .route("/api.Echo/", "test")
        .with("circuit_breakers", limits);
    let proxy = Running::start(options, builder).await;
    let load = Load::start(load::Options {
        timeout: Duration::from_secs(1),
        ..proxy.load(times * CAPACITY, 20)
    });
    sleep(time).await;
    Ok((load.end().await?, proxy))
}

const AT_A_TIME: usize = 10;
const EACH: Duration = Duration::from_millis(20);
/// RPCs a second: `AT_A_TIME` by `EACH`.
const CAPACITY: u32 = 500;
