//! The scheduling class of the calling thread.

use std::io;

/// Whether the thread is ahead of ordinary ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Realtime {
    /// SCHED_FIFO with this priority.
    Fifo(i32),
    /// It competes with everything else on the host, for this reason: it needs CAP_SYS_NICE or a
    /// limit (LimitRTPRIO=, `ulimit -r`).
    Refused(String),
}

/// Puts the calling thread under SCHED_FIFO; processes and threads that it starts do not inherit
/// it.
pub fn enter(priority: i32) -> Realtime {
    // What the kernel reads is one integer, whatever structure the C library has; and by number,
    // for the wrapper of musl refuses: POSIX means the process, Linux the thread.
    // SAFETY: the pointer is that of `priority`, which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            0,
            libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK,
            &raw const priority,
        )
    };
    if result == 0 {
        Realtime::Fifo(priority)
    } else {
        Realtime::Refused(io::Error::last_os_error().to_string())
    }
}
