//! Small pieces that several rooms use and no library provides: sans-IO, without state of their own.

pub mod names;
pub mod nearest;
pub mod printable;
pub(crate) mod random;
pub mod timer_queue;
