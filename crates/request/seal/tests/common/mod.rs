//! A store that seals, over one in memory, and what is needed to look at both.

#![allow(dead_code, reason = "each test binary uses its own part")]

use bytes::Bytes;
use keelson_seal::{GroupResource, Place, Sealing, Source};
use keelson_store::{Expect, KeyRange, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Every key a secret.
pub fn place(keys: &Path) -> Place {
    let secrets = Arc::new(GroupResource::parse("secrets"));
    Place {
        resources: Arc::new(move |_| Some(secrets.clone())),
        all: KeyRange::all(),
        secrets: KeyRange::all(),
        keys: keys.into(),
    }
}

/// Over `beneath`, by our own key in `keys`.
pub async fn own(beneath: &Arc<dyn Store>, keys: &Path) -> anyhow::Result<Arc<Sealing>> {
    Sealing::open(beneath.clone(), Source::Own, place(keys)).await
}

/// Over `beneath`, by a file.
pub async fn by_file(beneath: &Arc<dyn Store>, path: &Path, reload: bool) -> anyhow::Result<Arc<Sealing>> {
    let path = path.to_path_buf();
    let place = place(Path::new("/nonexistent"));
    Sealing::open(beneath.clone(), Source::File { path, reload }, place).await
}

pub async fn put(store: &dyn Store, key: &str, value: &str) {
    let (key, value) = (key.as_bytes().to_vec(), value.as_bytes().to_vec());
    store.put(key.into(), value.into(), Expect::Any, None).await.unwrap();
}

pub async fn get(store: &dyn Store, key: &str) -> Bytes {
    store.get(key.as_bytes(), None).await.unwrap().kv.unwrap().value
}

pub async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if is().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came: {what}");
}

pub fn config(providers: &str) -> String {
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers: {providers}\n"
    )
}

/// A secretbox of one key.
pub fn secretbox(name: &str, byte: u8) -> String {
    use base64::Engine;
    let secret = base64::engine::general_purpose::STANDARD.encode([byte; 32]);
    format!("{{secretbox: {{keys: [{{name: {name}, secret: {secret}}}]}}}}")
}
