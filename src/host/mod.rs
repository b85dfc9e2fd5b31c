//! The host: its interfaces, neighbors and gateways, systemd, and this process as the kernel sees
//! it.

pub mod classic_bpf;
pub mod gateways;
pub mod links;
pub mod liveness_fence;
pub mod neighbours;
pub mod resident_text;
pub mod systemd;
pub mod time_of_day;
