//! `listener`: limits, times, windows, and the path that is answered at the edge.

use std::{ops::RangeInclusive, sync::Arc};

use super::check::{CONNECTION_WINDOW, Check, STREAM_WINDOW, minutes, seconds};
use crate::{
    cgroup::Resources,
    control_plane::config::{file, place::At, problem::Shown},
    data_plane::memory::PER_CONNECTION,
    snapshot::{EdgeHealthCheck, Http2Policy, ListenerPolicy, Timeouts},
};

impl Check<'_, '_> {
    pub(super) fn listener(
        &mut self,
        file: &file::Listener,
        server_name: Option<&At<String>>,
        resources: &Resources,
    ) -> ListenerPolicy {
        let affordable = resources
            .memory_limit
            .map_or(u64::MAX, |limit| limit / PER_CONNECTION as u64);
        let max_connections = affordable.clamp(1, 10_000);
        let age_grace = file.max_connection_age_grace.as_ref();
        ListenerPolicy {
            server_name: self.server_name(server_name),
            health_check: file
                .health_check
                .as_ref()
                .map(|file| self.edge_health_check(file)),
            max_connections: self.count(file.max_connections.as_ref(), max_connections) as usize,
            max_connections_per_source: self.count(file.max_connections_per_source.as_ref(), 256)
                as usize,
            max_pending_handshakes: self.count(file.max_pending_handshakes.as_ref(), 512) as usize,
            max_connection_age: self.duration(file.max_connection_age.as_ref(), minutes(30)),
            max_connection_age_grace: self.duration_or_zero(age_grace),
            keepalive_interval: self.duration(file.keepalive.interval.as_ref(), seconds(60)),
            keepalive_timeout: self.duration(file.keepalive.timeout.as_ref(), seconds(20)),
            timeouts: self.timeouts(&file.timeouts),
            http2: self.listener_http2(&file.http2),
        }
    }

    fn timeouts(&mut self, file: &file::Timeouts) -> Timeouts {
        Timeouts {
            tls_handshake: self.duration(file.tls_handshake.as_ref(), seconds(5)),
            preface: self.duration(file.preface.as_ref(), seconds(10)),
            header_block: self.duration(file.header_block.as_ref(), seconds(10)),
            stream_idle: self.duration(file.stream_idle.as_ref(), minutes(5)),
            write_stall: self.duration(file.write_stall.as_ref(), seconds(30)),
            stream_window_stall: self.duration(file.stream_window_stall.as_ref(), seconds(60)),
            idle: self.duration(file.idle.as_ref(), minutes(15)),
        }
    }

    fn listener_http2(&mut self, file: &file::ListenerHttp2) -> Http2Policy {
        let stream = self.number(
            file.initial_stream_window_size.as_ref(),
            65_536,
            STREAM_WINDOW,
        );
        let connection = self.number(
            file.initial_connection_window_size.as_ref(),
            stream.max(1_048_576),
            CONNECTION_WINDOW,
        );
        if let (Some(at), true) = (&file.initial_connection_window_size, connection < stream) {
            self.report.error(
                at.place,
                format!("is less than a stream's window, which could never be used: write {stream} or more"),
            );
        }
        Http2Policy {
            max_concurrent_streams: self.count(file.max_concurrent_streams.as_ref(), 100) as u32,
            initial_stream_window_size: stream as u32,
            initial_connection_window_size: connection as u32,
            max_header_bytes: self.number(file.max_header_bytes.as_ref(), 8_192, HEADER_BYTES)
                as u32,
        }
    }

    fn edge_health_check(&mut self, file: &file::EdgeHealthCheck) -> EdgeHealthCheck {
        if let Some(at) = &file.path {
            self.path(at, "/healthz");
        }
        let header = file.header.as_ref().map(|header| {
            let name = &header.name;
            if name.value.is_empty() || !name.value.bytes().all(is_lower_case_token) {
                self.report.error(
                    name.place,
                    format!(
                        "`{}` isn't a header name in lower case: write it as x-envoy-livenessprobe",
                        Shown(&name.value)
                    ),
                );
            }
            self.header_value(&header.value);
            (
                name.value.as_str().into(),
                header.value.value.as_str().into(),
            )
        });
        let path = file.path.as_ref().map_or("/healthz", |at| &at.value);
        EdgeHealthCheck {
            path: path.into(),
            header,
        }
    }

    fn server_name(&mut self, at: Option<&At<String>>) -> Arc<str> {
        let Some(at) = at else {
            return "edge-proxy".into();
        };
        self.header_value(at);
        at.value.as_str().into()
    }
}

/// RFC 9110 §5.6.2, in lower case as RFC 9113 §8.2.1 asks.
fn is_lower_case_token(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A decoded header list above 32 KiB ends the stream whatever is configured.
const HEADER_BYTES: RangeInclusive<u64> = 1_024..=32_768;
