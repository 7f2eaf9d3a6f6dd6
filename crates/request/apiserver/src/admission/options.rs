//! What the server is told about admission, in upstream's options: which plug-ins run, and how they are configured.
//!
//! A plug-in of upstream's that isn't here can be switched off, for it doesn't run, but not on; and nothing is configured
//! that wouldn't follow it.

use super::optional::{event_rate, image_policy, node_selector, tolerations};
use super::pod_security;
use super::tolerations::DefaultTolerationSeconds;
use crate::config::file::{self, together};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// As given: nothing is decided yet.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--admission-control-config-file`
    pub config: Option<PathBuf>,
    /// `--enable-admission-plugins`
    pub enable: Vec<String>,
    /// `--disable-admission-plugins`
    pub disable: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Plug-ins that run besides the usual ones, and those that don't run.
    pub enabled: Vec<String>,
    pub disabled: Vec<String>,
    /// `--default-not-ready-toleration-seconds`, `--default-unreachable-toleration-seconds`
    pub toleration_seconds: DefaultTolerationSeconds,
    pub pod_security: Arc<pod_security::Settings>,
    pub event_rate: event_rate::Settings,
    pub node_selectors: Arc<node_selector::Settings>,
    pub tolerations: Arc<tolerations::Settings>,
    /// Only where it runs.
    pub image_policy: Option<image_policy::Settings>,
}

/// Upstream's plug-ins, by name.
const KNOWN: [&str; 39] = [
    "AlwaysAdmit",
    "AlwaysDeny",
    "AlwaysPullImages",
    "CertificateApproval",
    "CertificateSigning",
    "CertificateSubjectRestriction",
    "ClusterTrustBundleAttest",
    "DefaultIngressClass",
    "DefaultStorageClass",
    "DefaultTolerationSeconds",
    "DenyServiceExternalIPs",
    "EventRateLimit",
    "ExtendedResourceToleration",
    "ImagePolicyWebhook",
    "LimitPodHardAntiAffinityTopology",
    "LimitRanger",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "NamespaceAutoProvision",
    "NamespaceExists",
    "NamespaceLifecycle",
    "NodeDeclaredFeatureValidator",
    "NodeRestriction",
    "OwnerReferencesPermissionEnforcement",
    "PersistentVolumeClaimResize",
    "PodGroupProtection",
    "PodNodeSelector",
    "PodResizeValidator",
    "PodSecurity",
    "PodTolerationRestriction",
    "PodTopologyLabels",
    "Priority",
    "ResourceQuota",
    "RuntimeClass",
    "ServiceAccount",
    "StorageObjectInUseProtection",
    "TaintNodesByCondition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
];

/// Those that run when they are switched on.
pub const OPTIONAL: [&str; 13] = [
    "AlwaysAdmit",
    "AlwaysDeny",
    "AlwaysPullImages",
    "DenyServiceExternalIPs",
    "EventRateLimit",
    "ExtendedResourceToleration",
    "ImagePolicyWebhook",
    "LimitPodHardAntiAffinityTopology",
    "NamespaceAutoProvision",
    "NamespaceExists",
    "OwnerReferencesPermissionEnforcement",
    "PodNodeSelector",
    "PodTolerationRestriction",
];

/// Those that run unless they are switched off.
const HERE: [&str; 25] = [
    "CertificateApproval",
    "CertificateSigning",
    "CertificateSubjectRestriction",
    "ClusterTrustBundleAttest",
    "DefaultIngressClass",
    "DefaultStorageClass",
    "DefaultTolerationSeconds",
    "LimitRanger",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "NamespaceLifecycle",
    "NodeDeclaredFeatureValidator",
    "NodeRestriction",
    "PersistentVolumeClaimResize",
    "PodResizeValidator",
    "PodSecurity",
    "PodTopologyLabels",
    "Priority",
    "ResourceQuota",
    "RuntimeClass",
    "ServiceAccount",
    "StorageObjectInUseProtection",
    "TaintNodesByCondition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
];

/// `AdmissionConfiguration`
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    api_version: String,
    kind: String,
    #[serde(default)]
    plugins: Option<Vec<PluginConfiguration>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
#[derive(Default)]
struct PluginConfiguration {
    name: String,
    path: String,
    configuration: Option<serde_json::Value>,
}

impl Settings {
    pub fn runs(&self, plugin: &str) -> bool {
        let named = |list: &[String]| list.iter().any(|name| name == plugin);
        !named(&self.disabled) && (!OPTIONAL.contains(&plugin) || named(&self.enabled))
    }
}

impl Options {
    pub fn resolve(&self) -> Result<Settings> {
        self.check()?;
        let mut settings = Settings {
            enabled: self.enable.clone(),
            disabled: self.disable.clone(),
            ..Settings::default()
        };
        if let Some(path) = &self.config {
            let text = file::read(path)?;
            let base = path.parent().unwrap_or(Path::new("."));
            settings
                .configure(&text, base)
                .with_context(|| format!("failed to read plugin config: {}", path.display()))?;
        }
        // What means nothing without a configuration.
        if settings.runs("EventRateLimit") {
            settings.event_rate.check().context(not_begun("EventRateLimit"))?;
        }
        ensure!(
            settings.image_policy.is_some() || !settings.runs("ImagePolicyWebhook"),
            "{}: no config specified",
            not_begun("ImagePolicyWebhook")
        );
        for name in ["AlwaysAdmit", "AlwaysDeny"]
            .into_iter()
            .filter(|name| settings.runs(name))
        {
            tracing::warn!("{name} is deprecated, and of no use to a cluster");
        }
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        let mut wrong = Vec::new();
        for (option, list) in [
            ("enable-admission-plugins", &self.enable),
            ("disable-admission-plugins", &self.disable),
        ] {
            for name in list.iter().filter(|n| !KNOWN.contains(&n.as_str())) {
                wrong.push(format!("{option} plugin {name:?} is unknown"));
            }
        }
        let mut both: Vec<&str> = self.enable.iter().map(String::as_str).collect();
        both.retain(|name| self.disable.iter().any(|d| d == name));
        both.sort_unstable();
        if !both.is_empty() {
            let both = both.join(" ");
            wrong.push(format!(
                "[{both}] in enable-admission-plugins and disable-admission-plugins overlapped"
            ));
        }
        let is_in = |list: &[&str], name: &str| list.contains(&name);
        let absent = |name: &&String| is_in(&KNOWN, name) && !is_in(&HERE, name) && !is_in(&OPTIONAL, name);
        for name in self.enable.iter().filter(absent) {
            wrong.push(format!(
                "enable-admission-plugins plugin {name:?} is not part of Keelson"
            ));
        }
        ensure!(wrong.is_empty(), "{}", together(wrong));
        Ok(())
    }
}

fn not_begun(plugin: &str) -> String {
    format!("couldn't init admission plugin {plugin:?}")
}

/// Plug-ins that the file configures.
const CONFIGURED: [&str; 5] = [
    "EventRateLimit",
    "ImagePolicyWebhook",
    "PodNodeSelector",
    "PodSecurity",
    "PodTolerationRestriction",
];

impl Settings {
    /// Relative paths in the file are relative to where it stands. What is said of an optional plug-in that doesn't run
    /// isn't read, as upstream doesn't.
    fn configure(&mut self, text: &str, base: &Path) -> Result<()> {
        let written: Written = serde_saphyr::from_str(text)?;
        let known = [
            "apiserver.config.k8s.io/v1",
            "apiserver.config.k8s.io/v1alpha1",
            "apiserver.k8s.io/v1alpha1",
        ];
        ensure!(
            known.contains(&written.api_version.as_str()) && written.kind == "AdmissionConfiguration",
            "no kind \"{}\" is registered for version \"{}\"",
            written.kind,
            written.api_version
        );
        let mut seen = BTreeSet::new();
        for (i, plugin) in written.plugins.into_iter().flatten().enumerate() {
            let name = plugin.name.as_str();
            ensure!(
                CONFIGURED.contains(&name),
                "plugins[{i}].name: Unsupported value: {name:?}: Keelson configures by this file: {CONFIGURED:?}"
            );
            ensure!(
                seen.insert(plugin.name.clone()),
                "plugins[{i}].name: Duplicate value: {name:?}"
            );
            if OPTIONAL.contains(&name) && !self.runs(name) {
                continue;
            }
            let text = match (&plugin.configuration, plugin.path.as_str()) {
                (Some(nested), _) => nested.to_string(),
                (None, "") => continue,
                (None, path) => file::read(&base.join(path))?,
            };
            let beside = base.join(&plugin.path);
            let base = match beside.parent() {
                Some(parent) if plugin.configuration.is_none() => parent,
                _ => base,
            };
            self.set(name, &text, base).with_context(|| not_begun(name))?;
        }
        Ok(())
    }

    fn set(&mut self, plugin: &str, text: &str, base: &Path) -> Result<()> {
        match plugin {
            "EventRateLimit" => self.event_rate = event_rate::Settings::parse(text)?,
            "ImagePolicyWebhook" => self.image_policy = Some(image_policy::Settings::parse(text, base)?),
            "PodNodeSelector" => self.node_selectors = Arc::new(node_selector::Settings::parse(text)?),
            "PodTolerationRestriction" => self.tolerations = Arc::new(tolerations::Settings::parse(text)?),
            _ => self.pod_security = Arc::new(pod_security::Settings::parse(text)?),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(enable: &[&str], disable: &[&str]) -> String {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_string()).collect();
        let options = Options {
            enable: list(enable),
            disable: list(disable),
            ..Options::default()
        };
        options.resolve().map_or_else(|e| format!("{e:#}"), |_| String::new())
    }

    #[test]
    fn plug_ins_go_by_upstreams_names() {
        assert_eq!(
            refusal(&["NodeRestriction"], &["DefaultStorageClass", "PodGroupProtection"]),
            ""
        );
        assert_eq!(
            refusal(&["Foo"], &[]),
            "enable-admission-plugins plugin \"Foo\" is unknown"
        );
        assert_eq!(
            refusal(&[], &["Foo"]),
            "disable-admission-plugins plugin \"Foo\" is unknown"
        );
        assert!(refusal(&["Priority"], &["Priority"]).contains("[Priority] in enable-admission-plugins and"));
        assert!(refusal(&["PodGroupProtection"], &[]).contains("\"PodGroupProtection\" is not part of Keelson"));
        assert_eq!(
            refusal(&["EventRateLimit"], &[]),
            "couldn't init admission plugin \"EventRateLimit\": limits: Invalid value: null: must not be empty"
        );
        let said = refusal(&["ImagePolicyWebhook"], &[]);
        assert_eq!(
            said,
            "couldn't init admission plugin \"ImagePolicyWebhook\": no config specified"
        );
        assert!(HERE.iter().chain(&OPTIONAL).all(|name| KNOWN.contains(name)));
        assert_eq!(refusal(&["AlwaysPullImages", "DenyServiceExternalIPs"], &[]), "");
    }

    #[test]
    fn files_configure_what_is_here_and_nothing_else() {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n";
        let reading = |text: &str, enabled: &[&str]| {
            let mut settings = Settings {
                enabled: enabled.iter().map(ToString::to_string).collect(),
                ..Settings::default()
            };
            let read = settings.configure(text, Path::new("."));
            read.map(|()| settings).map_err(|e| format!("{e:#}"))
        };
        let read = |rest: &str| reading(&format!("{head}{rest}"), &[]);
        let pod_security = |rest: &str| {
            read(&format!(
                "- name: PodSecurity\n  configuration: {{apiVersion: pod-security.admission.config.k8s.io/v1, kind: PodSecurityConfiguration, {rest}}}\n"
            ))
        };
        assert!(pod_security("defaults: {enforce: baseline, enforce-version: v1.30}").is_ok());
        for (rest, why) in [
            (
                "defaults: {enforce: high}",
                "defaults.enforce: Invalid value: \"high\": must be one of privileged, baseline, restricted",
            ),
            (
                "defaults: {warn-version: '1.30'}",
                "defaults.warn-version: Invalid value: \"1.30\": must be \"latest\" or \"v1.x\"",
            ),
            (
                "exemptions: {namespaces: [a, a]}",
                "exemptions.namespaces[1]: Duplicate value: \"a\"",
            ),
            (
                "exemptions: {namespaces: [A]}",
                "exemptions.namespaces[0]: Invalid value: \"A\"",
            ),
            (
                "exemptions: {usernames: ['']}",
                "exemptions.usernames[0]: Invalid value: \"\": username must not be empty",
            ),
            (
                "exemptions: {runtimeClasses: [a/b]}",
                "exemptions.runtimeClasses[0]: Invalid value: \"a/b\"",
            ),
            ("default: {}", "default"),
        ] {
            let said = pod_security(rest).unwrap_err();
            assert!(said.contains(why), "{rest}: {said}");
        }
        let other = read("- {name: ResourceQuota, path: x}\n").unwrap_err();
        assert!(other.contains("Unsupported value: \"ResourceQuota\""), "{other}");
        assert!(read("- {name: PodSecurity, path: /nowhere/at/all}\n").is_err());
        let wrong = reading("apiVersion: v1\nkind: AdmissionConfiguration\n", &[]);
        assert!(wrong.unwrap_err().contains("no kind"));

        // An optional plug-in's is read where it runs.
        let absent = "- {name: ImagePolicyWebhook, path: /nowhere/at/all}\n";
        assert!(read(absent).is_ok());
        let run = |rest: &str, plugin: &str| reading(&format!("{head}{rest}"), &[plugin]).unwrap_err();
        assert!(run(absent, "ImagePolicyWebhook").contains("open /nowhere/at/all"));
        let long = "- {name: ImagePolicyWebhook, configuration: {imagePolicy: {kubeConfigFile: x, allowTTL: 4000}}}\n";
        assert_eq!(
            run(long, "ImagePolicyWebhook"),
            "couldn't init admission plugin \"ImagePolicyWebhook\": valid value is between 1s and 30m0s, got 1h6m40s"
        );
        let twice = "- {name: PodNodeSelector}\n- {name: PodNodeSelector}\n";
        assert!(run(twice, "PodNodeSelector").contains("plugins[1].name: Duplicate value: \"PodNodeSelector\""));
    }
}
