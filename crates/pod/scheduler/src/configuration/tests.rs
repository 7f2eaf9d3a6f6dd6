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
    let on_score: Vec<_> = weighed.scorers().map(|(p, weight)| (p.name(), weight)).collect();
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
        json!({"extenders": [{"urlPrefix": "http://localhost"}]}),
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
