//! What holds where a namespace's labels say nothing, and who is exempt (`PodSecurityConfiguration`).

use super::{Level, MINOR, Policies, Policy, minor};
use crate::config::file::aggregate;
use anyhow::{Result, ensure};
use keelson_api::Cause;
use keelson_machinery::names;
use serde::Deserialize;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
pub struct Settings {
    pub(super) defaults: Policies,
    usernames: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let open = Policy {
            level: Level::Privileged,
            minor: None,
        };
        Settings {
            defaults: Policies {
                enforce: open,
                audit: open,
                warn: open,
            },
            usernames: Vec::new(),
            namespaces: Vec::new(),
            runtime_classes: Vec::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    api_version: String,
    kind: String,
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    exemptions: Exemptions,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
struct Defaults {
    enforce: String,
    enforce_version: String,
    audit: String,
    audit_version: String,
    warn: String,
    warn_version: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Exemptions {
    usernames: Option<Vec<String>>,
    namespaces: Option<Vec<String>>,
    runtime_classes: Option<Vec<String>>,
}

impl Settings {
    pub fn parse(text: &str) -> Result<Settings> {
        let written: Written = serde_saphyr::from_str(text)?;
        let version = written
            .api_version
            .strip_prefix("pod-security.admission.config.k8s.io/");
        ensure!(
            version.is_some_and(|v| ["v1", "v1beta1", "v1alpha1"].contains(&v))
                && written.kind == "PodSecurityConfiguration",
            "no kind \"{}\" is registered for version \"{}\"",
            written.kind,
            written.api_version
        );
        let mut wrong = Vec::new();
        let d = &written.defaults;
        let defaults = Policies {
            enforce: policy("enforce", &d.enforce, &d.enforce_version, &mut wrong),
            warn: policy("warn", &d.warn, &d.warn_version, &mut wrong),
            audit: policy("audit", &d.audit, &d.audit_version, &mut wrong),
        };
        let mut list = |name: &str, given: Option<Vec<String>>, check: fn(&str) -> Vec<String>| {
            let (given, mut seen) = (given.unwrap_or_default(), BTreeSet::new());
            for (i, one) in given.iter().enumerate() {
                let (at, why) = (format!("exemptions.{name}[{i}]"), check(one));
                if !why.is_empty() {
                    wrong.push(Cause::invalid(at, &one.as_str().into(), &why.join(", ")));
                } else if !seen.insert(one) {
                    wrong.push(Cause::duplicate(at, &one.as_str().into()));
                }
            }
            given
        };
        let e = written.exemptions;
        let namespaces = list("namespaces", e.namespaces, names::dns1123_label);
        let runtime_classes = list("runtimeClasses", e.runtime_classes, names::dns1123_subdomain);
        let usernames = list("usernames", e.usernames, |name| match name {
            "" => vec!["username must not be empty".into()],
            _ => Vec::new(),
        });
        ensure!(wrong.is_empty(), "{}", aggregate(&wrong));
        Ok(Settings {
            defaults,
            usernames,
            namespaces,
            runtime_classes,
        })
    }

    pub(super) fn exempts_namespace(&self, name: &str) -> bool {
        !name.is_empty() && self.namespaces.iter().any(|n| n == name)
    }
    pub(super) fn exempts_user(&self, name: &str) -> bool {
        !name.is_empty() && self.usernames.iter().any(|n| n == name)
    }
    pub(super) fn exempts_class(&self, name: Option<&str>) -> bool {
        name.is_some_and(|name| !name.is_empty() && self.runtime_classes.iter().any(|n| n == name))
    }
}

fn policy(mode: &str, level: &str, version: &str, wrong: &mut Vec<Cause>) -> Policy {
    let found = match level {
        "" => Some(Level::Privileged),
        level => Level::parse(level),
    };
    if found.is_none() {
        wrong.push(Cause::invalid(format!("defaults.{mode}"), &level.into(), Level::ONE_OF));
    }
    let minor = match version {
        "" => None,
        version => minor(version).unwrap_or_else(|| {
            wrong.push(Cause::invalid(
                format!("defaults.{mode}-version"),
                &version.into(),
                MINOR,
            ));
            None
        }),
    };
    Policy {
        level: found.unwrap_or(Level::Privileged),
        minor,
    }
}
