//! What goes into an announcer and what comes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::model::mac::Mac;

/// How to announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// From the first moment of probing to the first announcement; zero: do not probe.
    pub probe_time: Duration,
    /// Between refreshes of an announcement that stands, ±10 %. Raised to
    /// [`Config::MIN_INTERVAL`].
    pub announce_interval: Duration,
}

impl Config {
    /// The shortest interval between refreshes.
    pub const MIN_INTERVAL: Duration = Duration::from_millis(100);
}

impl Default for Config {
    fn default() -> Config {
        Config { probe_time: Duration::from_secs(1), announce_interval: Duration::from_secs(60) }
    }
}

/// What is wanted for one VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcement {
    /// Indexes of the interfaces on which to answer; those that do not exist, or are down, are
    /// waited for.
    pub interfaces: Arc<BTreeSet<u32>>,
    /// Newly allocated: make sure that nobody has it before claiming it. Without effect once the
    /// VIP is announced; turned off while probing, the VIP is claimed at once.
    pub probe: bool,
    /// Another node answers for it: listen on the same interfaces, so as to be ready to take over,
    /// but say nothing. Probing goes on where it is asked for.
    pub standby: bool,
    /// Say nothing of our own accord: no probes (where they are asked for they wait), no
    /// announcements and no defence. Questions are answered unless on standby: so a node hands
    /// over.
    pub quiet: bool,
}

/// The stations of the default gateways, by interface and address: through them come the questions
/// of everybody outside the LAN.
pub type Gateways = BTreeMap<u32, BTreeMap<IpAddr, Mac>>;

/// A frame to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmission {
    /// Where.
    pub ifindex: u32,
    /// From the Ethernet header on, unpadded.
    pub frame: Vec<u8>,
}

/// What the rest of the program should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnnouncerEvent {
    /// Nobody answered the probes: the VIP is announced from now on, unless on standby.
    ProbeClear {
        /// The address.
        vip: IpAddr,
    },
    /// Somebody has, or is claiming, a VIP that was being probed. It is not announced, and probed
    /// again after [`CONFLICT_RETRY`](super::CONFLICT_RETRY).
    Conflict {
        /// The address.
        vip: IpAddr,
        /// Where it was heard.
        ifindex: u32,
        /// Who.
        mac: Mac,
    },
    /// Somebody else claims a VIP that we announce. It is announced again; at most one per
    /// [`HEARD_INTERVAL`](super::HEARD_INTERVAL) for each rival, VIP and interface.
    Contested {
        /// The address.
        vip: IpAddr,
        /// Where it was heard.
        ifindex: u32,
        /// Who.
        mac: Mac,
    },
    /// On standby: somebody says that it has the VIP; at most one per
    /// [`HEARD_INTERVAL`](super::HEARD_INTERVAL) for each VIP, interface and speaker.
    Heard {
        /// The address.
        vip: IpAddr,
        /// Where it was heard.
        ifindex: u32,
        /// Who.
        mac: Mac,
    },
    /// On standby: somebody asks whether anybody has the VIP, so it has not; not limited, as nobody
    /// asks without end.
    Asked {
        /// The address.
        vip: IpAddr,
        /// Where it was heard.
        ifindex: u32,
        /// Who.
        mac: Mac,
    },
    /// Somebody probed for a VIP that we announce and was told that it is taken; limited as
    /// [`AnnouncerEvent::Contested`].
    Defended {
        /// The address.
        vip: IpAddr,
        /// Where it was heard.
        ifindex: u32,
        /// Who.
        mac: Mac,
    },
    /// The edge cannot listen or send on an interface where VIPs are wanted; it goes on trying.
    SocketFailed {
        /// The interface.
        ifindex: u32,
        /// Why, for a person.
        reason: Box<str>,
    },
}

/// What happened so far. `received` is the sum of `malformed` to `heard`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnnouncerCounters {
    /// Frames handed in.
    pub received: u64,
    /// Not what they claim to be.
    pub malformed: u64,
    /// Our own, looped back by the network.
    pub own: u64,
    /// About nothing of ours.
    pub ignored: u64,
    /// ARP requests and neighbour solicitations answered (defended probes included).
    pub answered: u64,
    /// Claims that were heard while a VIP was being probed.
    pub conflicts: u64,
    /// Claims that were heard while a VIP was announced.
    pub contested: u64,
    /// Claims that were heard on standby.
    pub heard: u64,
    /// Probe frames.
    pub probes_sent: u64,
    /// Gratuitous ARP and unsolicited advertisement frames, those to single clients included.
    pub announcements_sent: u64,
}
