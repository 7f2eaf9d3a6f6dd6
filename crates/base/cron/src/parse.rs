//! From a text to a schedule, with the complaints of upstream's library.

use crate::{Fields, STAR, Schedule, ScheduleError, zone};
use jiff::SignedDuration;
use jiff::tz::TimeZone;

/// The values of a field, and their names if they have any.
struct Bounds {
    min: u64,
    max: u64,
    names: &'static [&'static str],
}

const fn bounds(min: u64, max: u64, names: &'static [&'static str]) -> Bounds {
    Bounds { min, max, names }
}

const MINUTE: Bounds = bounds(0, 59, &[]);
const HOUR: Bounds = bounds(0, 23, &[]);
const DAY: Bounds = bounds(1, 31, &[]);
const MONTH: Bounds = bounds(
    1,
    12,
    &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
);
const WEEKDAY: Bounds = bounds(0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]);

pub fn schedule(text: &str, mut zone: TimeZone) -> Result<Schedule, ScheduleError> {
    if text.is_empty() {
        return error("empty spec string".into());
    }
    let mut text = text;
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        let (head, rest) = match text.find(' ') {
            Some(at) => text.split_at(at),
            // The library cuts at a blank that isn't there; its caller turns the panic into this.
            None => {
                return error("invalid schedule format: runtime error: slice bounds out of range [:-1]".into());
            }
        };
        let name = head.split_once('=').map_or("", |(_, name)| name);
        zone = match name {
            "Local" => TimeZone::system(),
            _ => zone::load(name).map_err(|e| ScheduleError(format!("provided bad location {name}: {e}")))?,
        };
        text = rest.trim();
    }
    if text.starts_with('@') {
        return descriptor(text, zone);
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields[..] else {
        let (count, all) = (fields.len(), fields.join(" "));
        return error(format!("expected exactly 5 fields, found {count}: [{all}]"));
    };
    Ok(Schedule::Fields(Fields {
        minute: field(minute, &MINUTE)?,
        hour: field(hour, &HOUR)?,
        day: field(day, &DAY)?,
        month: field(month, &MONTH)?,
        weekday: field(weekday, &WEEKDAY)?,
        zone,
    }))
}

fn error<T>(text: String) -> Result<T, ScheduleError> {
    Err(ScheduleError(text))
}

fn descriptor(text: &str, zone: TimeZone) -> Result<Schedule, ScheduleError> {
    if let Some(interval) = text.strip_prefix("@every ") {
        let nanos = keelson_api::duration::parse(interval)
            .map_err(|e| ScheduleError(format!("failed to parse duration {text}: {e}")))?;
        let seconds = SignedDuration::from_nanos(nanos).as_secs().max(1);
        return Ok(Schedule::Every(SignedDuration::from_secs(seconds)));
    }
    let all = |bounds: &Bounds| bits(bounds.min, bounds.max, 1) | STAR;
    let (hour, day, month, weekday) = match text {
        "@yearly" | "@annually" => (1, 1 << 1, 1 << 1, all(&WEEKDAY)),
        "@monthly" => (1, 1 << 1, all(&MONTH), all(&WEEKDAY)),
        "@weekly" => (1, all(&DAY), all(&MONTH), 1),
        "@daily" | "@midnight" => (1, all(&DAY), all(&MONTH), all(&WEEKDAY)),
        "@hourly" => (all(&HOUR), all(&DAY), all(&MONTH), all(&WEEKDAY)),
        _ => return error(format!("unrecognized descriptor: {text}")),
    };
    Ok(Schedule::Fields(Fields {
        minute: 1,
        hour,
        day,
        month,
        weekday,
        zone,
    }))
}

/// Empty parts of a list count for nothing; a field of nothing else is never due.
fn field(text: &str, bounds: &Bounds) -> Result<u64, ScheduleError> {
    let parts = text.split(',').filter(|part| !part.is_empty());
    parts
        .map(|part| range(part, bounds))
        .try_fold(0, |all, bits| Ok(all | bits?))
}

fn range(text: &str, bounds: &Bounds) -> Result<u64, ScheduleError> {
    let by_step: Vec<&str> = text.split('/').collect();
    let span: Vec<&str> = by_step[0].split('-').collect();
    let mut star = 0;
    let (start, mut end) = if matches!(span[0], "*" | "?") {
        star = STAR;
        (bounds.min, bounds.max)
    } else {
        let start = value(span[0], bounds.names, bounds.min)?;
        match span[..] {
            [_] => (start, start),
            [_, end] => (start, value(end, bounds.names, bounds.min)?),
            _ => return error(format!("too many hyphens: {text}")),
        }
    };
    let step = match by_step[..] {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            if span.len() == 1 {
                end = bounds.max;
            }
            if step > 1 {
                star = 0;
            }
            step
        }
        _ => return error(format!("too many slashes: {text}")),
    };
    let (min, max) = (bounds.min, bounds.max);
    if start < min {
        return error(format!("beginning of range ({start}) below minimum ({min}): {text}"));
    }
    if end > max {
        return error(format!("end of range ({end}) above maximum ({max}): {text}"));
    }
    if start > end {
        return error(format!(
            "beginning of range ({start}) beyond end of range ({end}): {text}"
        ));
    }
    if step == 0 {
        return error(format!("step of range should be a positive number: {text}"));
    }
    Ok(bits(start, end, step) | star)
}

fn bits(min: u64, max: u64, step: u64) -> u64 {
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    (min..=max).step_by(step).fold(0, |bits, value| bits | 1 << value)
}

fn value(text: &str, names: &[&str], min: u64) -> Result<u64, ScheduleError> {
    let lower = text.to_lowercase();
    match names.iter().position(|name| *name == lower) {
        Some(at) => Ok(at as u64 + min),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, ScheduleError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let why = if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        "invalid syntax"
    } else {
        match text.parse::<i64>() {
            Ok(number) if number < 0 => {
                return error(format!("negative number ({number}) not allowed: {text}"));
            }
            Ok(number) => return Ok(number.unsigned_abs()),
            Err(_) => "value out of range",
        }
    };
    error(format!(
        "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: {why}"
    ))
}
