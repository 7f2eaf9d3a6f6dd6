//! CPU time of other processes, in nanoseconds, and on which cores they run.
//!
//! The kernel's clock of a whole process is read: it counts threads that have ended, which the files of a process's threads
//! (`/proc/PID/task/*/schedstat`) don't.

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use std::sync::OnceLock;
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

/// The cores that this process was started on, whatever it has confined itself to since.
pub fn all_cores() -> &'static [usize] {
    static CORES: OnceLock<Vec<usize>> = OnceLock::new();
    CORES.get_or_init(|| {
        let mine = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
        (0..CpuSet::count())
            .filter(|core| mine.is_set(*core).unwrap_or_default())
            .collect()
    })
}

/// Which of these servers have, and which the load generator: the last is its own where there are several.
pub fn shared(all: &[usize]) -> (&[usize], &[usize]) {
    match all {
        [servers @ .., _] if !servers.is_empty() => all.split_at(servers.len()),
        _ => (all, all),
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
    fn the_load_generator_has_a_core_of_its_own_where_there_are_two_and_goes_on_having_it() {
        assert_eq!(shared(&[2, 3, 5]), (&[2, 3][..], &[5][..]));
        assert_eq!(shared(&[4]), (&[4][..], &[4][..]));
        std::thread::spawn(|| {
            let all = all_cores();
            let (_, own) = shared(all);
            stay_on(own).unwrap();
            assert_eq!(std::thread::available_parallelism().unwrap().get(), own.len());
            assert_eq!(all_cores(), all);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn time_of_threads_that_have_ended_counts() {
        let before = spent(&[std::process::id()]).unwrap();
        let busy = move || {
            let began = Instant::now();
            while own() - before < Duration::from_millis(30) && began.elapsed() < Duration::from_secs(20) {
                std::hint::spin_loop();
            }
        };
        std::thread::spawn(busy).join().unwrap();
        assert!(spent(&[std::process::id()]).unwrap() - before >= Duration::from_millis(30));
        assert!(spent(&[1 << 27]).is_err());
    }
}
