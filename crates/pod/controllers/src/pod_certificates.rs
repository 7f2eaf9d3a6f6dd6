//! Deletes pods' certificate requests after a while: whoever asked has had the answer by then, or gave up.

use crate::context::{Context, now};
use crate::wire;
use async_trait::async_trait;
use jiff::SignedDuration;
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, delete_options, is_conflict,
    is_not_found,
};

const KEPT: SignedDuration = SignedDuration::from_mins(15);

pub fn start(context: &Context) {
    let requests = context.informer::<PodCertificateRequest>();
    let controller = Controller::new("podcertificaterequest-cleaner")
        .input(&requests)
        .output(PodCertificateRequest::RESOURCE)
        .workers(1);
    wire::own(&requests, &controller.queue());
    let objects = Objects::new(&context.rest("podcertificaterequestcleaner"));
    context.run(controller, Cleaner { requests, objects });
}

struct Cleaner {
    requests: Informer<PodCertificateRequest>,
    objects: Objects<PodCertificateRequest>,
}

#[async_trait]
impl Reconcile for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(request) = self.requests.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let Some(created) = request.metadata.creation_timestamp.as_ref() else {
            return Ok(Outcome::Done);
        };
        let end = created.0.saturating_add(KEPT)?;
        if end > now() {
            return Ok(Outcome::At(end));
        }
        let options = delete_options(None, Some(request.uid()), None);
        match self.objects.delete(&key.namespace, &key.name, &options).await {
            Err(error) if !is_not_found(&error) && !is_conflict(&error) => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}
