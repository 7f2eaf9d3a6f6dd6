//! Into a directory, with a systemctl that writes down how it was called.

use super::*;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Says that everything went well, and which start that is: a new one if it was asked for one, with the state that is to come after it.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$(basename \"$0\") $*\" >>\"$(dirname \"$0\")/../calls\"\n\
case $1 in start|restart) echo x >>\"$(dirname \"$0\")/starts\"\n\
cp \"$(dirname \"$0\")/../after\" \"$(dirname \"$0\")/../state\" 2>/dev/null;; esac\n\
cat \"$(dirname \"$0\")/../state\" 2>/dev/null || echo ActiveState=inactive\n\
echo InvocationID=$(cat \"$(dirname \"$0\")/starts\" 2>/dev/null | wc -l)\n";

/// The same for OpenRC: what was started is.
const RC: &str = "#!/bin/sh\necho \"$(basename \"$0\") $*\" >>\"$(dirname \"$0\")/../calls\"\n\
case \"$*\" in *' status') test -e \"$(dirname \"$0\")/../state\";; *start) touch \"$(dirname \"$0\")/../state\";; esac\n";

struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn of(manager: &str) -> Tree {
        let tree = Tree {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(tree.at("tools")).unwrap();
        for tool in ["systemctl", "journalctl", "rc-service", "rc-update"] {
            let text = match tool {
                "journalctl" => "#!/bin/sh\necho a reason\n",
                "rc-service" => RC,
                _ => SYSTEMCTL,
            };
            tree.write(&format!("tools/{tool}"), text);
            fs::set_permissions(tree.at(&format!("tools/{tool}")), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir_all(tree.at(manager)).unwrap();
        tree.write("new/keelson", "one");
        tree
    }
    fn systemd() -> Tree {
        let tree = Tree::of("run/systemd/system");
        tree.write("state", "ActiveState=active\n");
        tree
    }
    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }
    fn write(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }
    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }
    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.at(path)).unwrap().permissions().mode() & 0o7777
    }
    /// What was run since the last look, questions left out.
    fn calls(&self) -> Vec<String> {
        let calls = fs::read_to_string(self.at("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.at("calls"));
        let done = calls
            .lines()
            .filter(|l| !l.contains(" show ") && !l.ends_with(" status"));
        done.map(String::from).collect()
    }
    fn install(&self, words: &[&str]) -> Result<String, String> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let words = [&["install", "--timeout", "1s"], words].concat();
        let line = <Line as clap::Parser>::try_parse_from(words).map_err(|e| e.to_string())?;
        run(&line.options, &Host::fake(self.dir.path()), &self.at("new/keelson")).map_err(|e| format!("{e:#}"))
    }
    /// Every file but those that the test made.
    fn files(&self) -> Vec<String> {
        fn walk(dir: &Path, root: &Path, into: &mut Vec<String>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                match path.is_dir() {
                    true => walk(&path, root, into),
                    false => into.push(path.strip_prefix(root).unwrap().display().to_string()),
                }
            }
        }
        let mut files = Vec::new();
        walk(self.dir.path(), self.dir.path(), &mut files);
        files.retain(|f| !f.starts_with("tools/") && !f.starts_with("new/") && f != "state" && f != "calls");
        files
    }
    fn record(&self) -> Record {
        Record::read(&self.at("var/lib/keelson")).unwrap().unwrap()
    }
}

const UNIT: &str = "etc/systemd/system/keelson.service";
const CONFIG: &str = "etc/keelson/config.yaml";

#[test]
fn a_server_is_installed_once_upgraded_and_removed_without_a_trace() {
    let tree = Tree::systemd();
    tree.write("state", "ActiveState=inactive\n");
    let told = tree.install(&[
        "--no-start",
        "server",
        "--",
        "--disable=dns,proxy",
        "--api-port",
        "7443",
        "--token",
        "a\"b$c",
    ]);
    assert_eq!(
        told.unwrap(),
        "installed keelson 0.1.0 as a server; it starts with the machine"
    );
    assert_eq!(
        tree.calls(),
        ["systemctl daemon-reload", "systemctl enable keelson.service"]
    );
    assert_eq!(
        (
            tree.read("usr/local/bin/keelson").as_str(),
            tree.mode("usr/local/bin/keelson")
        ),
        ("one", 0o755)
    );
    assert!(
        tree.read(UNIT)
            .contains("\nExecStart=/usr/local/bin/keelson server --config /etc/keelson/config.yaml\n")
    );
    let config = tree.read(CONFIG);
    let lines = ["api-port: 7443", "disable: [\"dns\",\"proxy\"]"];
    assert!(lines.iter().all(|l| config.lines().any(|c| c == *l)), "{config}");
    // What a pod's user has is below it.
    assert_eq!(
        (
            tree.mode("var/lib/keelson") & 0o001,
            tree.mode("var/lib/keelson/installed.json")
        ),
        (1, 0o600)
    );
    // Nobody but root reads the token, and nobody's list of processes has it.
    assert_eq!(tree.read("etc/keelson/secrets.env"), "KEELSON_TOKEN=\"a\\\"b\\$c\"\n");
    assert_eq!((tree.mode("etc/keelson/secrets.env"), tree.mode(UNIT)), (0o600, 0o644));
    assert!(!config.contains("token") && !tree.read(UNIT).contains("b$c"));
    assert!(tree.at("usr/local/share/man/man1/keelson-server.1").exists());

    // A second time: nothing but what is missing, the start.
    tree.write("state", "ActiveState=active\n");
    let told = tree.install(&[]).unwrap();
    assert_eq!(
        told,
        "nothing to change: keelson is installed as a server, version 0.1.0; it runs"
    );
    assert_eq!(tree.calls(), ["systemctl enable keelson.service"]);

    // A newer program.
    tree.write("new/keelson", "two");
    let told = tree.install(&["server"]).unwrap();
    assert_eq!(told, "keelson 0.1.0 is 0.1.0 now, with 1 files changed; it runs");
    assert_eq!(tree.read("usr/local/bin/keelson"), "two");
    assert_eq!(
        tree.calls(),
        [
            "systemctl enable keelson.service",
            "systemctl restart --no-block keelson.service"
        ]
    );

    let (record, host) = (tree.record(), Host::fake(tree.dir.path()));
    record.stop(&host).unwrap();
    record.remove_files(&host).unwrap();
    assert_eq!(
        tree.calls(),
        ["systemctl disable --now keelson.service", "systemctl daemon-reload"]
    );
    fs::remove_dir_all(tree.at("var")).unwrap();
    assert_eq!(tree.files(), ["usr/local/bin/keelson"]);
    record.remove_program(&host).unwrap();
    assert_eq!(tree.files(), Vec::<String>::new());
    assert!(
        !tree.at("etc").exists() && !tree.at("usr").exists(),
        "directories that it made stay"
    );
}

#[test]
fn what_others_wrote_is_shown_and_replaced_only_by_force() {
    let tree = Tree::systemd();
    tree.write(UNIT, "[Service]\nExecStart=/opt/keelson server\n");
    tree.write(CONFIG, "# mine\nlog: debug\n");
    tree.write("usr/local/bin/keelson", "one");
    fs::set_permissions(tree.at("usr/local/bin/keelson"), fs::Permissions::from_mode(0o755)).unwrap();
    let refused = tree.install(&["--", "--log=info"]).unwrap_err();
    assert!(refused.contains("--force"), "{refused}");
    assert_eq!(tree.read(CONFIG), "# mine\nlog: debug\n");
    assert_eq!((tree.calls(), tree.files().len()), (vec![], 3));

    tree.install(&["--force", "--", "--log=info"]).unwrap();
    assert_eq!(tree.read(CONFIG), "# mine\nlog: \"info\"\n");
    assert!(tree.read(UNIT).contains("Type=notify"));
    // The file of options was there before, and so was the program: both stay when the rest goes.
    let record = tree.record();
    assert!(record.program.is_none() && !record.has(Path::new("/etc/keelson/config.yaml")));
    assert!(record.has(Path::new("/etc/systemd/system/keelson.service")));

    // Changed by hand afterwards.
    tree.write(UNIT, &tree.read(UNIT).replace("RestartSec=1", "RestartSec=9"));
    assert!(tree.install(&[]).unwrap_err().contains("--force"));
    tree.install(&["--force"]).unwrap();
    // Another value than the one that is there, and one that nobody has said yet.
    let refused = tree.install(&["--", "--log=warn", "--api-port=7000"]).unwrap_err();
    assert!(refused.contains("--force"), "{refused}");
    tree.install(&["--", "--api-port", "7000"]).unwrap();
    assert_eq!(tree.read(CONFIG), "# mine\nlog: \"info\"\napi-port: 7000\n");
    // One of a newer version.
    let newer = Record {
        version: "99.0.0".into(),
        ..tree.record()
    };
    newer.write(&tree.at("var/lib/keelson")).unwrap();
    assert!(tree.install(&[]).unwrap_err().contains("--force"));
}

#[test]
fn an_agent_needs_a_server_and_a_token_once() {
    let tree = Tree::systemd();
    let refused = tree.install(&["agent"]).unwrap_err();
    assert!(refused.contains("token create --print-join-command"), "{refused}");
    let server = "--server=https://192.0.2.1:6443";
    let refused = tree.install(&["agent", "--", server, "--token", "short"]).unwrap_err();
    assert!(refused.contains("--token"), "{refused}");
    let hash = "0".repeat(64);
    let token = format!("abcdef.0123456789abcdef.{hash}");
    tree.install(&["agent", "--", server, "--token", &token]).unwrap();
    assert!(
        tree.read("etc/systemd/system/keelson-agent.service")
            .contains("keelson agent --config")
    );
    assert!(tree.read("etc/keelson/secrets.env").contains(&hash) && !tree.read(CONFIG).contains(&hash));
    // Afterwards it is known what this machine is.
    assert!(tree.install(&[]).unwrap().contains("as an agent"));
    let refused = tree.install(&["server"]).unwrap_err();
    assert!(refused.contains("keelson uninstall"), "{refused}");
}

#[test]
fn a_service_that_does_not_come_up_is_told_with_what_it_said() {
    let tree = Tree::systemd();
    tree.write("after", "ActiveState=activating\nNRestarts=4\n");
    let refused = tree.install(&[]).unwrap_err();
    assert!(
        refused.contains("ends as soon as it starts") && refused.ends_with("  a reason"),
        "{refused}"
    );
    tree.write("after", "ActiveState=activating\nNRestarts=0\n");
    tree.write("new/keelson", "two");
    let refused = tree.install(&[]).unwrap_err();
    assert!(
        refused.contains("not ready after 1s") && refused.ends_with("  a reason"),
        "{refused}"
    );
}

#[test]
fn what_can_not_work_is_refused_before_anything_is_written() {
    let tree = Tree::systemd();
    for (words, wanted) in [
        (vec!["--", "--no-such-option"], "--no-such-option"),
        (vec!["--", "--api-port", "many"], "--api-port"),
        (vec!["--", "--node-name", "a\nb"], "line breaks"),
        (vec!["--bin-dir", "/opt/a b"], "absolute path"),
        (vec!["--", "--config", "/etc/none.yaml"], "there is no such file"),
    ] {
        let refused = tree.install(&words).unwrap_err();
        assert!(refused.contains(wanted), "{words:?}: {refused}");
    }
    tree.write(CONFIG, "nodename: typo\n");
    let refused = tree.install(&[]).unwrap_err();
    assert!(refused.contains("nodename"), "{refused}");
    assert_eq!(tree.files(), [CONFIG]);
    let neither = Tree::of("etc");
    let refused = neither.install(&[]).unwrap_err();
    assert!(
        refused.contains("neither systemd") && refused.contains("OpenRC"),
        "{refused}"
    );
}

#[test]
fn hostile_options_are_what_they_are() {
    let tree = Tree::systemd();
    let odd = "/srv/50% $HOME \"it's\" \\n #x: {y}";
    let link = format!("--kubelet-link={odd}");
    tree.install(&["--", &link, "--node-labels", "a=b,c=d", "--anonymous-auth=false"])
        .unwrap();
    let read = config_file::read(&tree.read(CONFIG)).unwrap();
    assert_eq!(
        (read["kubelet-link"].as_str(), read["node-labels"].as_str()),
        (Some(odd), Some("a=b,c=d"))
    );
    assert_eq!(read["anonymous-auth"], false);
    // A file of one's own by such a name.
    tree.write("etc/a b%c.yaml", "");
    let words = ["--force", "--", "--config=/etc/a b%c.yaml"];
    tree.install(&words).unwrap();
    assert!(tree.read(UNIT).contains("--config \"/etc/a b%%c.yaml\"\n"));
}

#[test]
fn a_dry_run_shows_files_and_commands_and_changes_nothing() {
    let tree = Tree::systemd();
    let shown = tree.install(&["--dry-run", "--", "--token", "hidden"]).unwrap();
    for wanted in [
        "usr/local/bin/keelson (mode 755, a copy of ",
        "etc/keelson/secrets.env (mode 600)",
        "    + ExecStart=/usr/local/bin/keelson server",
        "run systemctl daemon-reload\nrun systemctl enable keelson.service\nrun systemctl restart --no-block keelson.service\n",
    ] {
        assert!(shown.contains(wanted), "{wanted} isn't in:\n{shown}");
    }
    assert!(!shown.contains("hidden"), "{shown}");
    assert_eq!((tree.calls(), tree.files()), (vec![], vec![]));
}

#[test]
fn without_systemd_it_is_openrc() {
    let tree = Tree::of("etc");
    tree.write("sbin/openrc-run", "");
    let token = format!("abcdef.0123456789abcdef.{}", "0".repeat(64));
    tree.install(&["agent", "--", "--server=https://192.0.2.1:6443", "--token", &token])
        .unwrap();
    assert_eq!(
        tree.calls(),
        ["rc-update add keelson-agent default", "rc-service keelson-agent start"]
    );
    assert_eq!(tree.mode("etc/init.d/keelson-agent"), 0o755);
    tree.write("new/keelson", "two");
    tree.install(&[]).unwrap();
    assert_eq!(
        tree.calls(),
        [
            "rc-update add keelson-agent default",
            "rc-service keelson-agent restart"
        ]
    );
    let (record, host) = (tree.record(), Host::fake(tree.dir.path()));
    tree.write("var/log/keelson-agent.log", "a line");
    record.stop(&host).unwrap();
    record.remove_files(&host).unwrap();
    assert_eq!(
        tree.calls(),
        [
            "rc-service --ifstarted keelson-agent stop",
            "rc-update delete --all keelson-agent"
        ]
    );
    assert!(!tree.at("etc/init.d").exists() || tree.at("etc/init.d").read_dir().unwrap().next().is_none());
    assert!(!tree.at("var/log/keelson-agent.log").exists());
}

#[test]
fn a_start_is_asked_for_if_and_only_if_it_is_needed() {
    const RESTART: &str = "systemctl restart --no-block keelson.service";
    let tree = Tree::systemd();
    tree.install(&[]).unwrap();
    tree.calls();
    // Nothing that a service reads: it isn't waited for.
    fs::remove_file(tree.at("usr/local/share/man/man1/keelson.1")).unwrap();
    tree.install(&[]).unwrap();
    assert_eq!(tree.calls(), ["systemctl enable keelson.service"]);
    // Killed between the files and the start.
    let cut = Record {
        pending: true,
        ..tree.record()
    };
    cut.write(&tree.at("var/lib/keelson")).unwrap();
    tree.install(&[]).unwrap();
    assert!(tree.calls().contains(&RESTART.to_owned()) && !tree.record().pending);
    // The program was exchanged by somebody else; then that one runs.
    tree.write("state", "ActiveState=active\nMainPID=7\n");
    tree.write("proc/7/exe", "one");
    tree.install(&[]).unwrap();
    assert!(tree.calls().contains(&RESTART.to_owned()));
    fs::remove_file(tree.at("proc/7/exe")).unwrap();
    fs::hard_link(tree.at("usr/local/bin/keelson"), tree.at("proc/7/exe")).unwrap();
    tree.install(&[]).unwrap();
    assert_eq!(tree.calls(), ["systemctl enable keelson.service"]);
}

#[test]
fn what_was_there_before_stays_when_the_rest_goes() {
    const SECRETS: &str = "etc/keelson/secrets.env";
    let tree = Tree::systemd();
    tree.write(SECRETS, "HTTP_PROXY=\"http://p\"\n");
    tree.write("usr/local/bin/keelson", "an older one");
    tree.install(&["--", "--token", "servers-token"]).unwrap();
    assert_eq!(
        tree.read(SECRETS),
        "HTTP_PROXY=\"http://p\"\nKEELSON_TOKEN=\"servers-token\"\n"
    );
    assert_eq!(tree.read("usr/local/bin/keelson"), "one");
    // A second time they are no more its own.
    tree.install(&["--", "--token", "servers-token-2"]).unwrap();
    let (record, host) = (tree.record(), Host::fake(tree.dir.path()));
    record.remove_files(&host).unwrap();
    record.remove_program(&host).unwrap();
    assert_eq!(tree.read(SECRETS), "HTTP_PROXY=\"http://p\"\n");
    assert!(tree.at("usr/local/bin/keelson").exists() && !tree.at(UNIT).exists());
}

#[test]
fn paths_are_those_of_where_install_runs() {
    let tree = Tree::systemd();
    let words = ["--", "--data-dir=here", "--audit-log-path", "none", "--cgroup-root=/k"];
    tree.install(&words).unwrap();
    let (read, here) = (
        config_file::read(&tree.read(CONFIG)).unwrap(),
        std::env::current_dir().unwrap().join("here"),
    );
    assert_eq!(
        (read["data-dir"].as_str(), read["audit-log-path"].as_str()),
        (here.to_str(), Some("none"))
    );
    // `uninstall` finds it by the service.
    let installed = Installed::find(&Host::fake(tree.dir.path())).unwrap().unwrap();
    assert_eq!(
        (installed.data_dir, installed.cgroup_root.as_deref()),
        (here, Some("/k"))
    );
    assert!(
        Installed::find(&Host::fake(Tree::systemd().dir.path()))
            .unwrap()
            .is_none()
    );
}

/// An image's tree: files and links only.
#[test]
fn into_another_tree_nothing_is_started() {
    let tree = Tree::of("etc");
    tree.write("usr/lib/systemd/systemd", "");
    let host = Host::at(tree.dir.path().to_owned());
    assert_eq!(host.manager().unwrap(), host::Manager::Systemd);
    let plan = Plan::make(
        &host,
        host::Manager::Systemd,
        Role::Server,
        &Given::default(),
        &tree.at("new/keelson"),
        Path::new("/usr/local/bin"),
    );
    let (plan, root) = (plan.unwrap(), tree.dir.path().display());
    let service = Service::look(&host, host::Manager::Systemd, Role::Server).unwrap();
    assert_eq!(
        plan.commands(plan.verb(false, &service, &host), &host),
        [[
            "systemctl".to_owned(),
            format!("--root={root}"),
            "enable".to_owned(),
            "keelson.service".to_owned()
        ]]
    );
}
