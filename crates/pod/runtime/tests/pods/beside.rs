//! What a container finds beside itself in namespaces that it shares leads nowhere outside of its pod, whatever
//! capabilities it has been given.

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;

use crate::support::{Machine, command, pid_mode, script, security, shims, with_pid};
use crate::tests;

tests![
    the_first_process_of_a_shared_namespace_leads_nowhere,
    what_is_about_to_run_beside_a_container_leads_nowhere,
    terminals_and_failures_of_joining_containers,
    nobody_can_write_to_the_program_of_a_shim,
];

/// A container that may do everything a capability allows and sees the pod's processes.
fn spy(name: &str, text: &str) -> ContainerConfig {
    let mut spy = script(name, text);
    pid_mode(&mut spy, NamespaceMode::Pod, "");
    let context = security(&mut spy);
    context.capabilities = Some(Capability {
        add_capabilities: vec!["ALL".into()],
        ..Capability::default()
    });
    context.seccomp = Some(SecurityProfile {
        profile_type: security_profile::ProfileType::Unconfined as i32,
        ..SecurityProfile::default()
    });
    spy
}

async fn the_first_process_of_a_shared_namespace_leads_nowhere() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = with_pid(&machine, "p", NamespaceMode::Pod);
    let sandbox = machine.run_pod(&pod).await?;
    let mut user = command("user", &["sleep", "1000"]);
    pid_mode(&mut user, NamespaceMode::Pod, "");
    security(&mut user).run_as_user = Some(Int64Value { value: 65_535 });
    let user = machine.run(&sandbox, &pod, user).await?;
    let text = "cd /proc/1; for l in root cwd exe ns/mnt ns/cgroup ns/net ns/ipc; do readlink $l; done; \
                ls -A root/ cwd/ fd | tr '\\n' ' '; echo; grep -v '\\[' maps | grep -o '/.*'; \
                grep -E '^(Uid|Groups|Cap|NoNewPrivs|Seccomp:)' status; \
                busybox chroot root /bin/true 2>&1; touch root/x 2>&1";
    let spy = machine.run(&sandbox, &pod, spy("spy", text)).await?;
    let log = machine.log(&machine.ended(&spy).await?)?;
    let (links, rest) = log.split_once("cwd/:").context("no listing")?;
    let links: Vec<&str> = links.lines().collect();
    ensure!(links[..3] == ["/", "/", "/pause"] && links.len() == 7, "{log}");
    for (name, seen) in ["mnt", "cgroup", "net", "ipc"].iter().zip(&links[3..]) {
        let host = std::fs::read_link(format!("/proc/self/ns/{name}"))?;
        ensure!(**seen != *host.to_string_lossy(), "the host's {name} namespace: {log}");
    }
    let nothing = "0000000000000000";
    let expected = format!(
        " pause  fd:  root/: pause \n/pause\nUid:\t65535\t65535\t65535\t65535\nGroups:\t \n\
         CapInh:\t{nothing}\nCapPrm:\t{nothing}\nCapEff:\t{nothing}\nCapBnd:\t{nothing}\nCapAmb:\t{nothing}\n\
         NoNewPrivs:\t1\nSeccomp:\t2\nchroot: can't execute '/bin/true': No such file or directory\n\
         touch: root/x: Read-only file system\n"
    );
    ensure!(rest == expected, "{rest:?} is not {expected:?}");
    // Nor may those look who run as the same user, without a capability.
    let answer = machine
        .exec(
            &user,
            &[
                "/bin/sh",
                "-c",
                "readlink /proc/1/root; cat /proc/1/maps; ls /proc/1/fd; true",
            ],
        )
        .await?;
    ensure!(answer.stdout.is_empty(), "{answer:?}");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

/// How long a spy watches while containers start and commands run beside it.
const WATCHED: usize = 12;

/// Looks, as often as a shell can, whether any process leads to a file that only the host has, or is the program.
fn watcher(machine: &Machine, own: &[&str]) -> String {
    let host = machine.dir.display().to_string();
    let marker = format!("{host}/marker");
    let known: String = own.iter().map(|program| format!("{program}|")).collect();
    format!(
        "while [ ! -e /tmp/enough ]; do for p in /proc/[0-9]*; do \
         for l in root cwd; do [ -e $p/$l{marker} ] && echo LEAK $p/$l; done; \
         for f in $p/fd/*; do case $(readlink $f) in {host}/*) echo LEAK $f;; esac; done; \
         case $(readlink $p/exe) in {known}/bin/busybox|'') ;; *) echo PROGRAM $(readlink $p/exe);; esac; \
         done; done; echo done"
    )
}

async fn what_is_about_to_run_beside_a_container_leads_nowhere() -> Result<()> {
    let machine = Machine::new().await?;
    std::fs::write(machine.dir.join("marker"), "")?;
    let pod = with_pid(&machine, "p", NamespaceMode::Pod);
    let sandbox = machine.run_pod(&pod).await?;
    let watching = machine
        .run(&sandbox, &pod, spy("spy", &watcher(&machine, &["/pause"])))
        .await?;
    for n in 0..WATCHED {
        let mut beside = script(
            &format!("beside-{n}"),
            "id -u; ls /proc/self/fd | wc -l; cat /proc/self/comm",
        );
        pid_mode(&mut beside, NamespaceMode::Pod, "");
        let beside = machine.run(&sandbox, &pod, beside).await?;
        for _ in 0..2 {
            let answer = machine.exec(&watching, &["echo", "in"]).await?;
            ensure!(answer.stdout == "in\n", "{answer:?}");
        }
        let log = machine.log(&machine.ended(&beside).await?)?;
        ensure!(log == "0\n4\ncat\n", "{log}");
    }
    machine.exec(&watching, &["touch", "/tmp/enough"]).await?;
    let log = machine.log(&machine.ended(&watching).await?)?;
    ensure!(!log.contains("LEAK") && log.ends_with("done\n"), "{log}");
    machine.remove(&sandbox).await?;

    // The same for a container that joins the namespace of one that may do everything.
    let pod = machine.pod("target");
    let sandbox = machine.run_pod(&pod).await?;
    let mut target = spy("target", &watcher(&machine, &[]));
    pid_mode(&mut target, NamespaceMode::Container, "");
    let target = machine.run(&sandbox, &pod, target).await?;
    for n in 0..WATCHED {
        let mut debug = script(
            &format!("debug-{n}"),
            "ps | grep -c watch; cat /proc/1/comm; ls -d /proc/self",
        );
        pid_mode(&mut debug, NamespaceMode::Target, &target);
        let debug = machine.run(&sandbox, &pod, debug).await?;
        let log = machine.log(&machine.ended(&debug).await?)?;
        ensure!(log.ends_with("sh\n/proc/self\n"), "{log}");
    }
    machine.exec(&target, &["touch", "/tmp/enough"]).await?;
    let log = machine.log(&machine.ended(&target).await?)?;
    ensure!(!log.contains("LEAK") && log.ends_with("done\n"), "{log}");
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn terminals_and_failures_of_joining_containers() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = with_pid(&machine, "p", NamespaceMode::Pod);
    let sandbox = machine.run_pod(&pod).await?;
    let mut terminal = script("terminal", "tty; echo controls > /dev/tty; exit 3");
    terminal.tty = true;
    terminal.stdin = true;
    pid_mode(&mut terminal, NamespaceMode::Pod, "");
    security(&mut terminal).run_as_user = Some(Int64Value { value: 1000 });
    let terminal = machine.run(&sandbox, &pod, terminal).await?;
    let status = machine.ended(&terminal).await?;
    let log = machine.log(&status)?.replace('\r', "");
    ensure!(
        log == "/dev/pts/0\ncontrols\n" && status.exit_code == 3,
        "{log} {status:?}"
    );

    let mut restricted = script(
        "restricted",
        "grep -E '^(Uid|CapEff|NoNewPrivs|Seccomp):' /proc/self/status; pwd",
    );
    pid_mode(&mut restricted, NamespaceMode::Pod, "");
    security(&mut restricted).run_as_user = Some(Int64Value { value: 1000 });
    security(&mut restricted).no_new_privs = true;
    restricted.working_dir = "/home/bob".into();
    let restricted = machine.run(&sandbox, &pod, restricted).await?;
    let log = machine.log(&machine.ended(&restricted).await?)?;
    let expected = "Uid:\t1000\t1000\t1000\t1000\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n/home/bob\n";
    ensure!(log == expected, "{log}");

    let mut absent = command("absent", &["no-such-program"]);
    pid_mode(&mut absent, NamespaceMode::Pod, "");
    let error = machine.run(&sandbox, &pod, absent).await.err().context("it ran")?;
    ensure!(
        format!("{error:#}").contains("executable file not found in $PATH"),
        "{error:#}"
    );
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}

async fn nobody_can_write_to_the_program_of_a_shim() -> Result<()> {
    let machine = Machine::new().await?;
    let sandbox = machine.run_pod(&machine.pod("p")).await?;
    for pid in shims(&machine.dir)? {
        let program = format!("/proc/{pid}/exe");
        ensure!(std::fs::metadata(&program)?.len() == std::fs::metadata("/proc/self/exe")?.len());
        // "Text file busy" would say that it could be written once the shim has ended.
        let error = std::fs::File::options()
            .append(true)
            .open(&program)
            .err()
            .context("it opens")?;
        let kinds = [
            std::io::ErrorKind::ReadOnlyFilesystem,
            std::io::ErrorKind::PermissionDenied,
        ];
        ensure!(kinds.contains(&error.kind()), "{error}");
    }
    machine.remove(&sandbox).await?;
    machine.assert_clean()
}
