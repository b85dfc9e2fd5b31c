//! The end of a node: peers take over, then everything is withdrawn. Queries are answered all the
//! while, so that whoever asks from outside learns why to go elsewhere.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::inputs::Channels;
use super::node::Node;
use super::query;
use crate::config::OnExit;
use crate::engine::Event;
use crate::engine::election::vip_election;
use crate::host::systemd;
use crate::http::server::Query;

/// Keeps answering until peers are heard to have taken over, for [`vip_election::HANDOVER`] at
/// most; returns at once where there is no peer.
pub(super) async fn hand_over(node: &mut Node, channels: &mut Channels) {
    node.handle(Event::Drain);
    let end = Instant::now() + vip_election::HANDOVER;
    while !node.engine.drained() {
        let engine_timeout = node.engine_timeout();
        tokio::select! {
            Some(event) = channels.l2.recv() => node.handle(Event::Announcer(event)),
            Some(query) = channels.queries.recv() => node.answer(query),
            event = node.peers.next() => node.peer_event(event),
            () = engine_timeout => node.handle_timeout(),
            () = sleep_until(end) => break,
        }
    }
}

/// Announcements end before the rules are removed, so that no client is sent here meanwhile. What
/// blocks runs beside, in a thread of its own.
pub(super) async fn stop(node: Node, on_exit: OnExit, mut queries: mpsc::Receiver<Query>) {
    info!("stopping");
    systemd::stopping("withdrawing");
    let Node { engine, epoch, leader, desired, announcer, data_plane, state, snapshot, .. } = node;
    let engine = Arc::new(engine);
    let last = engine.clone();
    let withdraw = move || {
        drop(desired);
        let _ = announcer.join();
        data_plane.stop(on_exit);
        state.finish();
        if let Some(snapshot) = snapshot {
            snapshot.finish(last.index());
        }
    };
    let mut end = pin!(async move {
        leader.stop().await;
        spawn_blocking(withdraw).await
    });
    loop {
        tokio::select! {
            _ = &mut end => break,
            Some(query) = queries.recv() => query::answer(&engine, None, epoch, query),
        }
    }
}
