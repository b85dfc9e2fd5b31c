//! What a received frame means to the VIPs of this host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::schedule::Jitter;
use super::vip::Vip;
use crate::l2::ndp::Message;
use crate::l2::{arp, ethernet, ndp};
use crate::model::mac::Mac;

#[derive(Debug)]
pub(super) enum Meaning {
    /// The host at `mac` claims the VIP.
    Claim { vip: IpAddr, mac: Mac },
    /// The host at `mac` probes for the VIP; `reply` defends it.
    Probe { vip: IpAddr, mac: Mac, reply: Vec<u8> },
    /// `requester`, at `mac`, resolves the VIP.
    Request { vip: IpAddr, requester: IpAddr, mac: Mac, reply: Vec<u8> },
    /// A frame of this host that the network looped back.
    OwnFrame,
    /// About none of the VIPs.
    Ignored,
    /// Not what it claims to be.
    Malformed,
}

/// What interpretation depends on.
pub(super) struct Interpreter<'a> {
    /// Link-layer address of the interface that received the frame.
    pub lladdr: Mac,
    /// Link-layer addresses of all interfaces.
    pub own_lladdrs: &'a BTreeSet<Mac>,
    pub vips: &'a BTreeMap<IpAddr, Box<Vip>>,
    /// Source of the nonces of this host.
    pub jitter: &'a Jitter,
}

impl Interpreter<'_> {
    pub fn frame(&self, frame: &[u8]) -> Meaning {
        match ethernet::Repr::parse(frame).map(|header| header.ethertype) {
            Ok(ethernet::ARP) => {
                arp::Repr::parse(frame).map_or(Meaning::Malformed, |packet| self.arp(packet))
            }
            Ok(ethernet::IPV6) => {
                ndp::Repr::parse(frame).map_or(Meaning::Malformed, |packet| self.ndp(packet))
            }
            Ok(_) => Meaning::Ignored,
            Err(_) => Meaning::Malformed,
        }
    }

    fn arp(&self, packet: arp::Repr) -> Meaning {
        let sender = IpAddr::V4(packet.sender);
        let target = IpAddr::V4(packet.target);
        let mac = packet.sender_mac;
        if self.own_lladdrs.contains(&packet.source) || self.own_lladdrs.contains(&mac) {
            Meaning::OwnFrame
        } else if self.vips.contains_key(&sender) {
            Meaning::Claim { vip: sender, mac }
        } else if packet.operation != arp::Operation::Request || !self.vips.contains_key(&target) {
            Meaning::Ignored
        } else if packet.is_probe() {
            Meaning::Probe { vip: target, mac, reply: packet.reply(self.lladdr).to_vec() }
        } else {
            let reply = packet.reply(self.lladdr).to_vec();
            Meaning::Request { vip: target, requester: sender, mac, reply }
        }
    }

    fn ndp(&self, packet: ndp::Repr) -> Meaning {
        let vip = IpAddr::V6(packet.target);
        if self.own_lladdrs.contains(&packet.source_mac) {
            return Meaning::OwnFrame;
        }
        if !self.vips.contains_key(&vip) {
            return Meaning::Ignored;
        }
        match packet.message {
            Message::Advertisement { link_layer: Some(mac), .. }
                if self.own_lladdrs.contains(&mac) =>
            {
                Meaning::OwnFrame
            }
            Message::Advertisement { link_layer, .. } => {
                Meaning::Claim { vip, mac: link_layer.unwrap_or(packet.source_mac) }
            }
            // The network may have changed the source address of a probe of this host, but not its
            // nonce (RFC 7527 §4.2).
            Message::Solicitation { nonce: Some(nonce), .. }
                if packet.is_probe() && nonce == self.jitter.nonce(vip) =>
            {
                Meaning::OwnFrame
            }
            Message::Solicitation { .. } if packet.is_probe() => {
                let reply = packet.reply(self.lladdr).to_vec();
                Meaning::Probe { vip, mac: packet.source_mac, reply }
            }
            Message::Solicitation { .. } => self.solicitation(vip, packet),
        }
    }

    fn solicitation(&self, vip: IpAddr, packet: ndp::Repr) -> Meaning {
        let for_this_host = packet.destination == packet.target
            || packet.destination == ndp::solicited_node(packet.target);
        if !for_this_host {
            return Meaning::Ignored;
        }
        let reply = packet.reply(self.lladdr);
        Meaning::Request {
            vip,
            requester: IpAddr::V6(packet.source),
            mac: reply.destination_mac,
            reply: reply.to_vec(),
        }
    }
}
