//! The frames that an announcer sends, for both address families.

use std::net::IpAddr;

use crate::l2::{arp, ndp};
use crate::model::mac::Mac;

/// The ARP probe (RFC 5227 §2.1.1) or DAD solicitation (RFC 4862 §5.4.2) for a VIP, to everybody
/// or to one link-layer address.
pub(super) fn probe(vip: IpAddr, mac: Mac, nonce: ndp::Nonce, to: Option<Mac>) -> Vec<u8> {
    match vip {
        IpAddr::V4(address) => {
            let probe = arp::Repr::probe(mac, address);
            arp::Repr { destination: to.unwrap_or(probe.destination), ..probe }.to_vec()
        }
        IpAddr::V6(address) => {
            let probe = ndp::Repr::probe(mac, address, nonce);
            ndp::Repr { destination_mac: to.unwrap_or(probe.destination_mac), ..probe }.to_vec()
        }
    }
}

/// The announcement of a VIP to everybody. IPv4 takes both forms of gratuitous ARP: some systems
/// accept only the request, some only the reply.
pub(super) fn announcement(vip: IpAddr, mac: Mac) -> Vec<Vec<u8>> {
    match vip {
        IpAddr::V4(address) => vec![
            arp::Repr::announcement(mac, address).to_vec(),
            arp::Repr::gratuitous_reply(mac, address).to_vec(),
        ],
        IpAddr::V6(address) => vec![ndp::Repr::announcement(mac, address).to_vec()],
    }
}

/// The announcement of a VIP to one neighbor; None when their families differ. It is gratuitous
/// as well: Linux may ignore a plain reply for a second after the last change (`locktime`).
pub(super) fn unicast_announcement(
    vip: IpAddr,
    mac: Mac,
    neighbor: IpAddr,
    lladdr: Mac,
) -> Option<Vec<u8>> {
    match (vip, neighbor) {
        (IpAddr::V4(vip), _) => {
            let announcement = arp::Repr::announcement(mac, vip);
            Some(arp::Repr { destination: lladdr, ..announcement }.to_vec())
        }
        (IpAddr::V6(vip), IpAddr::V6(destination)) => {
            let announcement = ndp::Repr::announcement(mac, vip);
            Some(ndp::Repr { destination_mac: lladdr, destination, ..announcement }.to_vec())
        }
        (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}
