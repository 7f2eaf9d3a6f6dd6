//! What a container finds beside itself in namespaces that it shares leads nowhere outside of its pod, whatever
//! capabilities it has been given.

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;

use crate::support::{Machine, command, pid_mode, script, security, with_pid};
use crate::tests;

tests![the_first_process_of_a_shared_namespace_leads_nowhere];

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
