//! `tools/package.sh`, with a small file as the program: what is in an archive and a package, and that they don't depend on when and
//! where they are made.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAM: &str = "#!/bin/sh\ncase $1 in man) mkdir -p \"$2\"; echo page >\"$2/keelson.1\";; completion) echo \"complete $2 $USER\";; esac\n";

fn packed(name: &str, program: &str) -> (PathBuf, BTreeMap<String, Vec<u8>>) {
    let dir = std::env::temp_dir().join(format!("keelson-package-{}-{name}", std::process::id()));
    let out = dir.join("out");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("keelson"), program).unwrap();
    std::fs::set_permissions(dir.join("keelson"), std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(dir.join("sbom"), "{}").unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/package.sh");
    let ran = Command::new(script)
        .args([&dir.join("keelson"), &out])
        .envs([("SOURCE_DATE_EPOCH", "1700000000"), ("USER", name)])
        .env("SBOM", dir.join("sbom"))
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let files = std::fs::read_dir(&out).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        (
            path.file_name().unwrap().to_string_lossy().into_owned(),
            std::fs::read(path).unwrap(),
        )
    });
    (dir, files.collect())
}

fn said(program: &str, words: &[&str], dir: &Path) -> String {
    let ran = Command::new(program)
        .args(words)
        .env("TZ", "UTC")
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(
        ran.status.success(),
        "{program} {words:?}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    String::from_utf8_lossy(&ran.stdout).into_owned()
}

#[test]
fn the_same_program_gives_the_same_packages() {
    let (one, first) = packed("one", PROGRAM);
    let (two, second) = packed("two", PROGRAM);
    let (three, other) = packed("three", &format!("{PROGRAM}# changed\n"));
    assert!(
        first == second,
        "two packagings of one program differ: {:?}",
        first["SHA256SUMS"]
    );
    let archive = first.keys().find(|n| n.ends_with(".tar.gz")).unwrap();
    assert_ne!(first[archive], other[archive]);

    let out = one.join("out");
    said("sha256sum", &["--check", "--strict", "SHA256SUMS"], &out);
    let sums = String::from_utf8_lossy(&first["SHA256SUMS"]).into_owned();
    assert_eq!(sums.lines().count(), first.len() - 1, "{sums}");
    let listed = said("tar", &["-tvf", archive], &out);
    for wanted in [
        "/keelson\n",
        "/LICENSE\n",
        "/README.md\n",
        "/man/keelson.1\n",
        "/completions/_keelson\n",
        "/keelson.service\n",
    ] {
        assert!(listed.contains(wanted), "{wanted} isn't in {listed}");
    }
    assert!(
        listed.lines().all(|l| l.contains(" 0/0 ") && l.contains("2023-11-14")),
        "{listed}"
    );
    assert!(
        listed
            .lines()
            .any(|l| l.starts_with("-rwxr-xr-x") && l.ends_with("/keelson")),
        "{listed}"
    );
    if let Some(package) = first.keys().find(|n| n.ends_with(".deb")) {
        let listed = said("dpkg-deb", &["--contents", package], &out);
        assert!(
            listed.contains("./usr/bin/keelson\n") && listed.contains("./usr/share/man/man1/keelson.1.gz\n"),
            "{listed}"
        );
        let unit = said(
            "sh",
            &[
                "-c",
                &format!("dpkg-deb --fsys-tarfile {package} | tar -xO ./usr/lib/systemd/system/keelson.service"),
            ],
            &out,
        );
        assert!(unit.contains("ExecStart=/usr/bin/keelson server"), "{unit}");
    }
    if let Some(package) = first.keys().find(|n| n.ends_with(".rpm")) {
        let listed = said(
            "rpm",
            &["-qplv", "--dbpath", &one.join("db").to_string_lossy(), package],
            &out,
        );
        let line = |end: &str| listed.lines().find(|l| l.ends_with(end)).unwrap_or_default();
        assert!(line(" /usr/bin/keelson").starts_with("-rwxr-xr-x"), "{listed}");
        assert!(line(" /etc/keelson/config.yaml").starts_with("-rw-------"), "{listed}");
        assert!(
            listed.contains("/man1/keelson.1.gz") && listed.contains("Nov 14  2023"),
            "{listed}"
        );
    }
    an_image_holds_the_program(first.keys().find(|n| n.ends_with(".oci.tar")).unwrap(), &out);
    for dir in [one, two, three] {
        std::fs::remove_dir_all(dir).unwrap();
    }
}

/// From the index down to the file, each by its sum.
fn an_image_holds_the_program(archive: &str, dir: &Path) {
    let blob = |digest: &serde_json::Value| {
        let digest = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        let file = format!("blobs/sha256/{digest}");
        let sum = said("sh", &["-c", &format!("tar -xOf {archive} {file} | sha256sum")], dir);
        assert!(sum.starts_with(digest), "{file} is {sum}");
        file
    };
    let json = |file: &str| -> serde_json::Value {
        serde_json::from_str(&said("tar", &["-xOf", archive, file], dir)).unwrap()
    };
    let index = json("index.json");
    let manifest = json(&blob(&index["manifests"][0]["digest"]));
    let config = json(&blob(&manifest["config"]["digest"]));
    assert_eq!(config["config"]["Entrypoint"][0], "/bin/keelson");
    let layer = blob(&manifest["layers"][0]["digest"]);
    let unpacked = said(
        "sh",
        &["-c", &format!("tar -xOf {archive} {layer} | gunzip | sha256sum")],
        dir,
    );
    let told = config["rootfs"]["diff_ids"][0].as_str().unwrap();
    assert!(
        unpacked.starts_with(told.strip_prefix("sha256:").unwrap()),
        "{unpacked}"
    );
    let listed = said("sh", &["-c", &format!("tar -xOf {archive} {layer} | tar -tzvf -")], dir);
    assert!(
        listed
            .lines()
            .any(|l| l.starts_with("-rwxr-xr-x 0/0") && l.ends_with(" bin/keelson")),
        "{listed}"
    );
}
