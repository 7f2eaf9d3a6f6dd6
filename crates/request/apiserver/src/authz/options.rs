//! What the server is told about authorisation, in upstream's options, and what follows from it.

use super::abac::Policies;
use super::structured::{Checked, ConnectionInfo, Go, Member, Webhook, Written};
use crate::config::file::{self, together};
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// As given: nothing is decided yet.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--authorization-config`
    pub config: Option<PathBuf>,
    /// `--authorization-mode`
    pub modes: Option<Vec<String>>,
    /// `--authorization-policy-file`
    pub policy_file: Option<PathBuf>,
    /// `--authorization-webhook-*`
    pub webhook_config_file: Option<PathBuf>,
    pub webhook_version: Option<String>,
    pub authorized_ttl: Option<Duration>,
    pub unauthorized_ttl: Option<Duration>,
}

/// Who decides what users may do.
#[derive(Clone, Debug)]
pub struct Settings {
    pub members: Arc<Vec<Checked>>,
    /// The file they were read from, which is followed: its path and text.
    pub file: Option<(PathBuf, String)>,
    /// Whether everybody may do everything by option: then nobody unknown is let in.
    pub allows_all: bool,
    /// Of ABAC.
    pub policies: Option<Arc<Policies>>,
}

/// What a server does that is told nothing (upstream's program allows everything then, and is always told something).
const DEFAULT_MODES: [&str; 2] = ["Node", "RBAC"];
const MODES: [&str; 6] = ["ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];

impl Default for Settings {
    fn default() -> Self {
        use super::structured::Kind;
        let of = |kind, name: &str| Checked {
            kind,
            name: name.into(),
        };
        Settings {
            members: Arc::new(vec![of(Kind::Node, "node"), of(Kind::Rbac, "rbac")]),
            file: None,
            allows_all: false,
            policies: None,
        }
    }
}

impl Options {
    pub fn resolve(&self) -> Result<Settings> {
        if let Some(path) = &self.config {
            let others = self.modes.is_some()
                || self.webhook_config_file.is_some()
                || self.webhook_version.is_some()
                || self.authorized_ttl.is_some()
                || self.unauthorized_ttl.is_some();
            ensure!(
                !others,
                "--authorization-config can not be specified when --authorization-mode or --authorization-webhook-* flags are defined"
            );
            let text = file::read(path)?;
            let members = Written::parse(&text)?.check(&[])?;
            let has_abac = members.iter().any(|m| m.kind.name() == "ABAC");
            ensure!(
                has_abac == self.policy_file.is_some(),
                "an authorizer of type ABAC and --authorization-policy-file go together"
            );
            return Ok(Settings {
                members: Arc::new(members),
                file: Some((path.clone(), text)),
                allows_all: false,
                policies: self.policies()?,
            });
        }
        let modes = match &self.modes {
            Some(modes) => modes.clone(),
            None => DEFAULT_MODES.map(str::to_string).to_vec(),
        };
        self.check_modes(&modes)?;
        let written = Written::of(modes.iter().map(|mode| self.member(mode)).collect());
        Ok(Settings {
            members: Arc::new(written.check(&[])?),
            file: None,
            allows_all: modes.iter().any(|m| m == "AlwaysAllow"),
            policies: self.policies()?,
        })
    }

    fn policies(&self) -> Result<Option<Arc<Policies>>> {
        let opened = self.policy_file.as_deref().map(Policies::open).transpose();
        opened.context("invalid authorization config")
    }

    fn check_modes(&self, modes: &[String]) -> Result<()> {
        let has = |mode: &str| modes.iter().any(|m| m == mode);
        let mut wrong = Vec::new();
        if modes.is_empty() {
            wrong.push("at least one authorization-mode must be passed".to_string());
        }
        for mode in modes {
            if !MODES.contains(&mode.as_str()) {
                wrong.push(format!("authorization-mode {mode:?} is not a valid mode"));
            }
            if mode == "ABAC" && self.policy_file.is_none() {
                wrong.push("authorization-mode ABAC's authorization policy file not passed".into());
            }
            if mode == "Webhook" && self.webhook_config_file.is_none() {
                wrong.push("authorization-mode Webhook's authorization config file not passed".into());
            }
        }
        if self.policy_file.is_some() && !has("ABAC") {
            wrong.push("cannot specify --authorization-policy-file without mode ABAC".into());
        }
        if self.webhook_config_file.is_some() && !has("Webhook") {
            wrong.push("cannot specify --authorization-webhook-config-file without mode Webhook".into());
        }
        let lonely = self.webhook_version.is_some() || self.authorized_ttl.is_some() || self.unauthorized_ttl.is_some();
        if lonely && !has("Webhook") {
            wrong.push("--authorization-webhook-version and -cache-* mean nothing without mode Webhook".into());
        }
        let mut once = modes.to_vec();
        once.sort_unstable();
        once.dedup();
        if once.len() != modes.len() {
            let shown: Vec<String> = modes.iter().map(|m| format!("{m:?}")).collect();
            wrong.push(format!(
                "authorization-mode [{}] has mode specified more than once",
                shown.join(" ")
            ));
        }
        ensure!(wrong.is_empty(), "{}", together(wrong));
        Ok(())
    }

    /// The same as a configuration would say it.
    fn member(&self, mode: &str) -> Member {
        let name = match mode {
            "Webhook" => "default".to_string(),
            mode => mode.to_ascii_lowercase(),
        };
        let ttl = |given: Option<Duration>, default: u64| given.unwrap_or(Duration::from_secs(default));
        let webhook = || {
            let (allowed, denied) = (ttl(self.authorized_ttl, 300), ttl(self.unauthorized_ttl, 30));
            // A time of zero says that nothing is remembered.
            let or_any = |d: Duration| Go::from(if d.is_zero() { Duration::from_secs(1) } else { d });
            let file = self
                .webhook_config_file
                .as_ref()
                .and_then(|f| std::path::absolute(f).ok());
            Webhook {
                authorized_ttl: or_any(allowed),
                cache_authorized_requests: Some(!allowed.is_zero()),
                unauthorized_ttl: or_any(denied),
                cache_unauthorized_requests: Some(!denied.is_zero()),
                timeout: Go::seconds(30),
                subject_access_review_version: self.webhook_version.clone().unwrap_or_else(|| "v1beta1".into()),
                failure_policy: "NoOpinion".into(),
                connection_info: ConnectionInfo {
                    kind: "KubeConfigFile".into(),
                    kube_config_file: file.map(|f| f.to_string_lossy().into_owned()),
                },
                ..Webhook::default()
            }
        };
        Member {
            kind: mode.into(),
            name,
            webhook: (mode == "Webhook").then(webhook),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_checked_as_upstream_checks_them() {
        let resolve = |modes: &[&str], change: &dyn Fn(&mut Options)| {
            let mut options = Options {
                modes: Some(modes.iter().map(|m| (*m).to_string()).collect()),
                ..Options::default()
            };
            change(&mut options);
            let names = |s: Settings| s.members.iter().map(|m| m.name.clone()).collect::<Vec<_>>();
            options.resolve().map(names).map_err(|e| format!("{e:#}"))
        };
        let as_given = |_: &mut Options| {};
        assert_eq!(
            resolve(&["RBAC", "AlwaysDeny"], &as_given).unwrap(),
            ["rbac", "alwaysdeny"]
        );
        for (modes, why) in [
            (&["Foo"][..], "authorization-mode \"Foo\" is not a valid mode"),
            (
                &["RBAC", "RBAC"],
                "authorization-mode [\"RBAC\" \"RBAC\"] has mode specified more than once",
            ),
            (
                &["Webhook"],
                "authorization-mode Webhook's authorization config file not passed",
            ),
            (
                &["ABAC"],
                "authorization-mode ABAC's authorization policy file not passed",
            ),
            (&[], "at least one authorization-mode must be passed"),
        ] {
            let said = resolve(modes, &as_given).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        let file = |o: &mut Options| o.webhook_config_file = Some("/x".into());
        assert!(resolve(&["RBAC"], &file).unwrap_err().contains("without mode Webhook"));
        assert!(resolve(&["Webhook"], &file).unwrap_err().contains("error loading file"));
        let policies = |o: &mut Options| o.policy_file = Some("/nowhere/at/all".into());
        assert!(resolve(&["RBAC"], &policies).unwrap_err().contains("without mode ABAC"));
        let said = resolve(&["ABAC"], &policies).unwrap_err();
        assert!(
            said.starts_with("invalid authorization config: open /nowhere/at/all"),
            "{said}"
        );
        let both = |o: &mut Options| o.config = Some("/x".into());
        assert!(
            resolve(&["RBAC"], &both)
                .unwrap_err()
                .contains("can not be specified when --authorization-mode")
        );
        let default = Options::default().resolve().unwrap();
        assert_eq!(default.members.len(), 2);
        assert!(!default.allows_all);
    }
}
