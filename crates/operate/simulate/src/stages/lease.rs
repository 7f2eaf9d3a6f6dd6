//! Leases of nodes without kubelets: each is renewed every quarter of its time, from a task of its own.

use k8s_openapi::api::coordination::v1::Lease;
use keelson_client::{Kind, Objects, Patch, Rest, is_not_found};
use serde_json::{Value, json};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "kube-node-lease";

pub async fn keep(rest: Rest, node: String, uid: String, lasts: Duration, stop: CancellationToken) {
    let mut failed = false;
    loop {
        match renew(&rest, &node, &uid, lasts).await {
            Ok(()) => failed = false,
            // Told once for each time that it begins to fail.
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(node, %error, "a node's lease can't be renewed");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(lasts / 4) => {}
        }
    }
}

async fn renew(rest: &Rest, node: &str, uid: &str, lasts: Duration) -> keelson_client::Result<()> {
    let now = keelson_clock::now();
    let spec = json!({
        "holderIdentity": node,
        "leaseDurationSeconds": lasts.as_secs(),
        "renewTime": format!("{}.{:06}Z", now.strftime("%Y-%m-%dT%H:%M:%S"), now.subsec_nanosecond() / 1000),
    });
    let body = json!({"spec": spec});
    match Objects::<Lease>::new(rest)
        .patch(NAMESPACE, node, Patch::Merge(&body))
        .await
    {
        Err(error) if is_not_found(&error) => {
            let owner = json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid});
            let lease: Value = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": node, "namespace": NAMESPACE, "ownerReferences": [owner]},
                "spec": spec,
            });
            let body = lease.to_string().into_bytes();
            rest.create_raw(&Lease::RESOURCE, NAMESPACE, body).await.map(drop)
        }
        other => other.map(drop),
    }
}
