//! Where a row's CPU time goes: perf looks at the server while the row is measured.

use crate::cpu;
use crate::flame::Frames;
use crate::measure::{Bench, Sizes};
use crate::rounds::Case;
use crate::side::{Running, Side};
use crate::target::Target;
use crate::world::World;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Looks a second.
const OFTEN: &str = "997";

/// `unwind`: how perf finds the callers, by frame pointers (`fp`) or by the tables for unwinding (`dwarf`), which programs have anyway.
pub async fn run(side: &Side, dir: &Path, out: &Path, cases: &[Case], sizes: Sizes, unwind: &str) -> Result<()> {
    fs::create_dir_all(out)?;
    let (servers, own) = cpu::shared(cpu::all_cores());
    let dir = dir.join(format!("{}-{}", side.name, std::process::id()));
    let running = Running::start(side, &dir, servers).await?;
    cpu::stay_on(own)?;
    let mut bench = Bench {
        world: World::new(Target::read(&running.admin, false)?, &sizes),
        sizes,
        http1: false,
        servers: running.pids(),
        users: Some(running.users.clone()),
    };
    for case in cases {
        // Once for what has to be there, which isn't looked at.
        bench.measure(case.row, case.clients).await?;
        let data = dir.join("perf.data");
        let mut perf = record(&running.pids(), &data, unwind)?;
        let measured = bench.measure(case.row, case.clients).await;
        kill(Pid::from_raw(perf.id() as i32), Signal::SIGINT)?;
        perf.wait()?;
        let (name, figures) = measured?.pop().context("no figure")?;
        let script = Command::new("perf")
            .args(["script", "-F", "comm,ip,sym", "-i"])
            .arg(&data)
            .output()?;
        let frames = Frames::of_perf(&String::from_utf8_lossy(&script.stdout));
        ensure!(
            frames.samples() > 0,
            "perf saw nothing: {}",
            String::from_utf8_lossy(&script.stderr)
        );
        let title = format!(
            "{name}, {} clients: {} samples, {:.0} µs of the server's CPU time a request",
            case.clients,
            frames.samples(),
            figures.server_us
        );
        let file = out.join(format!("{}-{}.svg", file_name(&name), case.clients));
        fs::write(&file, frames.svg(&title))?;
        println!("{}: {title}", file.display());
    }
    Ok(())
}

fn record(pids: &[u32], into: &Path, unwind: &str) -> Result<Child> {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let perf = Command::new("perf")
        .args([
            "record",
            "-q",
            "-F",
            OFTEN,
            "--call-graph",
            unwind,
            "-p",
            &pids.join(","),
            "-o",
        ])
        .arg(into)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    perf.context("starting perf")
}

fn file_name(row: &str) -> String {
    let name: String = row
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    let parts: Vec<&str> = name.split('-').filter(|part| !part.is_empty()).collect();
    parts.join("-")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_row_is_a_files_name() {
        assert_eq!(super::file_name("list, JSON, at hand (RV=0)"), "list-json-at-hand-rv-0");
    }
}
