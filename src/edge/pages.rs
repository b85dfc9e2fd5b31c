//! The pages of the program itself. On a small node they are most of the memory of the process: the kernel maps sixteen around each that
//! is touched (`fault_around_bytes`), and starting touches nearly all, most of them for the only time.

use std::fs;
use std::ops::Range;

use rustix::mm::{Advice, madvise};
use tracing::debug;

/// Unmaps the program's code. What goes on being used comes back from the page cache, some microseconds for each 64 KiB; what only starting
/// needed stays away. Called between the phases of a start and some time after work, never while nothing happens.
pub fn give_back() {
    let here = give_back as *const () as usize;
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let Some(code) = maps.lines().filter_map(executable).find(|range| range.contains(&here)) else { return };
    let start = std::ptr::with_exposed_provenance_mut(code.start);
    // SAFETY: a private mapping of a file that nobody writes to, neither we nor the loader (code is position independent): what is read
    // from it next is what was there before. Only breakpoints that a debugger has set in it are lost.
    if let Err(error) = unsafe { madvise(start, code.len(), Advice::LinuxDontNeed) } {
        debug!(%error, "the code's pages stay mapped");
    }
}

/// The addresses of a private mapping of code, by its line in `/proc/self/maps` (proc_pid_maps(5)).
fn executable(line: &str) -> Option<Range<usize>> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    rest.starts_with("r-xp ").then_some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_data() {
        assert_eq!(executable("7f6fdae02000-7f6fdb57a000 r-xp 00002000 fe:00 99 /usr/bin/pinnace"), Some(0x7f6fdae02000..0x7f6fdb57a000));
        for other in ["7f6fdb75f000-7f6fdb7b9000 rw-p 0095f000 fe:00 99 /usr/bin/pinnace", "7f-80 r--p 0 0 0", "no range r-xp ", ""] {
            assert_eq!(executable(other), None, "{other}");
        }
    }

    #[test]
    fn the_process_gets_smaller_and_goes_on() {
        let resident = || fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(2).unwrap().parse::<u64>().unwrap();
        let before = resident();
        give_back();
        let after = resident();
        assert!(after < before, "{before} pages of files before, {after} after");
    }
}
