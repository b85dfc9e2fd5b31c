//! Which Services are ours, by their class and by what Pinnace was told about classes.

use super::api_tests::{Api, served};
use super::tests::{T0, key, links, settings, source, vip};
use super::*;
use crate::ipam::Allocations;
use crate::k8s::status;
use crate::model::Service;
use crate::model::SourceChange;
use crate::model::fixtures::service;

const STANDARD: &str = "pinnace.dev/pinnace";
const OTHER: &str = "example.com/x";

#[test]
fn the_class_says_whose_a_service_is() {
    let cases = [
        // What PINNACE_CLASS and PINNACE_DEFAULT_CLASS say, the class of the Service, whether it
        // is ours.
        (STANDARD, true, None, true),
        (STANDARD, true, Some(STANDARD), true),
        (STANDARD, true, Some(OTHER), false),
        (STANDARD, false, None, false),
        (STANDARD, false, Some(STANDARD), true),
        (STANDARD, false, Some(OTHER), false),
        (OTHER, true, None, true),
        (OTHER, true, Some(STANDARD), false),
        (OTHER, true, Some(OTHER), true),
        (OTHER, false, None, false),
        (OTHER, false, Some(STANDARD), false),
        (OTHER, false, Some(OTHER), true),
        // Nothing but the very same is.
        (STANDARD, false, Some("pinnace.dev/pinnace2"), false),
        (STANDARD, false, Some("Pinnace.dev/pinnace"), false),
        (STANDARD, false, Some("pinnace"), false),
    ];
    for (ours, claim_default, class, expected) in cases {
        let case = format!("{ours}, default {claim_default}: {class:?}");
        let settings = EngineSettings {
            class: ours.into(),
            claim_default,
            role: Role::Follower,
            ..settings("10.88.0.200-10.88.0.205", false)
        };
        let mut writer = Engine::new(settings, Allocations::default());
        writer.handle(links(true), T0);
        writer.handle(Event::Role(Role::Leader), T0);
        let mut api = Api::default();
        api.put(Service { class: class.map(Into::into), ..service("web") }, []);
        api.write_all(&writer.handle(api.events(), T0));
        let addresses = if expected { vec![vip(200)] } else { vec![] };
        assert_eq!(
            (api.says("web"), served(&writer, "web")),
            (addresses.clone(), addresses),
            "{case}"
        );
        let state = writer.report().state().services.remove(0);
        let named = format!(
            "class {} belongs to another implementation; Pinnace serves {ours}",
            class.unwrap_or("(none)")
        );
        let said = state
            .reasons
            .iter()
            .any(|reason| &*reason.code == "ForeignClass" && reason.message == named);
        assert_eq!(said, !expected, "{case}: {:?}", state.reasons);
    }
}

/// One that is being replaced, with a pool that overlaps with ours.
#[test]
fn an_address_in_the_status_of_a_foreign_service_is_allocated_only_on_request() {
    let mut writer = Engine::new(
        EngineSettings { role: Role::Follower, ..settings("10.88.0.200-10.88.0.201", false) },
        Allocations::default(),
    );
    writer.handle(links(true), T0);
    writer.handle(Event::Role(Role::Leader), T0);
    let mut api = Api::default();
    let theirs = Service { class: Some(OTHER.into()), ..service("theirs") };
    api.put(theirs.clone(), status::ingress(&theirs, &[vip(200)], &[]));
    ["a", "b"].into_iter().for_each(|name| api.put(service(name), []));
    api.write_all(&writer.handle(api.events(), T0));
    assert_eq!(
        (served(&writer, "a"), served(&writer, "b")),
        (vec![vip(201)], vec![]),
        "the first is taken"
    );
    let told = writer
        .report()
        .state()
        .services
        .into_iter()
        .find(|s| s.key == key("b"))
        .expect("it")
        .reasons
        .remove(0)
        .message;
    assert!(told.contains("1 in use by other machines or load balancers"), "{told}");

    let mut asking = service("asks");
    asking.request.addresses = vec![vip(200)];
    api.put(asking, []);
    api.write_all(&writer.handle(api.events(), T0));
    assert_eq!(served(&writer, "asks"), [vip(200)], "whoever asks for it by name knows why");
    api.services.remove(&key("asks"));
    api.write_all(&writer.handle(source(vec![SourceChange::Service(key("asks"), None)]), T0));
    assert!(served(&writer, "b").is_empty());

    api.put(theirs, []);
    api.write_all(&writer.handle(api.events(), T0));
    assert_eq!(served(&writer, "b"), [vip(200)], "they have no more use for it");
}
