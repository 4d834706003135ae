//! Diagnostics: what operators read on stderr.
//!
//! Events of `tracing`, one line each, with the level from `RUST_LOG` (`info` unless set) and
//! changeable while the process runs (`POST /logging`). Standard output belongs to the access log.
//!
//! A line is its time, its level, a text, and `key=value` words. `tracing` quotes values that are strings and writes what
//! is displayed (`%error`) as it is, blanks and newlines too; `Fields` quotes those that wouldn't be one word.

use std::{fmt::Debug, io, sync::Arc};

use tracing::field::{Field, Visit};
use tracing_subscriber::{
    EnvFilter, Registry,
    field::{RecordFields, VisitOutput as _},
    fmt::{
        self, FormatFields,
        format::{DefaultVisitor, Writer},
    },
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

/// Changes what is logged.
#[derive(Clone, Debug)]
pub struct LogLevel(Arc<reload::Handle<EnvFilter, Registry>>);

/// Why the level stays.
#[derive(Debug, thiserror::Error)]
pub enum SetLevelError {
    /// Not a level, nor a directive of `RUST_LOG`.
    #[error(
        "`{0}` isn't a level: write error, warn, info, debug, trace or off, or directives as in RUST_LOG"
    )]
    Unknown(String),
    /// The subscriber is gone.
    #[error("diagnostics have ended: {0}")]
    Gone(#[source] reload::Error),
}

/// Sends diagnostics to stderr from here on. Called once, by `main`.
///
/// # Errors
/// Something else already receives them.
pub fn init() -> Result<LogLevel, tracing_subscriber::util::TryInitError> {
    let text = std::env::var(EnvFilter::DEFAULT_ENV)
        .ok()
        .filter(|text| !text.is_empty());
    let filter = text.as_deref().map(parse).unwrap_or_else(|| parse(DEFAULT));
    let wrong = filter.is_err();
    let (level, subscriber) =
        LogLevel::subscriber(filter.unwrap_or_else(|_| EnvFilter::new(DEFAULT)));
    let ansi = io::IsTerminal::is_terminal(&io::stderr());
    subscriber
        .with(
            fmt::layer()
                .fmt_fields(Fields)
                .with_writer(io::stderr)
                .with_ansi(ansi)
                .with_target(false),
        )
        .try_init()?;
    if wrong {
        tracing::warn!(
            RUST_LOG = text,
            "RUST_LOG can't be read: logging at level {DEFAULT}"
        );
    }
    Ok(level)
}

impl LogLevel {
    /// A subscriber without a layer that writes, and the handle to its level.
    fn subscriber(
        filter: EnvFilter,
    ) -> (
        Self,
        tracing_subscriber::layer::Layered<reload::Layer<EnvFilter, Registry>, Registry>,
    ) {
        let (filter, handle) = reload::Layer::new(filter);
        (
            Self(Arc::new(handle)),
            tracing_subscriber::registry().with(filter),
        )
    }

    /// A handle that nothing listens to, for tests.
    pub fn detached() -> Self {
        Self::subscriber(EnvFilter::new(DEFAULT)).0
    }

    /// From now on `directives` decide: a level, or several with targets as in `RUST_LOG`.
    ///
    /// # Errors
    /// [`SetLevelError`]: nothing changed.
    pub fn set(&self, directives: &str) -> Result<(), SetLevelError> {
        let unknown = || SetLevelError::Unknown(directives.to_owned());
        let filter = parse(directives).map_err(|_| unknown())?;
        self.0.reload(filter).map_err(SetLevelError::Gone)
    }

    /// What decides now, as text.
    pub fn current(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap_or_default()
    }
}

/// How the values of a line are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields;

/// Writes the fields of one line.
struct Visitor<'a>(DefaultVisitor<'a>);

impl<'a> FormatFields<'a> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'a>, fields: R) -> std::fmt::Result {
        let mut visitor = Visitor(DefaultVisitor::new(writer, true));
        fields.record(&mut visitor);
        visitor.0.finish()
    }
}

impl Visit for Visitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == MESSAGE {
            return self.0.record_debug(field, value);
        }
        let text = format!("{value:?}");
        if text.is_empty() || text.contains(ends_a_word) {
            self.0.record_str(field, &text);
        } else {
            self.0.record_debug(field, value);
        }
    }

    /// Quotes it, whatever it is.
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.record_str(field, value);
    }
}

/// The field that is the line's text.
const MESSAGE: &str = "message";

/// Whether a value with this in it needs quotes.
fn ends_a_word(c: char) -> bool {
    c.is_whitespace() || c.is_control() || matches!(c, '"' | '=')
}

/// `EnvFilter` takes any word for a target to be logged at every level; a lone word is a level here.
fn parse(directives: &str) -> Result<EnvFilter, ()> {
    // (And `LevelFilter` takes nothing for `error`.)
    if directives.trim().is_empty() {
        return Err(());
    }
    let lone = !directives.contains(['=', ',', '[']);
    if lone
        && directives
            .parse::<tracing_subscriber::filter::LevelFilter>()
            .is_err()
    {
        return Err(());
    }
    EnvFilter::builder().parse(directives).map_err(drop)
}

const DEFAULT: &str = "info";

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tracing::subscriber::with_default;

    use super::*;
    use crate::telemetry::captured;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_level_can_change_while_it_runs() {
        captured::never_alone();
        let (level, subscriber) = LogLevel::subscriber(EnvFilter::new("info"));
        let written = Written::default();
        let writer = written.clone();
        let layer = fmt::layer()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        with_default(subscriber.with(layer), || {
            tracing::debug!("first");
            tracing::info!(endpoint = "10.0.0.1:80", "second");
            level.set("debug").unwrap();
            tracing::debug!("third");
            level.set("off").unwrap();
            tracing::error!("fourth");
            assert_eq!(level.current(), "off");
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        assert!(
            !text.contains("first") && !text.contains("fourth"),
            "{text}"
        );
        assert!(
            text.contains("second endpoint=\"10.0.0.1:80\"") && text.contains("third"),
            "{text}"
        );
    }

    #[test]
    fn a_value_is_one_word_or_quoted() {
        let log = captured::Log::default();
        let guard = log.capture();
        let (plain, blanks) = ("10.0.0.1:80", "no \"route\"\nto host");
        tracing::info!(%plain, %blanks, debug = ?Some("a b"), text = "x", number = 7, "a text of words");
        drop(guard);
        let wanted = "a text of words plain=10.0.0.1:80 blanks=\"no \\\"route\\\"\\nto host\" \
                      debug=\"Some(\\\"a b\\\")\" text=\"x\" number=7";
        let lines = log.lines("a text of words");
        assert!(lines[0].ends_with(wanted), "{lines:?}");
    }

    #[test]
    fn what_is_no_level_changes_nothing() {
        let (level, _subscriber) = LogLevel::subscriber(EnvFilter::new("warn"));
        for wrong in ["", "loud", "a=loud", "info,b=[", "\n"] {
            assert!(
                matches!(level.set(wrong), Err(SetLevelError::Unknown(_))),
                "{wrong}"
            );
        }
        assert_eq!(level.current(), "warn");
        level.set("info,edge_proxy::control_plane=debug").unwrap();
        assert!(matches!(
            LogLevel::detached().set("debug"),
            Err(SetLevelError::Gone(_))
        ));
    }
}
