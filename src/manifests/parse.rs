//! The text of one object → the object, in compact form.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::split::{Document, DocumentKind, is_significant, lines};
use super::{block, kube_vip};
use crate::common::names::{is_dns_label, is_dns_subdomain};
use crate::k8s::convert;
use crate::model::{EndpointSlice, Node, ObjectKey, Service};

/// The kinds that are read, in the order in which changes are handed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ManifestKind {
    /// `v1`
    Node,
    /// `v1`
    Service,
    /// `discovery.k8s.io/v1`
    EndpointSlice,
}

impl ManifestKind {
    const ALL: [ManifestKind; 3] =
        [ManifestKind::Node, ManifestKind::Service, ManifestKind::EndpointSlice];

    /// As written in `kind:`.
    pub fn name(self) -> &'static str {
        match self {
            ManifestKind::Node => "Node",
            ManifestKind::Service => "Service",
            ManifestKind::EndpointSlice => "EndpointSlice",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            ManifestKind::Node | ManifestKind::Service => "v1",
            ManifestKind::EndpointSlice => "discovery.k8s.io/v1",
        }
    }
}

/// Which object a text is about. A Node's namespace is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// What it is.
    pub kind: ManifestKind,
    /// Its namespace and name.
    pub key: ObjectKey,
}

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            ManifestKind::Node => write!(f, "Node {}", self.key.name),
            kind => write!(f, "{} {}", kind.name(), self.key),
        }
    }
}

/// A converted object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Object {
    Node(Box<Node>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1, in the file once it left this module's neighbours.
    pub line: u32,
    /// A plain sentence.
    pub reason: Box<str>,
}

impl Fault {
    pub(super) fn new(line: u32, reason: impl Into<Box<str>>) -> Fault {
        Fault { line, reason: reason.into() }
    }

    /// The same fault, where the text it was found in begins at this line.
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

/// Parsers count lines from where their text begins, which is not where the file begins: only our
/// own line is shown.
fn without_position(message: &str) -> String {
    let first = message.lines().next().unwrap_or_default();
    let first = match first.strip_prefix("error: line ").and_then(|rest| rest.split_once(": ")) {
        Some((_, rest)) => rest,
        None => first,
    };
    first.split(" at line ").next().unwrap_or_default().trim_end_matches([':', ' ']).to_owned()
}

/// What one piece of text turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// An object of ours. The value is None when it is of no concern (a Service of another type) or
    /// nothing of it can be used.
    Object {
        /// Who it is.
        id: ObjectId,
        /// What it says.
        value: Option<Object>,
        /// What of it is not used. A Service carries its problems itself.
        problems: Vec<String>,
    },
    /// An object of another kind: fine, and left to others.
    Foreign {
        /// As written.
        kind: Box<str>,
    },
    /// An object of another kind that there is something to say about.
    Noted {
        /// What.
        note: Box<str>,
    },
    /// No object can be made of it.
    Broken {
        /// The line is counted from the beginning of the piece.
        fault: Fault,
        /// The object it most likely is about, as far as that can be told.
        about: Option<ObjectId>,
    },
}

/// `apiVersion`, `kind` and the name of an object, all that decides how the rest is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Head {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<HeadMeta>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct HeadMeta {
    name: Option<String>,
    namespace: Option<String>,
}

impl Head {
    /// For `List` and `ServiceList` the kind of the items, empty where each says it itself.
    pub(super) fn list_of(&self) -> Option<&str> {
        self.kind.as_deref()?.strip_suffix("List")
    }

    /// `apiVersion` and `kind` of the items of a typed list.
    pub(super) fn implied(&self) -> Option<(Box<str>, Box<str>)> {
        let kind = self.list_of().filter(|kind| !kind.is_empty())?;
        Some((self.api_version.as_deref().unwrap_or_default().into(), kind.into()))
    }

    fn id(&self) -> Option<ObjectId> {
        let kind =
            ManifestKind::ALL.into_iter().find(|kind| Some(kind.name()) == self.kind.as_deref())?;
        let metadata = self.metadata.as_ref()?;
        let name = metadata.name.as_deref().filter(|name| !name.is_empty())?;
        let namespace = match kind {
            ManifestKind::Node => "",
            _ => metadata
                .namespace
                .as_deref()
                .filter(|namespace| !namespace.is_empty())
                .unwrap_or("default"),
        };
        Some(ObjectId { kind, key: ObjectKey::new(namespace, name) })
    }
}

/// Parses the text of one object.
pub fn parse(piece: &Document<'_>) -> Parsed {
    let mut head = match head(piece) {
        Ok(head) => head,
        Err((fault, head)) => return Parsed::Broken { fault, about: head.id() },
    };
    if let Some((api_version, kind)) = &piece.implied {
        head.api_version.get_or_insert_with(|| api_version.to_string());
        head.kind.get_or_insert_with(|| kind.to_string());
    }
    let broken = |fault| Parsed::Broken { fault, about: head.id() };
    let kind = match dispatch(&head) {
        Ok(Ok(kind)) => kind,
        Ok(Err("ConfigMap"))
            if head.metadata.as_ref().and_then(|metadata| metadata.name.as_deref())
                == Some(kube_vip::NAME) =>
        {
            return match read::<core::ConfigMap>(piece) {
                Ok(object) => Parsed::Noted { note: kube_vip::advice(&object).into() },
                Err(fault) => broken(fault),
            };
        }
        Ok(Err(foreign)) => return Parsed::Foreign { kind: foreign.into() },
        Err(reason) => return broken(Fault::new(1, reason)),
    };
    let parsed = match kind {
        ManifestKind::Service => read::<core::Service>(piece).and_then(|object| {
            let id = identify(kind, &object.metadata)?;
            Ok((
                id,
                convert::service(&object).map(|value| Object::Service(Box::new(value))),
                Vec::new(),
            ))
        }),
        ManifestKind::EndpointSlice => read::<discovery::EndpointSlice>(piece).and_then(|object| {
            let id = identify(kind, &object.metadata)?;
            let converted = convert::endpoint_slice(&object);
            Ok((
                id,
                converted.value.map(|value| Object::EndpointSlice(Box::new(value))),
                converted.problems,
            ))
        }),
        ManifestKind::Node => read::<core::Node>(piece).and_then(|object| {
            let id = identify(kind, &object.metadata)?;
            let converted = convert::node(&object);
            Ok((id, converted.value.map(|value| Object::Node(Box::new(value))), converted.problems))
        }),
    };
    match parsed {
        Ok((id, value, problems)) => Parsed::Object { id, value, problems },
        Err(fault) => broken(fault),
    }
}

/// One of our kinds, a kind that is none of ours, or what is wrong with `kind` and `apiVersion`.
fn dispatch(head: &Head) -> Result<Result<ManifestKind, &str>, String> {
    let Some(written) = head.kind.as_deref().filter(|kind| !kind.is_empty()) else {
        return Err("kind is missing; write Service, EndpointSlice or Node".into());
    };
    let api_version = head.api_version.as_deref().unwrap_or_default();
    let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    let Some(kind) = ManifestKind::ALL.into_iter().find(|kind| kind.name() == written) else {
        let near = ManifestKind::ALL
            .into_iter()
            .find(|kind| edits(&kind.name().to_lowercase(), &written.to_lowercase()) <= 1);
        return match near {
            Some(near) => Err(format!(
                "kind: {} is unknown; did you mean {}?",
                convert::quoted(written),
                near.name()
            )),
            None => Ok(Err(written)),
        };
    };
    if api_version.is_empty() {
        Err(format!("apiVersion is missing; write {}", kind.api_version()))
    } else if api_version == kind.api_version() {
        Ok(Ok(kind))
    } else if group(api_version) == group(kind.api_version()) {
        Err(format!(
            "apiVersion: {} of {written} is not supported; write {}",
            convert::quoted(api_version),
            kind.api_version()
        ))
    } else {
        // Another project's kind of the same name, such as a Knative Service.
        Ok(Err(written))
    }
}

/// Number of single-character edits between two short texts; for suggestions.
fn edits(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 2 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((to, above_left), above) in b.iter().zip(row.iter()).zip(row.iter().skip(1)) {
            let left = next.last().copied().unwrap_or_default();
            next.push((above_left + usize::from(from != *to)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(usize::MAX)
}

/// Who the object is, when its names are such as Kubernetes allows.
fn identify(kind: ManifestKind, metadata: &ObjectMeta) -> Result<ObjectId, Fault> {
    let mut key = convert::key(metadata);
    if key.name.is_empty() {
        return Err(Fault::new(1, "metadata.name is missing"));
    }
    let valid = if kind == ManifestKind::Service {
        is_dns_label(&key.name)
    } else {
        is_dns_subdomain(&key.name)
    };
    if !valid {
        let reason = format!(
            "metadata.name: {} is no valid name; use lower case letters, digits and '-'",
            convert::quoted(&key.name)
        );
        return Err(Fault::new(1, reason));
    }
    if kind == ManifestKind::Node {
        key.namespace = "".into();
    } else if !is_dns_label(&key.namespace) {
        let reason = format!(
            "metadata.namespace: {} is no valid name; use lower case letters, digits and '-'",
            convert::quoted(&key.namespace)
        );
        return Err(Fault::new(1, reason));
    }
    Ok(ObjectId { kind, key })
}

/// The head of a piece, scanned from the lines where that tells enough, else parsed.
fn head(piece: &Document<'_>) -> Result<Head, (Fault, Head)> {
    let text = &*piece.text;
    if piece.shape == DocumentKind::Json {
        return serde_json::from_str(text).map_err(|error| (Fault::json(&error), Head::default()));
    }
    let scanned = scan(text);
    // Of foreign kinds no more is needed, and whether the rest of them is in order is not ours to
    // judge.
    let is_enough = match scanned.kind.as_deref() {
        Some(kind) if ManifestKind::ALL.iter().all(|ours| ours.name() != kind) => true,
        Some(_) => scanned.id().is_some() && scanned.api_version.is_some(),
        None => false,
    };
    if is_enough {
        return Ok(scanned);
    }
    let parsed = match piece.shape {
        DocumentKind::YamlItem => yaml::<(Head,)>(text).map(|(head,)| head),
        _ => yaml::<Head>(text),
    };
    parsed.map_err(|fault| (fault, scanned))
}

fn read<T: DeserializeOwned>(piece: &Document<'_>) -> Result<T, Fault> {
    let json = |text: &str| serde_json::from_str(text);
    // Whatever the fast path cannot read, the general parser reads or finds the fault in.
    let fast = || block::to_json(&piece.text);
    match piece.shape {
        DocumentKind::Json => json(&piece.text).map_err(|error| Fault::json(&error)),
        DocumentKind::Yaml => match fast().and_then(|text| json(&text).ok()) {
            Some(object) => Ok(object),
            None => yaml(&piece.text),
        },
        DocumentKind::YamlItem => {
            match fast().and_then(|text| serde_json::from_str::<(T,)>(&text).ok()) {
                Some((object,)) => Ok(object),
                None => yaml::<(T,)>(&piece.text).map(|(object,)| object),
            }
        }
    }
}

/// One YAML document. Depth and alias expansion are limited by the parser's defaults; size is
/// limited by the file's.
pub(super) fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, Fault> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        emit_comments: false,
        budget: serde_saphyr::budget! { max_events: 40_000_000, max_nodes: 20_000_000 },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| Fault::yaml(&error))
}

/// Reads `apiVersion`, `kind`, `metadata.name` and `metadata.namespace` off the lines of a
/// block-style document without parsing it. Works on broken documents too; what stands in any other
/// style is not found.
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
            // The dash of a list item stands for indentation.
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

/// A plain or simply quoted scalar on the line of its key; anything more elaborate is left to the
/// parser.
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

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
