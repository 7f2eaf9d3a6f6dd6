//! The stores that need no other program keep the contract; `etcd.rs` holds the one over etcd to it.
#![allow(clippy::unwrap_used)]

use keelson_store::{Embedded, Memory, Store};
use std::sync::Arc;

mod memory {
    use super::*;
    keelson_store::contract!(async { Memory::new() as Arc<dyn Store> });

    #[tokio::test]
    async fn a_slow_watcher_is_cut() {
        keelson_store::contract::a_slow_watcher_is_cut(&*Memory::new()).await;
    }
}

mod rooted {
    use super::*;
    // Keys of the cases are any bytes, so the root that they see is empty.
    keelson_store::contract!(async { keelson_store::Rooted::new(Memory::new(), "", "/elsewhere/") as Arc<dyn Store> });
}

mod embedded {
    use super::*;
    use keelson_store::embedded::Options;

    /// A store in a directory of its own, which goes with it.
    struct InDirectory {
        store: Arc<Embedded>,
        _directory: tempfile::TempDir,
    }

    impl std::ops::Deref for InDirectory {
        type Target = dyn Store;
        fn deref(&self) -> &Self::Target {
            &*self.store
        }
    }

    async fn open() -> InDirectory {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(directory.path(), Options::default()).await.unwrap();
        InDirectory {
            store,
            _directory: directory,
        }
    }

    keelson_store::contract!(open());

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_slow_watcher_is_cut() {
        keelson_store::contract::a_slow_watcher_is_cut(&*open().await).await;
    }
}
