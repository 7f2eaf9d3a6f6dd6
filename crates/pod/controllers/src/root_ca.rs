//! Publishes the cluster's CA certificate as ConfigMap `kube-root-ca.crt` in every namespace, and restores it.

use crate::context::Context;
use crate::serviceaccount::is_served;
use crate::wire;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, Controller, Informer, InformerOptions, Kind, ObjectKey, Objects, Outcome, Reconcile, is_already_exists,
    is_not_found,
};
use std::collections::BTreeMap;

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";
const ABOUT: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or \
     kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

pub fn start(context: &Context) {
    if context.config.root_ca_pem.is_empty() {
        tracing::info!("no cluster CA certificate is configured: kube-root-ca.crt isn't published");
        return;
    }
    let namespaces = context.informer::<Namespace>();
    let options = InformerOptions {
        fields: format!("metadata.name={NAME}"),
        ..Default::default()
    };
    let maps = Informer::<ConfigMap>::start(&context.reader(), options, &context.stop);
    let controller = Controller::new("root-ca")
        .input(&namespaces)
        .input(&maps)
        .output(ConfigMap::RESOURCE);
    let queue = controller.queue();
    wire::own(&namespaces, &queue);
    maps.on_change(move |change| {
        if change.object().name() == NAME {
            queue.add(ObjectKey::cluster(change.object().namespace()));
        }
    });
    let objects = Objects::new(&context.rest("root-ca-cert-publisher"));
    let pem = context.config.root_ca_pem.clone();
    context.run(
        controller,
        Publisher {
            namespaces,
            maps,
            objects,
            pem,
        },
    );
}

struct Publisher {
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    objects: Objects<ConfigMap>,
    pem: String,
}

impl Publisher {
    fn wanted(&self, namespace: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_string()),
                name: Some(NAME.into()),
                annotations: Some([(ABOUT.0.to_string(), ABOUT.1.to_string())].into()),
                ..Default::default()
            },
            data: Some(self.data()),
            ..Default::default()
        }
    }
    fn data(&self) -> BTreeMap<String, String> {
        [(KEY.to_string(), self.pem.clone())].into()
    }
}

#[async_trait]
impl Reconcile for Publisher {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let namespace = self.namespaces.store().get_key(key);
        if !is_served(namespace.as_deref()) {
            return Ok(Outcome::Done);
        }
        let result = match self.maps.store().get(&key.name, NAME) {
            None => self.objects.create(&self.wanted(&key.name)).await,
            Some(map) => {
                let data = self.data();
                let about = map.metadata.annotations.as_ref().and_then(|a| a.get(ABOUT.0));
                if map.data.as_ref() == Some(&data) && about.is_some_and(|a| a == ABOUT.1) {
                    return Ok(Outcome::Done);
                }
                let mut map = (*map).clone();
                map.data = Some(data);
                map.metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(ABOUT.0.into(), ABOUT.1.into());
                self.objects.update(&map).await
            }
        };
        match result {
            Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) || is_not_found(&error) => {
                Ok(Outcome::Done)
            }
            result => Ok(result.map(|_| Outcome::Done)?),
        }
    }
}
