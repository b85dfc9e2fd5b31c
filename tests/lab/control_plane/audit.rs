//! Who asked the API server for what, from its own audit log.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use serde_json::Value;

/// A place in the audit log: what comes later is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub(super) u64);

/// One request, whatever became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub user: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`…
    pub verb: String,
    /// `services`, `services/status`, `endpointslices`…; empty for paths that are none.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    /// The status code of the answer.
    pub code: u64,
}

/// The requests after a mark. A watch is written twice, when it begins and when it ends, and
/// counted once.
pub fn requests(log: &Path, since: Mark) -> Vec<Request> {
    let mut text = String::new();
    let Ok(mut file) = File::open(log) else { return Vec::new() };
    file.seek(SeekFrom::Start(since.0))
        .and_then(|_| file.read_to_string(&mut text))
        .expect("the audit log can be read");
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut seen = HashSet::new();
    let lines = whole
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("the audit log is lines of JSON"));
    lines
        .filter(|event| seen.insert(event["auditID"].to_string()))
        .map(|event| request(&event))
        .collect()
}

fn request(event: &Value) -> Request {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let resource = match object["subresource"].as_str() {
        Some(part) => format!("{}/{part}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    Request {
        user: text(&event["user"]["username"]),
        verb: text(&event["verb"]),
        resource,
        namespace: text(&object["namespace"]),
        name: text(&object["name"]),
        code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
    }
}
