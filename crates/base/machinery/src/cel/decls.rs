//! The functions that expressions may call, with the types of their overloads.
//!
//! One line a function: `name: (args) -> result | …`, members as `target.(args) -> result`.

use super::types::Ty;
use std::collections::HashMap;
use std::sync::LazyLock;

/// One way to call a function; a member's receiver is the first parameter.
#[derive(Clone, Debug)]
pub struct Overload {
    pub member: bool,
    pub params: Vec<Ty>,
    pub result: Ty,
}

const TABLE: &str = "
_==_: (A, A) -> bool
_!=_: (A, A) -> bool
_<_: (bool, bool) -> bool | (int, int) -> bool | (uint, uint) -> bool | (double, double) -> bool | (string, string) -> bool | (bytes, bytes) -> bool | (timestamp, timestamp) -> bool | (duration, duration) -> bool | (int, double) -> bool | (int, uint) -> bool | (uint, double) -> bool | (uint, int) -> bool | (double, int) -> bool | (double, uint) -> bool
_<=_: = _<_
_>_: = _<_
_>=_: = _<_
_+_: (int, int) -> int | (uint, uint) -> uint | (double, double) -> double | (string, string) -> string | (bytes, bytes) -> bytes | (list(A), list(A)) -> list(A) | (timestamp, duration) -> timestamp | (duration, timestamp) -> timestamp | (duration, duration) -> duration
_-_: (int, int) -> int | (uint, uint) -> uint | (double, double) -> double | (timestamp, timestamp) -> duration | (timestamp, duration) -> timestamp | (duration, duration) -> duration
_*_: (int, int) -> int | (uint, uint) -> uint | (double, double) -> double
_/_: (int, int) -> int | (uint, uint) -> uint | (double, double) -> double
_%_: (int, int) -> int | (uint, uint) -> uint
-_: (int) -> int | (double) -> double
!_: (bool) -> bool
_&&_: (bool, bool) -> bool
_||_: (bool, bool) -> bool
_?_:_: (bool, A, A) -> A
@not_strictly_false: (bool) -> bool
@in: (A, list(A)) -> bool | (A, map(A, B)) -> bool
_[_]: (list(A), int) -> A | (map(A, B), A) -> B | (optional(list(A)), int) -> optional(A) | (optional(map(A, B)), A) -> optional(B)
_[?_]: (list(A), int) -> optional(A) | (optional(list(A)), int) -> optional(A) | (map(A, B), A) -> optional(B) | (optional(map(A, B)), A) -> optional(B)
size: (string) -> int | (bytes) -> int | (list(A)) -> int | (map(A, B)) -> int | string.() -> int | bytes.() -> int | list(A).() -> int | map(A, B).() -> int
type: (A) -> type
dyn: (A) -> dyn
int: (int) -> int | (uint) -> int | (double) -> int | (string) -> int | (timestamp) -> int | (duration) -> int
uint: (uint) -> uint | (int) -> uint | (double) -> uint | (string) -> uint
double: (double) -> double | (int) -> double | (uint) -> double | (string) -> double
string: (string) -> string | (int) -> string | (uint) -> string | (double) -> string | (bool) -> string | (bytes) -> string | (timestamp) -> string | (duration) -> string | (ip) -> string | (cidr) -> string
bytes: (bytes) -> bytes | (string) -> bytes
bool: (bool) -> bool | (string) -> bool
timestamp: (string) -> timestamp | (timestamp) -> timestamp | (int) -> timestamp
duration: (string) -> duration | (duration) -> duration | (int) -> duration
getFullYear: timestamp.() -> int | timestamp.(string) -> int
getMonth: = getFullYear
getDayOfYear: = getFullYear
getDate: = getFullYear
getDayOfMonth: = getFullYear
getDayOfWeek: = getFullYear
getHours: timestamp.() -> int | timestamp.(string) -> int | duration.() -> int
getMinutes: = getHours
getSeconds: = getHours
getMilliseconds: = getHours
contains: string.(string) -> bool
startsWith: string.(string) -> bool
endsWith: string.(string) -> bool
matches: string.(string) -> bool | (string, string) -> bool
charAt: string.(int) -> string
indexOf: string.(string) -> int | string.(string, int) -> int | list(A).(A) -> int
lastIndexOf: string.(string) -> int | string.(string, int) -> int | list(A).(A) -> int
lowerAscii: string.() -> string
upperAscii: string.() -> string
trim: string.() -> string
replace: string.(string, string) -> string | string.(string, string, int) -> string
split: string.(string) -> list(string) | string.(string, int) -> list(string)
substring: string.(int) -> string | string.(int, int) -> string
join: list(string).() -> string | list(string).(string) -> string
format: string.(list(dyn)) -> string
strings.quote: (string) -> string
reverse: string.() -> string | list(A).() -> list(A)
find: string.(string) -> string
findAll: string.(string) -> list(string) | string.(string, int) -> list(string)
isSorted: list(int).() -> bool | list(uint).() -> bool | list(double).() -> bool | list(bool).() -> bool | list(string).() -> bool | list(bytes).() -> bool | list(timestamp).() -> bool | list(duration).() -> bool
sum: list(int).() -> int | list(uint).() -> uint | list(double).() -> double | list(duration).() -> duration
min: list(int).() -> int | list(uint).() -> uint | list(double).() -> double | list(bool).() -> bool | list(string).() -> string | list(bytes).() -> bytes | list(timestamp).() -> timestamp | list(duration).() -> duration
max: = min
includes: dyn.(dyn) -> bool
slice: list(A).(int, int) -> list(A)
flatten: list(list(A)).() -> list(A) | list(dyn).(int) -> list(dyn) | list(dyn).() -> list(dyn)
sort: list(int).() -> list(int) | list(uint).() -> list(uint) | list(double).() -> list(double) | list(bool).() -> list(bool) | list(string).() -> list(string) | list(bytes).() -> list(bytes) | list(timestamp).() -> list(timestamp) | list(duration).() -> list(duration)
distinct: list(A).() -> list(A)
first: list(A).() -> optional(A)
last: list(A).() -> optional(A)
lists.range: (int) -> list(int)
sets.contains: (list(A), list(A)) -> bool
sets.equivalent: (list(A), list(A)) -> bool
sets.intersects: (list(A), list(A)) -> bool
url: (string) -> url
isURL: (string) -> bool
getScheme: url.() -> string
getHost: url.() -> string
getHostname: url.() -> string
getPort: url.() -> string
getEscapedPath: url.() -> string
getQuery: url.() -> map(string, list(string))
quantity: (string) -> quantity
isQuantity: (string) -> bool
sign: quantity.() -> int
isGreaterThan: quantity.(quantity) -> bool | semver.(semver) -> bool
isLessThan: quantity.(quantity) -> bool | semver.(semver) -> bool
compareTo: quantity.(quantity) -> int | semver.(semver) -> int
asApproximateFloat: quantity.() -> double
asInteger: quantity.() -> int
isInteger: quantity.() -> bool
add: quantity.(quantity) -> quantity | quantity.(int) -> quantity
sub: quantity.(quantity) -> quantity | quantity.(int) -> quantity
semver: (string) -> semver | (string, bool) -> semver
isSemver: (string) -> bool | (string, bool) -> bool
major: semver.() -> int
minor: semver.() -> int
patch: semver.() -> int
ip: (string) -> ip | cidr.() -> ip
isIP: (string) -> bool
ip.isCanonical: (string) -> bool
family: ip.() -> int
isUnspecified: ip.() -> bool
isLoopback: ip.() -> bool
isLinkLocalMulticast: ip.() -> bool
isLinkLocalUnicast: ip.() -> bool
isGlobalUnicast: ip.() -> bool
cidr: (string) -> cidr
isCIDR: (string) -> bool
containsIP: cidr.(string) -> bool | cidr.(ip) -> bool
containsCIDR: cidr.(string) -> bool | cidr.(cidr) -> bool
prefixLength: cidr.() -> int
masked: cidr.() -> cidr
format.named: (string) -> optional(format)
format.dns1123Label: () -> format
format.dns1123Subdomain: () -> format
format.dns1035Label: () -> format
format.qualifiedName: () -> format
format.dns1123LabelPrefix: () -> format
format.dns1123SubdomainPrefix: () -> format
format.dns1035LabelPrefix: () -> format
format.labelValue: () -> format
format.uri: () -> format
format.uuid: () -> format
format.byte: () -> format
format.date: () -> format
format.datetime: () -> format
validate: format.(string) -> optional(list(string))
optional.of: (A) -> optional(A)
optional.ofNonZeroValue: (A) -> optional(A)
optional.none: () -> optional(A)
optional.unwrap: (list(optional(A))) -> list(A)
unwrapOpt: list(optional(A)).() -> list(A)
hasValue: optional(A).() -> bool
value: optional(A).() -> A
or: optional(A).(optional(A)) -> optional(A)
orValue: optional(A).(A) -> A
path: authorizer.(string) -> pathcheck
group: authorizer.(string) -> groupcheck
serviceAccount: authorizer.(string, string) -> authorizer
resource: groupcheck.(string) -> resourcecheck
subresource: resourcecheck.(string) -> resourcecheck
namespace: resourcecheck.(string) -> resourcecheck
name: resourcecheck.(string) -> resourcecheck
fieldSelector: resourcecheck.(string) -> resourcecheck
labelSelector: resourcecheck.(string) -> resourcecheck
check: pathcheck.(string) -> decision | resourcecheck.(string) -> decision
errored: decision.() -> bool
error: decision.() -> string
allowed: decision.() -> bool
reason: decision.() -> string
jsonpatch.escapeKey: (string) -> string
";

/// The names of the library types.
pub mod opaque {
    pub const URL: &str = "kubernetes.URL";
    pub const QUANTITY: &str = "kubernetes.Quantity";
    pub const SEMVER: &str = "kubernetes.Semver";
    pub const FORMAT: &str = "kubernetes.NamedFormat";
    pub const IP: &str = "net.IP";
    pub const CIDR: &str = "net.CIDR";
    pub const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
    pub const PATH_CHECK: &str = "kubernetes.authorization.PathCheck";
    pub const GROUP_CHECK: &str = "kubernetes.authorization.GroupCheck";
    pub const RESOURCE_CHECK: &str = "kubernetes.authorization.ResourceCheck";
    pub const DECISION: &str = "kubernetes.authorization.Decision";
}

/// Reads a type at the start of the text; gives back what follows.
fn read_type(s: &str) -> Option<(Ty, &str)> {
    let end = s.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(s.len());
    let (word, rest) = s.split_at(end);
    let inner = |rest: &str| -> Option<(Ty, String)> {
        let (t, rest) = read_type(rest.strip_prefix('(')?)?;
        Some((t, rest.strip_prefix(')')?.to_string()))
    };
    let ty = match word {
        "list" | "optional" => {
            let (t, after) = inner(rest)?;
            let rest = &rest[rest.len() - after.len()..];
            return Some((if word == "list" { Ty::list(t) } else { Ty::optional(t) }, rest));
        }
        "map" => {
            let (k, rest) = read_type(rest.strip_prefix('(')?)?;
            let (v, rest) = read_type(rest.strip_prefix(", ")?)?;
            return Some((Ty::map(k, v), rest.strip_prefix(')')?));
        }
        "dyn" => Ty::Dyn,
        "bool" => Ty::Bool,
        "int" => Ty::Int,
        "uint" => Ty::Uint,
        "double" => Ty::Double,
        "string" => Ty::String,
        "bytes" => Ty::Bytes,
        "timestamp" => Ty::Timestamp,
        "duration" => Ty::Duration,
        "type" => Ty::Type,
        "url" => Ty::Opaque(opaque::URL),
        "quantity" => Ty::Opaque(opaque::QUANTITY),
        "semver" => Ty::Opaque(opaque::SEMVER),
        "format" => Ty::Opaque(opaque::FORMAT),
        "ip" => Ty::Opaque(opaque::IP),
        "cidr" => Ty::Opaque(opaque::CIDR),
        "authorizer" => Ty::Opaque(opaque::AUTHORIZER),
        "pathcheck" => Ty::Opaque(opaque::PATH_CHECK),
        "groupcheck" => Ty::Opaque(opaque::GROUP_CHECK),
        "resourcecheck" => Ty::Opaque(opaque::RESOURCE_CHECK),
        "decision" => Ty::Opaque(opaque::DECISION),
        w if w.len() == 1 => Ty::Param(w.chars().next()?),
        _ => return None,
    };
    Some((ty, rest))
}

fn read_overload(s: &str) -> Option<Overload> {
    let (head, result) = s.rsplit_once(" -> ")?;
    let (result, _) = read_type(result)?;
    let mut params = Vec::new();
    let member = !head.starts_with('(');
    let mut rest = head;
    if member {
        let (receiver, after) = read_type(rest)?;
        params.push(receiver);
        rest = after.strip_prefix('.')?;
    }
    rest = rest.strip_prefix('(')?.strip_suffix(')')?;
    while !rest.is_empty() {
        let (t, after) = read_type(rest)?;
        params.push(t);
        rest = after.strip_prefix(", ").unwrap_or(after);
    }
    Some(Overload { member, params, result })
}

static FUNCTIONS: LazyLock<HashMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
    let mut out: HashMap<&'static str, Vec<Overload>> = HashMap::new();
    for line in TABLE.lines() {
        let Some((name, rest)) = line.split_once(": ") else {
            continue;
        };
        let overloads = match rest.strip_prefix("= ") {
            Some(other) => out.get(other).cloned().unwrap_or_default(),
            None => rest.split(" | ").filter_map(read_overload).collect(),
        };
        out.insert(name, overloads);
    }
    out
});

/// The overloads of a function; `None`: there is no such function.
pub fn overloads(name: &str) -> Option<&'static [Overload]> {
    FUNCTIONS.get(name).map(Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_understood() {
        for line in TABLE.lines().filter(|l| !l.is_empty()) {
            let (name, rest) = line.split_once(": ").unwrap();
            let expected = if rest.starts_with("= ") {
                1
            } else {
                rest.split(" | ").count()
            };
            let got = overloads(name).unwrap();
            assert!(got.len() >= expected, "{line}: {got:?}");
        }
        let o = &overloads("getQuery").unwrap()[0];
        assert_eq!(
            (o.member, o.result.to_string()),
            (true, "map(string, list(string))".to_string())
        );
    }
}
