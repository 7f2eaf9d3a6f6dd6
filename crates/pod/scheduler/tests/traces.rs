//! A pod's time in the queue is one span in the pod's own trace.
#![allow(clippy::unwrap_used)]

use keelson_scheduler::events::ClusterEvent;
use keelson_scheduler::plan::Why;
use keelson_scheduler::pod::PodInfo;
use keelson_scheduler::queue::{Backoffs, Queue};
use keelson_trace::Tracer;
use keelson_trace::sampling::Rate;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const UID: &str = "0af76519-16cd-43dd-8448-eb211c80319c";

#[derive(Clone, Debug, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().extend(batch);
        Ok(())
    }
}

fn pod(uid: &str) -> Arc<PodInfo> {
    let pod = json!({"metadata": {"name": "web", "namespace": "shop", "uid": uid}, "spec": {"containers": []}});
    Arc::new(PodInfo::of(Arc::new(serde_json::from_value(pod).unwrap())))
}

fn queue(rate: u32) -> (Queue, Kept, Tracer) {
    let kept = Kept::default();
    let tracer = Tracer::with(kept.clone(), Rate::per_million(rate), "scheduler", "s1");
    let queue = Queue::new(Box::new(|_, _, _| false), Backoffs::default()).traced_by(tracer.clone());
    (queue, kept, tracer)
}

#[tokio::test(flavor = "multi_thread")]
async fn from_its_entry_until_it_is_bound_a_pod_is_one_span() {
    let (mut queue, kept, tracer) = queue(1_000_000);
    let now = Instant::now();
    queue.set(pod(UID), now);
    queue.pop(now).unwrap();
    let why = Why {
        plugins: BTreeSet::from(["NodeAffinity", "NodeResourcesFit"]),
        ..Why::default()
    };
    queue.refused(UID, Arc::new(why), now);
    queue.happened(ClusterEvent::Anything, now);
    let later = now + Duration::from_secs(5);
    queue.pop(later).unwrap();
    // A binding that fails doesn't end it.
    assert!(queue.binds(UID));
    let span = queue.take_span(UID);
    queue.give_back(UID, span);
    queue.failed(UID, later).unwrap();
    assert!(kept.0.lock().is_empty());
    queue.pop(later + Duration::from_secs(30)).unwrap();
    assert!(queue.binds(UID));
    drop(queue.take_span(UID));
    // Nothing is left to tell.
    queue.remove(UID);
    tracer.end().await;

    let spans = kept.0.lock();
    let [span] = spans.as_slice() else { panic!("{spans:?}") };
    assert_eq!(span.name, "schedule");
    assert_eq!(span.span_context.trace_id().to_string(), UID.replace('-', ""));
    let events: Vec<&str> = span.events.iter().map(|event| &*event.name).collect();
    assert_eq!(
        events.iter().filter(|name| **name == "Attempt").count(),
        3,
        "{events:?}"
    );
    assert!(
        events.contains(&"UnscheduledPodAdd") && events.contains(&"Error"),
        "{events:?}"
    );
    let refused = span.events.iter().find(|event| event.name == "Unschedulable").unwrap();
    assert!(format!("{:?}", refused.attributes).contains("NodeAffinity,NodeResourcesFit"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_isnt_taken_is_not_told_and_who_goes_ends() {
    let (mut untaken, kept, tracer) = queue(0);
    untaken.set(pod(UID), Instant::now());
    assert!(untaken.take_span(UID).trace().is_none());
    untaken.remove(UID);
    tracer.end().await;
    assert!(kept.0.lock().is_empty());

    let (mut queue, kept, tracer) = queue(1_000_000);
    queue.set(pod(UID), Instant::now());
    queue.remove(UID);
    tracer.end().await;
    assert_eq!(kept.0.lock().len(), 1);
}
