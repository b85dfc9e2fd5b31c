//! The environment: which of its variables are settings, and which only look like one.

use std::ffi::OsString;

use super::kube_vip;
use super::problem::{SettingProblem, Warning};
use super::sources::Given;
use super::table::{PREFIX, TABLE};
use crate::common::nearest::nearest;

/// Reads the settings among the variables: name in the table → its own name and its value. An empty
/// variable counts as not set. Other programs' variables are ignored.
pub(super) fn read(
    variables: Vec<(OsString, OsString)>,
    warnings: &mut Vec<Warning>,
    problems: &mut Vec<SettingProblem>,
) -> Given {
    let mut given = Given::new();
    let texts: Vec<(String, String)> = variables
        .iter()
        .filter_map(|(name, value)| {
            Some((name.to_str()?.to_owned(), value.to_str()?.trim().to_owned()))
        })
        .collect();
    let kube_vip =
        kube_vip::advice(texts.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    warnings.extend(kube_vip.into_iter().map(|(name, advice)| Warning::KubeVip { name, advice }));
    for (name, value) in variables {
        let name = name.to_string_lossy().into_owned();
        let Some(short) = name.strip_prefix(PREFIX) else { continue };
        let Some(setting) = TABLE.iter().find(|setting| setting.name == short) else {
            if !is_service_link(short) {
                warnings.push(Warning::UnknownVariable { nearest: nearest_variable(short), name });
            }
            continue;
        };
        match value.into_string() {
            Ok(value) if value.trim().is_empty() => {}
            Ok(value) => {
                given.insert(setting.name, (name, value.trim().to_string()));
            }
            Err(value) => problems.push(SettingProblem::new(
                format!("{name}={:?}", value.to_string_lossy()),
                "this is not UTF-8",
            )),
        }
    }
    given
}

/// The kubelet gives pods variables for every Service of their namespace; for one called `pinnace`
/// they begin with our prefix.
pub(super) fn is_service_link(short: &str) -> bool {
    short == "SERVICE_HOST"
        || short == "PORT"
        || short.starts_with("SERVICE_PORT")
        || short.starts_with("PORT_")
}

fn nearest_variable(short: &str) -> Option<String> {
    nearest(short, TABLE.iter().map(|setting| setting.name)).map(|name| format!("{PREFIX}{name}"))
}
