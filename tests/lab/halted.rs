//! One thread of a process that stands still while the others run, as under a debugger.

use std::{fs, io, ptr};

use rustix::process::Pid;

/// A halted thread; it goes on when this is dropped, on the thread that has halted it.
pub struct Halted(libc::pid_t);

impl Halted {
    /// Halts the thread of this name.
    pub fn thread(process: Pid, name: &str) -> Halted {
        let tasks =
            fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).expect("a process");
        let tasks = tasks
            .flatten()
            .filter_map(|task| task.file_name().to_str()?.parse::<libc::pid_t>().ok());
        let named = |task: &libc::pid_t| {
            fs::read_to_string(format!("/proc/{task}/comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let task = tasks.into_iter().find(named).unwrap_or_else(|| panic!("no thread {name}"));
        // SAFETY: these requests read and write no memory of ours.
        unsafe {
            check(libc::ptrace(
                libc::PTRACE_SEIZE,
                task,
                ptr::null_mut::<u8>(),
                ptr::null_mut::<u8>(),
            ));
            check(libc::ptrace(
                libc::PTRACE_INTERRUPT,
                task,
                ptr::null_mut::<u8>(),
                ptr::null_mut::<u8>(),
            ));
            check(libc::waitpid(task, ptr::null_mut(), libc::__WALL).into());
        }
        Halted(task)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        // SAFETY: as above. Where it fails the thread is gone.
        unsafe {
            libc::ptrace(libc::PTRACE_DETACH, self.0, ptr::null_mut::<u8>(), ptr::null_mut::<u8>())
        };
    }
}

fn check(result: libc::c_long) {
    assert!(result >= 0, "ptrace: {}", io::Error::last_os_error());
}
