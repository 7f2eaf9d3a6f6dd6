//! Probes and hooks.

use super::check::{Errs, count, header_name, s};
use super::container::{PodFacts, name_of};
use keelson_api::Map;

pub fn lifecycle_and_probes(e: &mut Errs, c: &Map, facts: &PodFacts) {
    e.child(c, "lifecycle", |e, l| {
        for hook in ["postStart", "preStop"] {
            e.child(l, hook, |e, h| handler(e, h, facts.grace));
        }
    });
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        e.child(c, key, |e, p| {
            handler(e, p, facts.grace);
            for number in [
                "initialDelaySeconds",
                "timeoutSeconds",
                "periodSeconds",
                "successThreshold",
                "failureThreshold",
            ] {
                e.non_negative(p, number);
            }
            if let Some(n) = p.int("terminationGracePeriodSeconds") {
                if n <= 0 {
                    e.invalid("terminationGracePeriodSeconds", n, "must be greater than 0");
                }
                if key == "readinessProbe" {
                    e.invalid(
                        "terminationGracePeriodSeconds",
                        n,
                        "must not be set for readinessProbes",
                    );
                }
            }
            let success = p.int("successThreshold").unwrap_or(0);
            if key != "readinessProbe" && success != 1 {
                e.invalid("successThreshold", success, "must be 1");
            }
        });
    }
}

fn handler(e: &mut Errs, h: &Map, grace: Option<i64>) {
    let mut found = false;
    for kind in ["exec", "httpGet", "tcpSocket", "grpc", "sleep"] {
        if !h.contains_key(kind) {
            continue;
        }
        if found {
            e.forbidden(kind, "may not specify more than 1 handler type");
            continue;
        }
        found = true;
        e.child(h, kind, |e, action| match kind {
            "exec" if count(action, "command") == 0 => e.required("command", ""),
            "httpGet" => http_get(e, action),
            "tcpSocket" => e.port_or_name(action, "port"),
            "grpc" => e.port(action, "port"),
            "sleep" => {
                let seconds = action.int("seconds").unwrap_or(0);
                if let Some(grace) = grace.filter(|g| seconds < 0 || seconds > *g) {
                    let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    e.invalid("", seconds, &why);
                }
            }
            _ => {}
        });
    }
    if !found {
        e.required("", "must specify a handler type");
    }
}

fn http_get(e: &mut Errs, get: &Map) {
    if s(get, "path").is_empty() {
        e.required("path", "");
    }
    e.port_or_name(get, "port");
    let schemes = ["HTTP", "HTTPS"];
    if !schemes.contains(&s(get, "scheme")) {
        e.not_supported("scheme", s(get, "scheme"), &schemes);
    }
    for header in get.arr("httpHeaders").into_iter().flatten() {
        e.format("httpHeaders", name_of(header), header_name);
    }
    if let Some(protocol) = get.str("protocol") {
        let supported = ["HTTP1", "HTTP2"];
        if !supported.contains(&protocol) {
            e.not_supported("protocol", protocol, &supported);
        } else if protocol == "HTTP2" && s(get, "scheme") != "HTTP" {
            e.invalid("protocol", protocol, "is only supported with HTTP (H2C)");
        } else if protocol == "HTTP2" && !s(get, "host").is_empty() {
            e.invalid("host", s(get, "host"), "must be empty when `protocol` is \"HTTP2\"");
        }
    }
}
