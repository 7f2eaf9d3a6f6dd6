//! What containers may do, see and use.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;

use crate::support::{IMAGE, Machine, command, pid_mode, script, security, with_pid};
use crate::tests;

tests![
    exec_is_as_restricted_as_the_container,
    exec_has_a_timeout,
    users_come_from_image_and_configuration,
    capabilities_and_files_are_confined,
    devices_are_restricted,
    devices_are_where_they_are_wanted,
    privileged_containers_see_everything,
    process_namespaces_are_own_shared_or_another_ones,
    mounts_spread_as_asked,
    images_can_be_volumes,
    limits_are_set_updated_and_enforced,
    sysctls_and_the_hosts_network,
    pods_are_the_same_however_the_server_was_started,
    an_apparmor_profile_that_is_not_there_is_refused,
    an_external_runtime_runs_containers,
];

const STATUS: &str = "grep -E '^(Uid|Groups|CapEff|CapBnd|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status";

async fn exec_is_as_restricted_as_the_container() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    for (name, uid, no_new_privs) in [("root", 0, false), ("user", 1000, false), ("strict", 1000, true)] {
        let text = format!(
            "{STATUS} > /tmp/self; grep -v 0:: /proc/self/cgroup > /tmp/group; env > /tmp/env; sleep 100; true"
        );
        let mut container = script(name, &text);
        container.envs.push(KeyValue {
            key: "odd-name.x".into(),
            value: "v=w".into(),
        });
        security(&mut container).run_as_user = Some(Int64Value { value: uid });
        security(&mut container).no_new_privs = no_new_privs;
        security(&mut container).capabilities = Some(Capability {
            drop_capabilities: vec!["NET_RAW".into()],
            ..Capability::default()
        });
        let id = machine.run(&sandbox, &pod, container).await?;
        let run = |text: String| {
            let (machine, id) = (&machine, id.clone());
            async move { Ok::<_, anyhow::Error>(machine.exec(&id, &["/bin/sh", "-c", &text]).await?.stdout) }
        };
        // The first process writes the last file.
        while run("cat /tmp/env".into()).await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (own, first) = (run(STATUS.into()).await?, run("cat /tmp/self".into()).await?);
        ensure!(own == first, "{name}: {own:?}, but the container has {first:?}");
        let own = String::from_utf8_lossy(&own).into_owned();
        ensure!(
            own.contains("Seccomp:\t2") && own.contains(&format!("Uid:\t{uid}\t")),
            "{own}"
        );
        ensure!(
            own.contains(&format!("NoNewPrivs:\t{}", i32::from(no_new_privs))),
            "{own}"
        );
        ensure!(uid != 0 || own.contains("CapEff:\t00000000a80405fb"), "{own}");
        ensure!(uid == 0 || own.contains("CapEff:\t0000000000000000"), "{own}");
        let (own, first) = (
            run("grep -v 0:: /proc/self/cgroup".into()).await?,
            run("cat /tmp/group".into()).await?,
        );
        ensure!(own == first, "{name}: in {own:?}, not in {first:?}");
        // Names that a shell would not pass on.
        let own = machine.exec(&id, &["env"]).await?.stdout;
        let first = machine.exec(&id, &["cat", "/proc/1/environ"]).await?.stdout;
        let first = String::from_utf8_lossy(&first).replace('\0', "\n");
        ensure!(own == first && first.contains("odd-name.x=v=w\n"), "{own:?} {first:?}");
        let refused = machine.exec(&id, &["/bin/mount", "-t", "tmpfs", "x", "/tmp"]).await?;
        ensure!(refused.exit_code != 0, "it may mount");
        let absent = machine.exec(&id, &["no-such-program"]).await.err().context("it ran")?;
        ensure!(
            format!("{absent:#}").contains("executable file not found in $PATH"),
            "{absent:#}"
        );
        let answer = machine
            .exec(&id, &["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
            .await?;
        ensure!(
            answer.stdout == "out\n" && answer.stderr == "err\n" && answer.exit_code == 3,
            "{answer:?}"
        );
    }
    machine.remove(&sandbox).await
}

async fn exec_has_a_timeout() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let id = machine.run(&sandbox, &pod, command("c", &["sleep", "1000"])).await?;
    let cmd = vec!["sleep".to_owned(), "4711".to_owned()];
    let request = ExecSyncRequest {
        container_id: id.clone(),
        cmd,
        timeout: 1,
    };
    let error = machine
        .cri
        .runtime
        .clone()
        .exec_sync(request)
        .await
        .err()
        .context("it ended")?;
    ensure!(error.code() == keelson_cri_code(), "{error}");
    let left = machine.exec(&id, &["/bin/sh", "-c", "ps | grep -c '[4]711'"]).await?;
    ensure!(left.stdout == "0\n", "{left:?}");
    machine.remove(&sandbox).await
}

fn keelson_cri_code() -> tonic::Code {
    tonic::Code::DeadlineExceeded
}

async fn users_come_from_image_and_configuration() -> Result<()> {
    let machine = Machine::new().await?;
    let mut container = script(
        "c",
        "id -u; id -g; id -G; echo $HOME; touch /tmp/mine && stat -c %u /tmp/mine",
    );
    security(&mut container).run_as_username = "bob".into();
    security(&mut container).supplemental_groups = vec![777];
    let (log, status) = machine.shell(&machine.pod("p"), container).await?;
    ensure!(log == "1000\n1000\n1000 777 50000\n/home/bob\n1000\n", "{log}");
    let user = status.user.and_then(|u| u.linux).context("no user")?;
    ensure!((user.uid, user.gid, user.supplemental_groups) == (1000, 1000, vec![777, 1000, 50000]));
    let mut container = script("c", "id -G; echo to stdout > /dev/stdout");
    security(&mut container).run_as_user = Some(Int64Value { value: 1000 });
    security(&mut container).run_as_group = Some(Int64Value { value: 9 });
    security(&mut container).supplemental_groups_policy = SupplementalGroupsPolicy::Strict as i32;
    let (log, _) = machine.shell(&machine.pod("q"), container).await?;
    ensure!(log == "9\nto stdout\n", "{log}");
    Ok(())
}

async fn capabilities_and_files_are_confined() -> Result<()> {
    let machine = Machine::new().await?;
    let text = "touch /x 2>&1; cat /proc/cpuinfo | wc -c; echo 1 > /proc/sys/kernel/panic; \
                mkdir /sys/fs/cgroup/memory/x /sys/fs/cgroup/memory.x 2>&1; ls /sys/fs/cgroup | wc -l; (echo forked | cat)";
    let mut container = script("c", text);
    security(&mut container).readonly_rootfs = true;
    security(&mut container).masked_paths.push("/proc/cpuinfo".into());
    let (log, _) = machine.shell(&machine.pod("p"), container).await?;
    ensure!(log.contains("Read-only file system") && log.contains("\n0\n"), "{log}");
    ensure!(log.contains("can't create /proc/sys/kernel/panic: Read-only"), "{log}");
    ensure!(log.contains("x': Read-only"), "{log}");
    ensure!(log.contains("forked\n"), "{log}");
    let grep = "grep -E '^CapEff:' /proc/self/status";
    let mut container = script("c", grep);
    security(&mut container).capabilities = Some(Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["ALL".into()],
        ..Capability::default()
    });
    let (log, _) = machine.shell(&machine.pod("q"), container).await?;
    ensure!(log == "CapEff:\t0000000000001000\n", "{log}");
    Ok(())
}

async fn devices_are_restricted() -> Result<()> {
    let machine = Machine::new().await?;
    // The first block device of the machine, and /dev/null by another name.
    let text = "mknod /tmp/null c 1 3 && echo fine > /tmp/null && echo null; \
                mknod /tmp/disk b 254 0; head -c 1 /tmp/disk 2>&1; mknod /tmp/kmsg c 1 11; head -c 1 /tmp/kmsg 2>&1";
    let (log, _) = machine.shell(&machine.pod("p"), script("c", text)).await?;
    ensure!(log.starts_with("null\n"), "{log}");
    ensure!(log.matches("Operation not permitted").count() == 2, "{log}");
    let mut container = script("c", "ls -l /dev/mine | cut -c1; head -c 1 /dev/mine | wc -c");
    container.command[2] = "head -c 3 /dev/mine | wc -c".into();
    container.devices.push(Device {
        container_path: "/dev/mine".into(),
        host_path: "/dev/zero".into(),
        permissions: "r".into(),
    });
    let (log, _) = machine.shell(&machine.pod("q"), container).await?;
    ensure!(log == "3\n", "{log}");
    Ok(())
}

/// Of volumes at paths outside of /dev, also where the image has a file, or its root is read-only.
async fn devices_are_where_they_are_wanted() -> Result<()> {
    let machine = Machine::new().await?;
    let device = |path: &str, permissions: &str| Device {
        container_path: path.into(),
        host_path: "/dev/zero".into(),
        permissions: permissions.into(),
    };
    for read_only in [false, true] {
        let text = "stat -c %F /opt/disk /etc/changed; head -c 3 /opt/disk | wc -c; head -c 3 /etc/changed | wc -c";
        let mut container = script("c", text);
        container.devices = vec![device("/opt/disk", "rw"), device("/etc/../etc/changed", "r")];
        security(&mut container).readonly_rootfs = read_only;
        let (log, _) = machine
            .shell(&machine.pod(if read_only { "ro" } else { "rw" }), container)
            .await?;
        let wanted = "character special file\ncharacter special file\n3\n3\n";
        ensure!(log == wanted, "{read_only}: {log}");
    }
    let mut container = script("c", "true");
    container.devices = vec![device("/etc/hosts/disk", "r")];
    let error = machine
        .shell(&machine.pod("q"), container)
        .await
        .err()
        .context("it runs")?;
    ensure!(format!("{error:#}").contains("Not a directory"), "{error:#}");
    devices_are_in_volumes(&machine, device("/data/deep/disk", "r")).await
}

/// The second container finds the first one's node.
async fn devices_are_in_volumes(machine: &Machine, device: Device) -> Result<()> {
    for pod in ["v", "w"] {
        let mut container = script("c", "stat -c %F /data/deep/disk; head -c 3 /data/deep/disk | wc -c");
        container.devices = vec![device.clone()];
        container.mounts = vec![volume(machine, "/data", MountPropagation::PropagationPrivate)?];
        let (log, _) = machine.shell(&machine.pod(pod), container).await?;
        ensure!(log == "character special file\n3\n", "{pod}: {log}");
    }
    Ok(())
}

async fn privileged_containers_see_everything() -> Result<()> {
    let machine = Machine::new().await?;
    let mut pod = machine.pod("p");
    if let Some(context) = pod.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        context.privileged = true;
    }
    let text = "mkdir /tmp/m && mount -t tmpfs x /tmp/m && echo mounted; ls /dev/kmsg; grep Seccomp: /proc/self/status";
    let mut container = script("c", text);
    security(&mut container).privileged = true;
    let (log, _) = machine.shell(&pod, container.clone()).await?;
    ensure!(log == "mounted\n/dev/kmsg\nSeccomp:\t0\n", "{log}");
    let error = machine
        .shell(&machine.pod("q"), container)
        .await
        .err()
        .context("it ran")?;
    ensure!(
        format!("{error:#}").contains("no privileged container allowed in sandbox"),
        "{error:#}"
    );
    Ok(())
}

async fn process_namespaces_are_own_shared_or_another_ones() -> Result<()> {
    let machine = Machine::new().await?;
    let (log, _) = machine.shell(&machine.pod("own"), script("c", "echo $$")).await?;
    ensure!(log == "1\n", "{log}");

    let pod = with_pid(&machine, "shared", NamespaceMode::Pod);
    let sandbox = machine.run_pod(&pod).await?;
    let mut first = command("first", &["sleep", "4711"]);
    pid_mode(&mut first, NamespaceMode::Pod, "");
    let first = machine.run(&sandbox, &pod, first).await?;
    let mut second = script(
        "second",
        "ps; (sleep 0.05 &) ; sleep 0.2; ps | grep -c '[Zz]ombie'; exit 4",
    );
    pid_mode(&mut second, NamespaceMode::Pod, "");
    let second = machine.run(&sandbox, &pod, second).await?;
    let status = machine.ended(&second).await?;
    let log = machine.log(&status)?;
    ensure!(
        log.contains("sleep 4711") && log.ends_with("0\n") && status.exit_code == 4,
        "{log}"
    );
    // Processes that a container leaves behind end with it, though they share the namespace.
    let mut leaver = script("leaver", "sleep 4712 & exit 0");
    pid_mode(&mut leaver, NamespaceMode::Pod, "");
    let leaver = machine.run(&sandbox, &pod, leaver).await?;
    machine.ended(&leaver).await?;
    let left = machine
        .exec(&first, &["/bin/sh", "-c", "ps | grep -c '[4]712'"])
        .await?;
    ensure!(left.stdout == "0\n", "{left:?}");
    machine.remove(&sandbox).await?;

    let pod = machine.pod("target");
    let sandbox = machine.run_pod(&pod).await?;
    let target = machine
        .run(&sandbox, &pod, command("target", &["sleep", "4713"]))
        .await?;
    let mut debug = script("debug", "ps; cat /proc/1/root/etc/changed");
    pid_mode(&mut debug, NamespaceMode::Target, &target);
    security(&mut debug).capabilities = Some(Capability {
        add_capabilities: vec!["SYS_PTRACE".into()],
        ..Capability::default()
    });
    let debug = machine.run(&sandbox, &pod, debug).await?;
    let log = machine.log(&machine.ended(&debug).await?)?;
    ensure!(log.contains("sleep 4713") && log.ends_with("new\n"), "{log}");
    machine.remove(&sandbox).await?;

    let pod = with_pid(&machine, "host", NamespaceMode::Node);
    let mut container = script("c", "readlink /proc/self/ns/pid; sleep 4714 & exit 6");
    pid_mode(&mut container, NamespaceMode::Node, "");
    let (log, status) = machine.shell(&pod, container).await?;
    let own = std::fs::read_link("/proc/self/ns/pid")?.to_string_lossy().into_owned();
    ensure!(log.trim() == own && status.exit_code == 6, "{log}");
    machine.assert_clean()
}

fn volume(machine: &Machine, at: &str, propagation: MountPropagation) -> Result<Mount> {
    let host = machine.dir.join("volume");
    std::fs::create_dir_all(&host)?;
    Ok(Mount {
        container_path: at.into(),
        host_path: host.to_string_lossy().into_owned(),
        propagation: propagation as i32,
        ..Mount::default()
    })
}

async fn mounts_spread_as_asked() -> Result<()> {
    use MountPropagation::*;
    let machine = Machine::new().await?;
    let mut pod = machine.pod("p");
    if let Some(context) = pod.linux.as_mut().and_then(|l| l.security_context.as_mut()) {
        context.privileged = true;
    }
    let sandbox = machine.run_pod(&pod).await?;
    let host = machine.dir.join("volume");
    std::fs::create_dir_all(host.join("inner"))?;
    std::fs::create_dir_all(host.join("outer"))?;
    let mut ids = Vec::new();
    let kinds = [PropagationPrivate, PropagationHostToContainer, PropagationBidirectional];
    for (name, propagation) in ["private", "slave", "shared"].iter().zip(kinds) {
        let mut container = command(name, &["sleep", "1000"]);
        security(&mut container).privileged = true;
        container.mounts.push(volume(&machine, "/v/deep", propagation)?);
        ids.push(machine.run(&sandbox, &pod, container).await?);
    }
    keelson_sys::mount::tmpfs(&host.join("outer"), nix::mount::MsFlags::empty(), "")?;
    std::fs::write(host.join("outer/file"), "")?;
    for (id, sees) in ids.iter().zip(["", "file\n", "file\n"]) {
        let answer = machine.exec(id, &["ls", "/v/deep/outer"]).await?;
        ensure!(answer.stdout == sees, "{answer:?}");
    }
    for (id, spreads) in ids.iter().zip([false, false, true]) {
        let text = "mount -t tmpfs x /v/deep/inner && touch /v/deep/inner/file";
        let answer = machine.exec(id, &["/bin/sh", "-c", text]).await?;
        ensure!(answer.exit_code == 0, "{answer:?}");
        ensure!(host.join("inner/file").exists() == spreads, "{spreads}");
    }
    // Read-only: on top, and all the way down.
    let mut container = script("ro", "touch /v/x; touch /v/outer/x; touch /w/outer/x; true");
    let mut read_only = volume(&machine, "/v", PropagationPrivate)?;
    read_only.readonly = true;
    container.mounts.push(read_only.clone());
    read_only.container_path = "/w".into();
    read_only.recursive_read_only = true;
    container.mounts.push(read_only);
    let id = machine.run(&sandbox, &pod, container).await?;
    let log = machine.log(&machine.ended(&id).await?)?;
    ensure!(
        log.contains("/v/x: Read-only") && log.contains("/w/outer/x: Read-only"),
        "{log}"
    );
    ensure!(!log.contains("/v/outer/x"), "{log}");
    machine.remove(&sandbox).await?;
    for inner in ["inner", "outer"] {
        keelson_sys::mount::unmount(&host.join(inner))?;
    }
    machine.assert_clean()
}

async fn images_can_be_volumes() -> Result<()> {
    let machine = Machine::new().await?;
    let spec = ImageSpec {
        image: IMAGE.into(),
        ..ImageSpec::default()
    };
    let image = |path: &str, sub: &str| Mount {
        container_path: path.into(),
        image: Some(spec.clone()),
        image_sub_path: sub.into(),
        readonly: true,
        ..Mount::default()
    };
    let mut container = script("c", "cat /v/etc/changed /s/changed; touch /v/x 2>&1; ls /v/etc");
    container.mounts = vec![image("/v", ""), image("/s", "etc")];
    let (log, _) = machine.shell(&machine.pod("p"), container).await?;
    ensure!(
        log.starts_with("new\nnew\n") && log.contains("Read-only") && !log.contains("doomed"),
        "{log}"
    );
    let mut container = script("c", "true");
    container.mounts = vec![image("/v", "no/such")];
    let error = machine
        .shell(&machine.pod("q"), container)
        .await
        .err()
        .context("it ran")?;
    ensure!(format!("{error:#}").contains("no sub path"), "{error:#}");
    for sandbox in pods(&machine).await? {
        machine.remove(&sandbox).await?;
    }
    machine.assert_clean()
}

async fn pods(machine: &Machine) -> Result<Vec<String>> {
    let answer = machine
        .cri
        .runtime
        .clone()
        .list_pod_sandbox(ListPodSandboxRequest::default())
        .await?;
    Ok(answer.into_inner().items.into_iter().map(|s| s.id).collect())
}

async fn limits_are_set_updated_and_enforced() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    let limited = |name: &str, text: &str| {
        let mut container = script(name, text);
        let linux = container.linux.get_or_insert_default();
        linux.resources = Some(LinuxContainerResources {
            memory_limit_in_bytes: 32 << 20,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            oom_score_adj: 999,
            ..LinuxContainerResources::default()
        });
        container
    };
    let id = machine
        .run(&sandbox, &pod, limited("c", "cat /proc/self/oom_score_adj; sleep 1000"))
        .await?;
    let cgroups = keelson_sys::cgroup::Cgroups::detect()?;
    let group = format!("{}/pod-p/{id}", machine.cgroup);
    ensure!(
        cgroups.usage(&group)?.memory.limit == Some(32 << 20),
        "{:?}",
        cgroups.usage(&group)?
    );
    let wanted = LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        ..LinuxContainerResources::default()
    };
    let request = UpdateContainerResourcesRequest {
        container_id: id.clone(),
        linux: Some(wanted),
        ..UpdateContainerResourcesRequest::default()
    };
    machine.cri.runtime.clone().update_container_resources(request).await?;
    ensure!(cgroups.usage(&group)?.memory.limit == Some(64 << 20));
    let resources = machine
        .status(&id)
        .await?
        .resources
        .and_then(|r| r.linux)
        .context("no resources")?;
    ensure!(
        (resources.memory_limit_in_bytes, resources.cpu_shares) == (64 << 20, 512),
        "{resources:?}"
    );
    let request = ContainerStatsRequest {
        container_id: id.clone(),
    };
    let stats = machine
        .cri
        .runtime
        .clone()
        .container_stats(request)
        .await?
        .into_inner()
        .stats
        .context("no stats")?;
    ensure!(stats.memory.and_then(|m| m.usage_bytes).is_some_and(|b| b.value > 0) && stats.cpu.is_some());
    crate::basics::wait_for_log(&machine, &id, " F 999\n").await?;

    let id = machine
        .run(
            &sandbox,
            &pod,
            limited("oom", "exec dd if=/dev/zero of=/dev/null bs=200M count=1"),
        )
        .await?;
    let status = machine.ended(&id).await?;
    ensure!(status.reason == "OOMKilled" && status.exit_code == 137, "{status:?}");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn sysctls_and_the_hosts_network() -> Result<()> {
    let machine = Machine::new().await?;
    let mut pod = machine.pod("p");
    let linux = pod.linux.get_or_insert_default();
    linux.sysctls = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_local_port_range", "2000 2001"),
    ]
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .into();
    pod.dns_config = Some(DnsConfig {
        servers: vec!["1.2.3.4".into()],
        searches: vec!["a.b".into()],
        options: vec![],
    });
    let text = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range /etc/resolv.conf";
    let (log, _) = machine.shell(&pod, script("c", text)).await?;
    ensure!(log == "1\n2000\t2001\nsearch a.b\nnameserver 1.2.3.4\n", "{log}");
    let mut pod = machine.pod("bad");
    pod.linux.get_or_insert_default().sysctls = [("kernel.no_such".to_owned(), "1".to_owned())].into();
    let error = machine.run_pod(&pod).await.err().context("it ran")?;
    ensure!(
        format!("{error:#}").contains("cannot set sysctl kernel.no_such"),
        "{error:#}"
    );

    let mut pod = machine.pod("host");
    let context = pod.linux.as_mut().and_then(|l| l.security_context.as_mut());
    if let Some(options) = context.and_then(|c| c.namespace_options.as_mut()) {
        (options.network, options.ipc) = (NamespaceMode::Node as i32, NamespaceMode::Node as i32);
    }
    let mut container = script("c", "for ns in net ipc uts; do readlink /proc/self/ns/$ns; done");
    let options = security(&mut container).namespace_options.get_or_insert_default();
    (options.network, options.ipc) = (NamespaceMode::Node as i32, NamespaceMode::Node as i32);
    let (log, _) = machine.shell(&pod, container).await?;
    let own: String = ["net", "ipc", "uts"]
        .iter()
        .map(|ns| std::fs::read_link(format!("/proc/self/ns/{ns}")).map(|l| format!("{}\n", l.display())))
        .collect::<std::io::Result<_>>()?;
    ensure!(log == own, "{log} {own}");
    machine.assert_clean()
}

async fn pods_are_the_same_however_the_server_was_started() -> Result<()> {
    let machine = Machine::new().await?;
    let text = "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ping_group_range; ulimit -Sn; ulimit -Hn";
    let mut pod = machine.pod("p");
    let sandbox = machine.run_pod(&pod).await?;
    // More than the machine gives the server takes CAP_SYS_RESOURCE.
    let (_, own) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    let can_raise = keelson_sys::process::own_bounding_set() & 1 << 24 != 0;
    let hard = if can_raise { 524_288 } else { own.min(524_288) };
    let usual = format!("0\n0\t2147483647\n1024\n{hard}\n");
    let id = machine
        .run(&sandbox, &pod, script("c", &format!("{text}; sleep 1000")))
        .await?;
    let answer = machine.exec(&id, &["/bin/sh", "-c", text]).await?;
    ensure!(answer.stdout == usual, "{answer:?}");
    let log = machine.log(&machine.status(&id).await?)?;
    ensure!(log == usual, "{log}");
    // Any user may listen on any port.
    let mut user = script(
        "user",
        "nc -l -p 80 < /dev/null & for i in $(seq 100); do grep -q ':0050 .* 0A ' /proc/net/tcp6 /proc/net/tcp && break; sleep 0.1; done; grep -c ':0050 .* 0A ' /proc/net/tcp6 /proc/net/tcp",
    );
    security(&mut user).run_as_user = Some(Int64Value { value: 1000 });
    security(&mut user).capabilities = Some(Capability {
        drop_capabilities: vec!["ALL".into()],
        ..Capability::default()
    });
    let user = machine.run(&sandbox, &pod, user).await?;
    let log = machine.log(&machine.ended(&user).await?)?;
    ensure!(log.contains(":1\n"), "{log}");
    machine.remove(&sandbox).await?;

    // What the pod asks for wins.
    pod = machine.pod("own");
    pod.linux.get_or_insert_default().sysctls =
        [("net.ipv4.ip_unprivileged_port_start".to_owned(), "1000".to_owned())].into();
    let (log, _) = machine.shell(&pod, script("c", text)).await?;
    ensure!(log.starts_with("1000\n0\t2147483647\n"), "{log}");
    machine.assert_clean()
}

async fn an_apparmor_profile_that_is_not_there_is_refused() -> Result<()> {
    let machine = Machine::new().await?;
    let mut container = command("c", &["true"]);
    security(&mut container).apparmor = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Localhost as i32,
        localhost_ref: "localhost/no-such-profile".into(),
    });
    let error = machine
        .shell(&machine.pod("p"), container)
        .await
        .err()
        .context("it ran")?;
    // Without AppArmor in the kernel, or with it.
    let text = format!("{error:#}");
    ensure!(
        text.contains("apparmor is not supported") || text.contains("apparmor profile not found no-such-profile"),
        "{text}"
    );
    Ok(())
}

async fn an_external_runtime_runs_containers() -> Result<()> {
    let named = std::env::var_os("RUNC").map(std::path::PathBuf::from);
    let found = ["/usr/sbin/runc", "/usr/bin/runc"]
        .iter()
        .map(std::path::PathBuf::from)
        .find(|p| p.exists());
    let Some(runc) = named.or(found) else {
        println!("not tested: no runc on this machine (apt-get install runc, or RUNC=path)");
        return Ok(());
    };
    let machine = Machine::with(|config| {
        config
            .handlers
            .insert("runc".into(), keelson_runtime::Handler::External(runc));
    })
    .await?;
    let pod = machine.pod("p");
    let request = RunPodSandboxRequest {
        config: Some(pod.clone()),
        runtime_handler: "runc".into(),
    };
    let sandbox = machine
        .cri
        .runtime
        .clone()
        .run_pod_sandbox(request)
        .await?
        .into_inner()
        .pod_sandbox_id;
    let id = machine
        .run(
            &sandbox,
            &pod,
            script("c", "echo out; while [ ! -e /tmp/go ]; do sleep 0.05; done; exit 8"),
        )
        .await?;
    let answer = machine
        .exec(&id, &["/bin/sh", "-c", "echo in; touch /tmp/go; exit 2"])
        .await?;
    ensure!(answer.stdout == "in\n" && answer.exit_code == 2, "{answer:?}");
    let status = machine.ended(&id).await?;
    ensure!(status.exit_code == 8 && machine.log(&status)? == "out\n", "{status:?}");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}
