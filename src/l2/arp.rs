//! ARP for IPv4 over Ethernet (RFC 826), as whole frames, with the forms that RFC 5227 names: probe
//! and announcement.

use std::net::Ipv4Addr;

use pnet_packet::arp::{ArpHardwareTypes, ArpOperations, MutableArpPacket};
use pnet_packet::ethernet::EtherTypes;

use super::ethernet::{BROADCAST, HEADER_LEN};
use super::{ParseError, array, byte, ethernet, word};
use crate::model::mac::{Mac, is_unicast};

/// Length of a frame in bytes, without padding (drivers pad to 60).
pub const FRAME_LEN: usize = HEADER_LEN + 28;

/// `ar$op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request,
    Reply,
}

/// An ARP frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    /// Ethernet source, usually equal to `sender_mac`; some access points rewrite it.
    pub source: Mac,
    /// Ethernet destination.
    pub destination: Mac,
    pub operation: Operation,
    /// SHA; always unicast.
    pub sender_mac: Mac,
    /// SPA; unspecified in a probe.
    pub sender: Ipv4Addr,
    /// THA; ignored in a request.
    pub target_mac: Mac,
    /// TPA
    pub target: Ipv4Addr,
}

impl Repr {
    /// RFC 5227 §2.1.1: asks whether `address` is in use. No cache learns from it.
    pub fn probe(mac: Mac, address: Ipv4Addr) -> Repr {
        Repr {
            source: mac,
            destination: BROADCAST,
            operation: Operation::Request,
            sender_mac: mac,
            sender: Ipv4Addr::UNSPECIFIED,
            target_mac: [0; 6],
            target: address,
        }
    }

    /// RFC 5227 §2.3: the gratuitous request that announces `address` at `mac`.
    pub fn announcement(mac: Mac, address: Ipv4Addr) -> Repr {
        Repr { sender: address, ..Repr::probe(mac, address) }
    }

    /// The gratuitous reply. Linux (`net/ipv4/arp.c`, arp_is_garp) accepts a reply as gratuitous
    /// only if THA equals SHA.
    pub fn gratuitous_reply(mac: Mac, address: Ipv4Addr) -> Repr {
        Repr { operation: Operation::Reply, target_mac: mac, ..Repr::announcement(mac, address) }
    }

    /// The unicast reply of `mac` to this request; to a probe it defends the address.
    pub fn reply(&self, mac: Mac) -> Repr {
        Repr {
            source: mac,
            destination: self.sender_mac,
            operation: Operation::Reply,
            sender_mac: mac,
            sender: self.target,
            target_mac: self.sender_mac,
            target: self.sender,
        }
    }

    /// Whether the sender asks if the target is in use, and claims nothing yet.
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender.is_unspecified()
    }

    /// Reads a frame; padding behind it is ignored.
    pub fn parse(frame: &[u8]) -> Result<Repr, ParseError> {
        let header = ethernet::Repr::parse(frame)?;
        if header.ethertype != ethernet::ARP {
            return Err(ParseError::EtherType(header.ethertype));
        }
        match word(frame, 14)? {
            1 => {}
            other => return Err(ParseError::HardwareType(other)),
        }
        match word(frame, 16)? {
            0x0800 => {}
            other => return Err(ParseError::ProtocolType(other)),
        }
        match byte(frame, 18)? {
            6 => {}
            other => return Err(ParseError::HardwareLength(other)),
        }
        match byte(frame, 19)? {
            4 => {}
            other => return Err(ParseError::ProtocolLength(other)),
        }
        let operation = match word(frame, 20)? {
            1 => Operation::Request,
            2 => Operation::Reply,
            other => return Err(ParseError::Operation(other)),
        };
        let repr = Repr {
            source: header.source,
            destination: header.destination,
            operation,
            sender_mac: array(frame, 22)?,
            sender: array::<4>(frame, 28)?.into(),
            target_mac: array(frame, 32)?,
            target: array::<4>(frame, 38)?.into(),
        };
        if is_unicast(repr.sender_mac) { Ok(repr) } else { Err(ParseError::SourceLladdr) }
    }

    /// The frame as bytes.
    pub fn to_bytes(&self) -> [u8; FRAME_LEN] {
        let header = ethernet::Repr {
            destination: self.destination,
            source: self.source,
            ethertype: ethernet::ARP,
        };
        let operation = match self.operation {
            Operation::Request => ArpOperations::Request,
            Operation::Reply => ArpOperations::Reply,
        };
        let mut bytes = [0; FRAME_LEN];
        bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        if let Some(mut packet) = MutableArpPacket::new(&mut bytes[HEADER_LEN..]) {
            packet.set_hardware_type(ArpHardwareTypes::Ethernet);
            packet.set_protocol_type(EtherTypes::Ipv4);
            packet.set_hw_addr_len(6);
            packet.set_proto_addr_len(4);
            packet.set_operation(operation);
            packet.set_sender_hw_addr(self.sender_mac.into());
            packet.set_sender_proto_addr(self.sender);
            packet.set_target_hw_addr(self.target_mac.into());
            packet.set_target_proto_addr(self.target);
        }
        bytes
    }

    /// The frame, allocated.
    pub fn to_vec(&self) -> Vec<u8> {
        self.to_bytes().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use pnet_packet::Packet;
    use pnet_packet::arp::{Arp, ArpPacket};
    use proptest::prelude::*;

    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];

    fn unicast() -> impl Strategy<Value = Mac> {
        any::<Mac>().prop_map(|mut mac| {
            mac[0] = mac[0] & 0xfe | 2;
            mac
        })
    }

    proptest! {
        #[test]
        fn round_trip(source in unicast(), destination: Mac, sender_mac in unicast(), sender: [u8; 4], target_mac: Mac, target: [u8; 4],
                      reply: bool, padding in 0usize..20) {
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let repr = Repr { source, destination, operation, sender_mac, sender: sender.into(), target_mac, target: target.into() };
            let mut frame = repr.to_vec();
            frame.resize(FRAME_LEN + padding, 0);
            prop_assert_eq!(Repr::parse(&frame), Ok(repr));
        }

        #[test]
        fn another_implementation_reads_what_is_sent(
            sender_mac in unicast(), sender: [u8; 4], target_mac: Mac, target: [u8; 4], reply: bool
        ) {
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let repr = Repr {
                source: A,
                destination: B,
                operation,
                sender_mac,
                sender: sender.into(),
                target_mac,
                target: target.into(),
            };
            let frame = repr.to_bytes();
            let packet = ArpPacket::new(&frame[HEADER_LEN..]).expect("a packet");
            prop_assert_eq!(packet.get_hardware_type(), ArpHardwareTypes::Ethernet);
            prop_assert_eq!(packet.get_protocol_type(), EtherTypes::Ipv4);
            prop_assert_eq!((packet.get_hw_addr_len(), packet.get_proto_addr_len()), (6, 4));
            prop_assert_eq!(packet.get_operation().0, 1 + u16::from(reply));
            prop_assert_eq!(packet.get_sender_hw_addr(), sender_mac);
            prop_assert_eq!(packet.get_sender_proto_addr(), repr.sender);
            prop_assert_eq!(packet.get_target_hw_addr(), target_mac);
            prop_assert_eq!(packet.get_target_proto_addr(), repr.target);

            // The other way round: a packet that it assembles from the fields is read here.
            let fields = Arp {
                hardware_type: ArpHardwareTypes::Ethernet,
                protocol_type: EtherTypes::Ipv4,
                hw_addr_len: 6,
                proto_addr_len: 4,
                operation: if reply { ArpOperations::Reply } else { ArpOperations::Request },
                sender_hw_addr: sender_mac.into(),
                sender_proto_addr: repr.sender,
                target_hw_addr: target_mac.into(),
                target_proto_addr: repr.target,
                payload: Vec::new(),
            };
            let mut other = MutableArpPacket::owned(vec![0; 28]).expect("room");
            other.populate(&fields);
            let other = [&frame[..HEADER_LEN], other.packet()].concat();
            prop_assert_eq!(Repr::parse(&other), Ok(repr));
        }

        /// The encoder that pnet_packet replaced: the bytes on the wire are the same.
        #[test]
        fn the_bytes_are_laid_out_as_rfc_826_says(
            source in unicast(), destination: Mac, sender_mac in unicast(), sender: [u8; 4],
            target_mac: Mac, target: [u8; 4], reply: bool
        ) {
            let operation = if reply { Operation::Reply } else { Operation::Request };
            let repr = Repr {
                source,
                destination,
                operation,
                sender_mac,
                sender: sender.into(),
                target_mac,
                target: target.into(),
            };
            let expected = [
                &destination[..],
                &source,
                &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + u8::from(reply)],
                &sender_mac,
                &sender,
                &target_mac,
                &target,
            ]
            .concat();
            prop_assert_eq!(repr.to_vec(), expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Repr::parse(&bytes);
        }

        #[test]
        fn a_damaged_frame_never_panics(at in 0..FRAME_LEN, value: u8, len in 0..=FRAME_LEN) {
            let mut frame = Repr::probe(A, Ipv4Addr::new(192, 0, 2, 1)).to_vec();
            frame[at] = value;
            frame.truncate(len);
            let _ = Repr::parse(&frame);
        }
    }

    #[test]
    fn every_defect_has_its_error() {
        let good = Repr::announcement(A, Ipv4Addr::new(192, 0, 2, 1)).to_bytes();
        let cases: &[(usize, u8, ParseError)] = &[
            (13, 0x00, ParseError::EtherType(0x0800)),
            (15, 6, ParseError::HardwareType(6)),
            (17, 1, ParseError::ProtocolType(0x0801)),
            (18, 8, ParseError::HardwareLength(8)),
            (19, 16, ParseError::ProtocolLength(16)),
            (21, 0, ParseError::Operation(0)),
            (21, 3, ParseError::Operation(3)),
            (6, 0x33, ParseError::SourceLladdr),
            (22, 0xff, ParseError::SourceLladdr),
        ];
        for &(at, value, error) in cases {
            let mut frame = good;
            frame[at] = value;
            assert_eq!(Repr::parse(&frame), Err(error), "byte {at} = {value}");
        }
        for len in 0..FRAME_LEN {
            assert!(
                matches!(Repr::parse(&good[..len]), Err(ParseError::Truncated { have, .. }) if have == len),
                "{len} bytes"
            );
        }
    }

    /// Bytes as another implementation (arping -U, RFC 5227 figure) puts them on the wire.
    #[test]
    fn the_forms_as_bytes() {
        let vip = Ipv4Addr::new(192, 0, 2, 1);
        let hex = |repr: Repr| {
            repr.to_bytes()[14..].iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!(
            hex(Repr::probe(A, vip)),
            "000108000604000102000000000a00000000000000000000c0000201"
        );
        assert_eq!(
            hex(Repr::announcement(A, vip)),
            "000108000604000102000000000ac0000201000000000000c0000201"
        );
        assert_eq!(
            hex(Repr::gratuitous_reply(A, vip)),
            "000108000604000202000000000ac000020102000000000ac0000201"
        );
        let request = Repr { sender: Ipv4Addr::new(192, 0, 2, 9), ..Repr::probe(B, vip) };
        assert_eq!(
            hex(request.reply(A)),
            "000108000604000202000000000ac000020102000000000bc0000209"
        );
        assert_eq!(request.reply(A).destination, B);
        assert!(Repr::probe(B, vip).is_probe() && !request.is_probe());
    }
}
