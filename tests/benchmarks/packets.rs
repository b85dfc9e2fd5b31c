//! The price of a packet: new connections per second and throughput through Pinnace, and through hand-written rules that do the same.
//!
//! Every contestant has a lab of its own, all set up before the first round; rounds go through all of them in turn, so that whatever else
//! the machine does hits all alike. Results are medians over rounds, ratios are taken within a round.

use std::time::Duration;

use crate::daemon::Daemon;
use crate::lab::Lab;
use crate::manifests::{Layout, Manifests, Size};
use crate::report::{Report, median, row};
use crate::rules;
use crate::stream::{Direction, gigabits};
use crate::syn::Syns;

const DIRECT: &str = "direct routing";
const TRACKED: &str = "direct + conntrack";
const NFT: &str = "nft DNAT+masq";
const IPTABLES: &str = "iptables DNAT+masq";
const NFT_KEEP: &str = "nft DNAT";

struct Contestant {
    name: String,
    /// Whom to compare with.
    controls: &'static [&'static str],
    direct: bool,
    lab: Lab,
    _daemon: Option<Daemon>,
    rates: Vec<f64>,
    streams: [Vec<f64>; 2],
    lost: u64,
}

/// How much to measure.
pub struct Effort {
    /// SYNs per round.
    pub syns: u32,
    /// Rounds.
    pub rounds: usize,
    /// Each stream.
    pub stream: Duration,
}

/// Runs all contestants; without `pinnace` the controls alone.
pub fn measure(report: &mut Report, prefix: &str, sizes: &[Size], pinnace: bool, effort: &Effort) -> Result<(), String> {
    let mut all = contestants(prefix)?;
    if pinnace {
        for (i, size) in sizes.iter().enumerate() {
            // Pods on another node are masqueraded; pods of this node see the client's own address.
            all.push(served(&format!("{prefix}m{i}"), *size, false)?);
            all.push(served(&format!("{prefix}k{i}"), *size, true)?);
        }
    }
    report.section(&format!(
        "packets: {} distinct SYNs × {} rounds, one TCP stream of {:?} × {}",
        effort.syns, effort.rounds, effort.stream, effort.rounds
    ));
    let (to_pods, to_vip) = (Syns::new(effort.syns, true), Syns::new(effort.syns, false));
    for round in 0..=effort.rounds {
        for c in &mut all {
            let syns = if c.direct { &to_pods } else { &to_vip };
            let arrived = syns.run(&c.lab)?;
            c.lab.forget_connections();
            let streams = [Direction::Upload, Direction::Download].map(|way| gigabits(&c.lab, c.direct, way, effort.stream));
            c.lab.forget_connections();
            // The first round warms caches and neighbours.
            if round > 0 {
                c.rates.push(arrived.count as f64 / arrived.took.as_secs_f64());
                c.lost += u64::from(effort.syns) - arrived.count;
                for (all, one) in c.streams.iter_mut().zip(streams) {
                    all.push(one?);
                }
            }
        }
    }
    let index = |name: &str| all.iter().position(|c| c.name == name).ok_or_else(|| format!("no contestant {name}"));
    let direct = median(&mut all[index(DIRECT)?].rates.clone());
    for c in &all {
        let rate = median(&mut c.rates.clone());
        let added = 1e6 / rate - 1e6 / direct;
        let mut figure = row(format!("new connections, {}", c.name), rate, "SYN/s").with("added_us_per_syn", added).with("lost", c.lost);
        figure = figure.with("rounds", c.rates.clone());
        for control in c.controls {
            let ratio = median(&mut c.rates.iter().zip(&all[index(control)?].rates).map(|(a, b)| a / b).collect::<Vec<_>>());
            figure = figure.against(control, rate / ratio).with(&format!("ratio to {control}"), ratio);
        }
        report.add(figure);
        report.add(row(format!("  added to direct routing, {}", c.name), added, "µs/SYN"));
        if c.lost > 0 {
            report.note(&format!("{}: {} of {} SYNs never arrived", c.name, c.lost, u64::from(effort.syns) * effort.rounds as u64));
        }
    }
    for (way, label) in ["upload", "download"].iter().enumerate() {
        for c in &all {
            let mut figure = row(format!("{label}, one TCP stream, {}", c.name), median(&mut c.streams[way].clone()), "Gb/s");
            if let Some(control) = c.controls.last() {
                figure = figure.against(control, median(&mut all[index(control)?].streams[way].clone()));
            }
            report.add(figure);
        }
    }
    Ok(())
}

fn contestants(prefix: &str) -> Result<Vec<Contestant>, String> {
    let with = |letter: &str, name: &str, direct, controls, program: &str, text: String| -> Result<Contestant, String> {
        let lab = Lab::new(&format!("{prefix}{letter}"))?;
        if !text.is_empty() {
            let args: &[&str] = if program == "nft" { &["-f", "-"] } else { &[] };
            rules::load(&lab.node, program, args, &text)?;
        }
        Ok(Contestant { name: name.into(), controls, direct, lab, _daemon: None, rates: vec![], streams: [vec![], vec![]], lost: 0 })
    };
    Ok(vec![
        with("d", DIRECT, true, &[], "", String::new())?,
        with("t", TRACKED, true, &[DIRECT], "nft", rules::TRACKING.into())?,
        with("i", IPTABLES, false, &[DIRECT], "iptables-restore", rules::iptables())?,
        with("f", NFT, false, &[DIRECT, IPTABLES], "nft", rules::nft(true))?,
        with("g", NFT_KEEP, false, &[DIRECT, IPTABLES], "nft", rules::nft(false))?,
    ])
}

fn served(prefix: &str, size: Size, local: bool) -> Result<Contestant, String> {
    let lab = Lab::new(prefix)?;
    let manifests = Manifests::write(prefix, size, Layout::Hundreds, local)?;
    let daemon = Daemon::start(&lab.node, manifests)?;
    daemon.settle();
    let kind = if local { "source kept" } else { "masqueraded" };
    Ok(Contestant {
        name: format!("Pinnace, {kind}, {size}"),
        controls: if local { &[DIRECT, IPTABLES, NFT_KEEP] } else { &[DIRECT, IPTABLES, NFT] },
        direct: false,
        lab,
        _daemon: Some(daemon),
        rates: vec![],
        streams: [vec![], vec![]],
        lost: 0,
    })
}
