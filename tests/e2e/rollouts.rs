//! Rollouts and failures around the program, in small: [`rollouts`](e2e::rollouts)'s own functions, with shorter times.

use e2e::{
    attack::{Options, Scale},
    rollouts::{ROLLOUTS, run},
};

async fn hold(name: &str) {
    let rollout = ROLLOUTS.iter().find(|rollout| rollout.name == name);
    let options = Options {
        program: env!("CARGO_BIN_EXE_edge-proxy-under-test").into(),
        scale: Scale::Quick,
        strict: false,
    };
    let report = run(rollout.unwrap(), &options)
        .await
        .unwrap_or_else(|error| panic!("{error:#}"));
    assert!(report.held(), "{}", report.missed());
}

macro_rules! stories {
    ($($story:ident $name:literal)*) => {
        $(#[tokio::test]
        async fn $story() {
            hold($name).await;
        })*

        #[test]
        fn every_one_has_its_story() {
            let told = [$($name),*];
            let all: Vec<_> = ROLLOUTS.iter().map(|rollout| rollout.name).collect();
            assert_eq!(told[..], all[..]);
        }
    };
}

stories! {
    proxies_are_replaced "proxy-restarts"
    uploads_end_after_sigterm "sigterm-uploads"
    hostile_connections_do_not_keep_it "sigterm-hostile"
    certificates_are_swapped "certificate-swaps"
    backends_are_replaced "backend-rollout"
    a_backend_vanishes "backend-killed"
    a_backend_hangs "backend-hangs"
    all_backends_fail "retry-storm"
    the_name_server_is_lost "name-server-lost"
    a_name_flaps "name-flaps"
    a_pod_is_black_holed "pod-black-holed"
    three_times_what_backends_can_do "overload"
}
