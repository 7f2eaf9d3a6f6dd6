//! `EncryptionConfiguration` of `apiserver.config.k8s.io/v1`: what it may say, and what is made of it. Rules and messages are
//! upstream's; a message never repeats a secret.

use crate::provider::{CBC, Cbc, Cipher, GCM, Gcm, Provider, Providers, SECRETBOX, Secretbox};
use crate::rules::{GroupResource, Rules};
use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;

/// The whole of the file is read; a longer one is no configuration.
const LONGEST: u64 = 1 << 20;

#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptionConfiguration {
    pub api_version: String,
    pub kind: String,
    #[serde(default)]
    pub resources: Vec<ResourceConfiguration>,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResourceConfiguration {
    #[serde(default)]
    pub resources: Vec<String>,
    #[serde(default)]
    pub providers: Vec<ProviderConfiguration>,
}

#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfiguration {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aesgcm: Option<Keys>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aescbc: Option<Keys>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secretbox: Option<Keys>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Identity>,
    /// Upstream's fifth, refused by [`validate`]: there is no client of KMS plug-ins.
    #[serde(default, skip_serializing)]
    pub kms: Option<IgnoredAny>,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    #[serde(default)]
    pub keys: Vec<Key>,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Key {
    #[serde(default)]
    pub name: String,
    /// Base64.
    #[serde(default)]
    pub secret: String,
}

#[derive(Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {}

/// Reads a file and checks it.
pub fn read(path: &Path) -> anyhow::Result<(EncryptionConfiguration, String)> {
    let shown = path.display();
    let size = std::fs::metadata(path)
        .with_context(|| format!("error reading encryption provider configuration file \"{shown}\""))?
        .len();
    ensure!(
        size <= LONGEST,
        "encryption provider configuration file \"{shown}\" is longer than 1 MiB"
    );
    let data = std::fs::read(path)
        .with_context(|| format!("error reading encryption provider configuration file \"{shown}\""))?;
    ensure!(
        !data.is_empty(),
        "encryption provider configuration file \"{shown}\" is empty"
    );
    let text = std::str::from_utf8(&data).with_context(|| format!("\"{shown}\" is no text"))?;
    // A parser's message shows the place in the text, which holds the keys.
    let Ok(config) = serde_saphyr::from_str::<EncryptionConfiguration>(text) else {
        bail!(
            "error decoding encryption provider configuration file \"{shown}\": it is not an EncryptionConfiguration of apiserver.config.k8s.io/v1, or has unknown fields"
        );
    };
    validate(&config)?;
    Ok((config, format!("sha256:{:x}", Sha256::digest(&data))))
}

pub fn validate(config: &EncryptionConfiguration) -> anyhow::Result<()> {
    ensure!(
        config.api_version == "apiserver.config.k8s.io/v1" && config.kind == "EncryptionConfiguration",
        "no kind \"{}\" is registered for version \"{}\"",
        config.kind,
        config.api_version
    );
    ensure!(
        !config.resources.is_empty(),
        "resources: Required value: at least one resources is required"
    );
    for (i, part) in config.resources.iter().enumerate() {
        let (r, p) = (format!("resources[{i}].resources"), format!("resources[{i}].providers"));
        ensure!(
            !part.resources.is_empty(),
            "{r}: Required value: at least one {r} is required"
        );
        overlaps(&part.resources).with_context(|| r.clone())?;
        for (j, resource) in part.resources.iter().enumerate() {
            name(resource).with_context(|| format!("{r}[{j}]: Invalid value: \"{resource}\""))?;
        }
        ensure!(
            !part.providers.is_empty(),
            "{p}: Required value: at least one {p} is required"
        );
        for (j, provider) in part.providers.iter().enumerate() {
            self::provider(provider).with_context(|| format!("{p}[{j}]"))?;
        }
    }
    Ok(())
}

fn overlaps(resources: &[String]) -> anyhow::Result<()> {
    let parsed: Vec<GroupResource> = resources.iter().map(|r| GroupResource::parse(r)).collect();
    for (i, one) in parsed.iter().enumerate() {
        for other in &parsed[i + 1..] {
            ensure!(one != other, "the same resource cannot be specified multiple times");
            let any = *one == GroupResource::any() || *other == GroupResource::any();
            let in_group = one.group == other.group && (one.resource == "*" || other.resource == "*");
            ensure!(
                !any && !in_group,
                "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked"
            );
        }
    }
    Ok(())
}

fn name(text: &str) -> anyhow::Result<()> {
    ensure!(
        text.to_lowercase() == text,
        "resource name should not contain capital letters"
    );
    ensure!(
        text != "*",
        "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
    );
    ensure!(
        !["apiserveripinfo", "serviceipallocations", "servicenodeportallocations"].contains(&text),
        "resources which do not have REST API/s cannot be encrypted"
    );
    let parsed = GroupResource::parse(text);
    ensure!(
        parsed.group != "events.k8s.io",
        "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
    );
    ensure!(
        parsed.group != "extensions",
        "'extensions' group has been removed and cannot be used for encryption"
    );
    ensure!(
        parsed.group != "*" || parsed.resource == "*",
        "encrypting the same resource across groups is not supported"
    );
    Ok(())
}

fn provider(provider: &ProviderConfiguration) -> anyhow::Result<()> {
    let ProviderConfiguration {
        aesgcm,
        aescbc,
        secretbox,
        identity,
        kms,
    } = provider;
    let found = [
        aesgcm.is_some(),
        aescbc.is_some(),
        secretbox.is_some(),
        identity.is_some(),
        kms.is_some(),
    ];
    match found.into_iter().filter(|f| *f).count() {
        0 => bail!("provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"),
        1 => {}
        _ => bail!("more than one provider specified in a single element, should split into different list elements"),
    }
    if let Some(keys) = aesgcm {
        self::keys(keys, &[16, 24, 32]).context("aesgcm.keys")?;
    }
    if let Some(keys) = aescbc {
        self::keys(keys, &[16, 24, 32]).context("aescbc.keys")?;
    }
    if let Some(keys) = secretbox {
        self::keys(keys, &[32]).context("secretbox.keys")?;
    }
    ensure!(
        kms.is_none(),
        "kms: KMS plug-ins are not supported; use aesgcm, aescbc or secretbox"
    );
    Ok(())
}

fn keys(keys: &Keys, lengths: &[usize]) -> anyhow::Result<()> {
    ensure!(!keys.keys.is_empty(), "Required value: at least one keys is required");
    for (i, key) in keys.keys.iter().enumerate() {
        ensure!(
            !key.name.is_empty(),
            "[{i}].name: Required value: name is a mandatory field for a key"
        );
        ensure!(
            !key.secret.is_empty(),
            "[{i}].secret: Required value: secret is a mandatory field for a key"
        );
        let Ok(secret) = STANDARD.decode(&key.secret) else {
            bail!("[{i}].secret: Invalid value: \"REDACTED\": secrets must be base64 encoded");
        };
        ensure!(
            lengths.contains(&secret.len()),
            "[{i}].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got {}, expected one of {lengths:?}",
            secret.len()
        );
    }
    Ok(())
}

/// Makes the rules of a checked configuration.
pub fn build(config: &EncryptionConfiguration, hash: String) -> anyhow::Result<Rules> {
    let mut by_resource: Vec<(GroupResource, Vec<Arc<Provider>>)> = Vec::new();
    for part in &config.resources {
        let mut providers = Vec::new();
        for provider in &part.providers {
            providers.push(Arc::new(made(provider)?));
        }
        for resource in &part.resources {
            let resource = GroupResource::parse(resource);
            let of_group = GroupResource {
                group: resource.group.clone(),
                resource: "*".into(),
            };
            for masking in [of_group, GroupResource::any()] {
                ensure!(
                    !by_resource.iter().any(|(known, _)| *known == masking),
                    "resource \"{}\" is masked by earlier rule \"{}\"",
                    resource.shown(),
                    masking.shown()
                );
            }
            match by_resource.iter_mut().find(|(known, _)| *known == resource) {
                Some((_, known)) => known.extend(providers.iter().cloned()),
                None => by_resource.push((resource, providers.clone())),
            }
        }
    }
    let by_resource = by_resource
        .into_iter()
        .map(|(r, p)| (r, Arc::new(Providers(p))))
        .collect();
    Ok(Rules { by_resource, hash })
}

fn made(provider: &ProviderConfiguration) -> anyhow::Result<Provider> {
    let of = |prefix, keys: &Keys, make: fn(&[u8]) -> Result<Cipher, String>| -> anyhow::Result<Provider> {
        let make = |key: &Key| -> anyhow::Result<(String, Cipher)> {
            let secret = STANDARD.decode(&key.secret).ok();
            let secret = secret.with_context(|| format!("could not obtain secret for named key {}", key.name))?;
            Ok((key.name.clone(), make(&secret).map_err(anyhow::Error::msg)?))
        };
        let keys = keys.keys.iter().map(make).collect::<anyhow::Result<_>>()?;
        Ok(Provider::Keys { prefix, keys })
    };
    Ok(match provider {
        ProviderConfiguration { aesgcm: Some(keys), .. } => of(GCM, keys, |key| Gcm::new(key).map(Cipher::Gcm))?,
        ProviderConfiguration { aescbc: Some(keys), .. } => of(CBC, keys, |key| Cbc::new(key).map(Cipher::Cbc))?,
        ProviderConfiguration {
            secretbox: Some(keys), ..
        } => of(SECRETBOX, keys, |key| Secretbox::new(key).map(Cipher::Secretbox))?,
        _ => Provider::Identity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(resources: &str, providers: &str) -> String {
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: {resources}\n  providers: {providers}\n"
        );
        let config: EncryptionConfiguration = serde_saphyr::from_str(&text).unwrap();
        validate(&config).map_or_else(|e| format!("{e:#}"), |()| String::new())
    }

    #[test]
    fn what_upstream_refuses_is_refused() {
        let identity = "[{identity: {}}]";
        for (resources, part) in [
            ("[]", "at least one"),
            ("[Secrets]", "capital letters"),
            ("['*']", "use '*.'"),
            ("[secrets, secrets]", "multiple times"),
            ("[secrets, '*.']", "overlapping"),
            ("[secrets, '*.*']", "overlapping"),
            ("[serviceipallocations]", "do not have REST"),
            ("[events.events.k8s.io]", "Use 'events'"),
            ("[ingresses.extensions]", "has been removed"),
            ("['pods.*']", "across groups"),
        ] {
            assert!(
                refusal(resources, identity).contains(part),
                "{resources}: {}",
                refusal(resources, identity)
            );
        }
        assert_eq!(
            refusal("[secrets, '*.apps', pandas.awesome.bears.example]", identity),
            ""
        );
        let secret = "c2VjcmV0IGlzIHNlY3VyZQ==";
        for (providers, part) in [
            ("[]".to_owned(), "at least one"),
            ("[{}]".to_owned(), "expected providers"),
            (
                format!("[{{identity: {{}}, aesgcm: {{keys: [{{name: a, secret: {secret}}}]}}}}]"),
                "more than one provider",
            ),
            (
                format!("[{{secretbox: {{keys: [{{name: a, secret: {secret}}}]}}}}]"),
                "expected length, got 16, expected one of [32]",
            ),
            (
                format!("[{{aesgcm: {{keys: [{{secret: {secret}}}]}}}}]"),
                "name is a mandatory field",
            ),
            ("[{aesgcm: {keys: [{name: a, secret: '%'}]}}]".to_owned(), "base64"),
            ("[{aescbc: {keys: []}}]".to_owned(), "at least one keys"),
            (
                "[{kms: {name: a, apiVersion: v2, endpoint: 'unix:///x'}}]".to_owned(),
                "KMS plug-ins are not supported",
            ),
        ] {
            let told = refusal("[secrets]", &providers);
            assert!(told.contains(part), "{providers}: {told}");
            assert!(!told.contains(secret), "a secret is told");
        }
        assert_eq!(
            refusal(
                "[secrets]",
                &format!("[{{aesgcm: {{keys: [{{name: a, secret: {secret}}}]}}}}]")
            ),
            ""
        );
    }
}
