//! Where pods come from, and what they and their containers are given.

use super::super::show;
use super::*;
use crate::userns::UNIT;
use std::net::IpAddr;
use std::path::{Component, Path};

const STATIC: &str = "manifests are read from a directory only";
const QUICK: &str = "nothing is looked for at intervals, the kernel tells of changes";
const RUNTIME: &str = "the runtime is the program's own";
const NFTABLES: &str = "the proxy makes rules of nftables, and all of them";

pub(super) const FIELDS: &[Field] = &[
    field(
        "staticPodPath",
        "pod-manifest-path",
        Kind::Path,
        false,
        set(
            |c, v| {
                c.static_pod_path = path(v);
                Ok(())
            },
            |c| json!(c.static_pod_path.clone().unwrap_or_default()),
        ),
    ),
    field(
        "podLogsDir",
        "",
        Kind::Path,
        false,
        alone(
            |c, v| {
                c.pod_logs_dir = logs(v)?;
                Ok(())
            },
            |c| json!(c.pod_logs_dir),
            "",
            "it is below the data directory of the program",
        ),
    ),
    field(
        "syncFrequency",
        "sync-frequency",
        Kind::Duration,
        false,
        unmet("1m0s", &[], "pods are looked at when something changes"),
    ),
    field(
        "fileCheckFrequency",
        "file-check-frequency",
        Kind::Duration,
        false,
        unmet("20s", &[], QUICK),
    ),
    field(
        "httpCheckFrequency",
        "http-check-frequency",
        Kind::Duration,
        false,
        unmet("20s", &[], STATIC),
    ),
    field("staticPodURL", "manifest-url", Kind::Text, false, only("", STATIC)),
    field("staticPodURLHeader", "", Kind::Object, false, only("{}", STATIC)),
    field(
        "configMapAndSecretChangeDetectionStrategy",
        "",
        Kind::Text,
        false,
        only("Watch", QUICK),
    ),
    field(
        "clusterDomain",
        "cluster-domain",
        Kind::Text,
        false,
        set(put!(cluster_domain, |v| Ok::<_, String>(text(v))), |c| {
            json!(c.cluster_domain)
        }),
    ),
    field(
        "clusterDNS",
        "cluster-dns",
        Kind::Texts,
        false,
        set(
            |c, v| {
                let servers = kinds::list(Some(v));
                if let Some(wrong) = servers.iter().find(|s| s.parse::<IpAddr>().is_err()) {
                    return Err(format!("{wrong} is not an IP address"));
                }
                c.cluster_dns = servers;
                Ok(())
            },
            |c| json!(c.cluster_dns),
        ),
    ),
    field(
        "resolvConf",
        "resolv-conf",
        Kind::Path,
        true,
        set(
            |c, v| {
                c.resolv_conf = text(v).into();
                Ok(())
            },
            |c| json!(c.resolv_conf),
        ),
    ),
    field(
        "hairpinMode",
        "hairpin-mode",
        Kind::Text,
        false,
        What::Only {
            default: "promiscuous-bridge",
            others: &["hairpin-veth"],
            why: "pods always reach themselves by services",
        },
    ),
    field(
        "makeIPTablesUtilChains",
        "make-iptables-util-chains",
        Kind::Bool,
        true,
        unmet("true", &[], NFTABLES),
    ),
    field("iptablesMasqueradeBit", "", Kind::Int, true, unmet("14", &[], NFTABLES)),
    field("iptablesDropBit", "", Kind::Int, true, unmet("15", &[], NFTABLES)),
    field(
        "containerRuntimeEndpoint",
        "container-runtime-endpoint",
        Kind::Text,
        false,
        alone(
            |c, v| {
                let socket = text(v);
                if !socket.starts_with("unix:///") {
                    return Err(format!("{socket}: the form is unix:///PATH"));
                }
                own(c, |alone| alone.runtime = socket)
            },
            |c| json!(c.alone.as_ref().map_or("", |alone| &alone.runtime)),
            "",
            RUNTIME,
        ),
    ),
    field(
        "imageServiceEndpoint",
        "image-service-endpoint",
        Kind::Text,
        false,
        only("", "images are the runtime's, and are asked of it by its own socket"),
    ),
    field(
        "runtimeRequestTimeout",
        "runtime-request-timeout",
        Kind::Duration,
        false,
        set(put!(runtime_request_timeout, some_time), |c| {
            show::time(c.runtime_request_timeout)
        }),
    ),
    field(
        "crashLoopBackOff",
        "",
        Kind::Object,
        false,
        set(
            |c, v| {
                known(v, "", &[("maxContainerRestartPeriod", Kind::Duration)])?;
                let most = time(&v["maxContainerRestartPeriod"])?;
                if !(Duration::from_secs(1)..=Duration::from_secs(300)).contains(&most) {
                    let got = most.as_secs_f64();
                    return Err(format!(
                        "CrashLoopBackOff.MaxContainerRestartPeriod (got: {got} seconds) must be set between 1s and 300s"
                    ));
                }
                c.crash_backoff_max = most;
                Ok(())
            },
            |c| json!({"maxContainerRestartPeriod": show::time(c.crash_backoff_max)}),
        ),
    ),
    field(
        "seccompDefault",
        "seccomp-default",
        Kind::Bool,
        true,
        set(put!(seccomp_default, |v| Ok::<_, String>(truth(v))), |c| {
            json!(c.seccomp_default)
        }),
    ),
    field(
        "allowedUnsafeSysctls",
        "allowed-unsafe-sysctls",
        Kind::Texts,
        false,
        set(
            put!(allowed_unsafe_sysctls, |v| Ok::<_, String>(kinds::list(Some(v)))),
            |c| json!(c.allowed_unsafe_sysctls),
        ),
    ),
    field(
        "defaultPodSysctls",
        "",
        Kind::Map('='),
        false,
        only("{}", "it requires feature gate DefaultPodSysctls"),
    ),
    field(
        "userNamespaces",
        "",
        Kind::Object,
        true,
        set(user_namespaces, |c| json!({"idsPerPod": c.ids_per_pod})),
    ),
    field(
        "containerLogMaxSize",
        "container-log-max-size",
        Kind::Text,
        false,
        set(
            |c, v| {
                let size = keelson_api::quantity::Quantity::parse(&text(v)).map_err(|e| e.to_string())?;
                c.log_max_size = u64::try_from(size.value())
                    .ok()
                    .filter(|n| *n > 0)
                    .ok_or("must be positive")?;
                Ok(())
            },
            |c| json!(crate::resources::quantity::bytes(c.log_max_size as i64).0),
        ),
    ),
    field(
        "containerLogMaxFiles",
        "container-log-max-files",
        Kind::Int,
        true,
        set(
            |c, v| {
                let most = int(v, 2, 1 << 20).map_err(|_| "must be greater than 1".to_owned())?;
                c.log_max_files = most as usize;
                Ok(())
            },
            |c| json!(c.log_max_files),
        ),
    ),
    field(
        "containerLogMaxWorkers",
        "",
        Kind::Int,
        true,
        only("1", "one looks after all logs"),
    ),
    field(
        "containerLogMonitorInterval",
        "",
        Kind::Duration,
        true,
        set(
            |c, v| {
                let apart = time(v)?;
                if apart < Duration::from_secs(3) {
                    return Err("must be greater than or equal to 3s".into());
                }
                c.log_monitor = apart;
                Ok(())
            },
            |c| show::time(c.log_monitor),
        ),
    ),
    field(
        "volumePluginDir",
        "volume-plugin-dir",
        Kind::Path,
        false,
        only("", "drivers of volumes are CSI's"),
    ),
    field(
        "volumeStatsAggPeriod",
        "volume-stats-agg-period",
        Kind::Duration,
        false,
        unmet("1m0s", &[], "each kind of volume has its own time"),
    ),
    field(
        "enableControllerAttachDetach",
        "enable-controller-attach-detach",
        Kind::Bool,
        true,
        only("true", "volumes are attached by the cluster's controller"),
    ),
    field(
        "localStorageCapacityIsolation",
        "local-storage-capacity-isolation",
        Kind::Bool,
        true,
        only("true", "limits of local storage always hold"),
    ),
];

/// The runtime and those that collect logs are told of files by it.
fn logs(v: &Value) -> Result<PathBuf, String> {
    let said = text(v);
    let path = Path::new(&said);
    let clean: PathBuf = path.components().collect();
    if !path.is_absolute() {
        return Err("must be absolute path".into());
    }
    if clean.as_os_str() != path.as_os_str() || path.components().any(|part| part == Component::ParentDir) {
        return Err("must be normalized".into());
    }
    match said.is_ascii() {
        true => Ok(clean),
        false => Err("must contain ASCII characters only".into()),
    }
}

fn user_namespaces(c: &mut Config, v: &Value) -> Result<(), String> {
    known(v, "", &[("idsPerPod", Kind::Int)])?;
    let unit = i64::from(UNIT);
    let said = v["idsPerPod"].as_i64().unwrap_or(unit);
    c.ids_per_pod = match u32::try_from(said) {
        _ if said < unit => return Err(format!("idsPerPod must not be less than {unit}")),
        _ if said % unit != 0 => return Err(format!("idsPerPod must be a multiple of {unit}")),
        Ok(ids) => ids,
        Err(_) => return Err(format!("idsPerPod must not be more than {}", u32::MAX)),
    };
    Ok(())
}
