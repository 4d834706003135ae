//! What every part of the validation asks of a single value. Each notes what is wrong and gives the default, so that
//! the work goes on.

use std::{net::SocketAddr, ops::RangeInclusive, time::Duration};

use crate::control_plane::config::{
    file,
    place::{At, Place},
    problem::{Report, Shown},
    values,
};

/// The validation under way.
pub(super) struct Check<'a, 'r> {
    pub(super) report: &'a mut Report<'r>,
}

impl Check<'_, '_> {
    /// Port 0, any free one, is allowed: tests use it.
    pub(super) fn address(&mut self, at: Option<&At<String>>, default: SocketAddr) -> SocketAddr {
        at.and_then(|at| self.take(at.place, values::socket_address(&at.value, default)))
            .unwrap_or(default)
    }

    /// A path or its prefix: what a `:path` can hold, up to the query.
    pub(super) fn path(&mut self, at: &At<String>, example: &str) {
        let what = if !at.value.starts_with('/') {
            "doesn't start with `/`"
        } else if at.value.contains(['?', '#']) {
            "holds a query or fragment, which isn't compared"
        } else if !http2::is_path(at.value.as_bytes()) {
            "holds a character that no path can have"
        } else {
            return;
        };
        self.report.error(
            at.place,
            format!("`{}` {what}: write it as {example}", Shown(&at.value)),
        );
    }

    pub(super) fn header_value(&mut self, at: &At<String>) {
        // RFC 9110 §5.5 without obs-text, and no space at either end.
        let inner = at
            .value
            .bytes()
            .all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if at.value.is_empty() || !inner || at.value.trim() != at.value {
            let message = format!(
                "`{}` can't be a header's value: write printable ASCII, no space at its ends",
                Shown(&at.value)
            );
            self.report.error(at.place, message);
        }
    }

    /// A name or a path: log lines, metric labels and pages show it, so nothing in it may break out of its place there.
    pub(super) fn text<'t>(&mut self, at: &'t At<String>) -> &'t str {
        if at.value.trim().is_empty() {
            self.report.error(at.place, "is empty: write a value");
        } else if at.value.contains(char::is_control) {
            let message = format!(
                "`{}` holds a line end or another control character: write it without",
                Shown(&at.value)
            );
            self.report.error(at.place, message);
        }
        &at.value
    }

    /// At least one.
    pub(super) fn count(&mut self, at: Option<&At<u64>>, default: u64) -> u64 {
        self.number(at, default, 1..=MAX_WINDOW)
    }

    pub(super) fn number(
        &mut self,
        at: Option<&At<u64>>,
        default: u64,
        range: RangeInclusive<u64>,
    ) -> u64 {
        let Some(at) = at else { return default };
        if range.contains(&at.value) {
            return at.value;
        }
        let message = format!(
            "{} is out of range: write {} to {}",
            at.value,
            range.start(),
            range.end()
        );
        self.report.error(at.place, message);
        default
    }

    pub(super) fn duration(&mut self, at: Option<&At<file::Span>>, default: Duration) -> Duration {
        let duration = self.duration_or_zero(at);
        if let (Some(at), Some(Duration::ZERO)) = (at, duration) {
            self.report.error(
                at.place,
                "0 isn't a time that can be kept: write more, or leave it out for the default",
            );
        }
        duration.unwrap_or(default)
    }

    pub(super) fn duration_or_zero(&mut self, at: Option<&At<file::Span>>) -> Option<Duration> {
        at.and_then(|at| self.take(at.place, values::duration(&at.value.0)))
    }

    pub(super) fn take<T>(&mut self, place: Place, parsed: Result<T, String>) -> Option<T> {
        parsed
            .map_err(|message| self.report.error(place, message))
            .ok()
    }
}

pub(super) const fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

pub(super) const fn minutes(number: u64) -> Duration {
    Duration::from_secs(60 * number)
}

/// RFC 9113 §6.9.1: the largest flow-control window.
pub(super) const MAX_WINDOW: u64 = (1 << 31) - 1;

/// From one frame of the smallest MAX_FRAME_SIZE (RFC 9113 §4.2): with less, every frame waits for credit.
pub(super) const STREAM_WINDOW: RangeInclusive<u64> = 16_384..=MAX_WINDOW;

/// RFC 9113 §6.9.2: a connection's window begins at 65 535 and nothing can make it smaller.
pub(super) const CONNECTION_WINDOW: RangeInclusive<u64> = 65_535..=MAX_WINDOW;
