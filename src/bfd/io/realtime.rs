//! The scheduling class of the calling thread.

use std::io;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Realtime {
    /// SCHED_FIFO with this priority.
    Fifo(i32),
    /// Ordinary scheduling, for this reason: SCHED_FIFO needs CAP_SYS_NICE or a limit
    /// (LimitRTPRIO=, `ulimit -r`).
    Refused(String),
}

/// Puts the calling thread under SCHED_FIFO. Its child processes and threads do not inherit it.
pub fn enter(priority: i32) -> Realtime {
    // By system call number, because musl's wrapper always fails: POSIX means the process, Linux
    // the thread. The kernel reads one integer, whatever structure the C library declares.
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
