//! The store over a real etcd, on loopback: the contract of stores, and what only a server of its own can do to a client.
//!
//! It needs an `etcd` program, so it runs when it is asked for by name (`test = false` in Cargo.toml): by `tools/test-etcd.sh`,
//! which the whole gate runs.
#![allow(clippy::unwrap_used)]

mod cut;
#[path = "../front/mod.rs"]
mod front;
mod same;
mod server;
mod trouble;

use keelson_store::etcd::Options;
use keelson_store::{Etcd, Store};
use server::Server;
use std::sync::Arc;

/// A store over an etcd of its own, which goes with it.
struct Over {
    store: Arc<Etcd>,
    server: Server,
}

impl std::ops::Deref for Over {
    type Target = dyn Store;
    fn deref(&self) -> &Self::Target {
        &*self.store
    }
}

async fn open_with(arguments: &[&str]) -> Over {
    let server = Server::start(arguments).await;
    let store = Etcd::open(Options::new(vec![server.url()])).await.unwrap();
    Over { store, server }
}

async fn open() -> Over {
    // The suite has a value of three megabytes.
    open_with(&["--max-request-bytes", "8388608"]).await
}

mod contract {
    keelson_store::contract!(super::open());
}
