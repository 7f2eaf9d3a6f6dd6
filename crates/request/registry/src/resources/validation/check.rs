//! Collecting what is wrong, with field paths, and the formats that fields share.

use super::addresses;
use crate::internal;
use ipnet::IpNet;
use keelson_api::{Cause, Causes, Map, Quantity, Value};
use keelson_machinery::names::{self, max_chars_error, regex_error};
use std::net::IpAddr;

/// The complaints about an object, and the path to where one is looking.
#[derive(Default)]
pub struct Errs {
    path: String,
    pub list: Causes,
}

impl Errs {
    /// The path of a member, or of the place itself when `key` is empty.
    pub fn at(&self, key: &str) -> String {
        match (self.path.is_empty(), key.is_empty()) {
            (true, _) => key.to_string(),
            (false, true) => self.path.clone(),
            (false, false) => format!("{}.{key}", self.path),
        }
    }
    /// Looks into a member.
    pub fn within<T>(&mut self, key: &str, f: impl FnOnce(&mut Errs) -> T) -> T {
        let len = self.path.len();
        if !self.path.is_empty() && !key.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(key);
        let out = f(self);
        self.path.truncate(len);
        out
    }
    /// Looks into a member that is a map, if it is there.
    pub fn child(&mut self, m: &Map, key: &str, f: impl FnOnce(&mut Errs, &Map)) {
        if let Some(inner) = m.obj(key) {
            self.within(key, |e| f(e, inner));
        }
    }
    /// Looks into every map of a list.
    pub fn each(&mut self, m: &Map, key: &str, mut f: impl FnMut(&mut Errs, usize, &Map)) {
        let Some(list) = m.arr(key) else { return };
        for (i, item) in list.iter().enumerate() {
            if let Some(item) = item.as_object() {
                self.within(&format!("{key}[{i}]"), |e| f(e, i, item));
            }
        }
    }
    /// Looks at every text of a list.
    pub fn each_str(&mut self, m: &Map, key: &str, mut f: impl FnMut(&mut Errs, usize, &str)) {
        let Some(list) = m.arr(key) else { return };
        for (i, item) in list.iter().enumerate() {
            self.within(&format!("{key}[{i}]"), |e| f(e, i, item.as_str().unwrap_or_default()));
        }
    }
    pub fn push(&mut self, cause: Cause) {
        self.list.push(cause);
    }
    pub fn required(&mut self, key: &str, detail: &str) {
        let at = self.at(key);
        self.list.add(|| Cause::required(at, detail));
    }
    pub fn invalid(&mut self, key: &str, value: impl Into<Value>, detail: &str) {
        let at = self.at(key);
        self.list.add(|| Cause::invalid(at, &value.into(), detail));
    }
    /// The same for a struct, which is shown as a value of upstream's internal type.
    pub fn invalid_as(&mut self, ty: &str, key: &str, value: Option<&Value>, detail: &str) {
        let at = self.at(key);
        self.list
            .add(|| Cause::invalid_shown(at, &internal::shown(ty, value), detail));
    }
    pub fn forbidden(&mut self, key: &str, detail: &str) {
        let at = self.at(key);
        self.list.add(|| Cause::forbidden(at, detail));
    }
    pub fn not_supported(&mut self, key: &str, value: impl Into<Value>, supported: &[&str]) {
        let at = self.at(key);
        self.list.add(|| Cause::not_supported(at, &value.into(), supported));
    }
    pub fn duplicate(&mut self, key: &str, value: impl Into<Value>) {
        let at = self.at(key);
        self.list.add(|| Cause::duplicate(at, &value.into()));
    }
    /// The same for a value that is shown in a form of its own.
    pub fn duplicate_shown(&mut self, key: &str, shown: &str) {
        let at = self.at(key);
        let told = || Cause::new("FieldValueDuplicate", at, format!("Duplicate value: {shown}"));
        self.list.add(told);
    }
    pub fn not_found(&mut self, key: &str, value: impl Into<Value>) {
        let at = self.at(key);
        self.list.add(|| Cause::not_found(at, &value.into()));
    }
    pub fn too_long(&mut self, key: &str, max: usize) {
        self.list.push(Cause::too_long(self.at(key), max));
    }
    pub fn too_many(&mut self, key: &str, count: usize, max: usize) {
        let items = if max == 1 { "item" } else { "items" };
        self.list.push(Cause::new(
            "FieldValueTooMany",
            self.at(key),
            format!("Too many: {count}: must have at most {max} {items}"),
        ));
    }
    /// Every complaint of a format about one value.
    pub fn format(&mut self, key: &str, value: &str, check: impl FnOnce(&str) -> Vec<String>) {
        for msg in check(value) {
            self.invalid(key, value, &msg);
        }
    }

    /// `acme.io/foo`, which has to be there.
    pub fn domain_prefixed_path(&mut self, key: &str, path: &str) {
        if path.is_empty() {
            return self.required(key, "");
        }
        for (part, why) in names::domain_prefixed_path(path) {
            self.invalid(key, part, &why);
        }
    }

    // What many kinds check of a member.

    /// A text that must be one of a few; says that it is required when empty.
    pub fn one_of(&mut self, m: &Map, key: &str, supported: &[&str]) {
        match s(m, key) {
            "" => self.required(key, ""),
            value => self.one_of_if(value, key, supported),
        }
    }
    /// The same for a member that may be absent.
    pub fn optional_one_of(&mut self, m: &Map, key: &str, supported: &[&str]) {
        if m.contains_key(key) {
            self.one_of_if(s(m, key), key, supported);
        }
    }
    fn one_of_if(&mut self, value: &str, key: &str, supported: &[&str]) {
        if !supported.contains(&value) {
            self.not_supported(key, value, supported);
        }
    }
    pub fn non_negative(&mut self, m: &Map, key: &str) {
        if let Some(n) = m.int(key).filter(|n| *n < 0) {
            self.invalid(key, n, NOT_NEGATIVE);
        }
    }
    pub fn positive(&mut self, m: &Map, key: &str) {
        if let Some(n) = m.int(key).filter(|n| *n <= 0) {
            self.invalid(key, n, "must be greater than 0");
        }
    }
    pub fn in_range(&mut self, m: &Map, key: &str, min: i64, max: i64) {
        if let Some(n) = m.int(key).filter(|n| !(min..=max).contains(n)) {
            self.invalid(key, n, &range_error(min, max));
        }
    }
    pub fn port(&mut self, m: &Map, key: &str) {
        let n = m.int(key).unwrap_or(0);
        if !(1..=65535).contains(&n) {
            self.invalid(key, n, &range_error(1, 65535));
        }
    }
    /// A port's number or name.
    pub fn port_or_name(&mut self, m: &Map, key: &str) {
        match m.get(key) {
            Some(Value::String(name)) => self.format(key, name, port_name),
            _ => self.port(m, key),
        }
    }
    pub fn labels(&mut self, m: &Map, key: &str) {
        for (k, v) in m.obj(key).into_iter().flatten() {
            self.format(key, k, names::label_key);
            self.format(key, v.as_str().unwrap_or_default(), names::label_value);
        }
    }
    pub fn annotations(&mut self, m: &Map, key: &str) {
        for (k, _) in m.obj(key).into_iter().flatten() {
            for msg in names::label_key(&k.to_ascii_lowercase()) {
                self.invalid(key, k.as_str(), &msg);
            }
        }
    }
    /// A `metav1.LabelSelector`.
    pub fn label_selector(&mut self, m: &Map, key: &str) {
        self.selector(m, key, true);
    }
    /// One in an object of which older servers didn't look at values.
    pub fn old_label_selector(&mut self, m: &Map, key: &str) {
        self.selector(m, key, false);
    }
    fn selector(&mut self, m: &Map, key: &str, looks_at_values: bool) {
        self.child(m, key, |e, selector| {
            e.labels(selector, "matchLabels");
            e.each(selector, "matchExpressions", |e, _, x| {
                let values = x.arr("values").map_or(0, Vec::len);
                match s(x, "operator") {
                    "In" | "NotIn" if values == 0 => {
                        e.required("values", "must be specified when `operator` is 'In' or 'NotIn'");
                    }
                    "Exists" | "DoesNotExist" if values > 0 => {
                        e.forbidden(
                            "values",
                            "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
                        );
                    }
                    "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                    other => e.invalid("operator", other, "not a valid selector operator"),
                }
                e.format("key", s(x, "key"), names::label_key);
                if looks_at_values {
                    e.each_str(x, "values", |e, _, v| e.format("", v, names::label_value));
                }
            });
        });
    }
    /// Equality with what was there before; absent and empty are the same.
    pub fn immutable(&mut self, new: Option<&Value>, old: Option<&Value>, key: &str) {
        if !crate::strategy::same(new, old) {
            self.invalid(key, new.cloned().unwrap_or(Value::Null), IMMUTABLE);
        }
    }
    /// The same where upstream doesn't show what the value would be.
    pub fn immutable_untold(&mut self, new: Option<&Value>, old: Option<&Value>, key: &str) {
        if !crate::strategy::same(new, old) {
            self.invalid(key, Value::Null, IMMUTABLE);
        }
    }
    /// The same for a struct of an internal type.
    pub fn immutable_as(&mut self, ty: &str, new: Option<&Value>, old: Option<&Value>, key: &str) {
        if !crate::strategy::same(new, old) {
            self.invalid_as(ty, key, new, IMMUTABLE);
        }
    }
    /// A number of replicas or a percentage.
    pub fn int_or_percent(&mut self, m: &Map, key: &str) {
        match m.get(key) {
            Some(Value::String(text)) if !names::is_percent(text) => {
                self.invalid(key, text.as_str(), &regex_error(PERCENT_MSG, "[0-9]+%", &["1%", "93%"]));
            }
            Some(_) => self.non_negative(m, key),
            None => {}
        }
    }
    pub fn not_more_than_100_percent(&mut self, m: &Map, key: &str) {
        if let Some(Value::String(text)) = m.get(key)
            && percent(text).is_some_and(|p| p > 100)
        {
            self.invalid(key, text.as_str(), "must not be greater than 100%");
        }
    }
}

pub const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
pub const IMMUTABLE: &str = "field is immutable";
const PERCENT_MSG: &str = "a valid percent string must be a numeric string followed by an ending '%'";
const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// A member's text, empty when absent.
pub fn s<'a>(m: &'a Map, key: &str) -> &'a str {
    m.str(key).unwrap_or_default()
}
pub fn is_true(m: &Map, key: &str) -> bool {
    m.bool(key) == Some(true)
}
pub fn count(m: &Map, key: &str) -> usize {
    match m.get(key) {
        Some(Value::Array(a)) => a.len(),
        Some(Value::Object(o)) => o.len(),
        _ => 0,
    }
}
pub fn range_error(min: i64, max: i64) -> String {
    format!("must be between {min} and {max}, inclusive")
}
pub fn quantity(v: &Value) -> Quantity {
    v.as_str().and_then(|t| Quantity::parse(t).ok()).unwrap_or_default()
}
pub fn percent(text: &str) -> Option<i64> {
    text.strip_suffix('%').and_then(|n| n.parse().ok())
}
/// A number, or nothing for a percentage of zero; a text that is neither counts as zero, too.
pub fn is_zero_number_or_percent(v: Option<&Value>) -> bool {
    match v {
        Some(Value::String(t)) if names::is_percent(t) => percent(t) == Some(0),
        Some(Value::String(t)) => t.parse::<i64>().unwrap_or(0) == 0,
        Some(v) => v.as_i64() == Some(0),
        None => true,
    }
}

pub fn port_name(name: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if name.len() > 15 {
        errs.push("must be no more than 15 characters".into());
    }
    if name.is_empty()
        || !name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    {
        errs.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".into());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        errs.push("must contain at least one letter (a-z)".into());
    }
    if name.contains("--") {
        errs.push("must not contain consecutive hyphens".into());
    }
    if name.starts_with('-') || name.ends_with('-') {
        errs.push("must not begin or end with a hyphen".into());
    }
    errs
}

pub fn env_name(name: &str) -> Vec<String> {
    if name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=') {
        return Vec::new();
    }
    vec!["a valid environment variable name must consist only of printable ASCII characters other than '='".into()]
}

pub fn config_key(key: &str) -> Vec<String> {
    let mut errs = Vec::new();
    if key.len() > 253 {
        errs.push(max_chars_error(253));
    }
    if key.is_empty()
        || !key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    {
        let msg = "a valid config key must consist of alphanumeric characters, '-', '_' or '.'";
        errs.push(regex_error(
            msg,
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match key {
        "." => errs.push("must not be '.'".into()),
        ".." => errs.push("must not be '..'".into()),
        _ if key.starts_with("..") => errs.push("must not start with '..'".into()),
        _ => {}
    }
    errs
}

pub fn header_name(name: &str) -> Vec<String> {
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    let msg = "a valid HTTP header must consist of alphanumeric characters or '-'";
    vec![regex_error(msg, "[-A-Za-z0-9]+", &["X-Header-Name"])]
}

const MAPPED: &str = "must not be an IPv4-mapped IPv6 address";
const ZEROS: &str = "must not have leading 0s";
const NETWORK_ZEROS: &str = "must not have leading 0s in IP or prefix length";
const NETWORK_MAPPED: &str = "must not have an IPv4-mapped IPv6 address";
const HOST_BITS: &str = "must not have bits set beyond the prefix length";
/// What is said of addresses that were taken once: an object that has one keeps it.
const STRICT: [&str; 5] = [MAPPED, ZEROS, NETWORK_ZEROS, NETWORK_MAPPED, HOST_BITS];

/// An address that all programs read alike.
pub fn ip(text: &str) -> Vec<String> {
    let why = match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) if ip.to_ipv4_mapped().is_some() => MAPPED,
        Ok(_) => return Vec::new(),
        Err(_) if addresses::ip(text).is_some() => ZEROS,
        Err(_) => "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
    };
    vec![why.into()]
}

pub fn cidr(text: &str) -> Vec<String> {
    let why = match (text.parse::<IpNet>(), addresses::cidr(text)) {
        (_, Some(sloppy)) if sloppy.zeros => NETWORK_ZEROS,
        (_, Some(sloppy)) if sloppy.mapped => NETWORK_MAPPED,
        (Ok(net), _) if net.addr() != net.network() => HOST_BITS,
        (Ok(_), _) => return Vec::new(),
        _ => "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
    };
    vec![why.into()]
}

/// Whether what is complained of was taken once: an address' form, or an image without a name as a volume.
pub fn was_taken(cause: &Cause) -> bool {
    is_about_image(cause) || STRICT.iter().any(|why| cause.message.ends_with(why))
}

fn is_about_image(cause: &Cause) -> bool {
    cause.reason == "FieldValueRequired" && cause.field.ends_with("].image.reference")
}

/// Whether an object of which the one was told already had what the other complains of.
pub fn had_before(cause: &Cause, before: &Cause) -> bool {
    match is_about_image(cause) {
        true => is_about_image(before),
        false => before.message == cause.message,
    }
}

impl Errs {
    /// A path within a volume: relative and without steps back.
    pub fn local_path(&mut self, key: &str, path: &str) {
        if path.starts_with('/') {
            self.invalid(key, path, "must be a relative path");
        }
        self.no_backsteps(key, path);
    }
    /// The same, and not one that the kubelet keeps for itself.
    pub fn local_unreserved_path(&mut self, key: &str, path: &str) {
        self.local_path(key, path);
        if path.starts_with("..") && !path.starts_with("../") && path != ".." {
            self.invalid(key, path, "must not start with '..'");
        }
    }
    pub fn no_backsteps(&mut self, key: &str, path: &str) {
        if path.split('/').any(|part| part == "..") {
            self.invalid(key, path, "must not contain '..'");
        }
    }
    pub fn file_mode(&mut self, m: &Map, key: &str) {
        if let Some(mode) = m.int(key).filter(|mode| !(0..=0o777).contains(mode)) {
            self.invalid(key, mode, FILE_MODE);
        }
    }
}
