//! Conversions between types.

use super::super::value::{CelError, Res, Val};
use super::Found;
use crate::go;
use keelson_api::{Time, duration};
use std::sync::Arc;

/// The years 1 to 9999, in seconds.
const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

pub fn call<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    let [v] = args else { return None };
    Some(match name {
        "type" => Ok(Val::Type(v.type_name())),
        "dyn" => Ok(v.clone()),
        "int" => to_int(v),
        "uint" => to_uint(v),
        "double" => to_double(v),
        "string" => to_string(v),
        "bool" => to_bool(v),
        "bytes" => match v {
            Val::Bytes(b) => Ok(Val::Bytes(b.clone())),
            Val::Str(s) => Ok(Val::Bytes(Arc::from(s.as_bytes()))),
            _ => Err(CelError::no_overload()),
        },
        "timestamp" => match v {
            Val::Timestamp(t) => Ok(Val::Timestamp(*t)),
            Val::Int(i) if !TIMESTAMPS.contains(i) => Err(CelError::new("timestamp overflow")),
            Val::Int(i) => Ok(Val::Timestamp(Time::from_seconds(*i))),
            Val::Str(s) => Time::parse(s).map(Val::Timestamp).map_err(|e| CelError::new(e.0)),
            _ => Err(CelError::no_overload()),
        },
        "duration" => match v {
            Val::Duration(d) => Ok(Val::Duration(*d)),
            Val::Int(i) => Ok(Val::Duration(*i)),
            Val::Str(s) => duration::parse(s).map(Val::Duration).map_err(|e| CelError::new(e.0)),
            _ => Err(CelError::no_overload()),
        },
        _ => return None,
    })
}

fn parse_error(what: &str, s: &str) -> CelError {
    CelError::new(format!("strconv.{what}: parsing {}: invalid syntax", go::go_quote(s)))
}

fn to_int<'a>(v: &Val<'a>) -> Res<Val<'a>> {
    let range = || CelError::new("integer overflow");
    Ok(Val::Int(match v {
        Val::Int(i) => *i,
        Val::Uint(u) => i64::try_from(*u).map_err(|_| range())?,
        Val::Double(f) if f.abs() < 9.223_372_036_854_775e18 => *f as i64,
        Val::Double(_) => return Err(range()),
        Val::Str(s) => s.parse().map_err(|_| parse_error("ParseInt", s))?,
        Val::Timestamp(t) => t.seconds,
        Val::Duration(d) => *d,
        _ => return Err(CelError::no_overload()),
    }))
}

fn to_uint<'a>(v: &Val<'a>) -> Res<Val<'a>> {
    let range = || CelError::new("unsigned integer overflow");
    Ok(Val::Uint(match v {
        Val::Uint(u) => *u,
        Val::Int(i) => u64::try_from(*i).map_err(|_| range())?,
        Val::Double(f) if *f >= 0.0 && *f < 1.844_674_407_370_955e19 => *f as u64,
        Val::Double(_) => return Err(range()),
        Val::Str(s) => s.parse().map_err(|_| parse_error("ParseUint", s))?,
        _ => return Err(CelError::no_overload()),
    }))
}

fn to_double<'a>(v: &Val<'a>) -> Res<Val<'a>> {
    Ok(Val::Double(match v {
        Val::Double(f) => *f,
        Val::Int(i) => *i as f64,
        Val::Uint(u) => *u as f64,
        Val::Str(s) => s.trim().parse().map_err(|_| parse_error("ParseFloat", s))?,
        _ => return Err(CelError::no_overload()),
    }))
}

fn to_bool<'a>(v: &Val<'a>) -> Res<Val<'a>> {
    Ok(Val::Bool(match v {
        Val::Bool(b) => *b,
        Val::Str(s) => match s.as_ref() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            s => return Err(parse_error("ParseBool", s)),
        },
        _ => return Err(CelError::no_overload()),
    }))
}

/// A value as text.
pub fn to_string<'a>(v: &Val<'a>) -> Res<Val<'a>> {
    Ok(Val::str(match v {
        Val::Str(_) => return Ok(v.clone()),
        Val::Int(i) => i.to_string(),
        Val::Uint(u) => u.to_string(),
        Val::Double(f) => go::go_float(*f),
        Val::Bool(b) => b.to_string(),
        Val::Bytes(b) => String::from_utf8(b.to_vec())
            .map_err(|_| CelError::new("invalid UTF-8 in bytes, cannot convert to string"))?,
        Val::Timestamp(t) => t.rfc3339_nano(),
        Val::Duration(d) => format!("{}s", go::go_float(*d as f64 / 1e9)),
        Val::Ip(ip) => ip.to_string(),
        Val::Cidr(ip, n) => format!("{ip}/{n}"),
        _ => return Err(CelError::no_overload()),
    }))
}
