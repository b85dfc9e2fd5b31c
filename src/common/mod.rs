//! Small pieces that several rooms use and no library provides. They do no IO.

pub mod backoff;
pub mod names;
pub mod nearest;
pub mod printable;
pub(crate) mod random;
pub mod timer_queue;
pub mod token_bucket;
