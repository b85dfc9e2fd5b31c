//! Pinnace's side: the thread in this process, with its events in a list.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pinnace::bfd::io::{BfdOptions, Handle};
use pinnace::bfd::packet::{AuthenticationType, Key, SessionState};
use pinnace::bfd::{Authentication, BfdConfig, Cause, Event, Peer, PeerKey, SessionChange, io};

use super::{DETECTION, ENDS, Link, eventually, ip};
use crate::lab::Namespace;

pub struct Speaker {
    pub handle: Handle,
    events: Arc<Mutex<Vec<(Instant, Event)>>>,
}

/// Meticulous Keyed SHA1 with key 1.
pub fn secret(text: &str) -> Option<Authentication> {
    Some(Authentication {
        kind: AuthenticationType::MeticulousKeyedSha1,
        key_id: 1,
        key: Key::new(text.as_bytes()).expect("not empty"),
    })
}

/// The other end of the link in both families, bound to the interface.
pub fn both(link: &Link) -> BTreeMap<PeerKey, Peer> {
    let interface = Some(link.index());
    ENDS.iter()
        .map(|(ours, theirs)| {
            (
                PeerKey { interface, address: ip(theirs) },
                Peer { local: Some(ip(ours)), multihop: false },
            )
        })
        .collect()
}

impl Speaker {
    pub fn start(link: &Link, config: BfdConfig, peers: BTreeMap<PeerKey, Peer>) -> Speaker {
        Speaker::start_in(&link.ours, config, peers)
    }

    pub fn start_in(
        namespace: &Namespace,
        config: BfdConfig,
        peers: BTreeMap<PeerKey, Peer>,
    ) -> Speaker {
        let options = BfdOptions {
            config,
            multihop: peers.values().any(|peer| peer.multihop),
            ..BfdOptions::default()
        };
        let events = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&events);
        let handle = namespace
            .enter(|| {
                io::spawn(options, move |event| list.lock().unwrap().push((Instant::now(), event)))
            })
            .unwrap();
        handle.set_peers(peers);
        Speaker { handle, events }
    }

    /// All that was told since the last call.
    pub fn take(&self) -> Vec<(Instant, Event)> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    pub fn wait_up(&self) {
        eventually("all sessions are up", || {
            let status = self.handle.status();
            if !status.is_empty() && status.iter().all(|session| session.state == SessionState::Up)
            {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        });
        // Intervals are agreed upon by a Poll Sequence after that. On a busy machine the sessions
        // may have asked for four times the interval.
        eventually("all sessions are fast", || {
            let status = self.handle.status();
            let fast = |time: Option<Duration>| time.is_some_and(|time| time <= 4 * DETECTION);
            if status.iter().all(|session| fast(session.detection_time)) {
                Ok(())
            } else {
                Err(format!("{status:?}"))
            }
        });
    }

    /// The longest that silence may last now.
    pub fn detection_time(&self) -> Duration {
        self.handle
            .status()
            .iter()
            .filter_map(|session| session.detection_time)
            .max()
            .expect("sessions that have heard something")
    }

    /// Waits until both sessions have told this; the later of the two times and both events.
    pub fn both_say(&self, cause: Cause) -> (Instant, Vec<SessionChange>) {
        let mut found = Vec::new();
        let mut last = Instant::now();
        eventually(&format!("both sessions say {cause:?}"), || {
            for (at, event) in self.take() {
                if let Event::Peer(event) = event
                    && event.cause == cause
                {
                    last = at;
                    found.push(event);
                }
            }
            if found.len() >= 2 {
                Ok(())
            } else {
                Err(format!("{found:?}\n{:?}", self.handle.status()))
            }
        });
        (last, found)
    }
}
