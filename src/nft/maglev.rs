//! Maglev consistent hashing (Eisenbud et al., NSDI 2016, §3.4): a lookup table of a prime number
//! of buckets in which every backend has the same share to within one bucket, and in which few
//! buckets change hands when backends come and go.
//!
//! Every node must build the same table from the same backends: the inputs are address and port
//! alone (not `local`, which differs from node to node), the hash has fixed keys, and the order of
//! the input is of no consequence.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip128::{Hasher128, SipHasher13};

use crate::model::forwarding::Backend;

/// Never change the keys: a rolling upgrade would move every client with affinity.
const KEYS: (u64, u64) = (0x7069_6e6e_6163_652d, 0x6d61_676c_6576_2d31);

/// The sizes in use, with the largest number of backends each is for. Few and fixed, so that a size
/// (a class in the ruleset) changes seldom; all prime, about 32 buckets per backend or more up to
/// 512, so that shares differ by 3 % at most.
const SIZES: [(usize, u32); 4] = [(8, 251), (64, 2039), (512, 16381), (usize::MAX, 65521)];

/// Number of buckets for this number of backends: 251 up to 8, 2039 up to 64, 16381 up to 512, else
/// 65521.
pub fn size_for(backends: usize) -> u32 {
    SIZES.iter().find(|(most, _)| backends <= *most).map_or(65521, |(_, size)| *size)
}

/// The table: bucket → position in `backends`. Empty without backends. `size` should be a prime as
/// [`size_for`] gives it.
///
/// At most `u16::MAX` backends take part, and no more than there are buckets.
pub fn table(backends: &[Backend], size: u32) -> Vec<u16> {
    const FREE: u16 = u16::MAX;
    let mut turns: Vec<Turn> = backends
        .iter()
        .zip(0..FREE)
        .map(|(backend, position)| Turn::new(backend, position, size))
        .collect();
    if turns.is_empty() {
        return Vec::new();
    }
    if turns.len() == 1 || size < 2 {
        return vec![0; size as usize];
    }
    // Turns are taken in the order of the hash, not of the input, which makes the table a function
    // of the set.
    turns.sort_unstable_by_key(|turn| (turn.order, turn.position));
    let mut buckets = vec![FREE; size as usize];
    let mut left = size;
    while left > 0 {
        for turn in &mut turns {
            // `skip` is coprime to `size`: a turn meets every bucket, so it ends while one is free.
            while buckets[turn.next as usize] != FREE {
                turn.advance(size);
            }
            buckets[turn.next as usize] = turn.position;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    buckets
}

/// One backend's walk through the buckets, in its own order of preference.
struct Turn {
    position: u16,
    next: u32,
    skip: u32,
    order: u64,
}

impl Turn {
    fn new(backend: &Backend, position: u16, size: u32) -> Turn {
        let mut hasher = SipHasher13::new_with_keys(KEYS.0, KEYS.1);
        match backend.address {
            IpAddr::V4(v4) => hasher.write(&v4.octets()),
            IpAddr::V6(v6) => hasher.write(&v6.octets()),
        }
        hasher.write(&backend.port.to_be_bytes());
        let hash = hasher.finish128();
        let modulus = u64::from(size.max(2));
        let mut skip = (hash.h2 % (modulus - 1)) as u32 + 1;
        while gcd(skip, size) > 1 {
            skip = skip % size + 1;
        }
        Turn {
            position,
            next: (hash.h1 % modulus) as u32,
            skip,
            order: hash.h1 ^ hash.h2.rotate_left(32),
        }
    }

    fn advance(&mut self, size: u32) {
        self.next = ((u64::from(self.next) + u64::from(self.skip)) % u64::from(size)) as u32;
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn backend(n: u32) -> Backend {
        let address = if n.is_multiple_of(2) {
            Ipv4Addr::from(0x0a2a_0000 + n).into()
        } else {
            Ipv6Addr::from(0xfd00_u128 << 112 | n as u128).into()
        };
        Backend { address, port: 8080, local: n.is_multiple_of(3) }
    }

    fn owners(backends: &[Backend], size: u32) -> Vec<(IpAddr, u16)> {
        table(backends, size)
            .into_iter()
            .map(|n| (backends[n as usize].address, backends[n as usize].port))
            .collect()
    }

    #[test]
    fn sizes_are_primes_and_follow_the_number_of_backends() {
        let prime = |n: u32| (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d));
        assert!(SIZES.iter().all(|(_, size)| prime(*size)));
        assert_eq!(
            [0, 1, 8, 9, 64, 65, 512, 513, 60_000].map(size_for),
            [251, 251, 251, 2039, 2039, 16381, 16381, 65521, 65521]
        );
    }

    #[test]
    fn the_table_is_the_same_on_every_node_and_in_every_release() {
        let backends: Vec<_> = (0..3).map(backend).collect();
        // A failure here means that a rolling upgrade would move clients: choose another way, do
        // not adjust the numbers.
        assert_eq!(table(&backends, 13), [1, 2, 1, 0, 2, 0, 1, 0, 1, 0, 2, 2, 2]);
    }

    #[test]
    fn odd_sizes_end() {
        let backends: Vec<_> = (0..5).map(backend).collect();
        for size in [0, 1, 2, 3, 4, 6, 12, 256, 1000] {
            assert_eq!(table(&backends, size).len(), size as usize);
        }
        assert!(table(&[], 251).is_empty());
        assert_eq!(table(&backends[..1], 251), vec![0; 251]);
    }

    /// The share of buckets that moved although their backend stayed.
    fn disruption(
        before: &[(IpAddr, u16)],
        after: &[(IpAddr, u16)],
        stays: impl Fn(&(IpAddr, u16)) -> bool,
    ) -> f64 {
        let moved = before.iter().zip(after).filter(|(old, new)| stays(old) && old != new).count();
        moved as f64 / before.len() as f64
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn shares_are_even(n in 1u32..200, first in 0u32..10_000) {
            let backends: Vec<_> = (first..first + n).map(backend).collect();
            let mut count = vec![0u32; n as usize];
            table(&backends, size_for(n as usize)).into_iter().for_each(|bucket| count[bucket as usize] += 1);
            prop_assert!(count.iter().max().unwrap() - count.iter().min().unwrap() <= 1);
        }

        #[test]
        fn neither_the_order_of_the_input_nor_locality_matters(n in 2u32..60, seed: u64) {
            let backends: Vec<_> = (0..n).map(backend).collect();
            let mut shuffled: Vec<_> = backends.iter().map(|b| Backend { local: !b.local, ..*b }).collect();
            shuffled.sort_by_key(|b| { let mut h = siphasher::sip::SipHasher13::new_with_keys(seed, 0); h.write(b.address.to_string().as_bytes()); h.finish() });
            prop_assert_eq!(owners(&backends, 2039), owners(&shuffled, 2039));
        }
    }

    /// On the average: now and then one set of backends fares twice as ill.
    #[test]
    fn one_backend_less_disturbs_few_of_the_others() {
        for (n, bound) in [(3, 0.06), (8, 0.08), (9, 0.04), (64, 0.04), (99, 0.04)] {
            let moved = |first: u32| {
                let mut backends: Vec<_> = (first..first + n).map(backend).collect();
                let size = size_for(backends.len());
                let before = owners(&backends, size);
                let gone = backends.remove((first % n) as usize);
                disruption(&before, &owners(&backends, size), |owner| {
                    *owner != (gone.address, gone.port)
                })
            };
            let mean = (0..40).map(|round| moved(round * 257)).sum::<f64>() / 40.0;
            assert!(mean < bound, "{mean} of the buckets for {n}");
        }
    }
}
