use super::*;
use serde_json::json;

fn file(more: Value) -> Value {
    let mut file = json!({"apiVersion": API_VERSION, "kind": KIND});
    for (key, value) in more.as_object().into_iter().flatten() {
        file[key] = value.clone();
    }
    file
}

fn refused(more: Value) -> String {
    read(file(more)).map_or_else(|e| e.to_string(), |c| panic!("{c:?}"))
}

fn profile(profile: Value) -> Profile {
    let mut config = read(file(json!({"profiles": [profile]}))).unwrap_or_else(|e| panic!("{e}"));
    config.profiles.remove(0)
}

fn on(profile: &Profile) -> Vec<String> {
    profile.plugins.iter().map(|e| format!("{e:?}")).collect()
}

#[test]
fn nothing_said_is_the_default() {
    let config = read(file(json!({}))).unwrap();
    let default = Config::default();
    assert_eq!(on(&config.profiles[0]), on(&default.profiles[0]));
    assert_eq!(format!("{config:?}"), format!("{default:?}"));
}

#[test]
fn several_profiles_and_what_goes_for_all() {
    let config = read(file(json!({
        "percentageOfNodesToScore": 40, "podInitialBackoffSeconds": 2, "podMaxBackoffSeconds": 20, "parallelism": 4,
        "leaderElection": {"leaderElect": false},
        "profiles": [{"schedulerName": "a"}, {"schedulerName": "b", "percentageOfNodesToScore": 70,
            "plugins": {"postFilter": {"disabled": [{"name": "*"}]}}}],
    })));
    let config = config.unwrap();
    let seen: Vec<_> = config
        .profiles
        .iter()
        .map(|p| (p.scheduler_name.as_str(), p.percentage, p.preemption.is_some()))
        .collect();
    assert_eq!(seen, [("a", 40, true), ("b", 70, false)]);
    assert_eq!(
        (config.backoffs.first.as_secs(), config.backoffs.most.as_secs()),
        (2, 20)
    );
}

#[test]
fn plugins_are_disabled_enabled_and_weighed() {
    let weighed = profile(json!({"plugins": {
        "score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit", "weight": 7}]},
        "filter": {"disabled": [{"name": "NodePorts"}]},
    }}));
    let on_score: Vec<_> = weighed.scorers().map(|(_, p, weight)| (p.name(), weight)).collect();
    assert_eq!(on_score, [("NodeResourcesFit", 7)]);
    let filters: Vec<_> = weighed.filters().map(|p| p.name()).collect();
    assert!(
        !filters.contains(&"NodePorts") && filters.contains(&"NodeResourcesFit"),
        "{filters:?}"
    );

    let few = profile(
        json!({"plugins": {"multiPoint": {"disabled": [{"name": "*"}], "enabled": [
        {"name": "SchedulingGates"}, {"name": "PrioritySort"}, {"name": "DefaultBinder"},
        {"name": "TaintToleration", "weight": 5}, {"name": "NodeName"}]}}}),
    );
    assert_eq!(
        on(&few),
        ["TaintToleration (filters, weight 5)", "NodeName (filters, weight 0)"]
    );
    assert!(few.preemption.is_none());

    // What is configured anew keeps its place; without a weight it weighs one.
    let anew = profile(json!({"plugins": {"multiPoint": {"enabled": [{"name": "TaintToleration"}]}}}));
    assert_eq!(on(&anew)[2], "TaintToleration (filters, weight 1)");
}

#[test]
fn args_are_taken() {
    let config = json!([
        {"name": "DefaultPreemption", "args": {"kind": "DefaultPreemptionArgs", "minCandidateNodesAbsolute": 7}},
        {"name": "VolumeBinding", "args": {"bindTimeoutSeconds": 60}},
        {"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated",
            "resources": [{"name": "cpu", "weight": 3}]}}},
    ]);
    let profile = profile(json!({"pluginConfig": config}));
    assert_eq!(profile.preemption.map(|p| (p.percentage, p.absolute)), Some((10, 7)));
    assert_eq!(profile.volumes_within.as_secs(), 60);
}

#[test]
fn what_is_wrong_is_said_in_upstreams_words() {
    let args =
        |name: &str, args: Value| refused(json!({"profiles": [{"pluginConfig": [{"name": name, "args": args}]}]}));
    let at = "profiles[0].pluginConfig[0].args";
    for (found, expected) in [
        (
            refused(json!({"parallelism": 0, "percentageOfNodesToScore": 101})),
            "[parallelism: Invalid value: 0: should be an integer value greater than zero, \
             percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]]"
                .to_owned(),
        ),
        (
            refused(json!({"podInitialBackoffSeconds": 5, "podMaxBackoffSeconds": 2})),
            "podMaxBackoffSeconds: Invalid value: 2: must be greater than or equal to PodInitialBackoffSeconds".into(),
        ),
        (
            refused(json!({"profiles": [{"schedulerName": "a"}, {"schedulerName": "a"}]})),
            "profiles[1].schedulerName: Duplicate value: \"profiles[0].schedulerName\"".into(),
        ),
        (
            refused(json!({"profiles": [{}, {"schedulerName": "a"}]})),
            "profiles[0].schedulerName: Required value".into(),
        ),
        (
            args("InterPodAffinity", json!({"hardPodAffinityWeight": 101})),
            format!("{at}.hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]"),
        ),
        (
            args(
                "PodTopologySpread",
                json!({"defaultConstraints": [{"maxSkew": 1, "topologyKey": "z",
                "whenUnsatisfiable": "ScheduleAnyway"}]}),
            ),
            format!("{at}.defaultingType: Invalid value: \"System\": when .defaultConstraints are not empty"),
        ),
        (
            args(
                "NodeResourcesFit",
                json!({"scoringStrategy": {"type": "RequestedToCapacityRatio"}}),
            ),
            format!(
                "{at}.scoringStrategy.requestedToCapacityRatio: Required value: must be specified when type is RequestedToCapacityRatio"
            ),
        ),
        (
            args(
                "NodeResourcesBalancedAllocation",
                json!({"resources": [{"name": "cpu", "weight": 2}]}),
            ),
            format!("{at}.resources[0].weight: Invalid value: 2: must be 1"),
        ),
        (
            args(
                "DefaultPreemption",
                json!({"minCandidateNodesPercentage": 0, "minCandidateNodesAbsolute": 0}),
            ),
            format!(
                "[{at}.minCandidateNodesPercentage: Invalid value: 0: cannot be zero at the same time as \
                minCandidateNodesAbsolute, {at}.minCandidateNodesAbsolute: Invalid value: 0: cannot be zero at the same time \
                as minCandidateNodesPercentage]"
            ),
        ),
    ] {
        assert_eq!(found, expected);
    }
}

#[test]
fn what_cant_be_done_is_refused() {
    for more in [
        json!({"leaderElection": {"leaderElect": true}}),
        json!({"clientConnection": {"kubeconfig": "x"}}),
        json!({"profiles": [{"plugins": {"reserve": {"disabled": [{"name": "*"}]}}}]}),
        json!({"profiles": [{"plugins": {"multiPoint": {"enabled": [{"name": "Coscheduling"}]}}}]}),
        json!({"profiles": [{"plugins": {"multiPoint": {"disabled": [{"name": "PrioritySort"}]}}}]}),
        json!({"profiles": [{"plugins": {"score": {"enabled": [{"name": "NodeName"}]}}}]}),
        json!({"profiles": [{"pluginConfig": [{"name": "Other", "args": {}}]}]}),
        json!({"profiles": [{"pluginConfig": [{"name": "NodeAffinity", "args": {"added": {}}}]}]}),
        json!({"percentage": 4}),
    ] {
        assert!(read(file(more.clone())).is_err(), "{more}");
    }
    assert!(read(json!({"apiVersion": "kubescheduler.config.k8s.io/v1beta3", "kind": KIND})).is_err());
}

#[test]
fn extenders_are_taken_and_checked_in_upstreams_words() {
    let config = read(file(json!({"extenders": [{
        "urlPrefix": "https://x:1/y", "filterVerb": "filter", "prioritizeVerb": "prioritize", "bindVerb": "bind", "preemptVerb": "preempt",
        "weight": 5, "enableHTTPS": true, "tlsConfig": {"caFile": "/ca", "serverName": "name"}, "httpTimeout": "1m30s",
        "nodeCacheCapable": true, "ignorable": true,
        "managedResources": [{"name": "example.com/card", "ignoredByScheduler": true}],
    }, {"urlPrefix": "http://z"}]})));
    let extenders = config.unwrap_or_else(|e| panic!("{e}")).extenders;
    let [first, second] = extenders.as_slice() else {
        panic!("{extenders:?}")
    };
    assert_eq!(
        (first.url.as_str(), first.weight, first.timeout.as_secs()),
        ("https://x:1/y", 5, 90)
    );
    assert!(first.knows_nodes && first.may_fail && first.managed == ["example.com/card"]);
    assert_eq!(second.timeout.as_secs(), 5);

    let one = |more: Value| {
        let mut extender = json!({"urlPrefix": "http://x"});
        for (key, value) in more.as_object().into_iter().flatten() {
            extender[key] = value.clone();
        }
        refused(json!({"extenders": [extender]}))
    };
    for (found, expected) in [
        (
            one(json!({"prioritizeVerb": "p"})),
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
        ),
        (
            refused(
                json!({"extenders": [{"urlPrefix": "http://a", "bindVerb": "b"}, {"urlPrefix": "http://b", "bindVerb": "b"}]}),
            ),
            "extenders: Invalid value: \"found 2 extenders implementing bind\": only one extender can implement bind",
        ),
        (
            one(json!({"managedResources": [{"name": "cpu"}]})),
            "extenders[0].managedResources[0].name: Invalid value: \"cpu\": is an invalid extended resource name",
        ),
        (
            one(json!({"managedResources": [{"name": "a.b/c"}, {"name": "a.b/c"}]})),
            "extenders[0].managedResources[1].name: Invalid value: \"a.b/c\": duplicate extender managed resource name",
        ),
        (
            one(json!({"urlPrefix": "here"})),
            "extenders[0].urlPrefix: Invalid value: \"here\": must be http://HOST[:PORT][/PATH] or https://…",
        ),
        (
            one(json!({"tlsConfig": {"insecure": true, "caFile": "/ca"}})),
            "extenders[0].tlsConfig.insecure: Invalid value: true: specifying a root certificates file with the insecure flag is not allowed",
        ),
        (
            one(json!({"httpTimeout": "-1s"})),
            "extenders[0].httpTimeout: Invalid value: \"-1s\": must be a duration that isn't negative, as 5s",
        ),
    ] {
        assert_eq!(found, expected);
    }
    let believes_anybody = |more: Value| {
        let mut extender = json!({"urlPrefix": "https://x"});
        for (key, value) in more.as_object().into_iter().flatten() {
            extender[key] = value.clone();
        }
        let config = read(file(json!({"extenders": [extender]}))).unwrap_or_else(|e| panic!("{e}"));
        config.extenders[0].tls.insecure
    };
    assert!(!believes_anybody(json!({})), "the machine's authorities vouch");
    assert!(believes_anybody(json!({"enableHTTPS": true})));
    assert!(!believes_anybody(
        json!({"enableHTTPS": true, "tlsConfig": {"caData": "Yw=="}})
    ));
    let secret = read(file(
        json!({"extenders": [{"urlPrefix": "http://x", "tlsConfig": {"certData": "Yw==", "keyData": "c2VjcmV0"}}]}),
    ));
    assert!(!format!("{secret:?}").contains("c2VjcmV0"), "keys aren't told");
}

#[test]
fn the_worth_of_storage_is_a_shape() {
    let shape = json!([{"utilization": 0, "score": 0}, {"utilization": 100, "score": 10}]);
    profile(json!({"pluginConfig": [{"name": "VolumeBinding", "args": {"shape": shape}}]}));
    let at = "profiles[0].pluginConfig[0].args.shape";
    let falling = json!([{"utilization": 50, "score": 0}, {"utilization": 50, "score": 11}]);
    assert_eq!(
        refused(json!({"profiles": [{"pluginConfig": [{"name": "VolumeBinding", "args": {"shape": falling}}]}]})),
        format!(
            "[{at}[1].utilization: Invalid value: 50: values must be sorted in increasing order, \
             {at}[1].score: Invalid value: 11: not in valid range [0, 10]]"
        )
    );
}
