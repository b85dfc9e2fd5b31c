//! The price of a packet: new connections per second and throughput through Pinnace, and through
//! hand-written rules that do the same.
//!
//! Every contestant has a lab of its own, all set up before the first round; rounds go through all
//! of them in turn, so that whatever else the machine does hits all alike. Results are medians over
//! rounds, ratios are taken within a round.

use std::time::Duration;

use crate::daemon::Daemon;
use crate::lab::{CLIENT, Lab};
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
    /// When it is a control.
    label: &'static str,
    /// Whom to compare with.
    controls: &'static [&'static str],
    direct: bool,
    masquerades: bool,
    lab: Lab,
    daemon: Option<Daemon>,
    /// New connections, packets of known flows, upload, download: a figure for each round.
    rounds: [Vec<f64>; 4],
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
pub fn measure(
    report: &mut Report,
    prefix: &str,
    sizes: &[Size],
    pinnace: bool,
    effort: &Effort,
) -> Result<(), String> {
    let mut all = contestants(prefix)?;
    if pinnace {
        for (i, size) in sizes.iter().enumerate() {
            // Pods on another node are masqueraded; pods of this node see the client's own address.
            all.push(served(&format!("{prefix}m{i}"), *size, false)?);
            all.push(served(&format!("{prefix}k{i}"), *size, true)?);
        }
    }
    for daemon in all.iter().filter_map(|c| c.daemon.as_ref()) {
        daemon.settle();
    }
    report.section(&format!(
        "packets: {} distinct SYNs × {} rounds, one TCP stream of {:?} × {}",
        effort.syns, effort.rounds, effort.stream, effort.rounds
    ));
    let (to_pods, to_vip) = (Syns::new(effort.syns, true), Syns::new(effort.syns, false));
    for round in 0..=effort.rounds {
        for c in &mut all {
            let syns = if c.direct { &to_pods } else { &to_vip };
            let (new, known) = (syns.run(&c.lab)?, syns.run(&c.lab)?);
            c.lab.forget_connections();
            let (upload, source) = gigabits(&c.lab, c.direct, Direction::Upload, effort.stream)?;
            let (download, _) = gigabits(&c.lab, c.direct, Direction::Download, effort.stream)?;
            c.lab.forget_connections();
            if (source == CLIENT) == c.masquerades {
                return Err(format!(
                    "{}: the pod saw {source}: this is not what was to be measured",
                    c.name
                ));
            }
            // The first round warms caches.
            if round > 0 {
                c.lost += u64::from(effort.syns) - new.count.min(u64::from(effort.syns));
                for (all, one) in
                    c.rounds.iter_mut().zip([new.rate(), known.rate(), upload, download])
                {
                    all.push(one);
                }
            }
        }
    }
    const MEASURES: [(&str, &str); 4] = [
        ("new connections", "SYN/s"),
        ("the same SYNs again, flows known", "pkt/s"),
        ("upload, one TCP stream", "Gb/s"),
        ("download, one TCP stream", "Gb/s"),
    ];
    for (measure, (what, unit)) in MEASURES.iter().enumerate() {
        for c in &all {
            let value = median(&mut c.rounds[measure].clone());
            let mut figure = row(format!("{what}, {}", c.name), value, unit)
                .with("rounds", c.rounds[measure].clone());
            for control in c.controls {
                let control = all
                    .iter()
                    .find(|c| c.name == *control)
                    .ok_or_else(|| format!("no contestant {control}"))?;
                let mut ratios: Vec<_> = c.rounds[measure]
                    .iter()
                    .zip(&control.rounds[measure])
                    .map(|(a, b)| a / b)
                    .collect();
                figure = figure.ratio(
                    control.label,
                    median(&mut control.rounds[measure].clone()),
                    median(&mut ratios),
                );
            }
            if measure < 2 {
                let added = 1e6 / value - 1e6 / median(&mut all[0].rounds[measure].clone());
                figure = figure
                    .saying(format!("{added:+.2} µs each"))
                    .with("added_us", added)
                    .with("lost", c.lost);
            }
            report.add(figure);
        }
    }
    for c in all.iter().filter(|c| c.lost > 0) {
        report.note(&format!(
            "{}: {} of {} SYNs never arrived",
            c.name,
            c.lost,
            u64::from(effort.syns) * effort.rounds as u64
        ));
    }
    Ok(())
}

fn contestants(prefix: &str) -> Result<Vec<Contestant>, String> {
    let with = |letter: &str,
                label: &'static str,
                direct,
                controls,
                program: &str,
                text: String|
     -> Result<Contestant, String> {
        let lab = Lab::new(&format!("{prefix}{letter}"))?;
        if !text.is_empty() {
            let args: &[&str] = if program == "nft" { &["-f", "-"] } else { &[] };
            rules::load(&lab.node, program, args, &text)?;
        }
        let masquerades = label.contains("masq");
        Ok(Contestant {
            name: label.into(),
            masquerades,
            label,
            controls,
            direct,
            lab,
            daemon: None,
            rounds: Default::default(),
            lost: 0,
        })
    };
    Ok(vec![
        // Direct routing comes first: what others add is counted from it.
        with("d", DIRECT, true, &[], "", String::new())?,
        with("t", TRACKED, true, &[], "nft", rules::TRACKING.into())?,
        with("i", IPTABLES, false, &[], "iptables-restore", rules::iptables())?,
        with("f", NFT, false, &[IPTABLES], "nft", rules::nft(true))?,
        with("g", NFT_KEEP, false, &[IPTABLES], "nft", rules::nft(false))?,
    ])
}

fn served(prefix: &str, size: Size, local: bool) -> Result<Contestant, String> {
    let lab = Lab::new(prefix)?;
    let manifests = Manifests::write(prefix, size, Layout::Hundreds, local)?;
    let daemon = Daemon::start(&lab.node, manifests)?;
    let kind = if local { "source kept" } else { "masqueraded" };
    Ok(Contestant {
        name: format!("Pinnace, {kind}, {size}"),
        label: "Pinnace",
        controls: if local { &[NFT_KEEP, IPTABLES] } else { &[NFT, IPTABLES] },
        direct: false,
        masquerades: !local,
        lab,
        daemon: Some(daemon),
        rounds: Default::default(),
        lost: 0,
    })
}
