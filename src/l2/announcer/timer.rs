use std::net::IpAddr;

/// What a timer is for. Its order has no meaning beyond lookup in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The next probe of a VIP, the end of probing, or the retry after a conflict.
    Probe(IpAddr),
    /// The next announcement of a VIP on an interface.
    Announce(IpAddr, u32),
    /// A probe for the owner of a VIP, requested by the caller.
    OwnerProbe(IpAddr),
}
