//! What pods say is the matter.

use k8s_openapi::api::core::v1::Pod;
use keelson_addons::helm::trouble::{Heard, of};
use keelson_client::{ApiObject, ObjectKey};

fn pod(status: &str) -> Pod {
    let json = format!(r#"{{"metadata":{{"name":"p"}},"status":{status}}}"#);
    Pod::decode(json.as_bytes()).expect("a pod")
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
        assert_eq!(of([&pod(&given)]).as_deref(), wanted, "{given}");
    }
    assert_eq!(of([]), None);
}

#[test]
fn what_a_pod_said_outlives_it_for_its_own_job() {
    let web = ObjectKey::new("kube-system", "web");
    let said = |owner: &str, state: &str| {
        let json = format!(
            r#"{{"metadata":{{"name":"p","ownerReferences":[{{"apiVersion":"batch/v1","kind":"Job","name":"j","uid":"{owner}"}}]}},
            "status":{{"containerStatuses":[{{"name":"helm","image":"i","imageID":"","ready":false,"restartCount":1,"state":{{{state}}}}}]}}}}"#
        );
        Pod::decode(json.as_bytes()).expect("a pod")
    };
    let heard = Heard::default();
    heard.hear(
        web.clone(),
        &said("1", r#""terminated":{"exitCode":1,"message":"no such chart"}"#),
    );
    // That it goes is nothing that it says.
    heard.hear(web.clone(), &said("1", r#""waiting":{"reason":"ContainerCreating"}"#));
    assert_eq!(
        heard.of(&web, "1").as_deref(),
        Some("pod p: it ended with 1 (1 times): no such chart")
    );
    assert_eq!(heard.of(&web, "2"), None);
    heard.forget(&web);
    assert_eq!(heard.of(&web, "1"), None);
}
