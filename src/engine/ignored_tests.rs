//! A Service that is to be ignored from now on: its address is taken out of its status, once and
//! reliably, and the rest is others' matter.

use std::net::IpAddr;

use super::api_tests::{Api, entry, node, served};
use super::plan::Plan;
use super::tests::{T0, key, vip};
use super::*;
use crate::model::fixtures::service;

/// A cluster whose Service `web` was served by the leader, and is to be ignored since.
fn ignored(writer: &mut Engine) -> Api {
    let mut api = Api::default();
    api.put(service("web"), vec![]);
    api.write_all(&writer.handle(api.events(), T0));
    writer.handle(api.events(), T0);
    assert_eq!(served(writer, "web"), [vip(200)]);
    change(&mut api, "first");
    api
}

/// Somebody changes something else about the Service; the status stays.
fn change(api: &mut Api, what: &str) {
    let ingress = api.services[&key("web")].api.as_ref().expect("a record").ingress.clone();
    let mut changed = service("web");
    changed.request.ignore = true;
    changed.problems = vec![what.into()];
    api.put(changed, ingress);
}

fn lost(plan: &Plan, refusal: Option<&str>) -> Event {
    let resource_version = plan.status_patches[&key("web")].resource_version.clone();
    Event::PatchFailed { key: key("web"), resource_version, refusal: refusal.map(str::to_owned) }
}

#[test]
fn a_service_to_be_ignored_loses_its_address_and_says_why() {
    let mut writer = node(Role::Leader);
    let mut api = ignored(&mut writer);
    let plan = writer.handle(api.events(), T0);
    api.write_all(&plan);
    assert_eq!(api.says("web"), Vec::<IpAddr>::new(), "another Service may be given the address");
    assert!(plan.diagnostics.iter().any(|notice| notice.reason == "Ignored"));
    let status = writer.report().state().services.remove(0);
    assert_eq!((status.addresses.len(), &*status.reasons[0].code), (0, "Ignored"));
    // What others write there from now on is theirs, even an address of our pools.
    let taken = api.services[&key("web")].clone();
    api.put(taken, vec![entry(vip(201))]);
    assert!(writer.handle(api.events(), T0).status_patches.is_empty());
    api.put(service("web"), vec![]);
    api.write_all(&writer.handle(api.events(), T0));
    assert_eq!(api.says("web"), [vip(200)]);
}

#[test]
fn an_address_that_could_not_be_taken_back_is_taken_back_later() {
    let mut writer = node(Role::Leader);
    let mut api = ignored(&mut writer);
    let first = writer.handle(api.events(), T0);
    let plan = writer.handle(lost(&first, Some("the words of a webhook (422)")), T0);
    assert!(
        plan.status_patches.is_empty() && plan.diagnostics[0].message.contains("a webhook"),
        "{:?}",
        plan.diagnostics
    );
    let due = writer.poll_timeout().expect("a time for the next attempt");
    assert!(due > T0 && due < T0 + Duration::from_secs(3));
    assert!(
        writer.handle(api.events(), T0).status_patches.is_empty(),
        "the same is not tried before its time"
    );
    let again = writer.handle(Event::Tick, due);
    assert_eq!(again.status_patches, first.status_patches);
    assert!(
        writer
            .handle(lost(&again, Some("the words of a webhook (422)")), due)
            .diagnostics
            .is_empty(),
        "said before"
    );
    api.write_all(&writer.handle(Event::Tick, writer.poll_timeout().expect("another attempt")));
    assert_eq!(api.says("web"), Vec::<IpAddr>::new());
    assert!(writer.handle(api.events(), due).status_patches.is_empty());
    assert_eq!(writer.poll_timeout(), None, "nothing is left to do");
}

#[test]
fn a_service_that_changes_meanwhile_keeps_no_address() {
    // The API server refuses what was decided for an older version; whichever is heard first, the
    // change or that.
    for change_first in [true, false] {
        let mut writer = node(Role::Leader);
        let mut api = ignored(&mut writer);
        let decided = writer.handle(api.events(), T0);
        change(&mut api, "second");
        api.write_all(&decided);
        assert_eq!(api.says("web"), [vip(200)], "refused");
        if change_first {
            assert!(
                writer.handle(api.events(), T0).status_patches.is_empty(),
                "the write may have been in time"
            );
            assert!(
                writer.handle(lost(&decided, None), T0).diagnostics.is_empty(),
                "of no concern to anybody"
            );
            api.write_all(
                &writer.handle(Event::Tick, writer.poll_timeout().expect("another attempt")),
            );
        } else {
            writer.handle(lost(&decided, None), T0);
            api.write_all(&writer.handle(api.events(), T0));
        }
        assert_eq!(api.says("web"), Vec::<IpAddr>::new(), "{change_first}");
        writer.handle(api.events(), T0);
        // The next one to serve it may be given the same address.
        change(&mut api, "third");
        let taken = api.services[&key("web")].clone();
        api.put(taken, vec![entry(vip(200))]);
        assert!(
            writer.handle(api.events(), T0).status_patches.is_empty()
                && writer.poll_timeout().is_none()
        );
    }
}

#[test]
fn the_next_leader_withdraws_what_the_last_one_could_not() {
    let (mut writer, mut follower) = (node(Role::Leader), node(Role::Follower));
    let mut api = ignored(&mut writer);
    let mut earlier = Api::default();
    earlier.put(service("web"), vec![entry(vip(200))]);
    follower.handle(earlier.events(), T0);
    let decided = writer.handle(api.events(), T0);
    assert_eq!(decided.status_patches.len(), 1);
    assert!(follower.handle(api.events(), T0).status_patches.is_empty());
    // It ends before it has written.
    let plan = follower.handle(Event::Role(Role::Leader), T0);
    assert_eq!(plan.status_patches, decided.status_patches);
    // Not so after it has: the status says so, and what comes then is another's.
    api.write_all(&decided);
    writer.handle(Event::Role(Role::Follower), T0);
    writer.handle(api.events(), T0);
    let ignored = api.services[&key("web")].clone();
    api.put(ignored, vec![entry(vip(200))]);
    writer.handle(api.events(), T0);
    assert!(writer.handle(Event::Role(Role::Leader), T0).status_patches.is_empty());
}
