//! A sealed store keeps the contract of stores.
#![allow(clippy::unwrap_used)]

mod common;

mod memory {
    use super::common;
    use keelson_store::{Memory, Store};
    use std::sync::Arc;

    keelson_store::contract!(async {
        let keys = tempfile::tempdir().unwrap();
        let beneath: Arc<dyn Store> = Memory::new();
        common::own(&beneath, keys.path()).await.unwrap().store()
    });
}
