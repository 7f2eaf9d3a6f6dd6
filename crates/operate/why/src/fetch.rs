//! Getting what a picture needs, by the API: in a few rounds, each all at once. Lists come from the server's cache; of secrets and
//! ConfigMaps only the metadata is asked for.

use crate::kinds::KINDS;
use crate::object::Fields;
use crate::picture::{Need, Picture};
use crate::{Asked, Question, Report, diagnose, needs};
use futures::future::join_all;
use http::Method;
use k8s_openapi::jiff::Timestamp;
use keelson_client::rest::with_query;
use keelson_client::{Error, ResourceId, Rest, is_not_found};
use serde_json::{Value, json};

/// An object, what its pods are, what those need, what that needs.
const ROUNDS: usize = 5;
/// Lines of a log.
const TAIL: &str = "20";
const JSON: &str = "application/json";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Asks the cluster. What can't be read is told in the report, and not judged; `Err` only if the object itself can't be.
pub async fn answer(rest: &Rest, question: &Question, now: Timestamp) -> Result<Report, Error> {
    let mut picture = Picture::new(now);
    let mut unread = Vec::new();
    if let Question::Denied(asked) = question {
        review(rest, asked, &mut picture).await?;
    }
    for round in 0..ROUNDS {
        let wanted = needs(question, &picture);
        if wanted.is_empty() {
            break;
        }
        let got = join_all(wanted.iter().map(|need| get(rest, need))).await;
        for (need, got) in wanted.into_iter().zip(got) {
            match got {
                Ok(objects) => {
                    objects.into_iter().for_each(|o| picture.add(o));
                    picture.answered(need);
                }
                Err(error) if round == 0 && matches!(question, Question::Object { .. }) => return Err(error),
                Err(error) => {
                    let text = format!("{}: {error}", shown(&need));
                    if !unread.contains(&text) {
                        unread.push(text);
                    }
                }
            }
        }
        for (namespace, pod, container, text) in logs(&mut picture) {
            picture.add_log(&namespace, &pod, &container, text);
        }
    }
    let mut report = diagnose(question, &picture);
    report.unread = unread;
    Ok(report)
}

fn shown(need: &Need) -> String {
    match need {
        Need::All(kind, namespace) if namespace.is_empty() => format!("all {kind}s"),
        Need::All(kind, namespace) => format!("{kind}s of namespace {namespace}"),
        Need::One(kind, _, name) => format!("{kind} {name}"),
        Need::Log(_, pod, container, _) => format!("log of {pod}, {container}"),
    }
}

fn resource(kind: &str) -> Option<&'static ResourceId> {
    KINDS.iter().map(|k| &k.id).find(|id| id.kind == kind)
}

fn is_metadata_enough(kind: &str) -> bool {
    matches!(kind, "Secret" | "ConfigMap")
}

/// Objects with their kind, which items of lists don't have.
async fn get(rest: &Rest, need: &Need) -> Result<Vec<Value>, Error> {
    let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).map_err(Error::SerdeError);
    let tagged = |kind: &str, mut object: Value| {
        object["kind"] = kind.into();
        object
    };
    match need {
        Need::All(kind, namespace) => {
            let Some(id) = resource(kind) else {
                return Ok(Vec::new());
            };
            let accept = if is_metadata_enough(kind) { METADATA_LIST } else { JSON };
            let uri = with_query(&id.path(namespace), &[("resourceVersion", "0")]);
            match rest.get(&uri, accept).await {
                Ok(bytes) => {
                    let mut list = parsed(&bytes)?;
                    let items = list.pointer_mut("/items").and_then(Value::as_array_mut);
                    let items = items.map(std::mem::take).unwrap_or_default();
                    Ok(items.into_iter().map(|o| tagged(kind, o)).collect())
                }
                Err(error) if is_not_found(&error) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        }
        Need::One(kind, namespace, name) => {
            let Some(id) = resource(kind) else {
                return Ok(Vec::new());
            };
            let accept = if is_metadata_enough(kind) { METADATA } else { JSON };
            match rest.get_raw(id, namespace, name, "", accept).await {
                Ok(bytes) => Ok(vec![tagged(kind, parsed(&bytes)?)]),
                Err(error) if is_not_found(&error) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        }
        Need::Log(namespace, pod, container, before) => {
            let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/log");
            let before = if *before { "true" } else { "" };
            let uri = with_query(
                &path,
                &[("container", container), ("previous", before), ("tailLines", TAIL)],
            );
            // A log that is gone is no reason for anything.
            let Ok(bytes) = rest.get(&uri, "text/plain, application/json").await else {
                return Ok(Vec::new());
            };
            let metadata = json!({"name": format!("{pod} {container}"), "namespace": namespace});
            Ok(vec![
                json!({"kind": LOG, "metadata": metadata, "text": String::from_utf8_lossy(&bytes)}),
            ])
        }
    }
}

const LOG: &str = "Log";

/// Logs that came among the objects: pod's namespace, pod, container, text.
fn logs(picture: &mut Picture) -> Vec<(String, String, String, String)> {
    let read = |log: Value| {
        let (pod, container) = log.name().split_once(' ')?;
        Some((
            log.namespace().into(),
            pod.into(),
            container.into(),
            log.text("/text").into(),
        ))
    };
    picture.take(LOG).into_iter().filter_map(read).collect()
}

/// What the server itself says to the question.
async fn review(rest: &Rest, asked: &Asked, picture: &mut Picture) -> Result<(), Error> {
    let body = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": asked.user,
            "groups": asked.groups,
            "resourceAttributes": {
                "verb": asked.verb, "group": asked.group, "resource": asked.resource, "subresource": asked.subresource,
                "namespace": asked.namespace, "name": asked.name,
            },
        },
    });
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let bytes = rest
        .call(Method::POST, path, JSON, body.to_string().into_bytes())
        .await?;
    let answer: Value = serde_json::from_slice(&bytes).map_err(Error::SerdeError)?;
    picture.add(json!({"kind": "SubjectAccessReview", "metadata": {}, "status": answer["status"]}));
    Ok(())
}
