//! The active port of an active-backup bond, for the bond and for the interfaces stacked on it.

use std::collections::BTreeMap;

use netlink_packet_route::link::{
    InfoBond, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};

use crate::model::Interfaces;

/// Fills in `active_ports`: of bonds, and of the VLANs, macvlans and bridges above them.
pub(super) fn note_active_ports(interfaces: &mut Interfaces, messages: &[LinkMessage]) {
    let active: BTreeMap<u32, u32> = messages
        .iter()
        .filter_map(|message| Some((message.header.index, active_port(message)?)))
        .collect();
    if active.is_empty() {
        return;
    }
    let mut above: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for message in messages {
        if let Some(lower) = lower(message) {
            above.entry(lower).or_default().push(message.header.index);
        }
        let master = interfaces.get(&message.header.index).and_then(|interface| interface.master);
        if let Some(master) = master {
            above.entry(message.header.index).or_default().push(master);
        }
    }
    for (bond, port) in active {
        let mut next = vec![bond];
        // Each interface takes a port once, so the loop ends even with stacks that rejoin, or with
        // cycles in an inconsistent dump.
        while let Some(index) = next.pop() {
            let fresh = interfaces
                .get_mut(&index)
                .is_some_and(|interface| interface.active_ports.insert(port));
            if fresh {
                next.extend(above.get(&index).into_iter().flatten());
            }
        }
    }
}

fn infos(message: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    message
        .attributes
        .iter()
        .filter_map(
            |attribute| {
                if let LinkAttribute::LinkInfo(infos) = attribute { Some(infos) } else { None }
            },
        )
        .flatten()
}

/// IFLA_BOND_ACTIVE_SLAVE; only bonds in active-backup and similar modes have it.
fn active_port(message: &LinkMessage) -> Option<u32> {
    let bond = infos(message).find_map(|info| {
        if let LinkInfo::Data(InfoData::Bond(bond)) = info { Some(bond) } else { None }
    })?;
    bond.iter().find_map(|attribute| {
        if let InfoBond::ActivePort(index) = attribute {
            Some(*index).filter(|index| *index != 0)
        } else {
            None
        }
    })
}

/// The interface below a VLAN or macvlan (IFLA_LINK). For other kinds it may be an index in another
/// network namespace.
fn lower(message: &LinkMessage) -> Option<u32> {
    let stacked = infos(message)
        .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vlan | InfoKind::MacVlan)));
    let link = message.attributes.iter().find_map(|attribute| {
        if let LinkAttribute::Link(index) = attribute { Some(*index) } else { None }
    });
    link.filter(|_| stacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(index: u32, kind: InfoKind, more: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = [
            LinkAttribute::IfName(format!("if{index}")),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
        ]
        .into();
        message.attributes.extend(more);
        message
    }

    fn bond(index: u32, active: u32) -> LinkMessage {
        let data = LinkInfo::Data(InfoData::Bond(vec![InfoBond::ActivePort(active)]));
        message(index, InfoKind::Bond, vec![LinkAttribute::LinkInfo(vec![data])])
    }

    #[test]
    fn a_failover_is_seen_by_everything_above_the_bond() {
        let master = |index| vec![LinkAttribute::Controller(index)];
        let all = [
            message(2, InfoKind::Veth, master(4)),
            message(3, InfoKind::Veth, master(4)),
            bond(4, 3),
            message(5, InfoKind::Vlan, [vec![LinkAttribute::Link(4)], master(6)].concat()),
            message(6, InfoKind::Bridge, vec![]),
            message(7, InfoKind::MacVlan, vec![LinkAttribute::Link(6)]),
            message(8, InfoKind::Veth, vec![LinkAttribute::Link(4)]),
            bond(9, 0),
        ];
        let mut interfaces: Interfaces =
            all.iter().filter_map(crate::host::links::interface).map(|i| (i.index, i)).collect();
        note_active_ports(&mut interfaces, &all);
        let with: Vec<u32> =
            interfaces.values().filter(|i| i.active_ports == [3].into()).map(|i| i.index).collect();
        assert_eq!(with, [4, 5, 6, 7]);
        assert!([2, 3, 8, 9].iter().all(|index| interfaces[index].active_ports.is_empty()));
    }
}
