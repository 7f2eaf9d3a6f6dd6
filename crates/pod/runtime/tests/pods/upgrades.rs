//! What a server finds that another one left: shims of other versions, shims out of reach, records it cannot read.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;
use keelson_runtime::shim::protocol;
use keelson_sys::process;
use nix::libc;
use serde_json::{Value, json};

use crate::support::{Machine, command, runs, script, shims};
use crate::tests;

tests![
    a_shim_of_another_version_is_alive,
    a_shim_that_does_not_answer_is_not_dead,
    a_bad_record_degrades_its_pod_only,
];

const UNTIL_TOLD: &str = "while [ ! -e /tmp/go ]; do sleep 0.02; done; exit 5";

fn tell(machine: &Machine, container: &str) -> Result<()> {
    let root = machine.dir.join("root/containers").join(container).join("rootfs");
    Ok(std::fs::write(root.join("tmp/go"), "")?)
}

async fn sandbox_state(machine: &Machine, sandbox: &str) -> Result<PodSandboxState> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: sandbox.to_owned(),
        verbose: false,
    };
    let answer = machine.cri.runtime.clone().pod_sandbox_status(request).await?;
    Ok(answer.into_inner().status.context("no status")?.state())
}

/// Puts something between the server and a pod's shim that speaks like a shim of a later version.
fn make_newer(dir: PathBuf) -> Result<()> {
    let descriptor = File::open(&dir)?;
    let at = move |name: &str| format!("/proc/self/fd/{}/{name}", descriptor.as_raw_fd());
    std::fs::rename(dir.join(protocol::SOCKET), dir.join("real"))?;
    let listener = UnixListener::bind(at(protocol::SOCKET))?;
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // The shim has ended: so has this one.
            let Ok(shim) = UnixStream::connect(at("real")) else {
                return;
            };
            let (Ok(from_client), Ok(to_shim)) = (client.try_clone(), shim.try_clone()) else {
                return;
            };
            std::thread::spawn(move || pass_on(&from_client, &to_shim, |_| Vec::new()));
            std::thread::spawn(move || pass_on(&shim, &client, as_newer));
        }
    });
    Ok(())
}

/// What follows a reply when a newer shim gives it.
fn as_newer(reply: &mut Value) -> Vec<Value> {
    reply["of_a_later_version"] = json!({"any": "thing"});
    if reply["reply"] != "state" {
        return Vec::new();
    }
    reply["version"] = json!(99);
    vec![json!({"reply": "weather", "rain": true})]
}

fn pass_on(from: &UnixStream, to: &UnixStream, change: fn(&mut Value) -> Vec<Value>) {
    let (mut input, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok((read, descriptors)) = process::receive_with_fds(from.as_fd(), &mut buffer) {
        if read == 0 {
            break;
        }
        input.extend_from_slice(&buffer[..read]);
        let mut descriptors: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        while let Ok(Some(mut message)) = protocol::decode::<Value>(&mut input) {
            let more = change(&mut message);
            for message in std::iter::once(message).chain(more) {
                let Ok(bytes) = protocol::encode(&message) else { return };
                if process::send_with_fds(to.as_fd(), &bytes, &descriptors).is_err() {
                    return;
                }
                descriptors.clear();
            }
        }
    }
    let _ended_as_well = to.shutdown(std::net::Shutdown::Both);
}

async fn a_shim_of_another_version_is_alive() -> Result<()> {
    let mut machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let container = machine.run(&sandbox, &pod, script("c", UNTIL_TOLD)).await?;
    machine.die().await?;
    make_newer(machine.dir.join("state/sandboxes").join(&sandbox))?;
    machine.restart().await?;
    let state = machine.status(&container).await?.state();
    ensure!(state == ContainerState::ContainerRunning, "{state:?}");
    ensure!(sandbox_state(&machine, &sandbox).await? == PodSandboxState::SandboxReady);
    let answer = machine.exec(&container, &["echo", "alive"]).await?;
    ensure!(answer.stdout == "alive\n", "{answer:?}");
    let more = machine.run(&sandbox, &pod, command("more", &["sleep", "1000"])).await?;
    tell(&machine, &container)?;
    let status = machine.ended(&container).await?;
    ensure!(status.exit_code == 5, "{status:?}");
    ensure!(machine.status(&more).await?.state() == ContainerState::ContainerRunning);
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn a_shim_that_does_not_answer_is_not_dead() -> Result<()> {
    let mut machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let container = machine.run(&sandbox, &pod, script("c", UNTIL_TOLD)).await?;
    machine.die().await?;
    let shim = *shims(&machine.dir)?.first().context("no shim")?;
    process::kill(shim, libc::SIGSTOP)?;
    let started = Instant::now();
    let restarted = machine.restart().await;
    let (state, ready) = match &restarted {
        Ok(()) => (
            machine.status(&container).await?.state(),
            sandbox_state(&machine, &sandbox).await?,
        ),
        Err(_) => Default::default(),
    };
    process::kill(shim, libc::SIGCONT)?;
    restarted?;
    ensure!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    ensure!(
        state == ContainerState::ContainerRunning && ready == PodSandboxState::SandboxReady,
        "{state:?} {ready:?}"
    );
    // Taken up as soon as it answers.
    tell(&machine, &container)?;
    let status = machine.ended(&container).await?;
    ensure!(status.exit_code == 5, "{status:?}");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn a_bad_record_degrades_its_pod_only() -> Result<()> {
    let mut machine = Machine::new().await?;
    let (good, bad) = (machine.pod("good"), machine.pod("bad"));
    let good_sandbox = machine.run_pod(&good).await?;
    let bad_sandbox = machine.run_pod(&bad).await?;
    let stays = machine
        .run(&good_sandbox, &good, command("c", &["sleep", "1000"]))
        .await?;
    let lost = machine
        .run(&bad_sandbox, &bad, command("c", &["sleep", "4747"]))
        .await?;
    let beside = machine
        .run(&bad_sandbox, &bad, command("d", &["sleep", "1000"]))
        .await?;
    machine.die().await?;
    let records = machine.dir.join("root/containers");
    std::fs::write(records.join(&lost).join("container.json"), "{\"id\": \"torn")?;
    // Not even a directory: it can neither be read nor cleared away as one.
    let junk = [records.join("junk"), machine.dir.join("root/sandboxes/junk")];
    for file in &junk {
        std::fs::write(file, "")?;
    }
    machine.restart().await?;
    for id in [&stays, &beside] {
        let state = machine.status(id).await?.state();
        ensure!(state == ContainerState::ContainerRunning, "{state:?}");
    }
    ensure!(machine.status(&lost).await.is_err(), "an unreadable record is known");
    for _ in 0..500 {
        if !runs("4747")? {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    ensure!(!runs("4747")?, "a container that nobody knows runs");
    // In its place another one can run.
    let again = machine.run(&bad_sandbox, &bad, command("c", &["true"])).await?;
    ensure!(machine.ended(&again).await?.exit_code == 0);
    machine.remove(&bad_sandbox).await?;
    machine.remove(&good_sandbox).await?;
    for file in junk {
        std::fs::remove_file(file)?;
    }
    Ok(())
}
