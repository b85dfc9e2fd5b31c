//! The rule set in the kernel: netlink messages, the writer of changes and the thread that owns the
//! tables.

pub mod conntrack;
pub(crate) mod encode;
pub(crate) mod expression;
pub mod live;
pub(crate) mod netlink;
pub mod worker;
pub mod writer;
