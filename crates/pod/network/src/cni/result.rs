//! What plug-ins answer: addresses, or why there are none. Pure.

use super::call::LINK;
use serde_json::Value;
use std::net::IpAddr;

/// The pod's addresses in a result of any version, in its order.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let parse = |text: &str| text.split('/').next()?.parse().ok();
    // Until 0.2.0 there was one of each family.
    let old = ["ip4", "ip6"]
        .iter()
        .filter_map(|family| result.get(family)?.get("ip")?.as_str());
    let mut all: Vec<IpAddr> = old.filter_map(parse).collect();
    let links = result.get("interfaces").and_then(Value::as_array);
    for ip in result.get("ips").and_then(Value::as_array).into_iter().flatten() {
        let link = ip.get("interface").and_then(Value::as_u64);
        let link = link.and_then(|at| links?.get(usize::try_from(at).ok()?));
        let of_pod = link.is_none_or(|link| {
            let text = |name: &str| link.get(name).and_then(Value::as_str).unwrap_or_default();
            text("name") == LINK && !text("sandbox").is_empty()
        });
        if of_pod {
            all.extend(ip.get("address").and_then(Value::as_str).and_then(parse));
        }
    }
    all
}

/// Why a plug-in failed, in libcni's words: by its own, or by what it wrote elsewhere.
pub fn failure(output: &[u8], errors: &[u8]) -> String {
    let said: Option<Value> = serde_json::from_slice(output).ok();
    let text = |name: &str| {
        said.as_ref()
            .and_then(|s| s.get(name))
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    match (text("msg"), text("details")) {
        ("", "") => {
            let errors = String::from_utf8_lossy(errors);
            match errors.trim() {
                "" => "netplugin failed with no error message".to_owned(),
                errors => format!("netplugin failed: {errors:?}"),
            }
        }
        (message, "") => message.to_owned(),
        (message, details) => format!("{message}; {details}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_are_those_of_the_pods_link() {
        let shown = |result: Value| addresses(&result).iter().map(IpAddr::to_string).collect::<Vec<_>>();
        let modern = json!({"cniVersion": "1.1.0",
            "interfaces": [{"name": "cni0"}, {"name": "vethx"}, {"name": "eth0", "sandbox": "/ns"}],
            "ips": [{"interface": 2, "address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"interface": 2, "address": "fd00::5/64"},
                    {"interface": 0, "address": "10.1.0.1/24"}]});
        assert_eq!(shown(modern), ["10.1.0.5", "fd00::5"]);
        assert_eq!(
            shown(json!({"ips": [{"version": "4", "address": "10.1.0.5/24"}]})),
            ["10.1.0.5"]
        );
        assert_eq!(
            shown(json!({"ip4": {"ip": "10.1.0.5/24"}, "ip6": {"ip": "fd00::5/64"}})),
            ["10.1.0.5", "fd00::5"]
        );
        for nothing in [
            json!({}),
            json!([]),
            json!({"ips": [{"address": "?"}, 1], "interfaces": 7}),
        ] {
            assert!(shown(nothing).is_empty());
        }
    }

    #[test]
    fn a_failure_is_told_in_the_plugins_words() {
        let of = |output: &str, errors: &str| failure(output.as_bytes(), errors.as_bytes());
        assert_eq!(
            of(r#"{"code": 11, "msg": "no addresses left"}"#, "x"),
            "no addresses left"
        );
        assert_eq!(of(r#"{"code": 7, "msg": "bad", "details": "range"}"#, ""), "bad; range");
        assert_eq!(of("", "panic: oh\n"), "netplugin failed: \"panic: oh\"");
        assert_eq!(of("", ""), "netplugin failed with no error message");
    }
}
