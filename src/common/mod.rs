//! Small pieces that several rooms use and no library gives us: no IO, no state of their own.

pub(crate) mod nearest;
pub mod printable;
pub(crate) mod random;
pub mod timer_queue;
