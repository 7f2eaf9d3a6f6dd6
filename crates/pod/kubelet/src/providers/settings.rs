//! `CredentialProviderConfig` (kubelet.config.k8s.io/v1, v1beta1, v1alpha1): one file, or those of a directory together.

use super::wire::{self, V1};
use super::{pattern, trusted};
use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is in force.
#[derive(Clone, Debug)]
pub struct Settings {
    pub providers: Vec<Provider>,
    pub bin_dir: PathBuf,
    /// Of the files' content, as a metric tells it.
    pub hash: String,
}

#[derive(Clone)]
pub struct Provider {
    pub name: String,
    pub match_images: Vec<String>,
    pub keep: Duration,
    pub version: &'static str,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub account: Option<Account>,
}

/// Arguments and variables may be secrets.
impl std::fmt::Debug for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.name)
            .field("match_images", &self.match_images)
            .finish_non_exhaustive()
    }
}

/// A plug-in that is told the pod's service account.
#[derive(Clone, Debug)]
pub struct Account {
    pub audience: String,
    /// It isn't called for pods without one.
    pub is_required: bool,
    /// Annotations without which it isn't called, and those that it is told if they are there.
    pub required: Vec<String>,
    pub optional: Vec<String>,
    /// What it answers is good for this token only.
    pub by_token: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    providers: Option<Vec<Said>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Said {
    #[serde(default)]
    name: String,
    #[serde(default)]
    api_version: String,
    match_images: Option<Vec<String>>,
    default_cache_duration: Option<String>,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    #[serde(default)]
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TokenAttributes {
    #[serde(default)]
    service_account_token_audience: String,
    #[serde(default)]
    cache_type: String,
    require_service_account: Option<bool>,
    required_service_account_annotation_keys: Option<Vec<String>>,
    optional_service_account_annotation_keys: Option<Vec<String>>,
}

const GROUP: &str = "kubelet.config.k8s.io";
/// More than any configuration has.
const MOST_BYTES: u64 = 1 << 20;

impl Settings {
    /// Reads them, and looks whether all plug-ins are there and nobody else's to change.
    pub fn read(config: &Path, bin_dir: &Path) -> anyhow::Result<Settings> {
        let mut hash = Sha256::new();
        let mut said: Vec<Said> = Vec::new();
        for path in files(config)? {
            let failed = || format!("the configuration of credential providers {}", path.display());
            trusted::file(&path).with_context(failed)?;
            let text = content(&path).with_context(failed)?;
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
            said.extend(decode(&text).with_context(failed)?);
        }
        let providers = judge(said).with_context(|| format!("{}", config.display()))?;
        for provider in &providers {
            let program = bin_dir.join(&provider.name);
            trusted::program(&program).with_context(|| format!("the credential provider {}", provider.name))?;
        }
        Ok(Settings {
            providers,
            bin_dir: bin_dir.to_owned(),
            hash: format!("sha256:{}", hex::encode(hash.finalize())),
        })
    }
}

/// The file, or those of the directory in the order of their names.
fn files(config: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let there = || format!("{} can't be looked at", config.display());
    if !std::fs::metadata(config).with_context(there)?.is_dir() {
        return Ok(vec![config.to_owned()]);
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(config).with_context(there)? {
        let path = entry.with_context(there)?.path();
        let known = path
            .extension()
            .is_some_and(|e| e == "json" || e == "yaml" || e == "yml");
        if known && !path.is_dir() {
            all.push(path);
        }
    }
    all.sort();
    ensure!(
        !all.is_empty(),
        "no configuration files (.json, .yaml, .yml) are in the directory {}",
        config.display()
    );
    Ok(all)
}

fn content(path: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MOST_BYTES + 1)
        .read_to_string(&mut text)?;
    ensure!(
        text.len() as u64 <= MOST_BYTES,
        "it has more than {} MiB",
        MOST_BYTES >> 20
    );
    Ok(text)
}

fn decode(text: &str) -> anyhow::Result<Vec<Said>> {
    // What stands in it may be secret: a fault is told by its place.
    let file: File = serde_saphyr::from_str(text).map_err(|e| {
        let at = e
            .location()
            .map(|l| format!(", at line {} column {}", l.line(), l.column()));
        anyhow::anyhow!(
            "it isn't a CredentialProviderConfig: a field is unknown, missing or of another type{}",
            at.unwrap_or_default()
        )
    })?;
    let version = file.api_version.strip_prefix(GROUP).and_then(|v| v.strip_prefix('/'));
    let version = version.unwrap_or_default();
    ensure!(
        file.kind == "CredentialProviderConfig" && ["v1", "v1beta1", "v1alpha1"].contains(&version),
        "it must be a CredentialProviderConfig of {GROUP}/v1, not {:?} of {:?}",
        file.kind,
        file.api_version
    );
    let said = file.providers.unwrap_or_default();
    ensure!(
        version == "v1" || said.iter().all(|p| p.token_attributes.is_none()),
        "tokenAttributes is a field of {GROUP}/v1 only"
    );
    Ok(said)
}

fn judge(said: Vec<Said>) -> anyhow::Result<Vec<Provider>> {
    ensure!(!said.is_empty(), "providers: at least one is required");
    let mut names = BTreeSet::new();
    let mut providers = Vec::new();
    for provider in said {
        let name = provider.name.clone();
        ensure!(
            names.insert(name.clone()),
            "duplicate provider name {name:?} found in configuration file(s)"
        );
        providers.push(provider.read().with_context(|| format!("provider {name:?}"))?);
    }
    Ok(providers)
}

impl Said {
    fn read(self) -> anyhow::Result<Provider> {
        let name = self.name;
        let is_plain = !name.is_empty() && name != "." && name != "..";
        ensure!(
            is_plain && !name.contains(|c: char| c == '/' || c == ' ' || c.is_control()),
            "its name is that of a program in the directory of plug-ins: not empty, '.' or '..', and without '/' and spaces"
        );
        let version = wire::VERSIONS.into_iter().find(|v| *v == self.api_version);
        let Some(version) = version else {
            bail!(
                "apiVersion {:?} must be one of {}",
                self.api_version,
                wire::VERSIONS.join(", ")
            );
        };
        let match_images = self.match_images.unwrap_or_default();
        ensure!(!match_images.is_empty(), "matchImages: at least one is required");
        for image in &match_images {
            pattern::judge(image).map_err(|e| anyhow::anyhow!("matchImages {image:?}: {e}"))?;
        }
        let Some(keep) = self.default_cache_duration else {
            bail!("defaultCacheDuration is required");
        };
        let keep = keelson_api::duration::length(&keep).map_err(|e| anyhow::anyhow!("defaultCacheDuration: {e}"))?;
        let env = self.env.unwrap_or_default().into_iter().map(|v| (v.name, v.value));
        let env: Vec<(String, String)> = env.collect();
        ensure!(
            env.iter()
                .all(|(n, v)| !n.is_empty() && !n.contains(['=', '\0']) && !v.contains('\0')),
            "env: a name is neither empty nor has it a '='"
        );
        let args = self.args.unwrap_or_default();
        ensure!(!args.iter().any(|a| a.contains('\0')), "args: there is a zero byte");
        let account = self.token_attributes.map(TokenAttributes::read).transpose();
        let account = account.context("tokenAttributes")?;
        ensure!(
            account.is_none() || version == V1,
            "tokenAttributes is only supported for apiVersion {V1}"
        );
        Ok(Provider {
            name,
            match_images,
            keep,
            version,
            args,
            env,
            account,
        })
    }
}

impl TokenAttributes {
    fn read(self) -> anyhow::Result<Account> {
        ensure!(
            !self.service_account_token_audience.is_empty(),
            "serviceAccountTokenAudience is required"
        );
        let Some(is_required) = self.require_service_account else {
            bail!("requireServiceAccount is required");
        };
        let required = self.required_service_account_annotation_keys.unwrap_or_default();
        let optional = self.optional_service_account_annotation_keys.unwrap_or_default();
        ensure!(
            is_required || required.is_empty(),
            "requireServiceAccount cannot be false when requiredServiceAccountAnnotationKeys is set"
        );
        let mut seen = BTreeSet::new();
        for key in required.iter().chain(&optional) {
            ensure!(
                is_qualified(&key.to_lowercase()),
                "{key:?} can't be the key of an annotation"
            );
            ensure!(
                seen.insert(key),
                "{key:?} stands there twice: keys are required or optional, and each once"
            );
        }
        let by_token = match self.cache_type.as_str() {
            "Token" => true,
            "ServiceAccount" => false,
            _ => bail!("cacheType {:?} must be ServiceAccount or Token", self.cache_type),
        };
        Ok(Account {
            audience: self.service_account_token_audience,
            is_required,
            required,
            optional,
            by_token,
        })
    }
}

/// `[domain/]name`, in lower case.
fn is_qualified(key: &str) -> bool {
    let ends = |text: &str| {
        let ok = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        ok(text.bytes().next()) && ok(text.bytes().last())
    };
    let (domain, name) = match key.split_once('/') {
        Some((domain, name)) => (Some(domain), name),
        None => (None, key),
    };
    let label = |l: &str| ends(l) && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    domain.is_none_or(|d| d.len() <= 253 && d.split('.').all(label))
        && name.len() <= 63
        && ends(name)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(version: &str, provider: &str) -> anyhow::Result<Vec<Provider>> {
        let text = format!("apiVersion: {GROUP}/{version}\nkind: CredentialProviderConfig\nproviders:\n- {provider}\n");
        judge(decode(&text)?)
    }

    const PLAIN: &str =
        "name: p, apiVersion: credentialprovider.kubelet.k8s.io/v1, matchImages: ['*.io'], defaultCacheDuration: 12h";

    #[test]
    fn fields_are_read_in_all_versions() {
        let more = "args: [get], env: [{name: A, value: b}]";
        for version in ["v1", "v1beta1", "v1alpha1"] {
            let all = read(version, &format!("{{{PLAIN}, {more}}}")).unwrap();
            let p = &all[0];
            assert_eq!(
                (p.name.as_str(), p.keep, p.args.len()),
                ("p", Duration::from_secs(12 * 3600), 1)
            );
            assert_eq!(p.env, [("A".to_owned(), "b".to_owned())]);
        }
        let account = "tokenAttributes: {serviceAccountTokenAudience: aud, cacheType: Token, requireServiceAccount: true, \
                       requiredServiceAccountAnnotationKeys: [Example.com/role], optionalServiceAccountAnnotationKeys: [b]}";
        let with = format!("{{{PLAIN}, {account}}}");
        let account = read("v1", &with).unwrap()[0].account.clone().unwrap();
        assert!(account.is_required && account.by_token && account.audience == "aud");
        assert!(read("v1beta1", &with).is_err(), "of v1 only");
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let account = |more: &str| format!("{{{PLAIN}, tokenAttributes: {{{more}}}}}");
        let named = |name: &str| format!("{{{}}}", PLAIN.replace("name: p", &format!("name: {name}")));
        let good = "serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: false";
        assert!(read("v1", &account(good)).is_ok());
        for (provider, why) in [
            (named("'../p'"), "without '/'"),
            (named("'..'"), "'..'"),
            (named("''"), "not empty"),
            (named("'a b'"), "spaces"),
            (
                PLAIN.replace("['*.io']", "[]").replace("name", "{name") + "}",
                "matchImages",
            ),
            (
                PLAIN.replace("'*.io'", "'io/*'").replace("name", "{name") + "}",
                "host only",
            ),
            (
                PLAIN.replace("12h", "-1s").replace("name", "{name") + "}",
                "must not be negative",
            ),
            (
                PLAIN
                    .replace(", defaultCacheDuration: 12h", "")
                    .replace("name", "{name")
                    + "}",
                "is required",
            ),
            (
                PLAIN.replace("io/v1,", "io/v2,").replace("name", "{name") + "}",
                "must be one of",
            ),
            (format!("{{{PLAIN}, secret: hunter2}}"), "a field is unknown"),
            (format!("{{{PLAIN}, args: hunter2}}"), "of another type"),
            (format!("{{{PLAIN}}}\n- {{{PLAIN}}}"), "duplicate provider name"),
            (
                account("cacheType: Token, requireServiceAccount: true"),
                "serviceAccountTokenAudience is required",
            ),
            (
                account("serviceAccountTokenAudience: a, cacheType: Token"),
                "requireServiceAccount is required",
            ),
            (
                account("serviceAccountTokenAudience: a, requireServiceAccount: true"),
                "must be ServiceAccount or Token",
            ),
            (
                account(&format!("{good}, requiredServiceAccountAnnotationKeys: [a]")),
                "cannot be false",
            ),
            (
                account(&format!("{good}, optionalServiceAccountAnnotationKeys: [a, a]")),
                "twice",
            ),
            (
                account(&format!("{good}, optionalServiceAccountAnnotationKeys: [a/b/c]")),
                "can't be the key",
            ),
        ] {
            let error = format!("{:#}", read("v1", &provider).unwrap_err());
            assert!(error.contains(why) && !error.contains("hunter2"), "{provider}: {error}");
        }
        assert!(judge(decode(&format!("apiVersion: {GROUP}/v1\nkind: CredentialProviderConfig\n")).unwrap()).is_err());
        assert!(decode("apiVersion: v1\nkind: CredentialProviderConfig\n").is_err());
    }
}
