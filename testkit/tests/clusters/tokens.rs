//! Tokens by which machines join: what they sign, and their end.

use keelson_testkit::objects::{ConfigMap, Secret, ServiceAccount};
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
    assert_eq!(signature(&signed), Some(token.sign_detached(content)));
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

const ACCOUNT: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: robot, namespace: default}
secrets: [{name: robot-token}, {name: other}]
";
const ACCOUNT_TOKEN: &str = "
apiVersion: v1
kind: Secret
metadata: {name: robot-token, namespace: default, annotations: {kubernetes.io/service-account.name: robot}}
type: kubernetes.io/service-account-token
";

#[tokio::test(start_paused = true)]
async fn a_secret_for_an_accounts_token_is_filled_and_goes_with_the_account() {
    let cluster = Cluster::builder().start().await;
    // For an account that isn't there nothing is kept.
    cluster.apply(ACCOUNT_TOKEN).await;
    cluster.gone::<Secret>("default", "robot-token", secs(10)).await;

    cluster.apply(ACCOUNT).await;
    cluster.apply(ACCOUNT_TOKEN).await;
    let has = |s: &Secret, key: &str| {
        s.data
            .as_ref()
            .is_some_and(|d| d.get(key).is_some_and(|v| !v.0.is_empty()))
    };
    let filled: Secret = cluster
        .until("default", "robot-token", secs(10), "is filled", |s| {
            ["token", "ca.crt", "namespace"].iter().all(|key| has(s, key))
        })
        .await;
    let annotations = filled.metadata.annotations.expect("annotations");
    let robot: ServiceAccount = cluster.get("default", "robot").await;
    assert_eq!(
        Some(&annotations["kubernetes.io/service-account.uid"]),
        robot.metadata.uid.as_ref()
    );

    // What somebody took out comes again.
    let without = serde_json::json!({"data": {"namespace": null}});
    cluster.patch::<Secret>("default", "robot-token", without).await;
    cluster
        .until("default", "robot-token", secs(10), "is whole again", |s: &Secret| {
            has(s, "namespace")
        })
        .await;

    // One that goes is taken off its account's list, others stay there.
    cluster.delete::<Secret>("default", "robot-token", None).await;
    let names = |a: &ServiceAccount| {
        let listed = a.secrets.iter().flatten();
        listed.filter_map(|s| s.name.clone()).collect::<Vec<_>>()
    };
    cluster
        .until(
            "default",
            "robot",
            secs(10),
            "lists it no more",
            |a: &ServiceAccount| names(a) == ["other"],
        )
        .await;

    cluster.apply(ACCOUNT_TOKEN).await;
    cluster
        .until("default", "robot-token", secs(10), "is filled", |s: &Secret| {
            has(s, "token")
        })
        .await;
    cluster.delete::<ServiceAccount>("default", "robot", None).await;
    cluster.gone::<Secret>("default", "robot-token", secs(10)).await;
}

/// Two years, in a few leaps.
#[tokio::test(start_paused = true)]
async fn a_token_that_nobody_uses_is_marked_after_a_year_and_deleted_after_another() {
    let cluster = Cluster::builder().start().await;
    cluster.apply(ACCOUNT).await;
    cluster.apply(ACCOUNT_TOKEN).await;
    cluster.apply(&ACCOUNT_TOKEN.replace("robot-token", "by-hand")).await;
    let marked = |s: &Secret| {
        let labels = s.metadata.labels.as_ref();
        labels
            .and_then(|l| l.get("kubernetes.io/legacy-token-invalid-since"))
            .cloned()
    };
    const DAY: u64 = 24 * 3600;
    cluster.sleep(secs(60)).await;
    tokio::time::advance(secs(365 * DAY)).await;
    cluster.sleep(secs(60)).await;
    let unmarked = cluster.get("default", "robot-token").await;
    assert_eq!(marked(&unmarked), None, "tracked for less than a year");
    tokio::time::advance(secs(2 * DAY)).await;
    let is_marked: Secret = cluster
        .until("default", "robot-token", secs(60), "is marked", |s: &Secret| {
            marked(s).is_some()
        })
        .await;
    assert_eq!(marked(&is_marked).as_deref(), Some("2031-01-03"));
    tokio::time::advance(secs(367 * DAY)).await;
    cluster.gone::<Secret>("default", "robot-token", secs(60)).await;
    assert_eq!(marked(&cluster.get("default", "by-hand").await), None);
}
