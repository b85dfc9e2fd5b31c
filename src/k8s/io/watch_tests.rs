use super::*;

#[test]
fn pauses_grow_to_a_limit_and_differ() {
    let mut backoff = Backoff::default();
    let pauses: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
    assert!(pauses[0] >= Backoff::MIN / 2 && pauses[0] <= Backoff::MIN, "{pauses:?}");
    assert!(
        pauses[20..].iter().all(|p| *p >= Backoff::MAX / 2 && *p <= Backoff::MAX),
        "{pauses:?}"
    );
    assert!(pauses[20..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter: {pauses:?}");
}

#[test]
fn a_list_that_was_broken_off_is_no_place_to_go_on_from() {
    let event = |kind: &str, annotations: serde_json::Value| -> WatchEvent<Node> {
        let metadata =
            serde_json::json!({"name": "a", "resourceVersion": "7", "annotations": annotations});
        let object = serde_json::json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata});
        serde_json::from_value(serde_json::json!({"type": kind, "object": object})).unwrap()
    };
    let none = serde_json::json!({});
    for kind in ["ADDED", "MODIFIED", "DELETED", "BOOKMARK"] {
        assert_eq!(reached(true, &event(kind, none.clone())), None, "{kind} while it is listed");
        assert_eq!(
            reached(false, &event(kind, none.clone())).as_deref(),
            Some("7"),
            "{kind} afterwards"
        );
    }
    let end = event("BOOKMARK", serde_json::json!({END_OF_LIST: "true"}));
    assert_eq!(reached(true, &end).as_deref(), Some("7"), "the mark of the end");
}
