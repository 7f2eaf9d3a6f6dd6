//! Fills cluster roles that are made of others.

use crate::context::Context;
use async_trait::async_trait;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use keelson_client::{
    ApiObject, Controller, Expectations, Informer, Kind, ObjectKey, Objects, Outcome, Patch, Reconcile, is_not_found,
    labels,
};
use serde_json::json;
use std::sync::Arc;

const MANAGER: &str = "clusterrole-aggregation-controller";

pub fn start(context: &Context) {
    let roles = context.informer::<ClusterRole>();
    let controller = Controller::new("clusterrole-aggregation")
        .input(&roles)
        .output(ClusterRole::RESOURCE);
    let queue = controller.queue();
    let known = roles.clone();
    roles.on_change(move |change| {
        let (new, old) = (change.object(), change.old());
        for role in known.store().filter(|r| r.aggregation_rule.is_some()) {
            if role.name() == new.name() || takes(&role, new) || old.is_some_and(|old| takes(&role, old)) {
                queue.add(role.key());
            }
        }
    });
    let objects = Objects::new(&context.rest(MANAGER));
    context.run(
        controller,
        Aggregator {
            roles,
            objects,
            written: Expectations::default(),
        },
    );
}

fn takes(role: &ClusterRole, other: &ClusterRole) -> bool {
    let selectors = role
        .aggregation_rule
        .iter()
        .flat_map(|a| a.cluster_role_selectors.iter().flatten());
    role.name() != other.name()
        && selectors
            .into_iter()
            .any(|s| labels::matches(Some(s), other.metadata.labels.as_ref()))
}

/// The rules of all roles that each selector finds, by name, every rule once.
fn rules(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Vec<PolicyRule> {
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in role
        .aggregation_rule
        .iter()
        .flat_map(|a| a.cluster_role_selectors.iter().flatten())
    {
        let found = all
            .iter()
            .filter(|r| r.name() != role.name() && labels::matches(Some(selector), r.metadata.labels.as_ref()));
        for rule in found.flat_map(|r| r.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    rules
}

struct Aggregator {
    roles: Informer<ClusterRole>,
    objects: Objects<ClusterRole>,
    written: Expectations,
}

#[async_trait]
impl Reconcile for Aggregator {
    async fn reconcile(&self, key: &ObjectKey) -> anyhow::Result<Outcome> {
        self.written.settle(key, self.roles.store()).await?;
        let found = self.roles.store().get_key(key).filter(|r| r.aggregation_rule.is_some());
        let Some(role) = found else { return Ok(Outcome::Done) };
        let wanted = rules(&role, &self.roles.store().list());
        if role.rules.as_deref().unwrap_or_default() == wanted {
            return Ok(Outcome::Done);
        }
        let body = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": key.name},
            "rules": wanted,
        });
        match self
            .objects
            .patch(
                "",
                &key.name,
                Patch::Apply {
                    body: &body,
                    manager: MANAGER,
                    force: true,
                },
            )
            .await
        {
            Ok(written) => self.written.wrote(key, written.meta()),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_collected_once_and_in_order() {
        let role = |text: &str| Arc::new(ClusterRole::decode(text.as_bytes()).expect("valid"));
        let sum = role(
            r#"{"metadata":{"name":"sum","labels":{"to":"sum"}},"aggregationRule":{"clusterRoleSelectors":[{"matchLabels":{"to":"sum"}}]}}"#,
        );
        let all = [
            role(r#"{"metadata":{"name":"a","labels":{"to":"sum"}},"rules":[{"verbs":["get"]},{"verbs":["list"]}]}"#),
            role(r#"{"metadata":{"name":"b","labels":{"to":"sum"}},"rules":[{"verbs":["list"]},{"verbs":["watch"]}]}"#),
            role(r#"{"metadata":{"name":"c"},"rules":[{"verbs":["delete"]}]}"#),
            sum.clone(),
        ];
        let verbs: Vec<String> = rules(&sum, &all).into_iter().flat_map(|r| r.verbs).collect();
        assert_eq!(verbs, ["get", "list", "watch"]);
        assert!(takes(&sum, &all[0]) && !takes(&sum, &all[2]) && !takes(&sum, &sum));
    }
}
