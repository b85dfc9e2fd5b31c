//! Answers to the HTTP server.

use std::time::Instant;

use super::peers::Peers;
use crate::engine::Engine;
use crate::http::server::Query;

/// `peers`: None once their sessions have ended. An answer to a client that went away is dropped.
pub(super) fn answer(engine: &Engine, peers: Option<&Peers>, epoch: Instant, query: Query) {
    match query {
        Query::State(reply) => {
            let mut state = engine.report().state();
            state.peers = engine.report().peers(epoch.elapsed());
            state.version = env!("CARGO_PKG_VERSION").to_string();
            state.pid = std::process::id();
            state.uptime_seconds = epoch.elapsed().as_secs();
            if let Some(peers) = peers {
                peers.describe(&mut state);
            }
            drop(reply.send(state));
        }
        Query::Summary(reply) => drop(reply.send(engine.report().summary())),
        Query::Conditions(reply) => drop(reply.send(engine.report().conditions())),
        Query::Health(reply) => drop(reply.send(engine.report().healthy())),
        Query::Service(key, reply) => drop(reply.send(engine.report().service_health(&key))),
    }
}
