//! Claims of devices: who may write which part of their status, and what is wrong with one from the beginning.

#![allow(clippy::unwrap_used)]

mod harness;

use harness::{Answer, Api};
use keelson_api::{Value, value};
use keelson_apiserver::request::UserInfo;

const CLAIMS: &str = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";

fn claim(expression: &str) -> Value {
    let exactly = value!({"deviceClassName": "gpu", "selectors": [{"cel": {"expression": expression}}]});
    value!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "r", "exactly": exactly}]}}})
}

/// A driver's pod on a node, if its token says one.
fn driver(node: Option<&str>) -> UserInfo {
    let mut user = UserInfo::new("system:serviceaccount:default:driver", &["system:authenticated"]);
    if let Some(node) = node {
        let of_token = "authentication.kubernetes.io/node-name".into();
        user.extra.insert(of_token, vec![node.into()]);
    }
    user
}

async fn tell(api: &Api, status: Value) -> Answer {
    let patch = value!({"status": status});
    api.patch(&format!("{CLAIMS}/c/status"), "merge-patch+json", patch)
        .await
}

#[tokio::test]
async fn a_driver_tells_of_its_own_devices_on_its_own_node() {
    let api = Api::new().await;
    api.post(CLAIMS, claim("true")).await.expect(201);
    let field = value!({"key": "metadata.name", "operator": "In", "values": ["n"]});
    let device = value!({"request": "r", "driver": "d.example.com", "pool": "p", "device": "x"});
    let allocation =
        value!({"devices": {"results": [device]}, "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [field]}]}});
    tell(&api, value!({"allocation": allocation})).await.expect(200);
    let rule = |resource: &str, verbs: Value| value!({"apiGroups": ["resource.k8s.io"], "resources": [resource], "verbs": verbs});
    let mut rules = vec![rule("resourceclaims/status", value!(["update", "patch"]))];
    let role = value!({"metadata": {"name": "driver"}, "rules": (rules.clone())});
    api.post(ROLES, role).await.expect(201);
    let account = value!({"kind": "ServiceAccount", "name": "driver", "namespace": "default"});
    let binding = value!({"metadata": {"name": "driver"}, "subjects": [account],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "driver"}});
    api.post(BINDINGS, binding).await.expect(201);

    let told =
        value!({"devices": [{"driver": "d.example.com", "pool": "p", "device": "x", "data": {"ip": "10.0.0.1"}}]});
    let api = api.by(driver(Some("n")));
    let mut refused = tell(&api, told.clone()).await;
    for _ in 0..200 {
        // Until the rights are known.
        if refused.code == 422 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        refused = tell(&api, told.clone()).await;
    }
    let why = refused.expect(422).str(&["message"]);
    let wanted = "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[associated-node:patch arbitrary-node:patch]\" \
                  permission: resourceclaims.resource.k8s.io \"d.example.com\" is forbidden: User \"system:serviceaccount:default:driver\" cannot \
                  associated-node:patch resource \"resourceclaims/driver\" in API group \"resource.k8s.io\" in the namespace \"default\"";
    assert!(why.contains(wanted), "{why}");
    let user = value!({"resource": "pods", "name": "p", "uid": "u"});
    let why = tell(&api, value!({"reservedFor": [user]}))
        .await
        .expect(422)
        .str(&["message"]);
    let wanted = "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"patch\" permission: \
                  resourceclaims.resource.k8s.io is forbidden: User \"system:serviceaccount:default:driver\" cannot patch resource \
                  \"resourceclaims/binding\" in API group \"resource.k8s.io\" at the cluster scope";
    assert!(why.contains(wanted), "{why}");

    let api = api.by(UserInfo::new("tester", &["system:masters"]));
    rules.push(rule("resourceclaims/driver", value!(["associated-node:patch"])));
    let more = value!({"rules": rules});
    api.patch(&format!("{ROLES}/driver"), "merge-patch+json", more)
        .await
        .expect(200);
    let mut api = api.by(driver(Some("n")));
    for _ in 0..200 {
        if tell(&api, told.clone()).await.code == 200 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    tell(&api, told.clone()).await.expect(200);
    // From another node, or with a token of none, it is not its business.
    for node in [Some("m"), None] {
        let other =
            value!({"devices": [{"driver": "d.example.com", "pool": "p", "device": "x", "data": {"ip": "10.0.0.2"}}]});
        api = api.by(driver(node));
        tell(&api, other).await.expect(422);
    }
}

#[tokio::test]
async fn expressions_are_read_when_a_claim_is_made() {
    let api = Api::new().await;
    let why = api
        .post(CLAIMS, claim("device.nope"))
        .await
        .expect(422)
        .str(&["message"]);
    assert!(
        why.contains("spec.devices.requests[0].exactly.selectors[0].cel.expression: Invalid value: \"device.nope\": compilation failed: "),
        "{why}"
    );
    let why = api
        .post(CLAIMS, claim("device.driver"))
        .await
        .expect(422)
        .str(&["message"]);
    assert!(
        why.contains("must evaluate to bool or the unknown type, not string"),
        "{why}"
    );
    let classes = "/apis/resource.k8s.io/v1/deviceclasses";
    let class = |expression: &str| value!({"metadata": {"name": "gpu"}, "spec": {"selectors": [{"cel": {"expression": expression}}]}});
    api.post(classes, class("device.driver ==")).await.expect(422);
    api.post(classes, class("device.driver == 'd.example.com'"))
        .await
        .expect(201);
}
