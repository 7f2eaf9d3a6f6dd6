//! `cargo xtask sbom`: what the program is made of, as CycloneDX, from what cargo resolves for this machine. Tools of developers and
//! what only tests need isn't in the program, and isn't in the list. The same sources give the same text.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = "keelson";

pub fn print(root: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let host = host(&cargo)?;
    let metadata = said(Command::new(&cargo).current_dir(root).args([
        "metadata",
        "--locked",
        "--format-version=1",
        "--filter-platform",
        &host,
    ]))?;
    let lock = std::fs::read_to_string(root.join("Cargo.lock"))?;
    let bill = bill(&serde_json::from_slice(&metadata)?, &lock)?;
    println!("{}", serde_json::to_string_pretty(&bill)?);
    Ok(())
}

fn said(command: &mut Command) -> Result<Vec<u8>> {
    let ran = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        ran.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(ran.stdout)
}

fn host(cargo: &std::ffi::OsStr) -> Result<String> {
    let said = String::from_utf8(said(Command::new(cargo).arg("-vV"))?)?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host
        .context("cargo doesn't say for which machine it builds")?
        .to_owned())
}

/// From `cargo metadata` and Cargo.lock, which has the sums.
fn bill(metadata: &Value, lock: &str) -> Result<Value> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> = list(&metadata["packages"])
        .into_iter()
        .map(|p| (text(&p["id"]), p))
        .collect();
    let nodes: BTreeMap<String, Vec<String>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let built = |d: &Value| list(&d["dep_kinds"]).iter().any(|k| k["kind"] != "dev");
            let needs = list(&node["deps"]).into_iter().filter(built).map(|d| text(&d["pkg"]));
            (text(&node["id"]), needs.collect())
        })
        .collect();
    let program = packages
        .iter()
        .find(|(_, p)| p["name"] == PROGRAM)
        .map(|(id, _)| id.clone());
    let program = program.context("the workspace has no package of the program")?;

    let (mut seen, mut next) = (BTreeSet::new(), vec![program.clone()]);
    while let Some(id) = next.pop() {
        if seen.insert(id.clone()) {
            next.extend(nodes.get(&id).into_iter().flatten().cloned());
        }
    }
    let purl = |id: &str| {
        let package = &packages[id];
        format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"]))
    };
    let sums = sums(lock);
    let component = |id: &str| {
        let package = &packages[id];
        let (name, version) = (text(&package["name"]), text(&package["version"]));
        let mut component = json!({
            "type": if id == program { "application" } else { "library" },
            "bom-ref": purl(id), "name": name, "version": version, "purl": purl(id),
        });
        if let Some(license) = package["license"].as_str() {
            component["licenses"] = json!([{"expression": license.replace('/', " OR ")}]);
        }
        if let Some(sum) = sums.get(&(name, version)) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
        }
        if let Some(repository) = package["repository"].as_str() {
            component["externalReferences"] = json!([{"type": "vcs", "url": repository}]);
        }
        component
    };
    let mut components: Vec<Value> = seen
        .iter()
        .filter(|id| **id != program)
        .map(|id| component(id))
        .collect();
    components.sort_by_key(|c| text(&c["bom-ref"]));
    let mut dependencies: Vec<Value> = seen
        .iter()
        .map(|id| {
            let needs: BTreeSet<String> = nodes.get(id).into_iter().flatten().map(|id| purl(id)).collect();
            json!({"ref": purl(id), "dependsOn": needs})
        })
        .collect();
    dependencies.sort_by_key(|d| text(&d["ref"]));
    Ok(json!({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
        "metadata": {"component": component(&program)},
        "components": components, "dependencies": dependencies,
    }))
}

/// SHA-256 of what registries handed out.
fn sums(lock: &str) -> BTreeMap<(String, String), String> {
    let packages = lock.split("[[package]]").filter_map(|package| {
        let value = |name: &str| {
            let mut lines = package
                .lines()
                .filter_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            lines.next().map(|v| v.trim_matches('"').to_owned())
        };
        Some(((value("name")?, value("version")?), value("checksum")?))
    });
    packages.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_program_is_made_of_and_nothing_else() {
        let package = |name: &str, license: Value| json!({"id": format!("{name}#1"), "name": name, "version": "1.0.0", "license": license});
        let needs = |name: &str, kind: Value| json!({"pkg": format!("{name}#1"), "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [
                package("keelson", json!("Apache-2.0")), package("a", json!("MIT/Apache-2.0")), package("b", Value::Null),
                package("builder", json!("MIT")), package("tester", json!("MIT")), package("xtask", json!("MIT")),
            ],
            "resolve": {"nodes": [
                {"id": "keelson#1", "deps": [needs("a", Value::Null), needs("tester", json!("dev")), needs("builder", json!("build"))]},
                {"id": "a#1", "deps": [needs("b", Value::Null)]},
                {"id": "b#1", "deps": []}, {"id": "builder#1", "deps": []},
                {"id": "xtask#1", "deps": [needs("tester", Value::Null)]},
            ]},
        });
        let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry\"\nchecksum = \"00ff\"\n\n[[package]]\nname = \"keelson\"\nversion = \"1.0.0\"\n";
        let bill = bill(&metadata, lock).unwrap();
        let names: Vec<&Value> = bill["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| &c["name"])
            .collect();
        assert_eq!(names, ["a", "b", "builder"]);
        assert_eq!(bill["components"][0]["hashes"][0]["content"], "00ff");
        assert_eq!(bill["components"][0]["licenses"][0]["expression"], "MIT OR Apache-2.0");
        assert_eq!(bill["metadata"]["component"]["purl"], "pkg:cargo/keelson@1.0.0");
        assert_eq!(
            bill["dependencies"][0],
            json!({"ref": "pkg:cargo/a@1.0.0", "dependsOn": ["pkg:cargo/b@1.0.0"]})
        );
        assert_eq!(bill["dependencies"].as_array().unwrap().len(), 4);
    }
}
