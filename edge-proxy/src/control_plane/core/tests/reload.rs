//! What a changed configuration does to a running control plane.

use super::*;

/// A configuration file that can be changed.
struct File(tempfile::TempDir);

impl File {
    fn new(text: &str) -> Self {
        let file = Self(tempfile::tempdir().unwrap());
        file.write(text);
        file
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("edge.yaml")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }
}

/// What runs with this configuration in a file, and serves `echo.` at one address; and its first snapshot with that.
async fn serving(network: &Scripted, text: &str) -> (File, Running, Arc<Snapshot>) {
    network.name("echo.", &[1]);
    let file = File::new(text);
    let mut running = Running::with(network.clone(), text, Some(&file.path()));
    let snapshot = running.until_eligible(&[1]).await;
    (file, running, snapshot)
}

#[tokio::test(start_paused = true)]
async fn a_reload_resolves_and_checks_new_clusters_before_it_serves_them() {
    let network = Scripted::default();
    let old = yaml(&[("echo", CHECKED)]);
    let (file, mut running, before) = serving(&network, &old).await;
    before.clusters[0].turn.first.store(7, Ordering::Relaxed);

    network.name("reverse.", &[2]);
    network.check(2, Outcome::GoAway);
    file.write(&yaml(&[("reverse", CHECKED), ("echo", CHECKED)]));
    let handle = running.handle.clone();
    let reload = tokio::spawn(async move { handle.reload().await });
    pass(2 * SECOND).await;
    assert_eq!(
        running.reader.load().clusters.len(),
        1,
        "the new cluster isn't checked yet"
    );
    assert!(running.report().configuration.pending);
    network.check(2, Outcome::Serving);
    assert_eq!(reload.await.unwrap(), Ok(()));

    let after = running.reader.load();
    assert_eq!(after.clusters.len(), 2);
    assert_eq!(
        eligible(&after.clusters[0]),
        [2],
        "healthy in the first snapshot that routes to it"
    );
    assert_eq!(after.routes.routes().len(), 2);
    let (old, new) = (&before.clusters[0], &after.clusters[1]);
    assert_eq!(
        old.endpoints[0].shared.id, new.endpoints[0].shared.id,
        "the old one stays"
    );
    assert_eq!(new.turn.first.load(Ordering::Relaxed), 7);
    assert_eq!(eligible(new), [1]);
    let report = running.report();
    assert_eq!(
        (report.configuration.reloads, report.configuration.pending),
        (1, false)
    );
    assert_eq!(report.generation, after.generation);
}

#[tokio::test(start_paused = true)]
async fn a_reload_waits_at_most_five_seconds_for_its_clusters() {
    let network = Scripted::default();
    let old = yaml(&[("echo", CHECKED)]);
    let (file, mut running, _) = serving(&network, &old).await;
    file.write(&yaml(&[("echo", CHECKED), ("nobody", CHECKED)]));
    let begin = Instant::now();
    assert_eq!(running.handle.reload().await, Ok(()));
    assert!(about(begin.elapsed(), 5 * SECOND), "{:?}", begin.elapsed());
    assert_eq!(running.reader.load().clusters.len(), 2);
}

/// How long a reload of this file takes; in no snapshot until then, nor in the first with it, is the cluster without an
/// endpoint. `after` half a second something happens.
async fn reloads_without_a_gap(
    file: &File,
    running: &mut Running,
    text: &str,
    after: impl FnOnce(),
) -> Duration {
    file.write(text);
    let handle = running.handle.clone();
    let begin = Instant::now();
    let reload = tokio::spawn(async move { handle.reload().await.map(|()| begin.elapsed()) });
    let mut after = Some(after);
    while !reload.is_finished() {
        let cluster = running.reader.load().clusters[0].clone();
        assert!(!cluster.eligible.is_empty(), "{:?}", begin.elapsed());
        if begin.elapsed() >= SECOND / 2
            && let Some(after) = after.take()
        {
            assert_eq!(eligible(&cluster), [1], "the old one");
            after();
        }
        pass(SECOND / 1000).await;
    }
    assert!(after.is_none(), "it didn't wait");
    let cluster = running.reader.load().clusters[0].clone();
    assert_eq!(eligible(&cluster), [2], "the new one");
    reload.await.unwrap().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_name_without_addresses_yet_takes_no_working_cluster_down() {
    let no_name = Lookup {
        result: LookupResult::NoName,
        ..Lookup::empty("no such name")
    };
    for (check, lookup) in [
        (CHECKED, Lookup::empty("no addresses")),
        (CHECKED, no_name.clone()),
        (UNCHECKED, no_name),
    ] {
        let log = Log::default();
        let _guard = log.capture();
        let network = Scripted::default();
        let old = yaml(&[("echo", check)]);
        let (file, mut running, _) = serving(&network, &old).await;
        network.look_up_says("new.", lookup);
        let new = old.replace("\"echo.:", "\"new.:");
        let took = reloads_without_a_gap(&file, &mut running, &new, || {
            network.name("new.", &[2]);
        });
        let took = took.await;
        assert!(took <= SECOND + SECOND / 5, "{took:?}");
        assert_eq!(log.lines("in vain"), [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_check_that_fails_takes_no_working_cluster_down() {
    for failure in [refused(), Outcome::NotServing("NOT_SERVING".into())] {
        let network = Scripted::default();
        let old =
            yaml(&[("echo", CHECKED)]).replace("unhealthy_threshold: 2", "unhealthy_threshold: 1");
        let (file, mut running, _) = serving(&network, &old).await;
        network.name("new.", &[2]);
        network.check(2, failure);
        let new = old.replace("\"echo.:", "\"new.:");
        let took = reloads_without_a_gap(&file, &mut running, &new, || {
            network.check(2, Outcome::Serving);
        });
        let took = took.await;
        assert!(took <= SECOND + SECOND / 5, "{took:?}");
        // From then on at the interval.
        let checked = network.checked(2);
        pass(8 * SECOND).await;
        assert_eq!(network.checked(2), checked);
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_says_why_a_reloaded_cluster_has_no_healthy_endpoint() {
    let status = Outcome::Status {
        code: 5,
        text: "NotFound".into(),
    };
    for (from, to, reason) in [
        ("\"echo.:", "\"typo.:", "typo.: no such name"),
        ("\"echo.:", "\"silent.:", "silent.: no answer yet"),
        (
            "api.Echo, ",
            "api.Typo, ",
            "10.0.0.1:8081: the backend doesn't know the service",
        ),
    ] {
        let log = Log::default();
        let _guard = log.capture();
        let network = Scripted::default();
        network.look_up_says("typo.", Lookup::empty("no such name"));
        let old = yaml(&[("echo", CHECKED)]);
        let (file, mut running, _) = serving(&network, &old).await;
        network.check(1, status.clone());
        file.write(&old.replace(from, to));
        let begin = Instant::now();
        assert_eq!(running.handle.reload().await, Ok(()));
        assert!(about(begin.elapsed(), 5 * SECOND), "{:?}", begin.elapsed());
        assert!(running.reader.load().clusters[0].eligible.is_empty());
        let lines = log.lines("in vain");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("WARN")
                && lines[0].contains("cluster=\"echo\"")
                && lines[0].contains(reason),
            "{lines:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalid_file_changes_nothing() {
    let network = Scripted::default();
    let old = yaml(&[("echo", CHECKED)]);
    let (file, mut running, before) = serving(&network, &old).await;

    file.write(&old.replace("cluster: echo", "cluster: eco"));
    let error = running.handle.reload().await.unwrap_err();
    assert!(
        error.0.contains("edge.yaml") && error.0.contains("eco"),
        "{error}"
    );
    assert_eq!(
        running
            .report()
            .configuration
            .last_error
            .as_ref()
            .unwrap()
            .message,
        error.0
    );
    // The watch may have seen the file too, and refused it a second time.
    assert!(running.report().configuration.rejected >= 1);

    fs::remove_file(file.path()).unwrap();
    assert!(running.handle.reload().await.is_err());
    assert_eq!(running.reader.load().generation, before.generation);

    file.write(&old);
    assert_eq!(
        running.handle.reload().await,
        Ok(()),
        "the same as before is fine"
    );
    assert_eq!(running.report().configuration.last_error, None);
    assert_eq!(running.report().configuration.reloads, 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_right_again_is_told_and_so_is_who_asks() {
    let log = Log::default();
    let _guard = log.capture();
    let told = || log.lines("configuration unchanged").len();
    let old = yaml(&[("echo", CHECKED)]);
    let (file, running, _) = serving(&Scripted::default(), &old).await;
    file.write("listener: {}\n");
    assert!(running.handle.reload().await.is_err());
    assert_eq!(told(), 0);
    file.write(&old);
    timeout(62 * SECOND, async {
        while running.report().configuration.last_error.is_some() {
            pass(SECOND / 10).await;
        }
    })
    .await
    .expect("seen without being asked");
    assert_eq!(told(), 1);
    assert_eq!(running.handle.reload().await, Ok(()));
    assert_eq!(told(), 2);
    // Nobody asks, and nothing is new.
    file.write(&old);
    pass(600 * SECOND).await;
    assert_eq!(told(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_restart_is_refused_whole_with_its_keys() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let old = yaml(&[("echo", CHECKED)]);
    let file = File::new(&old);
    let running = Running::with(network, &old, Some(&file.path()));
    let new = yaml(&[("echo", CHECKED), ("reverse", CHECKED)]).replace("8443", "9443");
    file.write(&format!("workers: 3\n{new}"));
    let error = running.handle.reload().await.unwrap_err();
    assert!(error.0.contains("workers, listener.address"), "{error}");
    assert_eq!(running.report().clusters.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_reread_without_being_asked() {
    let network = Scripted::default();
    network.name("reverse.", &[2]);
    let old = yaml(&[("echo", CHECKED)]);
    let (file, mut running, _) = serving(&network, &old).await;
    file.write(&yaml(&[("reverse", CHECKED)]));
    running.until_eligible(&[2]).await;
}

#[tokio::test(start_paused = true)]
async fn another_check_of_the_same_addresses_keeps_their_identity() {
    let network = Scripted::default();
    let old = yaml(&[("echo", CHECKED)]);
    let (file, mut running, before) = serving(&network, &old).await;
    file.write(&old.replace("api.Echo, ", "api.Other, "));
    assert_eq!(running.handle.reload().await, Ok(()));
    let after = running.reader.load();
    assert_eq!(eligible(&after.clusters[0]), [1]);
    assert_eq!(
        before.clusters[0].endpoints[0].shared.id,
        after.clusters[0].endpoints[0].shared.id
    );
}

/// Of the first cluster's endpoints: which they are, since when they are healthy, and how often they were checked.
fn known(running: &Running) -> Vec<(u64, u64, u64)> {
    let report = running.report();
    let cluster = &report.clusters[0];
    let checks = cluster.checks.get(&CheckResult::Pass).copied();
    let endpoints = cluster.endpoints.iter();
    endpoints
        .map(|e| (e.shared.id, e.health_since_ms, checks.unwrap_or(0)))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn another_family_leaves_the_addresses_that_it_has_as_they_are() {
    for (check, lookup) in [
        (CHECKED, None),
        (
            CHECKED,
            Some(Lookup::failed(LookupResult::Timeout, "on purpose".into())),
        ),
        (CHECKED, Some(Lookup::empty("on purpose"))),
        (UNCHECKED, Some(Lookup::empty("on purpose"))),
    ] {
        let network = Scripted::default();
        let old = yaml(&[("echo", check)]);
        let (file, mut running, _) = serving(&network, &old).await;
        let before = known(&running);
        if let Some(lookup) = lookup {
            network.look_up_says("echo.", lookup);
        }
        let asked = network.looked_up("echo.").len();
        file.write(&old.replace(
            "dns_refresh_rate",
            "dns_lookup_family: v4_only\n    dns_refresh_rate",
        ));
        let begin = Instant::now();
        assert_eq!(running.handle.reload().await, Ok(()));
        assert!(
            begin.elapsed() < SECOND / 10,
            "there is nothing to wait for"
        );
        assert_eq!(known(&running), before);
        pass(2 * SECOND).await;
        assert!(
            network.looked_up("echo.").len() > asked,
            "and is asked at once"
        );
        assert_eq!(known(&running), before);
        // What the new family has takes over.
        network.name("echo.", &[2]);
        running
            .until(|cluster| {
                assert!(!cluster.eligible.is_empty());
                eligible(cluster) == [2]
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_address_that_was_gone_has_another_identity() {
    let network = Scripted::default();
    let old = yaml(&[("echo", CHECKED)]);
    let (file, mut running, before) = serving(&network, &old).await;
    // Another name for it, which is answered after the reload's patience is over.
    let found = Lookup::found([ip(1).ip()], 8081);
    network.look_up_does("late.", Answered::Later(8 * SECOND, found));
    file.write(&old.replace("\"echo.:", "\"late.:"));
    assert_eq!(running.handle.reload().await, Ok(()));
    assert!(running.reader.load().clusters[0].endpoints.is_empty());
    let after = running.until_eligible(&[1]).await;
    // Workers were told that the first one will never come back, and close its connections.
    assert_ne!(
        before.clusters[0].endpoints[0].shared.id,
        after.clusters[0].endpoints[0].shared.id
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_file_there_is_nothing_to_reload() {
    let running = Running::start(Scripted::default());
    assert!(running.handle.reload().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_reload_while_dns_fails_keeps_the_last_good_set() {
    let old = yaml(&[("echo", CHECKED)]);
    let broken = [
        Lookup::failed(LookupResult::ServFail, "on purpose".into()),
        Lookup::empty("on purpose"),
    ];
    let changes = [
        // Asked for as before: it goes on as it is.
        ("interval: 10s", "interval: 20s", vec![1, 2]),
        // Each is asked for something else now, or there is one name more: checked anew, and only that.
        ("api.Echo, ", "api.Other, ", vec![1]),
        (
            "\"echo.:8081\"",
            "\"nobody.:8081\", \"echo.:8081\"",
            vec![1],
        ),
        (
            "[\"echo.:8081\"]",
            "[\"nobody.:8081\", \"echo.:8081\"]\n    dns_lookup_family: v4_only",
            vec![1],
        ),
    ];
    for lookup in broken {
        for (from, to, expected) in &changes {
            let network = Scripted::default();
            network.name("echo.", &[1, 2]);
            let file = File::new(&old);
            let mut running = Running::with(network.clone(), &old, Some(&file.path()));
            let before = running.until_eligible(&[1, 2]).await;
            network.look_up_says("echo.", lookup.clone());
            // Each has been withdrawn, if the answer was an empty one.
            pass(10 * SECOND).await;
            network.check(2, refused());
            file.write(&old.replace(from, to));
            assert_eq!(running.handle.reload().await, Ok(()));
            let after = running.reader.load();
            assert_eq!(eligible(&after.clusters[0]), *expected, "{to}, {lookup:?}");
            let id = |snapshot: &Snapshot| snapshot.clusters[0].endpoints[0].shared.id;
            assert_eq!(id(&before), id(&after));
            let report = running.report();
            let target = report.clusters[0].targets.last().unwrap();
            assert_eq!(target.last_result, Some(lookup.result));
            assert!(target.last_answer_at_ms.is_some(), "as old as it is");
            pass(60 * SECOND).await;
            assert_eq!(eligible(&running.reader.load().clusters[0]), [1]);
            // Believed as soon as it is back.
            network.name("echo.", &[3]);
            running.until_eligible(&[3]).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn counters_never_fall_when_another_cluster_takes_the_place_of_one() {
    let network = Scripted::default();
    let old = yaml(&[("echo", CHECKED)]).replace("dns_refresh_rate: 5s", "dns_refresh_rate: 1s");
    let (file, running, _) = serving(&network, &old).await;
    // The old one goes on for 5 s beside the new one, which isn't answered.
    let two = old
        .replace("[\"echo.:8081\"]", "[\"echo.:8081\", \"nobody.:8081\"]")
        .replace("dns_refresh_rate: 1s", "dns_refresh_rate: 1h");
    file.write(&two);
    let handle = running.handle.clone();
    let reload = tokio::spawn(async move { handle.reload().await });
    let counts = |running: &Running| {
        let cluster = running.report().clusters[0].clone();
        let checks = cluster.checks.get(&CheckResult::Pass).copied();
        (
            cluster
                .lookups
                .get(&LookupResult::Answer)
                .copied()
                .unwrap_or(0),
            checks.unwrap_or(0),
        )
    };
    let mut last = counts(&running);
    while !reload.is_finished() {
        pass(SECOND / 10).await;
        let now = counts(&running);
        assert!(now.0 >= last.0 && now.1 >= last.1, "{last:?}, then {now:?}");
        last = now;
    }
    assert_eq!(reload.await.unwrap(), Ok(()));
    assert!(last.0 >= 4, "the old one's and the new one's: {last:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_still_told_when_an_older_reload_comes_into_force() {
    let network = Scripted::default();
    let old = yaml(&[("echo", CHECKED)]);
    let (file, running, _) = serving(&network, &old).await;
    file.write(&yaml(&[("echo", CHECKED), ("nobody", CHECKED)]));
    let handle = running.handle.clone();
    let reload = tokio::spawn(async move { handle.reload().await });
    pass(SECOND).await;
    assert!(running.report().configuration.pending);
    file.write("nonsense");
    assert!(running.handle.reload().await.is_err());
    assert_eq!(reload.await.unwrap(), Ok(()));
    let report = running.report();
    assert_eq!(report.clusters.len(), 2);
    assert!(
        report.configuration.last_error.is_some(),
        "the file as it is now isn't in force"
    );
}

#[tokio::test(start_paused = true)]
async fn a_shorter_refresh_or_interval_counts_from_the_reload() {
    let network = Scripted::default();
    let old = yaml(&[("echo", CHECKED)])
        .replace("dns_refresh_rate: 5s", "dns_refresh_rate: 10h")
        .replace("interval: 10s", "interval: 10h");
    let (file, mut running, before) = serving(&network, &old).await;
    pass(60 * SECOND).await;
    let seen = |network: &Scripted| (network.looked_up("echo.").len(), network.checked(1).len());
    let (looked_up, checked) = seen(&network);
    let refresh = old.replace("dns_refresh_rate: 10h", "dns_refresh_rate: 5s");
    file.write(&refresh);
    assert_eq!(running.handle.reload().await, Ok(()));
    pass(60 * SECOND).await;
    let (then_looked_up, then_checked) = seen(&network);
    assert!(
        then_looked_up >= looked_up + 10,
        "{looked_up}, {then_looked_up}"
    );
    assert_eq!(then_checked, checked, "that isn't another");
    file.write(&refresh.replace("interval: 10h", "interval: 10s"));
    assert_eq!(running.handle.reload().await, Ok(()));
    pass(60 * SECOND).await;
    assert!(
        seen(&network).1 >= checked + 5,
        "{checked}, {:?}",
        seen(&network)
    );
    let after = running.reader.load();
    assert_eq!(
        before.clusters[0].endpoints[0].shared.id,
        after.clusters[0].endpoints[0].shared.id
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_judged_against_an_older_configuration_is_read_again() {
    let text = yaml(&[("echo", CHECKED)]);
    let file = File::new(&text);
    let (mut core, ..) = core(&Scripted::default(), &text, Some(&file.path()));
    core.reread(None);
    // A plan comes into force while the file is read.
    core.config = Arc::new(Config::clone(&core.config));
    for _ in 0..2 {
        let ended = timeout(SECOND, core.jobs.next()).await.expect("a read");
        assert!(matches!(ended, Ended::Read(Some(_))));
        core.ended(ended, Instant::now());
    }
    assert!(core.jobs.try_next().is_none());
    let (done, answer) = oneshot::channel();
    core.reread(Some(done));
    let ended = core.jobs.next().await;
    core.ended(ended, Instant::now());
    assert_eq!(answer.await.unwrap(), Ok(()), "nothing came between");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_comes_after_its_configuration_is_found() {
    let network = Scripted::default();
    let old = yaml(&[("echo", CHECKED)]);
    let (file, mut running, _) = serving(&network, &old).await;
    let pair = tempfile::tempdir().unwrap();
    let new = old.replace("/no/such", &pair.path().display().to_string());
    file.write(&new);
    let error = running.handle.reload().await.unwrap_err();
    assert!(error.0.contains("tls.crt: the file isn't there"), "{error}");
    let rejected = |running: &Running| running.report().configuration.rejected;
    let told = rejected(&running);
    pass(600 * SECOND).await;
    assert!(
        rejected(&running) <= told + 1,
        "once for each who asks, and once for the watch"
    );
    crate::control_plane::tests::write_pair(pair.path(), true);
    timeout(62 * SECOND, async {
        while running.reader.load().tls.is_none() {
            assert!(running.reader.changed().await);
        }
    })
    .await
    .expect("looked at again");
    assert_eq!(running.report().configuration.last_error, None);
}
