//! Strings: searching, cutting, formatting, regular expressions.

use super::super::value::{CelError, Res, Val};
use super::{Found, convert};
use crate::go;
use regex::Regex;
use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Compiled patterns, kept since rules are evaluated over and over; emptied when full.
static PATTERNS: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(|| Mutex::new(HashMap::new()));
const MAX_PATTERNS: usize = 1024;

pub fn regex(pattern: &str) -> Res<Regex> {
    let mut cache = PATTERNS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(re) = cache.get(pattern) {
        return Ok(re.clone());
    }
    let compiled = Some(pattern)
        .filter(|p| !repeats_repetition(p))
        .and_then(|p| Regex::new(p).ok());
    let re = compiled.ok_or_else(|| {
        CelError::new(format!(
            "error parsing regexp: invalid pattern: {}",
            go::go_quote(pattern)
        ))
    })?;
    if cache.len() >= MAX_PATTERNS {
        cache.clear();
    }
    cache.insert(pattern.to_string(), re.clone());
    Ok(re)
}

/// Whether a repetition is itself repeated (`x++`), which Go's expressions refuse.
fn repeats_repetition(pattern: &str) -> bool {
    let (mut repeated, mut lazy, mut class, mut escaped, mut group) = (false, false, false, false, false);
    for c in pattern.chars() {
        let repetition = !class && !escaped && matches!(c, '*' | '+' | '?');
        if repetition && repeated && (c != '?' || lazy) {
            return true;
        }
        lazy = repetition && repeated;
        repeated = repetition;
        class = !escaped && (c == '[' || (class && c != ']')) || (escaped && class);
        // A group's `(?` is no repetition.
        repeated &= !(c == '?' && !lazy && group);
        group = !escaped && !class && c == '(';
        escaped = !escaped && c == '\\';
    }
    false
}

pub fn global<'a>(name: &str, args: &[Val<'a>]) -> Found<'a> {
    match (name, args) {
        ("matches", [Val::Str(s), Val::Str(p)]) => Some(regex(p).map(|re| Val::Bool(re.is_match(s)))),
        ("strings.quote", [Val::Str(s)]) => Some(Ok(Val::str(go::go_quote(s)))),
        ("jsonpatch.escapeKey", [Val::Str(s)]) => Some(Ok(Val::str(s.replace('~', "~0").replace('/', "~1")))),
        _ => None,
    }
}

fn strings<'a>(items: impl Iterator<Item = String>) -> Val<'a> {
    Val::list(items.map(Val::str).collect())
}

pub fn member<'a>(name: &str, s: &str, args: &[Val<'a>]) -> Found<'a> {
    let int = |i: usize| match args.get(i) {
        Some(Val::Int(n)) => Some(*n),
        _ => None,
    };
    let text = |i: usize| args.get(i).and_then(Val::as_str);
    Some(match (name, args.len()) {
        ("size", 0) => Ok(Val::Int(s.chars().count() as i64)),
        ("contains", 1) => Ok(Val::Bool(s.contains(text(0)?))),
        ("startsWith", 1) => Ok(Val::Bool(s.starts_with(text(0)?))),
        ("endsWith", 1) => Ok(Val::Bool(s.ends_with(text(0)?))),
        ("matches", 1) => regex(text(0)?).map(|re| Val::Bool(re.is_match(s))),
        ("find", 1) => regex(text(0)?).map(|re| Val::str(re.find(s).map_or("", |m| m.as_str()))),
        ("findAll", 1) => regex(text(0)?).map(|re| strings(re.find_iter(s).map(|m| m.as_str().to_string()))),
        ("findAll", 2) => {
            let n = int(1)?;
            let limit = usize::try_from(n).unwrap_or(usize::MAX);
            regex(text(0)?).map(|re| strings(re.find_iter(s).take(limit).map(|m| m.as_str().to_string())))
        }
        ("lowerAscii", 0) => Ok(Val::str(s.to_ascii_lowercase())),
        ("upperAscii", 0) => Ok(Val::str(s.to_ascii_uppercase())),
        ("trim", 0) => Ok(Val::str(s.trim())),
        ("reverse", 0) => Ok(Val::str(s.chars().rev().collect::<String>())),
        ("charAt", 1) => {
            let (i, n) = (int(0)?, s.chars().count() as i64);
            if i < 0 || i > n {
                Err(CelError::new(format!("index out of range: {i}")))
            } else {
                Ok(Val::str(
                    s.chars().nth(i as usize).map(String::from).unwrap_or_default(),
                ))
            }
        }
        ("indexOf", 1 | 2) => index_of(s, text(0)?, if args.len() == 2 { Some(int(1)?) } else { None }),
        ("lastIndexOf", 1 | 2) => last_index_of(s, text(0)?, if args.len() == 2 { Some(int(1)?) } else { None }),
        ("replace", 2) => Ok(Val::str(s.replace(text(0)?, text(1)?))),
        ("replace", 3) => {
            let n = int(2)?;
            let out = match usize::try_from(n) {
                Ok(n) => s.replacen(text(0)?, text(1)?, n),
                Err(_) => s.replace(text(0)?, text(1)?),
            };
            Ok(Val::str(out))
        }
        ("split", 1) => Ok(split(s, text(0)?, -1)),
        ("split", 2) => Ok(split(s, text(0)?, int(1)?)),
        ("substring", 1) => substring(s, int(0)?, s.chars().count() as i64),
        ("substring", 2) => substring(s, int(0)?, int(1)?),
        ("format", 1) => format(s, &args[0].items()?),
        _ => return None,
    })
}

fn index_of<'a>(s: &str, what: &str, from: Option<i64>) -> Res<Val<'a>> {
    let chars: Vec<char> = s.chars().collect();
    let what: Vec<char> = what.chars().collect();
    let from = from.unwrap_or(0);
    if from < 0 {
        return Err(CelError::new(format!("index out of range: {from}")));
    }
    let from = from as usize;
    let found = (from..chars.len() + 1).find(|i| chars.get(*i..i + what.len()).is_some_and(|w| w == what.as_slice()));
    Ok(Val::Int(found.map_or(-1, |i| i as i64)))
}

fn last_index_of<'a>(s: &str, what: &str, from: Option<i64>) -> Res<Val<'a>> {
    let chars: Vec<char> = s.chars().collect();
    let what: Vec<char> = what.chars().collect();
    let from = from.unwrap_or(chars.len() as i64);
    if from < 0 {
        return Err(CelError::new(format!("index out of range: {from}")));
    }
    let from = (from as usize).min(chars.len());
    let found = (0..=from)
        .rev()
        .find(|i| chars.get(*i..i + what.len()).is_some_and(|w| w == what.as_slice()));
    Ok(Val::Int(found.map_or(-1, |i| i as i64)))
}

fn split<'a>(s: &str, sep: &str, n: i64) -> Val<'a> {
    let parts = |it: &mut dyn Iterator<Item = &str>| strings(it.map(str::to_string).collect::<Vec<_>>().into_iter());
    if sep.is_empty() {
        let chars: Vec<String> = s.chars().map(String::from).collect();
        return match usize::try_from(n) {
            Ok(n) if n > 0 && n < chars.len() => {
                let mut out = chars[..n - 1].to_vec();
                out.push(chars[n - 1..].concat());
                strings(out.into_iter())
            }
            Ok(0) => strings(std::iter::empty()),
            _ => strings(chars.into_iter()),
        };
    }
    match usize::try_from(n) {
        Ok(0) => strings(std::iter::empty()),
        Ok(n) => parts(&mut s.splitn(n, sep)),
        Err(_) => parts(&mut s.split(sep)),
    }
}

fn substring<'a>(s: &str, start: i64, end: i64) -> Res<Val<'a>> {
    let n = s.chars().count() as i64;
    if start > end {
        return Err(CelError::new(format!(
            "invalid substring range. start: {start}, end: {end}"
        )));
    }
    for i in [start, end] {
        if i < 0 || i > n {
            return Err(CelError::new(format!("index out of range: {i}")));
        }
    }
    Ok(Val::str(
        s.chars()
            .skip(start as usize)
            .take((end - start) as usize)
            .collect::<String>(),
    ))
}

/// A value as `%s` shows it.
fn shown(v: &Val) -> String {
    match v {
        Val::Null => "null".into(),
        Val::Type(t) => t.to_string(),
        v if v.items().is_some() => {
            format!(
                "[{}]",
                v.items()
                    .unwrap_or_default()
                    .iter()
                    .map(shown)
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        }
        Val::Map(_) | Val::Domains(_) | Val::JsonMap(..) => {
            let mut pairs: Vec<String> = v
                .range()
                .unwrap_or_default()
                .iter()
                .map(|k| {
                    format!(
                        "{}: {}",
                        shown(k),
                        v.member(k).ok().flatten().map(|v| shown(&v)).unwrap_or_default()
                    )
                })
                .collect();
            pairs.sort();
            format!("{{{}}}", pairs.join(", "))
        }
        v => convert::to_string(v)
            .ok()
            .and_then(|t| t.as_str().map(str::to_string))
            .unwrap_or_default(),
    }
}

fn format<'a>(pattern: &str, args: &[Val<'a>]) -> Res<Val<'a>> {
    let mut out = String::new();
    let mut chars = pattern.chars().peekable();
    let mut next = args.iter();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut n = 0;
            while let Some(d) = chars.peek().and_then(|c| c.to_digit(10)) {
                n = n * 10 + d as usize;
                chars.next();
            }
            precision = Some(n.min(100));
        }
        let Some(verb) = chars.next() else {
            return Err(CelError::new("unexpected end of string"));
        };
        let v = next
            .next()
            .ok_or_else(|| CelError::new(format!("index {} out of range", args.len())))?;
        let wrong = || {
            CelError::new(format!(
                "error during formatting: unsupported type for verb %{verb}: {}",
                v.type_name()
            ))
        };
        match (verb, v) {
            ('s', v) => out.push_str(&shown(v)),
            ('d', Val::Int(i)) => out.push_str(&i.to_string()),
            ('d', Val::Uint(u)) => out.push_str(&u.to_string()),
            ('d', Val::Double(f)) if f.is_nan() || f.is_infinite() => out.push_str(&go::go_float(*f)),
            ('f', v) => {
                let f = number(v).ok_or_else(wrong)?;
                out.push_str(&format!("{f:.*}", precision.unwrap_or(6)));
            }
            ('e', v) => {
                let f = number(v).ok_or_else(wrong)?;
                let text = format!("{f:.*e}", precision.unwrap_or(6));
                let (mantissa, exp) = text.split_once('e').unwrap_or((&text, "0"));
                let exp: i32 = exp.parse().unwrap_or(0);
                let raised = |c: char| match c.to_digit(10) {
                    Some(d) => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][d as usize],
                    None => c,
                };
                let digits: String = format!("{:02}", exp.abs()).chars().map(raised).collect();
                out.push_str(&format!("{mantissa}×10{}{digits}", if exp < 0 { "⁻" } else { "" }));
            }
            ('b', Val::Int(i)) => out.push_str(&format!("{}{:b}", if *i < 0 { "-" } else { "" }, i.unsigned_abs())),
            ('b', Val::Uint(u)) => out.push_str(&format!("{u:b}")),
            ('b', Val::Bool(b)) => out.push(if *b { '1' } else { '0' }),
            ('o', Val::Int(i)) => out.push_str(&format!("{}{:o}", if *i < 0 { "-" } else { "" }, i.unsigned_abs())),
            ('o', Val::Uint(u)) => out.push_str(&format!("{u:o}")),
            ('x', Val::Int(i)) => out.push_str(&format!("{}{:x}", if *i < 0 { "-" } else { "" }, i.unsigned_abs())),
            ('X', Val::Int(i)) => out.push_str(&format!("{}{:X}", if *i < 0 { "-" } else { "" }, i.unsigned_abs())),
            ('x', Val::Uint(u)) => out.push_str(&format!("{u:x}")),
            ('X', Val::Uint(u)) => out.push_str(&format!("{u:X}")),
            ('x', Val::Str(s)) => s.bytes().for_each(|b| out.push_str(&format!("{b:02x}"))),
            ('X', Val::Str(s)) => s.bytes().for_each(|b| out.push_str(&format!("{b:02X}"))),
            ('x', Val::Bytes(b)) => b.iter().for_each(|b| out.push_str(&format!("{b:02x}"))),
            ('X', Val::Bytes(b)) => b.iter().for_each(|b| out.push_str(&format!("{b:02X}"))),
            ('d' | 'b' | 'o' | 'x' | 'X', _) => return Err(wrong()),
            _ => {
                return Err(CelError::new(format!(
                    "could not parse formatting clause: unrecognized formatting clause \"{verb}\""
                )));
            }
        }
    }
    Ok(Val::str(out))
}

fn number(v: &Val) -> Option<f64> {
    match v {
        Val::Double(f) => Some(*f),
        Val::Int(i) => Some(*i as f64),
        Val::Uint(u) => Some(*u as f64),
        _ => None,
    }
}
