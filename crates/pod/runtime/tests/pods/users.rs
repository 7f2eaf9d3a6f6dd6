//! Pods with users of their own: root in there is somebody without rights outside, files are shown to the pod's users and
//! to nobody else's, and whatever joins the pod joins its users.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;

use crate::support::{IMAGE, Machine, command, pid_mode, script, security, with_pid};
use crate::tests;

tests![
    root_in_a_pod_is_nobody_outside,
    files_are_the_pods_users,
    what_the_host_has_is_out_of_reach,
    whoever_joins_a_pod_joins_its_users,
    users_of_a_pod_survive_the_server,
    other_users_than_the_pods_are_refused,
    volumes_of_every_kind_are_shown_to_a_pods_users,
    devices_keep_their_owners,
    what_drivers_name_may_be_a_link,
    runtimes_tell_what_they_can,
];

const LENGTH: u32 = 65_536;

fn mapping(first: u32) -> Vec<IdMapping> {
    vec![IdMapping {
        host_id: first,
        container_id: 0,
        length: LENGTH,
    }]
}

fn namespace(first: u32) -> UserNamespace {
    UserNamespace {
        mode: NamespaceMode::Pod as i32,
        uids: mapping(first),
        gids: mapping(first),
    }
}

/// A pod that has the host's ids from `first` on.
fn pod(machine: &Machine, name: &str, mode: NamespaceMode, first: u32) -> PodSandboxConfig {
    let mut pod = with_pid(machine, name, mode);
    let context = pod.linux.as_mut().and_then(|l| l.security_context.as_mut());
    if let Some(options) = context.and_then(|c| c.namespace_options.as_mut()) {
        options.userns_options = Some(namespace(first));
    }
    pod
}

/// The container as the kubelet has it made in such a pod.
fn of(first: u32, mut container: ContainerConfig) -> ContainerConfig {
    let options = security(&mut container).namespace_options.get_or_insert_default();
    options.userns_options = Some(namespace(first));
    for mount in &mut container.mounts {
        (mount.uid_mappings, mount.gid_mappings) = (mapping(first), mapping(first));
    }
    container
}

/// With every capability there is, and no filter.
fn mighty(mut container: ContainerConfig) -> ContainerConfig {
    let context = security(&mut container);
    context.capabilities = Some(Capability {
        add_capabilities: vec!["ALL".into()],
        ..Capability::default()
    });
    context.seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Unconfined as i32,
        ..SecurityProfile::default()
    });
    (context.masked_paths, context.readonly_paths) = (Vec::new(), Vec::new());
    container
}

fn volume(host: &Path, target: &str) -> Mount {
    Mount {
        host_path: host.to_string_lossy().into_owned(),
        container_path: target.into(),
        ..Mount::default()
    }
}

async fn shell(machine: &Machine, container: &str, text: &str) -> Result<String> {
    let answer = machine.exec(container, &["/bin/sh", "-c", text]).await?;
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned() + &String::from_utf8_lossy(&answer.stderr))
}

/// The numbers of the map, without the padding.
const MAPS: &str = "for m in uid gid; do read a b c < /proc/self/${m}_map; echo $a $b $c; done";

async fn root_in_a_pod_is_nobody_outside() -> Result<()> {
    let machine = Machine::new().await?;
    let first = 7 * LENGTH;
    let pod = pod(&machine, "p", NamespaceMode::Container, first);
    let sandbox = machine.run_pod(&pod).await?;
    let text = format!(
        "id -u; id -g; {MAPS}; cat /proc/self/setgroups; cat /proc/sys/net/ipv4/ping_group_range | tr '\\t' ' '; \
         cat /proc/sys/net/ipv4/ip_unprivileged_port_start; pwd; touch /made; echo to the log > /dev/stdout; \
         sleep 1000; true"
    );
    let id = machine.run(&sandbox, &pod, of(first, script("c", &text))).await?;
    while !shell(&machine, &id, "ls /made; cat /proc/1/comm")
        .await?
        .ends_with("sh\n")
        || !machine.log(&machine.status(&id).await?)?.contains("to the log")
    {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let log = machine.log(&machine.status(&id).await?)?;
    let map = format!("0 {first} {LENGTH}\n");
    let expected = format!("0\n0\n{map}{map}allow\n0 65535\n0\n/work/dir\nto the log\n");
    ensure!(log == expected, "{log:?} is not {expected:?}");
    // Outside, its process is the range's first user; in the same namespace its capabilities count.
    let pid = first_process(&machine, &id, first)?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(
        status.contains(&format!("Uid:\t{first}\t{first}\t{first}\t{first}\n")),
        "{status}"
    );
    ensure!(
        status.contains(&format!("Gid:\t{first}\t{first}\t{first}\t{first}\n")),
        "{status}"
    );
    ensure!(
        std::fs::read_link(format!("/proc/{pid}/ns/user"))? != std::fs::read_link("/proc/self/ns/user")?,
        "the host's users"
    );
    // What it wrote belongs to that user; what the image has belongs to root in there.
    let upper = machine.dir.join("root/containers").join(&id).join("upper/made");
    ensure!(std::fs::metadata(upper)?.uid() == first, "the upper layer's owner");
    let seen = shell(
        &machine,
        &id,
        "stat -c %u:%g / /etc/passwd /made /work/dir /etc/hosts /etc/resolv.conf /dev/shm",
    )
    .await?;
    ensure!(seen == "0:0\n".repeat(7), "{seen}");
    let done = shell(
        &machine,
        &id,
        "busybox chown 5:65535 /etc/passwd && stat -c %u:%g /etc/passwd; busybox chown 65536 /made",
    )
    .await?;
    ensure!(
        done.starts_with("5:65535\n") && done.contains("Invalid argument"),
        "{done}"
    );
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

/// The process of this user that runs the container's command, by the host's number.
fn first_process(machine: &Machine, id: &str, user: u32) -> Result<i32> {
    let group = format!("{}/", machine.cgroup);
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        let file = |name: &str| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let ours = file("cgroup").lines().any(|l| l.contains(&group) && l.ends_with(id));
        if ours && file("status").contains(&format!("Uid:\t{user}\t")) && file("comm") == "sh\n" {
            return Ok(pid);
        }
    }
    anyhow::bail!("no process of user {user} in {id}")
}

async fn files_are_the_pods_users() -> Result<()> {
    let machine = Machine::new().await?;
    let first = 3 * LENGTH;
    let pod = pod(&machine, "p", NamespaceMode::Container, first);
    let sandbox = machine.run_pod(&pod).await?;
    let (volume_dir, file) = (machine.dir.join("volume"), machine.dir.join("log"));
    std::fs::create_dir_all(&volume_dir)?;
    std::fs::write(volume_dir.join("of-root"), "secret")?;
    std::fs::set_permissions(volume_dir.join("of-root"), std::fs::Permissions::from_mode(0o600))?;
    std::fs::write(volume_dir.join("of-group"), "shared")?;
    std::fs::set_permissions(volume_dir.join("of-group"), std::fs::Permissions::from_mode(0o060))?;
    std::os::unix::fs::chown(volume_dir.join("of-group"), None, Some(2000))?;
    std::fs::write(&file, "")?;
    std::fs::set_permissions(&machine.dir, std::fs::Permissions::from_mode(0o700))?;
    let text = "cat /v/of-root; echo; touch /v/made; echo x > /v/owned; busybox chown 1000:2000 /v/owned; \
                echo message > /dev/termination-log; stat -c %u:%g /v/of-root /v/owned /dev/termination-log";
    let mut root = script("root", text);
    root.mounts = vec![volume(&volume_dir, "/v"), volume(&file, "/dev/termination-log")];
    let id = machine.run(&sandbox, &pod, of(first, root)).await?;
    let log = machine.log(&machine.ended(&id).await?)?;
    ensure!(log == "secret\n0:0\n1000:2000\n0:0\n", "{log}");
    // On the disk, too, they have the numbers that they have in the pod.
    let owner = |name: &str| std::fs::metadata(volume_dir.join(name)).map(|m| (m.uid(), m.gid()));
    ensure!(
        owner("made")? == (0, 0) && owner("owned")? == (1000, 2000),
        "{:?} {:?}",
        owner("made"),
        owner("owned")
    );
    ensure!(std::fs::read_to_string(&file)? == "message\n", "the message");
    // Groups count as they do elsewhere.
    let mut user = script("user", "id -u; cat /v/of-group; echo; cat /v/of-root 2>&1");
    user.mounts = vec![volume(&volume_dir, "/v")];
    security(&mut user).run_as_user = Some(Int64Value { value: 1000 });
    security(&mut user).supplemental_groups = vec![2000];
    let id = machine.run(&sandbox, &pod, of(first, user)).await?;
    let log = machine.log(&machine.ended(&id).await?)?;
    ensure!(
        log.starts_with("1000\nshared\n") && log.contains("Permission denied"),
        "{log}"
    );
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn what_the_host_has_is_out_of_reach() -> Result<()> {
    let machine = Machine::new().await?;
    let first = 9 * LENGTH;
    let pod = pod(&machine, "p", NamespaceMode::Container, first);
    let sandbox = machine.run_pod(&pod).await?;
    let of_host = machine.dir.join("of-host");
    std::fs::create_dir_all(&of_host)?;
    std::fs::write(of_host.join("secret"), "secret")?;
    std::fs::set_permissions(of_host.join("secret"), std::fs::Permissions::from_mode(0o600))?;
    let mut container = mighty(command("c", &["sleep", "1000"]));
    container.mounts = vec![volume(&of_host, "/h")];
    let mut container = of(first, container);
    // Not shown to the pod's users: then it is nobody's.
    container
        .mounts
        .iter_mut()
        .for_each(|m| (m.uid_mappings, m.gid_mappings) = Default::default());
    let id = machine.run(&sandbox, &pod, container).await?;
    let seen = shell(
        &machine,
        &id,
        "stat -c %u:%g /h/secret; cat /h/secret; chmod 666 /h/secret; touch /h/x; rm /h/secret",
    )
    .await?;
    ensure!(
        seen.starts_with("65534:65534\n") && !seen.contains("secret\n65"),
        "{seen}"
    );
    ensure!(
        seen.matches("denied").count() + seen.matches("not permitted").count() == 4,
        "{seen}"
    );
    ensure!(
        std::fs::read_to_string(of_host.join("secret"))? == "secret",
        "it was changed"
    );
    // All capabilities, of the namespace only.
    let full = shell(
        &machine,
        &id,
        "grep CapEff /proc/self/status; grep CapEff /proc/1/status",
    )
    .await?;
    ensure!(full.lines().all(|l| l.starts_with("CapEff:\t000001ff")), "{full}");
    let inside = "mkdir /t && mount -t tmpfs none /t && touch /t/x && ls /t && umount /t && hostname other && hostname";
    ensure!(
        shell(&machine, &id, inside).await? == "x\nother\n",
        "no rights in its own namespaces"
    );
    for (what, refused) in [
        ("mknod /m c 1 1", "not permitted"),
        (
            "v=$(cat /proc/sys/fs/pipe-max-size); echo $v > /proc/sys/fs/pipe-max-size",
            "denied",
        ),
        ("mount -t debugfs none /t", "denied"),
    ] {
        let said = shell(&machine, &id, what).await?;
        ensure!(said.contains(refused), "{what}: {said}");
    }
    // Of the host's processes none can be named, whatever number is tried.
    let own = std::process::id();
    let said = shell(&machine, &id, &format!("kill -0 {own}; ls /proc/{own} 2>&1 | head -1")).await?;
    ensure!(
        said.contains("No such process") && said.contains("No such file"),
        "{said}"
    );
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn whoever_joins_a_pod_joins_its_users() -> Result<()> {
    let machine = Machine::new().await?;
    let first = 11 * LENGTH;
    let map = format!("0 {first} {LENGTH}\n0 {first} {LENGTH}\n");
    let pod = pod(&machine, "p", NamespaceMode::Pod, first);
    let sandbox = machine.run_pod(&pod).await?;
    let mut spy = mighty(command("spy", &["sleep", "1000"]));
    pid_mode(&mut spy, NamespaceMode::Pod, "");
    let spy = machine.run(&sandbox, &pod, of(first, spy)).await?;
    ensure!(shell(&machine, &spy, MAPS).await? == map, "exec has other users");
    let again = shell(
        &machine,
        &spy,
        "id -u; echo again > /dev/stdout; readlink /proc/self/ns/user > /u; ls /proc/self/fd | wc -l",
    )
    .await?;
    ensure!(again == "0\nagain\n4\n", "{again}");
    // The pod's first process has nothing, and leads nowhere.
    let paused = shell(
        &machine,
        &spy,
        "grep -E '^(Uid|CapPrm|CapBnd|NoNewPrivs)' /proc/1/status; for l in root cwd exe; do readlink /proc/1/$l; done; \
         ls -A /proc/1/root/; [ $(readlink /proc/1/ns/user) = $(cat /u) ] && echo same; ls /proc/1/fd",
    )
    .await?;
    let none = "0000000000000000";
    let expected = format!(
        "Uid:\t65535\t65535\t65535\t65535\nCapPrm:\t{none}\nCapBnd:\t{none}\nNoNewPrivs:\t1\n/\n/\n/pause\npause\nsame\n"
    );
    ensure!(paused == expected, "{paused:?} is not {expected:?}");
    // A container that joins the namespace, with a terminal and another user; and one that joins a container's.
    let mut terminal = script(
        "terminal",
        &format!("tty; {MAPS}; id -u; echo controls > /dev/tty; exit 3"),
    );
    (terminal.tty, terminal.stdin) = (true, true);
    pid_mode(&mut terminal, NamespaceMode::Pod, "");
    security(&mut terminal).run_as_user = Some(Int64Value { value: 1000 });
    let terminal = machine.run(&sandbox, &pod, of(first, terminal)).await?;
    let status = machine.ended(&terminal).await?;
    let log = machine.log(&status)?.replace('\r', "");
    ensure!(
        log == format!("/dev/pts/0\n{map}1000\ncontrols\n") && status.exit_code == 3,
        "{log}"
    );
    let mut debugger = script(
        "debugger",
        &format!("{MAPS}; ps | grep -c '[s]leep 1000'; readlink /proc/self/ns/user"),
    );
    pid_mode(&mut debugger, NamespaceMode::Target, &spy);
    let debugger = machine.run(&sandbox, &pod, of(first, debugger)).await?;
    let log = machine.log(&machine.ended(&debugger).await?)?;
    ensure!(log.starts_with(&format!("{map}1\nuser:[")), "{log}");
    // Whoever may trace in there finds nothing of ours while others come.
    std::fs::write(machine.dir.join("marker"), "")?;
    let marker = format!("{}/marker", machine.dir.display());
    let watch = format!(
        "while [ ! -e /tmp/enough ]; do for p in /proc/[0-9]*; do for l in root cwd; do [ -e $p/$l{marker} ] && echo LEAK; done; \
         case $(readlink $p/exe) in /pause|/bin/busybox|'') ;; *) echo LEAK $(readlink $p/exe);; esac; done; done; echo done"
    );
    let mut watching = mighty(script("watching", &watch));
    pid_mode(&mut watching, NamespaceMode::Pod, "");
    let watching = machine.run(&sandbox, &pod, of(first, watching)).await?;
    for n in 0..6 {
        let mut beside = script(&format!("beside-{n}"), "id -u; ls /proc/self/fd | wc -l");
        pid_mode(&mut beside, NamespaceMode::Pod, "");
        let beside = machine.run(&sandbox, &pod, of(first, beside)).await?;
        ensure!(shell(&machine, &spy, "echo in").await? == "in\n", "no exec");
        ensure!(machine.log(&machine.ended(&beside).await?)? == "0\n4\n", "beside");
    }
    machine.exec(&watching, &["touch", "/tmp/enough"]).await?;
    let log = machine.log(&machine.ended(&watching).await?)?;
    ensure!(log == "done\n", "{log}");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn users_of_a_pod_survive_the_server() -> Result<()> {
    let mut machine = Machine::new().await?;
    let mut pods = Vec::new();
    for (name, first) in [("p", 5 * LENGTH), ("q", 6 * LENGTH)] {
        let pod = pod(&machine, name, NamespaceMode::Container, first);
        let sandbox = machine.run_pod(&pod).await?;
        let id = machine
            .run(&sandbox, &pod, of(first, command("c", &["sleep", "1000"])))
            .await?;
        pods.push((pod, sandbox, id, first));
    }
    machine.restart().await?;
    for (pod, sandbox, id, first) in &pods {
        let map = format!("0 {first} {LENGTH}\n0 {first} {LENGTH}\n");
        ensure!(shell(&machine, id, MAPS).await? == map, "{first}");
        let later = of(*first, script("later", MAPS));
        let later = machine.run(sandbox, pod, later).await?;
        ensure!(machine.log(&machine.ended(&later).await?)? == map, "{first}");
        machine.remove(sandbox).await?;
    }
    machine.assert_clean()
}

async fn other_users_than_the_pods_are_refused() -> Result<()> {
    let machine = Machine::new().await?;
    let first = 13 * LENGTH;
    let refused = |change: fn(&mut NamespaceOption), name: &'static str| {
        let mut pod = pod(&machine, name, NamespaceMode::Container, first);
        let context = pod.linux.as_mut().and_then(|l| l.security_context.as_mut());
        if let Some(options) = context.and_then(|c| c.namespace_options.as_mut()) {
            change(options);
        }
        let machine = &machine;
        async move {
            let error = machine.run_pod(&pod).await.err().context("it runs")?;
            Ok::<_, anyhow::Error>(format!("{error:#}"))
        }
    };
    let network = refused(|o| o.network = NamespaceMode::Node as i32, "n").await?;
    ensure!(network.contains("the host's network namespace"), "{network}");
    let root = refused(|o| o.userns_options = Some(namespace(0)), "r").await?;
    ensure!(root.contains("the host's root can't be mapped"), "{root}");

    let pod = pod(&machine, "p", NamespaceMode::Container, first);
    let sandbox = machine.run_pod(&pod).await?;
    let run = |container: ContainerConfig| {
        let (machine, sandbox, pod) = (&machine, &sandbox, &pod);
        async move {
            let error = machine.run(sandbox, pod, container).await.err().context("it runs")?;
            Ok::<_, anyhow::Error>(format!("{error:#}"))
        }
    };
    let mut above = of(first, command("above", &["true"]));
    security(&mut above).run_as_user = Some(Int64Value { value: 65_536 });
    let above = run(above).await?;
    ensure!(
        above.contains("user 65536 is not mapped in the pod's user namespace"),
        "{above}"
    );
    let mut group = of(first, command("group", &["true"]));
    security(&mut group).supplemental_groups = vec![70_000];
    let group = run(group).await?;
    ensure!(group.contains("group 70000 is not mapped"), "{group}");
    let other = run(of(first + LENGTH, command("other", &["true"]))).await?;
    ensure!(
        other.contains("user namespace config for sandbox is different from container"),
        "{other}"
    );
    let mut foreign = command("foreign", &["true"]);
    foreign.mounts = vec![volume(&machine.dir, "/v")];
    let mut foreign = of(first, foreign);
    (foreign.mounts[0].uid_mappings, foreign.mounts[0].gid_mappings) = (mapping(LENGTH), mapping(LENGTH));
    let foreign = run(foreign).await?;
    ensure!(
        foreign.contains("are not those of the pod's user namespace"),
        "{foreign}"
    );
    // A file system whose files can't be shown to others, in the words that people know.
    let mut unmapped = command("unmapped", &["true"]);
    unmapped.mounts = vec![volume(Path::new("/proc/sys"), "/v")];
    let unmapped = run(of(first, unmapped)).await?;
    ensure!(
        unmapped.contains("failed to set MOUNT_ATTR_IDMAP on /proc/"),
        "{unmapped}"
    );
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn volumes_of_every_kind_are_shown_to_a_pods_users() -> Result<()> {
    let machine = Machine::new().await?;
    let first = 17 * LENGTH;
    let pod = pod(&machine, "p", NamespaceMode::Container, first);
    let sandbox = machine.run_pod(&pod).await?;
    let memory = machine.dir.join("memory");
    let part = machine.dir.join("volume/part");
    for dir in [&memory, &part] {
        std::fs::create_dir_all(dir)?;
    }
    keelson_sys::mount::tmpfs(&memory, nix::mount::MsFlags::empty(), "mode=0700")?;
    std::fs::write(memory.join("secret"), "token")?;
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
    let text = "cat /m/secret; echo; echo x > /m/made; touch /part/made; cat /i/etc/changed /e/changed; touch /e/x 2>&1; \
                stat -c %u:%g /m /m/secret /part/made /i/etc/passwd /e; touch /r/x 2>&1; echo shared > /dev/shm/s; \
                stat -c %u:%g /dev/shm/s; cat /sys/class/net/lo/ifindex; ls /sys/fs/cgroup | head -1 | wc -l; \
                head -c 3 /dev/zero | wc -c; echo > /dev/null; ls -d /dev/mqueue /dev/pts/ptmx; sleep 1000";
    let mut container = script("c", text);
    let mut follows = volume(&machine.dir.join("volume"), "/follows");
    follows.propagation = MountPropagation::PropagationHostToContainer as i32;
    let mut read_only = volume(&part, "/r");
    (read_only.readonly, read_only.recursive_read_only) = (true, true);
    container.mounts = vec![
        volume(&memory, "/m"),
        volume(&part, "/part"),
        image("/i", ""),
        image("/e", "etc"),
        read_only,
        follows,
    ];
    let id = machine.run(&sandbox, &pod, of(first, container)).await?;
    let mut log = String::new();
    for _ in 0..500 {
        log = machine.log(&machine.status(&id).await?)?;
        if log.contains("/dev/pts/ptmx") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    ensure!(
        log.starts_with("token\nnew\nnew\n") && log.matches("Read-only").count() == 2,
        "{log}"
    );
    ensure!(log.matches("0:0\n").count() == 6, "{log}");
    ensure!(log.ends_with("1\n1\n3\n/dev/mqueue\n/dev/pts/ptmx\n"), "{log}");
    ensure!(std::fs::metadata(memory.join("made"))?.uid() == 0, "on a tmpfs");
    ensure!(
        std::fs::metadata(part.join("made"))?.uid() == 0,
        "in a part of a volume"
    );
    // What is mounted on the host later arrives where that was asked for.
    let later = machine.dir.join("volume/later");
    std::fs::create_dir_all(&later)?;
    keelson_sys::mount::tmpfs(&later, nix::mount::MsFlags::empty(), "mode=0755")?;
    std::fs::write(later.join("file"), "")?;
    let seen = shell(&machine, &id, "ls /follows/later").await?;
    ensure!(seen == "file\n", "{seen}");
    machine.remove(&sandbox).await?;
    for mounted in [&later, &memory] {
        keelson_sys::mount::unmount(mounted)?;
    }
    machine.assert_clean()
}

async fn devices_keep_their_owners() -> Result<()> {
    let machine = Machine::new().await?;
    let first = 19 * LENGTH;
    let pod = pod(&machine, "p", NamespaceMode::Container, first);
    let sandbox = machine.run_pod(&pod).await?;
    let text = "head -c 2 /dev/of/mine | wc -c; stat -c %u:%g /dev/of/mine; chmod 600 /dev/of/mine 2>&1; \
                busybox chown 0 /dev/of/mine 2>&1";
    let mut container = script("c", text);
    container.devices = vec![Device {
        container_path: "/dev/of/mine".into(),
        host_path: "/dev/zero".into(),
        permissions: "rwm".into(),
    }];
    let id = machine.run(&sandbox, &pod, of(first, container)).await?;
    let log = machine.log(&machine.ended(&id).await?)?;
    ensure!(
        log.starts_with("2\n65534:65534\n") && log.matches("not permitted").count() == 2,
        "{log}"
    );
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn what_drivers_name_may_be_a_link() -> Result<()> {
    let machine = Machine::new().await?;
    let first = 23 * LENGTH;
    let (cdi, link) = (machine.dir.join("cdi"), machine.dir.join("lib.so"));
    std::fs::create_dir_all(&cdi)?;
    let library = machine.dir.join("lib.so.1");
    std::fs::write(&library, "library")?;
    std::fs::set_permissions(&library, std::fs::Permissions::from_mode(0o644))?;
    std::os::unix::fs::symlink("lib.so.1", &link)?;
    let spec = format!(
        "cdiVersion: \"0.6.0\"\nkind: vendor.test/gift\ndevices:\n- name: one\n  containerEdits:\n    mounts:\n    \
         - {{hostPath: {}, containerPath: /usr/lib/lib.so, options: [ro, bind]}}\n",
        link.display()
    );
    std::fs::write(cdi.join("vendor.yaml"), spec)?;
    let pod = pod(&machine, "p", NamespaceMode::Container, first);
    let sandbox = machine.run_pod(&pod).await?;
    let mut container = script("c", "cat /usr/lib/lib.so; echo; stat -c %u:%g /usr/lib/lib.so");
    container.cdi_devices.push(CdiDevice {
        name: "vendor.test/gift=one".into(),
    });
    let id = machine.run(&sandbox, &pod, of(first, container)).await?;
    let log = machine.log(&machine.ended(&id).await?)?;
    ensure!(log == "library\n65534:65534\n", "{log}");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn runtimes_tell_what_they_can() -> Result<()> {
    let machine = Machine::with(|config| {
        let program = keelson_runtime::Handler::External("/usr/bin/false".into());
        config.handlers.insert("other".into(), program);
    })
    .await?;
    let status = machine
        .cri
        .runtime
        .clone()
        .status(StatusRequest::default())
        .await?
        .into_inner();
    let told: Vec<(String, bool)> = status
        .runtime_handlers
        .into_iter()
        .map(|h| (h.name, h.features.is_some_and(|f| f.user_namespaces)))
        .filter(|(name, _)| name != "test-handler")
        .collect();
    let expected = [("", true), ("keelson", true), ("other", false)].map(|(name, can)| (name.to_owned(), can));
    ensure!(told == expected, "{told:?}");
    ensure!(!machine.dir.join("root/users").exists(), "it left something");
    let request = RunPodSandboxRequest {
        config: Some(pod(&machine, "p", NamespaceMode::Container, LENGTH)),
        runtime_handler: "other".into(),
    };
    let error = machine
        .cri
        .runtime
        .clone()
        .run_pod_sandbox(request)
        .await
        .err()
        .context("it runs")?;
    ensure!(error.message().contains("user namespaces can't be had"), "{error}");
    machine.assert_clean()
}
