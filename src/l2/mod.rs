//! Layer 2: ARP and NDP frames, and the announcer of VIPs. Sans-IO except `io`.
//!
//! Every codec is a `Repr` with `parse` and `to_bytes` or `to_vec`. pnet_packet builds outgoing
//! frames. Frames from the wire are parsed here: `parse` never panics and never reads beyond the
//! frame, and it rejects what the RFCs say to discard, with a [`ParseError`] for each defect.
//! pnet_packet 0.35 is not fit for that: it computes the size of an NDP option in a u8
//! (src/icmpv6.rs:301-304), so a length of 32 or more panics in debug builds and wraps in release
//! builds, and it accepts options of length 0, which RFC 4861 §4.6 says to discard. The tests use
//! it as an independent decoder.

pub mod announcer;
pub mod arp;
pub mod ethernet;
pub mod io;
pub mod ndp;

use thiserror::Error;

/// Why a frame is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The frame ends before the field.
    #[error("truncated: {needed} bytes needed, {have} present")]
    Truncated {
        /// Bytes up to the end of the field, from the start of the frame.
        needed: usize,
        have: usize,
    },
    /// The EtherType is not that of the protocol.
    #[error("unexpected EtherType {0:#06x}")]
    EtherType(u16),
    /// A source link-layer address that is a group address or zero.
    #[error("the source link-layer address is a group address or zero")]
    SourceLladdr,
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
    #[error("bad ICMPv6 checksum")]
    Checksum,
    /// Neither a neighbor solicitation nor an advertisement.
    #[error("ICMPv6 type {0} is neither neighbor solicitation nor advertisement")]
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
