//! `AdmissionReview`: what a webhook is sent, and how its answer is read.

use super::{Failure, Hook, Invocation};
use crate::admission::Review;
use crate::webhook;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use keelson_api::status::{Cause, Details};
use keelson_api::{ApiError, Map, Object, Reason, Value, value};

/// What a webhook said.
pub struct Answer {
    pub uid: String,
    pub allowed: bool,
    pub patch: Option<Vec<u8>>,
    pub result: Option<Map>,
    pub warnings: Vec<String>,
    pub annotations: Vec<(String, String)>,
}

impl Invocation<'_> {
    /// Asks the webhook. Its warnings and annotations become the request's.
    pub(super) async fn ask(
        &self,
        review: &Review<'_>,
        object: Option<&Object>,
        old: Option<&Object>,
        mutating: bool,
    ) -> Result<Answer, Failure> {
        let hook = self.hook;
        if review.cx.dry_run {
            match hook.side_effects.as_deref() {
                Some("None" | "NoneOnDryRun") => {}
                None => return Err(Failure::Call("Webhook SideEffects is nil".into(), 400)),
                Some(_) => {
                    let why = format!("admission webhook \"{}\" does not support dry run", hook.name);
                    return Err(Failure::Broken(ApiError::bad_request(why)));
                }
            }
        }
        let Some(version) = hook.versions.iter().find(|v| matches!(v.as_str(), "v1" | "v1beta1")) else {
            let why = "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)";
            return Err(Failure::Call(why.into(), 400));
        };
        let uid = uuid::Uuid::new_v4().to_string();
        let api_version = format!("admission.k8s.io/{version}");
        let body = sent(&uid, &api_version, &self.request, object, old);
        let span = keelson_trace::child(match mutating {
            true => "Call mutating webhook",
            false => "Call validating webhook",
        });
        span.tell("webhook", || hook.name.to_string());
        let asked = webhook::call(review.lookup, &hook.client, &body, hook.timeout, true);
        let answer = span.told(keelson_trace::within(&span, asked).await);
        drop(span);
        let answer = answer.map_err(|e| Failure::Call(format!("failed to call webhook: {e}"), 500))?;
        let answer = read(&answer, version == "v1", mutating).and_then(|a| match a.uid == uid || version != "v1" {
            true => Ok(a),
            false => Err(format!("expected response.uid={uid:?}, got {:?}", a.uid)),
        });
        let answer = answer.map_err(|e| Failure::Call(format!("received invalid webhook response: {e}"), 503))?;
        for (key, text) in &answer.annotations {
            review.cx.annotate(&format!("{}/{key}", hook.name), text.as_str());
        }
        answer.warnings.iter().for_each(|w| review.cx.warn(w.as_str()));
        match answer.allowed {
            true => Ok(answer),
            false => Err(Failure::Denied(denied(hook, answer.result.as_ref()))),
        }
    }
}

fn sent(uid: &str, api_version: &str, request: &Map, object: Option<&Object>, old: Option<&Object>) -> Value {
    let mut request = request.clone();
    let of = |o: Option<&Object>| o.map_or(Value::Null, |o| Value::Object(o.0.clone()));
    request.insert("uid", uid);
    request.insert("object", of(object));
    request.insert("oldObject", of(old));
    value!({"kind": "AdmissionReview", "apiVersion": api_version, "request": request})
}

fn read(v: &Value, strict: bool, mutating: bool) -> Result<Answer, String> {
    let text = |m: &Map, key: &str| m.str(key).unwrap_or_default().to_string();
    let response = v
        .get("response")
        .and_then(Value::as_object)
        .ok_or("webhook response was absent")?;
    if strict {
        let kind = (
            v.get("apiVersion").and_then(Value::as_str),
            v.get("kind").and_then(Value::as_str),
        );
        if kind != (Some("admission.k8s.io/v1"), Some("AdmissionReview")) {
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
                kind.0.unwrap_or("/"),
                kind.1.unwrap_or_default()
            ));
        }
    }
    let patch = text(response, "patch");
    let patch_type = response.str("patchType");
    match (mutating, patch.is_empty(), patch_type) {
        (true, false, None) if strict => {
            return Err("webhook returned response.patch but not response.patchType".into());
        }
        (true, true, Some(_)) if strict => {
            return Err("webhook returned response.patchType but not response.patch".into());
        }
        (true, false, Some(t)) if strict && t != "JSONPatch" => return Err(format!("unsupported patch type {t:?}")),
        (false, false, _) if strict => return Err("validating webhook may not return response.patch".into()),
        (false, _, Some(_)) if strict => return Err("validating webhook may not return response.patchType".into()),
        _ => {}
    }
    let patch = match (mutating, patch.is_empty()) {
        (true, false) => Some(
            STANDARD
                .decode(&patch)
                .map_err(|e| format!("illegal base64 data: {e}"))?,
        ),
        _ => None,
    };
    let annotations = response.obj("auditAnnotations").into_iter().flat_map(|m| m.iter());
    let warnings = response.arr("warnings").into_iter().flatten();
    Ok(Answer {
        uid: text(response, "uid"),
        allowed: response.get("allowed").and_then(Value::as_bool).unwrap_or(false),
        patch,
        result: response.obj("status").cloned(),
        warnings: warnings.filter_map(Value::as_str).map(String::from).collect(),
        annotations: annotations
            .filter_map(|(k, v)| Some((k.to_string(), v.as_str()?.to_string())))
            .collect(),
    })
}

/// The error for a client whose request a webhook denied.
fn denied(hook: &Hook, result: Option<&Map>) -> ApiError {
    let by = format!("admission webhook \"{}\" denied the request", hook.name);
    let empty = Map::new();
    let result = result.unwrap_or(&empty);
    let text = |m: &Map, key: &str| m.str(key).unwrap_or_default().to_string();
    let message = match (text(result, "message"), text(result, "reason")) {
        (m, r) if m.is_empty() && r.is_empty() => format!("{by} without explanation"),
        (m, r) if m.is_empty() => format!("{by}: {r}"),
        (m, _) => format!("{by}: {m}"),
    };
    let code = result
        .int("code")
        .and_then(|c| u16::try_from(c).ok())
        .filter(|c| (400..1000).contains(c))
        .unwrap_or(400);
    let error = ApiError::new(Reason::parse(&text(result, "reason")), message).with_code(code);
    let Some(d) = result.obj("details") else { return error };
    let causes = d.arr("causes").into_iter().flatten().filter_map(Value::as_object);
    error.with_details(Details {
        name: text(d, "name").into(),
        group: text(d, "group").into(),
        kind: text(d, "kind").into(),
        uid: text(d, "uid").into(),
        causes: causes
            .map(|c| Cause {
                reason: text(c, "reason").into(),
                message: text(c, "message"),
                field: text(c, "field"),
            })
            .collect(),
        retry_after_seconds: d.int("retryAfterSeconds").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value, mutating: bool) -> Result<Answer, String> {
        let v = value!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
        read(&v, true, mutating)
    }

    #[test]
    fn answers_are_checked() {
        let why = |r: Value, mutating| answer(r, mutating).err().unwrap();
        assert_eq!(
            read(&value!({}), true, false).err().unwrap(),
            "webhook response was absent"
        );
        assert_eq!(
            why(value!({"uid": "u", "patch": "W10="}), true),
            "webhook returned response.patch but not response.patchType"
        );
        assert_eq!(
            why(value!({"uid": "u", "patch": "W10="}), false),
            "validating webhook may not return response.patch"
        );
        let ok = answer(
            value!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"}),
            true,
        )
        .unwrap();
        assert_eq!((ok.patch.as_deref(), ok.allowed), (Some(&b"[]"[..]), true));
        let wrong = value!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "response": {}});
        assert_eq!(
            read(&wrong, true, false).err().unwrap(),
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got admission.k8s.io/v1beta1, Kind=AdmissionReview"
        );
    }

    #[test]
    fn denials_say_who_and_why() {
        let hook = Hook::parse("c", 0, value!({"name": "a.b.c"}).as_object().unwrap());
        let said = |r: Value| {
            let e = denied(&hook, r.as_object());
            (e.message, e.code, e.reason)
        };
        assert_eq!(
            said(value!({"message": "no", "code": 403, "reason": "Forbidden"})),
            (
                "admission webhook \"a.b.c\" denied the request: no".into(),
                403,
                Reason::Forbidden
            )
        );
        assert_eq!(
            said(Value::Null),
            (
                "admission webhook \"a.b.c\" denied the request without explanation".into(),
                400,
                Reason::Unknown
            )
        );
        assert_eq!(
            said(value!({"reason": "odd", "code": 200})).0,
            "admission webhook \"a.b.c\" denied the request: odd"
        );
    }
}
