//! A value that says whether it changed.

use std::ops::Deref;

/// A large value with a revision that grows whenever it becomes another: comparing what was emitted
/// costs the comparison of two numbers.
#[derive(Debug, Default)]
pub(super) struct Tracked<T> {
    value: T,
    revision: u64,
}

impl<T> Tracked<T> {
    /// Another number whenever the value became another.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Applies a change that says whether it made a difference.
    pub fn update(&mut self, change: impl FnOnce(&mut T) -> bool) {
        self.revision += u64::from(change(&mut self.value));
    }
}

impl<T> Deref for Tracked<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}
