//! The engine with an API server: what statuses say is served, one node writes them, and two
//! leaders at once do no lasting harm.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::plan::Plan;
use super::tests::{T0, key, links, put, settings, source, vip};
use super::*;
use crate::ipam::Allocations;
use crate::k8s::status;
use crate::k8s::status::StatusPatch;
use crate::l2::announcer::AnnouncerEvent;
use crate::model::fixtures::service;
use crate::model::*;

/// The API server's part: Services, and writes to their status that are refused unless they name
/// the newest version.
#[derive(Default)]
pub(super) struct Api {
    pub(super) services: BTreeMap<ObjectKey, Service>,
    version: u64,
    writes: usize,
}

impl Api {
    pub(super) fn put(&mut self, mut service: Service, ingress: impl Into<Arc<[Ingress]>>) {
        self.version += 1;
        let ingress = ingress.into();
        service.published = ingress.iter().filter_map(|entry| entry.ip).collect();
        let uid = service.key.to_string().into();
        let resource_version = self.version.to_string().into();
        service.api = Some(Box::new(ApiMetadata {
            uid,
            resource_version,
            ingress,
            cleanup_finalizer: false,
            deleting: false,
        }));
        self.services.insert(service.key.clone(), service);
    }

    pub(super) fn write(&mut self, key: &ObjectKey, publication: &StatusPatch) {
        let Some(service) = self.services.get(key).cloned() else { return };
        let current = service
            .api
            .as_ref()
            .is_some_and(|record| record.resource_version == publication.resource_version);
        if let Some(ingress) = publication.ingress.clone().filter(|_| current) {
            self.writes += 1;
            self.put(service, ingress);
        }
    }

    pub(super) fn write_all(&mut self, plan: &Plan) {
        plan.status_patches.iter().for_each(|(key, publication)| self.write(key, publication));
    }

    pub(super) fn events(&self) -> Event {
        source(self.services.values().cloned().map(put).collect())
    }

    pub(super) fn says(&self, name: &str) -> Vec<IpAddr> {
        self.services[&key(name)].published.clone()
    }
}

pub(super) fn node(role: Role) -> Engine {
    let mut engine = Engine::new(
        EngineSettings { role: Role::Follower, ..settings("10.88.0.200-10.88.0.205", false) },
        Allocations::default(),
    );
    engine.handle(links(true), T0);
    engine.handle(Event::Role(role), T0);
    engine
}

pub(super) fn entry(address: IpAddr) -> Ingress {
    Ingress { ip: Some(address), ..Ingress::default() }
}

pub(super) fn served(engine: &Engine, name: &str) -> Vec<IpAddr> {
    engine
        .report()
        .state()
        .services
        .into_iter()
        .find(|service| service.key == key(name))
        .map(|service| service.addresses)
        .unwrap_or_default()
}

#[test]
fn followers_serve_what_the_status_says_and_only_that() {
    let (mut api, mut follower, mut writer) =
        (Api::default(), node(Role::Follower), node(Role::Leader));
    api.put(service("web"), []);
    let plan = follower.handle(api.events(), T0);
    assert!(plan.status_patches.is_empty() && served(&follower, "web").is_empty());
    follower.handle(Event::Leader(Some("node-9".into())), T0);
    assert!(follower.report().state().services[0].reasons[0].message.contains("node-9"));
    let plan = writer.handle(api.events(), T0);
    assert!(!plan.save, "the status remembers");
    api.write_all(&plan);
    assert_eq!(api.says("web"), [vip(200)]);
    follower.handle(api.events(), T0);
    assert_eq!(served(&follower, "web"), [vip(200)]);
    assert!(
        writer.handle(api.events(), T0).status_patches.is_empty(),
        "nothing changed, nothing is written"
    );
}

#[test]
fn an_address_outside_the_pools_is_never_served_and_is_replaced() {
    let (mut api, mut follower, mut writer) =
        (Api::default(), node(Role::Follower), node(Role::Leader));
    api.put(service("web"), vec![entry("8.8.8.8".parse().unwrap())]);
    let plan = follower.handle(api.events(), T0);
    assert!(served(&follower, "web").is_empty() && plan.rule_set.forwardings.is_empty());
    assert_eq!(follower.report().state().services[0].reasons[0].code, "AddressOutsidePools");
    api.write_all(&writer.handle(api.events(), T0));
    assert_eq!(api.says("web"), [vip(200)]);
}

#[test]
fn one_address_in_two_statuses_goes_to_the_older_on_every_node() {
    let (mut older, mut newer) = (service("z-older"), service("a-newer"));
    (older.created, newer.created) = (1, 2);
    let mut api = Api::default();
    api.put(newer, vec![entry(vip(201))]);
    api.put(older, vec![entry(vip(201))]);
    let all: Vec<SourceChange> = api.services.values().cloned().map(put).collect();
    for order in [all.clone(), all.into_iter().rev().collect()] {
        let mut follower = node(Role::Follower);
        for change in order {
            follower.handle(source(vec![change]), T0);
        }
        assert_eq!(
            (served(&follower, "z-older"), served(&follower, "a-newer")),
            (vec![vip(201)], vec![])
        );
    }
    let mut writer = node(Role::Leader);
    api.write_all(&writer.handle(api.events(), T0));
    assert_eq!((api.says("z-older"), api.says("a-newer")), (vec![vip(201)], vec![vip(200)]));
}

#[test]
fn a_new_leader_steals_nothing_and_probes_nothing_that_is_published() {
    let mut api = Api::default();
    api.put(service("a"), []);
    api.put(service("b"), vec![entry(vip(200))]);
    let mut writer = Engine::new(
        EngineSettings { role: Role::Follower, ..settings("10.88.0.200-10.88.0.205", true) },
        Allocations::default(),
    );
    writer.handle(links(true), T0);
    let first = writer.handle(api.events(), T0);
    assert!(
        first.rule_set.vips == Some([vip(200)].into())
            && first.announcements.is_some_and(|all| !all[&vip(200)].probe)
    );
    let plan = writer.handle(Event::Role(Role::Leader), T0);
    assert!(
        !plan.status_patches.contains_key(&key("a")),
        "a new address is probed before anybody is told of it"
    );
    assert!(plan.announcements.is_some_and(|all| all[&vip(201)].probe));
    let plan = writer.handle(Event::Announcer(AnnouncerEvent::ProbeClear { vip: vip(201) }), T0);
    assert_eq!(
        plan.status_patches[&key("a")].ingress.as_ref().and_then(|all| all[0].ip),
        Some(vip(201))
    );
}

#[test]
fn a_status_edited_by_hand_is_put_right_and_a_stale_finalizer_taken_away() {
    let (mut api, mut writer) = (Api::default(), node(Role::Leader));
    api.put(service("web"), []);
    api.write_all(&writer.handle(api.events(), T0));
    writer.handle(api.events(), T0);
    api.put(service("web"), vec![entry(vip(204))]);
    let plan = writer.handle(api.events(), T0);
    assert!(
        plan.diagnostics
            .iter()
            .any(|notice| notice.warning && notice.message.contains("10.88.0.204")),
        "{:?}",
        plan.diagnostics
    );
    api.write_all(&plan);
    assert_eq!(api.says("web"), [vip(200)]);
    let mut leaving = api.services[&key("web")].clone();
    if let Some(record) = &mut leaving.api {
        (record.deleting, record.cleanup_finalizer) = (true, true);
    }
    let plan = writer.handle(source(vec![put(leaving)]), T0);
    assert!(
        plan.status_patches[&key("web")].remove_finalizer && plan.rule_set.vips == Some([].into())
    );
}

#[test]
fn a_service_of_another_class_is_never_written_to() {
    let (mut api, mut writer) = (Api::default(), node(Role::Leader));
    api.put(
        Service { class: Some("example.com/other".into()), ..service("web") },
        vec![entry("8.8.8.8".parse().unwrap())],
    );
    assert!(writer.handle(api.events(), T0).status_patches.is_empty());
}

#[test]
fn what_was_refused_is_said_once_and_published_again_by_itself() {
    let (mut api, mut writer) = (Api::default(), node(Role::Leader));
    api.put(service("web"), []);
    let lost = |plan: &Plan| Event::PatchFailed {
        key: key("web"),
        resource_version: plan.status_patches[&key("web")].resource_version.clone(),
        refusal: Some("the words of a webhook (422)".into()),
    };
    let first = writer.handle(api.events(), T0);
    let plan = writer.handle(lost(&first), T0);
    assert!(
        plan.status_patches.is_empty() && plan.diagnostics[0].message.contains("a webhook"),
        "{:?}",
        plan.diagnostics
    );
    let due = writer.poll_timeout().expect("a time for the next attempt");
    assert!(due > T0 && due < T0 + Duration::from_secs(3));
    let again = writer.handle(Event::Tick, due);
    assert_eq!(again.status_patches, first.status_patches);
    assert!(writer.handle(lost(&again), due).diagnostics.is_empty(), "said before");
    let plan = writer.handle(Event::Tick, writer.poll_timeout().expect("another attempt"));
    api.write_all(&plan);
    assert_eq!(api.says("web"), [vip(200)]);
    writer.handle(api.events(), due);
    assert_eq!(writer.poll_timeout(), None, "nothing is left to do");
}

#[test]
fn an_address_is_served_until_the_status_names_its_successor() {
    let mut api = Api::default();
    api.put(service("web"), vec![entry(vip(200))]);
    let mut writer = Engine::new(
        EngineSettings { role: Role::Follower, ..settings("10.88.0.200-10.88.0.202", true) },
        Allocations::default(),
    );
    writer.handle(links(true), T0);
    writer.handle(Event::Role(Role::Leader), T0);
    writer.handle(api.events(), T0);
    let moves = Service {
        request: Request { addresses: vec![vip(202)], ..Request::default() },
        ..service("web")
    };
    api.put(moves, vec![entry(vip(200))]);
    api.put(service("late"), []);
    let plan = writer.handle(api.events(), T0);
    assert!(
        plan.status_patches.is_empty()
            && plan.rule_set.vips.is_none()
            && plan.rule_set.forwardings.is_empty(),
        "nothing moves: {plan:?}"
    );
    assert_eq!(served(&writer, "late"), [vip(201)], "nobody else gets what clients still use");
    let plan = writer.handle(Event::Announcer(AnnouncerEvent::ProbeClear { vip: vip(202) }), T0);
    assert_eq!(plan.rule_set.vips, Some([vip(200), vip(202)].into()), "both until everybody knows");
    api.write_all(&plan);
    assert_eq!(api.says("web"), [vip(202)]);
    let plan = writer.handle(api.events(), T0);
    assert_eq!(plan.rule_set.vips, Some([vip(202)].into()));
    api.put(service("last"), []);
    writer.handle(api.events(), T0);
    assert_eq!(served(&writer, "last"), [vip(200)], "free again");
}

#[test]
fn a_thousand_services_at_once_get_an_address_each_in_one_write_each() {
    let mut api = Api::default();
    let pools = settings("10.88.0.0/24,10.89.0.0-10.89.4.255", false);
    let mut writer =
        Engine::new(EngineSettings { role: Role::Follower, ..pools }, Allocations::default());
    writer.handle(links(true), T0);
    writer.handle(Event::Role(Role::Leader), T0);
    (0..1000).for_each(|number| api.put(service(&format!("web-{number}")), vec![]));
    let plan = writer.handle(api.events(), T0);
    api.write_all(&plan);
    assert_eq!(api.writes, 1000);
    let all: BTreeSet<IpAddr> =
        api.services.values().flat_map(|service| service.published.clone()).collect();
    assert_eq!(all.len(), 1000);
    assert!(writer.handle(api.events(), T0).status_patches.is_empty());
}

#[test]
fn flips_of_type_class_and_policy_end_where_they_began() {
    let (mut api, mut writer) = (Api::default(), node(Role::Leader));
    api.put(service("web"), []);
    api.put(service("other"), []);
    let settle = |api: &mut Api, writer: &mut Engine, gone: bool| {
        let events =
            if gone { source(vec![SourceChange::Service(key("web"), None)]) } else { api.events() };
        let plan = writer.handle(events, T0);
        api.write_all(&plan);
        writer.handle(api.events(), T0);
    };
    settle(&mut api, &mut writer, false);
    for round in 0..50 {
        match round % 3 {
            // The API server empties the status of a Service that leaves the type.
            0 => {
                settle(&mut api, &mut writer, true);
                api.put(service("web"), []);
            }
            1 => {
                let stands = api.services[&key("web")]
                    .api
                    .as_ref()
                    .map(|record| record.ingress.clone())
                    .unwrap_or_default();
                api.put(
                    Service { class: Some("example.com/other".into()), ..service("web") },
                    stands.clone(),
                );
                let before = api.writes;
                settle(&mut api, &mut writer, false);
                assert_eq!(api.writes, before, "not ours to write");
                api.put(service("web"), stands);
            }
            _ => {
                let stands = api.services[&key("web")]
                    .api
                    .as_ref()
                    .map(|record| record.ingress.clone())
                    .unwrap_or_default();
                let external =
                    if round % 2 == 0 { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
                api.put(Service { external, ..service("web") }, stands);
            }
        }
        settle(&mut api, &mut writer, false);
        let (web, other) = (api.says("web"), api.says("other"));
        assert!(
            web.len() == 1 && other.len() == 1 && web != other,
            "round {round}: {web:?} {other:?}"
        );
    }
    assert!(writer.handle(api.events(), T0).status_patches.is_empty());
}

#[test]
fn of_two_that_demand_one_address_one_gets_it_and_the_other_says_why_not() {
    let (mut api, mut writer) = (Api::default(), node(Role::Leader));
    let demands = |name: &str, created| Service {
        created,
        request: Request { addresses: vec![vip(203)], ..Request::default() },
        ..service(name)
    };
    api.put(demands("a-late", 2), []);
    api.put(demands("z-early", 1), []);
    let plan = writer.handle(api.events(), T0);
    assert!(
        plan.diagnostics
            .iter()
            .any(|n| n.service == Some(key("a-late")) && n.message.contains("default/z-early")),
        "{:?}",
        plan.diagnostics
    );
    api.write_all(&plan);
    assert_eq!((api.says("z-early"), api.says("a-late")), (vec![vip(203)], vec![]));
    api.services.remove(&key("z-early"));
    api.write_all(&writer.handle(source(vec![SourceChange::Service(key("z-early"), None)]), T0));
    assert_eq!(api.says("a-late"), [vip(203)]);
}

#[test]
fn a_pool_that_shrank_releases_addresses_and_allocates_others() {
    let mut api = Api::default();
    api.put(service("inside"), vec![entry(vip(200))]);
    api.put(service("outside"), vec![entry(vip(220))]);
    let mut writer = node(Role::Leader);
    api.write_all(&writer.handle(api.events(), T0));
    assert_eq!((api.says("inside"), api.says("outside")), (vec![vip(200)], vec![vip(201)]));
}

#[test]
fn in_node_mode_the_nodes_addresses_are_published_by_the_leader_alone() {
    let (mut api, mut writer, mut follower) =
        (Api::default(), node(Role::Leader), node(Role::Follower));
    let asks = |name: &str, created| Service {
        created,
        request: Request { mode: Some(Mode::Node), ..Request::default() },
        ..service(name)
    };
    let nodes = source(
        ["10.88.0.11", "10.88.0.12"]
            .iter()
            .enumerate()
            .map(|(index, address)| {
                let name: Box<str> = format!("node-{}", index + 1).into();
                let node = Node {
                    name: name.clone(),
                    internal: vec![address.parse().unwrap()],
                    external: vec![],
                    pod_cidrs: vec![],
                    zone: None,
                    excluded: None,
                    enable_lb: None,
                    pool: None,
                };
                SourceChange::Node(name, Some(Box::new(node)))
            })
            .collect(),
    );
    let Event::Source(SourceUpdate { changes, .. }) = nodes else { unreachable!() };
    api.put(asks("web", 1), []);
    api.put(asks("same-port", 2), []);
    for engine in [&mut writer, &mut follower] {
        engine.handle(source(changes.clone()), T0);
    }
    assert!(follower.handle(api.events(), T0).status_patches.is_empty());
    api.write_all(&writer.handle(api.events(), T0));
    assert_eq!((api.says("web"), api.says("same-port")), (vec![vip(11), vip(12)], vec![]));
    assert!(writer.handle(api.events(), T0).status_patches.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    /// One of two leaders receives everything and writes at once.
    Look(bool),
    /// It decides and is stopped before it writes.
    Decide(bool),
    /// It goes on.
    Resume(bool),
    Put(u8, bool),
    Delete(u8),
    Edit(u8, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => any::<bool>().prop_map(Step::Look),
        2 => any::<bool>().prop_map(Step::Decide),
        2 => any::<bool>().prop_map(Step::Resume),
        3 => (0..5u8, any::<bool>()).prop_map(|(name, shares)| Step::Put(name, shares)),
        1 => (0..5u8).prop_map(Step::Delete),
        1 => (0..5u8, 198..208u8).prop_map(|(name, address)| Step::Edit(name, address)),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn two_leaders_at_once_do_no_lasting_harm(steps in steps()) {
        let mut api = Api::default();
        let mut writers = [node(Role::Leader), node(Role::Leader)];
        let mut held: [Vec<(ObjectKey, StatusPatch)>; 2] = Default::default();
        let mut known: [BTreeSet<ObjectKey>; 2] = Default::default();
        let mut look = |api: &Api, writers: &mut [Engine; 2], which: usize, now: Duration| {
            let mut changes: Vec<SourceChange> = api.services.values().cloned().map(put).collect();
            let now_there: BTreeSet<ObjectKey> = api.services.keys().cloned().collect();
            changes.extend(known[which].difference(&now_there).map(|key| SourceChange::Service(key.clone(), None)));
            known[which] = now_there;
            writers[which].handle(source(changes), now)
        };
        for step in steps {
            match step {
                Step::Look(which) => api.write_all(&look(&api, &mut writers, which.into(), T0)),
                Step::Decide(which) => held[usize::from(which)].extend(look(&api, &mut writers, which.into(), T0).status_patches),
                Step::Resume(which) => held[usize::from(which)].drain(..).for_each(|(key, publication)| api.write(&key, &publication)),
                Step::Put(name, shares) => {
                    let name = name.to_string();
                    let stands = api.services.get(&key(&name)).and_then(|s| Some(s.api.as_ref()?.ingress.clone())).unwrap_or_default();
                    let mut new = service(&name);
                    new.created = i64::from(name.len() as u32);
                    if shares {
                        new.request.sharing = Some("together".into());
                        new.ports[0].port = 80 + u16::from(name.as_bytes()[0]);
                    }
                    api.put(new, stands);
                }
                Step::Delete(name) => drop(api.services.remove(&key(&name.to_string()))),
                Step::Edit(name, address) => {
                    if let Some(service) = api.services.get(&key(&name.to_string())).cloned() {
                        api.put(service, vec![entry(vip(address))]);
                    }
                }
            }
        }
        for (which, publications) in held.iter_mut().enumerate() {
            let _ = which;
            publications.drain(..).for_each(|(key, publication)| api.write(&key, &publication));
        }
        // Long after, one of them is the leader: it must repair every status in few writes and then stop writing.
        api.writes = 0;
        let later = Duration::from_secs(100_000);
        for _ in 0..6 {
            let plan = look(&api, &mut writers, 0, later);
            api.write_all(&plan);
        }
        prop_assert!(api.writes <= 2 * api.services.len(), "{} writes for {} Services", api.writes, api.services.len());
        prop_assert!(look(&api, &mut writers, 0, later).status_patches.is_empty(), "it is never done");
        let mut seen: BTreeMap<IpAddr, Vec<&Service>> = BTreeMap::new();
        for service in api.services.values() {
            prop_assert_eq!(service.api.as_ref().map(|r| r.ingress.clone()), Some(status::ingress(service, &service.published, &[])));
            prop_assert!(!service.published.is_empty(), "six addresses for five Services: {:?}", service.key);
            service.published.iter().for_each(|address| seen.entry(*address).or_default().push(service));
        }
        for (address, services) in seen {
            prop_assert!((vip(200)..=vip(205)).contains(&address), "{address} is in no pool");
            prop_assert!(services.len() == 1 || services.iter().all(|s| s.request.sharing.is_some()), "{address}: {services:?}");
        }
    }
}

fn named(name: &str, excluded: Option<Exclusion>) -> SourceChange {
    let last =
        name.rsplit('-').next().and_then(|number| number.parse::<u8>().ok()).expect("a number");
    let node = Node {
        name: name.into(),
        internal: vec![[10, 88, 0, 10 + last].into()],
        external: vec![],
        pod_cidrs: vec![],
        zone: None,
        excluded,
        enable_lb: None,
        pool: None,
    };
    SourceChange::Node(name.into(), Some(Box::new(node)))
}

#[test]
fn an_excluded_node_is_reported_by_the_leader_and_by_itself() {
    let told = |plan: &Plan| {
        let notices = plan.diagnostics.iter().filter(|notice| notice.node.is_some());
        notices
            .map(|notice| (notice.node.as_deref().unwrap_or_default().to_owned(), notice.reason))
            .collect::<Vec<_>>()
    };
    let both = || {
        vec![
            named("node-1", Some(Exclusion::Label)),
            named("node-2", Some(Exclusion::Label)),
            named("node-3", None),
        ]
    };
    let excluded = |name: &str| (name.to_owned(), "NodeExcluded");
    let mut engine = node(Role::Follower);
    let plan = engine.handle(source(both()), T0);
    assert_eq!(
        told(&plan),
        [excluded("node-1")],
        "one that does not write speaks of itself, in its log"
    );
    let plan = engine.handle(Event::Role(Role::Leader), T0);
    assert_eq!(told(&plan), [excluded("node-1"), excluded("node-2")], "the writer tells of all");
    assert!(
        plan.diagnostics
            .iter()
            .all(|notice| notice.node.is_none() || notice.message.contains("remove the label"))
    );
    assert_eq!(told(&engine.handle(source(both()), T0)), [], "once");
    let plan = engine.handle(source(vec![named("node-2", None)]), T0);
    assert_eq!(told(&plan), [("node-2".to_owned(), "NodeIncluded")]);
    let warnings = engine.report().state().warnings;
    assert!(
        warnings.len() == 1 && warnings[0].message.contains("node node-1 has the label"),
        "{warnings:?}"
    );
}
