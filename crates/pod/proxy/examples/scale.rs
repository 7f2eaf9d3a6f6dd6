//! How long a change of one endpoint takes from the API objects to the kernel, and all rules from nothing.
//!
//! `scale SERVICES ENDPOINTS`: services of so many endpoints each, in a network namespace of this program's own; needs root.
//! What is measured is what [`keelson_proxy::run`] does with a change, beside a listener for interference as there.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use keelson_client::ObjectKey;
use keelson_proxy::TABLE;
use keelson_proxy::model::{self, Here};
use keelson_proxy::plan::Planner;
use keelson_sys::nft::{self, Family, Monitor};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};

const CHANGES: usize = 300;
/// Between two changes: what comes after another finds caches warm and the kernel's tidying done.
const PAUSE: Duration = Duration::from_millis(20);

fn service(n: usize) -> anyhow::Result<Service> {
    let ip = std::net::Ipv4Addr::from(0x0a60_0001 + n as u32);
    Ok(serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": format!("web-{n}")},
        "spec": {"clusterIP": ip, "ports": [{"port": 80, "protocol": "TCP"}]},
    }))?)
}

/// `generation` says which address the first endpoint has.
fn slice(n: usize, endpoints: usize, generation: usize) -> anyhow::Result<Arc<EndpointSlice>> {
    let address = |k: usize| {
        let number = if k == 0 {
            0x0b00_0000 + generation
        } else {
            0x0af4_0000 + (n * 131 + k) % 65_000
        };
        json!({"addresses": [std::net::Ipv4Addr::from(number as u32)], "conditions": {"ready": true}, "nodeName": "there"})
    };
    let all: Vec<_> = (0..endpoints).map(address).collect();
    Ok(Arc::new(serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": format!("web-{n}-1")}, "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}], "endpoints": all,
    }))?))
}

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let (Some(Ok(services)), Some(Ok(endpoints))) = (numbers.next(), numbers.next()) else {
        anyhow::bail!("scale SERVICES ENDPOINTS");
    };
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _guard = runtime.enter();
    let monitor = Monitor::open()?;
    let here = Here::of("here", Family::Ip, None);
    let key = |n: usize| ObjectKey::new("shop", format!("web-{n}"));
    let mut planner = Planner::new("10.244.0.0/16".parse()?);
    let objects: Vec<(Service, Arc<EndpointSlice>)> = (0..services)
        .map(|n| Ok((service(n)?, slice(n, endpoints, n)?)))
        .collect::<anyhow::Result<_>>()?;
    let begin = Instant::now();
    for (n, (service, slice)) in objects.iter().enumerate() {
        planner.set(&key(n), model::read(service, std::slice::from_ref(slice), &here));
    }
    let read = begin.elapsed();
    let ops = planner.take_whole();
    let planned = begin.elapsed();
    nft::apply(Family::Ip, TABLE, &ops)?;
    println!(
        "{services} services of {endpoints} endpoints: whole in {:?} (facts {read:?}, plan {:?}, kernel {:?}; {} operations)",
        begin.elapsed(),
        planned - read,
        begin.elapsed() - planned,
        ops.len()
    );
    drop(ops);
    let interfered =
        async { tokio::time::timeout(Duration::from_millis(500), monitor.changed(Family::Ip, TABLE)).await };
    anyhow::ensure!(
        runtime.block_on(interfered).is_err(),
        "its own change was taken for another program's"
    );
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let n = change * 7919 % services;
        let slice = slice(n, endpoints, services + change)?;
        let begin = Instant::now();
        planner.set(&key(n), model::read(&objects[n].0, &[slice], &here));
        let ops = planner.take();
        nft::apply(Family::Ip, TABLE, &ops)?;
        times.push(begin.elapsed());
        std::thread::sleep(PAUSE);
    }
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "one endpoint changed: p50 {:?}, p90 {:?}, p99 {:?}, most {:?}",
        at(50),
        at(90),
        at(99),
        at(100)
    );
    nft::apply(Family::Ip, TABLE, &[nft::Op::DeleteTable])?;
    Ok(())
}
