//! Assignment of buckets to backends (round robin until the Maglev table takes its place).

use super::forwarding::Backend;

/// Index of the backend of each bucket.
pub fn table(backends: &[Backend], size: u32) -> Vec<u16> {
    (0..size).map(|bucket| (bucket as usize % backends.len().max(1)) as u16).collect()
}

/// Number of buckets for so many backends.
pub fn size_for(backends: usize) -> u32 {
    match backends {
        0..=2 => 251,
        3..=20 => 2039,
        21..=163 => 16381,
        _ => 65521,
    }
}
