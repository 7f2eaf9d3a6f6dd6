//! The health of drivers' devices, as they tell it. What isn't told again in time is not known.

use super::Claims;
use super::info::Info;
use k8s_openapi::api::core::v1::ResourceHealth;
use keelson_devices::health::{DeviceHealth, HealthStatus};
use keelson_devices::{Driver, HealthService};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// How long what was told of a device counts, unless the driver says otherwise.
const COUNTS: Duration = Duration::from_secs(30);
/// How many devices of a driver are followed, and how long the names and what is told of one may be.
const MOST: usize = 16384;
const LONGEST: usize = 1024;
/// How long until a driver is asked again whose stream has ended.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    health: HealthStatus,
    message: String,
    counts: Duration,
    at: Instant,
}

/// By pool and device.
type OfDriver = BTreeMap<(String, String), Told>;

#[derive(Default)]
pub struct Health(Mutex<BTreeMap<String, OfDriver>>);

impl Health {
    /// Takes what a driver tells. Returns the devices that are otherwise than before.
    fn take(&self, driver: &str, devices: Vec<DeviceHealth>, now: Instant) -> BTreeSet<(String, String)> {
        let mut all = self.0.lock();
        let known = all.entry(driver.to_owned()).or_default();
        let (mut changed, mut named) = (BTreeSet::new(), BTreeSet::new());
        for d in devices {
            let health = d.health();
            let id = d.device.unwrap_or_default();
            if id.pool_name.len() + id.device_name.len() > LONGEST {
                // No claim has a device by this name.
                continue;
            }
            let key = (id.pool_name, id.device_name);
            named.insert(key.clone());
            let told = Told {
                health,
                message: shorten(d.message),
                counts: match u64::try_from(d.health_check_timeout_seconds) {
                    Ok(0) | Err(_) => COUNTS,
                    Ok(seconds) => Duration::from_secs(seconds),
                },
                at: now,
            };
            let old = known.get(&key);
            if old.is_none() && known.len() >= MOST {
                continue;
            }
            if old.is_none_or(|o| (o.health, &o.message) != (told.health, &told.message)) {
                changed.insert(key.clone());
            }
            known.insert(key, told);
        }
        known.retain(|key, told| {
            let stays = named.contains(key) || now.duration_since(told.at) <= told.counts;
            if !stays {
                changed.insert(key.clone());
            }
            stays
        });
        changed
    }

    fn forget(&self, driver: &str) -> BTreeSet<(String, String)> {
        let known = self.0.lock().remove(driver).unwrap_or_default();
        known.into_keys().collect()
    }

    /// How the devices of a claim's request are.
    pub fn of(&self, info: &Info, request: &str) -> Vec<ResourceHealth> {
        let (all, now) = (self.0.lock(), Instant::now());
        let mut list: Vec<ResourceHealth> = Vec::new();
        for (driver, devices) in &info.drivers {
            for d in devices.iter().filter(|d| d.is_for(request)) {
                let told = all.get(driver).and_then(|o| o.get(&(d.pool.clone(), d.device.clone())));
                let told = told.filter(|t| now.duration_since(t.at) <= t.counts);
                let named = || format!("{driver}/{}/{}", d.pool, d.device);
                let id = d.cdi.first().cloned().unwrap_or_else(named);
                if list.iter().any(|h| h.resource_id == id) {
                    continue;
                }
                list.push(ResourceHealth {
                    health: Some(word(told.map_or(HealthStatus::Unknown, |t| t.health)).into()),
                    message: told.map(|t| t.message.clone()).filter(|m| !m.is_empty()),
                    resource_id: id,
                });
            }
        }
        list
    }
}

fn word(health: HealthStatus) -> &'static str {
    match health {
        HealthStatus::Healthy => "Healthy",
        HealthStatus::Unhealthy => "Unhealthy",
        HealthStatus::Unknown => "Unknown",
    }
}

fn shorten(mut message: String) -> String {
    if message.len() > LONGEST {
        message.truncate(message.floor_char_boundary(LONGEST - 3));
        message.push_str("...");
    }
    message
}

impl Claims {
    /// Follows a driver's devices until it goes; again if it ends meanwhile.
    pub(super) async fn follow_health(&self, name: &str, driver: &Driver, service: HealthService) {
        loop {
            let ended = self.hear(name, driver, service).await;
            let changed = self.health.forget(name);
            self.wake_users(name, &changed);
            match ended {
                Err(e) if e.code() == tonic::Code::Unimplemented => return,
                Err(e) => tracing::info!(
                    driver = name,
                    "the health of devices isn't told: {}",
                    crate::rpc_text(&e)
                ),
                Ok(()) => {}
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn hear(&self, name: &str, driver: &Driver, service: HealthService) -> Result<(), tonic::Status> {
        let mut stream = driver.health(service).await?;
        while let Some(devices) = stream.next().await? {
            let changed = self.health.take(name, devices, Instant::now());
            self.wake_users(name, &changed);
        }
        Ok(())
    }

    /// A driver has gone: nothing is known of its devices' health.
    pub(super) fn forget_health(&self, name: &str) {
        let changed = self.health.forget(name);
        self.wake_users(name, &changed);
    }

    fn wake_users(&self, driver: &str, devices: &BTreeSet<(String, String)>) {
        let users = self.known.lock().users(driver, devices);
        users.iter().for_each(|uid| (self.wake)(uid));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claims::info::Device;
    use keelson_devices::health::DeviceIdentifier;

    fn told(device: &str, health: HealthStatus, message: &str) -> DeviceHealth {
        DeviceHealth {
            device: Some(DeviceIdentifier {
                pool_name: "n".into(),
                device_name: device.into(),
            }),
            health: health as i32,
            message: message.into(),
            ..DeviceHealth::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_told_counts_for_a_while() {
        let health = Health::default();
        let info = Info {
            drivers: BTreeMap::from([(
                "d".into(),
                vec![
                    Device {
                        pool: "n".into(),
                        device: "x".into(),
                        requests: vec!["r".into()],
                        cdi: vec!["v/c=x".into()],
                        ..Device::default()
                    },
                    Device {
                        pool: "n".into(),
                        device: "y".into(),
                        ..Device::default()
                    },
                ],
            )]),
            ..Info::default()
        };
        let of = |request| {
            let list = health.of(&info, request);
            let text = |h: ResourceHealth| {
                format!(
                    "{} {} {}",
                    h.resource_id,
                    h.health.unwrap(),
                    h.message.unwrap_or_default()
                )
            };
            list.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(of("r"), ["v/c=x Unknown ", "d/n/y Unknown "]);
        let now = Instant::now();
        let list = vec![
            told("x", HealthStatus::Unhealthy, "hot"),
            told("y", HealthStatus::Healthy, ""),
        ];
        assert_eq!(health.take("d", list.clone(), now).len(), 2);
        assert!(health.take("d", list, now).is_empty(), "nothing is new");
        assert_eq!(of(""), ["v/c=x Unhealthy hot", "d/n/y Healthy "]);
        assert_eq!(of("other"), ["d/n/y Healthy "]);
        tokio::time::advance(COUNTS + Duration::from_secs(1)).await;
        assert_eq!(of("r"), ["v/c=x Unknown ", "d/n/y Unknown "]);
        let long = told(&"x".repeat(LONGEST), HealthStatus::Healthy, "");
        assert!(health.take("d", vec![long], now).is_empty());
        assert_eq!(shorten("é".repeat(600)).len(), 1023);
    }
}
