//! A resource of texts: `node labels…`, with a label `app` and a field `node`.
#![allow(dead_code)]

use bytes::Bytes;
use keelson_api::{ApiError, Str};
use keelson_cache::{
    At, Attributes, Cache, Codec, Config, Entry, Form, Forms, IndexKey, ListQuery, Predicate, Scope, Selection, Start,
    Watch, WatchEvent, WatchOptions,
};
use keelson_store::{Expect, Memory, Revision, Store};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

#[derive(Default)]
pub struct Texts {
    pub encoded: AtomicUsize,
}

impl Codec for Texts {
    /// `node=n1 app=web anything`
    fn attributes(&self, _: &[u8], value: &[u8]) -> Result<Attributes, ApiError> {
        let text = std::str::from_utf8(value).map_err(ApiError::internal)?;
        let word = |name: &str| text.split(' ').find_map(|w| w.strip_prefix(name)).map(Str::from);
        let labels = word("app=").map(|app| (Str::from("app"), app)).into_iter().collect();
        Ok(Attributes::new(labels, vec![word("node=").unwrap_or_default()]))
    }
    fn encode(&self, value: &[u8], revision: Revision, form: Form) -> Result<Bytes, ApiError> {
        self.encoded.fetch_add(1, Ordering::Relaxed);
        Ok(format!("{}@{revision} as {}", String::from_utf8_lossy(value), form.0).into())
    }
    fn fields(&self) -> &[&'static str] {
        &["node"]
    }
    fn indexes(&self) -> Vec<IndexKey> {
        vec![IndexKey::Field(0), IndexKey::Label("app".into())]
    }
}

pub struct Lab {
    pub store: Arc<Memory>,
    pub cache: Cache,
    pub codec: Arc<Texts>,
}

pub fn lab() -> Lab {
    let store = Memory::new();
    let codec = Arc::new(Texts::default());
    let cache = cache(store.clone(), codec.clone());
    Lab { store, cache, codec }
}

pub fn cache(store: Arc<dyn Store>, codec: Arc<Texts>) -> Cache {
    let config = Config {
        resource: "texts".into(),
        prefix: "/texts/".into(),
        codec,
        forms: Forms::new(1 << 20),
    };
    Cache::new(store, config)
}

impl Lab {
    pub async fn put(&self, name: &str, value: &str) -> Revision {
        let key = format!("/texts/{name}");
        self.store
            .put(key.into(), value.to_owned().into(), Expect::Any, None)
            .await
            .unwrap()
            .done()
            .unwrap()
    }
    pub async fn delete(&self, name: &str) -> Revision {
        self.store
            .delete(format!("/texts/{name}").into(), Expect::Any)
            .await
            .unwrap()
            .done()
            .unwrap()
    }
    /// Something else happens in the store.
    pub async fn elsewhere(&self) -> Revision {
        self.store
            .put("/other".into(), "1".into(), Expect::Any, None)
            .await
            .unwrap()
            .done()
            .unwrap()
    }
    pub async fn list(&self, selection: Selection, at: At) -> Vec<String> {
        let page = self
            .cache
            .list(ListQuery {
                selection,
                at,
                limit: 0,
                after: None,
            })
            .await
            .unwrap();
        page.entries.iter().map(|e| shown(e)).collect()
    }
    pub async fn watch(&self, selection: Selection, start: Start) -> Watch {
        self.cache.watch(WatchOptions::new(selection, start)).await.unwrap()
    }
}

pub fn app(value: &'static str) -> Predicate {
    Arc::new(move |entry: &Entry| entry.attributes().label("app") == Some(value))
}

pub fn on_node(value: &'static str) -> Selection {
    let predicate: Predicate = Arc::new(move |entry: &Entry| entry.attributes().field(0) == Some(value));
    Selection::all().with_predicate(predicate).with_index(0, value)
}

pub fn namespace(name: &str) -> Selection {
    Selection::scope(Scope::Namespace(name.into()))
}

/// `name=value@revision`
pub fn shown(entry: &Entry) -> String {
    let value = String::from_utf8_lossy(entry.value());
    format!("{}/{}={value}@{}", entry.namespace(), entry.name(), entry.revision())
}

/// The next event, as a short text; `-` if there is none for a while.
pub async fn next(watch: &mut Watch) -> String {
    match tokio::time::timeout(Duration::from_secs(1), watch.next()).await {
        Err(_) => "-".into(),
        Ok(None) => "over".into(),
        Ok(Some(Err(error))) => format!("error {error}"),
        Ok(Some(Ok(event))) => match event {
            WatchEvent::Added(e) => format!("+{}", shown(&e)),
            WatchEvent::Modified(e) => format!("~{}", shown(&e)),
            WatchEvent::Deleted(e) => format!("-{}", shown(&e)),
            WatchEvent::Bookmark {
                revision,
                initial_events_end,
            } => {
                format!("bookmark {revision}{}", if initial_events_end { " end" } else { "" })
            }
        },
    }
}
