//! A container's labels for SELinux, where they are to be: on what is mounted for it, and on what it is given.

use anyhow::Context;
use keelson_cri::v1::{LinuxContainerSecurityContext, NamespaceMode};
use serde_json::{Value, json};

use super::mounts::Bind;
use crate::records::SandboxRecord;
use crate::runtime::Inner;
use crate::selinux::Labels;

/// A file system that takes no label when it is mounted: its directory gets one after that.
const MQUEUE: &str = "/dev/mqueue";

impl Inner {
    /// `None`: SELinux is off, or was when the pod began.
    pub(super) fn labels(
        &self,
        sandbox: &SandboxRecord,
        context: &LinuxContainerSecurityContext,
    ) -> Result<Option<Labels>, String> {
        let (Some(selinux), Some(pod)) = (&self.selinux, &sandbox.selinux) else {
            return Ok(None);
        };
        let options = context.selinux_options.as_ref();
        selinux.of_container(options, pod, is_confined(context)).map(Some)
    }

    /// Gives a container the files that are to be its own.
    pub(super) fn relabel(&self, binds: &[Bind], label: Option<&str>) -> anyhow::Result<()> {
        let (Some(selinux), Some(label)) = (&self.selinux, label) else {
            return Ok(());
        };
        for bind in binds.iter().filter(|b| b.relabel) {
            let source = &bind.source;
            let done = selinux.relabel(source, label);
            done.with_context(|| format!("relabel {:?} with {label:?} failed", source.display().to_string()))?;
        }
        Ok(())
    }
}

/// As CRI-O has it: who has the host's processes or IPC before him, or all rights, isn't kept apart by labels.
fn is_confined(context: &LinuxContainerSecurityContext) -> bool {
    let on_node = context
        .namespace_options
        .as_ref()
        .is_some_and(|n| n.pid() == NamespaceMode::Node || n.ipc() == NamespaceMode::Node);
    !context.privileged && !on_node
}

/// The label as an option of each mount that takes one. `libcontainer` would give it to every mount, also to those that fail
/// with it.
pub fn into_options(spec: &mut Value) {
    let linux = spec.get_mut("linux").and_then(Value::as_object_mut);
    let Some(label) = linux.and_then(|l| l.remove("mountLabel")) else {
        return;
    };
    let option = format!("context={}", label.as_str().unwrap_or_default());
    for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
        let takes_one = mount["type"] == "tmpfs" || mount["type"] == "devpts";
        if takes_one && let Some(options) = mount["options"].as_array_mut() {
            options.push(json!(option));
        }
    }
}

/// What gets its label when everything is mounted.
pub fn late(spec: &Value, label: Option<&str>) -> Vec<(String, String)> {
    let is_mounted = |m: &Value| m["destination"] == MQUEUE && m["type"] == "mqueue";
    let mut mounts = spec["mounts"].as_array().into_iter().flatten();
    let label = label.filter(|_| mounts.any(is_mounted));
    label
        .map(|label| (MQUEUE.to_owned(), label.to_owned()))
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_cri::v1::NamespaceOption;

    #[test]
    fn what_is_mounted_gets_the_label_as_it_can() {
        let mount =
            |target: &str, kind: &str| json!({"destination": target, "type": kind, "source": kind, "options": ["rw"]});
        let mut spec = json!({
            "linux": {"mountLabel": "u:object_r:container_file_t:s0:c1,c2"},
            "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs"), mount("/dev/pts", "devpts"), mount(MQUEUE, "mqueue"),
                mount("/sys/fs/cgroup", "cgroup"), mount("/v", "bind")],
        });
        let label = "u:object_r:container_file_t:s0:c1,c2";
        assert_eq!(late(&spec, Some(label)), [(MQUEUE.to_owned(), label.to_owned())]);
        into_options(&mut spec);
        assert_eq!(spec["linux"], json!({}));
        let labelled = |m: &Value| m["options"][1] == "context=u:object_r:container_file_t:s0:c1,c2";
        let all: Vec<bool> = spec["mounts"].as_array().unwrap().iter().map(labelled).collect();
        assert_eq!(all, [false, true, true, false, false, false]);
        assert_eq!(late(&spec, None), []);
        let before = spec.clone();
        into_options(&mut spec);
        assert_eq!(spec, before, "without a label nothing changes");
    }

    #[test]
    fn who_has_the_hosts_rights_is_not_confined() {
        let with = |privileged, pid: NamespaceMode, ipc: NamespaceMode| {
            is_confined(&LinuxContainerSecurityContext {
                privileged,
                namespace_options: Some(NamespaceOption {
                    pid: pid as i32,
                    ipc: ipc as i32,
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        use NamespaceMode::{Container, Node, Pod};
        assert!(with(false, Container, Pod) && is_confined(&LinuxContainerSecurityContext::default()));
        assert!(!with(true, Container, Pod) && !with(false, Node, Pod) && !with(false, Container, Node));
    }
}
