//! Makes a chart's job with what belongs to it, and takes back what it had.

use super::{Charts, Wanted};
use crate::definitions;
use crate::helm::chart::{CHART_LABEL, HelmChart};
use crate::helm::job::{self, Act, Built};
use crate::helm::release::Release;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, Subject};
use keelson_client::rest::is_namespace_terminating;
use keelson_client::{
    ApiObject, EventType, Kind, ObjectKey, Objects, Outcome, Patch, delete_options, is_already_exists, is_not_found,
};
use serde_json::{Map, Value, json};

const MANAGER: &str = "keelson-helm";

impl Charts {
    pub(super) async fn make(
        &self,
        key: &ObjectKey,
        chart: &HelmChart,
        wanted: Wanted,
        release: &Release,
        act: Act,
    ) -> anyhow::Result<Outcome> {
        let mut template = wanted.built.template.clone();
        job::set_release(&mut template, &wanted.hash, release.revision);
        if wanted.policy == "rollback" {
            // The image doesn't know it: what failed is left to us, if there is anything to go back to.
            let known = if release.well.is_some() { "abort" } else { "reinstall" };
            job::replace_variable(&mut template, "FAILURE_POLICY", known);
        }
        if let (Act::Rollback, Some(well)) = (act, release.well) {
            job::roll_back_to(&mut template, chart, well);
        }
        let made = async {
            self.surround(chart, &wanted.built, act).await?;
            let job = job::job(chart, act, template, wanted.backoff_limit, Map::new());
            self.rest
                .create_raw(&Job::RESOURCE, chart.namespace(), job.to_string().into_bytes())
                .await
        };
        match made.await {
            Err(error) if is_already_exists(&error) => return Ok(Outcome::Retry),
            // No job can run there any more, and what it has goes with the namespace.
            Err(error) if is_namespace_terminating(&error) && chart.is_deleting() => {
                return self.let_go(key, chart, release.revision > 0).await;
            }
            Err(error) => {
                let why = format!("Failed to generate Job: {}", crate::apply::why(&error));
                self.tell(chart, None, Some(("Job create failed", &why))).await?;
                return Err(error.into());
            }
            Ok(_) => {}
        }
        {
            let mut tries = self.tries.lock();
            let count = tries
                .get(key)
                .filter(|(hash, _)| *hash == wanted.hash)
                .map_or(0, |(_, n)| *n);
            tries.insert(key.clone(), (wanted.hash.clone(), count + 1));
        }
        let name = act.job_name(chart.name());
        let (reason, doing) = match act {
            Act::Install => ("ApplyJob", "Applying HelmChart"),
            Act::Delete => ("RemoveJob", "Uninstalling HelmChart"),
            Act::Rollback => ("RollbackJob", "Rolling back HelmChart"),
        };
        self.recorder.event(
            chart,
            EventType::Normal,
            reason,
            format!("{doing} using Job {}/{name}", chart.namespace()),
        );
        let message = format!("Applying HelmChart using Job {}/{name}", chart.namespace());
        self.tell(chart, Some((act, &message)), None).await?;
        Ok(Outcome::Done)
    }

    /// What the job's pod needs: values, the chart itself, an account that may do what helm does.
    async fn surround(&self, chart: &HelmChart, built: &Built, act: Act) -> keelson_client::Result<()> {
        let (namespace, name) = (chart.namespace(), chart.name());
        let own = |of: String| json!({"name": of, "namespace": namespace, "ownerReferences": [job::owner(chart)], "labels": {CHART_LABEL: name}});
        if act == Act::Install {
            let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": own(job::values_name(name)),
                "type": "helmcharts.helm.cattle.io/values", "data": built.values});
            self.apply::<Secret>(namespace, &secret).await?;
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": own(job::content_name(name)), "data": built.content});
            self.apply::<ConfigMap>(namespace, &map).await?;
        }
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": own(job::account_name(name)),
            "automountServiceAccountToken": true});
        self.apply::<ServiceAccount>(namespace, &account).await?;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": job::binding_name(namespace, name), "labels": {definitions::MANAGED_BY: definitions::US, CHART_LABEL: name}},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": job::account_name(name), "namespace": namespace}],
        });
        self.apply::<ClusterRoleBinding>("", &binding).await
    }

    async fn apply<K: Kind>(&self, namespace: &str, body: &Value) -> keelson_client::Result<()> {
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        let patch = Patch::Apply {
            body,
            manager: MANAGER,
            force: true,
        };
        self.rest
            .patch_raw(&K::RESOURCE, namespace, name, "", &patch)
            .await
            .map(drop)
    }

    /// Namespace and name read together the same for several charts, and whoever makes pods may name any chart: only the binding of this
    /// chart's own account goes.
    pub(super) async fn unbind(&self, chart: &ObjectKey) -> anyhow::Result<()> {
        let name = job::binding_name(&chart.namespace, &chart.name);
        let bindings = Objects::<ClusterRoleBinding>::new(&self.rest);
        let ours = bindings.find("", &name).await?.filter(|b| {
            let labels = b.metadata.labels.as_ref();
            let is_ours = labels
                .and_then(|l| l.get(definitions::MANAGED_BY))
                .is_some_and(|by| by == definitions::US);
            let account = job::account_name(&chart.name);
            let is_bound = |s: &Subject| s.name == account && s.namespace.as_deref() == Some(chart.namespace.as_str());
            is_ours && b.subjects.iter().flatten().any(is_bound)
        });
        let Some(binding) = ours else { return Ok(()) };
        match bindings
            .delete("", &name, &delete_options(None, Some(binding.uid()), None))
            .await
        {
            Err(error) if !is_not_found(&error) => Err(error.into()),
            _ => Ok(()),
        }
    }
}
