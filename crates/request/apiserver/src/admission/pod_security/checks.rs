//! The checks of the Pod Security Standards, in the order and words of upstream.

use super::Level;
use keelson_api::{Map, Value};
use std::collections::BTreeSet;

/// What a pod does that its level forbids.
#[derive(Debug, PartialEq)]
pub struct Violation {
    pub reason: String,
    pub detail: String,
}

type Found = Option<Violation>;

fn violation(reason: impl Into<String>, detail: impl Into<String>) -> Found {
    Some(Violation {
        reason: reason.into(),
        detail: detail.into(),
    })
}

/// Runs the checks of a level as of a minor version.
pub fn run(level: Level, minor: u32, meta: &Map, spec: &Map) -> Vec<Violation> {
    let pod = Pod { meta, spec, minor };
    let restricted = level == Level::Restricted;
    let mut found = vec![pod.app_armor()];
    if !(restricted && minor >= 22) {
        found.push(pod.capabilities_baseline());
    }
    found.push(pod.host_namespaces());
    if !restricted {
        found.push(pod.host_paths());
    }
    found.push(pod.host_ports());
    if minor >= 34 {
        found.push(pod.probe_hosts());
    }
    found.push(pod.privileged());
    if minor < 35 || !(restricted || pod.has_user_namespace()) {
        found.push(pod.proc_mount());
    }
    found.push(pod.selinux());
    if !restricted && minor >= 19 {
        found.push(pod.seccomp_baseline());
    }
    found.push(pod.sysctls());
    found.push(pod.windows_host_process());
    if restricted {
        let windows = spec.obj("os").and_then(|o| o.str("name")) == Some("windows") && minor >= 25;
        let user_namespace = minor >= 35 && pod.has_user_namespace();
        if !windows {
            found.push(pod.privilege_escalation());
            if minor >= 22 {
                found.push(pod.capabilities_restricted());
            }
        }
        if minor >= 35 {
            found.push(pod.proc_mount());
        }
        found.push(pod.volumes());
        if !user_namespace {
            found.push(pod.non_root());
            if minor >= 23 {
                found.push(pod.user());
            }
        }
        if minor >= 19 && !windows {
            found.push(pod.seccomp_restricted());
        }
    }
    found.into_iter().flatten().collect()
}

struct Pod<'a> {
    meta: &'a Map,
    spec: &'a Map,
    minor: u32,
}

fn name(c: &Map) -> String {
    c.str("name").unwrap_or_default().to_string()
}

fn joined(list: &[String]) -> String {
    list.iter().map(|s| format!("{s:?}")).collect::<Vec<_>>().join(", ")
}

fn sorted(set: BTreeSet<String>) -> Vec<String> {
    set.into_iter().collect()
}

fn plural<'a>(one: &'a str, many: &'a str, n: usize) -> &'a str {
    if n == 1 { one } else { many }
}

fn containers(list: &[String]) -> String {
    format!("{} {}", plural("container", "containers", list.len()), joined(list))
}

fn context(m: &Map) -> Option<&Map> {
    m.obj("securityContext")
}

impl<'a> Pod<'a> {
    fn all(&self) -> impl Iterator<Item = &'a Map> + use<'a> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(move |l| spec.arr(l).into_iter().flatten())
            .filter_map(Value::as_object)
    }
    /// Containers for which `bad` holds.
    fn those(&self, bad: impl Fn(&Map) -> bool) -> Vec<String> {
        self.all().filter(|c| bad(c)).map(name).collect()
    }
    fn has_user_namespace(&self) -> bool {
        self.spec.bool("hostUsers") == Some(false)
    }
    /// A setting of the pod or of containers whose value isn't allowed: who sets it, and the values.
    fn setters(&self, path: &[&str], allowed: impl Fn(&str) -> bool) -> (Vec<String>, BTreeSet<String>) {
        let mut values = BTreeSet::new();
        let mut bad = |m: &Map| {
            let value = context(m)
                .and_then(|c| c.get(path[0]))
                .and_then(|v| v.at(&path[1..]))
                .and_then(Value::as_str);
            match value.filter(|v| !allowed(v)) {
                Some(v) => {
                    values.insert(v.to_string());
                    true
                }
                None => false,
            }
        };
        let mut setters = Vec::new();
        if bad(self.spec) {
            setters.push("pod".to_string());
        }
        let list: Vec<String> = self.all().filter(|c| bad(c)).map(name).collect();
        if !list.is_empty() {
            setters.push(containers(&list));
        }
        (setters, values)
    }
    fn app_armor(&self) -> Found {
        const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
        let (mut setters, values) = self.setters(&["appArmorProfile", "type"], |v| {
            matches!(v, "RuntimeDefault" | "Localhost")
        });
        let mut values = sorted(values);
        let annotations: Vec<String> = self
            .meta
            .obj("annotations")
            .into_iter()
            .flatten()
            .filter(|(k, v)| {
                let v = v.as_str().unwrap_or_default();
                k.starts_with(PREFIX) && !(v.is_empty() || v == "runtime/default" || v.starts_with("localhost/"))
            })
            .map(|(k, v)| format!("{k}={:?}", v.as_str().unwrap_or_default()))
            .collect();
        if !annotations.is_empty() {
            setters.push(plural("annotation", "annotations", annotations.len()).into());
            values.extend(annotations);
        }
        if setters.is_empty() {
            return None;
        }
        let reason = plural(
            "forbidden AppArmor profile",
            "forbidden AppArmor profiles",
            values.len(),
        );
        violation(
            reason,
            format!(
                "{} must not set AppArmor profile type to {}",
                setters.join(" and "),
                joined(&values)
            ),
        )
    }
    fn added(c: &Map) -> impl Iterator<Item = &str> {
        context(c)
            .and_then(|s| s.obj("capabilities"))
            .and_then(|c| c.arr("add"))
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
    }
    fn capabilities_baseline(&self) -> Found {
        const ALLOWED: [&str; 13] = [
            "AUDIT_WRITE",
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "KILL",
            "MKNOD",
            "NET_BIND_SERVICE",
            "SETFCAP",
            "SETGID",
            "SETPCAP",
            "SETUID",
            "SYS_CHROOT",
        ];
        let bad = self.those(|c| Self::added(c).any(|a| !ALLOWED.contains(&a)));
        if bad.is_empty() {
            return None;
        }
        let caps: BTreeSet<String> = self
            .all()
            .flat_map(Self::added)
            .filter(|a| !ALLOWED.contains(a))
            .map(String::from)
            .collect();
        violation(
            "non-default capabilities",
            format!(
                "{} must not include {} in securityContext.capabilities.add",
                containers(&bad),
                joined(&sorted(caps))
            ),
        )
    }
    fn capabilities_restricted(&self) -> Found {
        let drops_all = |c: &Map| {
            context(c)
                .and_then(|s| s.obj("capabilities"))
                .and_then(|c| c.arr("drop"))
                .into_iter()
                .flatten()
                .any(|d| d.as_str() == Some("ALL"))
        };
        let mut details = Vec::new();
        let missing = self.those(|c| !drops_all(c));
        if !missing.is_empty() {
            details.push(format!(
                "{} must set securityContext.capabilities.drop=[\"ALL\"]",
                containers(&missing)
            ));
        }
        let adding = self.those(|c| Self::added(c).any(|a| a != "NET_BIND_SERVICE"));
        if !adding.is_empty() {
            let caps: BTreeSet<String> = self
                .all()
                .flat_map(Self::added)
                .filter(|a| *a != "NET_BIND_SERVICE")
                .map(String::from)
                .collect();
            details.push(format!(
                "{} must not include {} in securityContext.capabilities.add",
                containers(&adding),
                joined(&sorted(caps))
            ));
        }
        if details.is_empty() {
            None
        } else {
            violation("unrestricted capabilities", details.join("; "))
        }
    }
    fn host_namespaces(&self) -> Found {
        let list: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
            .into_iter()
            .filter(|k| self.spec.bool(k) == Some(true))
            .map(|k| format!("{k}=true"))
            .collect();
        if list.is_empty() {
            None
        } else {
            violation("host namespaces", list.join(", "))
        }
    }
    fn volume_list(&self) -> impl Iterator<Item = &'a Map> + use<'a> {
        self.spec
            .arr("volumes")
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
    }
    fn host_paths(&self) -> Found {
        let list: Vec<String> = self
            .volume_list()
            .filter(|v| v.contains_key("hostPath"))
            .map(name)
            .collect();
        if list.is_empty() {
            return None;
        }
        violation(
            "hostPath volumes",
            format!("{} {}", plural("volume", "volumes", list.len()), joined(&list)),
        )
    }
    fn host_ports(&self) -> Found {
        let ports = |c: &Map| -> Vec<String> {
            let list = c
                .arr("ports")
                .into_iter()
                .flatten()
                .filter_map(|p| p.get("hostPort").and_then(Value::as_i64));
            list.filter(|p| *p != 0).map(|p| p.to_string()).collect()
        };
        let bad = self.those(|c| !ports(c).is_empty());
        if bad.is_empty() {
            return None;
        }
        let all: BTreeSet<String> = self.all().flat_map(ports).collect();
        let n = all.len();
        violation(
            "hostPort",
            format!(
                "{} {} {} {}",
                containers(&bad),
                plural("uses", "use", bad.len()),
                plural("hostPort", "hostPorts", n),
                sorted(all).join(", ")
            ),
        )
    }
    fn probe_hosts(&self) -> Found {
        let hosts = |c: &Map| -> Vec<String> {
            let probes = ["livenessProbe", "readinessProbe", "startupProbe"]
                .into_iter()
                .filter_map(|p| c.get(p));
            let hooks = ["postStart", "preStop"]
                .into_iter()
                .filter_map(|h| c.obj("lifecycle").and_then(|l| l.get(h)));
            probes
                .chain(hooks)
                .flat_map(|p| {
                    ["httpGet", "tcpSocket"]
                        .into_iter()
                        .filter_map(move |k| p.at(&[k, "host"]))
                })
                .filter_map(Value::as_str)
                .filter(|h| !h.is_empty())
                .map(String::from)
                .collect()
        };
        let bad: BTreeSet<String> = self.those(|c| !hosts(c).is_empty()).into_iter().collect();
        if bad.is_empty() {
            return None;
        }
        let all: BTreeSet<String> = self.all().flat_map(hosts).collect();
        let (bad, all) = (sorted(bad), sorted(all));
        let what = plural("probe or lifecycle host", "probe or lifecycle hosts", all.len());
        violation(
            "probe or lifecycle host",
            format!(
                "{} {} {what} {}",
                containers(&bad),
                plural("uses", "use", bad.len()),
                joined(&all)
            ),
        )
    }
    fn privileged(&self) -> Found {
        let bad = self.those(|c| context(c).and_then(|s| s.bool("privileged")) == Some(true));
        if bad.is_empty() {
            None
        } else {
            violation(
                "privileged",
                format!("{} must not set securityContext.privileged=true", containers(&bad)),
            )
        }
    }
    fn proc_mount(&self) -> Found {
        let kind = |c: &Map| {
            context(c)
                .and_then(|s| s.str("procMount"))
                .filter(|p| *p != "Default")
                .map(String::from)
        };
        let bad = self.those(|c| kind(c).is_some());
        if bad.is_empty() {
            return None;
        }
        let kinds: BTreeSet<String> = self.all().filter_map(kind).collect();
        violation(
            "procMount",
            format!(
                "{} must not set securityContext.procMount to {}",
                containers(&bad),
                joined(&sorted(kinds))
            ),
        )
    }
    fn selinux(&self) -> Found {
        let allowed: &[&str] = if self.minor >= 31 {
            &[
                "",
                "container_t",
                "container_init_t",
                "container_kvm_t",
                "container_engine_t",
            ]
        } else {
            &["", "container_t", "container_init_t", "container_kvm_t"]
        };
        let options = |m: &Map| {
            context(m)
                .and_then(|c| c.obj("seLinuxOptions"))
                .cloned()
                .unwrap_or_default()
        };
        let text = |o: &Map, key: &str| o.str(key).unwrap_or_default().to_string();
        let bad = |m: &Map| {
            let o = options(m);
            !allowed.contains(&text(&o, "type").as_str())
                || !text(&o, "user").is_empty()
                || !text(&o, "role").is_empty()
        };
        let mut setters = Vec::new();
        if bad(self.spec) {
            setters.push("pod".to_string());
        }
        let list = self.those(bad);
        if !list.is_empty() {
            setters.push(containers(&list));
        }
        if setters.is_empty() {
            return None;
        }
        let all: Vec<Map> = std::iter::once(self.spec).chain(self.all()).map(options).collect();
        let types: BTreeSet<String> = all
            .iter()
            .map(|o| text(o, "type"))
            .filter(|t| !allowed.contains(&t.as_str()))
            .collect();
        let mut what = Vec::new();
        if !types.is_empty() {
            let types = sorted(types);
            what.push(format!("{} {}", plural("type", "types", types.len()), joined(&types)));
        }
        for key in ["user", "role"] {
            if all.iter().any(|o| !text(o, key).is_empty()) {
                what.push(format!("{key} may not be set"));
            }
        }
        violation(
            "seLinuxOptions",
            format!(
                "{} set forbidden securityContext.seLinuxOptions: {}",
                setters.join(" and "),
                what.join("; ")
            ),
        )
    }
    fn seccomp_baseline(&self) -> Found {
        let (setters, values) = self.setters(&["seccompProfile", "type"], |v| {
            matches!(v, "RuntimeDefault" | "Localhost")
        });
        if setters.is_empty() {
            return None;
        }
        violation(
            "seccompProfile",
            format!(
                "{} must not set securityContext.seccompProfile.type to {}",
                setters.join(" and "),
                joined(&sorted(values))
            ),
        )
    }
    fn seccomp_restricted(&self) -> Found {
        if let Some(v) = self.seccomp_baseline() {
            return Some(v);
        }
        let set = |m: &Map| context(m).and_then(|c| c.obj("seccompProfile")).is_some();
        if set(self.spec) {
            return None;
        }
        let missing = self.those(|c| !set(c));
        if missing.is_empty() {
            return None;
        }
        violation(
            "seccompProfile",
            format!(
                "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
                containers(&missing)
            ),
        )
    }
    fn sysctls(&self) -> Found {
        let allowed = |n: &str| match n {
            "kernel.shm_rmid_forced"
            | "net.ipv4.ip_local_port_range"
            | "net.ipv4.tcp_syncookies"
            | "net.ipv4.ping_group_range"
            | "net.ipv4.ip_unprivileged_port_start" => true,
            "net.ipv4.ip_local_reserved_ports" => self.minor >= 27,
            "net.ipv4.tcp_keepalive_time"
            | "net.ipv4.tcp_fin_timeout"
            | "net.ipv4.tcp_keepalive_intvl"
            | "net.ipv4.tcp_keepalive_probes" => self.minor >= 29,
            "net.ipv4.tcp_rmem" | "net.ipv4.tcp_wmem" => self.minor >= 32,
            _ => false,
        };
        let list = context(self.spec).and_then(|c| c.arr("sysctls")).into_iter().flatten();
        let bad: Vec<String> = list
            .filter_map(|s| s.get("name").and_then(Value::as_str))
            .filter(|n| !allowed(n))
            .map(String::from)
            .collect();
        if bad.is_empty() {
            None
        } else {
            violation("forbidden sysctls", bad.join(", "))
        }
    }
    fn windows_host_process(&self) -> Found {
        let on = |m: &Map| {
            context(m)
                .and_then(|c| c.obj("windowsOptions"))
                .and_then(|w| w.bool("hostProcess"))
                == Some(true)
        };
        let mut setters = Vec::new();
        if on(self.spec) {
            setters.push("pod".to_string());
        }
        let list = self.those(on);
        if !list.is_empty() {
            setters.push(containers(&list));
        }
        if setters.is_empty() {
            return None;
        }
        violation(
            "hostProcess",
            format!(
                "{} must not set securityContext.windowsOptions.hostProcess=true",
                setters.join(" and ")
            ),
        )
    }
    fn privilege_escalation(&self) -> Found {
        let bad = self.those(|c| context(c).and_then(|s| s.bool("allowPrivilegeEscalation")) != Some(false));
        if bad.is_empty() {
            return None;
        }
        violation(
            "allowPrivilegeEscalation != false",
            format!(
                "{} must set securityContext.allowPrivilegeEscalation=false",
                containers(&bad)
            ),
        )
    }
    fn volumes(&self) -> Found {
        const ALLOWED: [&str; 9] = [
            "configMap",
            "csi",
            "downwardAPI",
            "emptyDir",
            "ephemeral",
            "image",
            "persistentVolumeClaim",
            "projected",
            "secret",
        ];
        let kind = |v: &Map| v.keys().map(|k| k.to_string()).find(|k| k != "name");
        let bad = |v: &&Map| !kind(v).is_some_and(|k| ALLOWED.contains(&k.as_str()));
        let list: Vec<&Map> = self.volume_list().filter(bad).collect();
        if list.is_empty() {
            return None;
        }
        let kinds = sorted(
            list.iter()
                .map(|v| kind(v).unwrap_or_else(|| "unknown".into()))
                .collect(),
        );
        let names: Vec<String> = list.iter().map(|v| name(v)).collect();
        let (volumes, uses) = (
            plural("volume", "volumes", names.len()),
            plural("uses", "use", names.len()),
        );
        let what = plural("restricted volume type", "restricted volume types", kinds.len());
        violation(
            "restricted volume types",
            format!("{volumes} {} {uses} {what} {}", joined(&names), joined(&kinds)),
        )
    }
    fn non_root(&self) -> Found {
        const REASON: &str = "runAsNonRoot != true";
        let set = |m: &Map| context(m).and_then(|c| c.bool("runAsNonRoot"));
        let mut setters = Vec::new();
        if set(self.spec) == Some(false) {
            setters.push("pod".to_string());
        }
        let bad = self.those(|c| set(c) == Some(false));
        if !bad.is_empty() {
            setters.push(containers(&bad));
        }
        if !setters.is_empty() {
            return violation(
                REASON,
                format!(
                    "{} must not set securityContext.runAsNonRoot=false",
                    setters.join(" and ")
                ),
            );
        }
        if set(self.spec) == Some(true) {
            return None;
        }
        let missing = self.those(|c| set(c).is_none());
        if missing.is_empty() {
            return None;
        }
        violation(
            REASON,
            format!(
                "pod or {} must set securityContext.runAsNonRoot=true",
                containers(&missing)
            ),
        )
    }
    fn user(&self) -> Found {
        let root = |m: &Map| context(m).and_then(|c| c.int("runAsUser")) == Some(0);
        let mut setters = Vec::new();
        if root(self.spec) {
            setters.push("pod".to_string());
        }
        let bad = self.those(root);
        if !bad.is_empty() {
            setters.push(containers(&bad));
        }
        if setters.is_empty() {
            None
        } else {
            violation(
                "runAsUser=0",
                format!("{} must not set runAsUser=0", setters.join(" and ")),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelson_api::value;

    fn found(level: Level, spec: Value) -> String {
        let Value::Object(spec) = spec else {
            panic!("a spec is an object")
        };
        super::super::details(&run(level, u32::MAX, &Map::new(), &spec))
    }

    #[test]
    fn a_plain_pod_is_baseline_and_not_restricted() {
        let spec = value!({"containers": [{"name": "c1"}]});
        assert_eq!(found(Level::Baseline, spec.clone()), "");
        assert_eq!(
            found(Level::Restricted, spec),
            "allowPrivilegeEscalation != false (container \"c1\" must set securityContext.allowPrivilegeEscalation=false), \
             unrestricted capabilities (container \"c1\" must set securityContext.capabilities.drop=[\"ALL\"]), \
             runAsNonRoot != true (pod or container \"c1\" must set securityContext.runAsNonRoot=true), \
             seccompProfile (pod or container \"c1\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
    }

    #[test]
    fn baseline_forbids_the_host() {
        let spec = value!({"hostNetwork": true, "containers": [{"name": "a", "ports": [{"hostPort": 80}], "securityContext": {"privileged": true}}]});
        assert_eq!(
            found(Level::Baseline, spec),
            "host namespaces (hostNetwork=true), hostPort (container \"a\" uses hostPort 80), \
             privileged (container \"a\" must not set securityContext.privileged=true)"
        );
    }
}
