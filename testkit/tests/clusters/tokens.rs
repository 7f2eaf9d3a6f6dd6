//! Tokens by which machines join: what they sign, and their end.

use keelson_testkit::objects::{ConfigMap, Secret};
use keelson_testkit::{Cluster, secs};

const TOKEN: &str = r#"
apiVersion: v1
kind: Secret
metadata: {name: bootstrap-token-abcdef, namespace: kube-system}
type: bootstrap.kubernetes.io/token
stringData: {token-id: abcdef, token-secret: 0123456789abcdef, usage-bootstrap-signing: "true", expiration: "2030-01-01T02:00:00Z"}
"#;

#[tokio::test(start_paused = true)]
async fn a_token_signs_what_joining_machines_read_until_it_ends() {
    let cluster = Cluster::builder().start().await;
    cluster.apply(TOKEN).await;
    let signature = |m: &ConfigMap| m.data.as_ref()?.get("jws-kubeconfig-abcdef").cloned();
    let signed: ConfigMap = cluster
        .until("kube-public", "cluster-info", secs(10), "is signed", |m| {
            signature(m).is_some()
        })
        .await;
    let content = &signed.data.as_ref().expect("data")["kubeconfig"];
    let token: keelson_pki::BootstrapToken = "abcdef.0123456789abcdef".parse().expect("a token");
    assert_eq!(signature(&signed), token.sign_detached(content).ok());
    // What others put there in its place doesn't last.
    let forged = serde_json::json!({"data": {"jws-kubeconfig-abcdef": "forged", "jws-kubeconfig-ffffff": "forged"}});
    cluster.patch::<ConfigMap>("kube-public", "cluster-info", forged).await;
    cluster
        .until(
            "kube-public",
            "cluster-info",
            secs(10),
            "is right again",
            |m: &ConfigMap| m.data == signed.data,
        )
        .await;
    cluster.sleep(secs(3600)).await;
    cluster.get::<Secret>("kube-system", "bootstrap-token-abcdef").await;
    cluster
        .gone::<Secret>("kube-system", "bootstrap-token-abcdef", secs(3700))
        .await;
    let now = keelson_clock::now().to_string();
    assert!(now.starts_with("2030-01-01T02:00:0"), "gone at {now}");
    cluster
        .until(
            "kube-public",
            "cluster-info",
            secs(10),
            "is signed no more",
            |m: &ConfigMap| signature(m).is_none(),
        )
        .await;
}
