//! The end of a node: others take over, then everything is withdrawn. Queries are answered all the
//! while, so that whoever asks from outside learns why to go elsewhere.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::{Daemon, Inputs, answer};
use crate::engine::Event;
use crate::engine::election::vip_election;
use crate::host::systemd;
use crate::http::server::Query;
use crate::model::on_exit::OnExit;

impl Daemon {
    /// Answers on until others are heard to take over, a second at most; at once where there is
    /// nobody.
    pub(super) async fn hand_over(&mut self, inputs: &mut Inputs) {
        self.handle(Event::Drain);
        let end = Instant::now() + vip_election::HANDOVER;
        while !self.engine.drained() {
            let deadline = self.deadline();
            tokio::select! {
                Some(event) = inputs.heard.recv() => self.handle(Event::Announcer(event)),
                Some(query) = inputs.queries.recv() => self.answer(query),
                event = self.peers.next() => self.peer(event),
                () = deadline => self.handle(Event::Tick),
                () = sleep_until(end) => break,
            }
        }
    }

    /// Announcements end first, so that nobody is sent here while the rules go. What takes its time
    /// is done elsewhere.
    pub(super) async fn stop(self, on_exit: OnExit, mut queries: mpsc::Receiver<Query>) {
        info!("stopping");
        systemd::stopping("withdrawing");
        let Daemon { engine, epoch, writer, desired, announcer, data_plane, saver, keeper, .. } =
            self;
        let engine = Arc::new(engine);
        let last = engine.clone();
        let withdraw = move || {
            drop(desired);
            let _ = announcer.join();
            data_plane.stop(on_exit);
            saver.finish();
            if let Some(keeper) = keeper {
                keeper.finish(last.index());
            }
        };
        let mut end = pin!(async move {
            writer.stop().await;
            spawn_blocking(withdraw).await
        });
        loop {
            tokio::select! {
                _ = &mut end => break,
                Some(query) = queries.recv() => answer(&engine, None, epoch, query),
            }
        }
    }
}
