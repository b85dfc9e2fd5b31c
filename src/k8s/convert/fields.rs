//! Fields that several kinds of objects have.

use std::collections::BTreeSet;
use std::fmt::Display;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::k8s::problems::{Problems, quoted};
use crate::model::{Family, ObjectKey, Protocol};

/// A converted object, and what is wrong with it in sentences that name the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    /// None: the object is of no concern, or nothing of it can be used.
    pub value: Option<T>,
    /// Why parts of the object are missing in `value`.
    pub problems: Vec<String>,
}

/// Namespace (`default` when absent) and name.
pub fn key(metadata: &ObjectMeta) -> ObjectKey {
    let namespace = metadata
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or("default");
    ObjectKey::new(namespace, metadata.name.as_deref().unwrap_or_default())
}

pub(super) fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn family(field: &str, name: &str, problems: &mut Problems) -> Option<Family> {
    match name {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        other => {
            problems.push(format!("{field}: {} is not IPv4 or IPv6", quoted(other)));
            None
        }
    }
}

pub(super) fn protocol(
    field: impl Display,
    name: Option<&str>,
    problems: &mut Problems,
) -> Option<Protocol> {
    match name.filter(|name| !name.is_empty()) {
        None => Some(Protocol::Tcp),
        Some(name) => name
            .parse()
            .map_err(|_| {
                problems.push(format!(
                    "{field}.protocol: {} is not TCP, UDP or SCTP; the port is not served",
                    quoted(name)
                ))
            })
            .ok(),
    }
}

pub(super) fn port_number(
    field: impl Display,
    number: i32,
    problems: &mut Problems,
) -> Option<u16> {
    match u16::try_from(number) {
        Ok(number) if number != 0 => Some(number),
        _ => {
            problems.push(format!(
                "{field}.port: {number} is not between 1 and 65535; the port is not served"
            ));
            None
        }
    }
}

/// Without duplicates, in the same order.
pub(super) fn distinct<T: Copy + Ord>(mut list: Vec<T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    list.retain(|item| seen.insert(*item));
    list.shrink_to_fit();
    list
}
