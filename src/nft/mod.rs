//! The nftables rule set as a value: a static skeleton of chains and maps, elements compiled from
//! frontends, printed as nft text and as libnftables JSON. PURE, like [`crate::domain`];
//! [`io::writer`] carries it into the kernel.
//!
//! Read in this order: [`skeleton`] (what a packet meets), [`element`] (what one frontend puts into
//! the maps), [`compiler`] (what a change adds and deletes), [`text`] and [`json`] (how people and
//! programs see it).

pub mod compiler;
pub mod element;
pub mod io;
pub mod json;
pub mod maglev;
pub mod probe;
pub mod skeleton;
pub mod text;

pub use compiler::{Batch, Compiler, Staged};
pub use element::{Element, Key, Value};
pub use skeleton::{Chain, ChainId, HashClass, Scope, SetId, Verdict};

use crate::model::Family;

/// Name of our table in each family.
pub const TABLE: &str = "pinnace";

/// Seed of every flow hash: the same on every node and after every restart, so that a flow maps to
/// the same bucket everywhere.
pub const SEED: u32 = 0x5eed;

/// One table with everything in it, as printed and as read back from the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// `ip pinnace` or `ip6 pinnace`.
    pub family: Family,
    /// Every set and map, in the order of [`SetId::ALL`], with its elements.
    pub sets: Vec<(SetId, Vec<Element>)>,
    /// Skeleton chains first, then the classes in use.
    pub chains: Vec<Chain>,
}

/// The keyword of a family in nft's language.
pub(crate) fn keyword(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}
