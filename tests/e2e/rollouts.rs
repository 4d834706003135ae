//! Rollouts and failures around the program: [`rollouts`](e2e::rollouts)'s own functions, with shorter times.

use e2e::rollouts::{ROLLOUTS, run};

stories! {
    ROLLOUTS, run:
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
    a_pod_resets "pod-resets"
    a_pod_is_unreachable "pod-unreachable"
    sockets_are_destroyed "sockets-destroyed"
    a_link_is_narrow "narrow-link"
    three_times_what_backends_can_do "overload"
}
