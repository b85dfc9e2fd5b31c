//! A LAN of five nodes that falls apart and becomes whole again.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use pinnace::model::Family;

use crate::lab::trio::Cluster;
use crate::lab::{ensure, patient};

const ALL: [usize; 5] = [0, 1, 2, 3, 4];
/// Until every side has one owner. Detection takes 150 ms; two nodes that differ about who has been
/// back for long claim at once, and hear each other.
const BOUND: Duration = Duration::from_secs(2);
/// Until there is one owner of the whole, and the client knows it.
const JOIN: Duration = Duration::from_secs(1);

/// In every shape: the client with few or with many, with or without the owner. Each comes while
/// the nodes that were away before still count as fresh.
#[test]
fn each_partition_has_one_owner_and_the_merged_lan_has_one() {
    let cluster = Cluster::of(ALL.len(), &[], |_, pinnace| pinnace);
    cluster.settle();
    let vips = Family::ALL.map(|family| cluster.vip(family));
    // Sizes of the sides, that of the client first, and in which of them the owner is of the first
    // address.
    let shapes: [(&[usize], usize); 6] = [
        (&[2, 3], 0),
        (&[4, 1], 1),
        (&[1, 4], 1),
        (&[2, 1, 2], 2),
        (&[3, 1, 1], 1),
        (&[1, 1, 3], 0),
    ];
    for (sizes, with_owner) in shapes {
        cluster.wait_owners(&ALL, Duration::from_secs(5));
        let owner = cluster.owner(vips[0], &ALL).expect("an owner");
        let sides = sides(sizes, with_owner, owner);
        for vip in vips {
            cluster.trio.client.neighbour(vip).expect("the client knows the address");
        }

        let split = Instant::now();
        cluster.trio.split(&sides);
        let one_each = || {
            for (vip, side) in
                vips.into_iter().flat_map(|vip| sides.iter().map(move |side| (vip, side)))
            {
                cluster.answering(vip, side)?;
            }
            vips.into_iter().try_for_each(|vip| reaches_the_owner(&cluster, vip, &sides[0]))
        };
        let took =
            holds_from(split, BOUND, &format!("{sides:?}: one owner on each side"), one_each);
        let joined = Instant::now();
        cluster.trio.split(&[ALL.to_vec()]);
        let one = || vips.into_iter().try_for_each(|vip| reaches_the_owner(&cluster, vip, &ALL));
        let rejoined = holds_from(joined, JOIN, &format!("{sides:?} joined: one owner"), one);
        println!(
            "{sides:?}: one owner on each side after {took:?}, one after the join after {rejoined:?}"
        );
    }
}

/// Between two nodes, in one direction, for good: the owner is not heard by the other, or does not
/// hear it. The third hears both.
#[test]
fn one_way_frame_loss_leaves_one_owner() {
    let cluster = Cluster::start(&[]);
    for owner_is_heard in [false, true] {
        cluster.settle();
        let vip = cluster.vip(Family::V4);
        let owner = cluster.owner(vip, &ALL[..3]).expect("an owner");
        let other = (owner + 1) % 3;
        let (from, to) = if owner_is_heard { (other, owner) } else { (owner, other) };
        let [source, sink] = [from, to].map(|node| &cluster.trio.nodes[node].name);
        let wall = "add table bridge wall; add chain bridge wall forward { type filter hook forward priority 0; }";
        cluster.trio.lan.output(
            "nft",
            &[&format!(
                "{wall}; add rule bridge wall forward iifname {source} oifname {sink} drop"
            )],
        );
        let one = || {
            Family::ALL
                .into_iter()
                .try_for_each(|family| cluster.owner(cluster.vip(family), &ALL[..3]).map(drop))
        };
        holds_from(Instant::now(), Duration::from_secs(5), "one owner on which all agree", one);
        assert!(
            cluster.running(from).log().contains("one-way path"),
            "the node that hears the other says so"
        );
        cluster.trio.lan.output("nft", &["delete table bridge wall"]);
        holds_from(Instant::now(), Duration::from_secs(5), "and then as well", one);
    }
}

/// Nodes in sides of these sizes, one of them where it is to be and the others in their order.
fn sides(sizes: &[usize], place: usize, first: usize) -> Vec<Vec<usize>> {
    let mut others = ALL.into_iter().filter(|node| *node != first);
    let fill = |(index, size): (usize, &usize)| {
        let mut side: Vec<usize> = if index == place { vec![first] } else { vec![] };
        side.extend(others.by_ref().take(size - side.len()));
        side
    };
    sizes.iter().enumerate().map(fill).collect()
}

/// The client's neighbour entry is right, without asking.
fn reaches_the_owner(cluster: &Cluster, vip: IpAddr, among: &[usize]) -> Result<(), String> {
    let owner = cluster.answering(vip, among)?;
    let known = cluster.trio.neighbour(vip);
    ensure(known == Some(owner), || {
        format!("{vip}: the owner is {owner}, the client sends to {known:?}")
    })
}

/// It becomes true within the bound, and then stays so for another second. Gives back how long it
/// took.
fn holds_from(
    begin: Instant,
    bound: Duration,
    what: &str,
    holds: impl Fn() -> Result<(), String>,
) -> Duration {
    let end = begin + patient(bound);
    let took = loop {
        let now = Instant::now();
        match holds() {
            Ok(()) => break now - begin,
            Err(complaint) => assert!(now < end, "{what}: not within {bound:?}: {complaint}"),
        }
        thread::sleep(Duration::from_millis(20));
    };
    thread::sleep(end.saturating_duration_since(Instant::now()));
    while Instant::now() < end + Duration::from_secs(1) {
        holds().unwrap_or_else(|complaint| panic!("{what}: no longer: {complaint}"));
        thread::sleep(Duration::from_millis(20));
    }
    took
}
