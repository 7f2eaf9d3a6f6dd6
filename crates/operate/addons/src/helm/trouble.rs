//! Why a job doesn't come to its end, from what its pods say.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use keelson_client::{ApiObject, ObjectKey};
use parking_lot::Mutex;
use std::collections::BTreeMap;

/// What a chart's pods said last, and of which job they were (its uid). A job whose tries are used up takes its pods with it, often before anybody asks them.
#[derive(Default)]
pub struct Heard(Mutex<BTreeMap<ObjectKey, (String, String)>>);

impl Heard {
    pub fn hear(&self, chart: ObjectKey, pod: &Pod) {
        let owner = pod.metadata.owner_references.iter().flatten().next();
        if let (Some(owner), Some(why)) = (owner, of([pod])) {
            self.0.lock().insert(chart, (owner.uid.clone(), why));
        }
    }

    pub fn of(&self, chart: &ObjectKey, job: &str) -> Option<String> {
        let heard = self.0.lock();
        heard.get(chart).filter(|(of, _)| of == job).map(|(_, why)| why.clone())
    }

    pub fn forget(&self, chart: &ObjectKey) {
        self.0.lock().remove(chart);
    }
}

/// `None`: nothing is the matter.
pub fn of<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Option<String> {
    let newest = pods
        .into_iter()
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
