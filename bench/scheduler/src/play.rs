//! Plays a workload's operations, one after the other, on a field: the scheduler over a world in memory, or over an API server.

use crate::measure::Outcome;
use crate::objects::{self, Made};
use crate::workload::{Churn, Op, Pods};
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::api::storage::v1::CSINode;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// Where workloads are played.
pub trait Field {
    async fn nodes(&mut self, nodes: Vec<(Node, Option<CSINode>)>) -> Result<()>;
    async fn namespace(&mut self, namespace: Namespace) -> Result<()>;
    /// Creates them; what is measured begins here.
    async fn pods(&mut self, namespace: &str, pods: Vec<Made>, measured: bool) -> Result<()>;
    /// Until all pods of the namespace that there ever were have had a node (`false`: have been tried).
    async fn settled(&mut self, namespace: &str, count: usize, scheduled: bool) -> Result<()>;
    async fn delete(&mut self, namespace: &str, a_second: Option<u64>, waits: bool) -> Result<()>;
    async fn create(&mut self, namespace: &str, object: Value) -> Result<()>;
    fn churn(&mut self, churn: Churning);
    async fn sleep(&mut self, time: Duration);
    async fn finish(self) -> Result<Option<Outcome>>;
}

/// Objects that come, and may go again, every so often until the end.
pub struct Churning {
    pub op: Churn,
    pub namespace: String,
    pub templates: Vec<Value>,
}

pub async fn play(ops: Vec<Op>, mut field: impl Field) -> Result<Option<Outcome>> {
    let mut nodes = 0;
    // How many pods each namespace has been given, in the order of names.
    let mut given: BTreeMap<String, usize> = BTreeMap::new();
    for (index, op) in ops.into_iter().enumerate() {
        let own = format!("namespace-{index}");
        match op {
            Op::Nodes(op) => {
                field.nodes(objects::nodes(&op, nodes)?).await?;
                nodes += op.count;
            }
            Op::Namespaces {
                prefix,
                count,
                template,
            } => {
                for n in 0..count {
                    let name = format!("{prefix}-{n}");
                    field.namespace(objects::namespace(&name, template.as_deref())?).await?;
                    given.entry(name).or_default();
                }
            }
            Op::Pods(op) => {
                let namespace = op.namespace.clone().unwrap_or(own);
                pods(&mut field, &mut given, namespace, op).await?;
            }
            Op::PodSets {
                prefix,
                count,
                pods: op,
            } => {
                for n in 0..count {
                    pods(&mut field, &mut given, format!("{prefix}-{n}"), op.clone()).await?;
                }
            }
            Op::Delete {
                namespace,
                a_second,
                waits,
            } => {
                given.remove(&namespace);
                field.delete(&namespace, a_second, waits).await?;
            }
            Op::Churn(op) => {
                let namespace = op.namespace.clone().unwrap_or(own);
                if !given.contains_key(&namespace) {
                    field.namespace(objects::namespace(&namespace, None)?).await?;
                }
                let templates = op
                    .templates
                    .iter()
                    .map(|path| objects::template(path))
                    .collect::<Result<_>>()?;
                field.churn(Churning {
                    op,
                    namespace,
                    templates,
                });
            }
            Op::Any { namespace, template } => {
                if !namespace.is_empty() && !given.contains_key(&namespace) {
                    field.namespace(objects::namespace(&namespace, None)?).await?;
                    given.insert(namespace.clone(), 0);
                }
                let mut object = objects::template(&template)?;
                objects::name(&mut object, index);
                field.create(&namespace, object).await?;
            }
            Op::Barrier { attempted } => {
                for (namespace, count) in &given {
                    field.settled(namespace, *count, !attempted).await?;
                }
            }
            Op::Sleep(time) => field.sleep(time).await,
        }
    }
    field.finish().await
}

async fn pods(field: &mut impl Field, given: &mut BTreeMap<String, usize>, namespace: String, op: Pods) -> Result<()> {
    if !given.contains_key(&namespace) {
        field.namespace(objects::namespace(&namespace, None)?).await?;
    }
    let there = given.entry(namespace.clone()).or_default();
    let made = objects::pods(&op, &namespace, *there)?;
    *there += op.count;
    if op.measured && !op.waits {
        bail!("createPods: what is measured has to be waited for");
    }
    field.pods(&namespace, made, op.measured).await?;
    if op.waits {
        let waited = field.settled(&namespace, *there, true).await;
        waited.with_context(|| format!("{} pods in {namespace}", op.count))?;
    }
    Ok(())
}
