//! `extenders`: who is asked beside the plug-ins, and how.

use super::errors::Errors;
use crate::extender::{DEFAULT_TIMEOUT, Settings, Tls};
use serde::Deserialize;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Extender {
    url_prefix: String,
    #[serde(default)]
    filter_verb: String,
    #[serde(default)]
    preempt_verb: String,
    #[serde(default)]
    prioritize_verb: String,
    #[serde(default)]
    bind_verb: String,
    #[serde(default)]
    weight: i64,
    /// Whether there is TLS the address decides. With this, and without an authority, any certificate will do, as upstream has it; without it
    /// the machine's authorities vouch.
    #[serde(default, rename = "enableHTTPS")]
    enable_https: bool,
    tls_config: Option<Tls>,
    http_timeout: Option<String>,
    #[serde(default)]
    node_cache_capable: bool,
    #[serde(default)]
    managed_resources: Vec<Managed>,
    #[serde(default)]
    ignorable: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Managed {
    name: String,
    #[serde(default)]
    ignored_by_scheduler: bool,
}

/// Resources that plug-ins don't look at.
pub fn ignored(extenders: &[Extender]) -> Vec<String> {
    let managed = extenders.iter().flat_map(|e| &e.managed_resources);
    let ignored = managed.filter(|managed| managed.ignored_by_scheduler);
    ignored.map(|managed| managed.name.clone()).collect()
}

pub fn read(extenders: Vec<Extender>, errors: &mut Errors) -> Vec<Settings> {
    let mut names: Vec<String> = Vec::new();
    let binders = extenders.iter().filter(|e| !e.bind_verb.is_empty()).count();
    let one = |(i, extender): (usize, Extender)| extender.read(&format!("extenders[{i}]"), &mut names, errors);
    let settings = extenders.into_iter().enumerate().map(one).collect();
    if binders > 1 {
        let found = format!("found {binders} extenders implementing bind");
        errors.invalid("extenders", found, "only one extender can implement bind");
    }
    settings
}

impl Extender {
    fn read(self, path: &str, names: &mut Vec<String>, errors: &mut Errors) -> Settings {
        if !self.prioritize_verb.is_empty() && self.weight <= 0 {
            let why = "must have a positive weight applied to it";
            errors.invalid(&format!("{path}.weight"), self.weight, why);
        }
        let is_url = |uri: &http::Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.authority().is_some();
        if !self.url_prefix.parse::<http::Uri>().is_ok_and(|uri| is_url(&uri)) {
            let why = "must be http://HOST[:PORT][/PATH] or https://…";
            errors.invalid(&format!("{path}.urlPrefix"), self.url_prefix.as_str(), why);
        }
        for (i, managed) in self.managed_resources.iter().enumerate() {
            let at = format!("{path}.managedResources[{i}].name");
            if !is_extended(&managed.name) {
                errors.invalid(&at, managed.name.as_str(), "is an invalid extended resource name");
            }
            if names.contains(&managed.name) {
                errors.invalid(&at, managed.name.as_str(), "duplicate extender managed resource name");
            }
            names.push(managed.name.clone());
        }
        let mut tls = self.tls_config.unwrap_or_default();
        check(&format!("{path}.tlsConfig"), &tls, errors);
        tls.insecure |= self.enable_https && tls.ca_file.is_empty() && tls.ca_data.is_empty();
        Settings {
            url: self.url_prefix,
            filter: self.filter_verb,
            prioritize: self.prioritize_verb,
            bind: self.bind_verb,
            preempt: self.preempt_verb,
            weight: self.weight,
            tls,
            timeout: timeout(&format!("{path}.httpTimeout"), self.http_timeout.as_deref(), errors),
            knows_nodes: self.node_cache_capable,
            managed: self.managed_resources.into_iter().map(|managed| managed.name).collect(),
            may_fail: self.ignorable,
        }
    }
}

fn check(path: &str, tls: &Tls, errors: &mut Errors) {
    let has = |file: &str, data: &str| !file.is_empty() || !data.is_empty();
    if tls.insecure && has(&tls.ca_file, &tls.ca_data) {
        let why = "specifying a root certificates file with the insecure flag is not allowed";
        errors.invalid(&format!("{path}.insecure"), true, why);
    }
    let (cert, key) = (has(&tls.cert_file, &tls.cert_data), has(&tls.key_file, &tls.key_data.0));
    if cert != key {
        errors.required(path, "a client certificate needs its key, and a key its certificate");
    }
}

fn timeout(path: &str, text: Option<&str>, errors: &mut Errors) -> Duration {
    let Some(text) = text else { return DEFAULT_TIMEOUT };
    match keelson_api::duration::length(text) {
        Ok(Duration::ZERO) => DEFAULT_TIMEOUT,
        Ok(timeout) => timeout,
        Err(_) => {
            errors.invalid(path, text, "must be a duration that isn't negative, as 5s");
            DEFAULT_TIMEOUT
        }
    }
}

/// A name with a domain that isn't Kubernetes' own.
fn is_extended(name: &str) -> bool {
    let Some((domain, rest)) = name.split_once('/') else {
        return false;
    };
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_end = |text: &str| {
        let ends = [text.chars().next(), text.chars().last()];
        ends.iter().all(|c| c.is_some_and(|c| c.is_ascii_alphanumeric()))
    };
    let is_domain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    !domain.ends_with("kubernetes.io")
        && !domain.starts_with("requests.")
        && domain.len() <= 253
        && rest.len() <= 63
        && domain.chars().all(is_domain)
        && rest.chars().all(is_inner)
        && is_end(domain)
        && is_end(rest)
}
