//! A wall clock for one process alone, which can be stepped while it runs. That of the machine
//! stays as it is: there are no namespaces of it.
//!
//! Whoever asks the kernel for the time of day is made to wait until a thread of the test has
//! answered (seccomp_unotify(2)); every other system call, that for another clock too, goes its
//! way. A C library does not ask the kernel but the vDSO, so the process must not learn of
//! that: its auxiliary vector is changed before its first instruction.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;
use std::{fs, ptr, thread};

use libc::{sock_filter, sock_fprog};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, WaitOptions, waitpid};
use rustix::time::{ClockId, clock_gettime};

/// linux/audit.h: 64 bits, little-endian, with the number of the machine in an ELF file.
const ARCHITECTURE: u32 = 0xC000_0000 | if cfg!(target_arch = "aarch64") { 183 } else { 62 };
/// Where these stand in `struct seccomp_data`; of the argument the lower half.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const CLOCK: u32 = 16;

/// It is right until it is stepped.
#[derive(Clone, Default)]
pub struct WallClock {
    /// Seconds by which it is ahead of the machine's.
    ahead: Arc<AtomicI64>,
}

impl WallClock {
    /// Sets it to the right time and this many seconds.
    pub fn set(&self, ahead: i64) {
        self.ahead.store(ahead, Ordering::Relaxed);
    }

    /// Starts a program by this clock: one that makes its system calls itself, as a static one
    /// does.
    pub fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let (here, there) = UnixStream::pair()?;
        let prepare = move || {
            send(&there, install()?.as_fd())?;
            // SAFETY: it takes no more arguments. What follows is that the next exec halts this
            // process.
            check(unsafe { libc::ptrace(libc::PTRACE_TRACEME) })
        };
        // SAFETY: it runs between fork and exec and makes system calls, without allocation or
        // locks.
        let child = unsafe { command.pre_exec(prepare) }.spawn()?;
        let pid = Pid::from_child(&child);
        waitpid(Some(pid), WaitOptions::empty())?
            .filter(|(_, status)| status.stopped())
            .expect("it halts after its exec");
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        hide_vdso(pid, &memory)?;
        // SAFETY: it reads and writes no memory of ours.
        check(unsafe {
            libc::ptrace(
                libc::PTRACE_DETACH,
                pid.as_raw_nonzero(),
                ptr::null_mut::<u8>(),
                ptr::null_mut::<u8>(),
            )
        })?;
        let (listener, ahead) = (receive(&here)?, self.ahead.clone());
        thread::spawn(move || answer(&listener, &memory, &ahead));
        Ok(child)
    }
}

/// From here on this process waits for the answer whenever it asks for the time of day. What is
/// given back tells of the questions.
fn install() -> io::Result<OwnedFd> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let step = |code: u32, k: u32, jt: u8, jf: u8| sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        step(LOAD, ARCH, 0, 0),
        step(EQUAL, ARCHITECTURE, 0, 5),
        step(LOAD, NUMBER, 0, 0),
        // musl makes gettimeofday and time of it.
        step(EQUAL, libc::SYS_clock_gettime as u32, 0, 3),
        step(LOAD, CLOCK, 0, 0),
        step(EQUAL, libc::CLOCK_REALTIME as u32, 2, 0),
        step(EQUAL, libc::CLOCK_REALTIME_COARSE as u32, 1, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
        step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
    ];
    let program = sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    let (set, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program and its steps outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, set, flags, &raw const program) };
    check(fd)?;
    // SAFETY: a new file descriptor, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Gives the listener to the parent: here it is closed by the exec.
fn send(to: &UnixStream, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(message.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(to, &[IoSlice::new(b".")], &mut message, SendFlags::empty())?;
    Ok(())
}

fn receive(from: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut message = RecvAncillaryBuffer::new(&mut space);
    recvmsg(from, &mut [IoSliceMut::new(&mut [0])], &mut message, RecvFlags::CMSG_CLOEXEC)?;
    let fds = message.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(fds.expect("it was sent before the exec"))
}

/// Of a process that is halted after its exec, when argc, argv, envp and the auxiliary vector begin
/// at its stack pointer.
fn hide_vdso(pid: Pid, memory: &File) -> io::Result<()> {
    // proc(5): the last but one is the stack pointer.
    let registers = fs::read_to_string(format!("/proc/{pid}/syscall"))?;
    let pointer = registers
        .split_whitespace()
        .rev()
        .nth(1)
        .and_then(|text| u64::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    let mut at = pointer.unwrap_or_else(|| panic!("no stack pointer in {registers:?}"));
    let mut next = || {
        let mut word = [0; 8];
        memory.read_exact_at(&mut word, at)?;
        at += 8;
        Ok::<_, io::Error>((u64::from_ne_bytes(word), at - 8))
    };
    // Both lists of strings end with a null.
    for _ in 0..2 {
        while next()?.0 != 0 {}
    }
    loop {
        let (kind, at) = next()?;
        match kind {
            libc::AT_NULL => panic!("there is no vDSO to be hidden"),
            libc::AT_SYSINFO_EHDR => {
                return memory.write_all_at(&libc::AT_IGNORE.to_ne_bytes(), at);
            }
            _ => drop(next()?),
        }
    }
}

/// Answers until the process has ended.
fn answer(listener: &OwnedFd, memory: &File, ahead: &AtomicI64) {
    loop {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        if poll(&mut ready, None).is_ok() && !ready[0].revents().contains(PollFlags::IN) {
            return;
        }
        // SAFETY: it is numbers alone, and the kernel wants them to be 0.
        let mut question: libc::seccomp_notif = unsafe { zeroed() };
        // SAFETY: it is what this request fills.
        if unsafe {
            libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut question)
        } != 0
        {
            // Whoever has asked was killed meanwhile.
            continue;
        }
        let now = clock_gettime(ClockId::Realtime);
        let time = [now.tv_sec + ahead.load(Ordering::Relaxed), now.tv_nsec].map(i64::to_ne_bytes);
        // It is the memory of this process and never of another's that has its number now.
        let written = memory.write_all_at(time.as_flattened(), question.data.args[1]);
        let error = if written.is_ok() { 0 } else { -libc::EFAULT };
        let mut reply = libc::seccomp_notif_resp { id: question.id, val: 0, error, flags: 0 };
        // SAFETY: it is what this request reads. Where it fails nobody waits for it any more.
        unsafe {
            libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut reply)
        };
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
