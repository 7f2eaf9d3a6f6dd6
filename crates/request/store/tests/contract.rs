//! Both implementations keep the contract.
#![allow(clippy::unwrap_used)]

use keelson_store::{Embedded, Memory, Store};
use std::sync::Arc;

mod memory {
    use super::*;
    keelson_store::contract!(async { Memory::new() as Arc<dyn Store> });
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
}
