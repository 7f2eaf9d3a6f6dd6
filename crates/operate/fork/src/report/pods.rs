//! Which pods come, go and wait, by whose they are.

use super::{Key, Picture, Pod, Workload, controller, list, text};
use serde_json::Value;
use std::collections::BTreeMap;

/// Owners that are themselves somebody's, and what they are as resources.
const BETWEEN: [(&str, &str); 2] = [("ReplicaSet", "replicasets.apps"), ("Job", "jobs.batch")];

pub fn workloads(before: &Picture, after: &Picture) -> Vec<Workload> {
    let mut found: BTreeMap<String, Vec<Pod>> = BTreeMap::new();
    for (key, pod) in before.of("pods") {
        let now = after.get(key);
        if now.is_none() && !is_over(pod) {
            let owner = owner(before, key, pod);
            found.entry(owner).or_default().push(Pod {
                name: key.name.clone(),
                before: node(pod),
                is_gone: true,
                ..Pod::default()
            });
        }
    }
    for (key, pod) in after.of("pods") {
        let was = before.get(key);
        let is_new = was.is_none_or(|was| was["metadata"]["uid"] != pod["metadata"]["uid"]);
        let told = Pod {
            name: key.name.clone(),
            before: was.and_then(node),
            after: node(pod),
            is_gone: false,
            waits: waits(pod),
            missing: if is_new { missing(after, key, pod) } else { Vec::new() },
        };
        let waited = was.filter(|_| !is_new).and_then(waits);
        let stays = !is_new && told.before == told.after && told.waits.is_some() == waited.is_some();
        if !stays {
            found.entry(owner(after, key, pod)).or_default().push(told);
        }
    }
    let workload = |(owner, pods)| Workload { owner, pods };
    found.into_iter().map(workload).collect()
}

fn is_over(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn node(pod: &Value) -> Option<String> {
    let node = text(pod, "/spec/nodeName");
    (!node.is_empty()).then(|| node.to_owned())
}

fn waits(pod: &Value) -> Option<String> {
    if node(pod).is_some() || is_over(pod) {
        return None;
    }
    let condition = list(pod, "/status/conditions").find(|c| c["type"] == "PodScheduled" && c["status"] == "False");
    let why = condition.map(|c| text(c, "/message")).unwrap_or_default();
    Some(if why.is_empty() { "no node yet" } else { why }.to_owned())
}

/// Whoever made it in the end: of a deployment's pod the deployment.
fn owner(picture: &Picture, key: &Key, pod: &Value) -> String {
    let namespace = &key.namespace;
    let named = |owner: &Value| {
        let (kind, name) = (text(owner, "/kind"), text(owner, "/name"));
        format!("{} {namespace}/{name}", kind.to_ascii_lowercase())
    };
    let Some(first) = controller(pod) else {
        return format!("pod {namespace}/{}", key.name);
    };
    let between = BETWEEN.iter().find(|(kind, _)| first["kind"] == *kind);
    let between = between.and_then(|(_, resource)| picture.find(resource, namespace, text(first, "/name")));
    named(between.and_then(controller).unwrap_or(first))
}

/// What a pod can't start without, and isn't there.
fn missing(picture: &Picture, key: &Key, pod: &Value) -> Vec<String> {
    let mut named = Vec::new();
    let mut needs = |resource: &'static str, reference: &Value, field: &str| {
        let name = text(reference, field);
        if !name.is_empty() && reference["optional"] != true {
            named.push((resource, name.to_owned()));
        }
    };
    for volume in list(pod, "/spec/volumes") {
        needs("configmaps", &volume["configMap"], "/name");
        needs("secrets", &volume["secret"], "/secretName");
        needs("persistentvolumeclaims", &volume["persistentVolumeClaim"], "/claimName");
    }
    for container in list(pod, "/spec/containers").chain(list(pod, "/spec/initContainers")) {
        for from in list(container, "/envFrom") {
            needs("configmaps", &from["configMapRef"], "/name");
            needs("secrets", &from["secretRef"], "/name");
        }
        for env in list(container, "/env") {
            needs("configmaps", &env["valueFrom"]["configMapKeyRef"], "/name");
            needs("secrets", &env["valueFrom"]["secretKeyRef"], "/name");
        }
    }
    named.sort();
    named.dedup();
    // Who has a copy of it gets one from the copy's own authorities only where these publish it.
    named.retain(|(resource, name)| {
        name != "kube-root-ca.crt" && picture.find(resource, &key.namespace, name).is_none()
    });
    named
        .into_iter()
        .map(|(resource, name)| format!("{resource} {name}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, uid: &str, node: &str, owner: (&str, &str)) -> Value {
        json!({"metadata": {"name": name, "namespace": "n", "uid": uid, "ownerReferences": [{"kind": owner.0, "name": owner.1, "controller": true}]},
            "spec": {"nodeName": node}, "status": {"phase": "Running"}})
    }

    fn picture(pods: &[Value]) -> Picture {
        let mut picture = Picture::default();
        let deployment = json!([{"kind": "Deployment", "name": "web", "controller": true}]);
        let set = json!({"metadata": {"name": "web-1", "namespace": "n", "ownerReferences": deployment}});
        picture.add("replicasets.apps", set);
        pods.iter().for_each(|pod| picture.add("pods", pod.clone()));
        picture
    }

    #[test]
    fn pods_are_told_by_their_owner_and_their_nodes() {
        let (set, db) = (("ReplicaSet", "web-1"), ("StatefulSet", "db"));
        let mut waiting = pod("web-c", "5", "", set);
        waiting["status"] = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]});
        waiting["spec"]["volumes"] =
            json!([{"configMap": {"name": "absent"}}, {"configMap": {"name": "may", "optional": true}}]);
        let before = picture(&[
            pod("web-a", "1", "n1", set),
            pod("web-b", "2", "n2", set),
            pod("db-0", "3", "n1", db),
        ]);
        let after = picture(&[pod("web-b", "2", "n2", set), pod("db-0", "4", "n2", db), waiting]);
        let told = workloads(&before, &after);
        let named = |name: &str| Pod {
            name: name.to_owned(),
            ..Pod::default()
        };
        let node = |node: &str| Some(node.to_owned());
        let web = vec![
            Pod {
                before: node("n1"),
                is_gone: true,
                ..named("web-a")
            },
            Pod {
                waits: node("0/1 nodes"),
                missing: vec!["configmaps absent".to_owned()],
                ..named("web-c")
            },
        ];
        let db = vec![Pod {
            before: node("n1"),
            after: node("n2"),
            ..named("db-0")
        }];
        let owners: Vec<_> = told.iter().map(|w| w.owner.as_str()).collect();
        assert_eq!(owners, ["deployment n/web", "statefulset n/db"]);
        assert_eq!((&told[0].pods, &told[1].pods), (&web, &db));
        assert!(workloads(&before, &before).is_empty());
    }
}
