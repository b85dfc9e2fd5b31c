//! The pools setting: any text is understood or refused with at least one reason, and what was understood holds only valid ranges.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinnace::ipam::pool::parse_pools;

fuzz_target!(|text: &str| {
    match parse_pools(text) {
        Ok(pools) => {
            for range in pools.iter().flat_map(|pool| &pool.ranges) {
                assert!(range.first() <= range.last() && range.contains(range.first()) && range.contains(range.last()));
            }
        }
        Err(reasons) => assert!(!reasons.is_empty()),
    }
});
