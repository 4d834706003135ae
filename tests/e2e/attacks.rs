//! Attacks on the program, in small: [`attack`](e2e::attack)'s own functions, a few seconds each. What depends on the
//! machine's speed is judged by the program `attack` alone, since other tests run beside these.

use e2e::attack::{ATTACKS, Options, Scale, run};

async fn hold(name: &str) {
    let attack = ATTACKS.iter().find(|attack| attack.name == name).unwrap();
    let options = Options {
        program: env!("CARGO_BIN_EXE_edge-proxy-under-test").into(),
        scale: Scale::Quick,
        strict: false,
    };
    let report = run(attack, &options)
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
        fn every_attack_has_its_story() {
            let told = [$($name),*];
            let all: Vec<_> = ATTACKS.iter().map(|attack| attack.name).collect();
            assert_eq!(told[..], all[..]);
        }
    };
}

stories! {
    unread_messages "unread-messages"
    stalled_downloads "stalled-downloads"
    cancelled_downloads "cancelled-downloads"
    blocked_uploads "blocked-uploads"
    slow_backend "slow-backend"
    unread_uploads "unread-uploads"
    batched_cancels "batched-cancels"
    early_ends "early-ends"
    strict_headers "strict-headers"
    rapid_reset "rapid-reset"
    rapid_reset_paced "rapid-reset-paced"
    made_you_reset "made-you-reset"
    continuation "continuation"
    open_header_block "open-header-block"
    control_frames "control-frames"
    empty_data "empty-data"
    hpack_bombs "hpack-bombs"
    unacknowledged_settings "unacknowledged-settings"
    zero_stream_windows "zero-stream-windows"
    zero_tcp_window "zero-tcp-window"
    slow_handshakes "slow-handshakes"
    slow_prefaces "slow-prefaces"
    handshake_flood "handshake-flood"
    connections "connections"
    no_files_left "no-files-left"
}
