//! A small ruleset with rules of every kind, to find out whether a kernel takes them all.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::Protocol;
use crate::model::forwarding::{Backend, Balancing, Forwarding, FrontendKey};
use crate::model::ruleset_changes::RulesetChanges;

/// In both families: an exact and a sticky choice between endpoints, endpoints of this node alone,
/// silence, refusal, and source ranges, for addresses of the documentation (RFC 5737, RFC 3849).
pub fn probe_ruleset() -> RulesetChanges {
    let families: [[IpAddr; 3]; 2] = [
        [1, 2, 3].map(|last| Ipv4Addr::new(192, 0, 2, last).into()),
        [1, 2, 3].map(|last| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()),
    ];
    let mut forwardings = BTreeMap::new();
    for [vip, one, other] in families {
        let backend = |address, local| Backend { address, port: 8080, local };
        let both = vec![backend(one, true), backend(other, false)];
        let spread = || Balancing::FlowHash(both.clone());
        let kinds = [
            (Protocol::Tcp, spread(), None, Some(vec![IpNet::from(one)])),
            (Protocol::Udp, Balancing::ClientIp(both.clone()), Some(Balancing::Drop), None),
            (Protocol::Sctp, spread(), Some(Balancing::FlowHash(vec![backend(one, true)])), None),
            (Protocol::Tcp, spread(), Some(Balancing::ClientIp(vec![backend(one, true)])), None),
            (Protocol::Tcp, Balancing::Reject, None, None),
        ];
        for (port, (protocol, internal, external, sources)) in (1..).zip(kinds) {
            forwardings.insert(
                FrontendKey { address: vip, protocol, port },
                Some(Arc::new(Forwarding { internal, external, sources })),
            );
        }
    }
    let vips = families.iter().map(|[vip, ..]| *vip).collect();
    RulesetChanges {
        reset: true,
        uplinks: Some(BTreeSet::from(["lo".into()])),
        vips: Some(vips),
        forwardings,
        ..RulesetChanges::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::nft::{Compiler, Scope, SetId};

    #[test]
    fn every_map_gets_an_element_and_every_kind_of_choice_is_made() {
        let changes = probe_ruleset();
        let staged = Compiler::default().stage(&changes);
        let mut filled = BTreeSet::new();
        staged.batch.each_add(|family, set, _| _ = filled.insert((family, set)));
        for family in Family::ALL {
            // The writer fills the dead man's switch.
            for set in SetId::ALL.into_iter().filter(|set| *set != SetId::Alive) {
                assert!(filled.contains(&(family, set)), "{family}: {set:?}");
            }
            for (scope, affinity) in [
                (Scope::Cluster, false),
                (Scope::Cluster, true),
                (Scope::Local, false),
                (Scope::Local, true),
            ] {
                let found = staged.batch.classes.iter().any(|(f, class)| {
                    (*f, class.scope, class.affinity) == (family, scope, affinity)
                });
                assert!(found, "{family}: {scope:?}, {affinity}");
            }
        }
    }
}
