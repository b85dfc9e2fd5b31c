//! The scheduling class of the calling thread.

use std::io;

/// Whether the thread is ahead of ordinary ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Realtime {
    /// SCHED_FIFO with this priority.
    Fifo(i32),
    /// It competes with everything else on the host, for this reason: it needs CAP_SYS_NICE or a limit (LimitRTPRIO=, `ulimit -r`).
    Refused(String),
}

/// Puts the calling thread under SCHED_FIFO; processes and threads that it starts do not inherit it.
pub(super) fn enter(priority: i32) -> Realtime {
    let parameters = libc::sched_param { sched_priority: priority, ..zeroed() };
    // By number: the wrapper of musl refuses, for POSIX means the process and Linux the thread.
    // SAFETY: the kernel reads `sched_priority`, the first field, from a structure that outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    if result == 0 { Realtime::Fifo(priority) } else { Realtime::Refused(io::Error::last_os_error().to_string()) }
}

fn zeroed() -> libc::sched_param {
    // SAFETY: integers only, for which zero is a value; which ones there are depends on the C library.
    unsafe { std::mem::zeroed() }
}
