//! The text of a file to the texts of its objects. YAML documents are split at their markers and
//! lists at their items without being parsed: a fault in one leaves the others alone, and no text
//! is held twice.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::head::{Head, scan};
use super::text::{Fault, is_significant, lines, yaml};

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// YAML documents separated by `---` lines; each may also be JSON.
    Yaml,
    /// Concatenated JSON values.
    Json,
}

impl Format {
    /// The format of a manifest by its file name. None for anything else in a directory: files that
    /// start with a dot, editors' temporary and backup files (`x.yaml~`, `.x.yaml.swp`,
    /// `#x.yaml#`, `4913`), and other extensions.
    pub fn of(file_name: &str) -> Option<Format> {
        if file_name.starts_with(['.', '#']) {
            return None;
        }
        match file_name.rsplit_once('.')?.1 {
            "yaml" | "yml" => Some(Format::Yaml),
            "json" => Some(Format::Json),
            _ => None,
        }
    }
}

/// The text of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// First line, counted from 1 in the file.
    pub line: u32,
    /// The text; owned only where a list was split by parsing it.
    pub text: Cow<'a, str>,
    /// How `text` is to be read.
    pub shape: DocumentKind,
    /// `apiVersion` and `kind` of an item of a typed list (`ServiceList`), which need not name them.
    pub implied: Option<(Box<str>, Box<str>)>,
}

/// How the text of a document is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DocumentKind {
    /// A YAML document.
    Yaml,
    /// A YAML sequence of this one item, dash included.
    YamlItem,
    /// A JSON value.
    Json,
}

/// Calls `each` with the text of every object in the order of the file, or with the fault in its
/// place. Lines are those of the file.
pub fn split<'a>(text: &'a str, format: Format, each: &mut dyn FnMut(Result<Document<'a>, Fault>)) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match format {
        Format::Json => split_json(text, 1, each),
        Format::Yaml => split_yaml(text, each),
    }
}

fn split_yaml<'a>(text: &'a str, each: &mut dyn FnMut(Result<Document<'a>, Fault>)) {
    let mut start = 0;
    let mut first_line = 1;
    for (line, offset, content) in lines(text, 1) {
        let Some(rest) = content.strip_prefix("---").or_else(|| content.strip_prefix("...")) else {
            continue;
        };
        if !(rest.is_empty() || rest.starts_with([' ', '\t'])) {
            continue;
        }
        document(text.get(start..offset).unwrap_or_default(), first_line, each);
        // What follows `---` on its line belongs to the document that begins there.
        start = offset + 3;
        first_line = line;
    }
    document(text.get(start..).unwrap_or_default(), first_line, each);
}

fn document<'a>(text: &'a str, line: u32, each: &mut dyn FnMut(Result<Document<'a>, Fault>)) {
    let mut significant = lines(text, line)
        .filter(|(_, _, content)| is_significant(content) && !content.starts_with('%'));
    let Some((first_line, offset, first)) = significant.next() else { return };
    let text = text.get(offset..).unwrap_or_default();
    if first.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok() {
        return split_json(text, first_line, each);
    }
    let head = scan(text);
    match head.list_of() {
        Some(_) => split_list(text, first_line, &head, each),
        None => each(Ok(Document {
            line: first_line,
            text: Cow::Borrowed(text),
            shape: DocumentKind::Yaml,
            implied: None,
        })),
    }
}

/// Splits a block-style list at its dashes: the content of an item is always indented deeper than
/// its dash, so a dash in that column begins the next item. A list in any other style, or one with
/// anchors that items may share, is parsed and split as a tree.
fn split_list<'a>(
    text: &'a str,
    line: u32,
    head: &Head,
    each: &mut dyn FnMut(Result<Document<'a>, Fault>),
) {
    match item_offsets(text, line) {
        Some((before, items, after)) if !text.contains(['&', '*']) => {
            for (rest, rest_line) in [(before, line), after] {
                let rest = rest.trim_end();
                let fault = if rest.is_empty() { None } else { yaml::<IgnoredAny>(rest).err() };
                if let Some(fault) = fault {
                    each(Err(fault.after(rest_line)));
                }
            }
            for (item_line, item) in items {
                each(Ok(Document {
                    line: item_line,
                    text: Cow::Borrowed(item),
                    shape: DocumentKind::YamlItem,
                    implied: head.implied(),
                }));
            }
        }
        _ => split_tree(text, line, each),
    }
}

type Items<'a> = (&'a str, Vec<(u32, &'a str)>, (&'a str, u32));

/// The text before `items:`, every item with its line, and the text after the items with its line.
fn item_offsets(text: &str, first_line: u32) -> Option<Items<'_>> {
    let mut all = lines(text, first_line);
    let (_, items_at, _) = all.find(|(_, _, content)| {
        content.strip_prefix("items:").is_some_and(|rest| {
            rest.trim().is_empty()
                || rest.starts_with([' ', '\t']) && rest.trim_start().starts_with('#')
        })
    })?;
    let mut dash = None;
    let mut starts = Vec::new();
    let mut end = (text.len(), 0);
    for (line, offset, content) in all.filter(|(_, _, content)| is_significant(content)) {
        let indent = content.len() - content.trim_start_matches(' ').len();
        let is_dash = content
            .trim_start_matches(' ')
            .strip_prefix('-')
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        match dash {
            None if !is_dash => return None,
            None => {
                dash = Some(indent);
                starts.push((line, offset));
            }
            Some(column) if indent == column && is_dash => starts.push((line, offset)),
            Some(column) if indent > column => {}
            Some(_) => {
                end = (offset, line);
                break;
            }
        }
    }
    let ends = starts.iter().skip(1).map(|(_, offset)| *offset).chain([end.0]);
    let items = starts
        .iter()
        .zip(ends)
        .filter_map(|((line, from), to)| Some((*line, text.get(*from..to)?)))
        .collect();
    Some((text.get(..items_at)?, items, (text.get(end.0..)?, end.1)))
}

/// Parses the whole list; its items become JSON. Faults of all items are reported at the line of
/// the list.
fn split_tree<'a>(text: &'a str, line: u32, each: &mut dyn FnMut(Result<Document<'a>, Fault>)) {
    let mut tree = match yaml::<serde_json::Value>(text) {
        Ok(tree) => tree,
        Err(fault) => return each(Err(fault.after(line))),
    };
    let head = Head::deserialize(&tree).unwrap_or_default();
    match tree.get_mut("items").map(serde_json::Value::take) {
        Some(serde_json::Value::Array(items)) => {
            for item in items {
                each(Ok(Document {
                    line,
                    text: Cow::Owned(item.to_string()),
                    shape: DocumentKind::Json,
                    implied: head.implied(),
                }));
            }
        }
        None | Some(serde_json::Value::Null) => {}
        Some(_) => each(Err(Fault::new(line, "items: not a list"))),
    }
}

#[derive(Deserialize)]
struct JsonList<'a> {
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

fn split_json<'a>(
    text: &'a str,
    first_line: u32,
    each: &mut dyn FnMut(Result<Document<'a>, Fault>),
) {
    let mut line = first_line;
    let mut counted = 0;
    let mut line_of = |raw: &RawValue| {
        let offset = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        line = line.saturating_add(count_lines(text.get(counted..offset).unwrap_or_default()));
        counted = offset.max(counted);
        line
    };
    for value in serde_json::Deserializer::from_str(text).into_iter::<&'a RawValue>() {
        let raw = match value {
            Ok(raw) => raw,
            // The stream cannot be resumed after a syntax error.
            Err(error) => return each(Err(Fault::json(&error).after(first_line))),
        };
        let line = line_of(raw);
        let head: Head = serde_json::from_str(raw.get()).unwrap_or_default();
        if head.list_of().is_none() {
            each(Ok(Document {
                line,
                text: Cow::Borrowed(raw.get()),
                shape: DocumentKind::Json,
                implied: None,
            }));
            continue;
        }
        match serde_json::from_str::<JsonList<'a>>(raw.get()) {
            Ok(list) => {
                for item in list.items.unwrap_or_default() {
                    let document = Document {
                        line: line_of(item),
                        text: Cow::Borrowed(item.get()),
                        shape: DocumentKind::Json,
                        implied: head.implied(),
                    };
                    each(Ok(document));
                }
            }
            Err(error) => each(Err(Fault::json(&error).after(line))),
        }
    }
}

fn count_lines(text: &str) -> u32 {
    u32::try_from(text.bytes().filter(|byte| *byte == b'\n').count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
