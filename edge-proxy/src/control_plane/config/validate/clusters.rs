//! `clusters`: names, endpoints, windows towards backends, health checks, passive health, circuit limits.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use super::check::{CONNECTION_WINDOW, Check, MAX_WINDOW, STREAM_WINDOW, seconds};
use crate::{
    control_plane::config::{
        ClusterSpec, Discovery, HealthCheckSpec, LookupFamily, OutlierSpec, Target, file,
        place::At, problem::Shown, values,
    },
    snapshot::{
        ClusterPolicy,
        circuit::CircuitLimits,
        streak::{MAX_THRESHOLD, Thresholds},
    },
};

impl Check<'_, '_> {
    pub(super) fn clusters(&mut self, file: &At<Vec<file::Cluster>>) -> Vec<ClusterSpec> {
        let mut seen = HashMap::new();
        let mut clusters = Vec::new();
        for cluster in &file.value {
            let name = &cluster.name;
            self.text(name);
            if let Some(first) = seen.insert(name.value.as_str(), name.place) {
                let message = format!(
                    "`{}` is the name of the cluster in line {} too: give each its own",
                    Shown(&name.value),
                    first.line
                );
                self.report.error(name.place, message);
            }
            clusters.push(self.cluster(cluster));
        }
        clusters
    }

    fn cluster(&mut self, file: &file::Cluster) -> ClusterSpec {
        let discovery = match file.discovery.as_ref().map(|at| at.value) {
            None | Some(file::Discovery::StrictDns) => Discovery::StrictDns,
            Some(file::Discovery::Static) => Discovery::Static,
        };
        let family = match file.dns_lookup_family.as_ref().map(|at| at.value) {
            None | Some(file::LookupFamily::Auto) => LookupFamily::Auto,
            Some(file::LookupFamily::V4Only) => LookupFamily::V4Only,
            Some(file::LookupFamily::V6Only) => LookupFamily::V6Only,
        };
        ClusterSpec {
            name: file.name.value.as_str().into(),
            discovery,
            targets: self.targets(&file.endpoints, discovery),
            family,
            refresh: self.duration(file.dns_refresh_rate.as_ref(), seconds(5)),
            policy: Arc::new(self.cluster_policy(file)),
            panic_threshold: self.number(file.panic_threshold.as_ref(), 0, 0..=100) as u8,
            health_check: file
                .health_check
                .as_ref()
                .map(|file| self.health_check(file)),
            outlier_detection: self.outlier_detection(&file.outlier_detection),
            circuit_breakers: self.circuit_breakers(&file.circuit_breakers),
        }
    }

    fn targets(&mut self, written: &At<Vec<At<String>>>, discovery: Discovery) -> Vec<Target> {
        if written.value.is_empty() {
            self.report
                .error(written.place, "no endpoint: write at least one `host:port`");
        }
        let mut targets: Vec<Target> = Vec::new();
        for at in &written.value {
            let Some(target) = self.take(at.place, values::endpoint(&at.value)) else {
                continue;
            };
            let is_ip = target.host.parse::<IpAddr>().is_ok();
            if discovery == Discovery::Static && !is_ip {
                self.report.error(
                    at.place,
                    format!(
                        "`{}` is a name, and `discovery: static` takes IP addresses: write one, or `discovery: strict_dns`",
                        target.host
                    ),
                );
            } else if targets.contains(&target) {
                self.report
                    .warning(at.place, "is listed before and counts once: take it out");
            } else {
                targets.push(target);
            }
        }
        targets
    }

    fn cluster_policy(&mut self, file: &file::Cluster) -> ClusterPolicy {
        let streams = self.count(file.per_connection_streams.as_ref(), 100);
        let stream_at = file.http2.initial_stream_window_size.as_ref();
        let connection_at = file.http2.initial_connection_window_size.as_ref();
        let stream = self.number(stream_at, 262_144, STREAM_WINDOW);
        // A download that stands still keeps its stream's window full. Only a connection window of all streams'
        // windows together leaves the others theirs.
        let needed = streams.saturating_mul(stream);
        let connection = self.number(
            connection_at,
            needed.clamp(65_535, MAX_WINDOW),
            CONNECTION_WINDOW,
        );
        if needed > MAX_WINDOW {
            let place = stream_at
                .or(file.per_connection_streams.as_ref())
                .map(|at| at.place);
            self.report.error(
                place.unwrap_or(file.name.place),
                format!(
                    "{streams} streams of {stream} bytes each are more than a connection's window can be ({MAX_WINDOW}): \
                     lower per_connection_streams or initial_stream_window_size"
                ),
            );
        } else if let (Some(at), true) = (connection_at, connection < needed) {
            self.report.error(
                at.place,
                format!(
                    "is less than {streams} streams' windows of {stream} bytes, so stalled streams would stop others: \
                     write {needed} or more, or leave it out"
                ),
            );
        }
        ClusterPolicy {
            connect_timeout: self.duration(file.connect_timeout.as_ref(), seconds(5)),
            max_connections: self.count(file.max_connections.as_ref(), 8) as usize,
            per_connection_streams: streams as u32,
            initial_stream_window_size: stream as u32,
            initial_connection_window_size: connection as u32,
            max_replay_bytes: self.number(file.max_replay_bytes.as_ref(), 65_536, 0..=64 << 20)
                as usize,
        }
    }

    fn outlier_detection(&mut self, file: &file::OutlierDetection) -> OutlierSpec {
        let default = OutlierSpec::default();
        let mut threshold = |at: &Option<At<u64>>, default: u32| {
            self.number(at.as_ref(), default.into(), 0..=MAX_THRESHOLD.into()) as u32
        };
        let is = |at: &Option<At<bool>>, default| at.as_ref().map_or(default, |at| at.value);
        let split = is(&file.split_external_local_origin_errors, true);
        let local_origin = &file.consecutive_local_origin_failure;
        let thresholds = Thresholds {
            local_origin: match threshold(local_origin, default.thresholds.local_origin) {
                threshold if split => threshold,
                _ => 0,
            },
            gateway_failure: threshold(&file.consecutive_gateway_failure, 0),
            server_error: threshold(&file.consecutive_5xx, 0),
            joined: !split,
        };
        if let (Some(at), false) = (&file.split_external_local_origin_errors, split) {
            if thresholds.gateway_failure == 0 && thresholds.server_error == 0 {
                self.report.error(
                    at.place,
                    "nothing would be counted: write consecutive_5xx or consecutive_gateway_failure too, or leave this out",
                );
            } else if let Some(at) = local_origin {
                self.report.warning(
                    at.place,
                    "isn't looked at while split_external_local_origin_errors is false: take one of them out",
                );
            }
        }
        let base = self.duration(file.base_ejection_time.as_ref(), default.base_ejection_time);
        let longest = self.duration(
            file.max_ejection_time.as_ref(),
            default.max_ejection_time.max(base),
        );
        if let (Some(at), true) = (&file.max_ejection_time, longest < base) {
            let message = "is less than base_ejection_time: write as much or more, or leave it out";
            self.report.error(at.place, message);
        }
        let percent = file.max_ejection_percent.as_ref();
        OutlierSpec {
            thresholds,
            interval: self.duration(file.interval.as_ref(), default.interval),
            base_ejection_time: base,
            max_ejection_time: longest,
            max_ejection_percent: self.number(percent, default.max_ejection_percent.into(), 0..=100)
                as u8,
            // As `Detector::ALL`.
            enforcing: [
                is(&file.enforcing_consecutive_local_origin_failure, true),
                is(&file.enforcing_consecutive_gateway_failure, true),
                is(&file.enforcing_consecutive_5xx, true),
            ],
        }
    }

    fn circuit_breakers(&mut self, file: &file::CircuitBreakers) -> CircuitLimits {
        let mut limit = |at: &Option<At<u64>>| {
            let at = at.as_ref()?;
            Some(self.count(Some(at), 1) as u32)
        };
        // As `Circuit::ALL`.
        CircuitLimits([
            limit(&file.max_connections),
            limit(&file.max_pending_requests),
            limit(&file.max_requests),
            limit(&file.max_retries),
        ])
    }

    fn health_check(&mut self, file: &file::HealthCheck) -> HealthCheckSpec {
        let service = file.service.as_ref().map_or("", |at| {
            if !at
                .value
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && byte != b'/')
            {
                self.report.error(
                    at.place,
                    format!(
                        "`{}` isn't a service's full name: write it as api.Echo",
                        Shown(&at.value)
                    ),
                );
            }
            &at.value
        });
        let spec = HealthCheckSpec {
            service: service.to_owned(),
            timeout: self.duration(file.timeout.as_ref(), seconds(1)),
            interval: self.duration(file.interval.as_ref(), seconds(10)),
            unhealthy_edge_interval: self
                .duration(file.unhealthy_edge_interval.as_ref(), seconds(1)),
            unhealthy_threshold: self.count(file.unhealthy_threshold.as_ref(), 2) as u32,
            healthy_threshold: self.count(file.healthy_threshold.as_ref(), 2) as u32,
        };
        let place = file
            .timeout
            .as_ref()
            .or(file.interval.as_ref())
            .map(|at| at.place);
        if let (Some(place), true) = (place, spec.timeout > spec.interval) {
            self.report.warning(
                place,
                "a check may take longer than the interval between two, which then waits for it: \
                 write a shorter timeout",
            );
        }
        spec
    }
}
