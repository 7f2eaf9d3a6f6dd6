//! SELinux: which labels a pod's processes and files have, as containerd and go-selinux give them.
//!
//! Off unless asked for; then labels that pods ask for are ignored, as other runtimes do it. When it is on, each pod has a level of
//! its own (two categories), its containers have the policy's type for containers unless they say another, and files get the
//! label that goes with it: by mount options where the runtime mounts, by attributes where the kubelet has it relabel. Who isn't
//! confined otherwise either (privileged, in the host's process or IPC namespace) and says nothing is labelled by the policy alone.

mod context;
pub mod kernel;
mod relabel;

pub use kernel::{Machine, Real};

use anyhow::{anyhow, bail};
use context::{APART, Context, free_level, is_said};
use keelson_cri::v1::SeLinuxOption;
use keelson_sys::tree::Handle;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Labels that are in force.
#[derive(Clone, Debug)]
pub struct Selinux {
    machine: Arc<dyn Machine>,
    process: Context,
    file: Context,
}

/// Of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// `None`: what the policy says of the program that is started.
    pub process: Option<String>,
    /// Of what is mounted for it alone.
    pub mount: String,
    /// Of files that it has with others of its pod: volumes, and what all containers of a pod are given.
    pub shared: String,
}

impl Selinux {
    /// Fails where the machine hasn't got what it takes.
    pub fn on(machine: Arc<dyn Machine>) -> anyhow::Result<Selinux> {
        if let Some(why) = kernel::lacks(&*machine) {
            bail!("--selinux: {why}. Start without it, or give the machine SELinux with a policy");
        }
        let found = kernel::contexts(&*machine);
        let (process, file) =
            found.map_err(|e| anyhow!("--selinux: {e}: install the policy of containers (container-selinux)"))?;
        let parse = |text: &str| {
            Context::parse(text).map_err(|e| anyhow!("--selinux: {e}, in the policy's contexts of containers"))
        };
        Ok(Selinux {
            process: parse(&process)?,
            file: parse(&file)?,
            machine,
        })
    }

    /// The label of a pod's processes. `taken` are those of other pods.
    pub fn of_pod(&self, options: Option<&SeLinuxOption>, taken: &[String]) -> Result<String, String> {
        let none = SeLinuxOption::default();
        let options = options.unwrap_or(&none);
        let mut context = self.process.with(options)?;
        if options.level.is_empty() && context.level.is_some() {
            let levels: Vec<String> = taken.iter().filter_map(|t| Context::parse(t).ok()?.level).collect();
            let mut draw = |most: u32| rand::random_range(0..most);
            context.level = Some(free_level(&|level| levels.iter().any(|l| l == level), &mut draw)?);
        }
        self.checked(context)
    }

    /// Those of a container in a pod with this label. One that says its level isn't the pod's doesn't share the pod's volumes.
    pub fn of_container(
        &self,
        options: Option<&SeLinuxOption>,
        pod: &str,
        is_confined: bool,
    ) -> Result<Labels, String> {
        let pod = Context::parse(pod)?;
        let said = options.filter(|o| is_said(o));
        let process = match said {
            None if !is_confined => {
                // Who may reach everything takes nothing from the pod's others.
                return Ok(Labels {
                    process: None,
                    mount: self.file.at(Some(APART)).to_string(),
                    shared: self.checked(self.files_of(&pod))?,
                });
            }
            None => pod,
            Some(options) => self.process.at(pod.level.as_deref()).with(options)?,
        };
        let files = self.files_of(&process);
        let process = self.checked(process)?;
        let mount = self.checked(files)?;
        Ok(Labels {
            process: Some(process),
            shared: mount.clone(),
            mount,
        })
    }

    /// Those that go with a process. As go-selinux: files of another user than the policy's are that user's.
    fn files_of(&self, process: &Context) -> Context {
        let mut files = self.file.at(process.level.as_deref());
        if process.user != self.process.user {
            process.user.clone_into(&mut files.user);
        }
        files
    }

    /// Gives a tree to a container.
    pub fn relabel(&self, path: &Path, label: &str) -> io::Result<()> {
        relabel::relabel(&*self.machine, path, label)
    }

    fn checked(&self, context: Context) -> Result<String, String> {
        let text = context.to_string();
        kernel::check(&*self.machine, &text)?;
        Ok(text)
    }
}

/// A machine that a test plays: files of text, and labels that are told in the order in which they are set.
#[derive(Debug, Default)]
pub struct Played {
    pub files: std::collections::BTreeMap<std::path::PathBuf, String>,
    /// Contexts that its policy has not.
    pub unknown: Vec<String>,
    pub asked: parking_lot::Mutex<Vec<String>>,
}

impl Played {
    /// One with the usual policy.
    pub fn usual() -> Played {
        let mut played = Played::default();
        for (path, text) in [
            ("/proc/filesystems", "nodev\ttmpfs\nnodev\tselinuxfs\n\text4\n"),
            (
                "/proc/thread-self/attr/current",
                "system_u:system_r:container_runtime_t:s0\0",
            ),
            (
                "/etc/selinux/config",
                "# how\nSELINUX=enforcing\nSELINUXTYPE=targeted\n",
            ),
            (
                "/etc/selinux/targeted/contexts/lxc_contexts",
                "process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\nro_file = \"x\"\n",
            ),
        ] {
            played.files.insert(path.into(), text.into());
        }
        played
    }
}

impl Machine for Played {
    fn read(&self, path: &Path) -> io::Result<String> {
        self.files
            .get(path)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        self.asked.lock().push(format!("{} {text}", path.display()));
        match self.unknown.iter().any(|u| text.contains(u.as_str())) {
            true => Err(io::ErrorKind::InvalidInput.into()),
            false => Ok(()),
        }
    }

    fn has_interface(&self, _: &Path) -> bool {
        true
    }

    fn label(&self, file: &Handle) -> io::Result<Option<Vec<u8>>> {
        Real.label(file)
    }

    fn set_label(&self, file: &Handle, label: &str) -> io::Result<()> {
        Real.set_label(file, label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn played(change: impl FnOnce(&mut Played)) -> anyhow::Result<Selinux> {
        let mut machine = Played::usual();
        change(&mut machine);
        Selinux::on(Arc::new(machine))
    }

    fn option(user: &str, kind: &str, level: &str) -> SeLinuxOption {
        SeLinuxOption {
            user: user.into(),
            r#type: kind.into(),
            level: level.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_machine_without_it_is_refused_with_what_it_lacks() {
        let refused = |change: fn(&mut Played)| format!("{:#}", played(change).unwrap_err());
        let without = |path: &'static str| move |m: &mut Played| drop(m.files.remove(Path::new(path)));
        assert!(
            refused(|m| drop(m.files.insert("/proc/filesystems".into(), "nodev\ttmpfs\n".into())))
                .contains("no SELinux")
        );
        assert!(
            refused(|m| drop(
                m.files
                    .insert("/proc/thread-self/attr/current".into(), "kernel\0".into())
            ))
            .contains("no policy")
        );
        let error = played(without("/etc/selinux/targeted/contexts/lxc_contexts"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("/etc/selinux/targeted/contexts/lxc_contexts") && error.contains("container-selinux"),
            "{error}"
        );
        // What packages of containers bring goes first.
        let selinux = played(|m| {
            let text = "process = \"u:r:other_t:s0\"\nfile = \"u:r:other_file_t:s0\"\n";
            m.files
                .insert("/usr/share/containers/selinux/contexts".into(), text.into());
        });
        assert_eq!(selinux.unwrap().process.kind, "other_t");
    }

    #[test]
    fn this_machine_is_looked_at_itself() {
        // Whatever it has: what is told agrees with what the kernel lists.
        let listed = std::fs::read_to_string("/proc/filesystems")
            .unwrap()
            .contains("selinuxfs");
        let on = Selinux::on(Arc::new(Real));
        assert!(listed || on.unwrap_err().to_string().contains("the kernel has no SELinux"));
    }

    #[test]
    fn each_pod_has_a_level_of_its_own_and_its_containers_share_it() {
        let selinux = played(|_| ()).unwrap();
        let mut taken = Vec::new();
        for _ in 0..100 {
            let label = selinux.of_pod(None, &taken).unwrap();
            assert!(
                label.starts_with("system_u:system_r:container_t:s0:c") && !taken.contains(&label),
                "{label}"
            );
            taken.push(label);
        }
        let pod = &taken[0];
        let level = pod.splitn(4, ':').nth(3).unwrap();
        let plain = selinux.of_container(None, pod, true).unwrap();
        assert_eq!(plain.process.as_ref(), Some(pod));
        assert_eq!(plain.mount, format!("system_u:object_r:container_file_t:{level}"));
        let typed = selinux.of_container(Some(&option("", "spc_t", "")), pod, true).unwrap();
        assert_eq!(typed.process, Some(format!("system_u:system_r:spc_t:{level}")));
        assert_eq!(typed.mount, plain.mount);
        let own = selinux
            .of_container(Some(&option("staff_u", "", "s0:c5,c6")), pod, true)
            .unwrap();
        assert_eq!(own.process.as_deref(), Some("staff_u:system_r:container_t:s0:c5,c6"));
        assert_eq!(own.mount, "staff_u:object_r:container_file_t:s0:c5,c6");
        // A pod that says its level has that one, whoever else has it.
        let said = selinux.of_pod(Some(&option("", "", level)), &taken).unwrap();
        assert_eq!(&said, pod);
    }

    #[test]
    fn who_is_not_confined_is_labelled_by_the_policy_unless_it_says_so() {
        let selinux = played(|_| ()).unwrap();
        let pod = selinux.of_pod(None, &[]).unwrap();
        let free = selinux.of_container(None, &pod, false).unwrap();
        assert_eq!(free.process, None);
        assert_eq!(free.mount, "system_u:object_r:container_file_t:s0:c1022,c1023");
        // A confined one beside it goes on with the volumes that both have.
        let confined = selinux.of_container(None, &pod, true).unwrap();
        assert_eq!(free.shared, confined.shared);
        assert_eq!(confined.shared, confined.mount);
        let said = selinux
            .of_container(Some(&option("", "mine_t", "")), &pod, false)
            .unwrap();
        assert!(said.process.unwrap().contains(":mine_t:s0:c"));
    }

    #[test]
    fn what_the_policy_has_not_is_refused_before_anything_starts() {
        let selinux = played(|m| m.unknown.push("typo_t".into())).unwrap();
        let error = selinux.of_pod(Some(&option("", "typo_t", "")), &[]).unwrap_err();
        assert!(
            error.contains("the policy has no context system_u:system_r:typo_t:s0"),
            "{error}"
        );
        let error = selinux.of_pod(Some(&option("", "a\",b", "")), &[]).unwrap_err();
        assert!(error.contains("seLinuxOptions.type"), "{error}");
    }
}
