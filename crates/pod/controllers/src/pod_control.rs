//! Creates and deletes an owner's pods, tells events of it, and notes what the cache has yet to show.

use crate::claim::Owner;
use futures::future::join_all;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use keelson_client::events::EventType::{Normal, Warning};
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, Error, Expectations, ObjectKey, Objects, Recorder, Rest, delete_options, is_not_found,
};
use std::sync::Arc;

/// No more pods than this are created or deleted at a time.
pub const BURST: usize = 500;

pub struct PodControl {
    pub pods: Objects<Pod>,
    pub recorder: Recorder,
    /// What was written for each owner.
    pub written: Expectations,
}

impl PodControl {
    pub fn new(rest: &Rest, recorder: Recorder) -> Self {
        PodControl {
            pods: Objects::new(rest),
            recorder,
            written: Expectations::default(),
        }
    }

    pub fn reference(owner: &Owner) -> ObjectReference {
        ObjectReference {
            api_version: Some(owner.resource.api_version()),
            kind: Some(owner.resource.kind.to_string()),
            namespace: Some(owner.namespace.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            ..Default::default()
        }
    }

    fn key(owner: &Owner) -> ObjectKey {
        ObjectKey::new(owner.namespace.clone(), owner.name.clone())
    }

    /// Creates one pod. A namespace that is being deleted takes no more pods: that isn't worth an event.
    pub async fn create(&self, owner: &Owner, pod: &Pod) -> Result<Pod, Error> {
        match self.pods.create(pod).await {
            Ok(created) => {
                self.written.wrote(&Self::key(owner), created.meta());
                let text = format!("Created pod: {}", created.name());
                self.recorder
                    .event_for(&Self::reference(owner), Normal, "SuccessfulCreate", text);
                Ok(created)
            }
            Err(error) => {
                if !is_namespace_terminating(&error) {
                    let text = format!("Error creating: {}", message(&error));
                    self.recorder
                        .event_for(&Self::reference(owner), Warning, "FailedCreate", text);
                }
                Err(error)
            }
        }
    }

    /// Creates pods one at a time at first, then ever more at once, and stops at the first batch in which one fails: what
    /// is refused once is likely refused again. Returns how many were created.
    pub async fn create_many(&self, owner: &Owner, pods: &[Pod]) -> (usize, Result<(), Error>) {
        let mut done = 0;
        let mut batch = 1;
        while done < pods.len() {
            let end = (done + batch).min(pods.len());
            let results = join_all(pods[done..end].iter().map(|pod| self.create(owner, pod))).await;
            let mut failure = None;
            let mut made = 0;
            for result in results {
                match result {
                    Ok(_) => made += 1,
                    Err(error) if is_namespace_terminating(&error) => {}
                    Err(error) => failure = failure.or(Some(error)),
                }
            }
            if let Some(error) = failure {
                return (done + made, Err(error));
            }
            done = end;
            batch *= 2;
        }
        (done, Ok(()))
    }

    pub async fn delete(&self, owner: &Owner, pod: &Pod) -> Result<(), Error> {
        let options = delete_options(None, Some(pod.uid()), None);
        match self.pods.delete(pod.namespace(), pod.name(), &options).await {
            Ok(()) => {
                self.written.deleted(&Self::key(owner), pod.meta());
                let text = format!("Deleted pod: {}", pod.name());
                self.recorder
                    .event_for(&Self::reference(owner), Normal, "SuccessfulDelete", text);
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => {
                let text = format!("Error deleting: {}", message(&error));
                self.recorder
                    .event_for(&Self::reference(owner), Warning, "FailedDelete", text);
                Err(error)
            }
        }
    }

    pub async fn delete_many(&self, owner: &Owner, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let results = join_all(pods.iter().map(|pod| self.delete(owner, pod))).await;
        results.into_iter().find(Result::is_err).unwrap_or(Ok(()))
    }
}

/// The server's own words, where it had any.
pub fn message(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
