//! What the engine asks of the data plane.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::forwarding::{Forwarding, FrontendKey};

/// A change to the rule set, absolute in what it names: applying it twice is applying it once.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Forget everything first: what is named here is all there is, and what is None is empty.
    pub reset: bool,
    /// Interfaces on which outside traffic arrives; None: as before.
    pub uplinks: Option<BTreeSet<Box<str>>>,
    /// Addresses that are ours alone; None: as before.
    pub vips: Option<BTreeSet<IpAddr>>,
    /// Frontends with their new forwarding; None: withdrawn.
    pub forwardings: BTreeMap<FrontendKey, Option<Arc<Forwarding>>>,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        !self.reset && self.uplinks.is_none() && self.vips.is_none() && self.forwardings.is_empty()
    }

    /// Adds a later change, which wins where both speak.
    pub fn merge(&mut self, later: Changes) {
        if later.reset {
            *self = later;
            return;
        }
        if later.uplinks.is_some() {
            self.uplinks = later.uplinks;
        }
        if later.vips.is_some() {
            self.vips = later.vips;
        }
        self.forwardings.extend(later.forwardings);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::forwarding::Target;
    use crate::domain::model::Protocol;

    fn frontend(port: u16) -> FrontendKey {
        FrontendKey { address: "192.0.2.1".parse().unwrap(), protocol: Protocol::Tcp, port }
    }

    fn forwarding(internal: Target) -> Option<Arc<Forwarding>> {
        Some(Arc::new(Forwarding { internal, external: None, sources: None }))
    }

    #[test]
    fn the_later_change_wins_where_both_speak() {
        let mut changes = Changes { uplinks: Some(BTreeSet::from(["eth0".into()])), ..Changes::default() };
        changes.forwardings.insert(frontend(1), forwarding(Target::Drop));
        changes.forwardings.insert(frontend(2), forwarding(Target::Drop));
        let mut later = Changes { vips: Some(BTreeSet::new()), ..Changes::default() };
        later.forwardings.insert(frontend(2), None);
        changes.merge(later);
        assert_eq!(changes.uplinks, Some(BTreeSet::from(["eth0".into()])));
        assert_eq!(changes.vips, Some(BTreeSet::new()));
        assert_eq!(changes.forwardings, BTreeMap::from([(frontend(1), forwarding(Target::Drop)), (frontend(2), None)]));
    }

    #[test]
    fn a_reset_forgets_what_came_before_and_stays_a_reset() {
        let mut changes = Changes::default();
        changes.forwardings.insert(frontend(1), forwarding(Target::Drop));
        changes.merge(Changes { reset: true, ..Changes::default() });
        assert_eq!(changes, Changes { reset: true, ..Changes::default() });
        changes.merge(Changes { uplinks: Some(BTreeSet::new()), ..Changes::default() });
        assert!(changes.reset);
    }
}
