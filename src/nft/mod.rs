//! The nftables ruleset as a value: a static skeleton of chains and maps, elements compiled from
//! frontends, printed as nft text and as libnftables JSON.
//!
//! Read in this order: [`skeleton`] (what a packet meets), [`element`] (what one frontend puts into
//! the maps), [`compiler`] (what a change adds and deletes, and how a change reaches the kernel),
//! [`text`] and [`json`] (how people and programs see it), [`io`] (netlink and the thread that owns
//! the tables).

pub mod batch;
pub mod compiler;
pub mod element;
pub mod io;
pub mod json;
pub mod maglev;
pub mod probe;
pub mod skeleton;
pub mod table;
pub mod text;

pub use batch::Batch;
pub use compiler::{Compiler, Staged};
pub use element::{Element, Key, Value};
pub use skeleton::{Chain, ChainId, HashClass, Scope, SetId, Verdict};
pub use table::{SEED, TABLE, Table};
