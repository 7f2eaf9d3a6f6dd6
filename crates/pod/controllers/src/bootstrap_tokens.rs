//! `kube-public/cluster-info` carries a signature by each bootstrap token that may sign (and is alive). Who joins and has a token knows by the signature that the address and the authority in
//! there were written by somebody who has the token too.

use crate::context::{Context, now};
use crate::wire;
use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use keelson_client::{
    ApiObject, Controller, Informer, InformerOptions, Kind, ObjectKey, Objects, Outcome, Reconcile, is_not_found,
};
use keelson_pki::BootstrapToken;
use std::collections::BTreeMap;
use std::sync::Arc;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const SYSTEM: &str = "kube-system";
const PUBLIC: &str = "kube-public";
const INFO: &str = "cluster-info";
/// What is signed.
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE: &str = "jws-kubeconfig-";

fn secrets(context: &Context) -> Informer<Secret> {
    let options = InformerOptions {
        namespace: SYSTEM.into(),
        fields: format!("type={TYPE}"),
        ..Default::default()
    };
    Informer::start(&context.reader(), options, &context.stop)
}

fn data<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let value = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(&value.0).ok().filter(|text| !text.is_empty())
}

/// When a token ends, if ever. A date that can't be read is over: better none than one for ever.
fn expires(secret: &Secret) -> Option<Timestamp> {
    Some(data(secret, "expiration")?.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The token, if it may sign now.
fn signing(secret: &Secret, now: Timestamp) -> Option<BootstrapToken> {
    let id = data(secret, "token-id")?;
    let token = BootstrapToken {
        id: id.to_string(),
        secret: data(secret, "token-secret")?.to_string(),
    };
    let is_alive = expires(secret).is_none_or(|end| end > now);
    let may = data(secret, "usage-bootstrap-signing") == Some("true");
    (is_alive && may && secret.name() == token.secret_name()).then_some(token)
}

pub fn start(context: &Context) {
    let options = InformerOptions {
        namespace: PUBLIC.into(),
        fields: format!("metadata.name={INFO}"),
        ..Default::default()
    };
    let maps = Informer::<ConfigMap>::start(&context.reader(), options, &context.stop);
    let secrets = secrets(context);
    let controller = Controller::new("bootstrap-signer")
        .input(&maps)
        .input(&secrets)
        .output(ConfigMap::RESOURCE);
    let queue = controller.queue();
    wire::own(&maps, &queue);
    secrets.on_change(move |_| queue.add(ObjectKey::new(PUBLIC, INFO)));
    let objects = Objects::new(&context.rest("bootstrap-signer"));
    context.run(controller, Signer { maps, secrets, objects });
}

struct Signer {
    maps: Informer<ConfigMap>,
    secrets: Informer<Secret>,
    objects: Objects<ConfigMap>,
}

/// The map's data with the signatures that it should have. None: there is nothing to sign, or all is so.
fn signed(
    data: Option<&BTreeMap<String, String>>,
    secrets: &[Arc<Secret>],
    now: Timestamp,
) -> anyhow::Result<Option<BTreeMap<String, String>>> {
    let Some((old, content)) = data.and_then(|data| Some((data, data.get(KUBECONFIG)?))) else {
        return Ok(None);
    };
    let mut new = old.clone();
    new.retain(|key, _| !key.starts_with(SIGNATURE));
    for token in secrets.iter().filter_map(|secret| signing(secret, now)) {
        let signature = token.sign_detached(content);
        new.insert(format!("{SIGNATURE}{}", token.id), signature);
    }
    Ok((new != *old).then_some(new))
}

#[async_trait]
impl Reconcile for Signer {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        let Some(map) = self.maps.store().get_key(key) else {
            return Ok(Outcome::Done);
        };
        let Some(data) = signed(map.data.as_ref(), &self.secrets.store().list(), now())? else {
            return Ok(Outcome::Done);
        };
        let mut map = (*map).clone();
        map.data = Some(data);
        match self.objects.update(&map).await {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(Outcome::Done),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(id: &str, more: &str) -> Arc<Secret> {
        // Data is base64: the id and the secret are written as such, the rest is `true` and dates.
        let text = format!(
            r#"{{"metadata":{{"name":"bootstrap-token-{id}"}},"type":"{TYPE}","data":{{"token-id":"YWJjZGVm","token-secret":"MDEyMzQ1Njc4OWFiY2RlZg=="{more}}}}}"#
        );
        Arc::new(Secret::decode(text.as_bytes()).expect("a secret"))
    }

    #[test]
    fn signatures_follow_the_tokens() {
        let now = "2030-01-01T00:00:00Z".parse().expect("a time");
        let sign = r#","usage-bootstrap-signing":"dHJ1ZQ==""#;
        let info: BTreeMap<String, String> = [
            (KUBECONFIG.to_string(), "content".to_string()),
            (format!("{SIGNATURE}gone00"), "old".to_string()),
        ]
        .into();
        let all = [secret("abcdef", sign), secret("fedcba", sign), secret("abcdef", "")];
        let new = signed(Some(&info), &all, now).expect("signed").expect("changed");
        let keys: Vec<&str> = new.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            ["jws-kubeconfig-abcdef", "kubeconfig"],
            "a name that isn't its token's signs nothing"
        );
        assert_eq!(signed(Some(&new), &all, now).expect("signed"), None);
        // 2020-01-01T00:00:00Z
        let over = secret(
            "abcdef",
            &format!(r#"{sign},"expiration":"MjAyMC0wMS0wMVQwMDowMDowMFo=""#),
        );
        let none = signed(Some(&new), std::slice::from_ref(&over), now)
            .expect("signed")
            .expect("changed");
        assert_eq!(none.len(), 1, "an expired token signs nothing");
        assert!(expires(&over).is_some_and(|end| end < now));
        let odd = secret("abcdef", r#","expiration":"c29vbg==""#);
        assert_eq!(expires(&odd), Some(Timestamp::UNIX_EPOCH));
        assert_eq!(signed(None, &all, now).expect("signed"), None);
    }
}
