//! The configuration file: a YAML mapping of one `key: value` per setting. A list is the same as
//! its values separated by commas (by semicolons where they are named pools). Values are taken as
//! written, never as YAML's idea of a number or a date.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};
use serde_saphyr::{Spanned, UserMessageFormatter};

use super::problem::{Place, SettingProblem, Warning};
use super::sources::Given;
use super::table::{PREFIX, TABLE};
use crate::common::nearest::nearest;

/// A configuration file that the user named.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// For messages.
    pub path: PathBuf,
    /// The text, or why it cannot be read, which is reported among the other errors.
    pub text: Result<String, String>,
}

/// Reads the settings in the file: name in the table → place and value.
pub(super) fn read(
    file: &ConfigFile,
    warnings: &mut Vec<Warning>,
    problems: &mut Vec<SettingProblem>,
) -> Given {
    let mut given = Given::new();
    let place = |line| Place { path: file.path.clone(), line };
    let text = file
        .text
        .as_ref()
        .map_err(|error| (None, format!("the configuration file cannot be read: {error}")));
    let entries = match text.and_then(|text| parse(text)) {
        Ok(entries) => entries,
        Err((line, reason)) => {
            problems.push(SettingProblem::new(place(line).to_string(), reason));
            return given;
        }
    };
    for (key, line, value) in entries {
        let place = place(Some(line));
        let upper = key.to_ascii_uppercase().replace('-', "_");
        let short = upper.strip_prefix(PREFIX).unwrap_or(&upper);
        let subject = format!("{place}: {key}");
        let mut refuse = |reason: &str| problems.push(SettingProblem::new(&*subject, reason));
        let Some(setting) = TABLE.iter().find(|setting| setting.name == short) else {
            let nearest = nearest(short, TABLE.iter().map(|s| s.name)).map(str::to_ascii_lowercase);
            warnings.push(Warning::UnknownKey { key, place, nearest });
            continue;
        };
        let value = match value {
            Value::Text(text) => text.trim().to_string(),
            Value::List(items) => {
                items.join(if items.iter().any(|item| item.contains('=')) { ";" } else { "," })
            }
            Value::Mapping => {
                refuse("a mapping is not understood here; write the value as one text");
                continue;
            }
        };
        if setting.name == "CONFIG" {
            refuse("a configuration file cannot name another one");
        } else if !value.is_empty()
            && given.insert(setting.name, (subject.clone(), value)).is_some()
        {
            refuse("this setting is given twice in the file, in two spellings; remove one");
        }
    }
    given
}

enum Value {
    Text(String),
    List(Vec<String>),
    Mapping,
}

/// What a value looks like, found in a first pass, so that the second can ask for exactly that and
/// gets scalars as they were written.
#[derive(Clone, Copy)]
enum Shape {
    Scalar,
    List,
    Mapping,
}

type Entries = Vec<(String, u64, Value)>;

fn parse(text: &str) -> Result<Entries, (Option<u64>, String)> {
    let failed = |error: serde_saphyr::Error| {
        let line = error.location().map(|location| location.line());
        let reason = match error.without_snippet() {
            serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("{key} is given twice in the file; remove one")
            }
            other => format!(
                "{}; write one `key: value` per line",
                other.render_with_formatter(&UserMessageFormatter)
            ),
        };
        (line, reason)
    };
    let blank = |line: &str| {
        line.trim().is_empty() || line.trim_start().starts_with('#') || line.trim() == "---"
    };
    if text.lines().all(blank) {
        return Ok(Vec::new());
    }
    let shapes: BTreeMap<String, Spanned<Shape>> = serde_saphyr::from_str(text).map_err(failed)?;
    serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        deserializer.deserialize_map(SecondPass(&shapes))
    })
    .map_err(failed)
}

struct SecondPass<'a>(&'a BTreeMap<String, Spanned<Shape>>);

impl<'de> Visitor<'de> for SecondPass<'_> {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let shape = self
                .0
                .get(&key)
                .ok_or_else(|| de::Error::custom(format!("{key} is a key without a value")))?;
            let value = map.next_value_seed(shape.value)?;
            entries.push((key, shape.referenced.line(), value));
        }
        Ok(entries)
    }
}

impl<'de> DeserializeSeed<'de> for Shape {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        match self {
            Shape::Scalar => {
                Ok(Value::Text(Option::<String>::deserialize(deserializer)?.unwrap_or_default()))
            }
            Shape::List => Vec::deserialize(deserializer).map(Value::List),
            Shape::Mapping => IgnoredAny::deserialize(deserializer).map(|_| Value::Mapping),
        }
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Shape, D::Error> {
        struct AnyShape;
        impl<'de> Visitor<'de> for AnyShape {
            type Value = Shape;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value or a list of values")
            }
            fn visit_bool<E>(self, _: bool) -> Result<Shape, E> {
                Ok(Shape::Scalar)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Shape, E> {
                Ok(Shape::Scalar)
            }
            fn visit_i128<E>(self, _: i128) -> Result<Shape, E> {
                Ok(Shape::Scalar)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Shape, E> {
                Ok(Shape::Scalar)
            }
            fn visit_u128<E>(self, _: u128) -> Result<Shape, E> {
                Ok(Shape::Scalar)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Shape, E> {
                Ok(Shape::Scalar)
            }
            fn visit_str<E>(self, _: &str) -> Result<Shape, E> {
                Ok(Shape::Scalar)
            }
            fn visit_unit<E>(self) -> Result<Shape, E> {
                Ok(Shape::Scalar)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Shape::List)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Shape::Mapping)
            }
        }
        deserializer.deserialize_any(AnyShape)
    }
}
