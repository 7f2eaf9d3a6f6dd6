//! Why a job doesn't come to its end, from what its pods say.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use keelson_client::ApiObject;

/// `None`: nothing is the matter.
pub fn of(pods: &[impl AsRef<Pod>]) -> Option<String> {
    let newest = pods
        .iter()
        .map(AsRef::as_ref)
        .max_by_key(|p| p.metadata.creation_timestamp.as_ref().map(|t| t.0))?;
    let status = newest.status.as_ref()?;
    let conditions = status.conditions.iter().flatten();
    let unscheduled = conditions
        .into_iter()
        .find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled {
        return Some(format!(
            "pod {}: {}",
            newest.name(),
            condition.message.as_deref().unwrap_or("it has no node")
        ));
    }
    let container = status.container_statuses.iter().flatten().next()?;
    of_container(container).map(|why| format!("pod {}: {why}", newest.name()))
}

fn of_container(container: &ContainerStatus) -> Option<String> {
    let state = container.state.clone().unwrap_or_default();
    let last = container.last_state.clone().unwrap_or_default();
    if let Some(ended) = state.terminated.or(last.terminated).filter(|t| t.exit_code != 0) {
        let said = ended.message.as_deref().map(str::trim).filter(|m| !m.is_empty());
        let said = said.or(ended.reason.as_deref()).unwrap_or("it said nothing");
        return Some(format!(
            "it ended with {} ({} times): {said}",
            ended.exit_code,
            container.restart_count.max(1)
        ));
    }
    let waiting = state.waiting?;
    let reason = waiting
        .reason
        .filter(|r| r != "ContainerCreating" && r != "PodInitializing")?;
    Some(match waiting.message {
        Some(message) => format!("{reason}: {message}"),
        None => reason,
    })
}
