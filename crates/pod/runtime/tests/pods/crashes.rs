//! The server may die at any moment: nothing is lost that runs, and nothing is left that nobody can remove.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_cri::CriClients;
use keelson_cri::v1::*;
use keelson_network::HostOnly;
use keelson_runtime::Runtime;

use crate::support::{Machine, command, config};
use crate::tests;

tests![a_server_that_dies_at_any_moment_leaves_nothing_behind];

/// How often the server is killed, and how many pods are being made meanwhile.
const DEATHS: usize = 12;
const PODS: usize = 4;

/// A server in a process of its own: what `args` of the test program lead to.
pub fn server(dir: &Path, cgroup: &str) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a tokio runtime");
    let served = runtime.block_on(async {
        let runtime = Runtime::new(config(dir, cgroup), Arc::new(HostOnly)).await?;
        let endpoint = endpoint(dir);
        keelson_cri::serve(
            &endpoint,
            runtime.clone(),
            runtime,
            keelson_trace::Tracer::none(),
            std::future::pending(),
        )
        .await
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("server: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn endpoint(dir: &Path) -> String {
    format!("unix://{}/cri.sock", dir.display())
}

async fn start(machine: &Machine) -> Result<(Child, CriClients)> {
    // A shim that the dead server was just forking has the old socket until it executes: not that one is to be met.
    match std::fs::remove_file(machine.dir.join("cri.sock")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut child = Command::new("/proc/self/exe")
        .arg("server")
        .arg(&machine.dir)
        .arg(&machine.cgroup)
        .stdin(Stdio::null())
        .spawn()?;
    for _ in 0..2000 {
        if let Ok(clients) = CriClients::connect(&endpoint(&machine.dir)).await {
            return Ok((child, clients));
        }
        ensure!(child.try_wait()?.is_none(), "the server ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    anyhow::bail!("the server does not answer")
}

async fn a_server_that_dies_at_any_moment_leaves_nothing_behind() -> Result<()> {
    let mut machine = Machine::new().await?;
    // One pod lives through it all.
    let pod = machine.pod("survivor");
    let sandbox = machine.run_pod(&pod).await?;
    let survivor = machine.run(&sandbox, &pod, command("c", &["sleep", "4730"])).await?;
    machine.runtime = None;
    let mut made = 0;
    for round in 0..DEATHS {
        let (mut child, clients) = start(&machine).await?;
        machine.cri = clients;
        let work = (0..PODS).map(|i| {
            let machine = &machine;
            async move {
                let pod = machine.pod(&format!("p{round}-{i}"));
                let sandbox = machine.run_pod(&pod).await?;
                machine.run(&sandbox, &pod, command("c", &["sleep", "4731"])).await?;
                machine.remove(&sandbox).await
            }
        });
        let work = futures::future::join_all(work);
        // Each round dies a little later, from the first request to the last removal.
        let death = Duration::from_millis(5 + 15 * (round * round) as u64);
        if let Ok(results) = tokio::time::timeout(death, work).await {
            made += results.into_iter().collect::<Result<Vec<()>>>()?.len();
        }
        child.kill()?;
        child.wait()?;
    }
    println!("    {made} of {} pods were made and removed in time", DEATHS * PODS);
    machine.restart().await?;
    ensure!(
        machine.status(&survivor).await?.state() == ContainerState::ContainerRunning,
        "the survivor did not"
    );
    let answer = machine.exec(&survivor, &["echo", "alive"]).await?;
    ensure!(answer.stdout == "alive\n", "{answer:?}");
    let list = machine
        .cri
        .runtime
        .clone()
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?;
    for sandbox in list.into_inner().items {
        machine
            .remove(&sandbox.id)
            .await
            .with_context(|| format!("{sandbox:?}"))?;
    }
    machine.assert_clean()
}
