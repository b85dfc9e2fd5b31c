//! A table with its sets and chains as one value: printed as text and JSON, and read back from the
//! kernel.

use super::element::Element;
use super::skeleton::{Chain, SetId};
use crate::model::Family;

/// Name of the table in each family.
pub const TABLE: &str = "pinnace";

/// Seed of every flow hash: the same on every node and after every restart, so that a flow maps to
/// the same bucket everywhere.
pub const SEED: u32 = 0x5eed;

/// One of our two tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Family of `table ip pinnace` or `table ip6 pinnace`.
    pub family: Family,
    /// Every set and map in the order of [`SetId::ALL`], with its elements.
    pub sets: Vec<(SetId, Vec<Element>)>,
    /// Chains of the skeleton first, then the hash classes in use.
    pub chains: Vec<Chain>,
}
