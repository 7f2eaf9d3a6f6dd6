//! What the cache itself costs: bytes an object beyond its key and value, with two indexes and three labels each.

use bytes::Bytes;
use keelson_api::{ApiError, Str};
use keelson_cache::{At, Attributes, Cache, Codec, Config, Form, Forms, IndexKey, ListQuery, Selection};
use keelson_store::{Expect, Memory, Revision, Store};
use std::sync::Arc;
use std::time::Instant;

struct Plain;

impl Codec for Plain {
    fn attributes(&self, key: &[u8], _: &[u8]) -> Result<Attributes, ApiError> {
        let n = key.len() % 7;
        let label = |name: &str| (Str::from(name), Str::from(format!("value-{n}")));
        let fields = vec![Str::from(format!("node-{n}")), Str::from("Running")];
        Ok(Attributes::new(
            vec![label("app"), label("tier"), label("pod-template-hash")],
            fields,
        ))
    }
    fn encode(&self, value: &[u8], _: Revision, _: Form) -> Result<Bytes, ApiError> {
        Ok(Bytes::copy_from_slice(value))
    }
    fn fields(&self) -> &[&'static str] {
        &["spec.nodeName", "status.phase"]
    }
    fn indexes(&self) -> Vec<IndexKey> {
        vec![IndexKey::Field(0), IndexKey::Label("app".into())]
    }
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    status
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok())
        .unwrap_or(0)
        * 4096
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    const COUNT: usize = 100_000;
    let store = Memory::new();
    for n in 0..COUNT {
        let key = format!("/registry/pods/namespace-{}/pod-{n}", n % 100);
        store
            .put(key.into(), vec![b'x'; 1024].into(), Expect::Any, None)
            .await?;
    }
    let before = resident();
    let config = Config {
        resource: "pods".into(),
        prefix: "/registry/pods/".into(),
        codec: Arc::new(Plain),
        forms: Forms::new(1 << 20),
    };
    let cache = Cache::new(store.clone(), config);
    let begun = Instant::now();
    cache.ready().await;
    println!(
        "{COUNT} objects: {} bytes each, filled in {:?}",
        (resident() - before) / COUNT,
        begun.elapsed()
    );
    let query = ListQuery {
        selection: Selection::all(),
        at: At::Consistent,
        limit: 0,
        after: None,
    };
    let begun = Instant::now();
    let page = cache.list(query).await?;
    println!("a list of {} in {:?}", page.entries.len(), begun.elapsed());
    Ok(())
}
