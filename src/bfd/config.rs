//! What the sessions of a node have in common.

use std::time::Duration;

use super::authentication::Authentication;

/// What holds for all sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Base of Desired Min TX and Required Min RX Interval; 3 ms to 1 s.
    pub interval: Duration,
    /// Detect Mult; at least 1.
    pub multiplier: u8,
    /// None: packets carry no authentication section, and none is accepted.
    pub authentication: Option<Authentication>,
    /// Packets per second that all sessions together send on average when they are up, and
    /// receive. With more sessions the interval grows.
    pub packet_rate: u32,
}

impl Default for Config {
    /// 50 ms × 3, and the load of 21 such sessions.
    fn default() -> Config {
        Config {
            interval: Duration::from_millis(50),
            multiplier: 3,
            authentication: None,
            packet_rate: 500,
        }
    }
}
