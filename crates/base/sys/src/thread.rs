//! A thread's part of the processor.

use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// What the calling thread has had, in all.
pub fn had() -> Duration {
    // The calling thread's clock is always there.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Gives the calling thread a priority from -20, the highest, to 19 (setpriority(2)); a higher one than it has wants `CAP_SYS_NICE`.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // SAFETY: a call with numbers only; 0 is the calling thread.
    match unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_told_what_it_had_and_comes_behind() {
        std::thread::spawn(|| {
            let before = had();
            let mut sum = 0_u64;
            while had() < before + Duration::from_millis(2) {
                sum = std::hint::black_box(sum + 1);
            }
            set_nice(10).unwrap();
            // SAFETY: a call with numbers only.
            assert_eq!(unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }, 10);
        })
        .join()
        .unwrap();
        // SAFETY: as above. The others keep theirs.
        assert!(unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) } < 10);
    }
}
