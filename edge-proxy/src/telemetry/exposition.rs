//! Prometheus' text (format 0.0.4), written by hand: the counters live in shards and reports that no
//! registry owns, and the format is a dozen lines.

use std::fmt::Write;

use super::{
    families::Family,
    histogram::{BOUNDS, Distribution},
    labels::Label,
};

/// The `content-type` of such a text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The text as far as it is written. (Writing to a `String` can't fail.)
pub(crate) struct Text(String);

impl Text {
    /// None of it.
    pub(crate) fn new() -> Self {
        Self(String::with_capacity(16 << 10))
    }

    /// All of it.
    pub(crate) fn finish(self) -> String {
        self.0
    }

    /// A family's header.
    pub(crate) fn family(&mut self, family: Family) {
        let Family {
            name, kind, help, ..
        } = family;
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// A value of it, under these labels.
    pub(crate) fn sample(
        &mut self,
        family: Family,
        values: &[&str],
        value: impl std::fmt::Display,
    ) {
        self.line(family, "", values, None, value);
    }

    /// A family without labels; only its header if there is no value.
    pub(crate) fn single(&mut self, family: Family, value: Option<impl std::fmt::Display>) {
        self.family(family);
        if let Some(value) = value {
            self.sample(family, &[], value);
        }
    }

    /// A family whose one label is `L`.
    pub(crate) fn labelled<L: Label>(&mut self, family: Family, counts: &[u64]) {
        self.family(family);
        for (label, count) in L::ALL.iter().zip(counts) {
            self.sample(family, &[label.as_str()], count);
        }
    }

    /// The values of a distribution, whose one label is this.
    pub(crate) fn histogram(&mut self, family: Family, value: &str, distribution: &Distribution) {
        let counts = distribution.cumulative();
        for (bound, count) in BOUNDS.iter().zip(counts) {
            let bound = bound.as_secs_f64().to_string();
            self.line(family, "_bucket", &[value], Some(&bound), count);
        }
        let all = counts[BOUNDS.len()];
        self.line(family, "_bucket", &[value], Some("+Inf"), all);
        self.line(
            family,
            "_sum",
            &[value],
            None,
            distribution.sum().as_secs_f64(),
        );
        self.line(family, "_count", &[value], None, all);
    }

    fn line(
        &mut self,
        family: Family,
        suffix: &str,
        values: &[&str],
        bound: Option<&str>,
        value: impl std::fmt::Display,
    ) {
        debug_assert_eq!(family.labels.len(), values.len(), "{}", family.name);
        let _ = write!(self.0, "{}{suffix}", family.name);
        let labels = family.labels.iter().copied().zip(values.iter().copied());
        for (i, (label, value)) in labels.chain(bound.map(|bound| ("le", bound))).enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if i == 0 { '{' } else { ',' });
            self.escaped(value);
            self.0.push('"');
        }
        if !values.is_empty() || bound.is_some() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    /// A label's value: backslash, quote and line feed are escaped.
    fn escaped(&mut self, value: &str) {
        for c in value.chars() {
            match c {
                '\\' => self.0.push_str("\\\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str("\\n"),
                c => self.0.push(c),
            }
        }
    }
}
