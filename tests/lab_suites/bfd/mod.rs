//! BFD against other implementations on the real kernel: FRR's bfdd and BIRD, each in a network
//! namespace of its own, and Pinnace itself. Needs root. The tests assert the state of the other
//! side and the events of Pinnace.

mod interoperation;
mod load;
mod others;
mod speaker;
mod stall;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::Namespace;

/// Maximum time to wait for anything.
const PATIENCE: Duration = Duration::from_secs(10);
/// The detection time of all sessions here, 50 ms × 3, before they adapt to a busy machine.
const DETECTION: Duration = Duration::from_millis(150);
/// How much later than the detection time a failure may be noticed on a machine that does other
/// things as well.
const SLACK: Duration = Duration::from_millis(350);

/// Two hosts on one cable.
struct Link {
    ours: Namespace,
    theirs: Namespace,
}

/// Addresses of the two ends, by family.
const ENDS: [(&str, &str); 2] = [("10.99.0.1", "10.99.0.2"), ("fd99::1", "fd99::2")];

impl Link {
    fn new() -> Link {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let prefix =
            format!("pnl{}-bfd{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut made = Namespace::create(&[format!("{prefix}a"), format!("{prefix}b")]);
        let (Some(theirs), Some(ours)) = (made.pop(), made.pop()) else {
            panic!("two were asked for")
        };
        ours.ip(&[format!("link add eth0 type veth peer name eth0 netns {}", theirs.name)]);
        for (host, end) in [(&ours, 1), (&theirs, 2)] {
            host.ip(&[
                "link set lo up".to_owned(),
                "link set eth0 up".to_owned(),
                format!("address add 10.99.0.{end}/24 dev eth0"),
                format!("address add fd99::{end}/64 dev eth0 nodad"),
            ]);
        }
        Link { ours, theirs }
    }

    /// The index of `eth0` on our side.
    fn index(&self) -> u32 {
        let listed = self.ours.output("ip", &["-j", "link", "show", "eth0"]);
        let listed: serde_json::Value = serde_json::from_str(&listed).expect("ip -j prints JSON");
        listed[0]["ifindex"].as_u64().and_then(|index| u32::try_from(index).ok()).expect("an index")
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Retries until success, and returns how long that took.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> (T, Duration) {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return (value, start.elapsed()),
            Err(reason) => {
                assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{reason}")
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}
