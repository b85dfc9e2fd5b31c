use std::time::Duration;

use super::*;
use crate::k8s::io::credentials::Credentials;
use crate::model::ObjectKey;

async fn connection(name: &str) -> Connection {
    let path =
        std::env::temp_dir().join(format!("pinnace-collector-{}-{name}", std::process::id()));
    let text = "{apiVersion: v1, kind: Config, current-context: a, contexts: [{name: a, context: {cluster: a, user: a}}],
        clusters: [{name: a, cluster: {server: 'http://127.0.0.1:1'}}], users: [{name: a, user: {token: t}}]}";
    std::fs::write(&path, text).unwrap();
    let connection = Connection::open(Credentials::Kubeconfig(path.clone()), vec![]).await.unwrap();
    std::fs::remove_file(path).unwrap();
    connection
}

async fn batch(name: &str) -> (Batch, watch::Receiver<bool>) {
    let (synced_in, synced) = watch::channel(false);
    (Batch::new(&connection(name).await, synced_in), synced)
}

fn slice(n: usize) -> SourceChange {
    SourceChange::Slice(ObjectKey::new("a", &n.to_string()), None)
}

#[tokio::test]
async fn it_is_synced_when_all_kinds_were_listed_and_healthy_when_all_are() {
    let (mut batch, synced) = batch("synced").await;
    let end = |batch: &mut Batch, kind| batch.change(SourceChange::ListEnd(kind), vec![], None);
    batch.health[Kind::Service as usize] = Some(Ok(()));
    end(&mut batch, Kind::Service);
    end(&mut batch, Kind::Node);
    let update = batch.take().expect("an update");
    assert!(!update.synced && !*synced.borrow());
    assert_eq!(update.health, None, "two kinds have not been heard of");

    batch.health[Kind::EndpointSlice as usize] = Some(Ok(()));
    batch.health[Kind::Node as usize] = Some(Ok(()));
    end(&mut batch, Kind::EndpointSlice);
    let update = batch.take().expect("an update");
    assert!(update.synced && *synced.borrow());
    assert_eq!(update.health, Some(Ok(())));

    batch.health[Kind::Node as usize] = Some(Err("gone".into()));
    let update = batch.take().expect("an update");
    assert_eq!(update.health, Some(Err("gone".into())));
    assert!(update.synced, "once synced, always");
    batch.health[Kind::Node as usize] = Some(Err("gone".into()));
    assert_eq!(batch.take(), None, "reported already");
}

#[tokio::test]
async fn problems_are_bounded_and_go_with_their_object() {
    let (mut batch, _synced) = batch("problems").await;
    let mut reported = |change: SourceChange, problems: &[&str]| {
        batch.change(change, problems.iter().map(|p| p.to_string()).collect(), None);
        batch.take().expect("an update").problems.len()
    };
    let last = (0..PROBLEMS + 50).map(|n| reported(slice(n), &["bad"])).last();
    assert_eq!(last, Some(PROBLEMS + 1), "the last one says that there are more");
    assert_eq!(reported(slice(0), &[]), PROBLEMS - 1);
    assert_eq!(reported(SourceChange::ListStart(Kind::EndpointSlice), &[]), 0);
}

#[tokio::test]
async fn the_oldest_change_dates_a_batch_and_an_old_list_dates_none() {
    let (mut batch, _synced) = batch("dates").await;
    let at = |second| Some(TriggerTime::new(Duration::from_secs(second)));
    batch.change(slice(0), vec![], at(9));
    batch.change(slice(1), vec![], at(7));
    batch.change(slice(2), vec![], None);
    assert_eq!(batch.take().expect("an update").last_change, at(7));
    batch.change(slice(0), vec![], None);
    assert_eq!(batch.take().expect("an update").last_change, None);
}

#[tokio::test]
async fn changes_collect_while_the_queue_is_full_and_then_the_watches_wait() {
    let (updates_in, mut updates) = mpsc::channel(1);
    let (synced_in, _synced) = watch::channel(false);
    let collector = Collector::new(&connection("queue").await, updates_in, synced_in);
    let watches = async {
        for n in 0..3 * BATCH {
            collector.change(slice(n), vec![], None).await;
        }
    };
    let engine = async {
        let mut changes = 0;
        while changes < 3 * BATCH {
            tokio::time::sleep(Duration::from_millis(1)).await;
            let update = updates.recv().await.expect("an update");
            assert!((1..=BATCH).contains(&update.changes.len()));
            changes += update.changes.len();
        }
        updates.close();
    };
    tokio::join!(watches, engine, collector.run());
    assert!(collector.is_closed());
}
