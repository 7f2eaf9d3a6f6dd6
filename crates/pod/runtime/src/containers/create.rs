//! CreateContainer: the record, the root file system, the specification. No process is made yet.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use keelson_cri::v1::{self, ContainerConfig, NamespaceMode, PodSandboxConfig};
use keelson_sys::cgroup::Version;
use keelson_sys::mount;
use keelson_sys::path::Root;

use super::mounts::{self, Bind, CgroupView};
use super::spec::{self, Input, Namespaces, PidNamespace};
use super::user::{self, Accounts, User};
use super::users::Users;
use super::{Container, apparmor, devices, labels, resources, signals};
use crate::cdi;
use crate::images::Image;
use crate::images::manifest::Execution;
use crate::records::{self, ContainerRecord, ContainerState, SandboxRecord};
use crate::runtime::{Inner, new_id, now};
use crate::sandbox::Sandbox;
use crate::sandbox::files::Files;

/// The file that a bundle's directory has.
pub const SPEC: &str = "config.json";

impl Inner {
    pub async fn create_container(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        config: ContainerConfig,
        sandbox_config: Option<PodSandboxConfig>,
    ) -> anyhow::Result<String> {
        if !sandbox.is_ready() {
            bail!("sandbox container \"{}\" is not running", sandbox.id);
        }
        let metadata = config
            .metadata
            .clone()
            .context("container config must include metadata")?;
        let spec = config.image.clone().unwrap_or_default();
        if self.images.find(&spec.image).is_none() {
            self.images_ready().await;
        }
        let image = self
            .images
            .find(&spec.image)
            .with_context(|| format!("failed to resolve image \"{}\": not found", spec.image))?;
        let sandbox_config = sandbox_config.unwrap_or_else(|| sandbox.config());
        let id = new_id();
        let log = (!config.log_path.is_empty() && !sandbox_config.log_directory.is_empty()).then(|| {
            Path::new(&sandbox_config.log_directory)
                .join(&config.log_path)
                .to_string_lossy()
                .into_owned()
        });
        let stop_signal =
            signals::stop_signal(config.stop_signal(), &image.execution.stop_signal).map_err(|e| anyhow!(e))?;
        let linux = config.linux.clone().unwrap_or_default();
        let record = ContainerRecord {
            id: id.clone(),
            sandbox: sandbox.id.clone(),
            resources: linux.resources.unwrap_or_default(),
            image: image.id.clone(),
            chains: image.chains.clone(),
            cgroup: self.cgroup_of(&sandbox_config, &id),
            user: User::default(),
            stop_signal,
            log,
            state: ContainerState::Created,
            created_at: now(),
            started_at: 0,
            finished_at: 0,
            pid: 0,
            exit_code: 0,
            reason: String::new(),
            message: String::new(),
            config,
        };
        let container = Arc::new(Container::new(self, record.clone()));
        {
            let mut containers = self.containers.lock();
            let same = |c: &Arc<Container>| {
                c.sandbox == sandbox.id && c.record.lock().config.metadata.as_ref() == Some(&metadata)
            };
            if let Some(other) = containers.values().find(|c| same(c)) {
                bail!(
                    "failed to reserve container name \"{}_{}\": it is reserved for \"{}\"",
                    metadata.name,
                    metadata.attempt,
                    other.id
                );
            }
            containers.insert(id.clone(), container.clone());
        }
        let made = {
            let (runtime, sandbox) = (self.clone(), sandbox.clone());
            // Mounts and files: short, but on a disk.
            tokio::task::spawn_blocking(move || runtime.prepare(&sandbox, &sandbox_config, &record, &image)).await?
        };
        let made = made.and_then(|user| container.update(|r| r.user = user).map_err(Into::into));
        if let Err(error) = made {
            self.containers.lock().remove(&id);
            self.clear_container(&container.record.lock().clone())?;
            return Err(error);
        }
        self.emit(&id, &sandbox.id, v1::ContainerEventType::ContainerCreatedEvent);
        Ok(id)
    }

    fn cgroup_of(&self, sandbox: &PodSandboxConfig, id: &str) -> String {
        let parent = sandbox.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
        let parent = if parent.is_empty() {
            &self.config.cgroup_root
        } else {
            parent
        };
        format!("/{}/{id}", parent.trim_matches('/'))
    }

    /// Everything on the host that a container needs before it is started.
    fn prepare(
        &self,
        sandbox: &Sandbox,
        sandbox_config: &PodSandboxConfig,
        record: &ContainerRecord,
        image: &Image,
    ) -> anyhow::Result<User> {
        records::save(&self.config.root, record).context("cannot write the container's record")?;
        let directory = records::directory::<ContainerRecord>(&self.config.root, &record.id);
        let context = spec::security(&record.config);
        let sandbox_record = sandbox.record.lock().clone();
        let of_pod = spec::namespace_options(&sandbox_record.config).userns_options;
        let own = context
            .namespace_options
            .as_ref()
            .and_then(|n| n.userns_options.clone());
        if own.as_ref().is_some_and(|own| Some(own) != of_pod.as_ref()) {
            bail!("user namespace config for sandbox is different from container");
        }
        let users = Users::of(sandbox, &sandbox_record.config).map_err(|e| anyhow!(e))?;
        let labels = self
            .labels(&sandbox_record, context)
            .map_err(|e| anyhow!("failed to init selinux options: {e}"))?;
        let label = labels.as_ref().map(|l| l.mount.as_str());
        let rootfs = self.mount_rootfs(&directory, image, users.as_ref(), label)?;
        let root = Root::open(&rootfs)?;
        let accounts = Accounts::read(&root).context("cannot read the image's accounts")?;
        let user = user::resolve(context, &image.execution.user, &accounts).map_err(|e| anyhow!(e))?;
        if let Some(users) = &users {
            users.range.check(&user).map_err(|e| anyhow!(e))?;
        }
        let cwd = [&record.config.working_dir, &image.execution.working_dir]
            .into_iter()
            .find(|d| !d.is_empty());
        if let Some(cwd) = cwd {
            root.make_dirs_of(&mounts::clean(cwd), 0o755, users.as_ref().map(Users::root))
                .with_context(|| format!("cannot make the working directory {cwd:?}"))?;
        }
        let binds = self.binds(sandbox, record, image, &directory, &root, users.as_ref(), label)?;
        self.relabel(&binds, labels.as_ref().map(|l| l.shared.as_str()))?;
        let mut devices = devices::requested(&record.config.devices)?;
        if context.privileged {
            devices.extend(devices::of_host().context("cannot list the host's devices")?);
        }
        let named = self.devices_by_name(&record.config).map_err(|e| anyhow!(e))?;
        let devices = named.with_devices(devices);
        let rules = devices::rules(&devices, context.privileged);
        // For users of the pod's own all devices are binds, and other runtimes make them themselves.
        let devices = match users.is_none() && sandbox_record.external.is_none() {
            true => {
                let (devices, elsewhere) = devices::apart(devices);
                for device in &elsewhere {
                    devices::place(&root, device, &binds).map_err(|e| anyhow!(e))?;
                }
                devices
            }
            false => devices,
        };
        let confined = apparmor::profile(context.apparmor.as_ref(), context.privileged, &apparmor::Kernel)
            .map_err(|e| anyhow!("failed to generate apparmor spec opts: {e}"))?;
        let unified = self.cgroups.version() == Version::V2;
        let mut spec = spec::build(&Input {
            config: &record.config,
            sandbox: sandbox_config,
            execution: &image.execution,
            user: &user,
            hostname: &sandbox_record.hostname,
            rootfs: &rootfs,
            cgroup: &record.cgroup,
            own_cgroup_namespace: unified && !context.privileged,
            namespaces: self.namespaces(sandbox, &sandbox_record, &record.config)?,
            binds: &binds,
            cgroups: &self.cgroup_view(&record.cgroup, context.privileged),
            devices: &devices,
            rules: &rules,
            apparmor: confined.as_deref(),
            labels: labels.as_ref(),
            grantable: self.grantable,
        })
        .map_err(|e| anyhow!(e))?;
        named.inject(&mut spec);
        if sandbox_record.external.is_none() {
            spec = spec::for_built_in(spec);
        } else {
            spec["linux"]["resources"] = resources::spec(&record.resources);
            spec["linux"]["resources"]["devices"] = devices::rules_spec(&rules);
        }
        let bundle = self.bundle(record);
        std::fs::create_dir_all(&bundle)?;
        std::fs::write(bundle.join(SPEC), serde_json::to_vec(&spec)?)?;
        let extras = Extras {
            propagation: mounts::propagation(&binds),
            devices: rules.iter().map(into_line).collect(),
            labels: match sandbox_record.external {
                None => labels::late(&spec, label),
                Some(_) => Vec::new(),
            },
        };
        std::fs::write(bundle.join(Extras::FILE), serde_json::to_vec(&extras)?)?;
        Ok(user)
    }

    /// What drivers say that a container has to have for the devices that it asks for by name.
    fn devices_by_name(&self, config: &ContainerConfig) -> Result<cdi::Edits, String> {
        let named = config.cdi_devices.iter().map(|d| d.name.as_str());
        let annotations = config.annotations.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        let directories: Vec<&Path> = self.config.cdi.iter().map(PathBuf::as_path).collect();
        cdi::edits(&directories, &cdi::asked(named, annotations))
    }

    pub fn bundle(&self, record: &ContainerRecord) -> PathBuf {
        self.state_dir(&record.sandbox).join("bundles").join(&record.id)
    }

    /// The image's layers under a writable one, which the container's root owns.
    fn mount_rootfs(
        &self,
        directory: &Path,
        image: &Image,
        users: Option<&Users>,
        label: Option<&str>,
    ) -> anyhow::Result<PathBuf> {
        let rootfs = directory.join("rootfs");
        let (upper, work) = (directory.join("upper"), directory.join("work"));
        for dir in [&rootfs, &upper, &work] {
            std::fs::create_dir_all(dir)?;
        }
        let lowers = self.images.layers.directories(&image.chains);
        let mounted = |lowers: &[PathBuf]| match lowers {
            [] => {
                let empty = directory.join("empty");
                std::fs::create_dir_all(&empty)?;
                mount::overlay_labelled(&[empty], Some((&upper, &work)), &rootfs, label)
            }
            lowers => mount::overlay_labelled(lowers, Some((&upper, &work)), &rootfs, label),
        };
        if let Some((user, group)) = users.map(Users::root) {
            for dir in [&upper, &work] {
                std::os::unix::fs::lchown(dir, Some(user), Some(group))?;
            }
        }
        self.seen_by(users, &directory.join("layers"), &lowers, mounted)
            .with_context(|| format!("cannot mount the root file system at {}", rootfs.display()))?;
        Ok(rootfs)
    }

    /// Mounts something of layers, as a pod's users see them. `at` is a directory for the moment.
    fn seen_by(
        &self,
        users: Option<&Users>,
        at: &Path,
        lowers: &[PathBuf],
        mount: impl FnOnce(&[PathBuf]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        match users {
            None => mount(lowers),
            Some(users) => users.with_layers(self.images.layers.root(), lowers, at, mount),
        }
    }

    fn binds(
        &self,
        sandbox: &Sandbox,
        record: &ContainerRecord,
        image: &Image,
        directory: &Path,
        root: &Root,
        users: Option<&Users>,
        label: Option<&str>,
    ) -> anyhow::Result<Vec<Bind>> {
        let config = &record.config;
        let mut volumes = Vec::new();
        for (i, m) in config.mounts.iter().enumerate() {
            volumes.push(match &m.image {
                Some(spec) => {
                    let at = directory.join(format!("image-{i}"));
                    Some(self.mount_image(&at, spec, &m.image_sub_path, users, label)?)
                }
                None => None,
            });
        }
        if config.mounts.iter().any(|m| m.recursive_read_only) && !self.recursive_read_only {
            bail!("runtime handler does not support recursive read-only mounts");
        }
        let requested = mounts::requested(&config.mounts, |i| volumes[i].clone()).map_err(|e| anyhow!(e))?;
        let range = users.map(|u| u.range);
        mounts::check_mappings(&requested, range).map_err(|e| anyhow!(e))?;
        let files = Files(records::directory::<SandboxRecord>(&self.config.root, &sandbox.id));
        let read_only = spec::security(config).readonly_rootfs;
        let ipc = spec::security(config)
            .namespace_options
            .as_ref()
            .map_or(NamespaceMode::Pod, |n| n.ipc());
        let is_hosts = ipc == NamespaceMode::Node;
        let shm = if is_hosts {
            PathBuf::from("/dev/shm")
        } else {
            files.shm()
        };
        let mut shm = Bind::of_sandbox(shm, "/dev/shm", false);
        shm.relabel = !is_hosts;
        let mut of_sandbox = vec![
            Bind::of_sandbox(files.hostname(), "/etc/hostname", read_only),
            Bind::of_sandbox(files.hosts(), "/etc/hosts", read_only),
            Bind::of_sandbox(files.resolv_conf(), "/etc/resolv.conf", read_only),
            shm,
        ];
        if let Some(range) = range {
            of_sandbox.iter_mut().for_each(|bind| bind.map(range));
        }
        of_sandbox.extend(image_volumes(&image.execution, directory, root, users)?);
        Ok(mounts::merge(requested, of_sandbox))
    }

    /// An image as a read-only volume.
    fn mount_image(
        &self,
        at: &Path,
        spec: &v1::ImageSpec,
        sub_path: &str,
        users: Option<&Users>,
        label: Option<&str>,
    ) -> anyhow::Result<PathBuf> {
        let image = self
            .images
            .find(&spec.image)
            .with_context(|| format!("failed to resolve image \"{}\": not found", spec.image))?;
        std::fs::create_dir_all(at)?;
        let lowers = self.images.layers.directories(&image.chains);
        let mounted = |lowers: &[PathBuf]| match lowers {
            [] => Ok(()),
            // One that is bound would keep the label that the layer has.
            [one] if label.is_some() => {
                let empty = at.with_extension("empty");
                std::fs::create_dir_all(&empty)?;
                mount::overlay_labelled(&[one.clone(), empty], None, at, label)
            }
            [one] => mount::bind_read_only(one, at),
            lowers => mount::overlay_labelled(lowers, None, at, label),
        };
        self.seen_by(users, &at.with_extension("layers"), &lowers, mounted)?;
        if sub_path.is_empty() {
            return Ok(at.to_path_buf());
        }
        // Resolved inside the image: its links may lead anywhere.
        let root = Root::open(at)?;
        let found = root
            .open_in(Path::new(sub_path), nix::libc::O_PATH, 0)
            .with_context(|| format!("image volume has no sub path {sub_path:?}"))?;
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).map_err(Into::into)
    }

    fn namespaces(
        &self,
        sandbox: &Sandbox,
        record: &SandboxRecord,
        config: &ContainerConfig,
    ) -> anyhow::Result<Namespaces> {
        let options = spec::namespace_options(&record.config);
        let join = |own: bool, name: &str| own.then(|| sandbox.shim.namespace(name));
        let user = options
            .userns_options
            .as_ref()
            .is_some_and(|u| u.mode() == NamespaceMode::Pod);
        let pid = match spec::pid_mode(config) {
            NamespaceMode::Container => PidNamespace::Own,
            NamespaceMode::Node => PidNamespace::Host,
            NamespaceMode::Pod if options.pid() == NamespaceMode::Pod => {
                PidNamespace::Join(sandbox.shim.namespace("pid"))
            }
            NamespaceMode::Pod => PidNamespace::Own,
            NamespaceMode::Target => {
                let target = spec::security(config)
                    .namespace_options
                    .as_ref()
                    .map_or("", |n| n.target_id.as_str());
                PidNamespace::Join(self.pid_namespace_of(sandbox, target)?)
            }
        };
        Ok(Namespaces {
            network: join(record.own_network, "net"),
            ipc: join(options.ipc() != NamespaceMode::Node, "ipc"),
            uts: join(record.own_network, "uts"),
            user: join(user, "user"),
            pid,
        })
    }

    fn pid_namespace_of(&self, sandbox: &Sandbox, target: &str) -> anyhow::Result<PathBuf> {
        let container = self
            .container(target)
            .with_context(|| format!("invalid target container: \"{target}\" not found"))?;
        if container.sandbox != sandbox.id {
            bail!("invalid target container: \"{target}\" is in another pod");
        }
        let record = container.record.lock();
        if record.state != ContainerState::Running {
            bail!("invalid target container: \"{target}\" is not running");
        }
        Ok(PathBuf::from(format!("/proc/{}/ns/pid", record.pid)))
    }

    fn cgroup_view(&self, group: &str, privileged: bool) -> CgroupView {
        match self.cgroups.version() {
            Version::V2 => CgroupView::Own { writable: privileged },
            Version::V1 => CgroupView::V1 {
                groups: self.cgroups.directories(group),
                writable: privileged,
            },
        }
    }

    /// Undoes `prepare`, and what a start left. Each step can be repeated.
    pub fn clear_container(&self, record: &ContainerRecord) -> anyhow::Result<()> {
        if self.cgroups.exists(&record.cgroup) {
            self.cgroups
                .kill(&record.cgroup)
                .context("cannot kill what is left of the container")?;
            self.cgroups
                .remove(&record.cgroup)
                .context("cannot remove the container's control group")?;
        }
        crate::runtime::remove_with_mounts(&self.bundle(record))?;
        self.clear_container_directory(&record.id)
    }
}

/// Directories that the image declares as volumes, with what the image has there.
fn image_volumes(
    execution: &Execution,
    directory: &Path,
    root: &Root,
    users: Option<&Users>,
) -> anyhow::Result<Vec<Bind>> {
    let mut binds = Vec::new();
    for (i, target) in execution.volumes.keys().enumerate() {
        let source = directory.join(format!("volume-{i}"));
        std::fs::create_dir_all(&source)?;
        if let Some((user, group)) = users.map(Users::root) {
            std::os::unix::fs::lchown(&source, Some(user), Some(group))?;
        }
        let inside = mounts::clean(target);
        match root.open_in(&inside, nix::libc::O_PATH | nix::libc::O_DIRECTORY, 0) {
            Ok(existing) => {
                use std::os::fd::AsRawFd;
                let from = PathBuf::from(format!("/proc/self/fd/{}/.", existing.as_raw_fd()));
                copy(&from, &source).with_context(|| format!("cannot copy the image's volume {target:?}"))?;
            }
            Err(e) if matches!(e.raw_os_error(), Some(nix::libc::ENOENT | nix::libc::ENOTDIR)) => {}
            Err(e) => return Err(e.into()),
        }
        binds.push(Bind::of_sandbox(source, &inside.to_string_lossy(), false));
    }
    Ok(binds)
}

/// Copies owners, modes, links and files of a directory.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, lchown, symlink};
    let meta = std::fs::metadata(from)?;
    lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    std::fs::set_permissions(to, meta.permissions())?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let meta = std::fs::symlink_metadata(&source)?;
        if meta.is_dir() {
            std::fs::create_dir(&target)?;
            copy(&source, &target)?;
        } else if meta.is_symlink() {
            symlink(std::fs::read_link(&source)?, &target)?;
            lchown(&target, Some(meta.uid()), Some(meta.gid()))?;
        } else if meta.is_file() {
            std::fs::copy(&source, &target)?;
            lchown(&target, Some(meta.uid()), Some(meta.gid()))?;
            std::fs::set_permissions(&target, meta.permissions())?;
        }
    }
    Ok(())
}

/// What a start needs beside the specification.
#[derive(Default, serde::Serialize, serde::Deserialize)]
pub struct Extras {
    pub propagation: Vec<(String, crate::shim::protocol::MountPropagation)>,
    pub devices: Vec<DeviceLine>,
    /// Labels of files in the container that only its mount namespace has.
    #[serde(default)]
    pub labels: Vec<(String, String)>,
}

impl Extras {
    pub const FILE: &'static str = "extras.json";
}

/// A device rule: allow, kind ("a", "b", "c"), major, minor, access.
pub type DeviceLine = (bool, String, Option<u32>, Option<u32>, String);

fn into_line(rule: &keelson_sys::cgroup::DeviceRule) -> DeviceLine {
    devices::to_line(rule)
}
