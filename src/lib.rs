//! Pinnace: LoadBalancer Services from one small binary per node.

pub mod bfd;
pub mod check;
pub mod cli;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod domain;
pub mod edge;
pub mod logging;
pub mod printable;
pub mod report;
pub mod ruleset;
pub mod wire;
