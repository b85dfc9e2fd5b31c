//! The cables of a lab: clients and nodes on a LAN, pods behind the nodes.

use super::netns::{self, Namespace};
use super::{Host, bridge_netfilter, lan4, lan6, pod4, pod6, possible, sysctl, up};

/// A node, the pods behind it, and the number of their network: 10.42.NET.0/24, fd42:NET::/64.
pub struct Site<'a> {
    pub node: &'a Host,
    pub net: u16,
    pub pods: &'a [Host],
}

/// What is to be connected.
pub struct Wiring<'a> {
    /// The switch: its bridges are called `br0`, `br1`…, and every machine begins on `br0`.
    pub lan: &'a Namespace,
    pub bridges: usize,
    pub clients: &'a [&'a Host],
    pub sites: &'a [Site<'a>],
    /// How many pod networks there are: every node has routes to the others', whether or not their
    /// nodes exist.
    pub nets: u16,
}

/// Connects and addresses everything.
pub fn wire(wiring: &Wiring) {
    let machines: Vec<&Host> =
        wiring.clients.iter().copied().chain(wiring.sites.iter().map(|site| site.node)).collect();
    set_sysctls(wiring, &machines);
    lay_cables(wiring, &machines);
    wiring.lan.ip(&switch(wiring, &machines));
    bridge_netfilter(wiring.lan, "0");
    for host in &machines {
        host.ns.ip(&possible(up(host)));
    }
    for site in wiring.sites {
        connect_pods(site, wiring.nets);
    }
}

fn set_sysctls(wiring: &Wiring, machines: &[&Host]) {
    let pods = wiring.sites.iter().flat_map(|site| site.pods);
    for host in machines.iter().copied().chain(pods) {
        sysctl(
            &host.ns,
            &[
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/default/accept_ra", "0"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv4/ping_group_range", "0 2147483647"),
            ],
        );
    }
    for site in wiring.sites {
        sysctl(
            &site.node.ns,
            &[
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv6/conf/default/forwarding", "1"),
            ],
        );
    }
}

fn lay_cables(wiring: &Wiring, machines: &[&Host]) {
    let bridge = |name: &str, ns: &Namespace| {
        format!(
            "link add name {name} netns {} type bridge forward_delay 0 mcast_snooping 0",
            ns.name
        )
    };
    let cable = |name: &str, ns: &Namespace, to: &Host| {
        format!(
            "link add name {name} netns {} type veth peer name eth0 netns {}",
            ns.name, to.ns.name
        )
    };
    let mut links: Vec<String> =
        (0..wiring.bridges).map(|number| bridge(&format!("br{number}"), wiring.lan)).collect();
    links.extend(machines.iter().map(|host| cable(&host.name, wiring.lan, host)));
    for site in wiring.sites {
        links.push(bridge("cni0", &site.node.ns));
        links.extend(
            site.pods.iter().map(|pod| cable(&format!("v-{}", pod.name), &site.node.ns, pod)),
        );
    }
    netns::ip(None, &links);
}

fn switch(wiring: &Wiring, machines: &[&Host]) -> Vec<String> {
    let mut commands: Vec<String> =
        (0..wiring.bridges).map(|number| format!("link set br{number} up")).collect();
    commands.extend(machines.iter().map(|host| format!("link set {} master br0 up", host.name)));
    commands
}

fn connect_pods(site: &Site, nets: u16) {
    let net = site.net;
    let mut commands = vec![
        "link set cni0 up".to_owned(),
        format!("address add {}/24 dev cni0", pod4(net, 1)),
        format!("address add {}/64 dev cni0 nodad", pod6(net, 1)),
    ];
    for other in (0..nets).filter(|other| *other != net) {
        commands.push(format!("route add {}/24 via {}", pod4(other, 0), lan4(11 + other)));
        commands.push(format!("route add {}/64 via {}", pod6(other, 0), lan6(11 + other)));
    }
    // Hairpin as the bridge plugin of K3s sets it: a pod may reach itself through a Service.
    for pod in site.pods {
        commands.push(format!("link set v-{} master cni0 up", pod.name));
        commands.push(format!("link set v-{} type bridge_slave hairpin on", pod.name));
    }
    site.node.ns.ip(&possible(commands));
    bridge_netfilter(&site.node.ns, "1");
    for pod in site.pods {
        let mut commands = up(pod);
        commands.push(format!("route add default via {}", pod4(net, 1)));
        commands.push(format!("route add default via {}", pod6(net, 1)));
        pod.ns.ip(&possible(commands));
    }
}
