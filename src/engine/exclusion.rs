//! Nodes that are kept out of load balancing, reported as warnings: an operator who labelled a node
//! long ago, or never knew of the label, looks for the fault everywhere else.

use std::collections::BTreeMap;

use super::eligibility;
use super::index::Index;
use crate::model::Exclusion;
use crate::model::diagnostic::Diagnostic;
use crate::model::state::Reason;

/// The nodes that are excluded now.
pub(super) fn excluded(index: &Index) -> BTreeMap<Box<str>, Exclusion> {
    index.nodes().filter_map(|node| Some((node.name.clone(), node.excluded?))).collect()
}

/// Which nodes became excluded, and which no longer are.
pub(super) fn diff(
    before: &BTreeMap<Box<str>, Exclusion>,
    now: &BTreeMap<Box<str>, Exclusion>,
    index: &Index,
) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    for (name, exclusion) in now.iter().filter(|(name, now)| before.get(*name) != Some(*now)) {
        let label = *exclusion == Exclusion::Label;
        let until = if label { "; until then it answers for no Service" } else { "" };
        // Deletion and the autoscaler are what an operator is just doing.
        diagnostics.push(Diagnostic {
            warning: label,
            service: None,
            node: Some(name.clone()),
            reason: "NodeExcluded",
            message: format!(
                "{}{until}",
                eligibility::excluded(&format!("node {name}"), *exclusion)
            ),
        });
    }
    for name in before.keys().filter(|name| !now.contains_key(*name) && index.node(name).is_some())
    {
        diagnostics.push(Diagnostic {
            warning: false,
            service: None,
            node: Some(name.clone()),
            reason: "NodeIncluded",
            message: format!("node {name} takes part in load balancing again"),
        });
    }
    diagnostics
}

/// For `status`.
pub(super) fn warnings(index: &Index) -> impl Iterator<Item = Reason> {
    excluded(index).into_iter().map(|(name, exclusion)| {
        Reason::new("NodeExcluded", eligibility::excluded(&format!("node {name}"), exclusion))
    })
}

/// Every node is kept out of load balancing, so none may answer for a virtual address.
pub(super) fn everybody_excluded(index: &Index) -> Option<Reason> {
    let mut why = Vec::new();
    for node in index.nodes() {
        why.push(eligibility::excluded(&format!("node {}", node.name), node.excluded?));
    }
    (!why.is_empty()).then(|| {
        Reason::new(
            "UnAvailableLoadBalancer",
            format!("There are no available nodes for LoadBalancer: {}", why.join("; ")),
        )
    })
}
