//! systemd's watchdog (`WatchdogSec=` of a unit): the service manager is told twice in its time that this program is well, and ends
//! it if it hears nothing.

use anyhow::{Context, bail};
use std::time::Duration;
use tokio::task::JoinSet;

/// Shorter times can't be kept: upstream's bound.
const SHORTEST: Duration = Duration::from_secs(1);
/// How often it is tried to tell, and how long apart.
const TRIES: u32 = 2;
const APART: Duration = Duration::from_secs(1);

/// How often it wants to hear of this process; `None`: not at all. Fails on what it can't have meant.
pub fn wanted() -> anyhow::Result<Option<Duration>> {
    let said = |name: &str| keelson_sys::handed::said(name).map(|v| v.to_string_lossy().into_owned());
    read(said("WATCHDOG_USEC"), said("WATCHDOG_PID"), std::process::id())
}

fn read(usec: Option<String>, pid: Option<String>, own: u32) -> anyhow::Result<Option<Duration>> {
    let Some(usec) = usec else { return Ok(None) };
    let time: u64 = usec
        .parse()
        .with_context(|| format!("configure watchdog: error converting WATCHDOG_USEC: {usec:?}"))?;
    if time == 0 {
        bail!("configure watchdog: error WATCHDOG_USEC must be a positive number");
    }
    if let Some(pid) = pid {
        let pid: u32 = pid
            .parse()
            .with_context(|| format!("configure watchdog: error converting WATCHDOG_PID: {pid:?}"))?;
        // Another process of the unit is meant.
        if pid != own {
            return Ok(None);
        }
    }
    let time = Duration::from_micros(time);
    if time <= SHORTEST {
        bail!("configure watchdog timeout too small: {time:?}: WatchdogSec of the unit has to be more than a second");
    }
    Ok(Some(time / 2))
}

/// Tells, as long as `failing` names nothing, until the process ends.
pub fn start(every: Option<Duration>, failing: impl Fn() -> Vec<&'static str> + Send + 'static) {
    let Some(every) = every else { return };
    tracing::info!(?every, "systemd's watchdog is told");
    tokio::spawn(run(every, failing, told));
}

/// Tells while a program that was begun anew starts, until what is returned is dropped: the manager goes on counting from the one
/// before it, which has the same number.
pub fn meanwhile(every: Option<Duration>) -> JoinSet<()> {
    let mut telling = JoinSet::new();
    if let Some(every) = every.filter(|_| crate::process::times_begun_anew() > 0) {
        telling.spawn(run(every, Vec::new, told));
    }
    telling
}

fn told() -> std::io::Result<()> {
    crate::notify::try_tell("WATCHDOG=1", Some(APART))
}

async fn run(every: Duration, failing: impl Fn() -> Vec<&'static str>, tell: impl Fn() -> std::io::Result<()>) {
    let mut turn = tokio::time::interval(every);
    // Told late, the next is still in time.
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        let failing = failing();
        if !failing.is_empty() {
            tracing::error!(?failing, "systemd's watchdog isn't told: not all is well");
            continue;
        }
        for tried in 1..=TRIES {
            match tell() {
                Ok(()) => break,
                Err(error) if tried == TRIES => tracing::error!(%error, "systemd's watchdog can't be told"),
                Err(_) => tokio::time::sleep(APART).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;

    #[test]
    fn a_unit_says_how_often() {
        let of = |usec: &str, pid: &str| {
            let said = |t: &str| Some(t.to_owned()).filter(|t| !t.is_empty());
            read(said(usec), said(pid), 7).map_err(|e| format!("{e:#}"))
        };
        assert_eq!(of("", "7"), Ok(None));
        assert_eq!(of("30000000", "7"), Ok(Some(Duration::from_secs(15))));
        assert_eq!(of("30000000", ""), Ok(Some(Duration::from_secs(15))));
        assert_eq!(of("30000000", "8"), Ok(None));
        for (usec, pid, why) in [
            ("1000000", "7", "timeout too small"),
            ("0", "7", "positive"),
            ("x", "7", "WATCHDOG_USEC"),
            ("30000000", "x", "WATCHDOG_PID"),
        ] {
            let refused = of(usec, pid).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_told_while_all_is_well() {
        let (told, ill) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (count, failing) = (told.clone(), ill.clone());
        let every = Duration::from_secs(10);
        let task = tokio::spawn(run(
            every,
            move || failing.lock().clone(),
            move || {
                *count.lock() += 1;
                // The first try of the second turn fails.
                match *count.lock() {
                    2 => Err(std::io::ErrorKind::WouldBlock.into()),
                    _ => Ok(()),
                }
            },
        ));
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(*told.lock(), 3, "at once, and twice in the second turn");
        ill.lock().push("kubelet");
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(*told.lock(), 3);
        ill.lock().clear();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(*told.lock(), 4);
        task.abort();
    }
}
