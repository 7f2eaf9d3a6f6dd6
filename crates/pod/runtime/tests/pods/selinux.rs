//! Labels of SELinux: given by a machine that is played, and refused by this one's kernel where it has none.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;
use keelson_runtime::selinux::Played;
use serde_json::{Value, json};

use crate::support::{Machine, command, script, with_pid};
use crate::tests;

tests![
    pods_have_levels_of_their_own,
    a_label_that_can_not_be_set_starts_nothing,
    without_the_option_labels_are_ignored,
    a_kernel_without_it_is_refused,
];

fn options(kind: &str, level: &str) -> Option<SeLinuxOption> {
    Some(SeLinuxOption {
        r#type: kind.into(),
        level: level.into(),
        ..SeLinuxOption::default()
    })
}

fn labelled(machine: &Machine, name: &str, selinux: Option<SeLinuxOption>) -> PodSandboxConfig {
    let mut pod = machine.pod(name);
    if let Some(context) = pod.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        context.selinux_options = selinux;
    }
    pod
}

fn label_of(machine: &Machine, sandbox: &str) -> Result<String> {
    let path = machine.dir.join("root/sandboxes").join(sandbox).join("sandbox.json");
    let record: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    Ok(record["selinux"].as_str().unwrap_or_default().to_owned())
}

/// On a kernel without SELinux nothing can be mounted with a label, so that no container of a played one starts unlabelled.
async fn pods_have_levels_of_their_own() -> Result<()> {
    let played = Arc::new(Played::usual());
    let machine = Machine::with(|c| c.selinux = Some(played.clone())).await?;
    let (one, other) = (
        labelled(&machine, "one", None),
        labelled(&machine, "other", options("mine_t", "")),
    );
    let (first, second) = (machine.run_pod(&one).await?, machine.run_pod(&other).await?);
    let labels = [label_of(&machine, &first)?, label_of(&machine, &second)?];
    ensure!(
        labels[0].starts_with("system_u:system_r:container_t:s0:c"),
        "{labels:?}"
    );
    ensure!(labels[1].starts_with("system_u:system_r:mine_t:s0:c"), "{labels:?}");
    ensure!(
        labels[0].rsplit("s0").next() != labels[1].rsplit("s0").next(),
        "{labels:?}"
    );
    let said = machine
        .run_pod(&labelled(&machine, "said", options("", "s0:c1,c2")))
        .await?;
    ensure!(label_of(&machine, &said)? == "system_u:system_r:container_t:s0:c1,c2");
    // The policy was asked about each of them.
    let asked = played.asked.lock().clone();
    for label in &labels {
        ensure!(asked.contains(&format!("/sys/fs/selinux/context {label}")), "{asked:?}");
    }
    let bad = machine.run_pod(&labelled(&machine, "bad", options("a b", ""))).await;
    ensure!(format!("{:#}", bad.err().context("it runs")?).contains("seLinuxOptions.type"));
    let on_here = std::fs::read_to_string("/proc/filesystems")?.contains("selinuxfs");
    if !on_here {
        let made = machine.create(&first, &one, command("c", &["true"])).await;
        let error = format!("{:#}", made.err().context("it was made without its label")?);
        ensure!(error.contains("root file system"), "{error}");
    }
    for sandbox in [first, second, said] {
        machine.remove(&sandbox).await?;
    }
    machine.assert_clean()
}

/// Not the first process of a container, nor one that joins a process namespace, nor one that comes later.
async fn a_label_that_can_not_be_set_starts_nothing() -> Result<()> {
    let machine = Machine::new().await?;
    for (name, mode) in [("own", NamespaceMode::Container), ("shared", NamespaceMode::Pod)] {
        let pod = with_pid(&machine, name, mode);
        let sandbox = machine.run_pod(&pod).await?;
        let container = |name: &str, text: &str| {
            let mut container = script(name, text);
            let context = container.linux.as_mut().and_then(|l| l.security_context.as_mut());
            if let Some(options) = context.and_then(|c| c.namespace_options.as_mut()) {
                options.pid = mode as i32;
            }
            container
        };
        let bundle = |id: &str| -> PathBuf {
            machine
                .dir
                .join("state/sandboxes")
                .join(&sandbox)
                .join("bundles")
                .join(id)
                .join("config.json")
        };
        let label = |id: &str| -> Result<()> {
            let mut spec: Value = serde_json::from_slice(&std::fs::read(bundle(id))?)?;
            spec["process"]["selinuxLabel"] = json!("nobody_u:nothing_r:none_t:s0");
            Ok(std::fs::write(bundle(id), serde_json::to_vec(&spec)?)?)
        };
        let id = machine
            .create(&sandbox, &pod, container("first", "touch /tmp/ran"))
            .await?;
        label(&id)?;
        let error = machine.start(&id).await.err().context("it started without its label")?;
        ensure!(format!("{error:#}").contains("SELinux label"), "{name}: {error:#}");
        let id = machine.run(&sandbox, &pod, container("later", "sleep 100")).await?;
        ensure!(machine.exec(&id, &["true"]).await?.exit_code == 0);
        label(&id)?;
        let error = machine.exec(&id, &["true"]).await;
        let said = match &error {
            Ok(answer) => format!("{} {}", answer.exit_code, String::from_utf8_lossy(&answer.stderr)),
            Err(error) => format!("{error:#}"),
        };
        ensure!(said.contains("SELinux label"), "{name}: {said}");
        machine.remove(&sandbox).await?;
    }
    machine.assert_clean()
}

async fn without_the_option_labels_are_ignored() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = labelled(&machine, "p", options("spc_t", "s0:c1,c2"));
    let mut container = script("c", "echo ran");
    if let Some(context) = container.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        context.selinux_options = options("other_t", "");
    }
    let (log, _) = machine.shell(&pod, container).await?;
    ensure!(log == "ran\n", "{log}");
    machine.assert_clean()
}

async fn a_kernel_without_it_is_refused() -> Result<()> {
    let mut played = Played::usual();
    played.files.insert("/proc/filesystems".into(), "nodev\ttmpfs\n".into());
    let refused = Machine::with(|c| c.selinux = Some(Arc::new(played))).await.err();
    let error = format!("{:#}", refused.context("it started")?);
    ensure!(error.contains("--selinux: the kernel has no SELinux"), "{error}");
    Ok(())
}
