//! Ethernet II headers. VLAN tags are not read: the kernel takes them off and delivers on the
//! VLAN's interface.

use super::{ParseError, array, word};
use crate::model::mac::{Mac, is_unicast};

/// Every station.
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
    /// To whom.
    pub destination: Mac,
    /// From whom; always a station.
    pub source: Mac,
    /// What follows.
    pub ethertype: u16,
}

impl Repr {
    /// Reads the first 14 bytes. Errors: [`ParseError::Truncated`], [`ParseError::Sender`].
    pub fn parse(frame: &[u8]) -> Result<Repr, ParseError> {
        let repr = Repr {
            destination: array(frame, 0)?,
            source: array(frame, 6)?,
            ethertype: word(frame, 12)?,
        };
        if is_unicast(repr.source) { Ok(repr) } else { Err(ParseError::Sender) }
    }

    /// The header as bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..6].copy_from_slice(&self.destination);
        bytes[6..12].copy_from_slice(&self.source);
        bytes[12..].copy_from_slice(&self.ethertype.to_be_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
                Err(ParseError::Sender),
                "{source:?}"
            );
        }
    }
}
