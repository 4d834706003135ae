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

#[tokio::test(start_paused = true)]
async fn a_reload_resolves_and_checks_new_clusters_before_it_serves_them() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let old = yaml(&[("echo", CHECKED)]);
    let file = File::new(&old);
    let mut running = Running::with(network.clone(), &old, Some(&file.path()));
    let before = running.until_eligible(&[1]).await;
    before.clusters[0].turn.store(7, Ordering::Relaxed);

    network.name("reverse.", &[2]);
    network.check(2, Outcome::GoAway);
    file.write(&yaml(&[("reverse", CHECKED), ("echo", CHECKED)]));
    let handle = running.handle.clone();
    let reload = tokio::spawn(async move { handle.reload().await });
    sleep(2 * SECOND).await;
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
    assert_eq!(new.turn.load(Ordering::Relaxed), 7);
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
    network.name("echo.", &[1]);
    let old = yaml(&[("echo", CHECKED)]);
    let file = File::new(&old);
    let mut running = Running::with(network, &old, Some(&file.path()));
    running.until_eligible(&[1]).await;
    file.write(&yaml(&[("echo", CHECKED), ("nobody", CHECKED)]));
    let begin = Instant::now();
    assert_eq!(running.handle.reload().await, Ok(()));
    assert!(about(begin.elapsed(), 5 * SECOND), "{:?}", begin.elapsed());
    assert_eq!(running.reader.load().clusters.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_invalid_file_changes_nothing() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let old = yaml(&[("echo", CHECKED)]);
    let file = File::new(&old);
    let mut running = Running::with(network, &old, Some(&file.path()));
    let before = running.until_eligible(&[1]).await;

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
    network.name("echo.", &[1]);
    network.name("reverse.", &[2]);
    let old = yaml(&[("echo", CHECKED)]);
    let file = File::new(&old);
    let mut running = Running::with(network, &old, Some(&file.path()));
    running.until_eligible(&[1]).await;
    file.write(&yaml(&[("reverse", CHECKED)]));
    running.until_eligible(&[2]).await;
}

#[tokio::test(start_paused = true)]
async fn another_check_of_the_same_addresses_keeps_their_identity() {
    let network = Scripted::default();
    network.name("echo.", &[1]);
    let old = yaml(&[("echo", CHECKED)]);
    let file = File::new(&old);
    let mut running = Running::with(network, &old, Some(&file.path()));
    let before = running.until_eligible(&[1]).await;
    file.write(&old.replace("interval: 10s", "interval: 20s"));
    assert_eq!(running.handle.reload().await, Ok(()));
    let after = running.reader.load();
    assert_eq!(eligible(&after.clusters[0]), [1]);
    assert_eq!(
        before.clusters[0].endpoints[0].shared.id,
        after.clusters[0].endpoints[0].shared.id
    );
}

#[tokio::test(start_paused = true)]
async fn without_a_file_there_is_nothing_to_reload() {
    let running = Running::start(Scripted::default());
    assert!(running.handle.reload().await.is_err());
}
