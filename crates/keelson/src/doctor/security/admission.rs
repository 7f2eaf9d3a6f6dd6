//! Plug-ins of admission, by requests that each of them has to refuse. All are dry runs: nothing comes of them.

use super::{Point, Seen, World, wrong};
use http::Method;
use serde_json::{Value, json};

pub async fn points(world: &World) -> Vec<Point> {
    let pod = |name: &str, account: &str| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"serviceAccountName": account, "containers": [{"name": "c", "image": "i"}]}})
    };
    let node = ["system:node:keelson-doctor", "system:nodes", "system:authenticated"];
    let labelled = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "keelson-doctor",
        "labels": {"pod-security.kubernetes.io/enforce": "not-a-level"}}});
    let own_node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "keelson-doctor",
        "labels": {"node-restriction.kubernetes.io/doctor": "x"}}});
    vec![
        Point::of(
            "P1",
            "NodeRestriction holds nodes to their own pods",
            refusal(
                world,
                "/api/v1/namespaces/default/pods",
                &node,
                &pod("keelson-doctor", ""),
                403,
                "can only create mirror pods",
            )
            .await,
            "Start without NodeRestriction in --disable-admission-plugins",
        ),
        Point::of(
            "P2",
            "NodeRestriction keeps labels from nodes",
            refusal(
                world,
                "/api/v1/nodes",
                &node,
                &own_node,
                403,
                "is not allowed to set the following labels",
            )
            .await,
            "Start without NodeRestriction in --disable-admission-plugins",
        ),
        Point::of(
            "P3",
            "PodSecurity judges",
            refusal(
                world,
                "/api/v1/namespaces",
                &[],
                &labelled,
                422,
                "must be one of privileged, baseline, restricted",
            )
            .await,
            "Start without PodSecurity in --disable-admission-plugins",
        ),
        Point::of(
            "P4",
            "ServiceAccount judges",
            refusal(
                world,
                "/api/v1/namespaces/default/pods",
                &[],
                &pod("keelson-doctor", "keelson-doctor-is-nobody"),
                403,
                "error looking up service account",
            )
            .await,
            "Start without ServiceAccount in --disable-admission-plugins",
        ),
    ]
}

async fn refusal(
    world: &World,
    path: &str,
    as_whom: &[&str],
    body: &Value,
    code: u16,
    why: &str,
) -> Result<String, Seen> {
    let path = format!("{path}?dryRun=All");
    let (found, text) = world.ask(Method::POST, &path, as_whom, Some(body)).await?;
    let message: Value = serde_json::from_str(&text).unwrap_or_default();
    let message = message["message"].as_str().unwrap_or_default();
    match found == code && message.contains(why) {
        true => Ok(format!("{found}: … {why}")),
        false => Err(wrong(format!("{found}: {message}"))),
    }
}
