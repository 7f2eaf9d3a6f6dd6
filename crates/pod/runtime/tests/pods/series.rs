//! What monitoring is told of real containers.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;

use crate::support::{Machine, script};
use crate::tests;

tests![containers_are_told_of_as_cadvisor_does];

/// More than a node of this size usually runs.
const CONTAINERS: usize = 50;

type Told = HashMap<String, Metric>;

fn by_name(metrics: Vec<Metric>) -> Told {
    metrics.into_iter().map(|m| (m.name.clone(), m)).collect()
}

fn value(told: &Told, name: &str) -> Result<u64> {
    let metric = told.get(name).with_context(|| format!("{name} isn't told"))?;
    Ok(metric.value.unwrap_or_default().value)
}

async fn containers_are_told_of_as_cadvisor_does() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let mut first = script("c0", "head -c 1000000 /dev/zero >/file; echo written; exec sleep 1000");
    first.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        ..LinuxContainerResources::default()
    });
    let id = machine.run(&sandbox, &pod, first).await?;
    crate::basics::wait_for_log(&machine, &id, " F written\n").await?;
    for i in 1..CONTAINERS {
        machine
            .run(&sandbox, &pod, script(&format!("c{i}"), "exec sleep 1000"))
            .await?;
    }
    let mut took = [Duration::ZERO; 2];
    let mut pods = Vec::new();
    for took in &mut took {
        let began = Instant::now();
        let request = ListPodSandboxMetricsRequest {};
        pods = machine
            .cri
            .runtime
            .clone()
            .list_pod_sandbox_metrics(request)
            .await?
            .into_inner()
            .pod_metrics;
        *took = began.elapsed();
    }
    println!("{CONTAINERS} containers: {:?}, again {:?}", took[0], took[1]);
    // Prometheus gives up after ten seconds by default.
    ensure!(took.iter().all(|t| *t < Duration::from_secs(10)), "{took:?}");
    ensure!(pods.len() == 1, "{} pods", pods.len());
    let told = pods.pop().context("no pod")?;
    ensure!(
        told.container_metrics.len() == CONTAINERS,
        "{}",
        told.container_metrics.len()
    );
    let whole = by_name(told.metrics);
    ensure!(value(&whole, "container_processes")? >= CONTAINERS as u64);
    let of_first = told.container_metrics.into_iter().find(|c| c.container_id == id);
    let of_first = by_name(of_first.context("the first container")?.metrics);
    ensure!(value(&of_first, "container_spec_memory_limit_bytes")? == 64 << 20);
    ensure!(value(&of_first, "container_spec_cpu_quota")? == 50_000);
    ensure!(of_first.contains_key("container_cpu_cfs_throttled_periods_total"));
    ensure!(value(&of_first, "container_memory_working_set_bytes")? > 0);
    ensure!(value(&of_first, "container_fs_usage_bytes")? >= 1_000_000);
    ensure!(value(&of_first, "container_file_descriptors")? >= 3);
    let labels = &of_first["container_memory_working_set_bytes"].label_values;
    let group = format!("{}/pod-p/{id}", machine.cgroup);
    let want = ["c0", &group, crate::support::IMAGE, &id, "test", "p"];
    ensure!(*labels == want, "{labels:?}");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}
