//! The nftables rule set as a value: a static skeleton of chains and maps, elements compiled from frontends, printed as nft text and
//! as libnftables JSON. PURE, like [`crate::domain`]; [`crate::edge::nft`] carries it into the kernel.
