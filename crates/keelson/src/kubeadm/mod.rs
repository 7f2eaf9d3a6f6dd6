//! What `kubeadm join` reads of a cluster, so that a machine with upstream's kubelet becomes a node of it: two ConfigMaps, and who may
//! read them. Nothing of ours reads any of it.
//!
//! * Rights are a group's that only tokens made for it have (`keelson token create --kubeadm`, `kubeadm token create`), and nodes'. What every
//!   bootstrap token may do (`bootstrap/cluster.rs` of the API server) stands under our own names and isn't given a second time under kubeadm's.
//! * The maps are brought up to date as long as they are as a server wrote them: an annotation has the hash of their data, kubeadm's own
//!   mark of a configuration that nobody changed.

use crate::addons::{Grant, Scope, group, nodes};
use crate::cluster::Cluster;
use crate::config::KUBERNETES_VERSION;
use anyhow::Context;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::objects::Objects;
use keelson_client::rest::Rest;
use keelson_pki::x509;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Whose tokens are made for kubeadm.
pub const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

const NAMESPACE: &str = "kube-system";
/// The hash of the data as it was written.
const HASH: &str = "kubeadm.kubernetes.io/component-config.hash";
/// What kubeadm calls the cluster in the files that it writes.
const CLUSTER: &str = "keelson";

/// What is this way in every cluster that kubeadm makes, too; the control plane isn't kubeadm's, nor are its add-ons.
fn cluster_configuration(cluster: &Cluster) -> Value {
    json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "clusterName": CLUSTER,
        "kubernetesVersion": format!("v{KUBERNETES_VERSION}"),
        "certificatesDir": "/etc/kubernetes/pki",
        "imageRepository": "registry.k8s.io",
        "networking": {
            "dnsDomain": cluster.cluster_domain,
            "podSubnet": cluster.cluster_cidr,
            "serviceSubnet": cluster.service_cidr,
        },
        "dns": {"disabled": true},
        "proxy": {"disabled": true},
    })
}

/// As kubeadm has it, but that the kubelet asks for its serving certificate: the API server takes none that the cluster didn't issue.
fn kubelet_configuration(cluster: &Cluster) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/pki/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "systemd",
        "clusterDNS": crate::cluster::parts(&cluster.cluster_dns),
        "clusterDomain": cluster.cluster_domain,
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248,
        "rotateCertificates": true,
        "serverTLSBootstrap": true,
        "staticPodPath": "/etc/kubernetes/manifests",
    })
}

/// The hash of a map's data as kubeadm counts it: its values, in the order of their keys.
fn hash(data: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    data.values().for_each(|value| hash.update(value));
    format!("sha256:{}", hex::encode(hash.finalize()))
}

fn map(name: &str, key: &str, content: &Value) -> anyhow::Result<ConfigMap> {
    let data = BTreeMap::from([(key.to_string(), serde_saphyr::to_string(content)?)]);
    Ok(ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            namespace: Some(NAMESPACE.into()),
            annotations: Some(BTreeMap::from([(HASH.to_string(), hash(&data))])),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..ConfigMap::default()
    })
}

fn maps(cluster: &Cluster) -> anyhow::Result<[ConfigMap; 2]> {
    Ok([
        map(
            "kubeadm-config",
            "ClusterConfiguration",
            &cluster_configuration(cluster),
        )?,
        map("kubelet-config", "kubelet", &kubelet_configuration(cluster))?,
    ])
}

/// Brings a map up to `wanted`; false if it is so already, or somebody has changed it or wants it to stay.
fn renew(live: &mut ConfigMap, wanted: &ConfigMap) -> bool {
    let noted = live.metadata.annotations.as_ref().and_then(|all| all.get(HASH));
    let untouched = noted.is_some() && noted == live.data.as_ref().map(hash).as_ref();
    if !untouched || live.immutable == Some(true) || live.data == wanted.data {
        return false;
    }
    live.data = wanted.data.clone();
    let annotations = live.metadata.annotations.get_or_insert_default();
    annotations.extend(wanted.metadata.annotations.clone().unwrap_or_default());
    true
}

pub fn grants() -> Vec<Grant> {
    let reads =
        |map: &str| json!([{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [map], "verbs": ["get"]}]);
    let both = || vec![group(GROUP), nodes()];
    // It looks whether the name is another node's.
    let nodes = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]);
    let grant = |name, scope, to, rules| Grant { name, scope, to, rules };
    vec![
        grant(
            "kubeadm:nodes-kubeadm-config",
            Scope::In(NAMESPACE),
            both(),
            reads("kubeadm-config"),
        ),
        grant(
            "kubeadm:kubelet-config",
            Scope::In(NAMESPACE),
            both(),
            reads("kubelet-config"),
        ),
        grant("kubeadm:get-nodes", Scope::Cluster, vec![group(GROUP)], nodes),
    ]
}

/// By what kubeadm knows the authority: hex SHA-256 of its public key.
pub fn pin(ca_pem: &str) -> anyhow::Result<String> {
    let der = x509::pem::certificates(ca_pem.as_bytes()).next();
    let der = der.context("the kubeconfig names no certificate authority")?;
    let key = x509::certificate::Certificate::from_der(&der)?.key;
    let key = key.and_then(|key| key.to_der());
    let key = key.context("the authority's key is of a kind that kubeadm doesn't know")?;
    Ok(hex::encode(Sha256::digest(key)))
}

/// Writes the maps.
pub async fn apply(rest: &Rest, cluster: &Cluster) -> anyhow::Result<()> {
    let objects = Objects::<ConfigMap>::new(rest);
    for wanted in maps(cluster)? {
        objects.create_or_update(&wanted, |live| renew(live, &wanted)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Request, StatusCode};
    use keelson_apiserver::{ApiServer, Config, UserInfo};
    use keelson_pki::ServiceAccountKeys;
    use keelson_store::Memory;

    fn cluster(dns: &str) -> Cluster {
        Cluster {
            cluster_cidr: "10.1.0.0/16,fd00:1::/48".into(),
            service_cidr: "10.2.0.0/16,fd00:2::/112".into(),
            cluster_dns: dns.into(),
            cluster_domain: "example.local".into(),
            network: "vxlan".into(),
            disabled: String::new(),
        }
    }

    fn content(map: &ConfigMap) -> Value {
        let data = map.data.as_ref().unwrap();
        serde_saphyr::from_str(data.values().next().unwrap()).unwrap()
    }

    #[test]
    fn the_maps_say_what_the_cluster_is() {
        let [of_kubeadm, of_kubelets] = maps(&cluster("10.2.0.10,fd00:2::a")).unwrap();
        let networking = content(&of_kubeadm)["networking"].clone();
        assert_eq!(networking["podSubnet"], "10.1.0.0/16,fd00:1::/48");
        assert_eq!(networking["dnsDomain"], "example.local");
        let kubelet = content(&of_kubelets);
        assert_eq!(kubelet["clusterDNS"], json!(["10.2.0.10", "fd00:2::a"]));
        assert_eq!(kubelet["authentication"]["anonymous"]["enabled"], false);
    }

    /// An authority that openssl made, and what `openssl pkey -pubin -outform der | sha256sum` makes of its key.
    #[test]
    fn an_authority_is_pinned_as_kubeadm_pins_it() {
        let pem = include_str!("pinned.pem");
        assert_eq!(
            pin(pem).unwrap(),
            "bc94a8090f6fc522b5b13616bce015616b1aa32657b762d32e5653dbffd4dbba"
        );
        assert!(pin("nothing").is_err());
    }

    #[test]
    fn a_map_that_somebody_changed_stays() {
        let [_, old] = maps(&cluster("10.2.0.10")).unwrap();
        let [_, new] = maps(&cluster("10.2.0.53")).unwrap();
        let mut live = old.clone();
        assert!(!renew(&mut live, &old));
        live.immutable = Some(true);
        assert!(
            !renew(&mut live, &new),
            "a server that couldn't write it wouldn't start"
        );
        live.immutable = None;
        assert!(renew(&mut live, &new) && live == new);
        let changed = |live: &mut ConfigMap| {
            let text = live.data.as_mut().unwrap().get_mut("kubelet").unwrap();
            text.push_str("maxPods: 50\n");
        };
        changed(&mut live);
        let theirs = live.clone();
        assert!(!renew(&mut live, &old) && live == theirs);
        live.metadata.annotations = None;
        assert!(!renew(&mut live, &old));
    }

    #[test]
    fn the_hash_is_of_all_values_in_order() {
        let data = BTreeMap::from([("b".to_string(), "2".to_string()), ("a".to_string(), "1".to_string())]);
        let twelve = "sha256:6b51d431df5d7f141cbececcf79edf3dd861c3b4069f0b11661a3eefacbba918";
        assert_eq!(hash(&data), twelve);
    }

    #[tokio::test]
    async fn a_token_made_for_kubeadm_reads_what_kubeadm_reads_and_nothing_else() {
        let keys = ServiceAccountKeys::generate().unwrap();
        let api = ApiServer::new(Config::new(keys), Memory::new()).unwrap();
        api.ready().await;
        let rest = Rest::new(api.client(UserInfo::from_identity("system:apiserver")), "test");
        apply(&rest, &cluster("10.2.0.10")).await.unwrap();
        for grant in grants() {
            crate::addons::give(&rest, grant).await.unwrap();
        }
        let token = |more: &[&str]| UserInfo {
            name: "system:bootstrap:abcdef".into(),
            groups: ["system:bootstrappers", "system:authenticated"]
                .iter()
                .chain(more)
                .map(|group| (*group).into())
                .collect(),
            ..UserInfo::default()
        };
        let code = async |user: UserInfo, method: Method, path: &str| {
            let request = Request::builder().method(method).uri(path).body(Vec::new()).unwrap();
            match api.client(user).request_text(request).await {
                Ok(_) => StatusCode::OK.as_u16(),
                Err(keelson_client::Error::Api(status)) => status.code,
                Err(other) => panic!("{path}: {other}"),
            }
        };
        let maps = "/api/v1/namespaces/kube-system/configmaps";
        let node = UserInfo::from_identity("system:node:n");
        for (of_kubeadm, of_any, of_node, path) in [
            (200, 403, 200, format!("{maps}/kubeadm-config")),
            (200, 403, 200, format!("{maps}/kubelet-config")),
            (404, 403, 403, "/api/v1/nodes/another".to_string()),
            (403, 403, 403, format!("{maps}/extension-apiserver-authentication")),
            (403, 403, 403, maps.to_string()),
            (403, 403, 403, "/api/v1/nodes".to_string()),
            (403, 403, 403, "/api/v1/namespaces/kube-system/secrets".to_string()),
        ] {
            assert_eq!(code(token(&[GROUP]), Method::GET, &path).await, of_kubeadm, "{path}");
            assert_eq!(code(token(&[]), Method::GET, &path).await, of_any, "{path}");
            assert_eq!(code(node.clone(), Method::GET, &path).await, of_node, "{path}");
        }
        // Before it knows the authority it shows no token.
        let info = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
        let nobody = UserInfo {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..UserInfo::default()
        };
        assert_eq!(code(nobody, Method::GET, info).await, 200);
        let path = format!("{maps}/kubelet-config");
        assert_eq!(code(token(&[GROUP]), Method::DELETE, &path).await, 403);
    }
}
