//! The job that runs helm for a chart: byte by byte the pod that k3s' helm-controller makes, so that its image does the same in it.

use super::chart::{CHART_LABEL, CONFIG_HASH, HelmChart, HelmChartConfig, SecretSpec};
use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_api::duration;
use keelson_client::ApiObject;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// What is the same for all charts.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub image: String,
    /// Where the API is on servers themselves.
    pub api_port: u16,
    /// `HTTP_PROXY` and the like, as this program has them.
    pub proxies: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Install,
    Delete,
    Rollback,
}

impl Act {
    pub fn job_name(self, chart: &str) -> String {
        let act = match self {
            Act::Install => "install",
            Act::Delete => "delete",
            Act::Rollback => "rollback",
        };
        format!("helm-{act}-{chart}")
    }
}

/// A pod template, and what its volumes hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    pub template: Value,
    pub values: BTreeMap<String, ByteString>,
    pub content: BTreeMap<String, String>,
}

pub fn account_name(chart: &str) -> String {
    format!("helm-{chart}")
}
pub fn values_name(chart: &str) -> String {
    format!("chart-values-{chart}")
}
pub fn content_name(chart: &str) -> String {
    format!("chart-content-{chart}")
}
pub fn binding_name(namespace: &str, chart: &str) -> String {
    format!("helm-{namespace}-{chart}")
}

/// A variable; Go leaves an empty value out.
fn variable(name: &str, value: &str) -> Value {
    match value {
        "" => json!({ "name": name }),
        value => json!({"name": name, "value": value}),
    }
}

fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(list) => list.push(item),
        None => *list = json!([item]),
    }
}

fn set_variable(template: &mut Value, name: &str, value: &str) {
    push(&mut template["spec"]["containers"][0]["env"], variable(name, value));
}

fn mount(template: &mut Value, name: &str, path: &str, volume: Value) {
    let mut volume = volume;
    volume["name"] = name.into();
    push(&mut template["spec"]["volumes"], volume);
    push(
        &mut template["spec"]["containers"][0]["volumeMounts"],
        json!({"mountPath": path, "name": name}),
    );
}

/// Without policies, and before it is known what release there is.
pub fn build(
    chart: &HelmChart,
    config: Option<&HelmChartConfig>,
    act: Act,
    settings: &Settings,
) -> Result<Built, String> {
    let (spec, name) = (&chart.spec, chart.name());
    let image = match spec.job_image.trim() {
        "" => settings.image.as_str(),
        given => given,
    };
    let chart_name = match spec.repo.as_str() {
        "" => spec.chart.clone(),
        _ => format!("{name}/{}", spec.chart),
    };
    let memory = || json!({"emptyDir": {"medium": "Memory"}});
    let flag = |b: bool| if b { "true" } else { "false" };
    let env = [
        ("NAME", name),
        ("VERSION", &spec.version),
        ("REPO", &spec.repo),
        ("HELM_DRIVER", chart.driver()),
        ("CHART_NAMESPACE", chart.namespace()),
        ("CHART", &chart_name),
        ("HELM_VERSION", &spec.helm_version),
        ("TARGET_NAMESPACE", chart.target()),
        ("AUTH_PASS_CREDENTIALS", flag(spec.auth_pass_credentials)),
        ("INSECURE_SKIP_TLS_VERIFY", flag(spec.insecure_skip_tls_verify)),
        ("PLAIN_HTTP", flag(spec.plain_http)),
    ];
    let mut template = json!({
        "metadata": {"labels": {CHART_LABEL: name}},
        "spec": {
            "restartPolicy": "OnFailure",
            "containers": [{
                "name": "helm", "image": image, "imagePullPolicy": "IfNotPresent", "resources": {},
                "args": args(chart, act),
                "env": env.map(|(name, value)| variable(name, value)),
                "securityContext": spec.security_context.clone().unwrap_or_else(|| json!({"allowPrivilegeEscalation": false,
                    "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true})),
            }],
            "serviceAccountName": account_name(name),
            "securityContext": spec.pod_security_context.clone().unwrap_or_else(|| json!({"runAsNonRoot": true,
                "seccompProfile": {"type": "RuntimeDefault"}})),
            "priorityClassName": "system-cluster-critical",
            "nodeSelector": {"kubernetes.io/os": "linux"},
        },
    });
    for (name, path) in [
        ("klipper-helm", "/home/klipper-helm/.helm"),
        ("klipper-cache", "/home/klipper-helm/.cache"),
        ("klipper-config", "/home/klipper-helm/.config"),
        ("tmp", "/tmp"),
    ] {
        mount(&mut template, name, path, memory());
    }
    if let Some(timeout) = &spec.timeout {
        let timeout =
            go_duration(timeout).ok_or_else(|| format!("timeout {timeout:?} is no duration, as 10m or 1h30m"))?;
        set_variable(&mut template, "TIMEOUT", &timeout);
    }
    if spec.bootstrap {
        bootstrap(&mut template, settings);
    }
    for (name, value) in &settings.proxies {
        set_variable(&mut template, name, value);
    }
    if let Some(secret) = &spec.auth_secret {
        mount(
            &mut template,
            "auth",
            "/auth",
            json!({"secret": {"defaultMode": 0o644, "secretName": secret.name}}),
        );
    }
    if let Some(secret) = &spec.docker_registry_secret {
        let items = json!([{"key": ".dockerconfigjson", "path": "config.json"}]);
        let volume = json!({"secret": {"defaultMode": 0o644, "secretName": secret.name, "items": items}});
        mount(&mut template, "dockerconfig", "/home/klipper-helm/.docker", volume);
    }
    if let Some(map) = &spec.repo_ca_config_map {
        mount(
            &mut template,
            "ca-files",
            "/ca-files",
            json!({"configMap": {"defaultMode": 0o644, "name": map.name}}),
        );
    }
    let mut built = Built {
        template,
        values: BTreeMap::new(),
        content: BTreeMap::new(),
    };
    if act == Act::Install {
        with_values(&mut built, chart, config)?;
        if !spec.chart_content.is_empty() {
            built
                .content
                .insert(format!("{name}.tgz.base64"), spec.chart_content.clone());
        }
        mount(
            &mut built.template,
            "content",
            "/chart",
            json!({"configMap": {"defaultMode": 0o644, "name": content_name(name)}}),
        );
    }
    Ok(built)
}

fn bootstrap(template: &mut Value, settings: &Settings) {
    let spec = &mut template["spec"];
    spec["nodeSelector"]["node-role.kubernetes.io/control-plane"] = "true".into();
    spec["hostNetwork"] = true.into();
    spec["tolerations"] = json!([
        {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/network-unavailable", "effect": "NoSchedule"},
        {"key": "node.cloudprovider.kubernetes.io/uninitialized", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "CriticalAddonsOnly", "operator": "Exists"},
        {"key": "node-role.kubernetes.io/etcd", "operator": "Exists", "effect": "NoExecute"},
        {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"},
    ]);
    set_variable(template, "KUBERNETES_SERVICE_HOST", "127.0.0.1");
    set_variable(template, "KUBERNETES_SERVICE_PORT", &settings.api_port.to_string());
    set_variable(template, "BOOTSTRAP", "true");
}

/// Files of values in the order in which helm takes them: the chart's, then the configuration's.
fn with_values(built: &mut Built, chart: &HelmChart, config: Option<&HelmChartConfig>) -> Result<(), String> {
    let (spec, own) = (&chart.spec, values_name(chart.name()));
    let mut items = Vec::new();
    let mut sources = Vec::new();
    let mut put = |key: &str, path: &str, text: String, items: &mut Vec<Value>| {
        if !text.is_empty() {
            built.values.insert(key.into(), ByteString(text.into_bytes()));
            items.push(json!({"key": key, "path": path}));
        }
    };
    put(
        "HelmChartValuesContent",
        "values-0-000-HelmChart-ValuesContent.yaml",
        spec.values_content.clone(),
        &mut items,
    );
    put(
        "HelmChartValues",
        "values-0-001-HelmChart-Values.yaml",
        yaml(spec.values.as_ref())?,
        &mut items,
    );
    put("RepoCA", "ca-file.pem", spec.repo_ca.clone(), &mut items);
    sources.extend(projected(&spec.values_secrets, &own, "values-0", "HelmChart"));
    if let Some(config) = config {
        let spec = &config.spec;
        let path = "values-1-000-HelmChartConfig-ValuesContent.yaml";
        put(
            "HelmChartConfigValuesContent",
            path,
            spec.values_content.clone(),
            &mut items,
        );
        let path = "values-1-001-HelmChartConfig-Values.yaml";
        put("HelmChartConfigValues", path, yaml(spec.values.as_ref())?, &mut items);
        sources.extend(projected(&spec.values_secrets, &own, "values-1", "HelmChartConfig"));
    }
    let mut first = json!({"secret": {"name": own}});
    if !items.is_empty() {
        first["secret"]["items"] = items.into();
    }
    sources.insert(0, first);
    mount(
        &mut built.template,
        "values",
        "/config",
        json!({"projected": {"defaultMode": 0o644, "sources": sources}}),
    );
    Ok(())
}

fn projected(secrets: &[SecretSpec], own: &str, prefix: &str, kind: &str) -> Vec<Value> {
    let mut number = 1;
    let used = secrets.iter().filter(|s| !s.keys.is_empty() && s.name != own);
    used.map(|secret| {
        let items = secret.keys.iter().map(|key| {
            number += 1;
            json!({"key": key, "path": format!("{prefix}-{number:03}-{kind}-ValuesSecret.yaml")})
        });
        let items: Vec<Value> = items.collect();
        json!({"secret": {"name": secret.name, "optional": secret.ignore_updates, "items": items}})
    })
    .collect()
}

fn yaml(values: Option<&Value>) -> Result<String, String> {
    match values {
        None | Some(Value::Null) => Ok(String::new()),
        Some(values) => serde_saphyr::to_string(values).map_err(|e| format!("values: {e}")),
    }
}

/// What is said by what is configured, once. What `set_policies` adds is part of it.
pub fn hash(template: &Value, backoff_limit: Option<i32>, data: &[BTreeMap<String, String>]) -> String {
    let mut hash = Sha256::new();
    if let Some(limit) = backoff_limit {
        hash.update(limit.to_string());
    }
    // As Go's encoder ends a document.
    hash.update(format!("{template}\n"));
    for map in data {
        for (key, value) in map {
            hash.update(key);
            hash.update(value);
        }
    }
    format!("SHA256={}", hex::encode_upper(hash.finalize()))
}

/// As it stands on releases: a label's length.
pub fn label_of(hash: &str) -> &str {
    let hash = hash.split_once('=').map_or(hash, |(_, hash)| hash);
    &hash[..hash.len().min(63)]
}

pub fn encoded(data: &BTreeMap<String, ByteString>) -> BTreeMap<String, String> {
    let text = |bytes: &ByteString| {
        serde_json::to_value(bytes)
            .ok()
            .and_then(|v| v.as_str().map(String::from))
    };
    data.iter()
        .map(|(k, v)| (k.clone(), text(v).unwrap_or_default()))
        .collect()
}

pub fn set_policies(template: &mut Value, failure: &str, server_side: &str, force_conflicts: bool) {
    set_variable(template, "FAILURE_POLICY", failure);
    set_variable(template, "SERVER_SIDE", server_side);
    set_variable(
        template,
        "FORCE_CONFLICTS",
        if force_conflicts { "true" } else { "false" },
    );
}

/// By which the image sees whether somebody else was faster, and marks the release.
pub fn set_release(template: &mut Value, hash: &str, revision: i64) {
    template["metadata"]["annotations"] = json!({ CONFIG_HASH: hash });
    set_variable(template, "EXPECTED_RELEASE_REVISION", &revision.to_string());
    set_variable(template, "CONFIG_HASH", label_of(hash));
}

pub fn replace_variable(template: &mut Value, name: &str, value: &str) {
    let env = template["spec"]["containers"][0]["env"].as_array_mut();
    for variable in env.into_iter().flatten().filter(|v| v["name"] == name) {
        variable["value"] = value.into();
    }
}

/// helm itself, in place of what the image would run.
pub fn roll_back_to(template: &mut Value, chart: &HelmChart, revision: i64) {
    let mut args = vec!["rollback".to_string(), chart.name().into(), revision.to_string()];
    args.extend(["--namespace".into(), chart.target().into(), "--wait".into()]);
    if let Some(timeout) = chart.spec.timeout.as_deref().and_then(go_duration) {
        args.extend(["--timeout".into(), timeout]);
    }
    let container = &mut template["spec"]["containers"][0];
    container["command"] = json!(["helm"]);
    container["args"] = args.into();
}

pub fn job(chart: &HelmChart, act: Act, template: Value, backoff_limit: i32, annotations: Map<String, Value>) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": act.job_name(chart.name()), "namespace": chart.namespace(), "labels": {CHART_LABEL: chart.name()},
            "annotations": annotations, "ownerReferences": [owner(chart)]},
        "spec": {"backoffLimit": backoff_limit, "template": template},
    })
}

pub fn owner(chart: &HelmChart) -> Value {
    json!({"apiVersion": "helm.cattle.io/v1", "kind": "HelmChart", "name": chart.name(), "uid": chart.uid(),
        "controller": true, "blockOwnerDeletion": true})
}

/// What the image is told to do.
pub fn args(chart: &HelmChart, act: Act) -> Vec<String> {
    if act != Act::Install {
        return vec!["delete".into()];
    }
    let spec = &chart.spec;
    let mut args = vec!["install".to_string()];
    if !spec.target_namespace.is_empty() {
        args.extend(["--namespace".into(), spec.target_namespace.clone()]);
    }
    for (given, flag) in [
        (spec.create_namespace, "--create-namespace"),
        (spec.take_ownership, "--take-ownership"),
    ] {
        if given {
            args.push(flag.into());
        }
    }
    if !spec.version.is_empty() {
        args.extend(["--version".into(), spec.version.clone()]);
    }
    for (name, value) in &spec.set {
        let (flag, value) = match value {
            IntOrString::Int(number) => ("--set", number.to_string()),
            IntOrString::String(text) if is_typed(text) => ("--set", text.clone()),
            IntOrString::String(text) => ("--set-string", escaped(text)),
        };
        args.extend([flag.into(), format!("{name}={value}")]);
    }
    args
}

fn is_typed(text: &str) -> bool {
    ["true", "false", "null"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word))
}

/// A comma ends a value for helm, unless an odd number of backslashes is before it.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut slashes = 0;
    for c in text.chars() {
        if c == ',' && slashes % 2 == 0 {
            out.push('\\');
        }
        slashes = if c == '\\' { slashes + 1 } else { 0 };
        out.push(c);
    }
    out
}

/// A duration as Go writes it: `90s` is `1m30s`. One below nothing is none that helm could wait for.
pub fn go_duration(text: &str) -> Option<String> {
    let nanos = duration::length(text).ok()?.as_nanos();
    Some(duration::format(i64::try_from(nanos).ok()?))
}
