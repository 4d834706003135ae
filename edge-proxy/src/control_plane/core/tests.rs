//! The loop under paused time, over a scripted network: what is looked at when, and what is published of it.

mod many;
mod names;
mod passive;
mod reload;
mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Waker},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use self::support::{
    Answered, CHECKED, Checked, Running, Scripted, UNCHECKED, about, core, eligible, ip, pass,
    refused, yaml,
};
use super::{Core, HINTS_PACE, Step, jobs::Ended};
use crate::{
    control_plane::{
        Command, ControlHandle,
        config::Config,
        discovery::Lookup,
        health::Outcome,
        status::{CheckResult, Detected, LookupResult, Standing},
    },
    snapshot::{
        Health, Snapshot,
        streak::{Detector, Ending},
    },
    telemetry::captured::Log,
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn endpoints_serve_after_their_first_pass() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    network.check_does(2, Checked::Never);
    let mut running = Running::start(network);
    let snapshot = running.until_eligible(&[1]).await;
    assert_eq!(snapshot.clusters[0].endpoints.len(), 2);
    assert_eq!(snapshot.clusters[0].endpoints[1].health, Health::Unknown);
}

#[tokio::test(start_paused = true)]
async fn checks_start_at_once_and_come_at_the_interval() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let begin = Instant::now();
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    pass(100 * SECOND).await;
    let checked = network.checked(1);
    assert_eq!(checked[0], begin);
    assert!(
        checked
            .windows(2)
            .all(|pair| about(pair[1] - pair[0], 10 * SECOND)),
        "{checked:?}"
    );
    assert!(
        checked.windows(3).any(|w| w[1] - w[0] != w[2] - w[1]),
        "they don't come in step"
    );
}

#[tokio::test(start_paused = true)]
async fn who_stays_in_the_answer_keeps_its_health() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    network.check(2, Outcome::NotServing("on purpose".into()));
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    pass(SECOND).await;
    let before = running.reader.load().clusters[0].endpoints.clone();
    network.check_does(3, Checked::Never);
    network.name("echo.", &[1, 2, 3]);
    let checks = [1, 2].map(|last| network.checked(last).len());
    let snapshot = running.until(|cluster| cluster.endpoints.len() == 3).await;
    for (before, after) in before.iter().zip(&snapshot.clusters[0].endpoints) {
        assert_eq!(before.shared.id, after.shared.id);
        assert_eq!(before.health, after.health);
        assert_ne!(after.health, Health::Unknown);
    }
    assert_eq!(snapshot.clusters[0].endpoints[2].health, Health::Unknown);
    // The answer alone has no one checked anew: only the interval does.
    let again = [1, 2].map(|last| network.checked(last).len());
    assert!(again.iter().zip(checks).all(|(now, then)| now - then <= 1));
}

#[tokio::test(start_paused = true)]
async fn the_log_and_the_page_say_that_there_is_no_health_service() {
    let log = Log::default();
    let _guard = log.capture();
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    let text = "Unimplemented: ".into();
    network.check(1, Outcome::Status { code: 12, text });
    let snapshot = running.until_eligible(&[]).await;
    let endpoint = &snapshot.clusters[0].endpoints[0];
    let Health::Unhealthy(reason) = &endpoint.health else {
        panic!("{:?}", endpoint.health)
    };
    assert!(reason.contains("UNIMPLEMENTED"), "{reason}");
    let lines = log.lines("has no health service");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(&*endpoint.shared.label), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_endpoint_is_ejected_after_two_checks_a_second_apart() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1, 2]).await;
    network.check(1, refused());
    let snapshot = running.until_eligible(&[2]).await;
    let ejected = Instant::now();
    let endpoint = &snapshot.clusters[0].endpoints[0];
    assert!(matches!(endpoint.health, Health::Unhealthy(_)) && !endpoint.close_connections);
    let checked = network.checked(1);
    assert_eq!(checked.last(), Some(&ejected));
    assert!(about(ejected - checked[checked.len() - 2], SECOND));

    network.check(1, Outcome::Serving);
    running.until_eligible(&[1, 2]).await;
    assert_eq!(
        network.checked(1).len(),
        checked.len() + 2,
        "two passes in a row"
    );
    let report = running.next_report().await;
    assert_eq!(report.clusters[0].checks[&CheckResult::Connection], 2);
    assert_eq!(
        report.clusters[0].endpoints[0]
            .last_check
            .as_ref()
            .unwrap()
            .detail,
        "SERVING"
    );
}

#[tokio::test(start_paused = true)]
async fn ejected_by_time_outs_is_told_to_close_its_connections() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    network.check(1, Outcome::TimedOut(SECOND));
    let snapshot = running.until_eligible(&[]).await;
    assert!(snapshot.clusters[0].endpoints[0].close_connections);
    network.check(1, Outcome::Serving);
    let snapshot = running
        .until(|cluster| !cluster.endpoints[0].close_connections)
        .await;
    assert!(
        snapshot.clusters[0].eligible.is_empty(),
        "one pass isn't enough to come back"
    );
}

/// How long after its backends answer again a cluster is back whose endpoints were all ejected, with this interval
/// after a failure; and how far apart the checks were meanwhile, at least.
async fn back_after_a_freeze(edge: &str) -> (Duration, Duration) {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let more = CHECKED.replace("timeout: 1s", &format!("timeout: 1s, {edge}"));
    let mut running = Running::with(network.clone(), &yaml(&[("echo", &more)]), None);
    running.until_eligible(&[1, 2]).await;
    for last in [1, 2] {
        network.check(last, Outcome::TimedOut(SECOND));
    }
    running.until_eligible(&[]).await;
    let checked = network.checked(2).len();
    pass(15 * SECOND).await;
    for last in [1, 2] {
        network.check(last, Outcome::Serving);
    }
    let thawed = Instant::now();
    running.until(|cluster| !cluster.eligible.is_empty()).await;
    let back = thawed.elapsed();
    let down = &network.checked(2)[checked..];
    let apart = down.windows(2).map(|two| two[1] - two[0]).min();
    (back, apart.unwrap())
}

#[tokio::test(start_paused = true)]
async fn without_a_healthy_endpoint_checks_come_as_after_a_failure_but_once_a_second_at_most() {
    // Two passes, whatever the interval of 10 s.
    let (back, apart) = back_after_a_freeze("unhealthy_edge_interval: 1s").await;
    assert!(back <= 2 * SECOND, "{back:?}");
    assert!(about(apart, SECOND), "{apart:?}");
    let (back, apart) = back_after_a_freeze("unhealthy_edge_interval: 100ms").await;
    assert!(back <= 2 * SECOND, "{back:?}");
    assert!(about(apart, SECOND), "{apart:?}");
    let (back, apart) = back_after_a_freeze("unhealthy_edge_interval: 4s").await;
    assert!(
        back > 4 * SECOND && back <= 8 * SECOND,
        "as configured: {back:?}"
    );
    assert!(about(apart, 4 * SECOND), "{apart:?}");
}

#[tokio::test(start_paused = true)]
async fn with_a_healthy_endpoint_the_others_are_checked_at_the_interval() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    network.check(2, refused());
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    pass(15 * SECOND).await;
    let checked = network.checked(2).len();
    pass(30 * SECOND).await;
    assert!(network.checked(2).len() - checked <= 4);
}

#[tokio::test(start_paused = true)]
async fn a_rollout_never_leaves_the_cluster_without_an_endpoint() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network.clone());
    let old = running.until_eligible(&[1]).await;
    network.check(2, refused());
    network.name("echo.", &[2]);
    let snapshot = running.until(|cluster| cluster.endpoints.len() == 2).await;
    assert_eq!(
        eligible(&snapshot.clusters[0]),
        [1],
        "the old one serves until the new one does"
    );
    assert_eq!(
        snapshot.clusters[0].endpoints[0].shared.id, old.clusters[0].endpoints[0].shared.id,
        "and is still the same"
    );
    assert_eq!(
        running.next_report().await.clusters[0].endpoints[0].standing,
        Standing::Leaving
    );
    network.check(2, Outcome::Serving);
    let snapshot = running.until_eligible(&[2]).await;
    assert_eq!(snapshot.clusters[0].endpoints.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hint_asks_for_a_check_and_a_look_up_now_at_most_once_a_second() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network.clone());
    let snapshot = running.until_eligible(&[1]).await;
    pass(2 * SECOND).await;
    let (checks, look_ups) = (network.checked(1).len(), network.looked_up("echo.").len());
    let endpoint = snapshot.clusters[0].endpoints[0].shared.clone();
    let begin = Instant::now();
    while begin.elapsed() < SECOND / 2 {
        running.hints.suspect(&endpoint);
        pass(SECOND / 100).await;
    }
    assert_eq!(network.checked(1).len(), checks + 1);
    assert_eq!(network.looked_up("echo.").len(), look_ups + 1);
    assert!(*network.checked(1).last().unwrap() - begin < SECOND / 50);
    pass(SECOND).await;
    assert_eq!(
        network.checked(1).len(),
        checks + 2,
        "the storm went on after the first look"
    );
}

/// A loop that doesn't run yet, of endpoints that are never looked up or checked.
fn unhurried() -> (Core, ControlHandle) {
    let text = yaml(&[("echo", "discovery: static")]).replace("echo.:8081", "10.0.0.7:8081");
    let (core, handle, _) = core(&Scripted::default(), &text, None);
    (core, handle)
}

#[tokio::test(start_paused = true)]
async fn a_storm_of_hints_is_looked_at_now_and_then() {
    let (mut core, _handle) = unhurried();
    let endpoint = core.publisher.current().clusters[0].endpoints[0]
        .shared
        .clone();
    let hints = core.hints.clone();
    pass(SECOND).await;
    let begin = Instant::now();
    for look in 0..20 {
        // Again as soon as it was taken.
        hints.suspect(&endpoint);
        // A step may be for the report.
        while endpoint.suspect.load(Ordering::Relaxed) {
            assert_eq!(core.step().await, Step::Continue);
        }
        assert_eq!(begin.elapsed(), look * HINTS_PACE, "the first at once");
    }
}

#[tokio::test]
async fn whatever_is_ready_all_others_have_a_turn_between_two_steps() {
    let (core, handle) = unhurried();
    let answers: Vec<_> = [false, true, false]
        .into_iter()
        .map(|serving| {
            let (done, answer) = oneshot::channel();
            let order = Command::SetServing(serving, done);
            handle.commands.send(order).unwrap();
            answer
        })
        .collect();
    let mut run = pin!(core.run());
    let mut context = Context::from_waker(Waker::noop());
    let mut answered = Vec::new();
    for mut answer in answers {
        assert!(run.as_mut().poll(&mut context).is_pending());
        answered.push(answer.try_recv().is_ok());
    }
    assert_eq!(answered, [true; 3], "one with each turn of its own");
    assert!(!handle.status.report().readiness.serving);
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_check_or_a_look_up_is_counted_and_comes_again_within_a_second() {
    let network = Scripted::default();
    network.look_up_does("echo.", Answered::Panic);
    let mut running = Running::start(network.clone());
    let begin = Instant::now();
    pass(SECOND / 2).await;
    assert_eq!(running.report().panics, 1);
    network.check_does(1, Checked::Panic);
    network.name("echo.", &[1]);
    running.until(|cluster| cluster.endpoints.len() == 1).await;
    assert!(begin.elapsed() <= SECOND, "{:?}", begin.elapsed());
    pass(SECOND / 2).await;
    assert_eq!(running.report().panics, 2);
    network.check(1, Outcome::Serving);
    running.until_eligible(&[1]).await;
    let checked = network.checked(1);
    assert!(checked[1] - checked[0] <= SECOND, "{checked:?}");
}

#[tokio::test(start_paused = true)]
async fn what_panics_before_it_runs_or_long_after_the_start_is_back_in_a_second_too() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1, 2]).await;
    // The look-ups are 5 s apart, the checks 10.
    for panics in [
        (Answered::PanicAtOnce, Checked::PanicAtOnce),
        (Answered::Panic, Checked::Panic),
    ] {
        let before = running.report().panics;
        {
            let mut script = network.0.lock().unwrap();
            script.names.insert("echo.".into(), panics.0);
            script.checks.insert(ip(1), panics.1);
        }
        // A check may be a tenth late, and so may the next after its panic.
        pass(14 * SECOND).await;
        assert!(running.report().panics >= before + 2);
        let (looked_up, checked) = (network.looked_up("echo."), network.checked(1));
        for times in [looked_up, checked] {
            let last = &times[times.len() - 2..];
            assert!(last[1] - last[0] <= SECOND + SECOND / 5, "{last:?}");
        }
        // Nothing else has noticed: the last answer holds, and the other endpoint's checks.
        let snapshot = running.reader.load();
        assert_eq!(eligible(&snapshot.clusters[0]), [1, 2]);
        network.name("echo.", &[1, 2]);
        network.check(1, Outcome::Serving);
        pass(12 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn first_answers_are_waited_for_but_not_more_than_five_seconds() {
    let begin = Instant::now();
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let running = Running::start(network);
    running.handle.first_answers().await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
    drop(running);

    // Never answered: the name isn't in the script.
    let log = Log::default();
    let _guard = log.capture();
    let running = Running::start(Scripted::default());
    running.handle.first_answers().await;
    assert_eq!(begin.elapsed(), 5 * SECOND);
    let lines = log.lines("waited in vain for a healthy endpoint; the cluster begins");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("cluster=\"echo\""), "{lines:?}");
    assert!(lines[0].contains("echo.: no answer yet"), "{lines:?}");
    drop(running);

    // A failure is no answer, nor is one without an address.
    for lookup in [
        Lookup::failed(LookupResult::ServFail, "on purpose".into()),
        Lookup::empty("on purpose"),
    ] {
        let network = Scripted::default();
        network.look_up_says("echo.", lookup.clone());
        let begin = Instant::now();
        let running = Running::start(network.clone());
        pass(SECOND / 2).await;
        assert!(!running.report().readiness.warmed_up, "{lookup:?}");
        network.name("echo.", &[1]);
        running.handle.first_answers().await;
        assert!(
            begin.elapsed() <= SECOND + SECOND / 5,
            "asked again soon: {:?}",
            begin.elapsed()
        );
        drop(running);

        // One that never has an address holds up nothing else.
        let network = Scripted::default();
        network.look_up_says("echo.", lookup);
        let begin = Instant::now();
        let running = Running::start(network.clone());
        running.handle.first_answers().await;
        assert_eq!(begin.elapsed(), 5 * SECOND);
        assert!(running.report().readiness.warmed_up);
    }
}

#[tokio::test(start_paused = true)]
async fn warmed_up_is_after_all_first_checks_or_five_seconds_and_for_good() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    network.check(2, refused());
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    pass(SECOND / 10).await;
    assert!(
        running.report().readiness.warmed_up,
        "a failed check has ended, too"
    );
    network.check_does(3, Checked::Never);
    network.name("echo.", &[1, 2, 3]);
    running.until(|cluster| cluster.endpoints.len() == 3).await;
    assert!(
        running.report().readiness.warmed_up,
        "a new endpoint doesn't make it unready"
    );
    drop(running);

    let network = Scripted::default();
    network.name("echo.", &[1]);
    network.check_does(1, Checked::Never);
    let running = Running::start(network);
    pass(5 * SECOND - SECOND / 10).await;
    assert!(!running.report().readiness.warmed_up);
    pass(SECOND / 5).await;
    assert!(running.report().readiness.warmed_up);
}

#[tokio::test(start_paused = true)]
async fn the_log_has_the_reason_that_stands() {
    let log = Log::default();
    let _guard = log.capture();
    let unimplemented = Outcome::Status {
        code: 12,
        text: "UNIMPLEMENTED".into(),
    };
    let timed_out = Outcome::TimedOut(SECOND);
    let network = Scripted::default();
    network.name("echo.", &[1]);
    network.check(1, refused());
    let mut running = Running::start(network.clone());
    let mut told = Vec::new();
    // How often each is seen, and whether the log tells it then.
    for (outcome, times, tells) in [
        (refused(), 3, true),
        (unimplemented, 2, true),
        (timed_out.clone(), 1, false),
        (Outcome::GoAway, 3, false),
        (refused(), 1, false),
        (timed_out.clone(), 3, true),
        (refused(), 1, false),
        (timed_out, 2, false),
        (Outcome::Serving, 3, true),
        (Outcome::NotServing("NOT_SERVING".into()), 2, true),
    ] {
        let before = network.checked(1).len();
        network.check(1, outcome.clone());
        while network.checked(1).len() < before + times {
            pass(SECOND / 10).await;
        }
        // For the last one's end.
        pass(SECOND / 10).await;
        if tells {
            told.push(match outcome {
                Outcome::Serving => "healthy".into(),
                failure => format!("reason=\"{failure}\""),
            });
        }
        let lines = log.lines("healthy cluster=\"echo\"");
        assert_eq!(lines.len(), told.len(), "{lines:?}");
        for (line, told) in lines.iter().zip(&told) {
            assert!(line.contains(&**told), "{line}: {told}");
        }
    }
    running.until_eligible(&[]).await;
}

#[tokio::test(start_paused = true)]
async fn told_to_fail_it_says_so_everywhere_at_once() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network);
    running.until_eligible(&[1]).await;
    for serving in [false, true] {
        running.handle.set_serving(serving).await;
        assert_eq!(running.reader.load().serving, serving);
        assert_eq!(running.report().readiness.serving, serving);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_changes_nothing_publishes_nothing() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network);
    let generation = running.until_eligible(&[1, 2]).await.generation;
    pass(3600 * SECOND).await;
    assert_eq!(running.reader.load().generation, generation);
}

#[tokio::test(start_paused = true)]
async fn many_checks_make_few_reports_and_none_that_is_old() {
    let network = Scripted::default();
    let all: Vec<u8> = (1..=250).collect();
    network.name("echo.", &all);
    let more = CHECKED.replace("interval: 10s", "interval: 1s");
    let mut running = Running::with(network.clone(), &yaml(&[("echo", &more)]), None);
    running.until_eligible(&all).await;
    pass(5 * SECOND).await;
    let checked = network.0.lock().unwrap().checked.len();
    let mut reports = vec![running.report()];
    let begin = Instant::now();
    while begin.elapsed() < 2 * SECOND {
        pass(SECOND / 1000).await;
        let report = running.report();
        if !Arc::ptr_eq(&report, &reports[reports.len() - 1]) {
            reports.push(report);
        }
    }
    let checked = network.0.lock().unwrap().checked.len() - checked;
    assert!(checked >= 400, "{checked}");
    assert!(reports.len() <= 42, "{}", reports.len());
    // All are in it but those of the last moment.
    let passes = running.report().clusters[0].checks[&CheckResult::Pass];
    let ever = network.0.lock().unwrap().checked.len();
    assert!(ever as u64 - passes <= 40, "{ever}, {passes}");
    // What workers are to know waits for nothing.
    network.check(7, Outcome::NotServing("on purpose".into()));
    let snapshot = running.until(|cluster| cluster.eligible.len() == 249).await;
    assert_eq!(network.checked(7).last(), Some(&Instant::now()));
    assert!(matches!(
        snapshot.clusters[0].endpoints[6].health,
        Health::Unhealthy(_)
    ));
}

#[tokio::test(start_paused = true)]
async fn not_every_process_begins_with_the_same_endpoint() {
    let text = yaml(&[("echo", UNCHECKED)]);
    let starts = (0..64).map(|_| {
        let (core, ..) = core(&Scripted::default(), &text, None);
        let turn = &core.clusters[0].published.turn;
        turn.first.load(Ordering::Relaxed) % 2
    });
    // They are all the same by chance once in 2^63 runs.
    assert_eq!(starts.collect::<BTreeSet<_>>().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn static_endpoints_are_there_from_the_first_snapshot() {
    let text = yaml(&[("echo", "discovery: static")]).replace("echo.:8081", "10.0.0.7:8081");
    let mut running = Running::with(Scripted::default(), &text, None);
    let first = running.reader.load();
    assert_eq!(
        (first.generation, eligible(&first.clusters[0])),
        (1, vec![7])
    );
    running.handle.first_answers().await;
    assert!(running.network.0.lock().unwrap().looked_up.is_empty());
}
