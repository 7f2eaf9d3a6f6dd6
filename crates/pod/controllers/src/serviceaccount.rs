//! Keeps a service account `default` in every namespace that isn't being deleted.

use crate::context::Context;
use crate::wire;
use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, is_already_exists, is_not_found,
};

const NAME: &str = "default";

pub fn start(context: &Context) {
    let namespaces = context.informer::<Namespace>();
    let accounts = context.informer::<ServiceAccount>();
    let controller = Controller::new("serviceaccount")
        .input(&namespaces)
        .input(&accounts)
        .output(ServiceAccount::RESOURCE);
    let queue = controller.queue();
    wire::own(&namespaces, &queue);
    accounts.on_change(move |change| {
        if change.is_deleted() && change.object().name() == NAME {
            queue.add(ObjectKey::cluster(change.object().namespace()));
        }
    });
    let objects = Objects::new(&context.rest("service-account-controller"));
    context.run(
        controller,
        Accounts {
            namespaces,
            accounts,
            objects,
        },
    );
}

struct Accounts {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    objects: Objects<ServiceAccount>,
}

/// Whether a namespace (if it is known) should have what is given to every namespace.
pub fn is_served(namespace: Option<&Namespace>) -> bool {
    namespace
        .is_some_and(|n| !n.is_deleting() && n.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating"))
}

#[async_trait]
impl Reconcile for Accounts {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let namespace = self.namespaces.store().get_key(key);
        if !is_served(namespace.as_deref()) || self.accounts.store().get(&key.name, NAME).is_some() {
            return Ok(Outcome::Done);
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                namespace: Some(key.name.clone()),
                name: Some(NAME.into()),
                ..Default::default()
            },
            ..Default::default()
        };
        match self.objects.create(&account).await {
            Err(error) if is_already_exists(&error) || is_namespace_terminating(&error) || is_not_found(&error) => {
                Ok(Outcome::Done)
            }
            result => Ok(result.map(|_| Outcome::Done)?),
        }
    }
}
