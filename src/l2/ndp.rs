//! Neighbor solicitations and advertisements (RFC 4861) as whole Ethernet frames, with what
//! duplicate address detection needs (RFC 4862 §5.4, nonce of RFC 7527). Extension headers are not
//! read: neighbor discovery has none.

use std::net::Ipv6Addr;

use pnet_packet::icmpv6::ndp::{
    MutableNeighborAdvertPacket, MutableNeighborSolicitPacket, NdpOption, NdpOptionType,
    NeighborAdvertFlags,
};
use pnet_packet::icmpv6::{self, Icmpv6Packet, Icmpv6Types, MutableIcmpv6Packet};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv6::MutableIpv6Packet;

use super::ethernet::HEADER_LEN;
use super::{ParseError, array, byte, ethernet, word};
use crate::model::mac::{Mac, is_unicast};

/// ff02::1
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Identifies the probes of one host, so that it recognizes them when the network loops them back.
pub type Nonce = [u8; 6];

/// ICMPv6 type of a solicitation.
pub const SOLICITATION: u8 = 135;
/// ICMPv6 type of an advertisement.
pub const ADVERTISEMENT: u8 = 136;

const ICMP: usize = HEADER_LEN + 40;
const OPTIONS: usize = ICMP + 24;
const ICMPV6: u8 = 58;
const OPTION_SOURCE: u8 = 1;
const OPTION_TARGET: u8 = 2;
const OPTION_NONCE: u8 = 14;

/// ff02::1:ffXX:XXXX, where solicitations for `address` are sent (RFC 4291 §2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// 33:33 and the last four bytes (RFC 2464 §7).
pub fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// A neighbor solicitation or advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Ethernet source.
    pub source_mac: Mac,
    /// Ethernet destination.
    pub destination_mac: Mac,
    /// Unspecified in duplicate address detection.
    pub source: Ipv6Addr,
    pub destination: Ipv6Addr,
    /// Never multicast.
    pub target: Ipv6Addr,
    pub message: Message,
}

/// What differs between the two messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    Solicitation {
        /// Source link-layer address option.
        link_layer: Option<Mac>,
        /// Nonce option of 6 bytes. Nonces of other lengths are not read: this host sends none.
        nonce: Option<Nonce>,
    },
    Advertisement {
        /// R
        router: bool,
        /// S
        solicited: bool,
        /// O: replace what the cache holds.
        override_cache: bool,
        /// Target link-layer address option.
        link_layer: Option<Mac>,
    },
}

impl Repr {
    /// RFC 4862 §5.4.2: asks whether `address` is in use.
    pub fn probe(mac: Mac, address: Ipv6Addr, nonce: Nonce) -> Repr {
        let group = solicited_node(address);
        Repr {
            source_mac: mac,
            destination_mac: multicast_mac(group),
            source: Ipv6Addr::UNSPECIFIED,
            destination: group,
            target: address,
            message: Message::Solicitation { link_layer: None, nonce: Some(nonce) },
        }
    }

    /// RFC 4861 §7.2.6: the unsolicited advertisement of `address` at `mac`, with Override.
    pub fn announcement(mac: Mac, address: Ipv6Addr) -> Repr {
        Repr {
            source_mac: mac,
            destination_mac: multicast_mac(ALL_NODES),
            source: address,
            destination: ALL_NODES,
            target: address,
            message: Message::Advertisement {
                router: false,
                solicited: false,
                override_cache: true,
                link_layer: Some(mac),
            },
        }
    }

    /// The advertisement that answers this solicitation (RFC 4861 §7.2.4): unicast and solicited. A
    /// probe has no source address, so its reply goes to all nodes.
    pub fn reply(&self, mac: Mac) -> Repr {
        let announcement = Repr::announcement(mac, self.target);
        if self.source.is_unspecified() {
            return announcement;
        }
        let destination_mac = match self.message {
            Message::Solicitation { link_layer: Some(mac), .. } if is_unicast(mac) => mac,
            _ => self.source_mac,
        };
        Repr {
            destination_mac,
            destination: self.source,
            message: Message::Advertisement {
                router: false,
                solicited: true,
                override_cache: true,
                link_layer: Some(mac),
            },
            ..announcement
        }
    }

    /// Whether the sender asks if the target is in use, and claims nothing yet.
    pub fn is_probe(&self) -> bool {
        matches!(self.message, Message::Solicitation { .. }) && self.source.is_unspecified()
    }

    /// Reads a frame and applies the rules of RFC 4861 §7.1.1 and §7.1.2; padding is ignored.
    pub fn parse(frame: &[u8]) -> Result<Repr, ParseError> {
        let header = ethernet::Repr::parse(frame)?;
        if header.ethertype != ethernet::IPV6 {
            return Err(ParseError::EtherType(header.ethertype));
        }
        match byte(frame, HEADER_LEN)? >> 4 {
            6 => {}
            other => return Err(ParseError::Version(other)),
        }
        let payload_length = word(frame, HEADER_LEN + 4)?;
        match byte(frame, HEADER_LEN + 6)? {
            ICMPV6 => {}
            other => return Err(ParseError::NextHeader(other)),
        }
        match byte(frame, HEADER_LEN + 7)? {
            255 => {}
            other => return Err(ParseError::HopLimit(other)),
        }
        let source = Ipv6Addr::from(array::<16>(frame, HEADER_LEN + 8)?);
        let destination = Ipv6Addr::from(array::<16>(frame, HEADER_LEN + 24)?);
        if usize::from(payload_length) < OPTIONS - ICMP {
            return Err(ParseError::PayloadLength(payload_length));
        }
        let end = ICMP + usize::from(payload_length);
        let icmp =
            frame.get(ICMP..end).ok_or(ParseError::Truncated { needed: end, have: frame.len() })?;
        if checksum(source, destination, icmp) != 0 {
            return Err(ParseError::Checksum);
        }
        let kind = byte(icmp, 0)?;
        if !matches!(kind, SOLICITATION | ADVERTISEMENT) {
            return Err(ParseError::MessageType(kind));
        }
        match byte(icmp, 1)? {
            0 => {}
            other => return Err(ParseError::Code(other)),
        }
        let target = Ipv6Addr::from(array::<16>(icmp, 8)?);
        if target.is_multicast() {
            return Err(ParseError::MulticastTarget);
        }
        let options = NdpOptions::parse(icmp.get(OPTIONS - ICMP..).unwrap_or_default())?;
        let message = if kind == SOLICITATION {
            if source.is_unspecified()
                && (options.source.is_some() || solicited_node(destination) != destination)
            {
                return Err(ParseError::UnspecifiedSource);
            }
            Message::Solicitation { link_layer: options.source, nonce: options.nonce }
        } else {
            let flags = byte(icmp, 4)?;
            if flags & 0x40 != 0 && destination.is_multicast() {
                return Err(ParseError::SolicitedMulticast);
            }
            Message::Advertisement {
                router: flags & 0x80 != 0,
                solicited: flags & 0x40 != 0,
                override_cache: flags & 0x20 != 0,
                link_layer: options.target,
            }
        };
        Ok(Repr {
            source_mac: header.source,
            destination_mac: header.destination,
            source,
            destination,
            target,
            message,
        })
    }

    /// The frame, allocated.
    pub fn to_vec(&self) -> Vec<u8> {
        let header = ethernet::Repr {
            destination: self.destination_mac,
            source: self.source_mac,
            ethertype: ethernet::IPV6,
        };
        let options = self.options();
        let length = OPTIONS - ICMP + 8 * options.len();
        let mut frame = vec![0; ICMP + length];

        frame[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        if let Some(mut header) = MutableIpv6Packet::new(&mut frame[HEADER_LEN..]) {
            header.set_version(6);
            header.set_payload_length(length as u16);
            header.set_next_header(IpNextHeaderProtocols::Icmpv6);
            header.set_hop_limit(255);
            header.set_source(self.source);
            header.set_destination(self.destination);
        }
        self.write_message(&options, &mut frame[ICMP..]);

        let checksum = Icmpv6Packet::new(&frame[ICMP..])
            .map(|message| icmpv6::checksum(&message, &self.source, &self.destination));
        if let (Some(checksum), Some(mut message)) =
            (checksum, MutableIcmpv6Packet::new(&mut frame[ICMP..]))
        {
            message.set_checksum(checksum);
        }
        frame
    }

    fn options(&self) -> Vec<NdpOption> {
        let (first, second) = match self.message {
            Message::Solicitation { link_layer, nonce } => {
                ((OPTION_SOURCE, link_layer), (OPTION_NONCE, nonce))
            }
            Message::Advertisement { link_layer, .. } => {
                ((OPTION_TARGET, link_layer), (OPTION_NONCE, None))
            }
        };
        [first, second]
            .into_iter()
            .filter_map(|(kind, value)| {
                let data = value?.to_vec();
                Some(NdpOption { option_type: NdpOptionType(kind), length: 1, data })
            })
            .collect()
    }

    /// The ICMPv6 message without its checksum.
    fn write_message(&self, options: &[NdpOption], buffer: &mut [u8]) {
        match self.message {
            Message::Solicitation { .. } => {
                if let Some(mut message) = MutableNeighborSolicitPacket::new(buffer) {
                    message.set_icmpv6_type(Icmpv6Types::NeighborSolicit);
                    message.set_target_addr(self.target);
                    message.set_options(options);
                }
            }
            Message::Advertisement { router, solicited, override_cache, .. } => {
                let flag = |set: bool, flag: u8| if set { flag } else { 0 };
                let flags = flag(router, NeighborAdvertFlags::Router)
                    | flag(solicited, NeighborAdvertFlags::Solicited)
                    | flag(override_cache, NeighborAdvertFlags::Override);
                if let Some(mut message) = MutableNeighborAdvertPacket::new(buffer) {
                    message.set_icmpv6_type(Icmpv6Types::NeighborAdvert);
                    message.set_flags(flags);
                    message.set_target_addr(self.target);
                    message.set_options(options);
                }
            }
        }
    }
}

/// The options that matter here. Unknown ones are skipped (RFC 4861 §4.6); of several of one type
/// the first counts.
#[derive(Default)]
struct NdpOptions {
    source: Option<Mac>,
    target: Option<Mac>,
    nonce: Option<Nonce>,
}

impl NdpOptions {
    fn parse(mut bytes: &[u8]) -> Result<NdpOptions, ParseError> {
        let mut options = NdpOptions::default();
        while let [kind, units, ..] = *bytes {
            if units == 0 {
                return Err(ParseError::OptionLengthZero);
            }
            let (option, rest) =
                bytes.split_at_checked(usize::from(units) * 8).ok_or(ParseError::OptionOverrun)?;
            let slot = match kind {
                OPTION_SOURCE => Some(&mut options.source),
                OPTION_TARGET => Some(&mut options.target),
                OPTION_NONCE if units == 1 => Some(&mut options.nonce),
                _ => None,
            };
            if let Some(slot) = slot {
                if units != 1 {
                    return Err(ParseError::LinkLayerOption(units));
                }
                slot.get_or_insert(array(option, 2)?);
            }
            bytes = rest;
        }
        if bytes.is_empty() { Ok(options) } else { Err(ParseError::OptionOverrun) }
    }
}

/// RFC 4443 §2.3. The result over a message with a correct checksum is 0.
fn checksum(source: Ipv6Addr, destination: Ipv6Addr, icmp: &[u8]) -> u16 {
    let mut sum = icmp.len() as u64 + u64::from(ICMPV6);
    for part in [&source.octets()[..], &destination.octets()[..], icmp] {
        for chunk in part.chunks(2) {
            let high = chunk.first().copied().unwrap_or(0);
            let low = chunk.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
#[path = "ndp_tests.rs"]
mod tests;
