//! What all sessions of a node have in common.

use std::time::Duration;

use super::authentication::Authentication;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BfdConfig {
    /// Base of Desired Min TX and Required Min RX Interval; 3 ms to 1 s.
    pub interval: Duration,
    /// Detect Mult; at least 1.
    pub multiplier: u8,
    /// None: packets carry no authentication section, and packets with one are discarded.
    pub authentication: Option<Authentication>,
    /// Packets per second that all sessions that are up send together on average, and receive.
    /// With more sessions the interval grows.
    pub packet_rate: u32,
}

impl Default for BfdConfig {
    /// 50 ms × 3, and a packet budget for 21 such sessions.
    fn default() -> BfdConfig {
        BfdConfig {
            interval: Duration::from_millis(50),
            multiplier: 3,
            authentication: None,
            packet_rate: 500,
        }
    }
}
