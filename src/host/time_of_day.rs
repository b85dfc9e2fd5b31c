//! The clock on the wall, for what people and histograms are shown. Decisions use the monotonic
//! clock.

use std::time::{Duration, SystemTime};

/// Time since 1970-01-01T00:00:00Z; zero before.
pub fn time_of_day() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
