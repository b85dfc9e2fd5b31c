//! Which clients notice that an address has moved, and which do not.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use pinnace::model::Family;

use super::{ALL, others, with_pods_on};
use crate::lab::manifests::{Service, service};
use crate::lab::trio::{Cluster, Fault};
use crate::lab::{Failure, ensure, eventually, lan, patient};

/// Both addresses of a Service, once every node agrees who answers for them.
pub fn addresses(cluster: &Cluster, service: &Service) -> [IpAddr; 2] {
    let vips = eventually("it has addresses", Duration::from_secs(10), || {
        let status = cluster.running(0).pinnace().status()?;
        let addresses = status.addresses(&service.key());
        <[IpAddr; 2]>::try_from(addresses).map_err(|addresses| format!("{addresses:?}"))
    });
    for vip in vips {
        eventually("an owner", Duration::from_secs(15), || cluster.owner(vip, &ALL));
    }
    vips
}

/// ClientIP affinity: the nodes have nothing to tell each other, and name the same pod for the same
/// client.
#[test]
fn client_ip_affinity_survives_failover() {
    let mut cluster = Cluster::start(&[]);
    cluster.settle();
    let sticky = service("sticky").sticky().port("http", "TCP", 80);
    cluster.apply("sticky.yaml", &sticky.yaml());
    let vips = addresses(&cluster, &sticky);
    let victim = cluster.owner(vips[0], &ALL).expect("an owner");
    // All of its pods live on, so no client has a reason to be sent elsewhere.
    let survivors = others(victim);
    cluster.apply("sticky.yaml", &with_pods_on(&cluster, &sticky, &survivors));
    for node in &survivors {
        eventually("the pods are known", Duration::from_secs(10), || {
            let (code, body) = cluster.running(*node).pinnace().http("/services/default/sticky")?;
            ensure(code == 200, || body)
        });
    }
    let mut pods = Vec::new();
    for (vip, family) in vips.into_iter().zip(Family::ALL) {
        for source in (120..136).map(|host| lan(family, host)) {
            cluster.trio.client.add_address(source);
            let ask = || {
                cluster.trio.client.tcp_from(source, vip, 80).map_err(|failure| failure.to_string())
            };
            pods.push((source, vip, eventually("an answer", Duration::from_secs(10), ask).pod));
        }
    }
    let used: BTreeSet<&str> = pods.iter().map(|(.., pod)| &**pod).collect();
    assert_eq!(used.len(), 2, "32 clients, both pods");

    cluster.inject(victim, Fault::PowerLoss);
    for vip in vips {
        eventually("another owner", Duration::from_secs(2), || cluster.owner(vip, &survivors));
    }
    for (source, vip, pod) in pods {
        let reply = cluster.trio.client.tcp_from(source, vip, 80);
        assert_eq!(reply.map(|reply| reply.pod), Ok(pod), "{source} at {vip}");
    }
}

/// Connections are known to the node they go through, and to no other. Those of a dead node cannot
/// go on, though their pod lives; their clients are told at once, where silence would keep them
/// waiting for minutes. Nobody else notices.
#[test]
fn connections_through_a_failed_node_are_reset_and_others_survive() {
    let mut cluster = Cluster::start(&[]);
    cluster.settle();
    let (victim, other, third) = (0, 1, 2);
    let prefers = |name, node: usize| {
        let preferred = &cluster.trio.nodes[node].name;
        service(name).annotation("pinnace.dev/prefer-nodes", preferred).port("http", "TCP", 80)
    };
    let (through_victim, through_other) =
        (prefers("affected", victim), prefers("unaffected", other));
    // In one file: with manifests every node gives addresses by itself, in the order in which it
    // learns of Services.
    let texts = [&through_victim, &through_other]
        .map(|service| with_pods_on(&cluster, service, &[other, third]));
    cluster.apply("both.yaml", &texts.concat());
    let open = |service: &Service, owner: usize| {
        addresses(&cluster, service).map(|vip| {
            eventually("the preferred owner", Duration::from_secs(15), || {
                let now = cluster.owner(vip, &ALL)?;
                ensure(now == owner, || format!("{vip} is on node {now}"))
            });
            // More than one, so that both pods have some.
            let connect = || {
                let mut connection = cluster.trio.client.connect(vip, 80)?;
                let pod = connection.ask()?.pod;
                Ok((vip, connection, pod))
            };
            let connect = || connect().map_err(|failure: Failure| failure.to_string());
            [(); 6].map(|()| eventually("a connection", Duration::from_secs(5), connect))
        })
    };
    let (affected, unaffected) = (open(&through_victim, victim), open(&through_other, other));

    let begin = cluster.inject(victim, Fault::PowerLoss);
    for (vip, mut connection, pod) in unaffected.into_iter().flatten() {
        assert_eq!(
            connection.ask().map(|reply| reply.pod),
            Ok(pod),
            "{vip}: a connection through a node that lives"
        );
    }
    for (vip, ..) in affected.iter().flatten() {
        eventually("another owner", Duration::from_secs(2), || {
            cluster.owner(*vip, &others(victim))
        });
    }
    println!("other owners after {:?}", begin.elapsed());
    for (vip, mut connection, pod) in affected.into_iter().flatten() {
        let asked = Instant::now();
        let answer = connection.ask();
        let reset = matches!(&answer, Err(Failure::Other(why)) if why.contains("reset"));
        assert!(
            reset,
            "{vip}: a connection through the dead node to {pod}, after {:?}: {answer:?}",
            asked.elapsed()
        );
        assert!(
            asked.elapsed() < patient(Duration::from_secs(1)),
            "{vip}: told only after {:?}",
            asked.elapsed()
        );
        assert!(
            cluster.trio.client.tcp(vip, 80).is_ok(),
            "{vip}: whoever connects again is served"
        );
    }
}
