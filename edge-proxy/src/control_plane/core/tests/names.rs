//! What name servers say, or fail to say.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_look_up_knows_whether_the_addresses_are_ipv6() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1]).await;
    let told = async |lookup: Lookup| {
        network.look_up_says("echo.", lookup);
        // Two look-ups, at least.
        pass(15 * SECOND).await;
        network.0.lock().unwrap().at_six
    };
    let failed = || Lookup::failed(LookupResult::ServFail, "on purpose".into());
    assert!(!told(failed()).await);
    let six = Lookup::found(["fd00::1".parse().unwrap()], 8081);
    assert!(told(six).await);
    assert!(told(failed()).await, "as long as it lasts");
    assert!(!told(Lookup::found([ip(1).ip()], 8081)).await);
}

#[tokio::test(start_paused = true)]
async fn look_ups_come_at_the_refresh_rate() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let _running = Running::start(network.clone());
    pass(60 * SECOND).await;
    let looked_up = network.looked_up("echo.");
    assert!(looked_up.len() >= 10);
    assert!(
        looked_up
            .windows(2)
            .all(|pair| about(pair[1] - pair[0], 5 * SECOND)),
        "{looked_up:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_refresh_rate_counts_from_the_answer_and_look_ups_do_not_come_in_step() {
    let network = Scripted::default();
    let lookup = Lookup::found([ip(1).ip()], 8081);
    network.look_up_does("echo.", Answered::Later(4 * SECOND, lookup));
    let _running = Running::start(network.clone());
    pass(200 * SECOND).await;
    let looked_up = network.looked_up("echo.");
    assert!(looked_up.len() >= 10);
    let pauses: Vec<_> = looked_up
        .windows(2)
        .map(|pair| pair[1] - pair[0] - 4 * SECOND)
        .collect();
    assert!(
        pauses.iter().all(|pause| about(*pause, 5 * SECOND)),
        "{pauses:?}"
    );
    assert!(pauses.windows(2).any(|w| w[0] != w[1]), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn dns_that_fails_changes_nothing_and_says_so() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1, 2]).await;
    let answered = running.report().clusters[0].targets[0].last_answer_at_ms;
    assert!(answered.is_some());
    for result in [
        LookupResult::Timeout,
        LookupResult::ServFail,
        LookupResult::Refused,
        LookupResult::Error,
    ] {
        network.look_up_says("echo.", Lookup::failed(result, "on purpose".into()));
        pass(3600 * SECOND).await;
        assert_eq!(eligible(&running.reader.load().clusters[0]), [1, 2]);
        let report = running.report();
        let target = &report.clusters[0].targets[0];
        assert_eq!(target.last_result, Some(result));
        assert_eq!(target.last_error.as_ref().unwrap().message, "on purpose");
        assert_eq!(target.last_answer_at_ms, answered);
        assert!(report.clusters[0].lookups[&result] > 600);
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_says_what_becomes_of_the_endpoints_when_dns_gives_none() {
    let failed = || Lookup::failed(LookupResult::ServFail, "on purpose".into());
    let empty = || Lookup::empty("on purpose");
    for (check, lookup, told) in [
        (CHECKED, failed(), "the endpoints that are known stay"),
        (CHECKED, empty(), "while their checks pass"),
        (UNCHECKED, empty(), "the endpoints that are known stay"),
    ] {
        let log = Log::default();
        let _guard = log.capture();
        let network = Scripted::default();
        network.name("echo.", &[1, 2]);
        let mut running = Running::with(network.clone(), &yaml(&[("echo", check)]), None);
        running.until_eligible(&[1, 2]).await;
        network.look_up_says("echo.", lookup);
        pass(60 * SECOND).await;
        let lines = log.lines("on purpose");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains(told) && lines[0].contains("endpoints=2"),
            "{lines:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_removes_only_what_fails_its_checks() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1, 2]).await;
    network.look_up_says("echo.", Lookup::empty("on purpose"));
    pass(60 * SECOND).await;
    assert_eq!(eligible(&running.reader.load().clusters[0]), [1, 2]);
    assert_eq!(
        running.report().clusters[0].endpoints[0].standing,
        Standing::Withdrawn
    );
    network.check(1, refused());
    let snapshot = running.until_eligible(&[2]).await;
    assert_eq!(snapshot.clusters[0].endpoints.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_without_checks_keeps_its_last_set_on_an_empty_answer() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::with(network.clone(), &yaml(&[("echo", UNCHECKED)]), None);
    running.until_eligible(&[1, 2]).await;
    network.look_up_says("echo.", Lookup::empty("on purpose"));
    pass(60 * SECOND).await;
    assert_eq!(eligible(&running.reader.load().clusters[0]), [1, 2]);
    assert!(network.checked(1).is_empty());
    network.name("echo.", &[2, 3]);
    running.until_eligible(&[2, 3]).await;
}

#[tokio::test(start_paused = true)]
async fn ten_minutes_without_good_dns_in_any_shape_change_nothing() {
    let network = Scripted::default();
    network.name("echo.", &[1, 2]);
    let mut running = Running::start(network.clone());
    running.until_eligible(&[1, 2]).await;
    let fails = |result| Answered::Lookup(Lookup::failed(result, "on purpose".into()));
    let shapes = [
        fails(LookupResult::Timeout),
        fails(LookupResult::ServFail),
        fails(LookupResult::Refused),
        fails(LookupResult::Error),
        Answered::Lookup(Lookup {
            result: LookupResult::NoName,
            ..Lookup::empty("no such name")
        }),
        Answered::Lookup(Lookup::empty("no addresses")),
        Answered::Later(
            4 * SECOND,
            Lookup::failed(LookupResult::Timeout, "late".into()),
        ),
        Answered::Panic,
    ];
    for shape in shapes {
        let says = |answered: Answered| {
            let mut script = network.0.lock().unwrap();
            script.names.insert("echo.".into(), answered);
        };
        says(shape.clone());
        for _ in 0..60 {
            pass(10 * SECOND).await;
            let snapshot = running.reader.load();
            assert_eq!(eligible(&snapshot.clusters[0]), [1, 2], "{shape:?}");
        }
        // Believed as soon as it is back.
        network.name("echo.", &[1, 2, 3]);
        running.until_eligible(&[1, 2, 3]).await;
        network.name("echo.", &[1, 2]);
        running.until_eligible(&[1, 2]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_that_flaps_between_1_and_50_addresses_is_followed_and_nothing_is_left_behind() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let refresh = "health_check: { interval: 1s, timeout: 1s }";
    let text = yaml(&[("echo", refresh)]).replace("dns_refresh_rate: 5s", "dns_refresh_rate: 1s");
    let mut running = Running::with(network.clone(), &text, None);
    running.until_eligible(&[1]).await;
    for second in 0..60_u32 {
        // 1 to 50 addresses, of which every second one is another than the second before.
        let count = 1 + second.wrapping_mul(2_654_435_761) % 50;
        let last: Vec<u8> = (0..count)
            .map(|i| (1 + (i * (1 + second % 2)) % 200) as u8)
            .collect();
        network.name("echo.", &last);
        pass(SECOND).await;
        let cluster = running.reader.load().clusters[0].clone();
        assert!(!cluster.eligible.is_empty(), "second {second}");
    }
    network.name("echo.", &[7, 8]);
    let snapshot = running.until_eligible(&[7, 8]).await;
    assert_eq!(snapshot.clusters[0].endpoints.len(), 2);
    assert_eq!(running.report().panics, 0);
    // Nobody else is checked any more.
    pass(2 * SECOND).await;
    let others: usize = (9..250).map(|last| network.checked(last).len()).sum();
    pass(10 * SECOND).await;
    let later: usize = (9..250).map(|last| network.checked(last).len()).sum();
    assert_eq!(others, later);
}
