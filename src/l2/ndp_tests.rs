use pnet_packet::Packet;
use pnet_packet::icmpv6::ndp::{NeighborAdvertPacket, NeighborSolicit, NeighborSolicitPacket};
use pnet_packet::icmpv6::{Icmpv6Code, Icmpv6Types};
use pnet_packet::ipv6::Ipv6Packet;
use proptest::prelude::*;

use super::*;

const A: Mac = [2, 0, 0, 0, 0, 0xa];
const B: Mac = [2, 0, 0, 0, 0, 0xb];

fn address(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn lladdr() -> impl Strategy<Value = Mac> {
    any::<Mac>().prop_map(|mut mac| {
        mac[0] = mac[0] & 0xfe | 2;
        mac
    })
}

/// A unicast address that is not `::`.
fn unicast() -> impl Strategy<Value = Ipv6Addr> {
    any::<[u8; 15]>().prop_map(|tail| {
        let mut octets = [0xfd; 16];
        octets[1..].copy_from_slice(&tail);
        octets.into()
    })
}

fn message() -> impl Strategy<Value = Message> {
    prop_oneof![
        (any::<Option<Mac>>(), any::<Option<Nonce>>())
            .prop_map(|(link_layer, nonce)| Message::Solicitation { link_layer, nonce }),
        (any::<[bool; 3]>(), any::<Option<Mac>>()).prop_map(
            |([router, solicited, override_cache], link_layer)| Message::Advertisement {
                router,
                solicited,
                override_cache,
                link_layer
            }
        ),
    ]
}

proptest! {
    #[test]
    fn round_trip(source_mac in lladdr(), destination_mac: Mac, source in unicast(), destination in unicast(), target in unicast(),
                  message in message(), padding in 0usize..20) {
        let repr = Repr { source_mac, destination_mac, source, destination, target, message };
        let mut frame = repr.to_vec();
        frame.resize(frame.len() + padding, 0);
        prop_assert_eq!(Repr::parse(&frame), Ok(repr));
    }

    /// The encoder that pnet_packet replaced: the bytes on the wire are the same.
    #[test]
    fn the_bytes_are_laid_out_as_rfc_4861_says(source_mac in lladdr(), destination_mac: Mac, source in unicast(),
                                               destination in unicast(), target in unicast(), message in message()) {
        let repr = Repr { source_mac, destination_mac, source, destination, target, message };
        prop_assert_eq!(repr.to_vec(), by_hand(&repr));
    }

    #[test]
    fn another_implementation_reads_what_is_sent(source_mac in lladdr(), destination_mac: Mac, source in unicast(),
                                                 destination in unicast(), target in unicast(), message in message()) {
        let repr = Repr { source_mac, destination_mac, source, destination, target, message };
        let frame = repr.to_vec();
        let ip = Ipv6Packet::new(&frame[HEADER_LEN..]).expect("a packet");
        prop_assert_eq!((ip.get_version(), ip.get_next_header().0, ip.get_hop_limit()), (6, ICMPV6, 255));
        prop_assert_eq!((ip.get_source(), ip.get_destination()), (source, destination));
        prop_assert_eq!(usize::from(ip.get_payload_length()), frame.len() - ICMP);
        let icmp = Icmpv6Packet::new(ip.payload()).expect("a message");
        prop_assert_eq!(icmp.get_checksum(), icmpv6::checksum(&icmp, &source, &destination));
        let options = |found: Vec<NdpOption>| -> Vec<(u8, Vec<u8>)> {
            found.into_iter().map(|option| (option.option_type.0, option.data)).collect()
        };
        let expected = |option: u8, value: Option<[u8; 6]>| value.map(|value| (option, value.to_vec()));
        match message {
            Message::Solicitation { link_layer, nonce } => {
                let read = NeighborSolicitPacket::new(ip.payload()).expect("a solicitation");
                prop_assert_eq!(read.get_icmpv6_type(), Icmpv6Types::NeighborSolicit);
                prop_assert_eq!(read.get_target_addr(), target);
                let all = [expected(OPTION_SOURCE, link_layer), expected(OPTION_NONCE, nonce)];
                prop_assert_eq!(options(read.get_options()), all.into_iter().flatten().collect::<Vec<_>>());
            }
            Message::Advertisement { router, solicited, override_cache, link_layer } => {
                let read = NeighborAdvertPacket::new(ip.payload()).expect("an advertisement");
                prop_assert_eq!(read.get_icmpv6_type(), Icmpv6Types::NeighborAdvert);
                prop_assert_eq!(read.get_target_addr(), target);
                let flags = [router, solicited, override_cache];
                let bits = [NeighborAdvertFlags::Router, NeighborAdvertFlags::Solicited, NeighborAdvertFlags::Override];
                prop_assert_eq!(bits.map(|bit| read.get_flags() & bit != 0), flags);
                let all = expected(OPTION_TARGET, link_layer);
                prop_assert_eq!(options(read.get_options()), all.into_iter().collect::<Vec<_>>());
            }
        }
    }

    /// A message that pnet_packet assembles from its fields, with options in another order.
    #[test]
    fn what_another_implementation_sends_is_read(source in unicast(), target in unicast(), mac: Mac, nonce: Nonce) {
        let option = |kind, data: [u8; 6]| NdpOption {
            option_type: NdpOptionType(kind),
            length: 1,
            data: data.to_vec(),
        };
        let mut packet = MutableNeighborSolicitPacket::owned(vec![0; 40]).expect("room");
        packet.populate(&NeighborSolicit {
            icmpv6_type: Icmpv6Types::NeighborSolicit,
            icmpv6_code: Icmpv6Code(0),
            checksum: 0,
            reserved: 0,
            target_addr: target,
            options: vec![option(OPTION_NONCE, nonce), option(OPTION_SOURCE, mac)],
            payload: Vec::new(),
        });
        let message = Message::Solicitation { link_layer: Some(mac), nonce: Some(nonce) };
        let repr = Repr {
            source_mac: A,
            destination_mac: B,
            source,
            destination: solicited_node(target),
            target,
            message,
        };
        let frame = with_icmp(&repr.to_vec(), packet.packet());
        prop_assert_eq!(Repr::parse(&frame), Ok(repr));
    }

    #[test]
    fn probes_round_trip(mac in lladdr(), target in unicast(), nonce: Nonce) {
        let probe = Repr::probe(mac, target, nonce);
        prop_assert_eq!(Repr::parse(&probe.to_vec()), Ok(probe));
        prop_assert!(probe.is_probe());
        prop_assert_eq!(Repr::parse(&probe.reply(B).to_vec()), Ok(Repr::announcement(B, target)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Repr::parse(&bytes);
    }

    /// The checksum is put right again, so that what lies behind it is reached.
    #[test]
    fn a_damaged_message_never_panics(damage in prop::collection::vec((0usize..40, any::<u8>()), 1..6), len in 24usize..40) {
        let probe = Repr::probe(A, address("fd00::1"), [7; 6]).to_vec();
        let mut icmp = probe[ICMP..].to_vec();
        icmp.resize(40, 0x0e);
        for (at, value) in damage {
            icmp[at] = value;
        }
        icmp.truncate(len);
        let _ = Repr::parse(&with_icmp(&probe, &icmp));
    }
}

/// The frame, written byte by byte.
fn by_hand(repr: &Repr) -> Vec<u8> {
    let (kind, flags, options) = match repr.message {
        Message::Solicitation { link_layer, nonce } => {
            (SOLICITATION, 0, [(OPTION_SOURCE, link_layer), (OPTION_NONCE, nonce)])
        }
        Message::Advertisement { router, solicited, override_cache, link_layer } => {
            let flags =
                u8::from(router) << 7 | u8::from(solicited) << 6 | u8::from(override_cache) << 5;
            (ADVERTISEMENT, flags, [(OPTION_TARGET, link_layer), (0, None)])
        }
    };
    let mut icmp = vec![kind, 0, 0, 0, flags, 0, 0, 0];
    icmp.extend_from_slice(&repr.target.octets());
    for (option, value) in options {
        if let Some(value) = value {
            icmp.extend_from_slice(&[option, 1]);
            icmp.extend_from_slice(&value);
        }
    }
    let sum = checksum(repr.source, repr.destination, &icmp).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);
    [
        &repr.destination_mac[..],
        &repr.source_mac,
        &[0x86, 0xdd, 0x60, 0, 0, 0, 0, icmp.len() as u8, ICMPV6, 255],
        &repr.source.octets(),
        &repr.destination.octets(),
        &icmp,
    ]
    .concat()
}

/// The frame with another ICMPv6 part, length and checksum correct.
fn with_icmp(frame: &[u8], icmp: &[u8]) -> Vec<u8> {
    let mut icmp = icmp.to_vec();
    icmp[2..4].fill(0);
    let of = |at: usize| Ipv6Addr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
    let sum = checksum(of(22), of(38), &icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut out = frame[..ICMP].to_vec();
    out[18..20].copy_from_slice(&(icmp.len() as u16).to_be_bytes());
    out.extend_from_slice(&icmp);
    out
}

#[test]
fn every_defect_has_its_error() {
    let solicitation = Repr {
        source_mac: A,
        destination_mac: B,
        source: address("fd00::9"),
        destination: address("fd00::1"),
        target: address("fd00::1"),
        message: Message::Solicitation { link_layer: Some(A), nonce: None },
    };
    let good = solicitation.to_vec();
    let mutated = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        Repr::parse(&frame)
    };
    assert_eq!(mutated(13, 0), Err(ParseError::EtherType(0x8600)));
    assert_eq!(mutated(14, 0x40), Err(ParseError::Version(4)));
    assert_eq!(mutated(20, 0), Err(ParseError::NextHeader(0)));
    assert_eq!(mutated(21, 254), Err(ParseError::HopLimit(254)));
    assert_eq!(mutated(19, 23), Err(ParseError::PayloadLength(23)));
    assert_eq!(mutated(19, 40), Err(ParseError::Truncated { needed: 94, have: 86 }));
    assert_eq!(mutated(70, 0x55), Err(ParseError::Checksum));
    for len in 0..good.len() {
        assert!(
            matches!(Repr::parse(&good[..len]), Err(ParseError::Truncated { .. })),
            "{len} bytes"
        );
    }

    let icmp = |changes: &[(usize, u8)]| {
        let mut icmp = good[ICMP..].to_vec();
        for &(at, value) in changes {
            icmp[at] = value;
        }
        Repr::parse(&with_icmp(&good, &icmp))
    };
    assert_eq!(icmp(&[]), Ok(solicitation));
    assert_eq!(icmp(&[(0, 134)]), Err(ParseError::MessageType(134)));
    assert_eq!(icmp(&[(1, 1)]), Err(ParseError::Code(1)));
    assert_eq!(icmp(&[(8, 0xff)]), Err(ParseError::MulticastTarget));
    assert_eq!(icmp(&[(25, 0)]), Err(ParseError::OptionLengthZero));
    assert_eq!(icmp(&[(25, 2)]), Err(ParseError::OptionOverrun));
    assert_eq!(
        Repr::parse(&with_icmp(&good, &good[ICMP..ICMP + 25])),
        Err(ParseError::OptionOverrun)
    );
    let long = [&good[ICMP..], &[0; 8]].concat();
    let mut two_units = long.clone();
    two_units[25] = 2;
    assert_eq!(Repr::parse(&with_icmp(&good, &two_units)), Err(ParseError::LinkLayerOption(2)));

    let probe = Repr::probe(A, address("fd00::1"), [7; 6]);
    let told =
        Repr { message: Message::Solicitation { link_layer: Some(A), nonce: None }, ..probe };
    assert_eq!(Repr::parse(&told.to_vec()), Err(ParseError::UnspecifiedSource));
    assert_eq!(
        Repr::parse(&Repr { destination: ALL_NODES, ..probe }.to_vec()),
        Err(ParseError::UnspecifiedSource)
    );
    let solicited = Message::Advertisement {
        router: false,
        solicited: true,
        override_cache: true,
        link_layer: None,
    };
    let advertisement = Repr { message: solicited, ..Repr::announcement(A, address("fd00::1")) };
    assert_eq!(Repr::parse(&advertisement.to_vec()), Err(ParseError::SolicitedMulticast));
}

/// Unknown options and nonces of another length do not hide what we read.
#[test]
fn unknown_options_are_skipped() {
    let frame = Repr::probe(A, address("fd00::1"), [7; 6]).to_vec();
    let icmp = [
        &frame[ICMP..OPTIONS],
        &[14, 2, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
        &[200, 1, 0, 0, 0, 0, 0, 0],
        &frame[OPTIONS..],
    ]
    .concat();
    assert_eq!(
        Repr::parse(&with_icmp(&frame, &icmp)),
        Ok(Repr::probe(A, address("fd00::1"), [7; 6]))
    );
}

/// RFC 4291 §2.7.1 and RFC 2464 §7 by their own examples.
#[test]
fn groups() {
    assert_eq!(solicited_node(address("4037::01:800:200e:8c6c")), address("ff02::1:ff0e:8c6c"));
    assert_eq!(multicast_mac(address("ff02::1:ff0e:8c6c")), [0x33, 0x33, 0xff, 0x0e, 0x8c, 0x6c]);
}

/// A solicitation as a Linux kernel sends it to resolve fd00::2 from fd00::1; an option with a
/// group address is no place to answer to.
#[test]
fn an_answer_goes_to_the_asker() {
    let question = Repr {
        source_mac: A,
        destination_mac: multicast_mac(solicited_node(address("fd00::2"))),
        source: address("fd00::1"),
        destination: solicited_node(address("fd00::2")),
        target: address("fd00::2"),
        message: Message::Solicitation { link_layer: Some(A), nonce: None },
    };
    let answer = question.reply(B);
    assert_eq!(
        (answer.destination_mac, answer.destination, answer.source),
        (A, address("fd00::1"), address("fd00::2"))
    );
    assert_eq!(
        answer.message,
        Message::Advertisement {
            router: false,
            solicited: true,
            override_cache: true,
            link_layer: Some(B)
        }
    );
    for link_layer in [None, Some([0xff; 6]), Some([0; 6])] {
        let odd = Repr { message: Message::Solicitation { link_layer, nonce: None }, ..question };
        assert_eq!(odd.reply(B).destination_mac, A, "{link_layer:?}");
    }
}
