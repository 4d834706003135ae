//! Attacks on the program: [`attack`](e2e::attack)'s own functions.

use e2e::attack::{ATTACKS, run, siege};

stories! {
    ATTACKS, run:
    unread_messages "unread-messages"
    stalled_downloads "stalled-downloads"
    cancelled_downloads "cancelled-downloads"
    blocked_uploads "blocked-uploads"
    slow_backend "slow-backend"
    unread_uploads "unread-uploads"
    unread_uploads_in_turn "unread-uploads-in-turn"
    batched_cancels "batched-cancels"
    queued_resets "queued-resets"
    early_ends "early-ends"
    strict_headers "strict-headers"
    rapid_reset "rapid-reset"
    rapid_reset_paced "rapid-reset-paced"
    slow_resets "slow-resets"
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

/// All of them at once, with little memory.
#[tokio::test]
async fn all_at_once() {
    crate::stories::held(siege::run(&crate::stories::in_small()).await);
}
