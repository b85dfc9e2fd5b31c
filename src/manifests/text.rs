//! Text: lines, faults in them, and the general YAML parser.

use serde::de::DeserializeOwned;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1: in the document, or in the file once `split` or the store reports it.
    pub line: u32,
    /// A plain sentence.
    pub reason: Box<str>,
}

impl Fault {
    pub(super) fn new(line: u32, reason: impl Into<Box<str>>) -> Fault {
        Fault { line, reason: reason.into() }
    }

    /// The same fault in a text of which the present one begins at this line.
    pub(super) fn after(self, line: u32) -> Fault {
        Fault { line: line.saturating_add(self.line.saturating_sub(1)), ..self }
    }

    pub(super) fn json(error: &serde_json::Error) -> Fault {
        Fault::new(
            u32::try_from(error.line()).unwrap_or(u32::MAX).max(1),
            without_position(&error.to_string()),
        )
    }

    fn yaml(error: &serde_saphyr::Error) -> Fault {
        let line = error
            .location()
            .map_or(1, |location| u32::try_from(location.line()).unwrap_or(u32::MAX));
        Fault::new(line.max(1), without_position(&error.without_snippet().to_string()))
    }
}

/// The message without the parser's own position, which is counted from the beginning of the
/// document and not of the file.
fn without_position(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let first = match first.strip_prefix("error: line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, rest)) => rest,
        None => first,
    };
    first.split(" at line ").next().unwrap_or_default().trim_end_matches([':', ' ']).to_owned()
}

/// Parses one YAML document with the general parser. Depth and alias expansion are limited by its
/// defaults, size by the maximum size of a file.
pub(super) fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        emit_comments: false,
        budget: serde_saphyr::budget! { max_events: 40_000_000, max_nodes: 20_000_000 },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| Fault::yaml(&error))
}

/// Every line with its number and byte offset, without its line end.
pub(super) fn lines(text: &str, first: u32) -> impl Iterator<Item = (u32, usize, &str)> {
    let mut offset = 0;
    let mut number = first;
    text.split_inclusive('\n').map(move |line| {
        let item = (number, offset, line.trim_end_matches(['\n', '\r']));
        offset += line.len();
        number = number.saturating_add(1);
        item
    })
}

/// True for lines that are neither blank nor a comment.
pub(super) fn is_significant(line: &str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !line.starts_with('#')
}
