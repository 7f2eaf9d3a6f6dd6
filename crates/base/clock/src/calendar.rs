//! Waiting for a date. Tokio's timers measure durations: they don't see the clock being set, and stand still while the
//! machine sleeps. The kernel's alarms follow the calendar through both.

use jiff::{SignedDuration, Timestamp};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long to wait without an alarm, for want of descriptors, before the caller looks again.
const BLIND: Duration = Duration::from_secs(60);

/// Waits until the calendar shows the date, or until somebody sets the clock: look at it again.
pub async fn sleep_until(date: Timestamp) {
    let left = date.duration_since(crate::now()).max(SignedDuration::ZERO);
    if left.is_zero() {
        return;
    }
    let left = left.unsigned_abs();
    if crate::is_simulated() {
        // Tokio's clock counts in milliseconds, the simulated one in less.
        return tokio::time::sleep(left + Duration::from_millis(1)).await;
    }
    let gone_off = match alarm(date) {
        Ok(alarm) => alarm.readable().await.is_ok(),
        Err(_) => false,
    };
    if !gone_off {
        tokio::time::sleep(left.min(BLIND)).await;
    }
}

// Deprecated for types whose descriptor may change; this one's does not, and the replacement is `unsafe`.
#[expect(deprecated)]
fn alarm(date: Timestamp) -> std::io::Result<AsyncFd<OwnedFd>> {
    let timer = TimerFd::new(
        ClockId::CLOCK_REALTIME,
        TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK,
    )?;
    // Rounded up: an alarm that goes off early finds nothing due.
    let at = TimeSpec::new(date.as_second().saturating_add(1), 0);
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    timer.set(Expiration::OneShot(at), flags)?;
    AsyncFd::with_interest(timer.into(), Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_calendar_is_followed() {
        let begin = Timestamp::now();
        sleep_until(begin - SignedDuration::from_hours(1)).await;
        assert!(Timestamp::now().duration_since(begin) < SignedDuration::from_secs(60));
        let date = begin + SignedDuration::from_millis(300);
        sleep_until(date).await;
        assert!(Timestamp::now() >= date);
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulated_one_too() {
        let _clock = crate::simulate("2030-01-01T00:00:00Z".parse().expect("a date"));
        let date = crate::now() + SignedDuration::from_hours(400 * 24);
        sleep_until(date).await;
        let late = crate::now().duration_since(date);
        assert!(
            late >= SignedDuration::ZERO && late < SignedDuration::from_secs(1),
            "{late}"
        );
    }
}
