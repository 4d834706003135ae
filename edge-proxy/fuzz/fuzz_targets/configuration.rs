//! Any text as a configuration: an answer or a list of errors with their places, never a panic, and what is accepted
//! is consistent with itself.

#![no_main]

use std::path::Path;

use edge_proxy::{
    cgroup::Resources,
    control_plane::config::{Config, restart_needed},
    snapshot::RouteAction,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let resources = Resources {
        cores: 2,
        memory_limit: Some(256 << 20),
    };
    match Config::parse_for(text, Path::new("edge-proxy.yaml"), &resources) {
        Ok(loaded) => {
            let config = loaded.config;
            assert!(restart_needed(&config, &config).is_empty());
            for route in &config.routes {
                assert!(route.prefix.starts_with('/'));
                if let RouteAction::Cluster { cluster, .. } = route.action {
                    assert!(cluster < config.clusters.len());
                }
            }
            for cluster in &config.clusters {
                let policy = &cluster.policy;
                let streams = u64::from(policy.per_connection_streams);
                let needed = streams * u64::from(policy.initial_stream_window_size);
                assert!(u64::from(policy.initial_connection_window_size) >= needed);
                assert!(!cluster.targets.is_empty());
            }
        }
        Err(refused) => {
            assert!(!refused.errors.is_empty());
            assert!(refused.to_string().starts_with("error: edge-proxy.yaml:"));
        }
    }
});
