//! Input and output of an announcer.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::model::mac::Mac;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnouncerConfig {
    /// From the start of probing to the first announcement; zero: no probes.
    pub probe_time: Duration,
    /// Time between refreshes of an announcement, ±10 %. Raised to
    /// [`AnnouncerConfig::MIN_INTERVAL`].
    pub announce_interval: Duration,
}

impl AnnouncerConfig {
    /// The shortest interval between refreshes.
    pub const MIN_INTERVAL: Duration = Duration::from_millis(100);
}

impl Default for AnnouncerConfig {
    fn default() -> AnnouncerConfig {
        AnnouncerConfig {
            probe_time: Duration::from_secs(1),
            announce_interval: Duration::from_secs(60),
        }
    }
}

/// Desired state of one VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Indexes of the interfaces on which to answer. Interfaces that do not exist or are down are
    /// waited for.
    pub interfaces: Arc<BTreeSet<u32>>,
    /// Newly allocated: detect address conflicts before the first announcement (RFC 5227). Without
    /// effect once the VIP is announced; turned off while probing, the VIP is announced at once.
    pub probe: bool,
    /// Another node answers for it: listen on the same interfaces, ready to take over, but send
    /// nothing. Probing goes on where it is desired.
    pub standby: bool,
    /// Send nothing unsolicited: no announcements and no defence, and probes wait. Requests are
    /// answered unless on standby, so that a node can hand over.
    pub quiet: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmission {
    pub ifindex: u32,
    /// From the Ethernet header on, without padding.
    pub frame: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnnouncerEvent {
    /// No conflict was detected: the VIP is announced from now on, unless on standby.
    ProbeClear { vip: IpAddr },
    /// Another host has, or probes for, a VIP that was being probed. The VIP is not announced, and
    /// probed again after [`CONFLICT_RETRY`](super::CONFLICT_RETRY).
    Conflict {
        vip: IpAddr,
        ifindex: u32,
        /// Link-layer address of the other host.
        mac: Mac,
    },
    /// Another host claims a VIP that is announced here. It is announced again; at most one per
    /// [`OBSERVED_INTERVAL`](super::OBSERVED_INTERVAL) for each rival, VIP and interface.
    Contested {
        vip: IpAddr,
        ifindex: u32,
        /// Link-layer address of the other host.
        mac: Mac,
    },
    /// On standby: another host claims the VIP; at most one per
    /// [`OBSERVED_INTERVAL`](super::OBSERVED_INTERVAL) for each VIP, interface and host.
    ClaimObserved {
        vip: IpAddr,
        ifindex: u32,
        /// Link-layer address of the other host.
        mac: Mac,
    },
    /// On standby: another host probes for the VIP, so it does not have it. Not limited, because
    /// probing ends.
    ProbeObserved {
        vip: IpAddr,
        ifindex: u32,
        /// Link-layer address of the other host.
        mac: Mac,
    },
    /// Another host probed for a VIP that is announced here and was answered; at most one per
    /// [`CONTEST_INTERVAL`](super::CONTEST_INTERVAL) for each VIP and interface.
    Defended {
        vip: IpAddr,
        ifindex: u32,
        /// Link-layer address of the other host.
        mac: Mac,
    },
    /// No packet socket on an interface where VIPs are desired; retried.
    SocketFailed {
        ifindex: u32,
        /// For people.
        reason: Box<str>,
    },
}

/// Totals since the start. `received` is the sum of `malformed` to `observed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnnouncerCounters {
    /// Frames received.
    pub received: u64,
    /// Not what they claim to be.
    pub malformed: u64,
    /// Frames of this host that the network looped back.
    pub own: u64,
    /// Frames about no VIP of this host.
    pub ignored: u64,
    /// ARP requests and neighbour solicitations answered (defended probes included).
    pub answered: u64,
    /// Claims and probes of other hosts while a VIP was being probed.
    pub conflicts: u64,
    /// Claims of other hosts while a VIP was announced.
    pub contested: u64,
    /// Claims of other hosts on standby.
    pub observed: u64,
    /// Probe frames.
    pub probes_sent: u64,
    /// Gratuitous ARP and unsolicited advertisement frames, unicast ones included.
    pub announcements_sent: u64,
}
