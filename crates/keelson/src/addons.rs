//! Objects that this program brings along: what its own components may do.

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use serde_json::json;

/// Who cluster DNS is.
pub const DNS_IDENTITY: &str = "system:serviceaccount:kube-system:keelson-dns";
const DNS_ROLE: &str = "system:keelson:dns";

/// Writes them; existing ones are brought back to what is needed.
pub async fn apply(client: kube::Client) -> anyhow::Result<()> {
    let rest = Rest::new(client, "keelson");
    let role: ClusterRole = serde_json::from_value(json!({
        "metadata": {"name": DNS_ROLE},
        "rules": [
            {"apiGroups": [""], "resources": ["services"], "verbs": ["get", "list", "watch", "create"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"],
             "verbs": ["get", "list", "watch", "create", "update"]},
        ],
    }))?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": DNS_ROLE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": DNS_ROLE},
        "subjects": [{"kind": "ServiceAccount", "namespace": "kube-system", "name": "keelson-dns"}],
    }))?;
    let roles: Objects<ClusterRole> = Objects::new(&rest);
    roles
        .create_or_update(&role, |live| {
            let same = live.rules == role.rules;
            live.rules = role.rules.clone();
            !same
        })
        .await?;
    let bindings: Objects<ClusterRoleBinding> = Objects::new(&rest);
    bindings
        .create_or_update(&binding, |live| {
            let same = live.subjects == binding.subjects;
            live.subjects = binding.subjects.clone();
            !same
        })
        .await?;
    Ok(())
}
