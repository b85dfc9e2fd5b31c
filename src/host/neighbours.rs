//! Link-layer addresses of the other nodes, from the kernel's neighbor table. They distinguish the
//! announcements of a peer from those of a foreign host.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Handle, new_connection};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::common::backoff::Backoff;
use crate::model::mac::Mac;

/// Intervals between dumps while an address is unresolved: its host may be off for days.
pub(crate) const RETRY: Backoff = Backoff::new(Duration::from_millis(500), MAX_INTERVAL);
/// Interval between dumps while all addresses are resolved.
const MAX_INTERVAL: Duration = Duration::from_secs(30);

/// Reports the link-layer address of each wanted address when it is resolved and when it changes,
/// until the receiver is gone. A notification of `wanted`, with or without a change, causes a dump,
/// at most one per [`RETRY`]. One dump of the table costs some microseconds per neighbour.
pub async fn run(
    mut wanted: watch::Receiver<BTreeSet<IpAddr>>,
    found: mpsc::UnboundedSender<(IpAddr, Mac)>,
) {
    let (connection, handle, _messages) = match new_connection() {
        Ok(opened) => opened,
        Err(error) => {
            warn!(%error, "cannot open a rtnetlink socket for the neighbor table: announcements of other nodes count as foreign");
            return;
        }
    };
    let connection = tokio::spawn(connection);
    let mut known = BTreeMap::new();
    let mut attempts = 0;
    loop {
        let addresses = wanted.borrow_and_update().clone();
        known.retain(|address, _| addresses.contains(address));
        if !addresses.is_empty() {
            match dump(&handle, &addresses).await {
                Ok(lladdrs) => {
                    for (address, mac) in lladdrs {
                        if known.insert(address, mac) != Some(mac)
                            && found.send((address, mac)).is_err()
                        {
                            return connection.abort();
                        }
                    }
                }
                Err(error) => debug!(%error, "cannot list neighbors"),
            }
        }
        let dumped = Instant::now();
        match timeout(pause(addresses.len(), known.len(), attempts), wanted.changed()).await {
            Ok(Err(_)) => return connection.abort(),
            Ok(Ok(())) => {
                attempts = 0;
                sleep(if addresses.is_empty() {
                    Duration::ZERO
                } else {
                    RETRY.min.saturating_sub(dumped.elapsed())
                })
                .await;
            }
            Err(_) => attempts = attempts.saturating_add(1),
        }
    }
}

fn pause(wanted: usize, known: usize, attempts: u32) -> Duration {
    match (wanted, known < wanted) {
        (0, _) => Duration::MAX,
        (_, true) => RETRY.delay(attempts),
        (_, false) => MAX_INTERVAL,
    }
}

async fn dump(
    handle: &Handle,
    wanted: &BTreeSet<IpAddr>,
) -> Result<BTreeMap<IpAddr, Mac>, rtnetlink::Error> {
    let mut entries = handle.neighbours().get().execute();
    let mut lladdrs = BTreeMap::new();
    while let Some(entry) = entries.try_next().await? {
        lladdrs.extend(lladdr_of(&entry).filter(|(address, _)| wanted.contains(address)));
    }
    Ok(lladdrs)
}

/// Both addresses of an entry; None while it is unresolved.
pub(crate) fn lladdr_of(entry: &NeighbourMessage) -> Option<(IpAddr, Mac)> {
    if matches!(
        entry.header.state,
        NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None
    ) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &entry.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = Mac::try_from(bytes.as_slice()).ok()
            }
            _ => {}
        }
    }
    Some((address?, mac?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_stays_away_is_looked_for_less_and_less_often() {
        let pauses: Vec<u128> = (0..9).map(|attempts| pause(2, 1, attempts).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!((pause(2, 2, 0), pause(0, 0, 0)), (MAX_INTERVAL, Duration::MAX));
    }
}
