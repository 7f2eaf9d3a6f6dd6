use super::*;
use crate::config::{Alone, Swap};
use serde_json::json;
use std::time::Duration;

mod limits;

/// A file with these fields.
fn file(mut fields: Value) -> Value {
    fields["apiVersion"] = API_VERSION.into();
    fields["kind"] = KIND.into();
    fields
}

fn applied_to(mut config: Config, fields: Value) -> Result<Config, String> {
    let mut document = Document::default();
    document.first(file(fields), Path::new("/etc/kubelet"))?;
    document.apply(&mut config)?;
    Ok(config)
}

fn applied(fields: Value) -> Result<Config, String> {
    applied_to(Config::default(), fields)
}

/// Of a kubelet that is a program of its own.
fn alone() -> Config {
    Config {
        alone: Some(Alone::default()),
        ..Config::default()
    }
}

fn with_flags(flags: &[(&str, &str)]) -> Result<Config, String> {
    let mut document = Document::default();
    for (name, text) in flags {
        document.flag(name, text)?;
    }
    let mut config = Config::default();
    document.apply(&mut config)?;
    Ok(config)
}

/// What `kubeadm config print init-defaults --component-configs KubeletConfiguration` writes, but for the driver and the authority.
#[test]
fn kubeadms_file_is_honoured() {
    let c = applied(json!({
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"cacheTTL": "0s", "enabled": true}},
        "authorization": {"mode": "Webhook", "webhook": {"cacheAuthorizedTTL": "0s", "cacheUnauthorizedTTL": "0s"}},
        "cgroupDriver": "cgroupfs", "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": "", "cpuManagerReconcilePeriod": "0s", "crashLoopBackOff": {},
        "evictionPressureTransitionPeriod": "0s", "fileCheckFrequency": "0s", "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10248, "httpCheckFrequency": "0s", "imageMaximumGCAge": "0s", "imageMinimumGCAge": "0s",
        "logging": {"flushFrequency": 0, "options": {"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}}, "verbosity": 0},
        "memorySwap": {}, "nodeStatusReportFrequency": "0s", "nodeStatusUpdateFrequency": "0s",
        "rotateCertificates": true, "runtimeRequestTimeout": "0s", "shutdownGracePeriod": "0s",
        "shutdownGracePeriodCriticalPods": "0s", "staticPodPath": "/etc/kubernetes/manifests",
        "streamingConnectionIdleTimeout": "0s", "syncFrequency": "0s", "volumeStatsAggPeriod": "0s",
    }));
    let c = c.unwrap();
    assert_eq!(c.cluster_dns, ["10.96.0.10"]);
    assert_eq!(c.static_pod_path.as_deref(), Some("/etc/kubernetes/manifests".as_ref()));
    let plain = Config::default();
    assert_eq!(c.status_update, plain.status_update);
    assert_eq!((c.image_min_age, c.eviction), (plain.image_min_age, plain.eviction));
}

#[test]
fn fields_become_settings() {
    let c = applied(json!({
        "maxPods": 250, "podsPerCore": 10, "podPidsLimit": 4096, "seccompDefault": true, "cpuCFSQuota": false,
        "cpuCFSQuotaPeriod": "5ms", "memoryThrottlingFactor": 0.8, "memoryReservationPolicy": "TieredReservation",
        "enableSystemLogQuery": true,
        "systemReserved": {"cpu": "500m", "memory": "1Gi", "pid": "1000"}, "kubeReserved": {"cpu": "1"},
        "enforceNodeAllocatable": ["pods", "kube-reserved"], "kubeReservedCgroup": "/kube",
        "evictionHard": {"memory.available": "5%"}, "evictionSoft": {"memory.available": "10%"},
        "evictionSoftGracePeriod": {"memory.available": "1m30s"}, "evictionMaxPodGracePeriod": 60,
        "evictionMinimumReclaim": {"memory.available": "500Mi"}, "mergeDefaultEvictionSettings": true,
        "imageGCHighThresholdPercent": 70, "imageGCLowThresholdPercent": 60, "imageMaximumGCAge": "72h",
        "containerLogMaxSize": "50Mi", "containerLogMaxFiles": 3, "containerLogMonitorInterval": "5s",
        "registerWithTaints": [{"key": "a", "value": "b", "effect": "NoSchedule"}], "memorySwap": {"swapBehavior": "LimitedSwap"},
        "nodeStatusMaxImages": -1, "crashLoopBackOff": {"maxContainerRestartPeriod": "60s"}, "singleProcessOOMKill": true,
        "userNamespaces": {"idsPerPod": 131072}, "featureGates": {"NodeSwap": true, "CPUManagerPolicyAlphaOptions": true}, "reservedSystemCPUs": null,
        "shutdownGracePeriod": "1m", "shutdownGracePeriodCriticalPods": "20s", "cpuManagerPolicy": "static",
        "cpuManagerPolicyOptions": {"align-by-socket": "true"}, "topologyManagerPolicy": "restricted", "topologyManagerScope": "pod",
    }));
    let c = c.unwrap();
    assert_eq!(
        (c.max_pods, c.pods_per_core, c.pod_pids_limit, c.cpu_quota),
        (250, 10, Some(4096), false)
    );
    assert_eq!(
        (c.cpu_period, c.memory_throttling, c.memory_tiers, c.system_log_query),
        (Duration::from_millis(5), Some(0.8), true, true)
    );
    assert_eq!(c.system_reserved["memory"], "1Gi");
    assert_eq!(crate::node::status::reserved(&c, "cpu"), 1500);
    assert!(c.enforce.contains("kube-reserved") && c.enforce.contains("pods"));
    let shown = configz(&c);
    let shown = &shown["kubeletconfig"];
    // The one that is named, and the defaults of the others.
    assert_eq!(shown["evictionHard"]["memory.available"], "5%");
    assert_eq!(shown["evictionHard"]["nodefs.available"], "10%");
    assert_eq!(shown["evictionSoftGracePeriod"]["memory.available"], "1m30s");
    assert_eq!(shown["evictionMinimumReclaim"]["memory.available"], "500Mi");
    assert_eq!(c.register_taints, ["a=b:NoSchedule"]);
    assert_eq!(
        (c.swap, c.single_process_oom_kill, c.status_images),
        (Swap::Limited, Some(true), None)
    );
    assert_eq!(
        (c.log_max_size, c.log_max_files, c.log_monitor),
        (50 << 20, 3, Duration::from_secs(5))
    );
    assert_eq!(c.crash_backoff_max, Duration::from_secs(60));
    assert_eq!(c.image_max_age, Duration::from_secs(72 * 3600));
}

#[test]
fn what_can_not_be_had_is_refused_by_name() {
    for (fields, why) in [
        (
            json!({"cgroupDriver": "systemd"}),
            "cgroupDriver (--cgroup-driver): systemd can't be had here: systemd isn't asked for cgroups",
        ),
        (
            json!({"topologyManagerPolicy": "nearest"}),
            "topologyManagerPolicy (--topology-manager-policy): \"nearest\" must be one of: [\"none\" \"best-effort\"",
        ),
        (
            json!({"topologyManagerPolicyOptions": {"max-allowable-numa-nodes": "7"}}),
            "the minimum value of \"max-allowable-numa-nodes\" should not be less than 8",
        ),
        (
            json!({"cpuManagerPolicy": "static", "kubeReserved": {"cpu": "1"}, "cpuManagerPolicyOptions": {"align-by-socket": "true"}}),
            "CPU Manager Policy Alpha-level Options not enabled, but option \"align-by-socket\" provided",
        ),
        (
            json!({"cpuManagerPolicyOptions": {"full-pcpus-only": "true"}}),
            "None policy: received unsupported options=map[full-pcpus-only:true]",
        ),
        (
            json!({"memoryManagerPolicy": "Static"}),
            "[memorymanager] you should specify the system reserved memory",
        ),
        (
            json!({"reservedMemory": [{"numaNode": 0, "limits": {"cpu": "1"}}]}),
            "the limit type \"cpu\" for NUMA node 0 is not supported, only [memory hugepages-<HugePageSize>] is accepted",
        ),
        (
            json!({"memoryManagerPolicy": "BestEffort"}),
            "policy \"BestEffort\" is not available for platform \"linux\"",
        ),
        (
            json!({"cpuManagerPolicy": "static"}),
            "the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero",
        ),
        (
            json!({"streamingConnectionIdleTimeout": "5m"}),
            "streamingConnectionIdleTimeout (--streaming-connection-idle-timeout): 5m can't be had here: ",
        ),
        (
            json!({"maxOpenFiles": 5000}),
            "maxOpenFiles (--max-open-files): 5000 can't be had here: ",
        ),
        (
            json!({"syncFrequency": "10s"}),
            "syncFrequency (--sync-frequency): 10s can't be had here: ",
        ),
        (
            json!({"volumeStatsAggPeriod": "5m"}),
            "volumeStatsAggPeriod (--volume-stats-agg-period): 5m can't be had here: ",
        ),
        (
            json!({"iptablesMasqueradeBit": 3}),
            "iptablesMasqueradeBit: 3 can't be had here: ",
        ),
        (
            json!({"containerLogMaxWorkers": 4}),
            "containerLogMaxWorkers: 4 can't be had here: ",
        ),
        (
            json!({"logging": {"verbosity": 4}}),
            "logging: verbosity can't be had here: ",
        ),
        (
            json!({"logging": {"format": "json"}}),
            "logging: format json can't be had here: ",
        ),
        (
            json!({"authentication": {"x509": {"clientCAFile": "/ca.crt"}}}),
            "authentication: x509.clientCAFile can't be had here: ",
        ),
        (
            json!({"readOnlyPort": 10255}),
            "readOnlyPort (--read-only-port): 10255 can't be had here: nothing is served without identity",
        ),
        (
            json!({"shutdownGracePeriod": "30s", "shutdownGracePeriodCriticalPods": "31s"}),
            "invalid configuration: shutdownGracePeriodCriticalPods 31s must be <= shutdownGracePeriod 30s",
        ),
        (
            json!({"shutdownGracePeriod": "300ms"}),
            "invalid configuration: shutdownGracePeriod 300ms must be either zero or otherwise >= 1 sec",
        ),
        (
            json!({"shutdownGracePeriod": "3s", "shutdownGracePeriodByPodPriority": [{"priority": 0, "shutdownGracePeriodSeconds": 5}]}),
            "invalid configuration: Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time",
        ),
        (
            json!({"shutdownGracePeriodByPodPriority": [{"priority": 0, "seconds": 5}]}),
            "unknown field \"seconds\"",
        ),
        (
            json!({"featureGates": {"KubeletInUserNamespace": true}}),
            "featureGates (--feature-gates): KubeletInUserNamespace=true can't be had here: it is false",
        ),
        (
            json!({"featureGates": {"Nope": true}}),
            "unrecognized feature gate: Nope",
        ),
        (
            json!({"authentication": {"webhook": {"enabled": false}}}),
            "authentication: webhook.enabled: false can't be had here: ",
        ),
        (json!({"podLogsDir": "/logs"}), "podLogsDir: /logs can't be had here: "),
        (
            json!({"healthzPort": 1}),
            "healthzPort (--healthz-port): 1 can't be had here: ",
        ),
        (
            json!({"authorization": {"mode": "AlwaysAllow"}}),
            "mode AlwaysAllow can't be had here",
        ),
        (
            json!({"serializeImagePulls": true, "maxParallelImagePulls": 3}),
            "maxParallelImagePulls cannot be larger than 1 unless",
        ),
        (
            json!({"imageGCHighThresholdPercent": 101}),
            "invalid configuration: imageGCHighThresholdPercent (--image-gc-high-threshold) 101 must be between 0 and 100, inclusive",
        ),
        (
            json!({"imageGCHighThresholdPercent": 50}),
            "imageGCLowThresholdPercent (--image-gc-low-threshold) 80 must be less than",
        ),
        (
            json!({"nodeLeaseDurationSeconds": -1}),
            "invalid configuration: nodeLeaseDurationSeconds -1 must be greater than 0",
        ),
        (
            json!({"evictionSoft": {"memory.available": "1Gi"}}),
            "grace period must be specified for the soft eviction threshold memory.available",
        ),
        (
            json!({"evictionHard": {"memory": "1Gi"}}),
            "unsupported eviction signal memory",
        ),
        (json!({"kubeReserved": {"gpu": "1"}}), "cannot reserve \"gpu\" resource"),
        (
            json!({"kubeReserved": {"cpu": "-1"}}),
            "resource quantity for \"cpu\" cannot be negative: -1",
        ),
        (
            json!({"enforceNodeAllocatable": ["kube-reserved"]}),
            "kubeReservedCgroup (--kube-reserved-cgroup) must be specified",
        ),
        (
            json!({"enforceNodeAllocatable": ["pods", "none"]}),
            "may not contain additional enforcements when \"none\" is specified",
        ),
        (
            json!({"registerWithTaints": [{"key": "a", "effect": "Never"}]}),
            "invalid taint: a=:Never",
        ),
        (
            json!({"userNamespaces": {"idsPerPod": 1000}}),
            "idsPerPod must not be less than 65536",
        ),
        (
            json!({"userNamespaces": {"idsPerPod": 65537}}),
            "idsPerPod must be a multiple of 65536",
        ),
        (
            json!({"userNamespaces": {"idsPerPod": 4_294_967_296_i64}}),
            "idsPerPod must not be more than 4294967295",
        ),
        (
            json!({"crashLoopBackOff": {"maxContainerRestartPeriod": "10m"}}),
            "(got: 600 seconds) must be set between 1s and 300s",
        ),
        (
            json!({"containerLogMaxFiles": 1}),
            "invalid configuration: containerLogMaxFiles (--container-log-max-files) 1 must be greater than 1",
        ),
        (
            json!({"memorySwap": {"swapBehavior": "Unlimited"}}),
            "must be one of: \"\", \"LimitedSwap\" or \"NoSwap\"",
        ),
    ] {
        let error = applied(fields.clone()).err().unwrap_or_default();
        assert!(error.contains(why), "{fields}: {error:?} has no {why:?}");
    }
}

/// What has no effect is taken as upstream has it, and not in another way.
#[test]
fn defaults_of_upstream_are_no_wish() {
    let unmet = fields::all().filter_map(|f| match &f.what {
        What::Unmet { default, .. } => Some((f, *default)),
        _ => None,
    });
    let mut count = 0;
    for (f, default) in unmet {
        let value = show::literal(f.kind, default);
        assert!(!value.is_null(), "{}: {default}", f.name);
        let mut one = Map::new();
        one.insert(f.name.into(), value);
        applied(one.into()).unwrap_or_else(|e| panic!("{}: {e}", f.name));
        count += 1;
    }
    assert!(count > 10);
    let c = applied(json!({"runtimeRequestTimeout": "15m"})).unwrap();
    assert_eq!(c.runtime_request_timeout, Duration::from_secs(900));
    assert_eq!(configz(&c)["kubeletconfig"]["runtimeRequestTimeout"], "15m0s");
}

#[test]
fn how_often_the_status_is_told_follows_how_often_it_is_looked_at() {
    let c = applied(json!({"nodeStatusUpdateFrequency": "20s"})).unwrap();
    assert_eq!(
        (c.status_update, c.status_report),
        (Duration::from_secs(20), Duration::from_secs(20))
    );
    let c = applied(json!({"nodeStatusUpdateFrequency": "20s", "nodeStatusReportFrequency": "1m"})).unwrap();
    assert_eq!(c.status_report, Duration::from_secs(60));
    // What comes after the first file finds the default made.
    let mut d = Document::default();
    d.first(file(json!({})), Path::new("/")).unwrap();
    d.add(file(json!({"nodeStatusUpdateFrequency": "20s"}))).unwrap();
    let mut c = Config::default();
    d.apply(&mut c).unwrap();
    assert_eq!(
        (c.status_update, c.status_report),
        (Duration::from_secs(20), Duration::from_secs(300))
    );
    let c = with_flags(&[("node-status-update-frequency", "20s")]).unwrap();
    assert_eq!(c.status_report, Duration::from_secs(300));
}

#[test]
fn hard_thresholds_replace_all_unless_they_are_to_be_merged() {
    let one = json!({"memory.available": "5%"});
    let c = applied(json!({"evictionHard": one})).unwrap();
    assert_eq!(c.eviction.hard.len(), 1);
    let merged = json!({"evictionHard": one, "mergeDefaultEvictionSettings": true});
    let c = applied(merged.clone()).unwrap();
    assert_eq!(c.eviction.hard.len(), Config::default().eviction.hard.len());
    let signals = |files: &[Value], flags: &[&str]| {
        let mut d = Document::default();
        for (n, content) in files.iter().enumerate() {
            match n {
                0 => d.first(file(content.clone()), Path::new("/etc")).unwrap(),
                _ => d.add(file(content.clone())).unwrap(),
            }
        }
        for text in flags {
            d.flag("eviction-hard", text).unwrap();
        }
        let mut c = Config::default();
        d.apply(&mut c).unwrap();
        crate::eviction::threshold::show(&c.eviction.hard)
    };
    // A flag is read after the files, in which alone defaults are merged; another one adds to it.
    let by_flag = signals(&[merged], &["pid.available<10%", "memory.available<1%"]);
    assert_eq!(
        by_flag.keys().collect::<Vec<_>>(),
        ["memory.available", "pid.available"]
    );
    // The first file has the defaults, if it names none, and what comes after it is merged over them.
    let over = signals(&[json!({}), json!({"evictionHard": {"nodefs.available": "3%"}})], &[]);
    assert_eq!((over.len(), over["nodefs.available"].as_str()), (6, "3%"));
    let over = signals(
        &[
            json!({"evictionHard": one}),
            json!({"evictionHard": {"nodefs.available": "3%"}}),
        ],
        &[],
    );
    assert_eq!(
        over.keys().collect::<Vec<_>>(),
        ["memory.available", "nodefs.available"]
    );
    assert!(signals(&[json!({"evictionHard": {}})], &[]).is_empty());
}

#[test]
fn unknown_fields_and_wrong_types_are_errors() {
    let error = applied(json!({"maxPod": 1, "maxPods": "many", "evictionHard": {"memory.available": 5}})).unwrap_err();
    assert_eq!(
        error,
        "strict decoding error: evictionHard has to be strings by name, not {\"memory.available\":5}, unknown field \"maxPod\", \
         maxPods has to be a whole number, not \"many\""
    );
    let other = Document::default()
        .add(json!({"apiVersion": "v1", "kind": "Pod"}))
        .unwrap_err();
    assert!(
        other.starts_with("no kind \"Pod\" is registered for version \"v1\""),
        "{other}"
    );
}

/// Nor are wrong types below the top passed over.
#[test]
fn parts_of_fields_have_their_types() {
    for (fields, why) in [
        (
            json!({"memorySwap": {"swapBehavior": ["LimitedSwap"]}}),
            "swapBehavior has to be a string, not [\"LimitedSwap\"]",
        ),
        (
            json!({"authentication": {"x509": "/pki"}}),
            "authentication: x509 has to be an object, not \"/pki\"",
        ),
        (
            json!({"authentication": {"webhook": {"cacheTTL": 30}}}),
            "webhook.cacheTTL has to be a duration such as 10s, not 30",
        ),
        (
            json!({"authorization": {"mode": ["AlwaysAllow"]}}),
            "mode has to be a string",
        ),
        (
            json!({"crashLoopBackOff": {"maxContainerRestartPeriod": 30}}),
            "maxContainerRestartPeriod has to be a duration",
        ),
        (
            json!({"userNamespaces": {"idsPerPod": "131072"}}),
            "idsPerPod has to be a whole number",
        ),
        (
            json!({"registerWithTaints": [{"key": "a", "value": 5, "effect": "NoSchedule"}]}),
            "value has to be a string, not 5",
        ),
        (
            json!({"memorySwap": {"swapBehaviour": "NoSwap"}}),
            "unknown field \"swapBehaviour\"",
        ),
    ] {
        let error = applied(fields.clone()).err().unwrap_or_default();
        assert!(error.contains(why), "{fields}: {error:?} has no {why:?}");
    }
    applied(
        json!({"logging": {"flushFrequency": 5_000_000_000_u64, "format": "text"}, "authentication": {"x509": null}}),
    )
    .unwrap();
}

#[test]
fn later_files_are_merged_and_flags_have_the_last_word() {
    let mut d = Document::default();
    d.add(file(
        json!({"maxPods": 50, "systemReserved": {"cpu": "1", "memory": "1Gi"}, "clusterDNS": ["1.1.1.1"]}),
    ))
    .unwrap();
    d.add(file(
        json!({"maxPods": 60, "systemReserved": {"cpu": "2"}, "clusterDNS": ["9.9.9.9"]}),
    ))
    .unwrap();
    d.flag("max-pods", "70").unwrap();
    d.flag("kube-reserved", "cpu=100m,memory=200Mi").unwrap();
    d.flag("authentication-token-webhook-cache-ttl", "10s").unwrap();
    let mut c = Config::default();
    d.apply(&mut c).unwrap();
    assert_eq!((c.max_pods, c.reviews.tokens), (70, Duration::from_secs(10)));
    assert_eq!(
        c.system_reserved,
        [("cpu", "2"), ("memory", "1Gi")]
            .map(|(k, v)| (k.into(), v.into()))
            .into()
    );
    assert_eq!(c.cluster_dns, ["9.9.9.9"]);
    assert_eq!(crate::node::status::reserved(&c, "cpu"), 2100);
}

#[test]
fn flags_are_upstreams() {
    let c = with_flags(&[
        ("eviction-hard", "memory.available<1Gi,nodefs.available<10%"),
        ("register-with-taints", "a=b:NoSchedule,c:NoExecute"),
        ("seccomp-default", "true"),
        ("reserved-cpus", "0-1,3"),
        ("anonymous-auth", "true"),
    ]);
    let c = c.unwrap();
    assert_eq!(c.eviction.hard.len(), 2, "what isn't named isn't a threshold");
    assert_eq!(c.register_taints, ["a=b:NoSchedule", "c=:NoExecute"]);
    assert!(c.seccomp_default && c.anonymous);
    assert_eq!(crate::node::status::reserved(&c, "cpu"), 3000);
    for (name, text, why) in [
        ("no-such", "1", "unknown flag: --no-such"),
        (
            "max-pods",
            "x",
            "invalid argument \"x\" for \"--max-pods\" flag: invalid digit found in string",
        ),
        ("kube-reserved", "cpu", "malformed pair, expect string=string"),
        ("register-with-taints", "nothing", "invalid taint spec: nothing"),
    ] {
        let error = with_flags(&[(name, text)]).err().unwrap_or_default();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn configz_has_every_field_and_is_itself_a_configuration() {
    let mut shown = configz(&Config::default())["kubeletconfig"].take();
    for f in fields::all().filter(|f| !matches!(f.what, What::Unmet { .. })) {
        let optional = [
            "singleProcessOOMKill",
            "maxParallelImagePulls",
            "preloadedImagesVerificationAllowlist",
            "memoryThrottlingFactor",
            // Nothing is in force where nothing is said.
            "kubeAPIQPS",
            "kubeAPIBurst",
            "eventRecordQPS",
            "eventBurst",
            "registryPullQPS",
            "registryBurst",
        ];
        let optional = optional.contains(&f.name);
        assert!(optional || !shown[f.name].is_null(), "{} isn't shown", f.name);
    }
    let taint = Config {
        register_taints: vec!["a=b:NoSchedule".into()],
        ..alone()
    };
    let tainted = applied_to(alone(), configz(&taint)["kubeletconfig"].clone()).unwrap();
    assert_eq!(tainted.register_taints, taint.register_taints);
    assert_eq!(shown["podLogsDir"], "/var/log/pods");
    // The program's own business, which is told but can't be said.
    for own in ["podLogsDir", "cgroupRoot"] {
        shown[own] = Value::Null;
    }
    let read = applied(shown).unwrap();
    assert_eq!((read.max_pods, read.eviction), (110, Config::default().eviction));
}

#[test]
fn rates_are_in_force_when_they_are_said() {
    let usual = (5, 10);
    let none = Config::default();
    assert!(none.api_rate.pace(usual).is_none() && none.pull_rate.pace(usual).is_none());
    let c = applied(json!({"kubeAPIQPS": 20, "kubeAPIBurst": 40, "eventRecordQPS": 0, "registryBurst": 3})).unwrap();
    assert_eq!((c.api_rate.per_second, c.api_rate.burst), (Some(20), Some(40)));
    assert!(c.api_rate.pace(usual).is_some());
    assert!(c.event_rate.pace(usual).is_none(), "zero is no limit");
    assert!(
        c.pull_rate.pace(usual).is_some(),
        "what isn't said beside it is upstream's"
    );
    let shown = configz(&c)["kubeletconfig"].clone();
    assert_eq!((&shown["kubeAPIQPS"], &shown["registryBurst"]), (&json!(20), &json!(3)));
    let c = with_flags(&[("registry-qps", "2"), ("event-burst", "7")]).unwrap();
    assert_eq!((c.pull_rate.per_second, c.event_rate.burst), (Some(2), Some(7)));
    let error = applied(json!({"kubeAPIQPS": -1})).unwrap_err();
    assert!(error.contains("kubeAPIQPS (--kube-api-qps) -1 must"), "{error}");
}

#[test]
fn a_kubelet_alone_is_told_more_and_renews_no_certificates() {
    let said = json!({
        "containerRuntimeEndpoint": "unix:///run/r.sock", "healthzPort": 1024, "healthzBindAddress": "::", "podLogsDir": "logs",
        "tlsCertFile": "pki/k.crt", "tlsPrivateKeyFile": "/k.key", "cgroupRoot": "/k", "resolvConf": "resolv.conf",
        "authentication": {"x509": {"clientCAFile": "ca.crt"}}, "staticPodPath": "",
    });
    let c = applied_to(alone(), said.clone()).unwrap();
    let own = c.alone.clone().unwrap();
    assert_eq!(
        (own.runtime.as_str(), own.health.to_string()),
        ("unix:///run/r.sock", "[::]:1024".into())
    );
    // Relative paths are meant from the file's directory.
    assert_eq!(own.cert.as_deref(), Some(Path::new("/etc/kubelet/pki/k.crt")));
    assert_eq!(own.key.as_deref(), Some(Path::new("/k.key")));
    assert_eq!(own.client_ca.as_deref(), Some(Path::new("/etc/kubelet/ca.crt")));
    assert_eq!(
        (c.pod_logs_dir.as_path(), c.resolv_conf.as_path()),
        (Path::new("/etc/kubelet/logs"), Path::new("/etc/kubelet/resolv.conf"))
    );
    assert_eq!((c.cgroup_root.as_str(), c.static_pod_path), ("/k", None));
    let shown = configz(&applied_to(alone(), said.clone()).unwrap());
    let shown = &shown["kubeletconfig"];
    assert_eq!(
        (&shown["healthzPort"], &shown["rotateCertificates"]),
        (&json!(1024), &json!(false))
    );
    assert_eq!(shown["authentication"]["x509"]["clientCAFile"], "/etc/kubelet/ca.crt");
    assert!(applied(said).unwrap_err().contains("tlsCertFile (--tls-cert-file): "));
    for (fields, why) in [
        (
            json!({"rotateCertificates": true}),
            "rotateCertificates (--rotate-certificates): true can't be had here",
        ),
        (
            json!({"serverTLSBootstrap": true}),
            "(--rotate-server-certificates): true can't be had here",
        ),
        (
            json!({"containerRuntimeEndpoint": "tcp://r"}),
            "tcp://r: the form is unix:///PATH",
        ),
        (
            json!({"podLogsDir": "/a/../b"}),
            "podLogsDir /a/../b must be normalized",
        ),
        (
            json!({"healthzPort": 65536}),
            "healthzPort (--healthz-port) 65536 must be between 0 and 65535",
        ),
    ] {
        let error = applied_to(alone(), fields).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    // Within another program they are renewed, and who says nothing or no has no wish.
    applied(json!({"rotateCertificates": true, "serverTLSBootstrap": false})).unwrap();
}

#[test]
fn flags_say_the_whole_add_up_and_may_say_nothing() {
    let mut d = Document::default();
    let base = json!({"clusterDNS": ["1.1.1.1"], "systemReserved": {"cpu": "1"}, "featureGates": {"NodeSwap": true}, "maxPods": 9});
    d.first(file(base), Path::new("/")).unwrap();
    for (name, text) in [
        ("cluster-dns", "2.2.2.2"),
        ("cluster-dns", "3.3.3.3"),
        ("system-reserved", "memory=1Gi"),
        ("system-reserved", "pid=100"),
        ("feature-gates", "EnvFiles=true"),
        ("max-pods", "0"),
        ("cluster-domain", ""),
        ("client-ca-file", "/ca.crt"),
        ("anonymous-auth", "true"),
    ] {
        d.flag(name, text).unwrap();
    }
    let mut c = alone();
    d.apply(&mut c).unwrap();
    assert_eq!(c.cluster_dns, ["2.2.2.2", "3.3.3.3"]);
    assert_eq!(c.system_reserved.keys().collect::<Vec<_>>(), ["memory", "pid"]);
    assert_eq!((c.max_pods, c.cluster_domain.as_str()), (0, ""));
    assert!(c.anonymous && c.alone.as_ref().unwrap().client_ca.is_some());
    assert_eq!(d.said["featureGates"], json!({"NodeSwap": true, "EnvFiles": true}));
    d.say("system-reserved", "cpu=2").unwrap();
    d.apply(&mut c).unwrap();
    assert_eq!(c.system_reserved.keys().collect::<Vec<_>>(), ["cpu"]);
}

#[test]
fn flags_tell_their_fields_and_defaults() {
    let all: Vec<Flag> = flags().collect();
    let of = |name: &str| {
        let f = all.iter().find(|f| f.name == name).unwrap();
        (f.field.as_str(), f.value, f.default.as_deref(), f.is_free)
    };
    assert_eq!(of("max-pods"), ("maxPods", "N", Some("110"), true));
    assert_eq!(
        of("anonymous-auth"),
        ("authentication.anonymous.enabled", "", Some("false"), true)
    );
    assert_eq!(of("cgroup-driver"), ("cgroupDriver", "TEXT", Some("cgroupfs"), false));
    assert_eq!(of("reserved-cpus"), ("reservedSystemCPUs", "TEXT", None, true));
    assert_eq!(
        of("healthz-bind-address"),
        ("healthzBindAddress", "TEXT", Some("127.0.0.1"), true)
    );
    assert!(of("eviction-hard").2.unwrap().starts_with("imagefs.available<15%,"));
    assert!(
        judge("cgroup-driver", "systemd")
            .unwrap_err()
            .contains("systemd isn't asked for cgroups")
    );
    assert_eq!(judge("container-runtime-endpoint", "unix:///r"), Ok(()));
}

#[test]
fn a_file_that_has_no_end_is_not_read_for_ever() {
    for (name, why) in [
        ("/dev/zero", "more than 4 MiB"),
        ("/dev/null", "is empty"),
        ("/dev", "cannot read"),
    ] {
        let refused = Document::read(Some(std::path::Path::new(name)), None).err();
        let refused = refused.map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(refused.contains(why), "{name}: {refused}");
    }
}
