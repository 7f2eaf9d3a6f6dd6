//! The API of etcd over our stores, asked by our own client of etcd: it keeps the contract of stores as etcd does.
#![allow(clippy::unwrap_used)]

#[path = "../front/mod.rs"]
mod front;
mod leases;
mod watches;

use front::Front;
use keelson_store::etcd::Options;
use keelson_store::{Embedded, Etcd, Memory, Store, Transact, embedded};
use std::sync::Arc;

/// A store as a client of etcd sees it, with what it is kept in.
struct Served {
    client: Arc<Etcd>,
    _front: Front,
    _directory: Option<tempfile::TempDir>,
}

impl std::ops::Deref for Served {
    type Target = dyn Store;
    fn deref(&self) -> &Self::Target {
        &*self.client
    }
}

async fn over(store: Arc<dyn Transact>, directory: Option<tempfile::TempDir>) -> Served {
    let front = Front::of(store).await;
    let client = Etcd::open(Options::new(vec![front.url.clone()])).await.unwrap();
    Served {
        client,
        _front: front,
        _directory: directory,
    }
}

mod memory {
    use super::*;
    keelson_store::contract!(over(Memory::new(), None));
}

mod on_disk {
    use super::*;

    async fn open() -> Served {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(directory.path(), embedded::Options::default())
            .await
            .unwrap();
        over(store, Some(directory)).await
    }
    keelson_store::contract!(open());
}
