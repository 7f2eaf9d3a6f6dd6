//! What a request costs before it is known: lists by what they load at once, writes by who is told of them, as upstream
//! estimates it.

use super::gate::Width;
use crate::request::RequestInfo;
use keelson_registry::engine::Usage;
use std::time::Duration;

/// So much of what a list holds in memory at once is a seat.
const BYTES_A_SEAT: usize = 100_000;
/// A list from the cache is sent piece by piece: it never holds more.
const MOST_FROM_CACHE: usize = 1_000_000;
const MOST_SEATS_OF_LIST: usize = 100;
const MOST_SEATS_OF_WRITE: usize = 10;
const WATCHES_A_SEAT: usize = 10;
/// What telling a seat's worth of watchers takes.
const TELLING: Duration = Duration::from_millis(5);

/// `most`: what a request of the level may take, if the level says.
pub fn of(info: &RequestInfo, usage: Option<Usage>, most: Option<usize>) -> Width {
    let Some(usage) = usage else { return Width::ONE };
    match info.verb.as_str() {
        "list" => seats(
            list(info, usage),
            most.unwrap_or(MOST_SEATS_OF_LIST).min(MOST_SEATS_OF_LIST),
        ),
        // What begins with the present costs what its list costs.
        "watch" if begins_with_state(info) => seats(
            list(info, usage),
            most.unwrap_or(MOST_SEATS_OF_LIST).min(MOST_SEATS_OF_LIST),
        ),
        "create" | "update" | "patch" | "delete" => write(
            usage.interested,
            most.unwrap_or(MOST_SEATS_OF_WRITE).min(MOST_SEATS_OF_WRITE),
        ),
        _ => Width::ONE,
    }
}

fn seats(n: usize, most: usize) -> Width {
    Width {
        seats: n.clamp(1, most.max(1)),
        ..Width::ONE
    }
}

fn begins_with_state(info: &RequestInfo) -> bool {
    info.query.flag("sendInitialEvents") || matches!(info.query.get("resourceVersion"), None | Some("" | "0"))
}

fn list(info: &RequestInfo, usage: Usage) -> usize {
    let count = usage.objects;
    let each = usage.bytes / count.max(1);
    let limit = match info.query.int("limit") {
        Some(Ok(n)) if n > 0 => usize::try_from(n).unwrap_or(count),
        _ => count,
    };
    let page = limit.min(count);
    let cached = info.verb == "watch" || is_cached(info);
    let selects = !info.field_selector.is_empty() || !info.label_selector.is_empty();
    let objects = match () {
        // A name in the selector: read like a get.
        () if !info.name.is_empty() => 1,
        () if !cached && selects => page.max(count / 2),
        () => page,
    };
    let bytes = objects * each;
    let bytes = if cached { bytes.min(MOST_FROM_CACHE) } else { bytes };
    bytes.div_ceil(BYTES_A_SEAT)
}

/// Whether a list is of the present, which the cache has.
fn is_cached(info: &RequestInfo) -> bool {
    let text = |name: &str| info.query.get(name).unwrap_or_default();
    match text("resourceVersionMatch") {
        "NotOlderThan" => true,
        "" => {
            let legacy_exact =
                matches!(info.query.int("limit"), Some(Ok(1..))) && !matches!(text("resourceVersion"), "" | "0");
            text("continue").is_empty() && !legacy_exact
        }
        _ => false,
    }
}

/// Watchers are told after the answer: the seats for that are kept a little longer.
fn write(watchers: usize, most: usize) -> Width {
    if watchers < WATCHES_A_SEAT {
        return Width::ONE;
    }
    let wanted = watchers.div_ceil(WATCHES_A_SEAT);
    let seats = wanted.clamp(1, most.max(1));
    Width {
        seats,
        linger: TELLING.mul_f64(wanted as f64 / seats as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(method: &str, path: &str, usage: Usage, most: Option<usize>) -> (usize, u128) {
        let info = RequestInfo::parse(&method.parse().unwrap(), &path.parse().unwrap()).unwrap();
        let width = of(&info, Some(usage), most);
        (width.seats, width.linger.as_millis())
    }

    #[test]
    fn lists_cost_what_they_load_and_writes_whom_they_tell() {
        let usage = |objects, interested| Usage {
            objects,
            bytes: objects * 2_000,
            interested,
        };
        let pods = usage(1_000, 0);
        for (path, seats) in [
            ("/api/v1/pods", 10),
            ("/api/v1/pods?limit=100", 2),
            ("/api/v1/pods?limit=100&resourceVersion=0", 2),
            ("/api/v1/pods?limit=100&continue=x", 2),
            ("/api/v1/pods?resourceVersion=7&resourceVersionMatch=Exact", 20),
            (
                "/api/v1/pods?resourceVersion=7&resourceVersionMatch=Exact&limit=10&labelSelector=a",
                10,
            ),
            ("/api/v1/pods?fieldSelector=metadata.name%3Dx", 1),
            ("/api/v1/pods?watch=true", 10),
            ("/api/v1/pods?watch=true&resourceVersion=7", 1),
            ("/api/v1/pods?watch=true&resourceVersion=7&sendInitialEvents=true", 10),
            ("/api/v1/namespaces/a/pods/b", 1),
        ] {
            assert_eq!(width("GET", path, pods, None), (seats, 0), "{path}");
        }
        assert_eq!(width("GET", "/api/v1/pods", pods, Some(4)).0, 4);
        let create = |watchers, most| width("POST", "/api/v1/namespaces/a/pods", usage(0, watchers), most);
        assert_eq!(create(9, None), (1, 0));
        assert_eq!(create(25, None), (3, 5));
        assert_eq!(create(1000, None), (10, 50));
        assert_eq!(create(1000, Some(5)), (5, 100));
        let info = RequestInfo::parse(&http::Method::GET, &"/api/v1/pods".parse().unwrap()).unwrap();
        assert_eq!(of(&info, None, None), Width::ONE);
    }
}
