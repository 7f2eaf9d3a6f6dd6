//! What pods say is the matter.

use k8s_openapi::api::core::v1::Pod;
use keelson_addons::helm::trouble::of;
use keelson_client::ApiObject;
use std::sync::Arc;

fn pod(status: &str) -> Arc<Pod> {
    let json = format!(r#"{{"metadata":{{"name":"p"}},"status":{status}}}"#);
    Arc::new(Pod::decode(json.as_bytes()).expect("a pod"))
}

#[test]
fn pods_tell_what_is_the_matter() {
    let status = |state: &str| {
        format!(
            r#"{{"containerStatuses":[{{"name":"helm","image":"i","imageID":"","ready":false,"restartCount":3,{state}}}]}}"#
        )
    };
    for (given, wanted) in [
        (
            r#"{"conditions":[{"type":"PodScheduled","status":"False","message":"no nodes"}]}"#.to_string(),
            Some("pod p: no nodes"),
        ),
        (
            status(r#""state":{"waiting":{"reason":"ImagePullBackOff","message":"not found"}}"#),
            Some("pod p: ImagePullBackOff: not found"),
        ),
        (status(r#""state":{"waiting":{"reason":"ContainerCreating"}}"#), None),
        (
            status(r#""state":{"running":{}},"lastState":{"terminated":{"exitCode":1,"message":"no such chart\n"}}"#),
            Some("pod p: it ended with 1 (3 times): no such chart"),
        ),
        (status(r#""state":{"terminated":{"exitCode":0}}"#), None),
        ("{}".to_string(), None),
    ] {
        assert_eq!(of(&[pod(&given)]).as_deref(), wanted, "{given}");
    }
    assert_eq!(of(&Vec::<Arc<Pod>>::new()), None);
}
