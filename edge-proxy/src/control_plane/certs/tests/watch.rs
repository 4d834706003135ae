//! What watching their files finds.

use super::*;

/// What is served from `secret`, watched.
fn watched(secret: &Secret) -> Served {
    let mut served = Served::read(&secret.chain(), &secret.key()).unwrap();
    served.watch(&Panics::default());
    served
}

/// Applies events until another pair is served, and says for how long that took.
async fn until_served(served: &mut Served) -> Duration {
    let begin = Instant::now();
    loop {
        let event = served.next_event().await;
        if served.found(event, Instant::now()) {
            return begin.elapsed();
        }
    }
}

/// Applies events until the files are refused.
async fn until_refused(served: &mut Served) -> Problem {
    loop {
        let event = served.next_event().await;
        assert!(!served.found(event, Instant::now()), "a bad pair is served");
        if let Some(error) = &served.last_error {
            return error.clone();
        }
    }
}

fn serial(served: &Served) -> String {
    served
        .current()
        .map(|pair| pair.identity.serial.clone())
        .unwrap_or_default()
}

#[tokio::test]
async fn a_swapped_secret_is_served_within_two_seconds() {
    let mut secret = Secret::with(&pair("a.example"));
    let mut served = watched(&secret);
    let mut fastest = Duration::MAX;
    for _ in 0..3 {
        let before = serial(&served);
        secret.swap(&pair("a.example"));
        let took = until_served(&mut served).await;
        // A machine that is busy with something else may take longer, but not until the next look.
        assert!(took < Duration::from_secs(30), "{took:?}");
        fastest = fastest.min(took);
        assert_ne!(serial(&served), before);
    }
    assert!(fastest < Duration::from_secs(2), "{fastest:?}");
    assert_eq!(served.report().loads, 4);
}

/// The files are links into another directory, which nobody watches: as on a file system that has no events.
#[tokio::test(start_paused = true)]
async fn a_change_without_an_event_is_found_by_looking_every_minute() {
    let mut elsewhere = Secret::with(&pair("a.example"));
    let here = tempfile::tempdir().unwrap();
    let files = [here.path().join("tls.crt"), here.path().join("tls.key")];
    symlink(elsewhere.chain(), &files[0]).unwrap();
    symlink(elsewhere.key(), &files[1]).unwrap();
    let mut served = Served::read(&files[0], &files[1]).unwrap();
    served.watch(&Panics::default());
    for _ in 0..3 {
        // It has looked, and waits now.
        let event = served.next_event().await;
        assert!(!served.found(event, Instant::now()));
        let before = serial(&served);
        elsewhere.swap(&pair("a.example"));
        let took = tokio::time::timeout(Duration::from_secs(3600), until_served(&mut served));
        let took = took.await.expect("it looks without being told");
        let minute = Duration::from_secs(60);
        assert!(
            took > minute.mul_f64(0.99) && took < minute.mul_f64(1.01),
            "{took:?}"
        );
        assert_ne!(serial(&served), before);
    }
}

#[tokio::test]
async fn files_that_come_later_are_served_then() {
    let mut secret = Secret::empty();
    let mut served = watched(&secret);
    assert!(served.current().is_none());
    assert!(
        served
            .report()
            .last_error
            .unwrap()
            .message
            .contains("tls.crt")
    );
    secret.swap(&pair("a.example"));
    until_served(&mut served).await;
    assert_eq!(served.report().last_error, None);
    assert_eq!(served.report().rejected, 0, "waiting is no mistake");
}

#[tokio::test]
async fn a_bad_pair_is_never_served_and_counted_once() {
    let good = pair("a.example");
    let mut secret = Secret::with(&good);
    let mut served = watched(&secret);
    let before = serial(&served);
    secret.swap(&(pair("a.example").0, good.1.clone()));
    let error = until_refused(&mut served).await;
    assert!(
        error.message.contains("isn't the key of the certificate"),
        "{}",
        error.message
    );
    // It is looked at every second while it is bad: the same mistake counts once.
    let event = served.next_event().await;
    served.found(event, Instant::now());
    assert_eq!(
        (served.report().rejected, serial(&served)),
        (1, before.clone())
    );

    // Back to the old pair: nothing new to serve, and nothing wrong any more.
    secret.swap(&good);
    while served.last_error.is_some() {
        let event = served.next_event().await;
        assert!(!served.found(event, Instant::now()));
    }
    assert_eq!(serial(&served), before);
}

#[tokio::test]
async fn files_that_vanish_leave_the_pair_in_force() {
    let secret = Secret::with(&pair("a.example"));
    let mut served = watched(&secret);
    let before = serial(&served);
    fs::remove_file(secret.chain()).unwrap();
    let error = until_refused(&mut served).await;
    assert!(error.message.contains("isn't there"));
    assert_eq!(serial(&served), before);
}

#[test]
fn a_bad_pair_at_the_start_is_an_error_and_a_missing_one_is_not() {
    let ((chain, _), (_, key)) = (pair("a.example"), pair("a.example"));
    let secret = Secret::with(&(chain, key));
    assert!(matches!(
        Served::read(&secret.chain(), &secret.key())
            .unwrap_err()
            .fault,
        PairFault::Mismatched { .. }
    ));
    let secret = Secret::empty();
    assert!(
        Served::read(&secret.chain(), &secret.key())
            .unwrap()
            .current()
            .is_none()
    );
}

#[tokio::test(start_paused = true)]
async fn the_log_says_every_ten_seconds_which_file_is_missing_and_how_to_make_it() {
    let secret = Secret::empty();
    let log = Log::default();
    let _guard = log.capture();
    let mut served = watched(&secret);
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(35) {
        let event = served.next_event().await;
        assert!(!served.found(event, Instant::now()));
    }
    let lines = log.lines("waiting for the certificate");
    // At 0, 10, 20 and 30 s.
    assert_eq!(lines.len(), 4, "{lines:?}");
    for line in lines {
        assert!(
            line.contains(secret.chain().to_str().unwrap()),
            "names the file: {line}"
        );
        assert!(
            line.contains("kubectl create secret tls edge-certs"),
            "says how: {line}"
        );
    }
}

#[tokio::test]
async fn a_refused_pair_has_its_line_in_the_log_once() {
    let good = pair("a.example");
    let mut secret = Secret::with(&good);
    let log = Log::default();
    let _guard = log.capture();
    let mut served = watched(&secret);
    secret.swap(&(pair("a.example").0, good.1.clone()));
    until_refused(&mut served).await;
    let event = served.next_event().await;
    served.found(event, Instant::now());
    let lines = log.lines("certificate refused");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("isn't the key"), "{lines:?}");
    assert!(lines[0].contains("that is served stays"), "{lines:?}");
}

#[tokio::test]
async fn one_that_expires_while_it_is_served_stays_and_is_told() {
    let secret = Secret::with(&pair("a.example"));
    let log = Log::default();
    let _guard = log.capture();
    let mut served = watched(&secret);
    let before = serial(&served);
    let in_the_year_2300 = 10_413_792_000;
    let (chain, key) = (secret.chain(), secret.key());
    let event = served.identities.read_pair(&chain, &key, in_the_year_2300);
    assert!(
        !served.found(event, Instant::now()),
        "nothing else to serve"
    );
    assert_eq!(serial(&served), before);
    let lines = log.lines("the one that is served stays");
    assert!(lines[0].contains("the certificate expired on"), "{lines:?}");
}

#[test]
fn a_pair_refused_while_none_is_served_is_told_so() {
    let mut secret = Secret::empty();
    let log = Log::default();
    let _guard = log.capture();
    let mut served = Served::read(&secret.chain(), &secret.key()).unwrap();
    secret.swap(&(pair("a.example").0, pair("b.example").1));
    assert!(!served.found(secret.read(), Instant::now()));
    let lines = log.lines("certificate refused");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("still waiting"), "{lines:?}");
}

#[tokio::test(start_paused = true)]
async fn waiting_is_told_every_ten_seconds() {
    let secret = Secret::empty();
    let mut served = Served::read(&secret.chain(), &secret.key()).unwrap();
    let first = served.waiting_told.unwrap();
    for (seconds, told) in [(1, 0), (9, 0), (10, 10), (11, 10), (21, 21)] {
        let now = first + Duration::from_secs(seconds);
        served.found(secret.read(), now);
        assert_eq!(
            served.waiting_told,
            Some(first + Duration::from_secs(told)),
            "{seconds}"
        );
    }
}
