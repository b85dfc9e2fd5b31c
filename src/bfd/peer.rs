use std::net::IpAddr;

/// Identifies a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerKey {
    /// Index of the interface that the session is bound to; None: any interface (multihop).
    pub interface: Option<u32>,
    pub address: IpAddr,
}

/// How to reach a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Source address of packets; None: the kernel chooses.
    pub local: Option<IpAddr>,
    /// The peer is behind a router (RFC 5883): UDP port 4784, and any TTL is accepted.
    pub multihop: bool,
}
