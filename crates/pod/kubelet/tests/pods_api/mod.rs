//! The pods of a node, for programs on it.

use crate::support::Node;
use crate::volumes::support::Home;
use keelson_api::codec::proto::decode_message;
use keelson_api::schema::builtin_type;
use keelson_devices::pods::pods_client::PodsClient;
use keelson_devices::pods::{EventType, GetPodRequest, ListPodsRequest, WatchPodsEvent, WatchPodsRequest};
use serde_json::{Value, json};
use std::time::Duration;
use tonic::Code;

fn decoded(pod: &[u8]) -> Value {
    let schema = builtin_type("io.k8s.api.core.v1.Pod").unwrap();
    Value::from(keelson_api::Value::Object(decode_message(pod, &schema).unwrap()))
}

/// The next event that is of this type.
async fn until(events: &mut tonic::Streaming<WatchPodsEvent>, kind: EventType) -> Value {
    for _ in 0..200 {
        let wait = Duration::from_secs(600);
        let event = tokio::time::timeout(wait, events.message())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        if event.r#type() == kind {
            return decoded(&event.pod);
        }
    }
    panic!("no event is {kind:?}");
}

#[tokio::test(start_paused = true)]
async fn programs_on_the_node_see_its_pods_and_what_becomes_of_them() {
    let home = Home::new("pods-api");
    let node = Node::start_in(home.path()).await;
    let path = node.pod(json!({"containers": [{"name": "c"}]}));
    let pod = node.ready(&path).await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let channel = keelson_grpc::channel(&home.path().join("pods-api/pods-api.sock"));
    let mut client = PodsClient::new(channel);
    let get = |uid: &str| GetPodRequest { pod_uid: uid.into() };
    let got = client.get_pod(get(uid)).await.unwrap().into_inner().pod;
    let shown = decoded(&got);
    assert_eq!(shown["status"]["phase"], "Running");
    assert_eq!(shown["status"]["podIP"], pod["status"]["podIP"]);
    let all = client.list_pods(ListPodsRequest {}).await.unwrap().into_inner().pods;
    assert_eq!(all, [got]);
    let missing = client.get_pod(get("none")).await.unwrap_err();
    assert_eq!(
        (missing.code(), missing.message()),
        (Code::NotFound, "pod with UID none not found")
    );

    let mut events = client.watch_pods(WatchPodsRequest {}).await.unwrap().into_inner();
    let first = events.message().await.unwrap().unwrap();
    assert_eq!(
        (first.r#type(), &decoded(&first.pod)["metadata"]["uid"]),
        (EventType::Added, &json!(uid))
    );
    let complete = events.message().await.unwrap().unwrap();
    assert_eq!(
        (complete.r#type(), complete.pod.len()),
        (EventType::InitialSyncComplete, 0)
    );
    node.api.change(&path, |p| p["metadata"]["labels"] = json!({"a": "b"}));
    let changed = until(&mut events, EventType::Modified).await;
    assert_eq!(changed["metadata"]["labels"]["a"], "b");
    let other = node.pod_with(json!({"name": "q"}), json!({"containers": [{"name": "d"}]}));
    let added = until(&mut events, EventType::Added).await;
    assert_eq!(added["metadata"]["name"], "q");
    node.api.delete_pod(&path, 1);
    let gone = until(&mut events, EventType::Deleted).await;
    assert_eq!(
        gone["metadata"],
        json!({"name": "p", "namespace": "default", "uid": uid})
    );
    assert!(node.api.get(&other).is_some());
}
