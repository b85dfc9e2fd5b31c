//! Log lines on standard error: for people, for the journal, or one JSON object each.

mod queue;

use std::fmt;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::Duration;

use queue::Queue;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

use crate::common::printable::printable;
use crate::config::{LogFormat, Settings};

/// How long the end of the program waits until its last lines are read.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes the lines that still wait when it is dropped. Logging continues without it.
#[must_use]
#[derive(Debug)]
pub struct Guard(Queue);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.flush(FLUSH_TIMEOUT);
    }
}

/// Starts logging, and a thread that writes. Later calls have no effect.
///
/// # Errors
/// The thread cannot be started.
pub fn init_logging(settings: &Settings) -> std::io::Result<Guard> {
    // The filter was checked with the settings; without one everything would be printed.
    let filter: Targets =
        settings.log.parse().unwrap_or_else(|_| Targets::new().with_default(Level::INFO));
    let registry = tracing_subscriber::registry().with(filter);
    let dropped = |lines: u64| tracing::warn!("{lines} log lines dropped (slow reader)");
    let queue = Queue::start(std::io::stderr(), dropped)?;
    let layer = tracing_subscriber::fmt::layer().with_writer(queue.clone());
    let _ = match settings.log_format {
        LogFormat::Json => registry
            .with(layer.json().flatten_event(true).with_current_span(false).with_span_list(false))
            .try_init(),
        LogFormat::Human => {
            registry.with(layer.event_format(Lines { style: Style::of_stderr() })).try_init()
        }
    };
    Ok(Guard(queue))
}

/// The beginning of a line for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Only the priority, as `<6>` (sd-daemon(3)): the journal adds the time.
    Journal,
    /// Time and level in colour.
    Terminal,
    /// Time and level.
    Plain,
}

impl Style {
    fn of_stderr() -> Style {
        let stderr = std::io::stderr();
        let journal = std::env::var("JOURNAL_STREAM").ok();
        if journal.is_some_and(|stream| {
            rustix::fs::fstat(stderr.as_fd()).is_ok_and(|s| is_journal(&stream, s.st_dev, s.st_ino))
        }) {
            Style::Journal
        } else if stderr.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        {
            Style::Terminal
        } else {
            Style::Plain
        }
    }
}

/// `JOURNAL_STREAM` is inherited by children whose standard error goes elsewhere, so it names the
/// stream as `device:inode` (systemd.exec(5)).
fn is_journal(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(d, i)| d.parse() == Ok(device) && i.parse() == Ok(inode))
}

/// `time LEVEL message key=value key=value`
struct Lines {
    style: Style,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut out: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        match self.style {
            Style::Journal => write!(out, "<{}>", priority(level))?,
            Style::Plain => {
                SystemTime.format_time(&mut out)?;
                write!(out, " {level:<5} ")?;
            }
            Style::Terminal => {
                SystemTime.format_time(&mut out)?;
                write!(out, " \x1b[{}m{level:<5}\x1b[0m ", colour(level))?;
            }
        }
        let mut text = Text::default();
        event.record(&mut text);
        writeln!(out, "{}{}", text.message, text.fields)
    }
}

/// Syslog priority, which does not tell debug from trace.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// ANSI: red, yellow, green, grey.
fn colour(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG | Level::TRACE => 90,
    }
}

/// The message and the fields behind it. Values come from manifests and the network: control
/// characters are escaped, so that nobody can forge a line.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn put(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(&printable(value));
            return;
        }
        let quoted =
            value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '"' || c == '=');
        self.fields.extend([" ", field.name(), "="]);
        if quoted {
            self.fields.push_str(&printable(&format!("{value:?}")));
        } else {
            self.fields.push_str(&printable(value));
        }
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        // The whole chain: "cannot load rules: netlink: operation not permitted".
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(source) = cause {
            text.push_str(&format!(": {source}"));
            cause = source.source();
        }
        self.put(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("sink").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(style: Style, log: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .event_format(Lines { style });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = sink.0.lock().expect("sink").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn the_journal_gets_a_priority_and_no_time() {
        let line = logged(Style::Journal, || {
            tracing::warn!(service = "web/shop", reason = "no pool", count = 3, "not served")
        });
        assert_eq!(line, "<4>not served service=web/shop reason=\"no pool\" count=3\n");
    }

    #[test]
    fn a_plain_line_has_time_and_level_and_no_colour() {
        let line = logged(Style::Plain, || tracing::info!(address = %"10.0.0.1", "announced"));
        assert!(line.ends_with(" INFO  announced address=10.0.0.1\n"), "{line}");
        assert!(line.starts_with("20") && !line.contains('\x1b'), "{line}");
    }

    #[test]
    fn nobody_can_forge_a_line() {
        let line = logged(Style::Journal, || {
            tracing::info!(name = "a\n<3>forged", other = "b\x1b[0m", "hello\nworld {}", "\r\n")
        });
        assert_eq!(line, "<6>hello\\nworld \\r\\n name=\"a\\n<3>forged\" other=b\\u{1b}[0m\n");
        let line = logged(Style::Journal, || {
            tracing::info!(name = "a \u{202e}b", other = "\u{2028}c", "\u{202e}d\u{9b}2J")
        });
        assert_eq!(line, "<6>\\u{202e}d\\u{9b}2J name=\"a \\u{202e}b\" other=\"\\u{2028}c\"\n");
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_journal("8:1234", 8, 1234));
        for stream in ["8:1235", "9:1234", "8", "", "x:y"] {
            assert!(!is_journal(stream, 8, 1234), "{stream}");
        }
    }
}
