//! systemd's logind: says that the machine is about to stop, and waits with it as long as somebody holds a lock, but no longer
//! than it is told to.

use super::bus::{Bus, DAEMON, Failure, Place, wire};
use super::{Power, Sources};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use wire::{Arg, Message};

const LOGIND: Place = Place {
    name: "org.freedesktop.login1",
    path: "/org/freedesktop/login1",
};
const MANAGER: &str = "org.freedesktop.login1.Manager";
const SYSTEMD: Place = Place {
    name: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
};

/// How often it is looked whether logind has read its settings anew; each time twice as long after.
const LOOKS: u32 = 5;
const FIRST_LOOK: Duration = Duration::from_millis(100);

pub struct Logind {
    bus: Bus,
    /// What logind is called on the bus. Signals of others say nothing: anybody may send them.
    owner: String,
    lock: Option<OwnedFd>,
}

/// Why the machine's end can't be held up.
#[derive(Debug)]
pub enum Problem {
    /// There is no logind on this machine.
    Absent,
    Other(String),
}

impl Logind {
    /// Connects, and holds the machine's end up from now on, for as long as is wanted.
    pub async fn connect(sources: &Sources, wanted: Duration) -> Result<Logind, Problem> {
        let bus = match Bus::connect(&sources.bus).await {
            Ok(bus) => bus,
            Err(Failure::Broken(e)) if e.kind() == io::ErrorKind::NotFound => return Err(Problem::Absent),
            Err(e) => return Err(Problem::Other(format!("the system's bus: {e}"))),
        };
        let mut logind = Logind {
            bus,
            owner: String::new(),
            lock: None,
        };
        match logind.watch().await {
            Err(Failure::Refused(name, _)) if name == "org.freedesktop.DBus.Error.ServiceUnknown" => {
                return Err(Problem::Absent);
            }
            other => other.map_err(|e| Problem::Other(format!("failed to monitor shutdown: {e}")))?,
        }
        logind.allow(wanted, &sources.settings).await.map_err(Problem::Other)?;
        logind.hold().await.map_err(Problem::Other)?;
        Ok(logind)
    }

    /// Asks for signals, and who sends them.
    async fn watch(&mut self) -> Result<(), Failure> {
        let (bus, logind) = (DAEMON.name, LOGIND.name);
        for rule in [
            format!("type='signal',sender='{logind}',interface='{MANAGER}',member='PrepareForShutdown'"),
            format!("type='signal',sender='{bus}',interface='{bus}',member='NameOwnerChanged',arg0='{logind}'"),
        ] {
            self.bus.call(DAEMON, bus, "AddMatch", &[Arg::Text(&rule)]).await?;
        }
        // Starts it, where it is started when it is asked.
        self.delay().await?;
        let asked = self.bus.call(DAEMON, bus, "GetNameOwner", &[Arg::Text(logind)]).await?;
        self.owner = asked.0.first_text();
        Ok(())
    }

    /// How long logind waits at most.
    async fn delay(&mut self) -> Result<Duration, Failure> {
        let args = [Arg::Text(MANAGER), Arg::Text("InhibitDelayMaxUSec")];
        let (answer, _) = self
            .bus
            .call(LOGIND, "org.freedesktop.DBus.Properties", "Get", &args)
            .await?;
        let wrong = |e: wire::Wrong| io::Error::other(e.to_string());
        let mut body = answer.body();
        if answer.signature != "v" || body.signature().map_err(wrong)? != "t" {
            return Err(io::Error::other("InhibitDelayMaxUSec from logind is not a uint64 as expected").into());
        }
        Ok(Duration::from_micros(body.u64().map_err(wrong)?))
    }

    /// Has logind wait for so long, where it would wait shorter.
    async fn allow(&mut self, wanted: Duration, settings: &Path) -> Result<(), String> {
        let read = |e: Failure| format!("failed reading InhibitDelayMaxUSec property from logind: {e}");
        if self.delay().await.map_err(read)? >= wanted {
            return Ok(());
        }
        super::settings::write(settings, wanted)
            .map_err(|e| format!("unable to override inhibit delay by shutdown manager: {e}"))?;
        let args = [
            Arg::Text("systemd-logind.service"),
            Arg::Text("all"),
            Arg::I32(nix::sys::signal::Signal::SIGHUP as i32),
        ];
        let reloaded = self
            .bus
            .call(SYSTEMD, "org.freedesktop.systemd1.Manager", "KillUnit", &args)
            .await;
        reloaded.map_err(|e| format!("unable to reload logind conf: {e}"))?;
        let (mut pause, mut now) = (FIRST_LOOK, Duration::ZERO);
        for look in 0..LOOKS {
            if look > 0 {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            now = self.delay().await.map_err(read)?;
            if now >= wanted {
                return Ok(());
            }
        }
        Err(format!(
            "node shutdown manager was timed out after {LOOKS} attempts waiting for logind InhibitDelayMaxSec to update to {} \
             (ShutdownGracePeriod), current value is {}",
            crate::go_duration(wanted),
            crate::go_duration(now)
        ))
    }

    /// What a signal says of the machine.
    fn read(&mut self, signal: &Message) -> Option<bool> {
        let mut body = signal.body();
        match (signal.interface.as_str(), signal.member.as_str()) {
            (MANAGER, "PrepareForShutdown") if signal.sender == self.owner && signal.path == LOGIND.path => {
                match signal.signature.as_str() {
                    "b" => body.u32().ok().map(|yes| yes != 0),
                    _ => None,
                }
            }
            ("org.freedesktop.DBus", "NameOwnerChanged") if signal.sender == DAEMON.name => {
                // Of whom, who it was, who it is.
                if body.text().is_ok_and(|name| name == LOGIND.name) {
                    _ = body.text();
                    self.owner = body.text().unwrap_or_default();
                }
                None
            }
            _ => None,
        }
    }
}

#[tonic::async_trait]
impl Power for Logind {
    async fn next(&mut self) -> Result<bool, String> {
        loop {
            let signal = self.bus.signal().await.map_err(|e| format!("the system's bus: {e}"))?;
            if let Some(stops) = self.read(&signal) {
                return Ok(stops);
            }
        }
    }

    async fn hold(&mut self) -> Result<(), String> {
        let args = [
            "shutdown",
            "kubelet",
            "Kubelet needs time to handle node shutdown",
            "delay",
        ]
        .map(Arg::Text);
        let asked = self.bus.call(LOGIND, MANAGER, "Inhibit", &args).await;
        let (_, descriptors) = asked.map_err(|e| format!("failed creating systemd inhibitor: {e}"))?;
        let lock = descriptors.into_iter().next();
        self.lock = Some(lock.ok_or("failed creating systemd inhibitor: there is no lock in the answer")?);
        Ok(())
    }

    fn release(&mut self) {
        self.lock = None;
    }
}
