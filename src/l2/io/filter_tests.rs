use super::*;
use crate::l2::arp as arp_wire;

const US: crate::model::mac::Mac = [2, 0, 0, 0, 0, 1];
const THEM: crate::model::mac::Mac = [2, 0, 0, 0, 0, 2];
const CARD: u32 = 7;

/// What the kernel would return: the number of bytes to hand over. A load beyond the frame ends the
/// program with 0, as there.
fn interpret(program: &[Instruction], frame: &[u8], packet_type: u8) -> u32 {
    interpret_at(CARD, program, frame, packet_type)
}

/// The same for a frame that the kernel has handed to an interface.
fn interpret_at(ifindex: u32, program: &[Instruction], frame: &[u8], packet_type: u8) -> u32 {
    let (mut at, mut a) = (0usize, 0u32);
    for _ in 0..=program.len() {
        let Instruction { code, jt, jf, k } = program[at];
        let load = |len: usize| {
            frame
                .get(k as usize..k as usize + len)
                .map(|b| b.iter().fold(0u32, |a, b| a << 8 | u32::from(*b)))
        };
        at += 1;
        let loaded = match code {
            LOAD_BYTE if k == PACKET_TYPE => Some(u32::from(packet_type)),
            LOAD_WORD if k == INTERFACE => Some(ifindex),
            LOAD_BYTE => load(1),
            LOAD_HALF => load(2),
            LOAD_WORD => load(4),
            RETURN => return k,
            JUMP_EQUAL => {
                at += usize::from(if a == k { jt } else { jf });
                continue;
            }
            JUMP_GREATER => {
                at += usize::from(if a > k { jt } else { jf });
                continue;
            }
            other => panic!("unknown operation {other:#x}"),
        };
        match loaded {
            Some(value) => a = value,
            None => return 0,
        }
    }
    panic!("the program does not end");
}

fn v4s(n: u32) -> BTreeSet<Ipv4Addr> {
    (0..n).map(|i| Ipv4Addr::from(0xc000_0200 + i)).collect()
}

fn v6s(n: u16) -> BTreeSet<Ipv6Addr> {
    (0..n).map(|i| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, i)).collect()
}

#[test]
fn arp_about_our_addresses_only() {
    let v4 = |n: u32| Ipv4Addr::from(0xc000_0200 + n);
    for count in [1, 2, 63, 64] {
        let program = arp(CARD, &v4s(count));
        for n in 0..70 {
            let expected = if n < count { SNAP_LEN } else { 0 };
            let question = arp_wire::Repr { sender: v4(200), ..arp_wire::Repr::probe(THEM, v4(n)) };
            let answer = question.reply(US);
            for (name, frame) in [
                ("probe", arp_wire::Repr::probe(THEM, v4(n))),
                ("announcement", arp_wire::Repr::announcement(THEM, v4(n))),
                ("question", question),
                ("answer", answer),
            ] {
                assert_eq!(
                    interpret(&program, &frame.to_bytes(), 1),
                    expected,
                    "{name} about {n} of {count}"
                );
            }
        }
    }
}

#[test]
fn neighbour_discovery_about_our_addresses_only() {
    let v6 = |n: u16| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n);
    for count in [1, 64] {
        let program = super::ndp(CARD, &v6s(count));
        for n in 0..70 {
            let expected = if n < count { SNAP_LEN } else { 0 };
            assert_eq!(
                interpret(&program, &ndp::Repr::probe(THEM, v6(n), [0; 6]).to_vec(), 2),
                expected,
                "probe {n} of {count}"
            );
            assert_eq!(
                interpret(&program, &ndp::Repr::announcement(THEM, v6(n)).to_vec(), 2),
                expected,
                "announcement {n} of {count}"
            );
        }
    }
}

#[test]
fn too_many_addresses_let_everything_of_the_protocol_through() {
    let frame = arp_wire::Repr::probe(THEM, Ipv4Addr::new(10, 0, 0, 1)).to_bytes();
    assert_eq!(interpret(&arp(CARD, &v4s(65)), &frame, 1), SNAP_LEN);
    assert_eq!(interpret(&arp(CARD, &v4s(64)), &frame, 1), 0);
    let frame = ndp::Repr::probe(THEM, Ipv6Addr::LOCALHOST, [0; 6]).to_vec();
    assert_eq!(interpret(&super::ndp(CARD, &v6s(65)), &frame, 2), SNAP_LEN);
}

#[test]
fn nothing_else_passes() {
    let question = arp_wire::Repr::probe(THEM, Ipv4Addr::new(192, 0, 2, 0)).to_bytes().to_vec();
    let solicitation =
        ndp::Repr::probe(THEM, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), [0; 6]).to_vec();
    let changed = |frame: &[u8], at: usize, value: u8| {
        let mut frame = frame.to_vec();
        frame[at] = value;
        frame
    };
    for (v4, v6) in [(v4s(1), v6s(1)), (v4s(65), v6s(65))] {
        let (arp, ndp) = (arp(CARD, &v4), super::ndp(CARD, &v6));
        for packet_type in [3, 4, 5, 7] {
            assert_eq!(interpret(&arp, &question, packet_type), 0, "packet type {packet_type}");
            assert_eq!(interpret(&ndp, &solicitation, packet_type), 0, "packet type {packet_type}");
        }
        for (name, frame) in [
            ("IPv4", changed(&question, 13, 0)),
            ("UDP", changed(&solicitation, 20, 17)),
            ("router solicitation", changed(&solicitation, 54, 133)),
            ("redirect", changed(&solicitation, 54, 137)),
            ("truncated", solicitation[..54].to_vec()),
            ("empty", vec![]),
        ] {
            assert_eq!((interpret(&arp, &frame, 0), interpret(&ndp, &frame, 0)), (0, 0), "{name}");
        }
    }
    assert_eq!(interpret(&arp(CARD, &BTreeSet::new()), &question, 1), 0, "no addresses: silence");
}

#[test]
fn a_frame_of_a_vlan_is_not_for_the_card_below_it() {
    let question = arp_wire::Repr::probe(THEM, Ipv4Addr::new(192, 0, 2, 0)).to_bytes();
    let solicitation =
        ndp::Repr::probe(THEM, Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), [0; 6]).to_vec();
    for (v4, v6) in [(v4s(1), v6s(1)), (v4s(65), v6s(65))] {
        for (ifindex, expected) in [(CARD, SNAP_LEN), (CARD + 1, 0)] {
            assert_eq!(interpret_at(ifindex, &arp(CARD, &v4), &question, 1), expected);
            assert_eq!(interpret_at(ifindex, &super::ndp(CARD, &v6), &solicitation, 2), expected);
        }
    }
}
