use super::*;
use crate::model::fixtures::service;

fn record(version: u64, ingress: &[Ingress]) -> ApiMetadata {
    ApiMetadata {
        uid: "u".into(),
        resource_version: version.to_string().into(),
        ingress: ingress.into(),
        cleanup_finalizer: false,
        deleting: false,
    }
}

#[test]
fn a_change_by_hand_is_corrected_and_a_conflict_left_alone() {
    let service = service("web");
    let ours = ingress(&service, &["10.88.0.200".parse().unwrap()], &[]);
    assert_eq!((ours[0].vip, ours[0].ports[0].port), (Some(true), 80));
    let mut reconciler = StatusReconciler::default();
    let mut version = 0;
    let mut look = |stands: &[Ingress], at: u64| {
        version += 1;
        reconciler.decide(
            &service.key,
            &record(version, stands),
            Some(ours.clone()),
            Duration::from_secs(at),
        )
    };
    let first = look(&[], 0);
    assert!(first.publication.is_some() && first.interference.is_none());
    for second in 1..=REPLACED as u64 {
        assert_eq!(look(&ours, second), Decision::default());
        let decision = look(&[], second);
        assert!(
            decision.publication.is_some()
                && matches!(decision.interference, Some(StatusConflict::Corrected(_))),
            "{second}"
        );
    }
    look(&ours, 5);
    let left = look(&[], 6);
    let Some(why @ StatusConflict::LeftAlone(_, backoff)) = &left.interference else {
        panic!("{left:?}")
    };
    assert_eq!(*backoff, BACKOFF.min);
    assert!(
        left.publication.is_none()
            && why.sentence(&BTreeSet::new()).contains("--disable=servicelb")
    );
    assert_eq!(look(&[], 60), Decision::default(), "the backoff is not over");
    assert!(look(&[], 66).publication.is_some(), "and ends");
}

#[test]
fn a_wanted_status_that_changes_often_is_no_conflict() {
    let service = service("web");
    let mut reconciler = StatusReconciler::default();
    for number in 0..100u8 {
        let wanted = ingress(&service, &[[10, 88, 0, number].into()], &[]);
        let stands = ingress(&service, &[[10, 88, 0, number.wrapping_sub(1)].into()], &[]);
        let now = Duration::from_millis(100 * u64::from(number));
        let decision =
            reconciler.decide(&service.key, &record(u64::from(number), &stands), Some(wanted), now);
        assert!(
            decision.publication.is_some() && decision.interference.is_none(),
            "{number}: {decision:?}"
        );
    }
}

#[test]
fn a_controller_that_claims_the_service_is_told_apart_from_a_finalizer_left_behind() {
    let service = service("web");
    let wanted = Some(ingress(&service, &["10.88.0.200".parse().unwrap()], &[]));
    let claimed = |version| ApiMetadata {
        cleanup_finalizer: true,
        ..record(version, wanted.as_ref().unwrap())
    };
    let mut reconciler = StatusReconciler::default();
    let mut look = |record: &ApiMetadata| {
        reconciler.decide(&service.key, record, wanted.clone(), Duration::ZERO).interference
    };
    assert_eq!(look(&claimed(1)), None, "from before");
    assert_eq!(look(&record(2, wanted.as_ref().unwrap())), None);
    let why = look(&claimed(3)).expect("somebody is at work");
    assert!(why.sentence(&BTreeSet::new()).contains("--disable=servicelb"));
    assert_eq!(look(&claimed(4)), None, "said once");
}

#[test]
fn what_was_lost_is_written_again_later_and_later() {
    let service = service("web");
    let wanted = Some(ingress(&service, &["10.88.0.200".parse().unwrap()], &[]));
    let mut reconciler = StatusReconciler::default();
    let mut written = Vec::new();
    for second in 0..1000 {
        let now = Duration::from_secs(second);
        reconciler.retries(now);
        let decision = reconciler.decide(&service.key, &record(1, &[]), wanted.clone(), now);
        assert_eq!(decision.interference, None, "nobody else wrote");
        if decision.publication.is_some() {
            assert_eq!(reconciler.lost(&service.key, "1", now), written.is_empty());
            written.push(second);
        }
    }
    assert_eq!(written[..9], [0, 1, 3, 7, 15, 31, 63, 127, 247]);
    assert!(
        reconciler
            .decide(&service.key, &record(2, &[]), wanted.clone(), Duration::from_secs(1000))
            .publication
            .is_some(),
        "new version"
    );
    reconciler.decide(
        &service.key,
        &record(3, &wanted.clone().unwrap()),
        wanted,
        Duration::from_secs(1001),
    );
    assert_eq!(reconciler.poll_timeout(), None);
}

#[test]
fn a_server_without_ip_mode_is_no_conflict() {
    let service = service("web");
    let wanted =
        ingress(&service, &["10.88.0.200".parse().unwrap(), "fd00::1".parse().unwrap()], &[]);
    let mut reconciler = StatusReconciler::default();
    let mut look = |version: u64, stands: &[Ingress]| {
        reconciler.decide(
            &service.key,
            &record(version, stands),
            Some(wanted.clone()),
            Duration::from_secs(version),
        )
    };
    assert!(look(1, &[]).publication.is_some());
    let without: Vec<Ingress> =
        wanted.iter().map(|entry| Ingress { vip: None, ..entry.clone() }).collect();
    assert_eq!(look(2, &without), Decision::default());
    let proxy: Vec<Ingress> =
        wanted.iter().map(|entry| Ingress { vip: Some(false), ..entry.clone() }).collect();
    assert!(
        matches!(look(3, &proxy).interference, Some(StatusConflict::Corrected(_))),
        "Proxy is another's wish"
    );
    assert_eq!(look(4, &wanted), Decision::default());
    assert!(look(5, &without[..1]).interference.is_some(), "an address less is a change");
}

#[test]
fn one_version_is_written_to_once() {
    let service = service("web");
    let wanted = Some(ingress(&service, &["10.88.0.200".parse().unwrap()], &[]));
    let mut reconciler = StatusReconciler::default();
    assert!(
        reconciler
            .decide(&service.key, &record(1, &[]), wanted.clone(), Duration::ZERO)
            .publication
            .is_some()
    );
    assert!(
        reconciler
            .decide(&service.key, &record(1, &[]), wanted, Duration::ZERO)
            .publication
            .is_none()
    );
}

#[test]
fn a_conflict_that_goes_on_is_left_alone_for_longer_each_time() {
    let service = service("web");
    let ours = ingress(&service, &["10.88.0.200".parse().unwrap()], &[]);
    let mut reconciler = StatusReconciler::default();
    let mut backoffs = Vec::new();
    for second in 0..1000 {
        let now = Duration::from_secs(second);
        let decision =
            reconciler.decide(&service.key, &record(second, &[]), Some(ours.clone()), now);
        if let Some(StatusConflict::LeftAlone(_, backoff)) = decision.interference {
            backoffs.push(backoff.as_secs());
        }
    }
    assert_eq!(backoffs, [60, 120, 240, 480, 960]);
}
