//! `EncryptionConfiguration` of `apiserver.config.k8s.io/v1`: what it may say, and what is made of it. Rules and messages are
//! upstream's; a message never repeats a secret.

mod check;

pub use check::check;

use crate::kms::{Endpoint, Kms};
use crate::metrics::Metrics;
use crate::provider::{CBC, Cbc, Cipher, GCM, Gcm, NamedKey, Provider, Providers, Refusal, SECRETBOX, Secretbox};
use crate::rules::{GroupResource, Rules};
use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The whole of the file is read; a longer one is no configuration.
pub(crate) const LONGEST: u64 = 1 << 20;

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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms: Option<KmsConfiguration>,
}

#[derive(Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KmsConfiguration {
    #[serde(default = "first_version")]
    pub api_version: String,
    #[serde(default)]
    pub name: String,
    /// Of v1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cachesize: Option<i32>,
    #[serde(default)]
    pub endpoint: String,
    /// Of each call, as Go writes durations.
    #[serde(default = "kms_timeout")]
    pub timeout: String,
}

fn first_version() -> String {
    "v1".into()
}
fn kms_timeout() -> String {
    "3s".into()
}

impl KmsConfiguration {
    /// In nanoseconds.
    fn timeout(&self) -> anyhow::Result<i64> {
        keelson_api::duration::parse(&self.timeout).map_err(|e| anyhow::anyhow!("{e}"))
    }
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

/// Reads a file and checks it; tells its hash, too.
pub fn read(path: &Path) -> anyhow::Result<(EncryptionConfiguration, String)> {
    let shown = path.display();
    let content = keelson_follow::read(path, LONGEST)
        .with_context(|| format!("error reading encryption provider configuration file \"{shown}\""))
        .context("error while loading file")?;
    parse(path, &content)
}

/// The same of what a file says.
pub(crate) fn parse(path: &Path, content: &[u8]) -> anyhow::Result<(EncryptionConfiguration, String)> {
    let (config, hash) = decoded(path, content).context("error while loading file")?;
    check(&config).context("error while parsing file")?;
    Ok((config, hash))
}

fn decoded(path: &Path, data: &[u8]) -> anyhow::Result<(EncryptionConfiguration, String)> {
    let shown = path.display();
    ensure!(
        !data.is_empty(),
        "encryption provider configuration file \"{shown}\" is empty"
    );
    let text = std::str::from_utf8(data).with_context(|| format!("\"{shown}\" is no text"))?;
    // A parser's message shows the place in the text, which holds the keys.
    let Ok(config) = serde_saphyr::from_str::<EncryptionConfiguration>(text) else {
        bail!(
            "error decoding encryption provider configuration file \"{shown}\": it is not an EncryptionConfiguration of apiserver.config.k8s.io/v1, or has unknown fields"
        );
    };
    ensure!(
        config.api_version == "apiserver.config.k8s.io/v1" && config.kind == "EncryptionConfiguration",
        "error decoding encryption provider configuration file \"{shown}\": no kind \"{}\" is registered for version \"{}\"",
        config.kind,
        config.api_version
    );
    Ok((config, format!("sha256:{:x}", Sha256::digest(data))))
}

/// Makes the rules of a checked configuration. Plug-ins of key management are asked once.
pub async fn build(config: &EncryptionConfiguration, hash: String, metrics: &Arc<Metrics>) -> anyhow::Result<Rules> {
    let built = built(config, metrics)
        .await
        .context("error while building transformers")?;
    let providers = built.iter().flat_map(|(_, providers)| providers);
    let mut plugins: Vec<Arc<Kms>> = Vec::new();
    for provider in providers {
        if let Provider::Kms(kms) = &**provider
            && !plugins.iter().any(|known| Arc::ptr_eq(known, kms))
        {
            plugins.push(kms.clone());
        }
    }
    let by_resource = built.into_iter().map(|(r, p)| (r, Arc::new(Providers(p)))).collect();
    Ok(Rules {
        by_resource,
        hash,
        plugins,
        ..Rules::default()
    })
}

async fn built(
    config: &EncryptionConfiguration,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Vec<(GroupResource, Vec<Arc<Provider>>)>> {
    let mut by_resource: Vec<(GroupResource, Vec<Arc<Provider>>)> = Vec::new();
    for part in &config.resources {
        let mut providers = Vec::new();
        for provider in &part.providers {
            providers.push(Arc::new(made(provider, metrics).await?));
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
    Ok(by_resource)
}

async fn made(provider: &ProviderConfiguration, metrics: &Arc<Metrics>) -> anyhow::Result<Provider> {
    let of = |prefix, keys: &Keys, make: fn(&[u8]) -> Result<Cipher, Refusal>| -> anyhow::Result<Provider> {
        let make = |key: &Key| -> anyhow::Result<NamedKey> {
            let secret = STANDARD.decode(&key.secret).ok();
            let secret = secret.with_context(|| format!("could not obtain secret for named key {}", key.name))?;
            let cipher = make(&secret).map_err(|e| anyhow::anyhow!(e.why))?;
            Ok(NamedKey::new(prefix, &key.name, cipher))
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
        ProviderConfiguration { kms: Some(kms), .. } => {
            ensure!(
                kms.api_version != "v1",
                "KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature."
            );
            let timeout = Duration::from_nanos(u64::try_from(kms.timeout()?).unwrap_or_default());
            Provider::Kms(Kms::start(&kms.name, Endpoint::of(&kms.endpoint), timeout, metrics.clone()).await)
        }
        _ => Provider::Identity,
    })
}
