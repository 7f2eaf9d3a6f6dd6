//! The configuration file with settings in it: what it has besides stays, remarks included.

use anyhow::{Context, bail, ensure};
use serde_json::{Map, Value};

const HEAD: &str = "# Options of Keelson, as on its command line but without dashes (docs/configuration.md). Restart the service after a change.\n";

pub fn read(text: &str) -> anyhow::Result<Map<String, Value>> {
    let read: Option<Map<String, Value>> = serde_saphyr::from_str(text).map_err(|e| anyhow::anyhow!("{e}"))?;
    Ok(read.unwrap_or_default())
}

/// `None`: there is no file yet.
pub fn with(before: Option<&str>, settings: &Map<String, Value>) -> anyhow::Result<String> {
    let mut text = before.unwrap_or(HEAD).to_owned();
    // Remarks alone are nothing to a reader of YAML.
    let mut wanted = read(&text).context("the configuration file is not valid")?;
    for (name, value) in settings {
        if wanted.get(name) == Some(value) {
            continue;
        }
        let line = format!("{name}: {value}\n");
        text = match place(&text, name) {
            Some((from, to)) => [&text[..from], &line, &text[to..]].concat(),
            None if text.is_empty() || text.ends_with('\n') => text + &line,
            None => text + "\n" + &line,
        };
        wanted.insert(name.clone(), value.clone());
    }
    match read(&text) {
        Ok(now) => ensure!(
            now == wanted,
            "the configuration file has a form that can't be completed: write the options into it by hand"
        ),
        Err(_) => bail!("the configuration file has a form that can't be completed: write the options into it by hand"),
    }
    Ok(text)
}

/// From where to where a setting stands: its line, and those below that are part of it.
fn place(text: &str, name: &str) -> Option<(usize, usize)> {
    let (mut at, mut found) = (0, None);
    for line in text.split_inclusive('\n') {
        match found {
            Some(from) if !line.starts_with([' ', '\t', '-']) => return Some((from, at)),
            None if line.strip_prefix(name).is_some_and(|rest| rest.starts_with(':')) => found = Some(at),
            _ => {}
        }
        at += line.len();
    }
    found.map(|from| (from, at))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(of: Value) -> Map<String, Value> {
        of.as_object().cloned().unwrap()
    }

    #[test]
    fn what_is_said_takes_its_place_and_the_rest_stays() {
        let before = "# mine\nnode-ip: 192.0.2.1 # the fast one\ndisable:\n  - dns\n- x\nlog: info";
        let before = before.replace("- x\n", "");
        let text = with(
            Some(&before),
            &settings(json!({"disable": ["proxy"], "api-port": 7443})),
        )
        .unwrap();
        assert_eq!(
            text,
            "# mine\nnode-ip: 192.0.2.1 # the fast one\ndisable: [\"proxy\"]\nlog: info\napi-port: 7443\n"
        );
        assert_eq!(
            with(Some(&text), &settings(json!({"disable": ["proxy"]}))).unwrap(),
            text
        );
        let new = with(
            None,
            &settings(json!({"node-name": "a: \"b\" #c", "data-dir": "/x %y"})),
        )
        .unwrap();
        assert_eq!(read(&new).unwrap()["node-name"], "a: \"b\" #c");
        assert!(new.starts_with(HEAD), "{new}");
        assert_eq!(with(None, &Map::new()).unwrap(), HEAD);
        assert_eq!(with(Some(""), &settings(json!({"log": "x"}))).unwrap(), "log: \"x\"\n");
        // Flow style, and a name in quotes.
        for odd in ["{log: info}\n", "\"log\": info\n"] {
            let error = with(Some(odd), &settings(json!({"log": "debug"})))
                .unwrap_err()
                .to_string();
            assert!(error.contains("by hand"), "{odd}: {error}");
        }
        assert!(with(Some("a: ["), &Map::new()).is_err());
    }
}
