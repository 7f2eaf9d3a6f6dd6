//! Log rotation: a log that has grown too long gets another name, the runtime opens a new one, and the oldest go.

use crate::host::Host;
use crate::kubelet::Kubelet;
use crate::observe;
use crate::pods;
use crate::worker::Stage;
use keelson_cri::v1 as cri;
use std::path::Path;

pub async fn rotate_all(kl: &Kubelet) {
    if kl.workers.all().iter().all(|h| h.stage() != Stage::Syncing) {
        return;
    }
    let filter = cri::ContainerFilter {
        state: Some(cri::ContainerStateValue {
            state: cri::ContainerState::ContainerRunning as i32,
        }),
        ..Default::default()
    };
    let running = match kl
        .cri
        .runtime
        .clone()
        .list_containers(cri::ListContainersRequest { filter: Some(filter) })
        .await
    {
        Ok(answer) => answer.into_inner().containers,
        Err(e) => {
            tracing::warn!("logs can't be rotated, the runtime doesn't list its containers: {e}");
            return;
        }
    };
    for c in running {
        let label = |k: &str| c.labels.get(k).map(String::as_str).unwrap_or_default();
        let Some(handle) = kl.workers.get(label(observe::LABEL_POD_UID)) else {
            continue;
        };
        let pod = handle.pod();
        let attempt = c.metadata.as_ref().map_or(0, |m| m.attempt);
        let dir = kl
            .layout
            .pod_logs(pods::namespace(&pod), pods::name(&pod), pods::uid(&pod))
            .join(label(observe::LABEL_CONTAINER_NAME));
        let name = format!("{attempt}.log");
        if kl
            .host
            .file_size(&dir.join(&name))
            .is_ok_and(|size| size > kl.cfg.log_max_size)
            && let Err(e) = rotate(kl, &c.id, &dir, &name).await
        {
            tracing::warn!(pod = %pods::describe(&pod), "rotating a log failed: {e}");
        }
    }
}

async fn rotate(kl: &Kubelet, id: &str, dir: &Path, name: &str) -> Result<(), String> {
    let text = |e: std::io::Error| e.to_string();
    let all = kl.host.list_dir(dir).map_err(text)?;
    for old in surplus(&all, name, kl.cfg.log_max_files) {
        kl.host.remove_file(&dir.join(old)).map_err(text)?;
    }
    let rotated = dir.join(format!("{name}.{}", kl.host.now().strftime("%Y%m%d-%H%M%S")));
    let current = dir.join(name);
    kl.host.rename(&current, &rotated).map_err(text)?;
    let request = cri::ReopenContainerLogRequest {
        container_id: id.to_owned(),
    };
    if let Err(e) = kl.cri.runtime.clone().reopen_container_log(request).await {
        // The runtime still writes to the old file: it keeps its name.
        kl.host.rename(&rotated, &current).map_err(text)?;
        return Err(crate::rpc_text(&e));
    }
    Ok(())
}

/// Removes the log of a container that is gone, and what was rotated out of it.
pub fn remove(host: &dyn Host, log: &Path) -> std::io::Result<()> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return Ok(());
    };
    let all = match host.list_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        all => all?,
    };
    let rotated = surplus(&all, name, 0);
    for name in rotated.into_iter().chain([name]) {
        host.remove_file(&dir.join(name))?;
    }
    Ok(())
}

/// The oldest rotated files beyond those kept: with the current one and the one about to be rotated there are `max`.
fn surplus<'a>(names: &'a [String], name: &str, max: usize) -> Vec<&'a str> {
    let prefix = format!("{name}.");
    let mut rotated: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|n| n.starts_with(&prefix))
        .collect();
    rotated.sort_unstable();
    let keep = max.saturating_sub(2);
    rotated.truncate(rotated.len().saturating_sub(keep));
    rotated
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;

    #[test]
    fn rotated_logs_go_with_their_container() {
        let host = FakeHost::new(crate::host::Machine::default(), jiff::Timestamp::UNIX_EPOCH);
        for name in ["0.log", "0.log.20260101-000000", "1.log", "10.log"] {
            host.write(&Path::new("/logs/c").join(name), b"x", 0o600).unwrap();
        }
        remove(&host, Path::new("/logs/c/0.log")).unwrap();
        assert_eq!(host.list_dir(Path::new("/logs/c")).unwrap(), ["1.log", "10.log"]);
        remove(&host, Path::new("/logs/gone/0.log")).unwrap();
    }

    #[test]
    fn the_oldest_go() {
        let names: Vec<String> = ["0.log", "0.log.1", "0.log.2", "0.log.3", "0.log.4", "1.log.0"]
            .map(Into::into)
            .to_vec();
        assert_eq!(surplus(&names, "0.log", 5), ["0.log.1"]);
        assert_eq!(surplus(&names, "0.log", 2).len(), 4);
        assert!(surplus(&names, "1.log", 5).is_empty());
    }
}
