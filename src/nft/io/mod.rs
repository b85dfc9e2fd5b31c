//! The ruleset in the kernel: netlink messages, the writer of changes, and the thread that owns the
//! tables.

pub mod attr;
pub mod conntrack;
mod encode;
mod expression;
pub mod live;
pub mod netlink;
mod value;
pub mod worker;
pub mod writer;
