//! The objects that requests are about, as JSON with places for numbers (see [`crate::plan::Template`]).

/// Listed pods are on so many nodes, in turn.
pub const NODES: usize = 50;

/// 1 KiB of data.
pub fn config_map(name: &str) -> String {
    let payload = "x".repeat(1024);
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"n":"{{n}}","k":"{payload}"}}}}"#
    )
}

/// A pod of one container with thirty variables, and, when it has its status, of 7 KB without and 9 KB with managed fields.
/// `spec` is put at the beginning of its spec.
pub fn pod(name: &str, spec: &str) -> String {
    let env: Vec<String> = (0..30)
        .map(|i| format!(r#"{{"name":"SOME_VARIABLE_{i}","value":"some-value-of-a-typical-length-{i}"}}"#))
        .collect();
    let probe = r#"{"httpGet":{"path":"/healthz","port":8080},"periodSeconds":5}"#;
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"bench","tier":"backend","shard":"s{{i}}","release":"stable"}},"annotations":{{"prometheus.io/scrape":"true","prometheus.io/port":"9090"}}}},"spec":{{{spec}"schedulerName":"nobody","containers":[{{"name":"main","image":"registry.k8s.io/e2e-test-images/agnhost:2.66.1","args":["netexec","--http-port=8080"],"env":[{env}],"ports":[{{"containerPort":8080}}],"resources":{{"requests":{{"cpu":"1m","memory":"1Mi"}},"limits":{{"memory":"64Mi"}}}},"readinessProbe":{probe},"livenessProbe":{probe},"volumeMounts":[{{"name":"tmp","mountPath":"/tmp"}}]}}],"volumes":[{{"name":"tmp","emptyDir":{{}}}}]}}}}"#,
        env = env.join(",")
    )
}

/// A status as a kubelet writes it, another one each time; `head` is put before it.
pub fn status(head: &str) -> String {
    let condition = |kind: &str| {
        format!(
            r#"{{"type":"{kind}","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-01-01T00:00:00Z"}}"#
        )
    };
    let conditions: Vec<String> = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .map(condition)
        .into();
    format!(
        r#"{{{head}"status":{{"phase":"Running","hostIP":"10.0.0.1","podIP":"10.244.0.9","conditions":[{}],"containerStatuses":[{{"name":"main","image":"agnhost","imageID":"x","containerID":"containerd://{{n}}","ready":true,"restartCount":{{n}},"started":true,"state":{{"running":{{"startedAt":"2026-01-01T00:00:00Z"}}}},"lastState":{{}}}}]}}}}"#,
        conditions.join(",")
    )
}

pub const GROUP: &str = "load.keelson.test";

/// A kind with rules in CEL: one compares fields, one goes through a list, one needs what was before.
pub fn definition() -> String {
    format!(
        r#"{{"apiVersion":"apiextensions.k8s.io/v1","kind":"CustomResourceDefinition","metadata":{{"name":"gadgets.{GROUP}"}},"spec":{{"group":"{GROUP}","scope":"Namespaced","names":{{"plural":"gadgets","singular":"gadget","kind":"Gadget"}},"versions":[{{"name":"v1","served":true,"storage":true,"schema":{{"openAPIV3Schema":{{"type":"object","properties":{{"spec":{{"type":"object","required":["least","most"],"x-kubernetes-validations":[{{"rule":"self.least <= self.most","message":"least is more than most"}},{{"rule":"self.parts.all(p, p.size >= self.least && p.size <= self.most)"}},{{"rule":"self.owner == oldSelf.owner"}}],"properties":{{"least":{{"type":"integer"}},"most":{{"type":"integer"}},"owner":{{"type":"string","maxLength":64,"x-kubernetes-validations":[{{"rule":"self.matches('^[a-z]+-[0-9]+$')"}}]}},"parts":{{"type":"array","maxItems":20,"items":{{"type":"object","properties":{{"name":{{"type":"string","maxLength":64}},"size":{{"type":"integer"}}}}}}}}}}}}}}}}}}}}]}}}}"#
    )
}

pub fn gadget(name: &str) -> String {
    let parts: Vec<String> = (0..10)
        .map(|i| format!(r#"{{"name":"part-{i}","size":{i}}}"#))
        .collect();
    format!(
        r#"{{"apiVersion":"{GROUP}/v1","kind":"Gadget","metadata":{{"name":"{name}"}},"spec":{{"least":0,"most":10,"owner":"team-{{n}}","parts":[{}]}}}}"#,
        parts.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn they_are_objects_once_numbers_are_put_in() {
        let read = |text: String| -> Value {
            serde_json::from_str(&text.replace("{n}", "1").replace("{i}", "2"))
                .unwrap_or_else(|e| panic!("{e}: {text}"))
        };
        assert_eq!(read(config_map("c-{n}"))["metadata"]["name"], "c-1");
        let whole = read(pod("p-{i}", r#""nodeName":"node-{i}","#));
        assert_eq!(whole["spec"]["nodeName"], "node-2");
        let sent = whole.to_string().len() + read(status("")).to_string().len();
        assert!((3_000..7_000).contains(&sent), "{sent}");
        assert_eq!(read(status(""))["status"]["containerStatuses"][0]["restartCount"], 1);
        assert_eq!(read(gadget("g"))["spec"]["parts"][9]["size"], 9);
        assert_eq!(read(definition())["spec"]["names"]["kind"], "Gadget");
    }
}
