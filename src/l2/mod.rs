//! Packet codecs as `Repr` pairs of `parse` and `to_vec` or `to_bytes`. PURE: bytes in, values out.
//!
//! `parse` never panics and never reads beyond what it was given; what it refuses it names in a
//! [`ParseError`].

pub mod announcer;
pub mod arp;
pub mod ethernet;
pub mod io;
pub mod ndp;

use thiserror::Error;

/// Why a frame is not what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The frame ends before the field.
    #[error("truncated: {needed} bytes needed, {have} present")]
    Truncated {
        /// Bytes that the part being read needs, counted from the start of the frame.
        needed: usize,
        /// Bytes that were there.
        have: usize,
    },
    /// The EtherType is not that of the protocol.
    #[error("EtherType {0:#06x} is not the one expected")]
    EtherType(u16),
    /// A source address that no station can have: a group address or all zero.
    #[error("the sender's hardware address is a group address or zero")]
    Sender,
    /// ARP for hardware other than Ethernet (`ar$hrd` is not 1).
    #[error("ARP hardware type {0} is not Ethernet")]
    HardwareType(u16),
    /// ARP for a protocol other than IPv4 (`ar$pro` is not 0x0800).
    #[error("ARP protocol type {0:#06x} is not IPv4")]
    ProtocolType(u16),
    /// `ar$hln` is not 6.
    #[error("ARP hardware address length {0} is not 6")]
    HardwareLength(u8),
    /// `ar$pln` is not 4.
    #[error("ARP protocol address length {0} is not 4")]
    ProtocolLength(u8),
    /// `ar$op` is neither request nor reply.
    #[error("ARP operation {0} is neither request nor reply")]
    Operation(u16),
    /// The IP version is not 6.
    #[error("IP version {0} is not 6")]
    Version(u8),
    /// Not ICMPv6 directly behind the IPv6 header.
    #[error("IPv6 next header {0} is not ICMPv6")]
    NextHeader(u8),
    /// The IPv6 payload is too short to hold the message.
    #[error("IPv6 payload length {0} is too short for the message")]
    PayloadLength(u16),
    /// The packet passed a router, so it is not from this link (RFC 4861 §7.1).
    #[error("hop limit {0} is not 255")]
    HopLimit(u8),
    /// The ICMPv6 checksum does not hold.
    #[error("bad ICMPv6 checksum")]
    Checksum,
    /// Neither a neighbour solicitation nor an advertisement.
    #[error("ICMPv6 type {0} is neither neighbour solicitation nor advertisement")]
    MessageType(u8),
    /// The ICMPv6 code is not 0.
    #[error("ICMPv6 code {0} is not 0")]
    Code(u8),
    /// The target is a multicast address.
    #[error("the target is a multicast address")]
    MulticastTarget,
    /// An option of length 0 (RFC 4861 §4.6: discard the packet).
    #[error("an option has length 0")]
    OptionLengthZero,
    /// An option that reaches beyond the packet.
    #[error("an option reaches beyond the packet")]
    OptionOverrun,
    /// A link-layer address option that does not hold an Ethernet address.
    #[error("a link-layer address option has length {0}, not 1")]
    LinkLayerOption(u8),
    /// A solicitation from `::` that carries a source link-layer address, or is not sent to a
    /// solicited-node group (RFC 4861 §7.1.1).
    #[error(
        "a solicitation from :: with a source link-layer option or to an address that is no solicited-node group"
    )]
    UnspecifiedSource,
    /// A multicast advertisement with the Solicited flag (RFC 4861 §7.1.2).
    #[error("a multicast advertisement claims to be solicited")]
    SolicitedMulticast,
}

/// The `N` bytes at `offset`.
fn array<const N: usize>(frame: &[u8], offset: usize) -> Result<[u8; N], ParseError> {
    let needed = offset.saturating_add(N);
    frame
        .get(offset..needed)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(ParseError::Truncated { needed, have: frame.len() })
}

fn byte(frame: &[u8], offset: usize) -> Result<u8, ParseError> {
    array::<1>(frame, offset).map(|[b]| b)
}

fn word(frame: &[u8], offset: usize) -> Result<u16, ParseError> {
    array(frame, offset).map(u16::from_be_bytes)
}
