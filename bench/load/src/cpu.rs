//! CPU time of other processes, in nanoseconds, and on which cores they run.
//!
//! The kernel's clock of a whole process is read: it counts threads that have ended, which the files of a process's threads
//! (`/proc/PID/task/*/schedstat`) don't.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::time::Duration;

/// What all of these processes have had so far.
pub fn spent(processes: &[u32]) -> Result<Duration> {
    let one = |process: &u32| {
        let clock = clock_getcpuclockid(Pid::from_raw(*process as i32));
        let time = clock.and_then(clock_gettime);
        Ok(Duration::from(
            time.with_context(|| format!("the CPU time of process {process}"))?,
        ))
    };
    processes.iter().map(one).sum()
}

/// What this process has had so far.
pub fn own() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Which cores servers have, and which the load generator: the last is its own where there are several.
pub fn cores() -> (Vec<usize>, Vec<usize>) {
    let all: Vec<usize> = (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    match all.as_slice() {
        [servers @ .., own] if !servers.is_empty() => (servers.to_vec(), vec![*own]),
        _ => (all.clone(), all),
    }
}

/// This thread runs on these cores from now on, and so does what it starts.
pub fn stay_on(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("running on cores {cores:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn time_of_threads_that_have_ended_counts() {
        let before = spent(&[std::process::id()]).unwrap();
        let busy = || {
            let began = Instant::now();
            while own() - before < Duration::from_millis(30) && began.elapsed() < Duration::from_secs(20) {
                std::hint::spin_loop();
            }
        };
        std::thread::spawn(busy).join().unwrap();
        assert!(spent(&[std::process::id()]).unwrap() - before >= Duration::from_millis(30));
        assert!(spent(&[u32::MAX >> 1]).is_err());
    }
}
