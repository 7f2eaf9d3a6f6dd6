//! Prints what decoding and encoding a Pod of about 7 KB costs: `cargo run --release -p keelson-api --example codec_figures`.

use keelson_api::builtin::builtin_kind_at;
use keelson_api::codec::{Strictness, json, proto};
use keelson_api::{Object, Value};
use std::hint::black_box;
use std::time::Instant;

fn measure(name: &str, bytes: usize, mut f: impl FnMut()) {
    let rounds = 2000;
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        (0..rounds).for_each(|_| f());
        best = best.min(start.elapsed().as_secs_f64() / f64::from(rounds) * 1e6);
    }
    println!("{name:<28}{bytes:>7} bytes {best:>8.2} µs");
}

fn main() {
    let start = Instant::now();
    let Some(schema) = builtin_kind_at("v1", "Pod") else {
        return;
    };
    println!("schema read in {:?}", start.elapsed());
    let container = r#"{"name":"web","image":"registry.k8s.io/nginx:1.27","args":["--port","8080"],"ports":[{"containerPort":8080,"protocol":"TCP","name":"http"}],
      "env":[{"name":"A","value":"1"},{"name":"POD","valueFrom":{"fieldRef":{"apiVersion":"v1","fieldPath":"metadata.name"}}}],
      "resources":{"limits":{"cpu":"500m","memory":"128Mi"},"requests":{"cpu":"100m","memory":"64Mi"}},
      "volumeMounts":[{"name":"data","mountPath":"/data"},{"name":"kube-api-access","readOnly":true,"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"}],
      "livenessProbe":{"httpGet":{"path":"/healthz","port":8080,"scheme":"HTTP"},"timeoutSeconds":1,"periodSeconds":10,"successThreshold":1,"failureThreshold":3},
      "terminationMessagePath":"/dev/termination-log","terminationMessagePolicy":"File","imagePullPolicy":"IfNotPresent"}"#;
    let condition =
        r#"{"type":"Ready","status":"True","lastProbeTime":null,"lastTransitionTime":"2026-01-02T03:04:05Z"}"#;
    let text = format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"web-5f7c","namespace":"default","uid":"0f6a4b1e-0d0a-4a57-a6cf-0123456789ab","resourceVersion":"12345",
        "creationTimestamp":"2026-01-02T03:04:05Z","labels":{{"app":"web","pod-template-hash":"5f7c"}},"ownerReferences":[{{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"web","uid":"x","controller":true,"blockOwnerDeletion":true}}],
        "managedFields":[{{"manager":"kube-controller-manager","operation":"Update","apiVersion":"v1","time":"2026-01-02T03:04:05Z","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:labels":{{".":{{}},"f:app":{{}}}}}},"f:spec":{{"f:containers":{{"k:{{\"name\":\"web\"}}":{{".":{{}},"f:image":{{}}}}}}}}}}}}]}},
        "spec":{{"containers":[{c},{c},{c},{c}],"restartPolicy":"Always","terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","serviceAccountName":"default","nodeName":"n1","schedulerName":"default-scheduler",
        "tolerations":[{{"key":"node.kubernetes.io/not-ready","operator":"Exists","effect":"NoExecute","tolerationSeconds":300}}],"volumes":[{{"name":"data","emptyDir":{{}}}}]}},
        "status":{{"phase":"Running","conditions":[{k},{k},{k},{k}],"hostIP":"10.0.0.1","podIP":"10.244.0.5"}}}}"#,
        c = container,
        k = condition
    );
    let value: Value = match json::decode(text.as_bytes(), Some(&schema), Strictness::Lenient) {
        Ok(d) => d.value,
        Err(e) => return eprintln!("{e}"),
    };
    let text = json::encode(&value);
    let Ok(object) = Object::try_from(value.clone()) else {
        return;
    };
    let Ok(bytes) = proto::encode(&object, &schema) else {
        return;
    };
    measure("json decode, schema", text.len(), || {
        let _ = black_box(json::decode(&text, Some(&schema), Strictness::Lenient));
    });
    measure("json decode, strict", text.len(), || {
        let _ = black_box(json::decode(&text, Some(&schema), Strictness::Report));
    });
    measure("json decode, no schema", text.len(), || {
        let _ = black_box(json::decode(&text, None, Strictness::Lenient));
    });
    measure("serde_json::Value", text.len(), || {
        let _ = black_box(serde_json::from_slice::<serde_json::Value>(&text));
    });
    measure("json encode", text.len(), || {
        black_box(json::encode(&value));
    });
    measure("proto decode", bytes.len(), || {
        let _ = black_box(proto::open(&bytes).and_then(|e| e.decode(&schema)));
    });
    measure("proto encode", bytes.len(), || {
        let _ = black_box(proto::encode(&object, &schema));
    });
}
