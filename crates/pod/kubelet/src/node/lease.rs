//! The node's lease in `kube-node-lease`: renewed every quarter of its duration, so that silence is noticed.

use crate::kubelet::Kubelet;
use k8s_openapi::api::coordination::v1::Lease;
use keelson_client::{Kind, ResourceId, is_already_exists, is_conflict, is_not_found};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

static LEASES: ResourceId = Lease::RESOURCE;
const NAMESPACE: &str = "kube-node-lease";

pub async fn run(kl: Arc<Kubelet>) {
    let period = kl.cfg.lease_duration / 4;
    let mut held: Option<Value> = None;
    let mut delay = Duration::from_millis(200);
    loop {
        // What a renewal takes isn't kept between two: there may be thousands of kubelets in one process.
        let wait = match Box::pin(renew(&kl, held.take())).await {
            Ok(lease) => {
                held = Some(lease);
                delay = Duration::from_millis(200);
                period
            }
            Err(e) => {
                tracing::warn!("the node's lease can't be renewed: {}", crate::error_text(&e));
                delay = (delay * 2).min(Duration::from_secs(7));
                delay
            }
        };
        tokio::select! {
            () = kl.stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Writes the lease anew, from the one written last if it is known.
async fn renew(kl: &Kubelet, held: Option<Value>) -> Result<Value, keelson_client::Error> {
    let name = kl.cfg.node_name.as_str();
    let read = || {
        kl.unpaced
            .get_raw(&LEASES, NAMESPACE, name, "", keelson_client::rest::JSON)
    };
    let decode = |b: &[u8]| serde_json::from_slice::<Value>(b).map_err(keelson_client::Error::SerdeError);
    let mut lease = match held {
        Some(lease) => lease,
        None => match read().await {
            Ok(bytes) => decode(&bytes)?,
            Err(e) if is_not_found(&e) => {
                let body = fill(kl, json!({"metadata": {"name": name, "namespace": NAMESPACE}}));
                return match kl
                    .unpaced
                    .create_raw(&LEASES, NAMESPACE, body.to_string().into_bytes())
                    .await
                {
                    Err(e) if is_already_exists(&e) => decode(&read().await?),
                    other => decode(&other?),
                };
            }
            Err(e) => return Err(e),
        },
    };
    for last in [false, true] {
        let body = fill(kl, lease).to_string().into_bytes();
        match kl.unpaced.update_raw(&LEASES, NAMESPACE, name, "", body).await {
            Ok(bytes) => return decode(&bytes),
            Err(e) if is_conflict(&e) && !last => lease = decode(&read().await?)?,
            Err(e) => return Err(e),
        }
    }
    unreachable!("the second attempt returns")
}

fn fill(kl: &Kubelet, mut lease: Value) -> Value {
    let owner = kl.node.uid();
    let has_owner = lease["metadata"]["ownerReferences"]
        .as_array()
        .is_some_and(|o| !o.is_empty());
    if !has_owner && !owner.is_empty() {
        lease["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": kl.cfg.node_name, "uid": owner}]);
    }
    let now = kl.host.now();
    lease["apiVersion"] = "coordination.k8s.io/v1".into();
    lease["kind"] = "Lease".into();
    lease["spec"]["holderIdentity"] = kl.cfg.node_name.clone().into();
    lease["spec"]["leaseDurationSeconds"] = kl.cfg.lease_duration.as_secs().into();
    lease["spec"]["renewTime"] = format!(
        "{}.{:06}Z",
        now.strftime("%Y-%m-%dT%H:%M:%S"),
        now.subsec_nanosecond() / 1000
    )
    .into();
    lease
}
