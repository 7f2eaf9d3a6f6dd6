//! The OCI specification of a container: a pure function of its configuration, its image and its pod.

use std::path::{Path, PathBuf};

use keelson_cri::v1::{self, ContainerConfig, LinuxContainerSecurityContext, NamespaceMode, PodSandboxConfig};
use keelson_sys::cgroup::DeviceRule;
use serde_json::{Map, Value, json};

use super::devices::{self, Device};
use super::mounts::{self, Bind, CgroupView};
use super::seccomp;
use super::user::User;
use crate::capability;
use crate::images::manifest::Execution;
use crate::selinux::Labels;

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub struct Input<'a> {
    pub config: &'a ContainerConfig,
    pub sandbox: &'a PodSandboxConfig,
    pub execution: &'a Execution,
    pub user: &'a User,
    /// The name that the pod sees, also when it is the host's.
    pub hostname: &'a str,
    pub rootfs: &'a Path,
    pub cgroup: &'a str,
    pub own_cgroup_namespace: bool,
    pub namespaces: Namespaces,
    pub binds: &'a [Bind],
    pub cgroups: &'a CgroupView,
    pub devices: &'a [Device],
    pub rules: &'a [DeviceRule],
    /// The AppArmor profile, which is loaded.
    pub apparmor: Option<&'a str>,
    /// Labels for SELinux.
    pub labels: Option<&'a Labels>,
    /// Capabilities this runtime can hand on.
    pub grantable: u64,
}

/// Paths of the namespaces to join. `None`: the host's, except for the process namespace.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    pub network: Option<PathBuf>,
    pub ipc: Option<PathBuf>,
    pub uts: Option<PathBuf>,
    pub user: Option<PathBuf>,
    pub pid: PidNamespace,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PidNamespace {
    #[default]
    Own,
    Host,
    Join(PathBuf),
}

/// The specification, without `linux.resources`.
pub fn build(input: &Input<'_>) -> Result<Value, String> {
    let config = input.config;
    let context = security(config);
    let privileged = context.privileged;
    if privileged && !sandbox_privileged(input.sandbox) {
        return Err("no privileged container allowed in sandbox".into());
    }
    let capabilities = capabilities(context, input.grantable);
    let bounding: Vec<String> = capabilities.iter().map(|c| format!("CAP_{c}")).collect();
    let cwd = [&config.working_dir, &input.execution.working_dir]
        .into_iter()
        .find(|d| !d.is_empty())
        .map_or_else(|| PathBuf::from("/"), |d| mounts::clean(d));
    let mut process = json!({
        "terminal": config.tty,
        "user": {"uid": input.user.uid, "gid": input.user.gid, "additionalGids": input.user.groups},
        "args": arguments(config, input.execution)?,
        "env": environment(input),
        "cwd": cwd,
        "capabilities": {"bounding": bounding, "effective": bounding, "permitted": bounding},
    });
    // Said only when it is set: to `libcontainer`, saying `false` means that the filter comes last, when it is too late.
    if context.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    if let Some(profile) = input.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    let list = |paths: &[String]| if privileged { json!([]) } else { json!(paths) };
    let mut linux = json!({
        "cgroupsPath": input.cgroup,
        "namespaces": namespaces(input),
        "maskedPaths": list(&context.masked_paths),
        "readonlyPaths": list(&context.readonly_paths),
        "devices": input.devices.iter().map(Device::spec).collect::<Value>(),
        "resources": {"devices": devices::rules_spec(input.rules)},
    });
    if mounts::shared(input.binds) {
        linux["rootfsPropagation"] = json!("shared");
    }
    if let Some(labels) = input.labels {
        linux["mountLabel"] = json!(labels.mount);
        if let Some(label) = &labels.process {
            process["selinuxLabel"] = json!(label);
        }
    }
    if let Some(profile) = filter(context, &bounding)? {
        linux["seccomp"] = profile;
    }
    Ok(json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": {"path": input.rootfs, "readonly": context.readonly_rootfs},
        "mounts": mounts::spec(input.binds, input.cgroups, privileged),
        "linux": linux,
        "annotations": annotations(input),
    }))
}

/// The specification as `libcontainer` is to have it: what we do ourselves left out, what it understands differently
/// turned round.
pub fn for_built_in(mut spec: Value) -> Value {
    super::labels::into_options(&mut spec);
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        linux.remove("resources");
        // It compares with mask and value swapped.
        let rules = linux
            .get_mut("seccomp")
            .and_then(|s| s.get_mut("syscalls"))
            .and_then(Value::as_array_mut);
        for rule in rules.into_iter().flatten() {
            for arg in rule.get_mut("args").and_then(Value::as_array_mut).into_iter().flatten() {
                if arg["op"] == "SCMP_CMP_MASKED_EQ" {
                    let mask = arg["value"].take();
                    let two = arg.get("valueTwo").cloned().unwrap_or(json!(0));
                    arg["value"] = if two.is_null() { json!(0) } else { two };
                    arg["valueTwo"] = mask;
                }
            }
        }
    }
    spec
}

pub fn security(config: &ContainerConfig) -> &LinuxContainerSecurityContext {
    static NONE: std::sync::LazyLock<LinuxContainerSecurityContext> = std::sync::LazyLock::new(Default::default);
    config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .unwrap_or(&NONE)
}

pub fn namespace_options(config: &PodSandboxConfig) -> v1::NamespaceOption {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
}

fn sandbox_privileged(config: &PodSandboxConfig) -> bool {
    config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref())
        .is_some_and(|c| c.privileged)
}

fn arguments(config: &ContainerConfig, image: &Execution) -> Result<Vec<String>, String> {
    let (mut command, mut args) = (config.command.clone(), config.args.clone());
    if command.is_empty() {
        if args.is_empty() {
            args.clone_from(&image.cmd);
        }
        if image.entrypoint != [""] {
            command.clone_from(&image.entrypoint);
        }
    }
    command.append(&mut args);
    if command.is_empty() {
        Err("no command specified".into())
    } else {
        Ok(command)
    }
}

/// Later settings replace earlier ones of the same name, in place.
fn environment(input: &Input<'_>) -> Vec<String> {
    let mut env: Vec<String> = vec![PATH.to_owned()];
    let mut set = |entry: String| {
        let name = entry
            .split_once('=')
            .map_or(entry.as_str(), |(name, _)| name)
            .to_owned();
        let same = |e: &String| e.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('='));
        match env.iter_mut().find(|e| same(e)) {
            Some(old) => *old = entry,
            None => env.push(entry),
        }
    };
    if input.config.tty {
        set("TERM=xterm".to_owned());
    }
    set(format!("HOSTNAME={}", input.hostname));
    input
        .execution
        .env
        .iter()
        .filter(|e| e.contains('='))
        .for_each(|e| set(e.clone()));
    for e in &input.config.envs {
        set(format!("{}={}", e.key, String::from_utf8_lossy(&e.value)));
    }
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", input.user.home.as_deref().unwrap_or("/")));
    }
    env
}

/// Without `CAP_`, in the order of their numbers.
fn capabilities(context: &LinuxContainerSecurityContext, grantable: u64) -> Vec<&'static str> {
    let all = || {
        (0..capability::NAMES.len() as u32)
            .filter(|n| grantable & 1 << n != 0)
            .fold(0u64, |m, n| m | 1 << n)
    };
    if context.privileged {
        return names(all());
    }
    let mask = |list: &[&str]| {
        list.iter()
            .filter_map(|c| capability::number(c))
            .fold(0u64, |m, n| m | 1 << n)
    };
    let mut set = mask(&capability::DEFAULT);
    let (add, drop) = match &context.capabilities {
        Some(c) => (&c.add_capabilities[..], &c.drop_capabilities[..]),
        None => (&[][..], &[][..]),
    };
    let has_all = |list: &[String]| list.iter().any(|c| c.eq_ignore_ascii_case("ALL"));
    if has_all(add) {
        set = all();
    }
    if has_all(drop) {
        set = 0;
    }
    set |= mask(&add.iter().map(String::as_str).collect::<Vec<_>>());
    set &= !mask(&drop.iter().map(String::as_str).collect::<Vec<_>>());
    names(set & grantable)
}

fn names(set: u64) -> Vec<&'static str> {
    capability::NAMES
        .iter()
        .enumerate()
        .filter(|(n, _)| set & 1 << n != 0)
        .map(|(_, name)| *name)
        .collect()
}

fn filter(context: &LinuxContainerSecurityContext, bounding: &[String]) -> Result<Option<Value>, String> {
    use v1::security_profile::ProfileType;
    let Some(profile) = context.seccomp.as_ref().filter(|_| !context.privileged) else {
        return Ok(None);
    };
    match profile.profile_type() {
        ProfileType::RuntimeDefault => Ok(Some(seccomp::default_profile(bounding))),
        ProfileType::Unconfined => Ok(None),
        ProfileType::Localhost => seccomp::from_file(&profile.localhost_ref).map(Some),
    }
}

fn namespaces(input: &Input<'_>) -> Value {
    let n = &input.namespaces;
    let joined = [
        ("network", &n.network),
        ("ipc", &n.ipc),
        ("uts", &n.uts),
        ("user", &n.user),
    ];
    let mut list: Vec<Value> = joined
        .iter()
        .filter_map(|(kind, path)| Some(json!({"type": kind, "path": path.as_ref()?})))
        .collect();
    list.push(json!({"type": "mount"}));
    match &n.pid {
        PidNamespace::Own => list.push(json!({"type": "pid"})),
        PidNamespace::Host => {}
        PidNamespace::Join(path) => list.push(json!({"type": "pid", "path": path})),
    }
    if input.own_cgroup_namespace {
        list.push(json!({"type": "cgroup"}));
    }
    Value::Array(list)
}

fn annotations(input: &Input<'_>) -> Value {
    let metadata = input.sandbox.metadata.clone().unwrap_or_default();
    let mut map = Map::new();
    let mut set = |key: &str, value: &str| drop(map.insert(key.to_owned(), json!(value)));
    set("io.kubernetes.cri.container-type", "container");
    set(
        "io.kubernetes.cri.container-name",
        input.config.metadata.as_ref().map_or("", |m| &m.name),
    );
    set("io.kubernetes.cri.sandbox-name", &metadata.name);
    set("io.kubernetes.cri.sandbox-namespace", &metadata.namespace);
    set("io.kubernetes.cri.sandbox-uid", &metadata.uid);
    Value::Object(map)
}

/// Which process namespace a container is asked to have.
pub fn pid_mode(config: &ContainerConfig) -> NamespaceMode {
    security(config)
        .namespace_options
        .as_ref()
        .map_or(NamespaceMode::Container, |n| n.pid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build_with(config: &ContainerConfig, image: &Execution) -> Result<Value, String> {
        let user = User {
            uid: 5,
            gid: 6,
            groups: vec![6],
            home: Some("/h".into()),
        };
        build(&input(config, image, &user, None))
    }

    fn input<'a>(
        config: &'a ContainerConfig,
        execution: &'a Execution,
        user: &'a User,
        labels: Option<&'a Labels>,
    ) -> Input<'a> {
        static SANDBOX: std::sync::LazyLock<PodSandboxConfig> = std::sync::LazyLock::new(Default::default);
        Input {
            config,
            sandbox: &SANDBOX,
            execution,
            user,
            hostname: "pod",
            rootfs: Path::new("/rootfs"),
            cgroup: "/kubepods/c",
            own_cgroup_namespace: true,
            namespaces: Namespaces {
                network: Some("/ns/net".into()),
                ..Namespaces::default()
            },
            binds: &[],
            cgroups: &CgroupView::Own { writable: false },
            devices: &[],
            rules: &[],
            apparmor: None,
            labels,
            grantable: u64::MAX >> 23,
        }
    }

    fn image() -> Execution {
        Execution {
            cmd: vec!["sh".into()],
            env: vec!["A=1".into(), "PATH=/x".into()],
            ..Execution::default()
        }
    }

    #[test]
    fn labels_are_the_processs_and_the_mounts() {
        let spec = |process: Option<&str>| {
            let labels = Labels {
                process: process.map(str::to_owned),
                mount: "u:object_r:container_file_t:s0:c1,c2".into(),
                shared: String::new(),
            };
            let (config, image) = (ContainerConfig::default(), image());
            let user = User::default();
            build(&input(&config, &image, &user, Some(&labels))).unwrap()
        };
        let confined = spec(Some("u:r:container_t:s0:c1,c2"));
        assert_eq!(confined["process"]["selinuxLabel"], "u:r:container_t:s0:c1,c2");
        assert_eq!(confined["linux"]["mountLabel"], "u:object_r:container_file_t:s0:c1,c2");
        let free = spec(None);
        assert!(free["process"].get("selinuxLabel").is_none());
        let built_in = for_built_in(confined);
        assert!(built_in["linux"].get("mountLabel").is_none());
        let of = |target: &str| {
            let mounts = built_in["mounts"].as_array().unwrap();
            let found = mounts.iter().find(|m| m["destination"] == target).unwrap();
            found["options"]
                .to_string()
                .contains("context=u:object_r:container_file_t:s0:c1,c2")
        };
        assert!(of("/dev") && of("/dev/pts") && !of("/proc") && !of("/sys") && !of("/dev/mqueue"));
    }

    #[test]
    fn settings_replace_those_before() {
        let mut config = ContainerConfig::default();
        for (key, value) in [("A", "2"), ("$_-x", "odd")] {
            config.envs.push(v1::KeyValue {
                key: key.into(),
                value: value.into(),
            });
        }
        let spec = build_with(&config, &image()).unwrap();
        assert_eq!(
            spec["process"]["env"],
            json!(["PATH=/x", "HOSTNAME=pod", "A=2", "$_-x=odd", "HOME=/h"])
        );
        assert_eq!(spec["process"]["args"], json!(["sh"]));
        assert!(build_with(&config, &Execution::default()).is_err());
    }

    #[test]
    fn all_and_single_capabilities_combine() {
        let mut context = LinuxContainerSecurityContext::default();
        let set = |add: &[&str], drop: &[&str]| {
            let list = |l: &[&str]| l.iter().map(|s| s.to_string()).collect();
            Some(v1::Capability {
                add_capabilities: list(add),
                drop_capabilities: list(drop),
                ..Default::default()
            })
        };
        context.capabilities = set(&["NET_ADMIN"], &["ALL"]);
        assert_eq!(capabilities(&context, u64::MAX), ["NET_ADMIN"]);
        context.capabilities = set(&["all"], &["CHOWN"]);
        assert_eq!(capabilities(&context, 0b111), ["DAC_OVERRIDE", "DAC_READ_SEARCH"]);
    }

    #[test]
    fn masked_comparisons_are_turned_round_for_libcontainer() {
        let rule = json!({"names": ["clone"], "args": [{"index": 0, "value": 7, "op": "SCMP_CMP_MASKED_EQ"}]});
        let spec = for_built_in(json!({"linux": {"seccomp": {"syscalls": [rule]}, "resources": {}}}));
        let arg = &spec["linux"]["seccomp"]["syscalls"][0]["args"][0];
        assert_eq!((&arg["value"], &arg["valueTwo"]), (&json!(0), &json!(7)));
        assert!(spec["linux"].get("resources").is_none());
    }

    #[test]
    fn privilege_needs_a_privileged_pod() {
        let mut config = ContainerConfig::default();
        let context = LinuxContainerSecurityContext {
            privileged: true,
            ..Default::default()
        };
        config.linux = Some(v1::LinuxContainerConfig {
            security_context: Some(context),
            resources: None,
        });
        assert_eq!(
            build_with(&config, &image()).unwrap_err(),
            "no privileged container allowed in sandbox"
        );
    }
}
