//! Random numbers: a generator with an injected seed, for what must be reproducible, and numbers
//! that differ between processes and calls.

use std::hash::{BuildHasher, Hasher, RandomState};

/// SplitMix64 (Steele et al. 2014). Discriminators and first sequence numbers come from it too: they
/// must be hard to guess only from outside the link, where its output is not seen.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn next(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// From `low` to `high`, both included.
    pub fn between(&mut self, low: u32, high: u32) -> u32 {
        let width = u64::from(high.saturating_sub(low)) + 1;
        low + ((u64::from(self.next()) * width) >> 32) as u32
    }

    /// Evenly in 0..1.
    pub fn unit(&mut self) -> f64 {
        fraction(self.next_u64())
    }
}

/// The finalizer of SplitMix64: every bit of `z` changes about half of the result's.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A different number at each call and in each process. The standard library seeds it from the
/// kernel; it is not meant for secrets.
pub(crate) fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Evenly in 0..1, different at each call.
pub(crate) fn unit() -> f64 {
    fraction(seed())
}

/// The upper 53 bits, which an `f64` holds exactly, as a number in 0..1.
fn fraction(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first outputs of the reference implementation with seed 1234567.
    #[test]
    fn the_generator_is_splitmix64() {
        let mut random = Random::new(1_234_567);
        let numbers: Vec<u64> = (0..3).map(|_| random.next_u64()).collect();
        assert_eq!(
            numbers,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn numbers_of_the_process_differ_from_call_to_call() {
        assert_ne!(seed(), seed());
        assert!((0..100).all(|_| (0.0..1.0).contains(&unit())));
    }
}
