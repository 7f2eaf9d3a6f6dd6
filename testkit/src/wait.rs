//! Waiting in virtual time. A look is taken after each write to the store, so nothing that lasts is missed, and no time
//! is spent while nothing happens.

use crate::cluster::Cluster;
use crate::objects::{Event, Node, Pod, node_ready, pod_line, taints};
use keelson_client::{Kind, Objects};
use keelson_store::{KeyRange, Store, WatchStream};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::time::Instant;

/// What was waited for, or what was there instead.
pub type Seen<T> = Result<T, String>;

/// How many events a failure tells.
const TOLD: usize = 25;

impl Cluster {
    /// Waits until `look` finds what it looks for. Else fails and says what it saw last, and how the cluster is.
    pub async fn eventually<T>(&self, what: &str, within: Duration, mut look: impl AsyncFnMut() -> Seen<T>) -> T {
        let deadline = Instant::now() + within;
        let mut changes = self.changes().await;
        loop {
            let seen = match look().await {
                Ok(found) => return found,
                Err(seen) => seen,
            };
            if Instant::now() >= deadline {
                let report = self.report().await;
                panic!("not within {within:?}: {what}\nseen last: {seen}\n{report}");
            }
            self.next_change(&mut changes, deadline).await;
        }
    }

    /// Watches that `look` goes on to find what it looks for, for so long.
    pub async fn stays(&self, what: &str, during: Duration, mut look: impl AsyncFnMut() -> Seen<()>) {
        let begin = Instant::now();
        let mut changes = self.changes().await;
        loop {
            if let Err(seen) = look().await {
                let report = self.report().await;
                let after = begin.elapsed();
                panic!("no longer after {after:?}: {what}\nseen: {seen}\n{report}");
            }
            if begin.elapsed() >= during {
                return;
            }
            self.next_change(&mut changes, begin + during).await;
        }
    }

    /// Waits until one object is as wanted, and returns it.
    pub async fn until<K: Kind>(
        &self,
        namespace: &str,
        name: &str,
        within: Duration,
        what: &str,
        is_so: impl Fn(&K) -> bool,
    ) -> K {
        let objects: Objects<K> = self.objects();
        let what = format!("{} {namespace}/{name} {what}", K::RESOURCE.kind);
        self.eventually(&what, within, async || {
            match objects.find(namespace, name).await.map_err(|e| e.to_string())? {
                Some(object) if is_so(&object) => Ok(object),
                Some(object) => Err(shown(&object)),
                None => Err("there is none".into()),
            }
        })
        .await
    }

    /// Waits until there is no such object.
    pub async fn gone<K: Kind>(&self, namespace: &str, name: &str, within: Duration) {
        let objects: Objects<K> = self.objects();
        let what = format!("{} {namespace}/{name} is gone", K::RESOURCE.kind);
        self.eventually(&what, within, async || {
            match objects.find(namespace, name).await.map_err(|e| e.to_string())? {
                Some(object) => Err(shown(&object)),
                None => Ok(()),
            }
        })
        .await
    }

    /// Waits until the objects of a kind, all together, are as wanted. `look` says what it misses.
    pub async fn until_all<K: Kind, T>(
        &self,
        namespace: &str,
        within: Duration,
        what: &str,
        look: impl Fn(&[K]) -> Option<T>,
    ) -> T {
        let objects: Objects<K> = self.objects();
        self.eventually(what, within, async || {
            let found = objects.list(namespace, "", "").await.map_err(|e| e.to_string())?;
            look(&found).ok_or_else(|| {
                let names: Vec<_> = found.iter().map(|o| o.key().to_string()).collect();
                format!("{} {}: {}", found.len(), K::RESOURCE.plural, names.join(", "))
            })
        })
        .await
    }

    async fn changes(&self) -> WatchStream {
        let revision = self.server.store.current_revision().await.expect("a store in memory");
        let all = self.server.store.watch(KeyRange::all(), revision).await;
        all.expect("a watch from the present")
    }

    async fn next_change(&self, changes: &mut WatchStream, deadline: Instant) {
        let next = tokio::time::timeout_at(deadline, changes.next()).await;
        if matches!(next, Ok(None | Some(Err(_)))) {
            // More was written between two looks than a watch holds: go on from here.
            *changes = self.changes().await;
        }
    }

    /// How the cluster is: what a person would ask for first.
    pub async fn report(&self) -> String {
        let mut text = format!(
            "after {:?} of virtual time, with seed {}\n",
            self.elapsed(),
            self.seed()
        );
        let nodes = self.objects::<Node>().list("", "", "").await.unwrap_or_default();
        for node in nodes {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            let _ = writeln!(
                text,
                "node {name} ready={} {}",
                node_ready(&node),
                taints(&node).join(" ")
            );
        }
        let pods = self.objects::<Pod>().list("", "", "").await.unwrap_or_default();
        for pod in pods {
            let _ = writeln!(text, "pod {}", pod_line(&pod));
        }
        let events = self.events("").await;
        for event in &events[events.len().saturating_sub(TOLD)..] {
            let _ = writeln!(text, "event {}", event_line(event));
        }
        text
    }
}

fn event_line(event: &Event) -> String {
    let about = &event.involved_object;
    let part = |t: &Option<String>| t.clone().unwrap_or_default();
    let times = event
        .count
        .filter(|n| *n > 1)
        .map_or(String::new(), |n| format!(" ({n} times)"));
    let (kind, name) = (part(&about.kind), part(&about.name));
    format!(
        "{kind} {name}: {}: {}{times}",
        part(&event.reason),
        part(&event.message)
    )
}

/// An object as JSON, without what nobody reads.
fn shown<K: Kind>(object: &K) -> String {
    let mut object = object.clone();
    object.meta_mut().managed_fields = None;
    let json = object.encode().unwrap_or_default();
    String::from_utf8_lossy(&json).into_owned()
}
