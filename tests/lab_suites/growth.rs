//! The cost of a decision grows at most linearly with the number of Services.
//! Counted in allocations, which are the same in every run, and in CPU time of the thread, which a
//! busy machine hardly changes; never in time by the clock on the wall.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pinnace::engine::plan::Plan;
use pinnace::engine::{Engine, EngineSettings, Event};
use pinnace::ipam::Allocations;
use pinnace::ipam::pool::parse_pools;
use pinnace::model::role::Role;
use pinnace::model::source_update::SourceUpdate;
use pinnace::model::*;
use rustix::time::{ClockId, clock_gettime};

thread_local!(static ALLOCATED: Cell<u64> = const { Cell::new(0) });

/// Counts what each thread asks for.
struct Counting;

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATED.try_with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Clone, Copy, Debug)]
struct Work {
    allocations: f64,
    microseconds: f64,
}

fn work(task: impl FnOnce() -> Plan) -> Work {
    let cpu = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
    };
    let (allocations, start) = (ALLOCATED.get(), cpu());
    let plan = task();
    let work =
        Work { allocations: (ALLOCATED.get() - allocations) as f64, microseconds: cpu() - start };
    drop(plan);
    work
}

fn service(number: u32, port: u16) -> SourceChange {
    let service = Service {
        key: ObjectKey::new("default", &format!("web-{number}")),
        created: 0,
        class: None,
        families: vec![Family::V4],
        require_dual_stack: false,
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port }],
        external: TrafficPolicy::Cluster,
        client_affinity: false,
        source_ranges: None,
        request: Request::default(),
        node_pool: None,
        selector: None,
        published: Vec::new(),
        problems: Vec::new(),
        api: None,
    };
    SourceChange::Service(service.key.clone(), Some(Box::new(service)))
}

fn source(changes: Vec<SourceChange>) -> Event {
    Event::Source(SourceUpdate { changes, synced: true, ..SourceUpdate::default() })
}

fn settings() -> EngineSettings {
    EngineSettings {
        node: "node-1".into(),
        pools: parse_pools("10.88.0.0/16").expect("pools of the test"),
        avoid_buggy_ips: true,
        mode: Mode::Vip,
        class: "pinnace.dev/pinnace".into(),
        claim_default: true,
        interfaces: Vec::new(),
        probe: false,
        role: Role::Alone,
    }
}

const NOW: Duration = Duration::from_secs(1);

fn interface(index: u32, name: &str, addresses: &[&str]) -> (u32, Interface) {
    let interface = Interface {
        index,
        name: name.into(),
        mac: Some([2, 0, 0, 0, 0, index as u8]),
        up: true,
        ipv6: true,
        addresses: addresses.iter().map(|address| address.parse().expect("subnet")).collect(),
        ..Interface::default()
    };
    (index, interface)
}

fn interfaces(list: impl IntoIterator<Item = (u32, Interface)>) -> Event {
    Event::Interfaces(Arc::new(BTreeMap::from_iter(list)))
}

fn eth0() -> (u32, Interface) {
    interface(2, "eth0", &["10.88.255.11/16"])
}

/// An engine with an uplink and the first `services` Services, and what giving them addresses cost.
fn started(services: u32) -> (Engine, Work) {
    let mut engine = Engine::new(settings(), Allocations::new());
    engine.handle(interfaces([eth0()]), NOW);
    let event = source((0..services).map(|n| service(n, 80)).collect());
    let work = work(|| engine.handle(event, NOW));
    assert_eq!(engine.allocations().len(), services as usize);
    (engine, work)
}

/// The least of several runs in each respect: noise only adds.
fn least(mut run: impl FnMut() -> Work) -> Work {
    (0..5).map(|_| run()).fold(
        Work { allocations: f64::MAX, microseconds: f64::MAX },
        |least, work| Work {
            allocations: least.allocations.min(work.allocations),
            microseconds: least.microseconds.min(work.microseconds),
        },
    )
}

/// `large` handles four times as many as `small`: four times the work, and a little for deeper
/// trees and colder caches, is linear; sixteen times would be quadratic.
fn at_most_linear(what: &str, small: Work, large: Work) {
    println!("{what}: {small:?} → {large:?}");
    assert!(
        large.allocations <= 5.0 * small.allocations + 500.0,
        "{what}: allocations grow too fast: {small:?} → {large:?}"
    );
    assert!(
        large.microseconds <= 9.0 * small.microseconds + 500.0,
        "{what}: CPU time grows too fast: {small:?} → {large:?}"
    );
}

#[test]
fn allocating_addresses_to_all_services() {
    at_most_linear(
        "1,250 and 5,000 Services at the start",
        least(|| started(1250).1),
        least(|| started(5000).1),
    );
}

#[test]
fn one_change_among_many() {
    let change = |services| {
        let (mut engine, _) = started(services);
        let mut port = 80;
        least(|| {
            port += 1;
            let event = source(vec![service(7, port)]);
            work(|| engine.handle(event, NOW))
        })
    };
    at_most_linear("one change among 1,250 and 5,000 Services", change(1250), change(5000));
}

#[test]
fn many_services_added_at_once() {
    let add = |more: u32| {
        least(|| {
            let (mut engine, _) = started(4000);
            let event = source((4000..4000 + more).map(|n| service(n, 80)).collect());
            work(|| engine.handle(event, NOW))
        })
    };
    at_most_linear("250 and 1,000 Services more beside 4,000", add(250), add(1000));
}

/// Every pod comes with an interface. No Service has to do with it.
#[test]
fn the_interface_of_a_pod() {
    let mut engine = started(5000).0;
    let plain = work(|| engine.handle(interfaces([eth0()]), NOW));
    let pod = (9, Interface { kind: "veth".into(), ..interface(9, "veth1a2b", &[]).1 });
    let come = work(|| engine.handle(interfaces([eth0(), pod.clone()]), NOW));
    let went = work(|| engine.handle(interfaces([eth0()]), NOW));
    println!("nothing: {plain:?}, a pod comes: {come:?}, goes: {went:?}");
    assert!(come.allocations + went.allocations < 500.0, "{come:?}, {went:?}");
    let moved = engine.handle(interfaces([interface(2, "eth0", &["10.99.255.11/16"])]), NOW);
    assert!(moved.announcements.is_some(), "but an address that moves does matter");
}
