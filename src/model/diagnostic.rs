//! What people are told: log lines and Events.

use super::ObjectKey;

/// The reason of diagnostics about API objects that cannot be used, or not wholly.
pub const INVALID_OBJECT: &str = "InvalidObject";

/// A sentence for people: a log line, and an Event where there is an API to send it to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Something is wrong and somebody may have to act.
    pub warning: bool,
    /// Whom it concerns; None: a node as a whole.
    pub service: Option<ObjectKey>,
    /// Which one, where the Node object says it to everybody; None: this one, and only it can
    /// know.
    pub node: Option<Box<str>>,
    /// A word for machines, as Event reasons are written.
    pub reason: &'static str,
    /// What happened, and what to do if it is bad.
    pub message: String,
}

impl Diagnostic {
    /// About this node; somebody may have to act.
    pub fn warning(reason: &'static str, message: String) -> Diagnostic {
        Diagnostic { warning: true, service: None, node: None, reason, message }
    }

    /// About this node; nobody has to act.
    pub fn normal(reason: &'static str, message: String) -> Diagnostic {
        Diagnostic { warning: false, service: None, node: None, reason, message }
    }

    /// The same about a Service.
    pub fn about(self, service: ObjectKey) -> Diagnostic {
        Diagnostic { service: Some(service), ..self }
    }

    /// The same about a node that the whole cluster may hear of.
    pub fn about_node(self, node: Box<str>) -> Diagnostic {
        Diagnostic { node: Some(node), ..self }
    }
}
