//! The router of the LAN: everybody outside comes through it, so it is to learn of a takeover
//! whatever it thinks of broadcasts, and what it sent is to be answered without asking where it is
//! first.

use std::time::Duration;

use pinnace::model::Family;

use super::{ALL, others};
use crate::lab::trio::{Cluster, Fault, Trio};
use crate::lab::{Capture, ensure, eventually};

/// The client is the router, and never asks for the address itself.
#[test]
fn a_standby_resolves_gateway_and_nodes_in_advance_and_announces_to_the_gateway() {
    let trio = Trio::new();
    for node in &trio.nodes {
        node.ns.ip(&[
            format!("route add default via {}", trio.client.v4),
            format!("route add default via {}", trio.client.v6),
        ]);
    }
    let mut cluster = Cluster::on(trio, &[], |_, pinnace| pinnace);
    cluster.settle();
    let gateway = cluster.trio.client.station();
    for node in ALL {
        let neighbours = others(node)
            .into_iter()
            .map(|other| &cluster.trio.nodes[other])
            .chain([&cluster.trio.client]);
        for (neighbour, family) in
            neighbours.flat_map(|neighbour| Family::ALL.map(|family| (neighbour, family)))
        {
            let (mac, state) = cluster.trio.nodes[node].neighbour_entry(neighbour.address(family));
            assert_eq!(
                mac,
                Some(neighbour.mac()),
                "node-{} needs {} in {family}: {state}",
                node + 1,
                neighbour.name
            );
        }
    }

    let captures = Family::ALL
        .map(|family| (cluster.vip(family), Capture::start(&cluster.trio.client.ns, "eth0")));
    let mut left = ALL.to_vec();
    for (vip, capture) in &captures {
        if let Ok(victim) = cluster.owner(*vip, &left) {
            cluster.inject(victim, Fault::PowerLoss);
            left.retain(|node| *node != victim);
        }
        let mut heard = Vec::new();
        eventually("the gateway is told in person", Duration::from_secs(2), || {
            heard.extend(capture.announced_to(*vip));
            ensure(heard.contains(&gateway), || format!("{vip}: announced to {heard:x?}"))
        });
        assert!(
            heard.iter().any(|station| station[0] & 1 == 1),
            "{vip}: and everybody is: {heard:x?}"
        );
    }
}
