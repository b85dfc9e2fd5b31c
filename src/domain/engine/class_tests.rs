//! Which Services are ours, by their class and by what Pinnace was told about classes.

use super::super::fixtures::service;
use super::super::ipam::Allocations;
use super::api_tests::{Api, served};
use super::tests::{T0, links, settings, vip};
use super::*;

const STANDARD: &str = "pinnace.dev/pinnace";
const OTHER: &str = "example.com/x";

#[test]
fn the_class_says_whose_a_service_is() {
    let cases = [
        // What PINNACE_CLASS and PINNACE_DEFAULT_CLASS say, the class of the Service, whether it is ours.
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
        let settings = Settings { class: ours.into(), claim_default, role: Role::Follower, ..settings("10.88.0.200-10.88.0.205", false) };
        let mut writer = Engine::new(settings, Allocations::default());
        writer.handle(links(true), T0);
        writer.handle(Event::Role(Role::Writer), T0);
        let mut api = Api::default();
        api.put(Service { class: class.map(Into::into), ..service("web") }, []);
        api.write_all(&writer.handle(api.events(), T0));
        let addresses = if expected { vec![vip(200)] } else { vec![] };
        assert_eq!((api.says("web"), served(&writer, "web")), (addresses.clone(), addresses), "{case}");
        let state = writer.state().services.remove(0);
        let named = format!("class {} belongs to another implementation; Pinnace serves {ours}", class.unwrap_or("(none)"));
        let said = state.reasons.iter().any(|reason| &*reason.code == "ForeignClass" && reason.message == named);
        assert_eq!(said, !expected, "{case}: {:?}", state.reasons);
    }
}
