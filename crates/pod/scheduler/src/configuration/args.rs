//! What single plug-ins are told (`pluginConfig`), with upstream's defaults and checks.

use super::errors::Errors;
use crate::framework::Plugin;
use crate::plugins::balanced_allocation::BalancedAllocation;
use crate::plugins::dynamic_resources::{self, DynamicResources};
use crate::plugins::inter_pod_affinity::InterPodAffinity;
use crate::plugins::node_affinity::{Added, NodeAffinity};
use crate::plugins::resources_fit::{Kind, ResourcesFit, Strategy};
use crate::plugins::topology_spread::TopologySpread;
use crate::plugins::volume_binding::VolumeBinding;
use crate::profile::Preempting;
use k8s_openapi::api::core::v1::{NodeSelectorTerm, TopologySpreadConstraint};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginConfig {
    name: String,
    #[serde(default)]
    args: Value,
}

/// What was said of the plug-ins, and the defaults of what wasn't.
pub struct Args {
    made: Vec<Arc<dyn Plugin>>,
    fit: Option<ResourcesFit>,
    pub preempting: Preempting,
    pub volumes_within: Duration,
    pub devices: DynamicResources,
}

impl Args {
    /// The plug-in as it was configured.
    pub fn plugin(&self, name: &str) -> Option<Arc<dyn Plugin>> {
        self.made.iter().find(|p| p.name() == name).cloned()
    }

    pub fn read(path: &str, configs: &[PluginConfig], errors: &mut Errors) -> Args {
        let mut args = Args {
            made: Vec::new(),
            fit: None,
            preempting: Preempting::default(),
            volumes_within: Duration::from_secs(600),
            devices: DynamicResources::default(),
        };
        for (i, config) in configs.iter().enumerate() {
            let at = format!("{path}[{i}]");
            if configs[..i].iter().any(|other| other.name == config.name) {
                errors.duplicate(&at, &config.name);
                continue;
            }
            if let Err(error) = args.one(&format!("{at}.args"), config, errors) {
                errors.other(format!(
                    "decoding {at}.args for plugin {}: strict decoding error: {error}",
                    config.name
                ));
            }
        }
        args
    }

    /// What extenders look after isn't counted here; their say goes before the plug-in's own arguments.
    pub fn ignoring(mut self, resources: &[String]) -> Args {
        if !resources.is_empty() {
            self.fit.get_or_insert_default().ignored = resources.to_vec();
        }
        self.made
            .extend(self.fit.take().map(|fit| Arc::new(fit) as Arc<dyn Plugin>));
        self
    }

    fn one(&mut self, path: &str, config: &PluginConfig, errors: &mut Errors) -> Result<(), serde_json::Error> {
        match config.name.as_str() {
            "NodeResourcesFit" => self.fit = Some(fit(path, args(config, errors)?, errors)),
            "NodeResourcesBalancedAllocation" => self.made.push(Arc::new(balance(path, args(config, errors)?, errors))),
            "InterPodAffinity" => self.made.push(Arc::new(inter_pod(path, args(config, errors)?, errors))),
            "PodTopologySpread" => self.made.push(Arc::new(spread(path, args(config, errors)?, errors))),
            "NodeAffinity" => self
                .made
                .push(Arc::new(node_affinity(path, args(config, errors)?, errors))),
            "DefaultPreemption" => self.preempting = preempting(path, args(config, errors)?, errors),
            dynamic_resources::NAME => {
                self.devices = devices(path, args(config, errors)?, errors);
                self.made.push(Arc::new(self.devices));
            }
            "VolumeBinding" => {
                let args: VolumeBindingArgs = args(config, errors)?;
                let seconds = args.bind_timeout_seconds.unwrap_or(600);
                if seconds < 0 {
                    let why = "invalid BindTimeoutSeconds, should not be a negative value";
                    errors.invalid(&format!("{path}.bindTimeoutSeconds"), seconds, why);
                }
                if !args.shape.is_empty() {
                    check_shape(&format!("{path}.shape"), &args.shape, errors);
                    let shape = args.shape.iter().map(|p| (p.utilization, p.score)).collect();
                    self.made.push(Arc::new(VolumeBinding { shape }));
                }
                self.volumes_within = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
            }
            other => errors.forbidden(path, &format!("there is nothing that can be said of plug-in {other:?}")),
        }
        Ok(())
    }
}

/// The arguments, whose kind may be given: then it has to be the plug-in's.
fn args<T: DeserializeOwned + Default>(config: &PluginConfig, errors: &mut Errors) -> Result<T, serde_json::Error> {
    let mut args = config.args.clone();
    let Some(map) = args.as_object_mut() else {
        return if args.is_null() {
            Ok(T::default())
        } else {
            serde_json::from_value(args)
        };
    };
    let kind = format!("{}Args", config.name);
    for (key, expected) in [("apiVersion", super::API_VERSION), ("kind", kind.as_str())] {
        if let Some(given) = map.remove(key)
            && given != expected
        {
            errors.other(format!(
                "args for plugin {} were not of type {}.{kind}, got {given}",
                config.name,
                super::API_VERSION
            ));
        }
    }
    serde_json::from_value(args)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DynamicResourcesArgs {
    filter_timeout: Option<String>,
    binding_timeout: Option<String>,
}

/// 0 for the filter: as long as it takes. What is done before a pod starts has a second at least.
fn devices(path: &str, args: DynamicResourcesArgs, errors: &mut Errors) -> DynamicResources {
    let mut devices = DynamicResources::default();
    let mut read = |name: &str, text: &Option<String>, least: Duration, why: &str| {
        let text = text.as_ref()?;
        let length = keelson_api::duration::length(text).ok();
        let length = length.filter(|length| *length >= least);
        if length.is_none() {
            errors.invalid(&format!("{path}.{name}"), text.as_str(), why);
        }
        length
    };
    if let Some(within) = read(
        "filterTimeout",
        &args.filter_timeout,
        Duration::ZERO,
        "must be zero or positive",
    ) {
        devices.filter_within = (!within.is_zero()).then_some(within);
    }
    if let Some(within) = read(
        "bindingTimeout",
        &args.binding_timeout,
        Duration::from_secs(1),
        "must be at least 1 second",
    ) {
        devices.binding_within = within;
    }
    devices
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct VolumeBindingArgs {
    bind_timeout_seconds: Option<i64>,
    #[serde(default)]
    shape: Vec<Point>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DefaultPreemptionArgs {
    min_candidate_nodes_percentage: Option<i64>,
    min_candidate_nodes_absolute: Option<i64>,
}

fn preempting(path: &str, args: DefaultPreemptionArgs, errors: &mut Errors) -> Preempting {
    let percentage = args.min_candidate_nodes_percentage.unwrap_or(10);
    let absolute = args.min_candidate_nodes_absolute.unwrap_or(100);
    let (of_share, of_number) = (
        format!("{path}.minCandidateNodesPercentage"),
        format!("{path}.minCandidateNodesAbsolute"),
    );
    if !(0..=100).contains(&percentage) {
        errors.invalid(&of_share, percentage, "not in valid range [0, 100]");
    }
    if absolute < 0 {
        errors.invalid(&of_number, absolute, "not in valid range [0, inf)");
    }
    if percentage == 0 && absolute == 0 {
        errors.invalid(
            &of_share,
            0,
            "cannot be zero at the same time as minCandidateNodesAbsolute",
        );
        errors.invalid(
            &of_number,
            0,
            "cannot be zero at the same time as minCandidateNodesPercentage",
        );
    }
    Preempting {
        percentage: u32::try_from(percentage).unwrap_or_default(),
        absolute: u32::try_from(absolute).unwrap_or_default(),
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InterPodAffinityArgs {
    hard_pod_affinity_weight: Option<i64>,
    #[serde(default)]
    ignore_preferred_terms_of_existing_pods: bool,
}

fn inter_pod(path: &str, args: InterPodAffinityArgs, errors: &mut Errors) -> InterPodAffinity {
    let weight = args.hard_pod_affinity_weight.unwrap_or(1);
    if !(0..=100).contains(&weight) {
        errors.invalid(
            &format!("{path}.hardPodAffinityWeight"),
            weight,
            "not in valid range [0, 100]",
        );
    }
    InterPodAffinity {
        hard_weight: weight,
        ignores_residents: args.ignore_preferred_terms_of_existing_pods,
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PodTopologySpreadArgs {
    #[serde(default)]
    default_constraints: Vec<TopologySpreadConstraint>,
    defaulting_type: Option<String>,
}

fn spread(path: &str, args: PodTopologySpreadArgs, errors: &mut Errors) -> TopologySpread {
    let kind = args
        .defaulting_type
        .as_deref()
        .filter(|k| !k.is_empty())
        .unwrap_or("System");
    let at = format!("{path}.defaultingType");
    match kind {
        "System" if args.default_constraints.is_empty() => return TopologySpread::default(),
        "System" => errors.invalid(&at, kind, "when .defaultConstraints are not empty"),
        "List" => {}
        other => errors.unsupported(&at, other, &["System", "List"]),
    }
    for (i, c) in args.default_constraints.iter().enumerate() {
        let p = format!("{path}.defaultConstraints[{i}]");
        if c.max_skew <= 0 {
            errors.invalid(&format!("{p}.maxSkew"), c.max_skew, "not in valid range (0, inf)");
        }
        if c.topology_key.is_empty() {
            errors.required(&format!("{p}.topologyKey"), "can not be empty");
        }
        let when = format!("{p}.whenUnsatisfiable");
        match c.when_unsatisfiable.as_str() {
            "" => errors.required(&when, "can not be empty"),
            "DoNotSchedule" | "ScheduleAnyway" => {}
            other => errors.unsupported(&when, other, &["DoNotSchedule", "ScheduleAnyway"]),
        }
        if c.label_selector.is_some() {
            let why = "constraint must not define a selector, as they deduced for each pod";
            errors.forbidden(&format!("{p}.labelSelector"), why);
        }
        let id = |c: &TopologySpreadConstraint| format!("{{{}, {}}}", c.topology_key, c.when_unsatisfiable);
        if args.default_constraints[..i].iter().any(|other| id(other) == id(c)) {
            errors.duplicate(&p, &id(c));
        }
    }
    TopologySpread {
        defaults: args.default_constraints,
        is_system: false,
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct NodeAffinityArgs {
    added_affinity: Option<k8s_openapi::api::core::v1::NodeAffinity>,
}

fn node_affinity(path: &str, args: NodeAffinityArgs, errors: &mut Errors) -> NodeAffinity {
    let added = args.added_affinity.unwrap_or_default();
    let required = added.required_during_scheduling_ignored_during_execution;
    let preferred = added
        .preferred_during_scheduling_ignored_during_execution
        .unwrap_or_default();
    let path = format!("{path}.addedAffinity");
    let mut check = |at: String, term: &NodeSelectorTerm| {
        for (i, rule) in term.match_expressions.iter().flatten().enumerate() {
            if !["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"].contains(&rule.operator.as_str()) {
                let at = format!("{at}.matchExpressions[{i}].operator");
                errors.invalid(&at, rule.operator.as_str(), "not a valid selector operator");
            }
        }
        for (i, rule) in term.match_fields.iter().flatten().enumerate() {
            if rule.key != "metadata.name" {
                let at = format!("{at}.matchFields[{i}].key");
                errors.invalid(&at, rule.key.as_str(), "not a valid field selector key");
            }
        }
    };
    for (i, term) in required.iter().flat_map(|s| &s.node_selector_terms).enumerate() {
        check(
            format!("{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{i}]"),
            term,
        );
    }
    for (i, term) in preferred.iter().enumerate() {
        check(
            format!("{path}.preferredDuringSchedulingIgnoredDuringExecution[{i}]"),
            &term.preference,
        );
    }
    NodeAffinity {
        added: Added { required, preferred },
    }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    name: String,
    #[serde(default)]
    weight: i64,
}

fn common() -> Vec<Resource> {
    let resource = |name: &str| Resource {
        name: name.into(),
        weight: 1,
    };
    vec![resource("cpu"), resource("memory")]
}

/// Cpu and memory where none is named, and a weight of one where none is given.
fn resources(given: Vec<Resource>) -> Vec<Resource> {
    let mut resources = if given.is_empty() { common() } else { given };
    for resource in resources.iter_mut().filter(|r| r.weight == 0) {
        resource.weight = 1;
    }
    resources
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct BalancedArgs {
    #[serde(default)]
    resources: Vec<Resource>,
}

fn balance(path: &str, args: BalancedArgs, errors: &mut Errors) -> BalancedAllocation {
    let resources = resources(args.resources);
    for (i, resource) in resources.iter().enumerate() {
        if resources[..i].iter().any(|other| other.name == resource.name) {
            errors.duplicate(&format!("{path}.resources[{i}].name"), &resource.name);
        }
        if resource.weight != 1 {
            errors.invalid(&format!("{path}.resources[{i}].weight"), resource.weight, "must be 1");
        }
    }
    BalancedAllocation {
        resources: resources.into_iter().map(|r| r.name).collect(),
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FitArgs {
    #[serde(default)]
    ignored_resources: Vec<String>,
    #[serde(default)]
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<FileStrategy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileStrategy {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    resources: Vec<Resource>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ratio {
    #[serde(default)]
    shape: Vec<Point>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    #[serde(default)]
    utilization: i64,
    #[serde(default)]
    score: i64,
}

fn fit(path: &str, args: FitArgs, errors: &mut Errors) -> ResourcesFit {
    for (i, group) in args.ignored_resource_groups.iter().enumerate() {
        if group.contains('/') {
            let at = format!("{path}.ignoredResourceGroups[{i}]");
            errors.invalid(&at, group.as_str(), "resource group name can't contain '/'");
        }
    }
    ResourcesFit {
        strategy: args.scoring_strategy.map_or_else(Strategy::default, |strategy| {
            strategy.read(&format!("{path}.scoringStrategy"), errors)
        }),
        ignored: args.ignored_resources,
        ignored_groups: args.ignored_resource_groups,
    }
}

impl FileStrategy {
    fn read(self, path: &str, errors: &mut Errors) -> Strategy {
        let resources = resources(self.resources);
        for (i, resource) in resources.iter().enumerate() {
            if !(1..=100).contains(&resource.weight) {
                let why = format!("resource weight of {} not in valid range (0, 100]", resource.name);
                errors.invalid(&format!("{path}.resources[{i}].weight"), resource.weight, &why);
            }
        }
        let ratio = format!("{path}.requestedToCapacityRatio");
        if self.kind != "RequestedToCapacityRatio" && self.requested_to_capacity_ratio.is_some() {
            errors.forbidden(&ratio, "must be nil when type is not RequestedToCapacityRatio");
        }
        let kind = match self.kind.as_str() {
            "LeastAllocated" => Kind::LeastAllocated,
            "MostAllocated" => Kind::MostAllocated,
            "RequestedToCapacityRatio" => {
                if self.requested_to_capacity_ratio.is_none() {
                    errors.required(&ratio, "must be specified when type is RequestedToCapacityRatio");
                }
                let shape = self.requested_to_capacity_ratio.map(|ratio| ratio.shape);
                if let Some(shape) = &shape {
                    check_shape(&format!("{ratio}.shape"), shape, errors);
                }
                let points = shape.into_iter().flatten().map(|p| (p.utilization, p.score));
                Kind::RequestedToCapacityRatio(points.collect())
            }
            other => {
                let types = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
                errors.unsupported(&format!("{path}.type"), other, &types);
                Kind::LeastAllocated
            }
        };
        Strategy {
            kind,
            resources: resources.into_iter().map(|r| (r.name, r.weight)).collect(),
        }
    }
}

fn check_shape(path: &str, shape: &[Point], errors: &mut Errors) {
    if shape.is_empty() {
        return errors.required(path, "at least one point must be specified");
    }
    if let Some(at) = shape.windows(2).position(|w| w[0].utilization >= w[1].utilization) {
        let (i, value) = (at + 1, shape[at + 1].utilization);
        errors.invalid(
            &format!("{path}[{i}].utilization"),
            value,
            "values must be sorted in increasing order",
        );
    }
    for (i, point) in shape.iter().enumerate() {
        if !(0..=100).contains(&point.utilization) {
            errors.invalid(
                &format!("{path}[{i}].utilization"),
                point.utilization,
                "not in valid range [0, 100]",
            );
        }
        if !(0..=10).contains(&point.score) {
            errors.invalid(&format!("{path}[{i}].score"), point.score, "not in valid range [0, 10]");
        }
    }
}
