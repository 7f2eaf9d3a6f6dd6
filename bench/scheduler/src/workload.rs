//! scheduler_perf's files (`performance-config.yaml`): cases, each a list of operations with parameters, and sizes that set these.
//!
//! What an operation means is upstream's; what can't be played here is an error that names it, and only that case is left out.

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Case {
    pub name: String,
    #[serde(default)]
    default_pod_template_path: Option<String>,
    #[serde(default)]
    scheduler_config_path: Option<String>,
    #[serde(default)]
    feature_gates: BTreeMap<String, bool>,
    workload_template: Vec<Map<String, Value>>,
    pub workloads: Vec<Size>,
    /// Where the file is, from which paths in it go out.
    #[serde(skip)]
    dir: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    pub name: String,
    #[serde(default)]
    params: Map<String, Value>,
    #[serde(default)]
    feature_gates: BTreeMap<String, bool>,
}

/// Files may not be larger than this.
const MOST: u64 = 4 << 20;
/// No operation makes more than so many objects.
const MOST_OBJECTS: usize = 200_000;

pub fn text(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path)
        .with_context(|| path.display().to_string())?
        .len();
    ensure!(size <= MOST, "{}: {size} bytes are too many", path.display());
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// All cases of a directory's files, by path.
pub fn read(dir: &Path) -> Result<Vec<Case>> {
    let mut files = Vec::new();
    find(dir, 0, &mut files)?;
    ensure!(
        !files.is_empty(),
        "{}: there is no performance-config.yaml",
        dir.display()
    );
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let parsed: Vec<Case> = serde_saphyr::from_str(&text(&file)?).with_context(|| file.display().to_string())?;
        let dir = file.parent().unwrap_or(Path::new("")).to_owned();
        cases.extend(parsed.into_iter().map(|case| Case {
            dir: dir.clone(),
            ..case
        }));
    }
    Ok(cases)
}

fn find(dir: &Path, depth: usize, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && depth < 4 {
            find(&path, depth + 1, into)?;
        } else if path.file_name().is_some_and(|name| name == "performance-config.yaml") {
            into.push(path);
        }
    }
    Ok(())
}

#[derive(Debug)]
pub enum Op {
    Nodes(Nodes),
    Namespaces {
        prefix: String,
        count: usize,
        template: Option<PathBuf>,
    },
    Pods(Pods),
    PodSets {
        prefix: String,
        count: usize,
        pods: Pods,
    },
    Delete {
        namespace: String,
        a_second: Option<u64>,
        waits: bool,
    },
    Churn(Churn),
    Any {
        namespace: String,
        template: PathBuf,
    },
    Barrier {
        attempted: bool,
    },
    Sleep(Duration),
}

#[derive(Debug, Default)]
pub struct Nodes {
    pub count: usize,
    pub template: Option<PathBuf>,
    /// A label whose values go round.
    pub label: Option<(String, Vec<String>)>,
    /// What each node can take besides, and how many volumes of which driver.
    pub allocatable: BTreeMap<String, String>,
    pub drivers: BTreeMap<String, i32>,
    pub migrated: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Pods {
    pub namespace: Option<String>,
    pub count: usize,
    pub template: PathBuf,
    pub measured: bool,
    /// The next operation begins when all have nodes.
    pub waits: bool,
    pub volume: Option<(PathBuf, PathBuf)>,
    /// So many in a row are the same to a scheduler that looks for equal ones; `None`: nothing is said of it.
    pub alike: Option<usize>,
}

#[derive(Debug)]
pub struct Churn {
    pub recreates: bool,
    /// How many are made at most; 0: there is no end.
    pub number: usize,
    pub every: Duration,
    pub namespace: Option<String>,
    pub templates: Vec<PathBuf>,
}

/// Gates that change how much upstream's scheduler does at once, not what it decides, and such as hold here as they are set.
const INDIFFERENT: &[&str] = &[
    "SchedulerAsyncAPICalls",
    "SchedulerAsyncPreemption",
    "NodeDeclaredFeatures",
];
const ON: &[&str] = &[
    "DynamicResourceAllocation",
    "NodeInclusionPolicyInPodTopologySpread",
    "OpportunisticBatching",
];

impl Case {
    pub fn configuration(&self) -> Option<PathBuf> {
        Some(self.dir.join(self.scheduler_config_path.as_ref()?))
    }

    /// The operations at this size.
    pub fn ops(&self, size: &Size) -> Result<Vec<Op>> {
        let gates = self
            .feature_gates
            .iter()
            .filter(|(name, _)| !size.feature_gates.contains_key(*name));
        for (name, is_on) in gates.chain(&size.feature_gates) {
            let is_known = INDIFFERENT.contains(&name.as_str()) || (*is_on && ON.contains(&name.as_str()));
            ensure!(is_known, "this scheduler doesn't do what the gate {name}={is_on} means");
        }
        self.workload_template
            .iter()
            .map(|op| {
                self.op(Fields {
                    op,
                    params: &size.params,
                })
            })
            .collect()
    }

    fn op(&self, f: Fields<'_>) -> Result<Op> {
        let code = f.text("opcode")?.unwrap_or_default();
        if f.op.contains_key("templateParams") {
            bail!("{code}: templates with parameters aren't read");
        }
        Ok(match code.as_str() {
            "createNodes" => Op::Nodes(self.nodes(f)?),
            "createNamespaces" => Op::Namespaces {
                prefix: f.needed("prefix")?,
                count: f.count()?,
                template: self.path(f, "namespaceTemplatePath")?,
            },
            "createPods" => Op::Pods(self.pods(f)?),
            "createPodSets" => {
                let inner =
                    f.op.get("createPodsOp")
                        .and_then(Value::as_object)
                        .context("createPodsOp is missing")?;
                let pods = self.pods(Fields {
                    op: inner,
                    params: f.params,
                })?;
                Op::PodSets {
                    prefix: f.needed("namespacePrefix")?,
                    count: f.count()?,
                    pods,
                }
            }
            "deletePods" => {
                ensure!(!f.op.contains_key("labelSelector"), "deletePods by labels isn't played");
                Op::Delete {
                    namespace: f.needed("namespace")?,
                    a_second: f.number("deletePodsPerSecond")?.filter(|n| *n > 0),
                    waits: !f.is("skipWaitToCompletion"),
                }
            }
            "churn" => Op::Churn(Churn {
                recreates: match f.needed("mode")?.as_str() {
                    "recreate" => true,
                    "create" => false,
                    other => bail!("churn: there is no mode {other:?}"),
                },
                number: usize::try_from(f.number("number")?.unwrap_or(0))?,
                every: Duration::from_millis(f.number("intervalMilliseconds")?.filter(|n| *n > 0).unwrap_or(500)),
                namespace: f.text("namespace")?,
                templates: {
                    let paths =
                        f.op.get("templatePaths")
                            .and_then(Value::as_array)
                            .into_iter()
                            .flatten();
                    paths
                        .filter_map(Value::as_str)
                        .map(|path| self.dir.join(path))
                        .collect()
                },
            }),
            "createAny" => Op::Any {
                namespace: f.text("namespace")?.unwrap_or_default(),
                template: self.path(f, "templatePath")?.context("templatePath is missing")?,
            },
            "barrier" => {
                ensure!(!f.op.contains_key("labelSelector"), "a barrier by labels isn't played");
                Op::Barrier {
                    attempted: f.text("stageRequirement")?.as_deref() == Some("Attempted"),
                }
            }
            "sleep" => Op::Sleep(keelson_api::duration::length(&f.needed("duration")?)?),
            other => bail!("the operation {other:?} isn't played"),
        })
    }

    fn nodes(&self, f: Fields<'_>) -> Result<Nodes> {
        ensure!(
            !f.op.contains_key("uniqueNodeLabelStrategy"),
            "nodes with a label of their own aren't made"
        );
        let mut nodes = Nodes {
            count: f.count()?,
            template: self.path(f, "nodeTemplatePath")?,
            ..Nodes::default()
        };
        if let Some(label) = f.op.get("labelNodePrepareStrategy") {
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Label {
                label_key: String,
                label_values: Vec<String>,
            }
            let label: Label = serde_json::from_value(label.clone())?;
            ensure!(!label.label_values.is_empty(), "labelValues is empty");
            nodes.label = Some((label.label_key, label.label_values));
        }
        if let Some(strategy) = f.op.get("nodeAllocatableStrategy") {
            #[derive(Deserialize)]
            struct Count {
                count: i32,
            }
            #[derive(Deserialize)]
            #[serde(rename_all = "camelCase")]
            struct Strategy {
                #[serde(default)]
                node_allocatable: BTreeMap<String, String>,
                #[serde(default)]
                csi_node_allocatable: BTreeMap<String, Count>,
                #[serde(default)]
                migrated_plugins: Vec<String>,
            }
            let strategy: Strategy = serde_json::from_value(strategy.clone())?;
            nodes.allocatable = strategy.node_allocatable;
            nodes.drivers = strategy
                .csi_node_allocatable
                .into_iter()
                .map(|(name, c)| (name, c.count))
                .collect();
            nodes.migrated = strategy.migrated_plugins;
        }
        Ok(nodes)
    }

    fn pods(&self, f: Fields<'_>) -> Result<Pods> {
        ensure!(
            !f.is("steadyState") && !f.op.contains_key("steadyStateParam"),
            "a steady state isn't played"
        );
        let default = self.default_pod_template_path.as_ref().map(|path| self.dir.join(path));
        let volume = self.path(f, "persistentVolumeTemplatePath")?;
        let count = f.count()? * usize::try_from(f.param("countMultiplierParam")?.unwrap_or(1))?;
        ensure!(count <= MOST_OBJECTS, "{count} pods are too many");
        Ok(Pods {
            namespace: f.text("namespace")?,
            count,
            template: self.path(f, "podTemplatePath")?.or(default).unwrap_or_default(),
            measured: f.is("collectMetrics"),
            waits: !f.is("skipWaitToCompletion"),
            volume: volume.zip(self.path(f, "persistentVolumeClaimTemplatePath")?),
            alike: match f.param("signatureBatchSizeParam")? {
                Some(n) => Some(usize::try_from(n)?),
                None => None,
            },
        })
    }

    fn path(&self, f: Fields<'_>, key: &str) -> Result<Option<PathBuf>> {
        Ok(f.text(key)?.map(|path| self.dir.join(path)))
    }
}

/// One operation's fields; what begins with a dollar is a parameter's name.
#[derive(Clone, Copy)]
struct Fields<'a> {
    op: &'a Map<String, Value>,
    params: &'a Map<String, Value>,
}

impl Fields<'_> {
    fn text(self, key: &str) -> Result<Option<String>> {
        match self.op.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => bail!("{key}: {other} isn't a text"),
        }
    }
    fn needed(self, key: &str) -> Result<String> {
        self.text(key)?.with_context(|| format!("{key} is missing"))
    }
    fn is(self, key: &str) -> bool {
        self.op.get(key).and_then(Value::as_bool).unwrap_or(false)
    }
    fn number(self, key: &str) -> Result<Option<u64>> {
        match self.op.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Ok(Some(
                value
                    .as_u64()
                    .with_context(|| format!("{key}: {value} isn't a number"))?,
            )),
        }
    }
    fn param(self, key: &str) -> Result<Option<u64>> {
        let Some(name) = self.text(key)? else { return Ok(None) };
        let name = name
            .strip_prefix('$')
            .with_context(|| format!("{key}: {name:?} isn't a parameter"))?;
        let value = self.params.get(name).and_then(Value::as_u64);
        Ok(Some(value.with_context(|| {
            format!("the parameter {name:?} isn't set to a number")
        })?))
    }
    fn count(self) -> Result<usize> {
        let count = self.param("countParam")?.or(self.number("count")?).unwrap_or(0);
        let count = usize::try_from(count)?;
        ensure!(count <= MOST_OBJECTS, "{count} objects are too many");
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(text: &str) -> Case {
        serde_saphyr::from_str::<Vec<Case>>(text).unwrap().remove(0)
    }

    #[test]
    fn parameters_stand_for_counts_and_what_cant_be_played_is_named() {
        let case = case(
            "
- name: One
  defaultPodTemplatePath: ../templates/pod.yaml
  workloadTemplate:
  - {opcode: createNodes, countParam: $nodes, labelNodePrepareStrategy: {labelKey: zone, labelValues: [a, b]}}
  - {opcode: createPods, countParam: $pods, collectMetrics: true}
  - {opcode: churn, mode: create, templatePaths: [x.yaml], intervalMilliseconds: 200}
  - {opcode: barrier, stageRequirement: Attempted}
  workloads:
  - {name: small, params: {nodes: 5, pods: 7}}
  - {name: unset, params: {nodes: 5}}
  - {name: gated, params: {nodes: 5, pods: 7}, featureGates: {GenericWorkload: true}}
",
        );
        let ops = case.ops(&case.workloads[0]).unwrap();
        let [
            Op::Nodes(nodes),
            Op::Pods(pods),
            Op::Churn(churn),
            Op::Barrier { attempted: true },
        ] = ops.as_slice()
        else {
            panic!("{ops:?}");
        };
        assert_eq!((nodes.count, pods.count, pods.measured, pods.waits), (5, 7, true, true));
        assert_eq!(nodes.label, Some(("zone".into(), vec!["a".into(), "b".into()])));
        assert_eq!((churn.every, churn.recreates), (Duration::from_millis(200), false));
        let error = |n: usize| format!("{:#}", case.ops(&case.workloads[n]).unwrap_err());
        assert_eq!(error(1), "the parameter \"pods\" isn't set to a number");
        assert_eq!(
            error(2),
            "this scheduler doesn't do what the gate GenericWorkload=true means"
        );
    }

    #[test]
    fn an_unknown_operation_costs_its_case() {
        let case = case("[{name: G, workloadTemplate: [{opcode: createPodGroups}], workloads: [{name: s}]}]");
        let error = case.ops(&case.workloads[0]).unwrap_err();
        assert_eq!(error.to_string(), "the operation \"createPodGroups\" isn't played");
    }

    #[test]
    fn our_own_workloads_can_all_be_played() {
        let cases = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("workloads")).unwrap();
        assert!(cases.len() >= 10, "{}", cases.len());
        for case in &cases {
            for size in &case.workloads {
                case.ops(size)
                    .unwrap_or_else(|e| panic!("{}/{}: {e:#}", case.name, size.name));
            }
        }
    }
}
