//! Parts of times and durations.

use super::super::value::{CelError, Res, Val};
use super::Found;
use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use keelson_api::Time;

fn zone(name: &str) -> Res<TimeZone> {
    let bad = || CelError::new(format!("unknown time zone {name}"));
    if name.is_empty() || name == "UTC" || name == "Z" {
        return Ok(TimeZone::UTC);
    }
    if let Some((hours, minutes)) = name.split_once(':') {
        let negative = hours.starts_with('-');
        let h: i32 = hours.trim_start_matches(['+', '-']).parse().map_err(|_| bad())?;
        let m: i32 = minutes.parse().map_err(|_| bad())?;
        let seconds = (h * 60 + m) * 60 * if negative { -1 } else { 1 };
        return Offset::from_seconds(seconds).map(TimeZone::fixed).map_err(|_| bad());
    }
    TimeZone::get(name).map_err(|_| bad())
}

pub fn of_timestamp<'a>(name: &str, t: &Time, args: &[Val<'a>]) -> Found<'a> {
    let tz = match args {
        [] => Ok(TimeZone::UTC),
        [Val::Str(s)] => zone(s),
        _ => return None,
    };
    if !name.starts_with("get") {
        return None;
    }
    let civil = tz.and_then(|tz| {
        let t = Timestamp::new(t.seconds, t.nanos as i32).map_err(|e| CelError::new(e.to_string()))?;
        Ok(t.to_zoned(tz).datetime())
    });
    let civil = match civil {
        Ok(c) => c,
        Err(e) => return Some(Err(e)),
    };
    Some(Ok(Val::Int(match name {
        "getFullYear" => civil.year().into(),
        "getMonth" => i64::from(civil.month()) - 1,
        "getDayOfYear" => i64::from(civil.day_of_year()) - 1,
        "getDate" => civil.day().into(),
        "getDayOfMonth" => i64::from(civil.day()) - 1,
        "getDayOfWeek" => civil.weekday().to_sunday_zero_offset().into(),
        "getHours" => civil.hour().into(),
        "getMinutes" => civil.minute().into(),
        "getSeconds" => civil.second().into(),
        "getMilliseconds" => i64::from(civil.subsec_nanosecond()) / 1_000_000,
        _ => return None,
    })))
}

pub fn of_duration<'a>(name: &str, nanos: i64, args: &[Val<'a>]) -> Found<'a> {
    if !args.is_empty() {
        return None;
    }
    Some(Ok(Val::Int(match name {
        "getHours" => nanos / 3_600_000_000_000,
        "getMinutes" => nanos / 60_000_000_000,
        "getSeconds" => nanos / 1_000_000_000,
        "getMilliseconds" => nanos / 1_000_000,
        _ => return None,
    })))
}
