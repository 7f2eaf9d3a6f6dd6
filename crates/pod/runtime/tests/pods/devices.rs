//! Devices by name: what drivers' specifications say gets into real containers.

use anyhow::{Context, Result, ensure};
use keelson_cri::v1::*;

use crate::support::{Machine, script};
use crate::tests;

tests![
    devices_by_name_come_with_all_they_need,
    devices_by_name_that_cannot_be_had_are_refused
];

/// A machine with a driver's specification.
async fn machine(devices: &str) -> Result<Machine> {
    let machine = Machine::new().await?;
    let dir = machine.dir.join("cdi");
    std::fs::create_dir_all(&dir)?;
    let spec = format!("cdiVersion: \"0.6.0\"\nkind: vendor.test/gift\ndevices:\n{devices}");
    std::fs::write(dir.join("vendor.yaml"), spec)?;
    Ok(machine)
}

fn asking(text: &str, device: &str) -> ContainerConfig {
    let mut container = script("c", text);
    container.cdi_devices.push(CdiDevice {
        name: format!("vendor.test/gift={device}"),
    });
    container
}

async fn devices_by_name_come_with_all_they_need() -> Result<()> {
    let machine = machine("").await?;
    let (seen, lib) = (machine.dir.join("seen"), machine.dir.join("lib"));
    std::fs::create_dir_all(&lib)?;
    std::fs::write(lib.join("lib.so"), "library")?;
    // The hook hears of the container on its standard input.
    let (seen_path, lib_path) = (seen.display(), lib.display());
    let devices = format!(
        r#"
- name: one
  containerEdits:
    env: ["GIFT=one"]
    deviceNodes: [{{path: /dev/gift, hostPath: /dev/zero}}, {{path: /dev/told, hostPath: /dev/kmsg, permissions: w}}]
    mounts: [{{hostPath: {lib_path}, containerPath: /usr/lib/gift, options: [ro, nosuid, nodev, rbind, rprivate]}}]
    additionalGIDs: [4711]
    hooks:
    - {{hookName: createRuntime, path: /bin/sh, args: [sh, -c, "cat > {seen_path}; echo $WHO >> {seen_path}"], env: ["WHO=vendor", "PATH=/usr/bin:/bin"]}}
    - {{hookName: createContainer, path: /bin/sh, args: [sh, -c, "echo inside >> {seen_path}"], env: ["PATH=/usr/bin:/bin"], timeout: 20}}
"#
    );
    let spec = format!("cdiVersion: \"0.6.0\"\nkind: vendor.test/gift\ndevices:{devices}");
    std::fs::write(machine.dir.join("cdi/vendor.yaml"), spec)?;
    let text = "echo $GIFT; head -c 3 /dev/gift | wc -c; cat /usr/lib/gift/lib.so; echo; \
                touch /usr/lib/gift/x 2>/dev/null || echo readonly; (exec 3>/dev/told) && echo writable; head -c 1 /dev/told >/dev/null 2>&1 || echo unreadable; id -G";
    let (log, status) = machine.shell(&machine.pod("p"), asking(text, "one")).await?;
    ensure!(status.exit_code == 0, "{status:?}");
    ensure!(
        log.starts_with("one\n3\nlibrary\nreadonly\nwritable\nunreadable\n"),
        "{log}"
    );
    ensure!(log.lines().last().is_some_and(|g| g.contains("4711")), "{log}");
    let told = std::fs::read_to_string(&seen).context("no hook was run")?;
    ensure!(told.contains("\"ociVersion\"") && told.contains("vendor\n"), "{told}");
    ensure!(told.ends_with("inside\n"), "{told}");
    Ok(())
}

async fn devices_by_name_that_cannot_be_had_are_refused() -> Result<()> {
    let devices = r#"
- name: late
  containerEdits: {hooks: [{hookName: poststop, path: /bin/true}]}
- name: failing
  containerEdits: {hooks: [{hookName: createRuntime, path: /bin/false}]}
- name: slow
  containerEdits: {hooks: [{hookName: createRuntime, path: /bin/sleep, args: [sleep, "60"], timeout: 1}]}
"#;
    let machine = machine(devices).await?;
    for (device, why) in [
        (
            "none",
            "CDI device injection failed: unresolvable CDI devices vendor.test/gift=none",
        ),
        ("late", "poststop hooks are not supported"),
        ("failing", "hook"),
        ("slow", "timeout"),
    ] {
        let pod = machine.pod(device);
        let sandbox = machine.run_pod(&pod).await?;
        let ran = machine.run(&sandbox, &pod, asking("true", device)).await;
        let error = format!("{:#}", ran.err().with_context(|| format!("{device} ran"))?);
        ensure!(error.contains(why), "{device}: {error}");
        machine.remove(&sandbox).await?;
    }
    // The machine goes on.
    let (log, _) = machine.shell(&machine.pod("after"), script("c", "echo fine")).await?;
    ensure!(log == "fine\n", "{log}");
    Ok(())
}
