//! Checks of more endpoints than are checked at a time.

use std::net::SocketAddr;

use super::*;
use crate::control_plane::health::AT_A_TIME;

/// The addresses of a thousand endpoints.
fn thousand() -> Vec<SocketAddr> {
    let of = |third| (0..250).map(move |last| SocketAddr::from(([10, 1, third, last], 8081)));
    (0..4).flat_map(of).collect()
}

/// `host` has these addresses.
fn name(network: &Scripted, host: &str, addresses: &[SocketAddr]) {
    let ips = addresses.iter().map(SocketAddr::ip);
    network.look_up_says(host, Lookup::found(ips, 8081));
}

/// Their checks end so.
fn all_do(network: &Scripted, addresses: &[SocketAddr], does: &Checked) {
    let mut script = network.0.lock().unwrap();
    let checks = addresses.iter().map(|address| (*address, does.clone()));
    script.checks.extend(checks);
}

/// Until their time is out.
fn hangs() -> Checked {
    Checked::Later(SECOND, Outcome::TimedOut(SECOND))
}

/// When checks of these began, by address.
fn began(network: &Scripted, of: &[SocketAddr]) -> BTreeMap<SocketAddr, Vec<Instant>> {
    let mut began: BTreeMap<_, Vec<_>> = of.iter().map(|one| (*one, Vec::new())).collect();
    for (when, address) in &network.0.lock().unwrap().checked {
        if let Some(times) = began.get_mut(address) {
            times.push(*when);
        }
    }
    began
}

/// The longest time between two checks of one of these.
fn longest_pause(network: &Scripted, of: &[SocketAddr]) -> Duration {
    let began = began(network, of);
    let pairs = began.values().flat_map(|times| times.windows(2));
    pairs.map(|pair| pair[1] - pair[0]).max().unwrap()
}

#[tokio::test(start_paused = true)]
async fn so_many_checks_are_under_way_and_one_that_ends_makes_room_for_the_next() {
    let (network, all) = (Scripted::default(), thousand());
    let takes = SECOND / 10;
    name(&network, "echo.", &all);
    all_do(&network, &all, &Checked::Later(takes, Outcome::Serving));
    let begin = Instant::now();
    let mut running = Running::start(network.clone());
    running
        .until(|cluster| cluster.eligible.len() == 1000)
        .await;
    // Sixteen times as many as there is room for.
    assert_eq!(begin.elapsed(), 16 * takes);
    let began = began(&network, &all);
    for round in 0..16 {
        let at = begin + round * takes;
        let count = began.values().filter(|times| times[0] == at).count();
        let left = all.len() - round as usize * AT_A_TIME;
        assert_eq!(count, AT_A_TIME.min(left), "{round}");
    }
}

#[tokio::test(start_paused = true)]
async fn few_are_all_checked_at_once_and_come_at_the_interval() {
    let (network, all) = (Scripted::default(), thousand());
    let few = &all[..AT_A_TIME];
    name(&network, "echo.", few);
    let begin = Instant::now();
    let _running = Running::start(network.clone());
    pass(15 * SECOND).await;
    for times in began(&network, few).values() {
        assert_eq!(times[0], begin);
        assert!(about(times[1] - times[0], 10 * SECOND), "{times:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn endpoints_that_hang_keep_nobody_waiting_for_long() {
    let (network, all) = (Scripted::default(), thousand());
    let well: Vec<_> = all.iter().copied().skip(9).step_by(10).collect();
    name(&network, "echo.", &all);
    all_do(&network, &all, &hangs());
    all_do(&network, &well, &Checked::Outcome(Outcome::Serving));
    let begin = Instant::now();
    let mut running = Running::start(network.clone());
    running.until(|cluster| cluster.eligible.len() == 100).await;
    // Of 900 that hang 64 in each quarter of a second.
    assert!(begin.elapsed() < 4 * SECOND, "{:?}", begin.elapsed());
    pass(30 * SECOND).await;
    assert!(longest_pause(&network, &all) < 12 * SECOND);
    assert!(longest_pause(&network, &well) < 12 * SECOND);
    assert_eq!(running.reader.load().clusters[0].eligible.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn clusters_take_turns_at_what_room_there_is() {
    let (network, all) = (Scripted::default(), thousand());
    let (well, ill) = all.split_at(100);
    let well = &well[..3];
    name(&network, "well.", well);
    name(&network, "ill.", ill);
    all_do(&network, ill, &hangs());
    // More than there is room for.
    let often = CHECKED.replace("interval: 10s", "interval: 1s");
    let text = yaml(&[("ill", &often), ("well", &often)]);
    let begin = Instant::now();
    let _running = Running::with(network.clone(), &text, None);
    pass(20 * SECOND).await;
    let pause = longest_pause(&network, well);
    assert!(pause < SECOND + SECOND / 2, "{pause:?}");
    let first = began(&network, well);
    let first = first.values().map(|times| times[0]).max().unwrap();
    assert!(first - begin <= SECOND / 4, "{:?}", first - begin);
    // Those that hang have what is left, all alike.
    let pause = longest_pause(&network, ill);
    assert!(pause < 5 * SECOND, "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn checks_that_began_together_are_spread_over_the_interval() {
    let (network, all) = (Scripted::default(), thousand());
    name(&network, "echo.", &all);
    let begin = Instant::now();
    let mut running = Running::start(network.clone());
    running
        .until(|cluster| cluster.eligible.len() == 1000)
        .await;
    pass(25 * SECOND).await;
    let checked = network.0.lock().unwrap().checked.clone();
    for second in 1..25 {
        let from = begin + second * SECOND;
        let within = |when: &Instant| *when >= from && *when < from + SECOND;
        let count = checked.iter().filter(|(when, _)| within(when)).count();
        // A hundred, by chance some more or fewer.
        assert!((50..=150).contains(&count), "{second}: {count}");
    }
    assert!(longest_pause(&network, &all) <= 11 * SECOND);
}
