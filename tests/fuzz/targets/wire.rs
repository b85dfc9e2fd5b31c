//! Frames from the LAN: whatever arrives is parsed or refused, and what was understood survives being written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinnace::wire::{arp, bfd, ndp};

fuzz_target!(|frame: &[u8]| {
    if let Ok(message) = arp::Repr::parse(frame) {
        assert_eq!(arp::Repr::parse(&message.to_vec()), Ok(message));
    }
    if let Ok(message) = ndp::Repr::parse(frame) {
        assert_eq!(ndp::Repr::parse(&message.to_vec()), Ok(message));
    }
    if let Ok(packet) = bfd::Repr::parse(frame) {
        assert_eq!(bfd::Repr::parse(&packet.to_vec()), Ok(packet));
    }
});
