//! `apiVersion`, `kind`, name and namespace of an object: they decide how the rest is read, and
//! which object a broken document defines.

use serde::Deserialize;

use super::text::{is_significant, lines};
use crate::model::{Kind, ObjectKey};

/// The identity of an object. A Node's namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    pub kind: Kind,
    pub key: ObjectKey,
}

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            Kind::Node => write!(f, "Node {}", self.key.name),
            kind => write!(f, "{} {}", kind.name(), self.key),
        }
    }
}

/// As far as they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Head {
    pub(super) api_version: Option<String>,
    pub(super) kind: Option<String>,
    metadata: Option<HeadMeta>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct HeadMeta {
    name: Option<String>,
    namespace: Option<String>,
}

impl Head {
    pub(super) fn name(&self) -> Option<&str> {
        self.metadata.as_ref()?.name.as_deref()
    }

    /// The kind of the items of a list: `Service` for `ServiceList`, empty for `List`.
    pub(super) fn list_of(&self) -> Option<&str> {
        self.kind.as_deref()?.strip_suffix("List")
    }

    /// `apiVersion` and `kind` of the items of a typed list.
    pub(super) fn implied(&self) -> Option<(Box<str>, Box<str>)> {
        let kind = self.list_of().filter(|kind| !kind.is_empty())?;
        Some((self.api_version.as_deref().unwrap_or_default().into(), kind.into()))
    }

    pub(super) fn id(&self) -> Option<ObjectId> {
        let kind = Kind::ALL.into_iter().find(|kind| Some(kind.name()) == self.kind.as_deref())?;
        let metadata = self.metadata.as_ref()?;
        let name = metadata.name.as_deref().filter(|name| !name.is_empty())?;
        let namespace = match kind {
            Kind::Node => "",
            _ => metadata
                .namespace
                .as_deref()
                .filter(|namespace| !namespace.is_empty())
                .unwrap_or("default"),
        };
        Some(ObjectId { kind, key: ObjectKey::new(namespace, name) })
    }
}

/// Finds `apiVersion`, `kind`, `metadata.name` and `metadata.namespace` in the lines of a
/// block-style document without parsing it, in broken documents too. Values in any other style are
/// not found.
pub(super) fn scan(text: &str) -> Head {
    let mut head = Head::default();
    let mut base = None;
    let mut metadata: Option<(HeadMeta, Option<usize>)> = None;
    let mut in_metadata = false;
    for (_, _, line) in lines(text, 1) {
        if !is_significant(line) {
            continue;
        }
        let mut content = line.trim_start_matches(' ');
        if base.is_none() {
            // The dash of a list item counts as indentation.
            content =
                content.strip_prefix("- ").map_or(content, |rest| rest.trim_start_matches(' '));
        }
        let column = line.len() - content.len();
        let base = *base.get_or_insert(column);
        if column == base {
            in_metadata = false;
            match content.split_once(':') {
                Some(("apiVersion", value)) => head.api_version = scalar(value),
                Some(("kind", value)) => head.kind = scalar(value),
                Some(("metadata", value)) if scalar(value).is_none() => {
                    metadata = Some((HeadMeta::default(), None));
                    in_metadata = true;
                }
                _ => {}
            }
        } else if let Some((metadata, child)) =
            metadata.as_mut().filter(|_| in_metadata && column > base)
            && *child.get_or_insert(column) == column
        {
            match content.split_once(':') {
                Some(("name", value)) => metadata.name = scalar(value),
                Some(("namespace", value)) => metadata.namespace = scalar(value),
                _ => {}
            }
        }
    }
    head.metadata = metadata.map(|(metadata, _)| metadata);
    head
}

/// A plain or simply quoted scalar on the line of its key; None for anything else, which is left to
/// the parser.
fn scalar(value: &str) -> Option<String> {
    let value = match value.split_once(" #") {
        Some((value, _)) => value.trim(),
        None => value.trim(),
    };
    let unquoted = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote))
        .unwrap_or(value);
    let plain = !unquoted.is_empty()
        && unquoted
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'/' | b'_'));
    plain.then(|| unquoted.to_owned())
}
