//! What stands in the directory of network configurations, read as libcni reads it: the first file by name that ends with
//! `.conf`, `.conflist` or `.json` counts. Read anew at each use, so that a change holds for the next pod.

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};
use std::fs;
use std::path::Path;

/// The newest version of the specification that is spoken.
pub const NEWEST: (u32, u32, u32) = (1, 1, 0);
/// From when on plug-ins are told what was made when they are to check or take back; and from when on they tell their status and
/// collect what nobody needs.
pub const CHECKS: (u32, u32, u32) = (0, 4, 0);
pub const COLLECTS: (u32, u32, u32) = (1, 1, 0);

const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];
const MOST: u64 = 1 << 20;

/// One network: plug-ins, asked one after the other.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Network {
    pub name: String,
    pub version: String,
    #[serde(default)]
    pub disable_check: bool,
    #[serde(default)]
    pub disable_gc: bool,
    /// Each with its `type`.
    pub plugins: Vec<Map<String, Value>>,
}

/// Three numbers with dots between them; what is left out is 0.
pub fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('.').map(str::parse::<u32>);
    let version = (
        parts.next()?.ok()?,
        parts.next().unwrap_or(Ok(0)).ok()?,
        parts.next().unwrap_or(Ok(0)).ok()?,
    );
    parts.next().is_none().then_some(version)
}

impl Network {
    pub fn is_at_least(&self, since: (u32, u32, u32)) -> bool {
        version(&self.version).is_some_and(|own| own >= since)
    }
}

/// The network that pods get; `None` while there is no file.
pub fn load(dir: &Path) -> anyhow::Result<Option<Network>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries.with_context(|| format!("reading {}", dir.display()))?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let extension = path.extension().and_then(|e| e.to_str());
        if extension.is_some_and(|e| EXTENSIONS.contains(&e)) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let Some(first) = files.first() else { return Ok(None) };
    let size = fs::metadata(first).map_or(0, |m| m.len());
    ensure!(size <= MOST, "{} has more than {MOST} bytes", first.display());
    let text = fs::read(first).with_context(|| format!("reading {}", first.display()))?;
    let list = first.extension().is_some_and(|e| e == "conflist");
    let network = parse(&text, list).with_context(|| format!("error loading CNI config file {}", first.display()))?;
    Ok(Some(network))
}

/// A list of plug-ins, or one plug-in that is a network by itself.
pub fn parse(text: &[u8], list: bool) -> anyhow::Result<Network> {
    let Value::Object(mut all) = serde_json::from_slice(text).context("it is no JSON")? else {
        bail!("it is no JSON object");
    };
    // Files of either form are taken by what they hold, if the name leaves it open.
    let list = list || all.contains_key("plugins");
    let text_of = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = text_of(all.get("name"));
    ensure!(
        is_name(&name),
        "name {name:?}: it has to begin with a letter or digit, and to go on with these, -, _ and ."
    );
    let flag = |all: &Map<String, Value>, name: &str| match all.get(name) {
        None => Ok(false),
        Some(Value::Bool(is)) => Ok(*is),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => bail!("{name} is {other}: it can be true or false"),
    };
    let version = chosen(&all)?;
    let plugins = match list {
        true => match all.remove("plugins") {
            Some(Value::Array(plugins)) => plugins,
            _ => bail!("no plugins in list"),
        },
        false => vec![Value::Object(all.clone())],
    };
    ensure!(!plugins.is_empty(), "no plugins in list");
    let plugins = plugins.into_iter().map(|plugin| match plugin {
        Value::Object(plugin) => {
            let kind = text_of(plugin.get("type"));
            ensure!(!kind.is_empty(), "missing 'type' of a plug-in");
            // It is found in the directory of plug-ins, and nowhere else.
            ensure!(
                !kind.contains(['/', '\0']) && kind != "." && kind != "..",
                "invalid plugin name: {kind}"
            );
            Ok(plugin)
        }
        other => bail!("a plug-in is {other}"),
    });
    Ok(Network {
        name,
        version,
        disable_check: flag(&all, "disableCheck")?,
        disable_gc: flag(&all, "disableGC")?,
        plugins: plugins.collect::<anyhow::Result<_>>()?,
    })
}

/// The newest of `cniVersions` that is spoken here, else `cniVersion`.
fn chosen(all: &Map<String, Value>) -> anyhow::Result<String> {
    let given = match all.get("cniVersion") {
        None => "0.1.0",
        Some(Value::String(text)) if text.is_empty() => "0.1.0",
        Some(Value::String(text)) => text,
        Some(other) => bail!("cniVersion is {other}: it is text such as \"1.0.0\""),
    };
    let offered = all.get("cniVersions").and_then(Value::as_array).into_iter().flatten();
    let offered = offered.filter_map(Value::as_str).chain([given]);
    let spoken = offered.filter_map(|text| Some((version(text)?, text)));
    let newest = spoken.filter(|(version, _)| *version <= NEWEST).max();
    let (_, newest) = newest.with_context(|| format!("cniVersion {given:?}: 1.1.0 and older ones are spoken here"))?;
    Ok(newest.to_owned())
}

/// Names are parts of file names, for this program and for plug-ins.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Network, String> {
        parse(text.as_bytes(), true).map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn a_list_and_a_single_plugin_are_networks() {
        let of = list(
            r#"{"cniVersion": "1.0.0", "name": "n", "disableCheck": "true", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#,
        );
        let of = of.unwrap();
        assert_eq!((of.plugins.len(), of.disable_check, of.disable_gc), (2, true, false));
        let single = parse(
            br#"{"cniVersion": "0.3.1", "name": "n", "type": "bridge", "mtu": 1400}"#,
            false,
        )
        .unwrap();
        assert_eq!(
            (single.plugins[0]["mtu"].as_i64(), single.version.as_str()),
            (Some(1400), "0.3.1")
        );
        assert!(!single.is_at_least(CHECKS) && of.is_at_least(CHECKS) && !of.is_at_least(COLLECTS));
    }

    #[test]
    fn the_newest_version_that_both_speak_is_spoken() {
        let of = |version: &str| {
            list(&format!(
                r#"{{{version} "name": "n", "plugins": [{{"type": "bridge"}}]}}"#
            ))
            .map(|n| n.version)
        };
        assert_eq!(
            of(r#""cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.1.0", "2.0.0"],"#).unwrap(),
            "1.1.0"
        );
        assert_eq!(of(r#""cniVersion": "0.4.0","#).unwrap(), "0.4.0");
        assert_eq!(of("").unwrap(), "0.1.0");
        assert!(of(r#""cniVersion": "2.0.0","#).unwrap_err().contains("1.1.0 and older"));
        assert!(of(r#""cniVersion": 1,"#).is_err());
    }

    #[test]
    fn what_is_no_network_is_refused_by_name() {
        for (text, why) in [
            ("[]", "no JSON object"),
            ("{", "no JSON"),
            (r#"{"plugins": [{"type": "bridge"}]}"#, "name \"\""),
            (r#"{"name": "../x", "plugins": [{"type": "bridge"}]}"#, "name \"../x\""),
            (r#"{"name": "n", "plugins": []}"#, "no plugins in list"),
            (r#"{"name": "n"}"#, "no plugins in list"),
            (r#"{"name": "n", "plugins": [{}]}"#, "missing 'type'"),
            (
                r#"{"name": "n", "plugins": [{"type": "../sh"}]}"#,
                "invalid plugin name: ../sh",
            ),
            (
                r#"{"name": "n", "disableGC": 1, "plugins": [{"type": "bridge"}]}"#,
                "disableGC is 1",
            ),
        ] {
            let refused = list(text).unwrap_err();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn the_first_file_by_name_counts() {
        let dir = std::env::temp_dir().join(format!("keelson-cni-config-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        assert!(load(&dir).unwrap().is_none());
        fs::create_dir_all(&dir).unwrap();
        let put = |file: &str, name: &str| {
            let text = format!(r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{{"type": "bridge"}}]}}"#);
            fs::write(dir.join(file), text).unwrap();
        };
        put("00-no.txt", "text");
        assert!(load(&dir).unwrap().is_none());
        put("20-b.conflist", "b");
        put("10-a.conflist", "a");
        assert_eq!(load(&dir).unwrap().unwrap().name, "a");
        fs::write(dir.join("05-broken.conf"), "{").unwrap();
        assert!(format!("{:#}", load(&dir).unwrap_err()).contains("05-broken.conf"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
