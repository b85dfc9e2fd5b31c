//! A machine outside the cluster has an address of the pool, and Services are told so by the API.

use std::net::{IpAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use pinnace::model::Family;
use serde_json::json;

use super::{PATIENCE, event, published, publishes};
use crate::lab::control_plane::{ControlPlane, Options};
use crate::lab::manifests::web;
use crate::lab::{Capture, Heard, Host, Lab, Running, eventually, lan};

/// Asked for by Services: this one where node-1 is to answer, and the next where node-2 is.
const ASKED: u16 = 213;
/// The first of the pool, which would be given to whoever does not ask.
const FIRST: u16 = 200;

/// Two nodes, and a stranger at some of the addresses. The writer is node-1.
struct Cluster {
    running: Vec<Running>,
    plane: ControlPlane,
    lab: Lab,
}

impl Cluster {
    fn start(strange: &[u16]) -> Cluster {
        let lab = Lab::new(1, 1);
        let plane = ControlPlane::start(Options::on(&lab.client2).without_controllers());
        let mut cluster = Cluster { running: Vec::new(), plane, lab };
        for host in strange {
            Family::ALL
                .map(|family| lan(family, *host))
                .iter()
                .for_each(|address| cluster.stranger().add_address(*address));
        }
        cluster.nodes().iter().for_each(|node| cluster.plane.node_of(node));
        cluster.run();
        cluster
    }

    fn run(&mut self) {
        for node in [0, 1] {
            let kubeconfig = self.plane.kubeconfig("pinnace");
            let pinnace = self
                .lab
                .pinnace_on(self.nodes()[node])
                .unset("PINNACE_MANIFESTS")
                .set("PINNACE_PROBE", "200ms");
            let pinnace = pinnace
                .set("PINNACE_KUBECONFIG", kubeconfig.display())
                .set("PINNACE_NAMESPACE", "pinnace");
            let running = pinnace.start_ready();
            if node == 0 {
                running.wait_log("became leader");
            }
            self.running.push(running);
        }
    }

    fn stranger(&self) -> &Host {
        &self.lab.client2
    }

    fn nodes(&self) -> [&Host; 2] {
        [&self.lab.node, self.lab.node2.as_ref().expect("a lab with far pods has a second node")]
    }

    /// A Service of one family, whose address is to be on this node.
    fn apply(&self, name: &str, family: Family, node: usize, asked: Option<IpAddr>) {
        let service =
            web(name).only(family).annotation("pinnace.dev/prefer-nodes", &self.nodes()[node].name);
        let service = asked.iter().fold(service, |service, asked| {
            service.annotation("pinnace.dev/addresses", &asked.to_string())
        });
        self.plane.apply(&service.with_pods(self.lab.all_pods()));
    }

    /// Whatever happens meanwhile, and a second later: the nodes ask for the address, and neither
    /// answers for it or announces it. Clients reach the stranger.
    fn refused(&self, vip: IpAddr, meanwhile: impl FnOnce()) {
        let done = AtomicBool::new(false);
        let questions = thread::scope(|scope| {
            let listen = |host: &Host| {
                let (ear, station) = (Capture::start(&host.ns, "eth0"), host.station());
                let done = &done;
                scope.spawn(move || {
                    let mut said = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        // As it comes: a socket holds a few seconds of what passes here, and no
                        // more.
                        said.extend(
                            ear.heard_from(vip)
                                .into_iter()
                                .filter(|(from, _)| *from == station)
                                .map(|(_, what)| what),
                        );
                        thread::sleep(Duration::from_millis(5));
                    }
                    said
                })
            };
            let listeners = self.nodes().map(listen);
            let over = Over(&done);
            meanwhile();
            let reached = self.lab.client.neighbour(vip);
            thread::sleep(Duration::from_secs(1));
            drop(over);
            assert_eq!(reached, Some(self.stranger().mac()), "{vip}: its holder keeps it");
            let said: Vec<Heard> = listeners
                .into_iter()
                .flat_map(|listener| listener.join().expect("it only listens"))
                .collect();
            assert!(
                said.iter().all(|what| *what == Heard::Question),
                "{vip}: a node said {said:?}"
            );
            said.len()
        });
        assert!(questions > 0, "{vip}: somebody asked for it");
    }

    fn served_at(&self, name: &str, address: IpAddr) {
        publishes(&self.plane, name, &[address]);
        eventually(&format!("{address} answers"), PATIENCE, || {
            self.lab.client.tcp(address, 80).map(drop).map_err(|failure| failure.to_string())
        });
    }
}

/// Ends what waits for it, also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn name(what: &str, family: Family, node: usize) -> String {
    format!("{what}-{}-{}", family.to_string().to_lowercase(), node + 1)
}

/// In both families, whichever node is to answer for it.
#[test]
fn an_address_of_a_foreign_machine_is_left_to_it_and_reported() {
    let mut cluster = Cluster::start(&[FIRST, ASKED, ASKED + 1]);
    let mac = cluster.stranger().mac();
    let cases: Vec<(Family, usize)> =
        Family::ALL.into_iter().flat_map(|family| [(family, 0), (family, 1)]).collect();

    // Asked for by name: whoever wants this address gets no other.
    for (family, node) in &cases {
        let (vip, service) = (lan(*family, ASKED + *node as u16), name("asked", *family, *node));
        cluster.refused(vip, || {
            cluster.apply(&service, *family, *node, Some(vip));
            let told = event(
                &cluster.plane,
                "AddressInUse",
                &service,
                &format!("{vip} is in use by another machine ({mac})"),
            );
            assert_eq!(
                (&told["type"], &told["involvedObject"]["kind"]),
                (&json!("Warning"), &json!("Service"))
            );
        });
        cluster.running[0].wait_phase(&format!("default/{service}"), "Failed");
        cluster.running[0].wait_reason(&format!("default/{service}"), &mac);
        assert_eq!(published(&cluster.plane, &service), Vec::<IpAddr>::new());
    }
    // The first that is free: whoever does not care gets the next one, and never sees the other in
    // its status.
    for family in Family::ALL {
        let (vip, service) = (lan(family, FIRST), name("next", family, 1));
        cluster.refused(vip, || {
            let mark = cluster.plane.mark();
            cluster.apply(&service, family, 1, None);
            event(
                &cluster.plane,
                "EnsuringLoadBalancer",
                &service,
                &format!("asking the network whether {vip} is in use elsewhere"),
            );
            event(
                &cluster.plane,
                "AddressInUse",
                &service,
                &format!("{vip} is in use by another machine ({mac})"),
            );
            cluster.served_at(&service, lan(family, FIRST + 1));
            let written = cluster.plane.requests(mark).into_iter();
            let written = written
                .filter(|request| request.resource == "services/status" && request.name == service)
                .count();
            assert_eq!(written, 1, "its status was right at once");
        });
    }

    // It is gone. What is known of it is kept for five minutes, or until the process is another.
    for (vip, length) in [FIRST, ASKED, ASKED + 1]
        .into_iter()
        .flat_map(|host| [(lan(Family::V4, host), 24), (lan(Family::V6, host), 64)])
    {
        cluster.stranger().ns.ip(&[format!("address del {vip}/{length} dev eth0")]);
    }
    cluster.running.iter_mut().for_each(|running| assert!(running.terminate().success()));
    cluster.running.clear();
    cluster.run();
    for (family, node) in cases {
        let vip = lan(family, ASKED + node as u16);
        cluster.served_at(&name("asked", family, node), vip);
        assert_eq!(cluster.lab.client.neighbour(vip), Some(cluster.nodes()[node].mac()), "{vip}");
    }
    for family in Family::ALL {
        cluster.served_at(&name("next", family, 1), lan(family, FIRST + 1));
    }

    // Somebody takes an address that is in use, and asks the LAN something from there.
    let (vip, nobody) = (lan(Family::V4, ASKED + 1), lan(Family::V4, 199));
    cluster.stranger().add_address(vip);
    let asks = || UdpSocket::bind((vip, 0)).and_then(|socket| socket.send_to(b"", (nobody, 9)));
    cluster.stranger().ns.enter(asks).expect("a question for the neighbour");
    let said = format!(
        "another machine ({mac}) also answers for {vip}, so clients reach either; stop it there"
    );
    let told = event(&cluster.plane, "AddressConflict", &name("asked", Family::V4, 1), &said);
    assert_eq!(
        (&told["type"], &told["involvedObject"]["kind"]),
        (&json!("Warning"), &json!("Service"))
    );
}
