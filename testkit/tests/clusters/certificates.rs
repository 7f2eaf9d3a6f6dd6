//! Who gets a certificate gets it in the name that was approved.

use keelson_pki::x509::{Certificate, pem};
use keelson_testkit::objects::CertificateSigningRequest;
use keelson_testkit::{Cluster, secs};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Requests of every form, with upstream's verdicts on them (`tools/x509`).
const TABLE: &str = include_str!("../../../crates/base/pki/testdata/requests.json");

/// Whoever joins may ask for a node's certificate, and gets it without anybody's consent.
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: join}
rules:
- {apiGroups: [certificates.k8s.io], resources: [certificatesigningrequests, certificatesigningrequests/nodeclient], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: join}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: join}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: joiner}]
"#;

#[tokio::test(start_paused = true)]
async fn nobody_becomes_somebody_else_by_a_request() {
    let controllers = ["certificate-approver", "certificate-signer"];
    let cluster = Cluster::builder().controllers(&controllers).start().await;
    cluster.apply(RIGHTS).await;
    let table: Vec<Value> = serde_json::from_str(TABLE).expect("the table");
    let joiner = cluster.rest_as("joiner");
    let mut wanted = BTreeMap::new();
    for (at, case) in table.iter().enumerate().filter(|(_, case)| case["Created"] == "") {
        let (name, pem) = (format!("r{at}"), case["PEM"].as_str().unwrap_or_default());
        let request = k8s_openapi::ByteString(pem.as_bytes().to_vec());
        let body = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"request": request, "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
                "usages": ["digital signature", "client auth"]},
        });
        let uri = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        cluster
            .eventually("the request is taken", secs(30), async || {
                let sent = joiner.call(
                    http::Method::POST,
                    uri,
                    keelson_client::rest::JSON,
                    body.to_string().into(),
                );
                sent.await.map(|_| ()).map_err(|e| e.to_string())
            })
            .await;
        wanted.insert(name, case);
    }
    cluster.sleep(secs(60)).await;
    let mut granted = 0;
    for request in cluster.list::<CertificateSigningRequest>("").await {
        let case = wanted[request.metadata.name.as_deref().unwrap_or_default()];
        let status = request.status.unwrap_or_default();
        let certificate = status.certificate.map(|c| c.0).unwrap_or_default();
        let is_node = case["KubeletClient"] == "";
        assert_eq!(!certificate.is_empty(), is_node, "{}", case["Name"]);
        let Some(der) = pem::certificates(&certificate).next() else {
            continue;
        };
        granted += 1;
        let subject = Certificate::from_der(&der).expect("a certificate").subject;
        assert_eq!(subject.common_name, case["Subject"]["CommonName"], "{}", case["Name"]);
        assert_eq!(subject.organization, ["system:nodes"], "{}", case["Name"]);
        let names = subject
            .attributes
            .iter()
            .filter(|(_, text)| text.starts_with("system:"));
        assert_eq!(
            names.count(),
            2 + subject.organizational_unit.len(),
            "one name and one group"
        );
    }
    assert!(granted >= 8, "{granted}");
}
