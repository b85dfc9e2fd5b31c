use super::*;
use crate::k8s::io::credentials::Credentials;
use crate::model::ObjectKey;

async fn collector() -> (Collector, mpsc::Receiver<ApiUpdate>, watch::Receiver<bool>) {
    let path = std::env::temp_dir().join(format!(
        "pinnace-collector-{}-{}",
        std::process::id(),
        random::seed()
    ));
    let text = "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],
        clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: a, user: {token: t}}]}";
    std::fs::write(&path, text).unwrap();
    let connection = Connection::open(Credentials::Kubeconfig(path.clone()), vec![]).await.unwrap();
    std::fs::remove_file(path).unwrap();
    let (updates_in, updates) = mpsc::channel(8);
    let (synced_in, synced) = watch::channel(false);
    (Collector::new(&connection, updates_in, synced_in), updates, synced)
}

#[test]
fn pauses_grow_to_a_limit_and_differ() {
    let pauses: Vec<Duration> = (0..40).map(|failures| RETRY.delay(failures)).collect();
    assert!(pauses[0] >= RETRY.min / 2 && pauses[0] <= RETRY.min, "{pauses:?}");
    assert!(pauses[20..].iter().all(|p| *p >= RETRY.max / 2 && *p <= RETRY.max), "{pauses:?}");
    assert!(pauses[20..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter: {pauses:?}");
}

#[tokio::test]
async fn it_is_synced_when_all_kinds_were_listed_and_healthy_when_all_are() {
    let (mut collector, _updates, synced) = collector().await;
    let end = |kind| WatchUpdate::Change(SourceChange::ListEnd(kind), vec![]);
    let update = collector.merge(
        [WatchUpdate::Health(Kind::Service, Ok(())), end(Kind::Service), end(Kind::Node)]
            .into_iter(),
    );
    assert!(!update.synced && !*synced.borrow());
    assert_eq!(update.health, None, "two kinds have not been heard of");
    let all = [
        WatchUpdate::Health(Kind::EndpointSlice, Ok(())),
        WatchUpdate::Health(Kind::Node, Ok(())),
        end(Kind::EndpointSlice),
    ];
    let update = collector.merge(all.into_iter());
    assert!(update.synced && *synced.borrow());
    assert_eq!(update.health, Some(Ok(())));
    let update = collector.merge([WatchUpdate::Health(Kind::Node, Err("gone".into()))].into_iter());
    assert_eq!(update.health, Some(Err("gone".into())));
    assert!(update.synced, "once synced, always");
    assert_eq!(
        collector.merge([WatchUpdate::Health(Kind::Node, Err("gone".into()))].into_iter()).health,
        None,
        "said already"
    );
}

#[tokio::test]
async fn problems_are_bounded_and_go_with_their_object() {
    let (mut collector, _updates, _synced) = collector().await;
    let slice = |n: usize, problems: &[&str]| {
        WatchUpdate::Change(
            SourceChange::Slice(ObjectKey::new("a", &n.to_string()), None),
            problems.iter().map(|p| p.to_string()).collect(),
        )
    };
    let update = collector.merge((0..PROBLEMS + 50).map(|n| slice(n, &["bad"])));
    assert_eq!(update.problems.len(), PROBLEMS + 1, "the last one says that there are more");
    assert_eq!(collector.merge([slice(0, &[])].into_iter()).problems.len(), PROBLEMS - 1);
    let start = WatchUpdate::Change(SourceChange::ListStart(Kind::EndpointSlice), vec![]);
    assert!(collector.merge([start].into_iter()).problems.is_empty());
}

#[test]
fn a_list_that_was_broken_off_is_no_place_to_go_on_from() {
    let event = |kind: &str, annotations: serde_json::Value| -> WatchEvent<core::Node> {
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

#[tokio::test]
async fn the_oldest_change_dates_a_batch_and_an_old_list_dates_none() {
    let (mut collector, _updates, _synced) = collector().await;
    let at = |second| TriggerTime::parse(&format!("2026-01-01T00:00:0{second}Z")).expect("a time");
    let slice = || WatchUpdate::Change(SourceChange::Slice(ObjectKey::new("a", "b"), None), vec![]);
    let update = collector.merge(
        [WatchUpdate::LastChange(at(9)), slice(), WatchUpdate::LastChange(at(7)), slice()]
            .into_iter(),
    );
    assert_eq!(update.last_change, Some(at(7)));
    assert_eq!(
        collector.merge([WatchUpdate::LastChange(at(8))].into_iter()).last_change,
        None,
        "its change comes in the next batch"
    );
    assert_eq!(collector.merge([slice()].into_iter()).last_change, Some(at(8)));
    assert_eq!(collector.merge([slice()].into_iter()).last_change, None);
}
