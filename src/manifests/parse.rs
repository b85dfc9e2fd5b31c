//! The text of one object to the object of the model.

use serde::de::DeserializeOwned;

use super::head::{Head, ObjectId, scan};
use super::split::{Document, DocumentKind};
use super::text::{Fault, yaml};
use super::{block, kube_vip};
use crate::common::names::{is_dns_label, is_dns_subdomain};
use crate::common::nearest;
use crate::k8s::problems::quoted;
use crate::k8s::{convert, objects};
use crate::model::{EndpointSlice, Kind, Node, Service};

/// A converted object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    Node(Box<Node>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
}

/// The result of parsing one document.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// A Service, EndpointSlice or Node. The value is None when the object is of no concern (a
    /// Service of another type) or nothing of it can be used.
    Object {
        id: ObjectId,
        value: Option<Object>,
        /// Why parts of it are not used. A Service carries its problems itself.
        problems: Vec<String>,
    },
    /// An object of another kind, which is ignored.
    Foreign { kind: Box<str> },
    /// An object of another kind that deserves a note.
    Noted { note: Box<str> },
    /// A document that cannot be parsed.
    Broken {
        /// Lines are counted from the first of the document.
        fault: Fault,
        /// The object that it most likely defines, if that can be determined.
        about: Option<ObjectId>,
    },
}

/// Parses the text of one object.
pub fn parse(document: &Document<'_>) -> Parsed {
    let mut head = match head(document) {
        Ok(head) => head,
        Err((fault, head)) => return Parsed::Broken { fault, about: head.id() },
    };
    if let Some((api_version, kind)) = &document.implied {
        head.api_version.get_or_insert_with(|| api_version.to_string());
        head.kind.get_or_insert_with(|| kind.to_string());
    }
    let broken = |fault| Parsed::Broken { fault, about: head.id() };
    let kind = match dispatch(&head) {
        Ok(Ok(kind)) => kind,
        Ok(Err("ConfigMap")) if head.name() == Some(kube_vip::NAME) => {
            return match read::<objects::ConfigMap>(document) {
                Ok(object) => {
                    Parsed::Noted { note: kube_vip::advice(object.data.iter().flatten()).into() }
                }
                Err(fault) => broken(fault),
            };
        }
        Ok(Err(foreign)) => return Parsed::Foreign { kind: foreign.into() },
        Err(reason) => return broken(Fault::new(1, reason)),
    };
    let parsed = match kind {
        Kind::Service => read::<objects::Service>(document).and_then(|object| {
            let id = identify(kind, &object.metadata)?;
            Ok((
                id,
                convert::service(&object).map(|value| Object::Service(Box::new(value))),
                Vec::new(),
            ))
        }),
        Kind::EndpointSlice => read::<objects::EndpointSlice>(document).and_then(|object| {
            let id = identify(kind, &object.metadata)?;
            let converted = convert::endpoint_slice(&object);
            Ok((
                id,
                converted.value.map(|value| Object::EndpointSlice(Box::new(value))),
                converted.problems,
            ))
        }),
        Kind::Node => read::<objects::Node>(document).and_then(|object| {
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

/// A kind that is read, the name of one that is not, or what is wrong with `kind` and
/// `apiVersion`.
fn dispatch(head: &Head) -> Result<Result<Kind, &str>, String> {
    let Some(written) = head.kind.as_deref().filter(|kind| !kind.is_empty()) else {
        return Err("kind is missing; write Service, EndpointSlice or Node".into());
    };
    let api_version = head.api_version.as_deref().unwrap_or_default();
    let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.name() == written) else {
        let near = Kind::ALL.into_iter().find(|kind| is_misspelled(written, kind.name()));
        return match near {
            Some(near) => {
                Err(format!("kind: {} is unknown; did you mean {}?", quoted(written), near.name()))
            }
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
            quoted(api_version),
            kind.api_version()
        ))
    } else {
        // Another project's kind of the same name, such as a Knative Service.
        Ok(Err(written))
    }
}

/// One letter more, less, other or swapped, and letters of either case. Kinds of other projects may
/// well be two letters away (`Device`).
fn is_misspelled(written: &str, kind: &str) -> bool {
    written.len().abs_diff(kind.len()) <= 1
        && nearest::distance(&kind.to_lowercase(), &written.to_lowercase()) <= 1
}

/// The identity of the object, if its names are valid in Kubernetes.
fn identify(kind: Kind, metadata: &objects::Metadata) -> Result<ObjectId, Fault> {
    let mut key = convert::key(metadata);
    if key.name.is_empty() {
        return Err(Fault::new(1, "metadata.name is missing"));
    }
    let valid =
        if kind == Kind::Service { is_dns_label(&key.name) } else { is_dns_subdomain(&key.name) };
    if !valid {
        let reason = format!(
            "metadata.name: {} is no valid name; use lower case letters, digits and '-'",
            quoted(&key.name)
        );
        return Err(Fault::new(1, reason));
    }
    if kind == Kind::Node {
        key.namespace = "".into();
    } else if !is_dns_label(&key.namespace) {
        let reason = format!(
            "metadata.namespace: {} is no valid name; use lower case letters, digits and '-'",
            quoted(&key.namespace)
        );
        return Err(Fault::new(1, reason));
    }
    Ok(ObjectId { kind, key })
}

/// The head of a document, scanned from its lines where that suffices, else parsed.
fn head(document: &Document<'_>) -> Result<Head, (Fault, Head)> {
    let text = &*document.text;
    if document.shape == DocumentKind::Json {
        return serde_json::from_str(text).map_err(|error| (Fault::json(&error), Head::default()));
    }
    let scanned = scan(text);
    // Of other kinds nothing more is needed; the rest of such a document may even be broken.
    let is_enough = match scanned.kind.as_deref() {
        Some(kind) if Kind::ALL.iter().all(|ours| ours.name() != kind) => true,
        Some(_) => scanned.id().is_some() && scanned.api_version.is_some(),
        None => false,
    };
    if is_enough {
        return Ok(scanned);
    }
    let parsed = match document.shape {
        DocumentKind::YamlItem => yaml::<(Head,)>(text).map(|(head,)| head),
        _ => yaml::<Head>(text),
    };
    parsed.map_err(|fault| (fault, scanned))
}

fn read<T: DeserializeOwned>(document: &Document<'_>) -> Result<T, Fault> {
    let json = |text: &str| serde_json::from_str(text);
    // What the fast path does not read, the general parser reads or finds the fault in.
    let fast = || block::to_json(&document.text);
    match document.shape {
        DocumentKind::Json => json(&document.text).map_err(|error| Fault::json(&error)),
        DocumentKind::Yaml => match fast().and_then(|text| json(&text).ok()) {
            Some(object) => Ok(object),
            None => yaml(&document.text),
        },
        DocumentKind::YamlItem => {
            match fast().and_then(|text| serde_json::from_str::<(T,)>(&text).ok()) {
                Some((object,)) => Ok(object),
                None => yaml::<(T,)>(&document.text).map(|(object,)| object),
            }
        }
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
