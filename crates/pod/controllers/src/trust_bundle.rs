//! Publishes the API server's authority as a ClusterTrustBundle of the signer `kubernetes.io/kube-apiserver-serving`, for
//! pods that mount it. Its name follows from its content; bundles of former authorities are deleted.

use crate::context::Context;
use async_trait::async_trait;
use k8s_openapi::api::certificates::v1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::rest::is_invalid;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, delete_options, is_already_exists,
    is_not_found,
};
use sha2::{Digest, Sha256};

const SIGNER: &str = "kubernetes.io/kube-apiserver-serving";

fn name_of(bundle: &str) -> String {
    let hash = Sha256::digest(bundle.as_bytes());
    format!("{}:{}", SIGNER.replace('/', ":"), hex::encode(&hash[..12]))
}

fn is_ours(bundle: &ClusterTrustBundle) -> bool {
    bundle.spec.signer_name.as_deref() == Some(SIGNER)
}

pub fn start(context: &Context) {
    let pem = context.config.root_ca_pem.clone();
    if pem.is_empty() {
        tracing::info!("no cluster CA certificate is configured: no trust bundle is published");
        return;
    }
    let bundles = context.informer::<ClusterTrustBundle>();
    let controller = Controller::new("clustertrustbundle-publisher")
        .input(&bundles)
        .output(ClusterTrustBundle::RESOURCE)
        .workers(1);
    let queue = controller.queue();
    // All there is to do is one piece of work: its key is the wanted bundle's.
    let key = ObjectKey::cluster(name_of(&pem));
    queue.add(key.clone());
    bundles.on_change(move |change| {
        if is_ours(change.object()) {
            queue.add(key.clone());
        }
    });
    let objects = Objects::new(&context.rest("kube-apiserver-serving-clustertrustbundle-publisher"));
    context.run(controller, Publisher { bundles, objects, pem });
}

struct Publisher {
    bundles: Informer<ClusterTrustBundle>,
    objects: Objects<ClusterTrustBundle>,
    pem: String,
}

#[async_trait]
impl Reconcile for Publisher {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let result = match self.bundles.store().get_key(key) {
            Some(found) if found.spec.trust_bundle == self.pem => Ok(()),
            Some(found) => {
                let mut bundle = (*found).clone();
                bundle.spec.trust_bundle = self.pem.clone();
                self.objects.update(&bundle).await.map(drop)
            }
            None => {
                let bundle = ClusterTrustBundle {
                    metadata: ObjectMeta {
                        name: Some(key.name.clone()),
                        ..Default::default()
                    },
                    spec: ClusterTrustBundleSpec {
                        signer_name: Some(SIGNER.into()),
                        trust_bundle: self.pem.clone(),
                    },
                };
                self.objects.create(&bundle).await.map(drop)
            }
        };
        match result {
            // The configuration is what is wrong; trying again changes nothing.
            Err(error) if is_invalid(&error) => {
                tracing::error!(%error, "the cluster's CA certificate can't be published as a trust bundle");
                return Ok(Outcome::Done);
            }
            Err(error) if !is_already_exists(&error) => return Err(error.into()),
            _ => {}
        }
        for old in self.bundles.store().list() {
            if is_ours(&old) && old.name() != key.name {
                let options = delete_options(None, Some(old.uid()), None);
                match self.objects.delete("", old.name(), &options).await {
                    Err(error) if !is_not_found(&error) => return Err(error.into()),
                    _ => {}
                }
            }
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_content() {
        // printf abc | sha256sum
        assert_eq!(
            name_of("abc"),
            "kubernetes.io:kube-apiserver-serving:ba7816bf8f01cfea414140de"
        );
    }
}
