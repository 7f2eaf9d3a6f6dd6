use super::*;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"priority": priority, "containers": []},
    }))
    .unwrap();
    Arc::new(PodInfo::of(Arc::new(pod)))
}

fn queue() -> Queue {
    Queue::new(
        Box::new(|event, _, by| matches!(event, ClusterEvent::Volumes) && by.contains("volumes")),
        Backoffs::default(),
    )
}

fn volumes() -> Arc<Why> {
    Arc::new(Why {
        plugins: BTreeSet::from(["volumes"]),
        ..Why::default()
    })
}

fn popped(queue: &mut Queue) -> String {
    queue.pop(Instant::now()).map_or("-".into(), |p| p.uid().to_owned())
}

#[tokio::test(start_paused = true)]
async fn the_important_first_then_the_oldest() {
    let mut queue = queue();
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
        queue.set(pod(name, priority), Instant::now());
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    let order: Vec<_> = (0..5).map(|_| popped(&mut queue)).collect();
    assert_eq!(order, ["b", "d", "a", "c", "-"]);
}

#[tokio::test(start_paused = true)]
async fn an_unschedulable_pod_waits_for_what_helps() {
    let mut queue = queue();
    queue.set(pod("a", 0), Instant::now());
    assert_eq!(popped(&mut queue), "a");
    queue.refused("a", volumes(), Instant::now());
    queue.happened(ClusterEvent::Namespace, Instant::now());
    assert_eq!(popped(&mut queue), "-");
    queue.happened(ClusterEvent::Volumes, Instant::now());
    assert_eq!(popped(&mut queue), "a", "nothing else to do: early");
    // What helps happens while it is being tried.
    queue.happened(ClusterEvent::Volumes, Instant::now());
    queue.refused("a", volumes(), Instant::now());
    assert_eq!(popped(&mut queue), "a");
    queue.refused("a", volumes(), Instant::now());
    assert_eq!(popped(&mut queue), "-");
    tokio::time::advance(PATIENCE).await;
    assert_eq!(popped(&mut queue), "a", "nobody waits for ever");
}

#[tokio::test(start_paused = true)]
async fn an_event_is_asked_about_only_for_those_it_can_help() {
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let asking = asked.clone();
    let helps = move |_: &ClusterEvent, _: &PodInfo, by: &BTreeSet<&'static str>| {
        asking.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        by.contains("volumes")
    };
    let hears = |event: &ClusterEvent, plugin: &str| matches!(event, ClusterEvent::Volumes) == (plugin == "volumes");
    let mut queue = Queue::new(Box::new(helps), Backoffs::default()).heard_by(Box::new(hears));
    let refused = |queue: &mut Queue, uid: &str, plugins: &[&'static str]| {
        queue.set(pod(uid, 0), Instant::now());
        assert_eq!(popped(queue), uid);
        let plugins = plugins.iter().copied().collect();
        let why = Why {
            plugins,
            ..Why::default()
        };
        queue.refused(uid, Arc::new(why), Instant::now());
    };
    for n in 0..1000 {
        refused(&mut queue, &format!("crowd-{n}"), &["size"]);
    }
    refused(&mut queue, "a", &["size", "volumes"]);
    refused(&mut queue, "b", &["volumes"]);
    refused(&mut queue, "homeless", &[]);
    let count = |queue: &mut Queue, event: ClusterEvent| {
        let before = asked.load(std::sync::atomic::Ordering::Relaxed);
        queue.happened(event, Instant::now());
        asked.load(std::sync::atomic::Ordering::Relaxed) - before
    };
    assert_eq!(count(&mut queue, ClusterEvent::Volumes), 2, "a thousand others aren't");
    assert_eq!(
        queue.lengths(),
        [("active", 0), ("backoff", 3), ("unschedulable", 1000), ("gated", 0)]
    );
    assert_eq!(
        count(&mut queue, ClusterEvent::Volumes),
        0,
        "whoever has left isn't asked about again"
    );
    assert_eq!(count(&mut queue, ClusterEvent::Namespace), 1000);
    queue.remove("crowd-7");
    queue.happened(ClusterEvent::Anything, Instant::now());
    assert_eq!(queue.lengths()[2], ("unschedulable", 0));
    assert!(queue.unschedulable.heard(|_| true).is_empty());
}

#[tokio::test(start_paused = true)]
async fn errors_back_off() {
    let mut queue = queue();
    queue.set(pod("a", 0), Instant::now());
    for wait in [1, 2] {
        assert_eq!(popped(&mut queue), "a");
        assert!(queue.failed("a", Instant::now()).is_some());
        if wait == 1 {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
    assert_eq!(popped(&mut queue), "-");
    tokio::time::advance(Duration::from_millis(1999)).await;
    assert_eq!(popped(&mut queue), "-");
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(popped(&mut queue), "a");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_isnt_tried() {
    let mut queue = queue();
    queue.set(pod("a", 0), Instant::now());
    queue.set(pod("b", 0), Instant::now());
    queue.remove("a");
    assert_eq!(popped(&mut queue), "b");
    queue.remove("b");
    queue.refused("b", Arc::default(), Instant::now());
    assert!(queue.is_empty() && queue.next_time().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_binding_that_failed_brings_back_whoever_is_still_there() {
    let mut queue = queue();
    queue.set(pod("a", 0), Instant::now());
    assert_eq!(popped(&mut queue), "a");
    assert!(queue.binds("a"));
    assert_eq!(popped(&mut queue), "-");
    queue.set(pod("a", 7), Instant::now());
    assert_eq!(
        popped(&mut queue),
        "-",
        "what is seen of it meanwhile doesn't start another try"
    );
    let back = queue.failed("a", Instant::now()).unwrap();
    assert_eq!(back.priority, 7, "as it was seen last");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(popped(&mut queue), "a");
    assert!(queue.binds("a"));
    queue.remove("a");
    assert!(queue.failed("a", Instant::now()).is_none());
    assert!(queue.is_empty() && queue.next_time().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_held_until_what_it_names_is_there() {
    let is_there = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asked = is_there.clone();
    let held = move |_: &PodInfo| !asked.load(std::sync::atomic::Ordering::Relaxed);
    let mut queue = queue().held_by(Box::new(held));
    queue.set(pod("a", 0), Instant::now());
    queue.set(pod("gone", 0), Instant::now());
    queue.look_at_held("default");
    assert_eq!(popped(&mut queue), "-");
    queue.remove("gone");
    is_there.store(true, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(popped(&mut queue), "-", "nobody has looked yet");
    queue.look_at_held("elsewhere");
    assert_eq!(popped(&mut queue), "-");
    queue.look_at_held("default");
    assert_eq!(popped(&mut queue), "a");
    assert_eq!(popped(&mut queue), "-");
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_while_being_decided_isnt_bound() {
    let mut queue = queue();
    queue.set(pod("a", 0), Instant::now());
    assert_eq!(popped(&mut queue), "a");
    queue.remove("a");
    assert!(!queue.binds("a"));
    assert!(queue.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_makes_others_go_is_tried_again_when_the_last_of_them_is_gone() {
    let mut queue = Queue::new(
        Box::new(|event, _, _| matches!(event, ClusterEvent::PodLeft(_))),
        Backoffs::default(),
    );
    queue.set(pod("a", 5), Instant::now());
    assert_eq!(popped(&mut queue), "a");
    queue.evicts("a");
    queue.refused("a", volumes(), Instant::now());
    queue.happened(ClusterEvent::PodLeft(pod("first", 0)), Instant::now());
    assert_eq!(popped(&mut queue), "-", "the last hasn't even been told");
    queue.evicts_last("a", "last");
    queue.happened(ClusterEvent::PodLeft(pod("first", 0)), Instant::now());
    assert_eq!(popped(&mut queue), "-");
    queue.happened(ClusterEvent::PodLeft(pod("last", 0)), Instant::now());
    assert_eq!(popped(&mut queue), "a");
    queue.has_evicted("a");
    queue.refused("a", volumes(), Instant::now());
    queue.happened(ClusterEvent::PodLeft(pod("another", 0)), Instant::now());
    assert_eq!(popped(&mut queue), "a");
}
