//! The list of what has been revoked is a ConfigMap, and no common one: who writes it decides who is locked out, and who comes in
//! again. It takes a right of its own (verb `revoke` on `credentials` of `keelson.dev`, which only cluster-admin has), holds nothing
//! that servers couldn't read, and has its moments from a server's clock, not from the caller's.

use super::{Phase, Plugin, Review};
use crate::authz::Attributes;
use async_trait::async_trait;
use keelson_api::{ApiError, ApiResult, Cause, Object, Value};
use keelson_pki::revocation::{MOST, NAME, NAMESPACE, Record};
use keelson_registry::Operation;

pub struct Revocations;

/// Clocks of servers differ.
const AHEAD: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

/// Whether the list is written or removed.
fn is_list(review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> bool {
    let name = new.or(old).map_or(review.cx.name.as_str(), Object::name);
    name == NAME && !matches!(review.op, Operation::Connect)
}

#[async_trait]
impl Plugin for Revocations {
    fn name(&self) -> &'static str {
        "Revocations"
    }
    fn phases(&self) -> &'static [Phase] {
        &[Phase::Mutating, Phase::Validating]
    }
    fn concerns(&self, review: &Review<'_>) -> bool {
        review.is("", "configmaps") && review.cx.namespace.as_str() == NAMESPACE
    }
    async fn mutate(&self, review: &Review<'_>, new: Option<&mut Object>, old: Option<&Object>) -> ApiResult<()> {
        let Some(new) = new else { return Ok(()) };
        if is_list(review, Some(&*new), old) {
            let now = keelson_clock::now();
            let dated: Vec<(String, String)> = records(new).filter_map(|(key, text)| date(key, text, now)).collect();
            for (key, text) in dated {
                new.set_at(&["data", &key], text.as_str());
            }
        }
        Ok(())
    }
    async fn validate(&self, review: &Review<'_>, new: Option<&Object>, old: Option<&Object>) -> ApiResult<()> {
        if !is_list(review, new, old) {
            return Ok(());
        }
        let attributes = Attributes {
            user: review.cx.user.as_ref().clone(),
            verb: "revoke".into(),
            is_resource_request: true,
            api_group: "keelson.dev".into(),
            api_version: "*".into(),
            resource: "credentials".into(),
            ..Attributes::default()
        };
        if review.allowed(attributes).await.is_err() {
            let why = "user not permitted to revoke credentials (verb revoke on credentials of keelson.dev)";
            return Err(review.forbidden(new, why));
        }
        match new.map_or_else(Vec::new, |new| wrong(new, old)) {
            causes if causes.is_empty() => Ok(()),
            causes => Err(ApiError::invalid("", "ConfigMap", NAME, causes)),
        }
    }
}

fn records(list: &Object) -> impl Iterator<Item = (&str, &str)> {
    let data = list.obj("data").into_iter().flat_map(|data| data.iter());
    data.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// A record that says no moment, with this one. What else it says stays, also what only a later version knows.
fn date(key: &str, text: &str, now: jiff::Timestamp) -> Option<(String, String)> {
    Record::read(key, text).ok().filter(|record| record.at.is_none())?;
    let now = jiff::Timestamp::from_second(now.as_second()).ok()?;
    let mut record: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    record.insert("at".into(), now.to_string().into());
    Some((key.to_owned(), serde_json::to_string(&record).ok()?))
}

/// What servers couldn't read, or what would keep them from being told more. What stood there before is nobody's fault: a record of a
/// later version doesn't keep an older server from being told of others.
fn wrong(list: &Object, before: Option<&Object>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if list.get("immutable").and_then(Value::as_bool) == Some(true) {
        causes.push(Cause::forbidden("immutable", "more has to be revoked at any time"));
    }
    if list.obj("binaryData").is_some_and(|data| data.iter().next().is_some()) {
        causes.push(Cause::forbidden("binaryData", "records are text"));
    }
    let count = records(list).count();
    if count > MOST {
        let why = format!("there are {count} records, and at most {MOST} can be kept: remove what has ended");
        causes.push(Cause::forbidden("data", &why));
    }
    let latest = keelson_clock::now()
        .saturating_add(AHEAD)
        .unwrap_or(jiff::Timestamp::MAX);
    let before = before.and_then(|before| before.obj("data"));
    let stood = |key: &str| before.and_then(|data| data.get(key)?.as_str());
    for (key, text) in records(list) {
        if stood(key) == Some(text) {
            continue;
        }
        let why = match Record::read(key, text) {
            Ok(record) if record.at.is_some_and(|at| at <= latest) => continue,
            Ok(_) => "it has to say a moment that has passed".to_string(),
            Err(error) => format!("{error:#}"),
        };
        causes.push(Cause::forbidden(format!("data[{key}]"), &why));
    }
    causes
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    #[test]
    fn a_list_says_when_and_holds_what_can_be_read() {
        let now = keelson_clock::now();
        let record = Record::of_name("ana", now);
        let (key, text) = (record.key(), record.to_json().unwrap());
        let list = |key: &str, text: &str| {
            let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}});
            let mut map = Object::try_from(map).unwrap();
            map.set_at(&["data", key], text);
            map
        };
        assert_eq!(wrong(&list(&key, &text), None).len(), 1, "without a moment");
        let (key, text) = date(&key, &text, now).unwrap();
        assert!(wrong(&list(&key, &text), None).is_empty());
        assert_eq!(date(&key, &text, now), None, "a moment stays");
        assert_eq!(wrong(&list("user.bob", &text), None).len(), 1);
        assert_eq!(wrong(&list("anything", "text"), None).len(), 1);
        let tomorrow = Record {
            at: Some(now + jiff::SignedDuration::from_hours(24)),
            ..record
        };
        assert_eq!(
            wrong(&list(&key, &tomorrow.to_json().unwrap()), None).len(),
            1,
            "nobody is locked out ahead"
        );
        let mut closed = list(&key, &text);
        closed.set_at(&["immutable"], true);
        assert_eq!(wrong(&closed, None).len(), 1);
        let mut full = list(&key, &text);
        for n in 0..MOST {
            let record = Record {
                at: Some(now),
                ..Record::of_serial(&format!("{:x}", n + 1), None, now).unwrap()
            };
            full.set_at(&["data", &record.key()], record.to_json().unwrap().as_str());
        }
        assert_eq!(wrong(&full, None).len(), 1, "one too many");
    }

    #[test]
    fn what_a_later_version_wrote_stays_and_is_in_nobodys_way() {
        let now = keelson_clock::now();
        let map = value!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}});
        let mut before = Object::try_from(map).unwrap();
        before.set_at(&["data", "group.x"], r#"{"revoked":{"group":"x"}}"#);
        before.set_at(&["data", "user.bob"], "{");
        let mut after = before.clone();
        let ana = Record {
            at: Some(now),
            ..Record::of_name("ana", now)
        };
        after.set_at(&["data", &ana.key()], ana.to_json().unwrap().as_str());
        assert!(wrong(&after, Some(&before)).is_empty());
        assert_eq!(wrong(&after, None).len(), 2);
        after.set_at(&["data", "user.bob"], "{}");
        assert_eq!(wrong(&after, Some(&before)).len(), 1, "it is written anew");
        let later = r#"{"revoked":{"user":"eve"},"until":"2027-01-01T00:00:00Z","by":"ana"}"#;
        let (_, dated) = date("user.eve", later, now).unwrap();
        assert!(dated.contains(r#""by":"ana""#) && Record::read("user.eve", &dated).unwrap().at.is_some());
    }
}
