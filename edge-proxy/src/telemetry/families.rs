//! Every metric family, named once.

/// One metric family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// With the unit and `_total` as Prometheus wants them.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// In the order in which they are written.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! families {
    ($($(#[$section:meta])* $id:ident = $kind:literal $name:literal [$($label:literal),*] $help:literal;)+) => {
        impl Family {
            $(pub(crate) const $id: Self = Self { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)+
        }

        /// All of them, in the order in which they are written.
        pub const FAMILIES: &[Family] = &[$(Family::$id),+];
    };
}

families! {
    STARTED = "counter" "edge_rpcs_started_total" ["route", "cluster", "method"]
        "RPCs and plain HTTP requests whose headers were read.";
    ENDED = "counter" "edge_rpcs_ended_total" ["route", "cluster", "method", "grpc_status"]
        "RPCs whose stream ended, by the grpc-status that the client got, plain HTTP by its status; none: without one, or without a whole response.";
    IN_FLIGHT = "gauge" "edge_rpcs_in_flight" ["cluster"]
        "RPCs that have started and not ended.";
    DURATION = "histogram" "edge_rpc_duration_seconds" ["cluster"]
        "From the request's headers to the end of its stream.";
    FLAGS = "counter" "edge_rpc_flags_total" ["flag"]
        "RPCs by response flag of the access log.";
    ATTEMPTS = "counter" "edge_attempts_total" ["cluster", "result"]
        "Attempts on an endpoint that ended.";
    ATTEMPTS_IN_FLIGHT = "gauge" "edge_attempts_in_flight" ["cluster"]
        "Attempts on an endpoint that run.";
    RETRIES = "counter" "edge_retries_total" ["cluster"]
        "Attempts after the first one of an RPC.";
    RETRIES_REFUSED = "counter" "edge_retries_refused_total" ["cluster", "reason"]
        "Further attempts that would have been safe and weren't made: budget, too many were refused lately; body, what was sent of it isn't kept.";
    CONNECTIONS_OPENED = "counter" "edge_connections_opened_total" ["side"]
        "Connections from clients whose TLS handshake is done (downstream), and made to backends (upstream).";
    CONNECTIONS = "gauge" "edge_connections" ["side"]
        "Connections that are open; clients' from the end of their TLS handshake on.";
    CONNECTIONS_LIMIT = "gauge" "edge_connections_limit" ["side"]
        "Connections that may be open, those in their TLS handshake too: listener.max_connections, or fewer if memory or open files leave room for fewer.";
    HANDSHAKES = "counter" "edge_tls_handshakes_total" ["result"]
        "TLS handshakes with clients that ended; refused: given up for a newer one, or a limit or overload closed the connection before it began.";
    HANDSHAKES_PENDING = "gauge" "edge_tls_handshakes_pending" []
        "TLS handshakes with clients that have begun and not ended, of listener.max_pending_handshakes.";
    RESETS = "counter" "edge_stream_resets_total" ["cause"]
        "Streams that ended by a reset; of `flood`, and where a rule of the whole connection was broken (`malformed`), connections: their streams are `connection_closed`.";
    LIMITS = "counter" "edge_limits_total" ["limit"]
        "How often a limit acted.";
    ENDPOINTS = "gauge" "edge_endpoints" ["cluster", "health"]
        "Endpoints that are known, by health.";
    ELIGIBLE = "gauge" "edge_endpoints_eligible" ["cluster"]
        "Endpoints that the balancer may choose.";
    PANIC = "gauge" "edge_cluster_panic" ["cluster"]
        "1 while panic_threshold sends RPCs to unhealthy endpoints too.";
    EJECTED = "gauge" "edge_endpoints_ejected" ["cluster"]
        "Endpoints that get no new RPCs because their last ones failed in a row.";
    OUTLIERS = "counter" "edge_outlier_detections_total" ["cluster", "streak", "result"]
        "Streaks of failures that reached their threshold, by what became of the endpoint.";
    CIRCUIT_LIMIT = "gauge" "edge_circuit_limit" ["cluster", "limit"]
        "Circuit limits that are set.";
    CIRCUIT_USED = "gauge" "edge_circuit_used" ["cluster", "limit"]
        "What is in use of a circuit limit.";
    CIRCUIT_REFUSED = "counter" "edge_circuit_refused_total" ["cluster", "limit"]
        "How often a circuit limit acted.";
    CHECKS = "counter" "edge_health_checks_total" ["cluster", "result"]
        "Health checks that ended.";
    LOOKUPS = "counter" "edge_dns_lookups_total" ["cluster", "result"]
        "DNS look-ups that ended.";
    ANSWER_AGE = "gauge" "edge_dns_last_answer_age_seconds" ["cluster"]
        "Age of the last answer, of the cluster's name that has waited longest; without one, since it is asked for.";
    CERTIFICATE_EXPIRY = "gauge" "edge_certificate_expiry_timestamp_seconds" []
        "When the certificate that is served expires, in Unix time.";
    CERTIFICATE_LOADS = "counter" "edge_certificate_loads_total" ["result"]
        "Certificates that came into force (loaded) or were refused (rejected).";
    CERTIFICATE_CURRENT = "gauge" "edge_certificate_last_load_successful" []
        "1 while the certificate that is served is that of the files as they were last read, and these are a good pair.";
    RELOADS = "counter" "edge_configuration_reloads_total" ["result"]
        "Reloads of the configuration that came into force (applied) or were refused (rejected).";
    LOADED = "gauge" "edge_configuration_loaded_timestamp_seconds" []
        "When the configuration came into force, in Unix time.";
    CURRENT = "gauge" "edge_configuration_last_reload_successful" []
        "1 unless the configuration's file, as it was last read, was refused.";
    READY = "gauge" "edge_ready" []
        "1 while /readyz answers 200.";
    DRAINING = "gauge" "edge_draining" []
        "1 from the moment in which a drain begins.";
    HEARTBEAT = "gauge" "edge_worker_heartbeat_age_seconds" []
        "How long the worker that is furthest behind hasn't run.";
    PANICS = "counter" "edge_control_plane_panics_total" []
        "Panics caught in the control plane's tasks.";
    LOG_DROPPED = "counter" "edge_access_log_dropped_lines_total" []
        "Lines of the access log that were dropped because its output was too slow or failed.";
    MEMORY = "gauge" "edge_memory_resident_bytes" []
        "Memory that is resident.";
    MEMORY_LIMIT = "gauge" "edge_memory_limit_bytes" []
        "Memory that the cgroup allows; absent without a limit.";
    MEMORY_USED = "gauge" "edge_memory_working_set_bytes" []
        "Memory of the cgroup that the kernel can't drop; absent without a limit.";
    OVERLOAD = "gauge" "edge_overload_level" []
        "What the overload manager does, by memory: 0 nothing, 1 resets stalled streams, 2 closes idle connections, 3 refuses RPCs, 4 refuses connections.";
    CPU = "counter" "edge_cpu_seconds_total" []
        "Processor time of all threads, user space and kernel.";
    UPTIME = "gauge" "edge_uptime_seconds" []
        "Since the start of the process.";
    BUILD = "gauge" "edge_build_info" ["version"]
        "Always 1.";
}
