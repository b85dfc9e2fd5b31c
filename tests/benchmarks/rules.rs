//! The controls: what an administrator would write by hand for the same Service, in nft and in
//! iptables.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::Stdio;

use crate::lab::{Netns, PODS, VIP, pod};

/// Connection tracking without NAT: what every stateful firewall costs.
pub const TRACKING: &str = "table ip control { chain c { type filter hook prerouting priority -150; ct state invalid drop; }; }";

/// DNAT by a hash of the flow, and masquerade when asked for. Port 80 goes to 8080 (counted and
/// dropped), 81 to 9000 (streams).
pub fn nft(masquerade: bool) -> String {
    let mut text =
        String::from("table ip control {\nchain pre { type nat hook prerouting priority -110;\n");
    for (port, target) in [(80, 8080), (81, 9000)] {
        let pods: Vec<_> = (0..PODS).map(|n| format!("{n} : {} . {target}", pod(n))).collect();
        let map = pods.join(", ");
        let _ = writeln!(
            text,
            "ip daddr {VIP} tcp dport {port} dnat ip addr . port to jhash ip saddr . tcp sport mod {PODS} seed 0x5eed map {{ {map} }}"
        );
    }
    text.push_str("}\n");
    if masquerade {
        text.push_str(
            "chain post { type nat hook postrouting priority 90; ct status dnat masquerade; }\n",
        );
    }
    text.push_str("}\n");
    text
}

/// The same for iptables-restore: DNAT to a range, which iptables spreads by a hash of its own, and
/// masquerade.
pub fn iptables() -> String {
    let (first, last) = (pod(0), pod(PODS - 1));
    format!(
        "*nat\n-A PREROUTING -d {VIP} -p tcp --dport 80 -j DNAT --to-destination {first}-{last}:8080\n\
         -A PREROUTING -d {VIP} -p tcp --dport 81 -j DNAT --to-destination {first}-{last}:9000\n\
         -A POSTROUTING -m conntrack --ctstate DNAT -j MASQUERADE\nCOMMIT\n"
    )
}

/// A table with as many elements as Pinnace needs for `services` × `endpoints`, for `nft -f`.
pub fn nft_of_size(services: u32, endpoints: u32) -> String {
    let each = endpoints / services;
    let (mut frontends, mut backends) = (String::new(), String::new());
    for s in 0..services {
        let vip = Ipv4Addr::from(0x0a5b_1000 + s);
        let _ = writeln!(frontends, "{vip} . tcp . 80 : goto spread,");
        for e in 0..each {
            let _ = writeln!(
                backends,
                "{vip} . tcp . 80 . {e:#x} : {} . 8080,",
                Ipv4Addr::from(0x0aa0_0000 + s * each + e)
            );
        }
    }
    format!(
        "table ip control {{
        map services {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {frontends} }}; }}
        map backends {{ type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service; elements = {{ {backends} }}; }}
        chain spread {{ meta mark set jhash ip saddr . th sport mod {each} seed 0x5eed; dnat ip to ip daddr . meta l4proto . th dport . meta mark map @backends; }}
        chain pre {{ type nat hook prerouting priority -110; ip daddr . meta l4proto . th dport vmap @services; }}
        chain post {{ type nat hook postrouting priority 90; ct status dnat masquerade; }}
        }}\n"
    )
}

/// Replaces one element of it, for the `n`-th time.
pub fn nft_change(n: usize) -> String {
    let element = |n| {
        format!(
            "element ip control backends {{ 10.91.16.0 . tcp . 80 . 0x0 : {} . 8080 }}",
            Ipv4Addr::from(0x0ab0_0000 + n as u32)
        )
    };
    // The first replaces what the table began with.
    let before = if n == 0 {
        "element ip control backends { 10.91.16.0 . tcp . 80 . 0x0 : 10.160.0.0 . 8080 }".into()
    } else {
        element(n - 1)
    };
    format!("delete {before}\nadd {}\n", element(n))
}

/// Feeds `text` to a program in the namespace.
pub fn load(netns: &Netns, program: &str, args: &[&str], text: &str) -> Result<(), String> {
    let mut child = netns
        .command(program)
        .args(args)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{program}: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).map_err(|e| format!("{program}: {e}"))?;
    }
    let out = child.wait_with_output().map_err(|e| format!("{program}: {e}"))?;
    if out.status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {}\n{text:.400}", String::from_utf8_lossy(&out.stderr)))
    }
}
