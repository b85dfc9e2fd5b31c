//! The program that owns a UDP port.

use std::fs;

/// The program that owns this UDP port in the network namespace of the caller, with its process
/// number, as far as `/proc` shows it.
pub(super) fn of(port: u16) -> String {
    let inodes: Vec<String> = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"]
        .iter()
        .flat_map(|table| inodes(table, port))
        .collect();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        else {
            continue;
        };
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        let owns = |link: std::path::PathBuf| {
            inodes.iter().any(|inode| link.to_str() == Some(&format!("socket:[{inode}]")))
        };
        if files.filter_map(|file| fs::read_link(file.path()).ok()).any(owns) {
            let program = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return match program.trim() {
                "bfdd" => format!("FRR's bfdd (process {pid})"),
                "bird" => format!("BIRD (process {pid})"),
                "pinnace" => format!("another Pinnace (process {pid})"),
                other => format!("{other} (process {pid})"),
            };
        }
    }
    "another program (FRR's bfdd and BIRD are known to use it)".to_owned()
}

/// Inodes of the sockets in a table of `/proc/net` that are bound to this port.
fn inodes(table: &str, port: u16) -> Vec<String> {
    let text = fs::read_to_string(table).unwrap_or_default();
    let on_port = |line: &&str| {
        let local = line.split_whitespace().nth(1).and_then(|address| address.rsplit(':').next());
        local.and_then(|digits| u16::from_str_radix(digits, 16).ok()) == Some(port)
    };
    text.lines()
        .filter(on_port)
        .filter_map(|line| line.split_whitespace().nth(9).map(str::to_owned))
        .collect()
}
