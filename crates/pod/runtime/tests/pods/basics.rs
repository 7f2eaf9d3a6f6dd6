//! The life of pods and containers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use keelson_cri::v1::*;

use crate::support::{IMAGE, Machine, command, script, shims};
use crate::tests;

tests![
    a_pod_runs_and_leaves_nothing,
    layers_lie_on_each_other,
    logs_are_in_cri_form,
    a_container_is_stopped_by_signal_or_by_force,
    pods_outlive_the_server,
    a_lost_shim_ends_its_pod,
    a_command_that_does_not_exist_is_a_start_error,
    events_tell_what_happens,
    half_made_things_are_cleared_away,
    handlers_are_known_or_refused,
    images_are_listed_and_removed,
    uninstalling_takes_everything_back,
    starting_is_quick_and_shims_are_small,
];

async fn a_pod_runs_and_leaves_nothing() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("first");
    let text = "echo out; hostname; pwd; cat /etc/hostname; echo $FROM_IMAGE $HOSTNAME $HOME; printf rest; exit 3";
    let (log, status) = machine.shell(&pod, script("c", text)).await?;
    ensure!(
        log == "out\nfirst\n/work/dir\nfirst\nyes first /root\nrest\n",
        "log: {log:?}"
    );
    ensure!(status.exit_code == 3 && status.reason == "Error", "{status:?}");
    ensure!(status.image.as_ref().is_some_and(|i| i.image == IMAGE), "{status:?}");
    ensure!(
        status.started_at >= status.created_at && status.finished_at >= status.started_at,
        "{status:?}"
    );
    machine.assert_clean()
}

async fn layers_lie_on_each_other() -> Result<()> {
    let machine = Machine::new().await?;
    let text = "cat /etc/changed; ls /etc; stat -c %a /tmp /etc/changed; echo more >> /etc/changed; cat /etc/changed";
    let (log, _) = machine.shell(&machine.pod("p"), script("c", text)).await?;
    ensure!(
        log.starts_with("new\nchanged\ngroup\nhostname\nhosts\npasswd\nresolv.conf\n1777\n600\nnew\nmore\n"),
        "{log}"
    );
    // The image is as it was.
    let (log, _) = machine
        .shell(&machine.pod("q"), script("c", "cat /etc/changed"))
        .await?;
    ensure!(log == "new\n", "{log}");
    Ok(())
}

async fn logs_are_in_cri_form() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let text = "echo one; echo two >&2; head -c 40000 /dev/zero | tail -c 40000 | dd 2>/dev/null | wc -c; yes x | head -c 20000";
    let id = machine.run(&sandbox, &pod, script("c", text)).await?;
    let status = machine.ended(&id).await?;
    let log = std::fs::read_to_string(&status.log_path)?;
    for line in log.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        ensure!(
            fields.len() == 4 && fields[0].len() == 30 && fields[0].ends_with('Z'),
            "{line:?}"
        );
        ensure!(
            ["stdout", "stderr"].contains(&fields[1]) && ["F", "P"].contains(&fields[2]),
            "{line:?}"
        );
    }
    ensure!(
        log.contains(" stderr F two\n") && log.contains(" stdout F one\n") && log.contains(" F 40000\n"),
        "{log}"
    );
    // Rotation: the file is moved, and reopened under its old name.
    let id = machine
        .run(
            &sandbox,
            &pod,
            script("d", "echo a; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo b"),
        )
        .await?;
    let path = machine.status(&id).await?.log_path;
    for _ in 0..1000 {
        if std::fs::read_to_string(&path)?.contains(" a\n") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    std::fs::rename(&path, format!("{path}.1"))?;
    let request = ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    machine.cri.runtime.clone().reopen_container_log(request).await?;
    machine.exec(&id, &["touch", "/tmp/go"]).await?;
    let status = machine.ended(&id).await?;
    ensure!(machine.log(&status)? == "b\n", "{}", machine.log(&status)?);
    machine.remove(&sandbox).await
}

async fn a_container_is_stopped_by_signal_or_by_force() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let polite = script(
        "polite",
        "trap 'echo bye; exit 7' TERM; echo ready; while true; do sleep 0.02; done",
    );
    let stubborn = script("stubborn", "trap '' TERM; echo ready; while true; do sleep 0.02; done");
    let mut own = script("own", "trap 'exit 9' USR1; echo ready; while true; do sleep 0.02; done");
    own.stop_signal = Signal::Sigusr1 as i32;
    for (container, code, timeout) in [(polite, 7, 20), (stubborn, 137, 1), (own, 9, 20)] {
        let id = machine.run(&sandbox, &pod, container).await?;
        wait_for_log(&machine, &id, "ready").await?;
        let request = StopContainerRequest {
            container_id: id.clone(),
            timeout,
        };
        machine.cri.runtime.clone().stop_container(request).await?;
        let status = machine.status(&id).await?;
        ensure!(status.exit_code == code, "{status:?}");
    }
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

pub async fn wait_for_log(machine: &Machine, id: &str, text: &str) -> Result<()> {
    let path = machine.status(id).await?.log_path;
    for _ in 0..3000 {
        if std::fs::read_to_string(&path).unwrap_or_default().contains(text) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    anyhow::bail!("no {text:?} in {path}")
}

async fn pods_outlive_the_server() -> Result<()> {
    let mut machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let stays = machine
        .run(&sandbox, &pod, script("stays", "while true; do sleep 0.05; done"))
        .await?;
    let text = "while [ ! -e /tmp/go ]; do sleep 0.01; done; exit 5";
    let ends = machine.run(&sandbox, &pod, script("ends", text)).await?;
    let upper = machine.dir.join("root/containers").join(&ends).join("upper/tmp/go");
    let before = shims(&machine.dir)?;
    ensure!(before.len() == 1, "{before:?}");
    let pid = pid_of(&machine, &stays).await?;

    // While no server listens, one container ends.
    machine.die().await?;
    std::fs::create_dir_all(upper.parent().context("a parent")?)?;
    let rootfs = machine.dir.join("root/containers").join(&ends).join("rootfs/tmp/go");
    std::fs::write(rootfs, "")?;
    let exits = machine
        .dir
        .join("state/sandboxes")
        .join(&sandbox)
        .join("exits")
        .join(&ends);
    for _ in 0..3000 {
        if exits.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    machine.restart().await?;

    ensure!(shims(&machine.dir)? == before, "another shim");
    ensure!(pid_of(&machine, &stays).await? == pid, "another process");
    let status = machine.status(&ends).await?;
    ensure!(
        status.exit_code == 5 && status.state() == ContainerState::ContainerExited,
        "{status:?}"
    );
    let answer = machine.exec(&stays, &["echo", "still here"]).await?;
    ensure!(answer.stdout == "still here\n", "{answer:?}");
    // Events come again, too.
    let request = StopContainerRequest {
        container_id: stays.clone(),
        timeout: 0,
    };
    machine.cri.runtime.clone().stop_container(request).await?;
    ensure!(machine.status(&stays).await?.exit_code == 137);
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn pid_of(machine: &Machine, id: &str) -> Result<String> {
    let request = ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: true,
    };
    let mut answer = machine
        .cri
        .runtime
        .clone()
        .container_status(request)
        .await?
        .into_inner();
    answer.info.remove("info").context("no info")
}

async fn a_lost_shim_ends_its_pod() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let id = machine.run(&sandbox, &pod, command("c", &["sleep", "1000"])).await?;
    for shim in shims(&machine.dir)? {
        keelson_sys::process::kill(shim, nix::libc::SIGKILL)?;
    }
    let status = machine.ended(&id).await?;
    ensure!(status.exit_code == 255 && status.reason == "Unknown", "{status:?}");
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: sandbox.clone(),
        verbose: false,
    };
    let answer = machine
        .cri
        .runtime
        .clone()
        .pod_sandbox_status(request)
        .await?
        .into_inner();
    ensure!(answer.status.context("no status")?.state() == PodSandboxState::SandboxNotready);
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn a_command_that_does_not_exist_is_a_start_error() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    for (name, args, why) in [
        ("absent", ["no-such-program"], "executable file not found in $PATH"),
        ("path", ["/no/such"], "no such file or directory"),
        ("denied", ["/etc/passwd"], "permission denied"),
    ] {
        let id = machine.create(&sandbox, &pod, command(name, &args)).await?;
        let error = machine.start(&id).await.err().context("it started")?;
        ensure!(format!("{error:#}").contains(why), "{error:#}");
        let status = machine.status(&id).await?;
        ensure!(status.exit_code == 128 && status.reason == "StartError", "{status:?}");
        ensure!(status.message.contains(why), "{status:?}");
    }
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn events_tell_what_happens() -> Result<()> {
    let machine = Machine::new().await?;
    let mut events = machine
        .cri
        .runtime
        .clone()
        .get_container_events(GetEventsRequest {})
        .await?
        .into_inner();
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let id = machine.run(&sandbox, &pod, command("c", &["true"])).await?;
    machine.ended(&id).await?;
    machine.remove(&sandbox).await?;
    let mut seen = Vec::new();
    while seen.len() < 8 {
        let event = events.next().await.context("the stream ended")??;
        seen.push((event.container_id == sandbox, event.container_event_type()));
    }
    use ContainerEventType::*;
    let of = |pod: bool| {
        seen.iter()
            .filter(|(p, _)| *p == pod)
            .map(|(_, kind)| *kind)
            .collect::<Vec<_>>()
    };
    let all = [
        ContainerCreatedEvent,
        ContainerStartedEvent,
        ContainerStoppedEvent,
        ContainerDeletedEvent,
    ];
    ensure!(of(true) == all, "{seen:?}");
    let mut container = of(false);
    // A very short life may be over before its start is told.
    container.sort();
    ensure!(container == all, "{seen:?}");
    Ok(())
}

async fn half_made_things_are_cleared_away() -> Result<()> {
    let mut machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let id = machine.run(&sandbox, &pod, command("c", &["sleep", "1000"])).await?;
    // As if the server had died in the middle of its work, and somebody had removed a record.
    let record = machine.dir.join("root/sandboxes").join(&sandbox).join("sandbox.json");
    std::fs::write(&record, "{")?;
    std::fs::create_dir_all(machine.dir.join("state/sandboxes/stray/bundles"))?;
    std::fs::create_dir_all(machine.dir.join("root/ingest/7/fs"))?;
    machine.restart().await?;
    ensure!(machine.status(&id).await.is_err(), "the container is still known");
    machine.assert_clean()
}

async fn handlers_are_known_or_refused() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let run = |handler: &str| RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: handler.into(),
    };
    let mut client = machine.cri.runtime.clone();
    let error = client.run_pod_sandbox(run("nope")).await.err().context("it ran")?;
    ensure!(
        error.message().contains("no runtime for \"nope\" is configured"),
        "{error}"
    );
    let sandbox = client
        .run_pod_sandbox(run("test-handler"))
        .await?
        .into_inner()
        .pod_sandbox_id;
    let status = client.status(StatusRequest { verbose: false }).await?.into_inner();
    let names: Vec<String> = status.runtime_handlers.into_iter().map(|h| h.name).collect();
    ensure!(names == ["", "keelson", "test-handler"], "{names:?}");
    machine.remove(&sandbox).await
}

async fn images_are_listed_and_removed() -> Result<()> {
    let mut machine = Machine::new().await?;
    let mut client = machine.cri.image.clone();
    let spec = ImageSpec {
        image: IMAGE.into(),
        ..ImageSpec::default()
    };
    let request = ImageStatusRequest {
        image: Some(spec.clone()),
        verbose: true,
    };
    let image = client
        .image_status(request.clone())
        .await?
        .into_inner()
        .image
        .context("not imported")?;
    ensure!(
        image.repo_tags == [IMAGE] && image.repo_digests.len() == 1 && image.size > 0,
        "{image:?}"
    );
    ensure!(image.uid.is_some_and(|u| u.value == 0), "{image:?}");
    let info = client.image_fs_info(ImageFsInfoRequest {}).await?.into_inner();
    ensure!(
        info.image_filesystems[0]
            .used_bytes
            .as_ref()
            .is_some_and(|b| b.value > 0),
        "{info:?}"
    );
    client.remove_image(RemoveImageRequest { image: Some(spec) }).await?;
    ensure!(client.image_status(request.clone()).await?.into_inner().image.is_none());
    ensure!(
        std::fs::read_dir(machine.dir.join("root/layers"))?.count() == 0,
        "layers are left"
    );
    let archive = machine.dir.join("images/busybox.tar");
    let imported = client
        .pull_image(keelson_runtime::import_request(&archive))
        .await?
        .into_inner()
        .image_ref;
    ensure!(imported == image.id, "{imported}");
    let again = client.pull_image(keelson_runtime::import_request(&machine.dir)).await;
    ensure!(again.is_err(), "a directory was imported");
    let wanted = ImageSpec {
        image: image.id.clone(),
        ..ImageSpec::default()
    };
    client.remove_image(RemoveImageRequest { image: Some(wanted) }).await?;
    // At the next start the archive is there again.
    machine.restart().await?;
    ensure!(
        machine
            .cri
            .image
            .clone()
            .image_status(request)
            .await?
            .into_inner()
            .image
            .is_some()
    );
    Ok(())
}

async fn starting_is_quick_and_shims_are_small() -> Result<()> {
    let machine = Machine::new().await?;
    let (mut best, mut private) = (Duration::MAX, u64::MAX);
    for i in 0..5 {
        let pod = machine.pod(&format!("p{i}"));
        let started = std::time::Instant::now();
        let sandbox = machine.run_pod(&pod).await?;
        let ran = started.elapsed();
        let id = machine.create(&sandbox, &pod, command("c", &["sleep", "1000"])).await?;
        let created = started.elapsed();
        machine.start(&id).await?;
        let whole = started.elapsed();
        println!(
            "    sandbox {ran:?}, create {:?}, start {:?}",
            created - ran,
            whole - created
        );
        best = best.min(whole);
        for shim in shims(&machine.dir)? {
            let smaps = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup"))?;
            let field = |name: &str| -> u64 {
                let line = smaps.lines().find(|l| l.starts_with(name)).unwrap_or_default();
                line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
            };
            private = private.min(field("Private_Clean:") + field("Private_Dirty:"));
        }
        machine.remove(&sandbox).await?;
    }
    println!("    best {best:?}, a shim has {private} KiB of its own");
    // Generous: this may be a debug build on a busy machine. The figures are what matters; an emulated machine has none.
    let emulated = std::env::var_os("SECONDS_PER_TEST").is_some();
    ensure!(emulated || best < Duration::from_secs(1), "{best:?}");
    ensure!(private < 8 << 10, "{private} KiB");
    Ok(())
}

async fn uninstalling_takes_everything_back() -> Result<()> {
    let mut machine = Machine::new().await?;
    for name in ["p", "q"] {
        let pod = machine.pod(name);
        let sandbox = machine.run_pod(&pod).await?;
        machine.run(&sandbox, &pod, command("c", &["sleep", "4720"])).await?;
    }
    // One of the shims does not answer any more.
    keelson_sys::process::kill(shims(&machine.dir)?[0], nix::libc::SIGSTOP)?;
    let config = machine.config();
    let dir = machine.dir.clone();
    machine.die().await?;
    let removed = keelson_runtime::uninstall(&config, &keelson_network::HostOnly).await?;
    ensure!((removed.sandboxes, removed.containers) == (2, 2), "{removed:?}");
    ensure!(!config.root.exists() && !config.state.exists());
    ensure!(shims(&dir)?.is_empty());
    machine.assert_clean()
}
