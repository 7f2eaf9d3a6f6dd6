//! The life of pods and containers.

use anyhow::{Result, ensure};
use keelson_cri::v1::*;

use crate::support::{IMAGE, Machine, command, script, security, shims};
use crate::tests;

tests![a_pod_runs_and_leaves_nothing];

async fn a_pod_runs_and_leaves_nothing() -> Result<()> {
    let machine = Machine::new().await?;
    let pod = machine.pod("first");
    let (log, status) = machine
        .shell(&pod, script("c", "echo out; echo err >&2; hostname; pwd; cat /etc/hostname; printf rest; exit 3"))
        .await?;
    ensure!(log == "out\nerr\nfirst\n/work/dir\nfirst\nrest\n" || log.starts_with("err\nout"), "log: {log:?}");
    ensure!(status.exit_code == 3 && status.reason == "Error", "{status:?}");
    ensure!(status.image.as_ref().is_some_and(|i| i.image == IMAGE), "{status:?}");
    machine.assert_clean()
}

#[allow(unused)]
fn unused() {
    let _ = (command, security, shims);
}
