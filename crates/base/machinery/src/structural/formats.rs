//! The string formats that schemas may ask for. Formats that upstream doesn't know are ignored.

use keelson_api::{Time, duration};
use regex::Regex;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

macro_rules! regexes {
    ($($name:ident = $re:literal;)*) => {$(
        static $name: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new($re).ok());
    )*};
}
regexes! {
    UUID = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    EMAIL = r"^[^@\s<>]+@[^@\s<>]+$";
    HOSTNAME = r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9-\p{S}\p{L}]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$";
    SSN = r"^\d{3}[- ]?\d{2}[- ]?\d{4}$";
    HEXCOLOR = r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGBCOLOR = r"^rgb\(\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*,\s*(0|[1-9]\d?|1\d\d?|2[0-4]\d|25[0-5])\s*\)$";
    CREDITCARD = r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35\d{3})\d{11})$";
    BSON = r"^[0-9a-fA-F]{24}$";
    BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$";
    DATE = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$";
    SCALA = r"^\d+(\.\d+)?\s*(ns|nano(s|sec|second|seconds)?|us|µs|micro(s|sec|secs|second|seconds)?|ms|milli(s|sec|secs|second|seconds)?|s|sec|secs|second|seconds|m|min|mins|minute|minutes|h|hr|hrs|hour|hours|d|day|days|w|week|weeks)$";
    SHORT_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
    LONG_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
}

/// The formats that are checked, by their normalised name.
const SUPPORTED: [&str; 26] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
];

/// Whether a string format is one that upstream checks.
pub fn is_supported(format: &str) -> bool {
    SUPPORTED.contains(&format.replace('-', "").as_str())
}

/// Whether the text has the format (true for unknown formats).
pub fn matches(format: &str, s: &str) -> bool {
    let re = |r: &LazyLock<Option<Regex>>| r.as_ref().is_some_and(|r| r.is_match(s));
    match format.replace('-', "").as_str() {
        "bsonobjectid" => re(&BSON),
        "uri" => is_uri(s),
        "email" => re(&EMAIL),
        "hostname" => s.len() <= 255 && re(&HOSTNAME),
        "ipv4" => s.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => s.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(s),
        "mac" => is_mac(s),
        "uuid" => re(&UUID),
        "uuid3" => re(&UUID3),
        "uuid4" => re(&UUID4),
        "uuid5" => re(&UUID5),
        "isbn" => isbn(s, 10) || isbn(s, 13),
        "isbn10" => isbn(s, 10),
        "isbn13" => isbn(s, 13),
        "creditcard" => {
            let digits: String = s.chars().filter(char::is_ascii_digit).collect();
            CREDITCARD.as_ref().is_some_and(|r| r.is_match(&digits)) && luhn(&digits)
        }
        "ssn" => re(&SSN),
        "hexcolor" => re(&HEXCOLOR),
        "rgbcolor" => re(&RGBCOLOR),
        "byte" => re(&BASE64),
        "date" => re(&DATE) && Time::parse(&format!("{s}T00:00:00Z")).is_ok(),
        "duration" => duration::parse(s).is_ok() || re(&SCALA),
        "datetime" => Time::parse(&s.replace(' ', "T").to_uppercase()).is_ok(),
        "k8sshortname" => s.len() <= 63 && re(&SHORT_NAME),
        "k8slongname" => s.len() <= 253 && re(&LONG_NAME),
        _ => true,
    }
}

fn is_uri(s: &str) -> bool {
    let Some((scheme, rest)) = s.split_once(':') else {
        return s.starts_with('/');
    };
    if s.starts_with('/') {
        return true;
    }
    let mut chars = scheme.chars();
    chars.next().is_some_and(|c| c.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        && !rest.is_empty()
        && !s.chars().any(|c| c.is_control() || c == ' ')
}

fn is_cidr(s: &str) -> bool {
    let Some((ip, bits)) = s.split_once('/') else {
        return false;
    };
    let max = match ip.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    !bits.is_empty() && bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|b| b <= max)
}

fn is_mac(s: &str) -> bool {
    for sep in [':', '-'] {
        let parts: Vec<&str> = s.split(sep).collect();
        if matches!(parts.len(), 6 | 8 | 20) {
            return parts
                .iter()
                .all(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
        }
    }
    let parts: Vec<&str> = s.split('.').collect();
    matches!(parts.len(), 3 | 4 | 10)
        && parts
            .iter()
            .all(|p| p.len() == 4 && p.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn isbn(s: &str, n: usize) -> bool {
    let digits: Vec<char> = s.chars().filter(|c| !matches!(c, '-' | ' ')).collect();
    if digits.len() != n {
        return false;
    }
    let value = |c: char, last: bool| match c {
        'X' | 'x' if last && n == 10 => Some(10),
        c => c.to_digit(10),
    };
    let mut sum = 0;
    for (i, c) in digits.iter().enumerate() {
        let Some(d) = value(*c, i == n - 1) else { return false };
        let weight = if n == 10 {
            i as u32 + 1
        } else if i % 2 == 0 {
            1
        } else {
            3
        };
        sum += d * weight;
    }
    sum % if n == 10 { 11 } else { 10 } == 0
}

fn luhn(digits: &str) -> bool {
    let sum: u32 = digits
        .chars()
        .rev()
        .filter_map(|c| c.to_digit(10))
        .enumerate()
        .map(|(i, d)| {
            if i % 2 == 1 {
                if d > 4 { d * 2 - 9 } else { d * 2 }
            } else {
                d
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        for (format, good, bad) in [
            ("date-time", "2030-01-02T03:04:05Z", "2030-01-02"),
            ("date", "2030-01-02", "2030-1-2"),
            ("ipv4", "1.2.3.4", "1.2.3"),
            ("ipv6", "::1", "1.2.3.4"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("uuid", "123e4567-e89b-12d3-a456-426614174000", "x"),
            ("mac", "aa:bb:cc:dd:ee:ff", "aa:bb"),
            ("byte", "YQ==", "Y"),
            ("duration", "1m30s", "soon"),
            ("email", "a@b.c", "a"),
            ("uri", "https://x.y/z", "no"),
            ("isbn10", "0321751043", "0321751044"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("hexcolor", "#FFF", "#GGG"),
            ("k8s-short-name", "a-b", "A"),
        ] {
            assert!(matches(format, good), "{format} {good}");
            assert!(!matches(format, bad), "{format} {bad}");
        }
        assert!(matches("no-such-format", "anything"));
    }
}
