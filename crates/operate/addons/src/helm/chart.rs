//! `HelmChart` and `HelmChartConfig` of `helm.cattle.io/v1`, field by field as k3s' helm-controller has them.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

pub const GROUP: &str = "helm.cattle.io";
pub const CHARTS: &str = "helmcharts.helm.cattle.io";
pub const CONFIGS: &str = "helmchartconfigs.helm.cattle.io";

/// On jobs and pods: whose they are.
pub const CHART_LABEL: &str = "helmcharts.helm.cattle.io/chart";
pub const CONFIG_HASH: &str = "helmcharts.helm.cattle.io/configHash";
/// Which controller's a chart is.
pub const MANAGED_BY: &str = "helmcharts.cattle.io/managed-by";
/// A chart that nobody is to touch; one that is being deleted goes without its release being uninstalled.
pub const UNMANAGED: &str = "helmcharts.helm.cattle.io/unmanaged";
/// As wrangler's, so that a chart that comes from such a controller is let go of by this one.
pub const FINALIZER: &str = "wrangler.cattle.io/on-helm-chart-remove";

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HelmChart {
    pub metadata: ObjectMeta,
    pub spec: ChartSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<ChartStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChartSpec {
    pub target_namespace: String,
    pub create_namespace: bool,
    pub chart: String,
    pub version: String,
    pub repo: String,
    #[serde(rename = "repoCA")]
    pub repo_ca: String,
    #[serde(rename = "repoCAConfigMap")]
    pub repo_ca_config_map: Option<Reference>,
    pub set: BTreeMap<String, IntOrString>,
    pub values: Option<Value>,
    pub values_content: String,
    pub values_secrets: Vec<SecretSpec>,
    pub helm_version: String,
    pub bootstrap: bool,
    pub take_ownership: bool,
    pub server_side: String,
    pub force_conflicts: bool,
    pub chart_content: String,
    pub job_image: String,
    #[serde(rename = "backOffLimit")]
    pub backoff_limit: Option<i32>,
    pub timeout: Option<String>,
    pub failure_policy: String,
    pub auth_secret: Option<Reference>,
    pub auth_pass_credentials: bool,
    #[serde(rename = "insecureSkipTLSVerify")]
    pub insecure_skip_tls_verify: bool,
    #[serde(rename = "plainHTTP")]
    pub plain_http: bool,
    pub docker_registry_secret: Option<Reference>,
    pub pod_security_context: Option<Value>,
    pub security_context: Option<Value>,
    pub driver: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Reference {
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SecretSpec {
    pub name: String,
    pub keys: Vec<String>,
    pub ignore_updates: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChartStatus {
    pub job_name: String,
    pub conditions: Vec<ChartCondition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ChartCondition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HelmChartConfig {
    pub metadata: ObjectMeta,
    pub spec: ConfigSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ConfigSpec {
    pub values: Option<Value>,
    pub values_content: String,
    pub values_secrets: Vec<SecretSpec>,
    pub failure_policy: String,
    pub server_side: String,
    pub force_conflicts: Option<bool>,
}

keelson_client::custom_kinds! {
    HelmChart, GROUP, "v1", "HelmChart", "helmcharts", true;
    HelmChartConfig, GROUP, "v1", "HelmChartConfig", "helmchartconfigs", true;
}

impl HelmChart {
    /// Where its release is.
    pub fn target(&self) -> &str {
        match self.spec.target_namespace.as_str() {
            "" => self.metadata.namespace.as_deref().unwrap_or_default(),
            given => given,
        }
    }
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(name).map(String::as_str)
    }
    pub fn driver(&self) -> &str {
        match self.spec.driver.as_str() {
            "" => "secret",
            given => given,
        }
    }
}
