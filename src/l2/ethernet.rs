//! Ethernet II headers. VLAN tags are not read: the kernel removes them and delivers on the VLAN's
//! interface.

use pnet_packet::ethernet::{EtherType, MutableEthernetPacket};

use super::{ParseError, array, word};
use crate::model::mac::{Mac, is_unicast};

pub const BROADCAST: Mac = [0xff; 6];
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Length of the header in bytes.
pub const HEADER_LEN: usize = 14;

/// An Ethernet II header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub destination: Mac,
    /// Always unicast.
    pub source: Mac,
    pub ethertype: u16,
}

impl Repr {
    /// Reads the first 14 bytes. Errors: [`ParseError::Truncated`], [`ParseError::SourceLladdr`].
    pub fn parse(frame: &[u8]) -> Result<Repr, ParseError> {
        let repr = Repr {
            destination: array(frame, 0)?,
            source: array(frame, 6)?,
            ethertype: word(frame, 12)?,
        };
        if is_unicast(repr.source) { Ok(repr) } else { Err(ParseError::SourceLladdr) }
    }

    /// The header as bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        if let Some(mut header) = MutableEthernetPacket::new(&mut bytes) {
            header.set_destination(self.destination.into());
            header.set_source(self.source.into());
            header.set_ethertype(EtherType(self.ethertype));
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use pnet_packet::ethernet::EthernetPacket;

    use super::*;

    #[test]
    fn another_implementation_reads_the_header() {
        let header = Repr { destination: BROADCAST, source: [2, 0, 0, 0, 0, 1], ethertype: IPV6 };
        let bytes = header.to_bytes();
        assert_eq!(bytes, *b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x86\xdd");
        let read = EthernetPacket::new(&bytes).expect("a header");
        assert_eq!(read.get_destination(), header.destination);
        assert_eq!(read.get_source(), header.source);
        assert_eq!(read.get_ethertype(), EtherType(IPV6));
    }

    #[test]
    fn reads_what_it_wrote_and_refuses_the_rest() {
        let header = Repr { destination: BROADCAST, source: [2, 0, 0, 0, 0, 1], ethertype: ARP };
        assert_eq!(Repr::parse(&header.to_bytes()), Ok(header));
        assert_eq!(
            Repr::parse(&header.to_bytes()[..13]),
            Err(ParseError::Truncated { needed: 14, have: 13 })
        );
        for source in [BROADCAST, [0; 6], [1, 0, 0, 0, 0, 1]] {
            assert_eq!(
                Repr::parse(&Repr { source, ..header }.to_bytes()),
                Err(ParseError::SourceLladdr),
                "{source:?}"
            );
        }
    }
}
