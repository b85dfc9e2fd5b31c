//! Answers for VIPs on the wire: address conflict detection before the first announcement (RFC
//! 5227, RFC 4862), replies to ARP requests and neighbor solicitations, bursts of gratuitous ARP
//! and unsolicited neighbor advertisements, refreshes, and claims of other hosts.
//!
//! Sans-IO: frames go in by [`Announcer::receive`], time by [`Announcer::handle_timeout`], desired
//! state by [`Announcer::set`]. The caller drains frames and events from
//! [`Announcer::transmissions`] and [`Announcer::events`] after each of them. Times are durations
//! since an arbitrary epoch of a monotonic clock.
//!
//! ```text
//! machine    Announcer: desired state, timers, conflicts
//!   ├ vip          what is known of one VIP, its conflict detection
//!   ├ presence     a VIP on an interface: burst and refresh
//!   ├ interpret    what a received frame means
//!   ├ frames       the frames that are sent
//!   ├ outbox       frames and events for the caller, rate limit, counters
//!   ├ neighbors    who is told of a takeover one by one
//!   │   └ recent       who asked for a VIP lately
//!   ├ link         interfaces that can carry announcements
//!   └ schedule     intervals, jitter, rate limit
//! ```
//!
//! Cost: `receive` is O(log VIPs); `handle_timeout` O(log VIPs) per frame. An idle announcer wakes
//! once per refresh, and refreshes that are near each other share a wake.

mod frames;
mod interpret;
#[cfg(test)]
mod lan_tests;
mod link;
#[cfg(test)]
mod links_tests;
mod machine;
mod neighbors;
mod outbox;
mod presence;
#[cfg(test)]
mod probing_tests;
#[cfg(test)]
mod receive_tests;
mod recent;
mod schedule;
#[cfg(test)]
mod standby_tests;
#[cfg(test)]
mod tests;
mod timer;
mod types;
mod vip;

pub use machine::Announcer;
pub use schedule::{CONFLICT_RETRY, CONTEST_INTERVAL, OBSERVED_INTERVAL, PROBES, REPAIR_DELAY};
pub use types::{Announcement, AnnouncerConfig, AnnouncerCounters, AnnouncerEvent, Transmission};
