//! Approves nodes' requests for certificates, signs what was approved, and clears away old requests.

pub mod nodes;
mod request;

use crate::context::{Context, now};
use crate::util::until_due;
use crate::wire;
use anyhow::Context as _;
use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest as Request, CertificateSigningRequestCondition as Condition,
};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use keelson_client::rest::JSON;
use keelson_client::{
    ApiObject, Controller, Informer, Kind, ObjectKey, Objects, Outcome, Reconcile, Rest, delete_options, is_not_found,
};
use keelson_pki::Authority;
use keelson_pki::authority::Policy;
use keelson_pki::x509::Request as Asked;
use serde_json::{Value, json};
use std::time::Duration;

const SHORTEST: Duration = Duration::from_secs(600);
/// How long requests are kept: once decided, and undecided.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
const UNDECIDED: SignedDuration = SignedDuration::from_hours(24);

fn requests(context: &Context, name: &'static str) -> (Informer<Request>, Controller) {
    let requests = context.informer::<Request>();
    let controller = Controller::new(name).input(&requests).output(Request::RESOURCE);
    wire::own(&requests, &controller.queue());
    (requests, controller)
}

pub fn start_approving(context: &Context) {
    let (requests, controller) = requests(context, "certificate-approver");
    let rest = context.rest("certificate-controller");
    let nodes = context.informer::<Node>();
    let controller = controller.input(&nodes);
    context.run(
        controller,
        Approver {
            requests,
            nodes,
            objects: Objects::new(&rest),
            rest,
        },
    );
}

pub fn start_signing(context: &Context) {
    let config = &context.config;
    if config.signing_cert_pem.is_empty() {
        return;
    }
    let authority = match Authority::from_pem(&config.signing_cert_pem, &config.signing_key_pem) {
        Ok(authority) => authority,
        Err(error) => {
            tracing::error!(
                error = format!("{error:#}"),
                "the signing authority can't be used: certificate requests aren't signed"
            );
            return;
        }
    };
    let (requests, controller) = requests(context, "certificate-signer");
    let objects = Objects::new(&context.rest("certificate-controller"));
    context.run(
        controller,
        Signer {
            requests,
            objects,
            authority,
            longest: config.signing_duration,
        },
    );
}

pub fn start_cleaning(context: &Context) {
    let (requests, controller) = requests(context, "certificate-cleaner");
    let objects = Objects::new(&context.rest("certificate-controller"));
    context.run(controller, Cleaner { requests, objects });
}

fn is(request: &Request, kind: &str) -> bool {
    request
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .any(|c| c.type_ == kind && c.status == "True")
}

fn is_issued(request: &Request) -> bool {
    request
        .status
        .as_ref()
        .and_then(|s| s.certificate.as_ref())
        .is_some_and(|c| !c.0.is_empty())
}

/// The one reading of a request, by which it is approved, checked and signed.
fn parse(found: &Request) -> anyhow::Result<Asked> {
    Asked::from_pem(&found.spec.request.0).context("unable to parse a certificate request")
}

struct Approver {
    requests: Informer<Request>,
    nodes: Informer<Node>,
    objects: Objects<Request>,
    rest: Rest,
}

#[async_trait]
impl Reconcile for Approver {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(found) = self.requests.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        if is_issued(&found)
            || is(&found, "Approved")
            || is(&found, "Denied")
            || found.spec.signer_name != request::KUBELET_CLIENT
        {
            return Ok(Outcome::Done);
        }
        let asked = parse(&found)?;
        let usages = found.spec.usages.clone().unwrap_or_default();
        if request::is_kubelet_client(&asked, &usages).is_err() {
            return Ok(Outcome::Done);
        }
        let own = found.spec.username.as_deref() == Some(&asked.subject.common_name);
        let ways = [
            (
                own,
                "selfnodeclient",
                "Auto approving self kubelet client certificate after SubjectAccessReview.",
            ),
            (
                true,
                "nodeclient",
                "Auto approving kubelet client certificate after SubjectAccessReview.",
            ),
        ];
        for (applies, subresource, message) in ways {
            if applies && self.may(&found, subresource).await? {
                let name = asked
                    .subject
                    .common_name
                    .strip_prefix("system:node:")
                    .unwrap_or_default();
                let node = self.nodes.store().get("", name).filter(|_| !own);
                return match nodes::taken(node.as_deref()) {
                    None => {
                        self.decide(&found, condition("Approved", "AutoApproved", message))
                            .await
                    }
                    Some(why) => self.decide(&found, condition("Denied", "NodeNameTaken", &why)).await,
                };
            }
        }
        Ok(Outcome::Done)
    }
}

impl Approver {
    async fn may(&self, found: &Request, subresource: &str) -> anyhow::Result<bool> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": found.spec.username,
                "uid": found.spec.uid,
                "groups": found.spec.groups,
                "extra": found.spec.extra,
                "resourceAttributes": {
                    "group": "certificates.k8s.io", "version": "*", "resource": "certificatesigningrequests",
                    "subresource": subresource, "verb": "create",
                },
            },
        });
        let uri = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = self
            .rest
            .call(http::Method::POST, uri, JSON, review.to_string().into_bytes())
            .await?;
        let answer: Value = serde_json::from_slice(&answer)?;
        Ok(answer
            .get("status")
            .and_then(|s| s.get("allowed"))
            .and_then(Value::as_bool)
            .unwrap_or(false))
    }

    async fn decide(&self, found: &Request, decision: Condition) -> anyhow::Result<Outcome> {
        let mut changed = found.clone();
        let status = changed.status.get_or_insert_default();
        status.conditions.get_or_insert_default().push(decision);
        match self.objects.update_sub(&changed, "approval").await {
            Err(error) if !is_not_found(&error) => Err(error).context("deciding on a certificate request"),
            _ => Ok(Outcome::Done),
        }
    }
}

fn condition(kind: &str, reason: &str, message: &str) -> Condition {
    Condition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now())),
        last_transition_time: Some(Time(now())),
    }
}

struct Signer {
    requests: Informer<Request>,
    objects: Objects<Request>,
    authority: Authority,
    longest: Duration,
}

#[async_trait]
impl Reconcile for Signer {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(found) = self.requests.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        if is_issued(&found) || !is(&found, "Approved") || is(&found, "Denied") || is(&found, "Failed") {
            return Ok(Outcome::Done);
        }
        let usages = found.spec.usages.as_deref().unwrap_or_default();
        let asked = parse(&found)?;
        let Some(checked) = request::check(&found.spec.signer_name, &asked, usages) else {
            return Ok(Outcome::Done);
        };
        let mut changed = (*found).clone();
        let status = changed.status.get_or_insert_default();
        match checked {
            Ok(()) => {
                let certificate = self.sign(&asked, usages, found.spec.expiration_seconds)?;
                status.certificate = Some(ByteString(certificate.into_bytes()));
            }
            Err(error) => {
                let failed = condition("Failed", "SignerValidationFailure", &format!("{error:#}"));
                status.conditions.get_or_insert_default().push(failed);
            }
        }
        match self.objects.update_status(&changed).await {
            Err(error) if !is_not_found(&error) => Err(error).context("writing a certificate"),
            _ => Ok(Outcome::Done),
        }
    }
}

impl Signer {
    fn sign(&self, asked: &Asked, usages: &[String], seconds: Option<i32>) -> anyhow::Result<String> {
        let (key_usage, ext_key_usage) = request::usages(usages)?;
        let wanted = seconds.map(|s| Duration::from_secs(s.max(0) as u64));
        let policy = Policy {
            key_usage,
            ext_key_usage,
            lifetime: wanted.map_or(self.longest, |w| w.clamp(SHORTEST.min(self.longest), self.longest)),
            now: now(),
        };
        self.authority
            .sign_request(asked, &policy)
            .context("signing a certificate request")
    }
}

struct Cleaner {
    requests: Informer<Request>,
    objects: Objects<Request>,
}

/// When a request is old: an hour after it was decided, a day after it was made, or when its certificate ends.
fn expires(request: &Request) -> Option<Timestamp> {
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let conditions = request.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let decided = conditions
        .into_iter()
        .filter(|c| c.status == "True")
        .filter_map(|c| c.last_update_time.as_ref())
        .map(|t| t.0)
        .max();
    let kept = match decided {
        Some(at) => at + DECIDED,
        None => created + UNDECIDED,
    };
    let certificate = request
        .status
        .as_ref()
        .and_then(|s| s.certificate.as_ref())
        .map(|c| String::from_utf8_lossy(&c.0).into_owned());
    let ends = certificate
        .and_then(|pem| keelson_pki::authority::read_certificate(&pem).ok())
        .and_then(|facts| Timestamp::from_second(facts.not_after).ok());
    Some(ends.map_or(kept, |e| e.min(kept)))
}

#[async_trait]
impl Reconcile for Cleaner {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(found) = self.requests.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let Some(at) = expires(&found) else {
            return Ok(Outcome::Done);
        };
        let left = at.duration_since(now());
        if left > SignedDuration::ZERO {
            return Ok(Outcome::After(until_due(left)));
        }
        match self
            .objects
            .delete("", &key.name, &delete_options(None, Some(found.uid()), None))
            .await
        {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_kept_a_while() {
        let request = |conditions: &str| {
            let text = format!(
                r#"{{"metadata":{{"creationTimestamp":"1970-01-02T00:00:00Z"}},"spec":{{"request":"","signerName":"s"}},"status":{{"conditions":[{conditions}]}}}}"#
            );
            expires(&Request::decode(text.as_bytes()).expect("valid")).map(|t| t.as_second() / 3600)
        };
        assert_eq!(request(""), Some(48));
        assert_eq!(
            request(r#"{"type":"Denied","status":"True","lastUpdateTime":"1970-01-02T02:00:00Z"}"#),
            Some(27)
        );
    }
}
