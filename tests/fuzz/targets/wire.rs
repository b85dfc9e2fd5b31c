//! Frames from the LAN: whatever arrives is parsed or refused, and what was understood survives being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinnace::l2::{arp, ndp};
use pinnace::bfd::packet;

fuzz_target!(|bytes: &[u8]| {
    read(bytes);
    // Nobody guesses a checksum or ten bytes of constants: the same bytes once more, as what stands behind them.
    read(&as_arp(bytes));
    read(&as_ndp(bytes));
});

fn read(frame: &[u8]) {
    if let Ok(message) = arp::Repr::parse(frame) {
        assert_eq!(arp::Repr::parse(&message.to_vec()), Ok(message));
    }
    if let Ok(message) = ndp::Repr::parse(frame) {
        assert_eq!(ndp::Repr::parse(&message.to_vec()), Ok(message));
    }
    // A UDP payload, not a frame; it needs no help.
    if let Ok(packet) = packet::Repr::parse(frame) {
        assert_eq!(packet::Repr::parse(&packet.to_vec()), Ok(packet));
        if let Some(key) = packet::Key::new(b"secret") {
            let mut signed = packet.to_vec();
            packet::sign(&mut signed, &key);
            assert_eq!(packet::is_signed(&signed, &key), packet.authentication.is_some());
            let _ = packet::is_signed(frame, &key);
        }
    }
}

/// Twelve bytes are the hardware addresses, the rest begins with ARP's operation (RFC 826).
fn as_arp(bytes: &[u8]) -> Vec<u8> {
    let (macs, rest) = bytes.split_at(bytes.len().min(12));
    [macs, &[0x08, 0x06, 0, 1, 0x08, 0, 6, 4], rest].concat()
}

/// Twelve bytes are the hardware addresses, 32 those of IPv6, the rest is the ICMPv6 message; length and checksum are put right.
fn as_ndp(bytes: &[u8]) -> Vec<u8> {
    let (macs, rest) = bytes.split_at(bytes.len().min(12));
    let (addresses, rest) = rest.split_at(rest.len().min(32));
    let mut icmp = rest.to_vec();
    if let Some(sum) = icmp.get_mut(2..4) {
        sum.fill(0);
        let sum = checksum(addresses, &icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let length = (icmp.len() as u16).to_be_bytes();
    [macs, &[0x86, 0xdd, 0x60, 0, 0, 0, length[0], length[1], 58, 255], addresses, &icmp].concat()
}

/// RFC 4443 §2.3.
fn checksum(addresses: &[u8], icmp: &[u8]) -> u16 {
    let words = addresses.chunks(2).chain(icmp.chunks(2)).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u64::from));
    let mut sum = words.sum::<u64>() + icmp.len() as u64 + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
