//! What a pod's failure means, and when enough indexes have succeeded: the job's own rules.

use super::indexes::Indexes;
use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyOnExitCodesRequirement, SuccessPolicy};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use keelson_client::ApiObject;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Counts towards the back-off limit.
    Count,
    Ignore,
    FailIndex,
    FailJob(String),
}

impl Verdict {
    pub fn counts(&self) -> bool {
        *self != Verdict::Ignore
    }
}

pub fn judge(job: &Job, pod: &Pod) -> Verdict {
    let policy = job.spec.as_ref().and_then(|s| s.pod_failure_policy.as_ref());
    for (at, rule) in policy.iter().flat_map(|p| p.rules.iter().enumerate()) {
        let what = if let Some(codes) = &rule.on_exit_codes {
            matching_exit(pod, codes).map(|status| {
                let code = status
                    .state
                    .as_ref()
                    .and_then(|s| s.terminated.as_ref())
                    .map_or(0, |t| t.exit_code);
                let name = format!("{}/{}", pod.namespace(), pod.name());
                format!(
                    "Container {} for pod {name} failed with exit code {code} matching {} rule at index {at}",
                    status.name, rule.action
                )
            })
        } else {
            let patterns = rule.on_pod_conditions.as_deref().unwrap_or_default();
            let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
            conditions
                .into_iter()
                .find(|c| {
                    patterns
                        .iter()
                        .any(|p| p.type_ == c.type_ && p.status.as_deref().unwrap_or("True") == c.status)
                })
                .map(|c| {
                    format!(
                        "Pod {}/{} has condition {} matching {} rule at index {at}",
                        pod.namespace(),
                        pod.name(),
                        c.type_,
                        rule.action
                    )
                })
        };
        let Some(message) = what else { continue };
        return match rule.action.as_str() {
            "Ignore" => Verdict::Ignore,
            "FailIndex" => Verdict::FailIndex,
            "FailJob" => Verdict::FailJob(message),
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn matching_exit<'a>(pod: &'a Pod, rule: &PodFailurePolicyOnExitCodesRequirement) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status
        .container_statuses
        .iter()
        .flatten()
        .chain(status.init_container_statuses.iter().flatten());
    all.into_iter().find(|container| {
        let Some(ended) = container.state.as_ref().and_then(|s| s.terminated.as_ref()) else {
            return false;
        };
        let named = rule.container_name.as_ref().is_none_or(|n| *n == container.name);
        let listed = rule.values.contains(&ended.exit_code);
        named
            && ended.exit_code != 0
            && match rule.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                _ => false,
            }
    })
}

/// The rule that the succeeded indexes satisfy, in the words of the condition.
pub fn success(policy: Option<&SuccessPolicy>, completions: i32, succeeded: &Indexes) -> Option<String> {
    if succeeded.is_empty() {
        return None;
    }
    let at = policy?
        .rules
        .iter()
        .position(|rule| match (&rule.succeeded_indexes, rule.succeeded_count) {
            (Some(text), count) => {
                let wanted = Indexes::parse(text, completions);
                let have = wanted.common(succeeded);
                !wanted.is_empty() && (have == wanted.len() || count.is_some_and(|c| have >= c))
            }
            (None, Some(count)) => succeeded.len() >= count,
            (None, None) => false,
        })?;
    Some(format!("Matched rules at index {at}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::batch::v1::SuccessPolicyRule;

    fn job(action: &str, operator: &str, values: &[i32]) -> Job {
        let text = format!(
            r#"{{"metadata":{{}},"spec":{{"template":{{}},"podFailurePolicy":{{"rules":[{{"action":"{action}","onExitCodes":{{"operator":"{operator}","values":{values:?}}}}},
            {{"action":"Ignore","onPodConditions":[{{"type":"DisruptionTarget","status":"True"}}]}}]}}}}}}"#
        );
        Job::decode(text.as_bytes()).expect("valid")
    }

    fn pod(code: i32, disrupted: bool) -> Pod {
        let condition = if disrupted {
            r#"{"type":"DisruptionTarget","status":"True"}"#
        } else {
            ""
        };
        let text = format!(
            r#"{{"metadata":{{"namespace":"ns","name":"p"}},"status":{{"conditions":[{condition}],"containerStatuses":[{{"name":"c","image":"","imageID":"","ready":false,"restartCount":0,"state":{{"terminated":{{"exitCode":{code}}}}}}}]}}}}"#
        );
        Pod::decode(text.as_bytes()).expect("valid")
    }

    #[test]
    fn the_first_matching_rule_decides() {
        assert_eq!(
            judge(&job("FailJob", "In", &[3]), &pod(3, true)),
            Verdict::FailJob(
                "Container c for pod ns/p failed with exit code 3 matching FailJob rule at index 0".into()
            )
        );
        assert_eq!(judge(&job("FailJob", "In", &[3]), &pod(4, true)), Verdict::Ignore);
        assert_eq!(judge(&job("FailJob", "In", &[3]), &pod(4, false)), Verdict::Count);
        assert_eq!(
            judge(&job("FailIndex", "NotIn", &[3]), &pod(4, false)),
            Verdict::FailIndex
        );
        assert_eq!(
            judge(&job("FailIndex", "NotIn", &[3]), &pod(0, false)),
            Verdict::Count,
            "success is no failure"
        );
    }

    #[test]
    fn success_rules() {
        let rule = |indexes: Option<&str>, count| SuccessPolicyRule {
            succeeded_indexes: indexes.map(Into::into),
            succeeded_count: count,
        };
        let policy = SuccessPolicy {
            rules: vec![rule(Some("0,2"), None), rule(Some("0-5"), Some(2)), rule(None, Some(4))],
        };
        let check = |text: &str| success(Some(&policy), 10, &Indexes::parse(text, 10));
        assert_eq!(check(""), None);
        assert_eq!(check("0"), None);
        assert_eq!(check("0,2").as_deref(), Some("Matched rules at index 0"));
        assert_eq!(check("1,4").as_deref(), Some("Matched rules at index 1"));
        assert_eq!(check("6-9").as_deref(), Some("Matched rules at index 2"));
    }
}
