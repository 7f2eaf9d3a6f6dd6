//! Keelson: Kubernetes as one program. The command line; everything else is in the modules.

mod access;
mod addons;
mod agent;
mod archive;
mod assemble;
mod audit;
mod authorities;
mod backup;
mod certificate;
mod client;
mod cluster;
mod components;
mod config;
mod console;
mod containers;
mod definitions;
mod dev;
mod doctor;
mod envtest;
mod etcd;
mod families;
mod flagz;
mod follow;
mod fork;
mod furnish;
mod history;
mod image;
mod image_peers;
mod ingress;
mod install;
mod issue;
mod kubeadm;
mod kubeconfig;
mod kubelet_link;
mod kubelet_options;
mod kubelets;
mod lock;
mod logging;
mod metrics;
mod node;
mod notify;
mod peers;
mod port_forward;
mod process;
mod registry;
mod revoke;
mod secrets;
mod server;
mod servers;
mod simulate;
mod sizes;
mod snapshots;
mod storage;
mod store;
mod supervise;
mod token;
mod told;
mod traces;
mod uninstall;
mod upgrade;
mod user;
mod version;
mod wait;
mod watchdog;
mod why;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const AFTER_HELP: &str = "Every option of `server` and `agent` can also stand in a YAML file (--config, same names without dashes in front) and in the \
environment (KEELSON_ and the name in capitals). The command line wins over the environment, the environment over the file.";

#[derive(Parser)]
#[command(name = "keelson", about = "Kubernetes as one program", version = version::text())]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a cluster on this machine: API server, store, scheduler, controllers, kubelet, runtime, network, proxy, DNS
    #[command(after_help = AFTER_HELP)]
    Server(Box<config::Options>),
    /// Join a cluster with this machine: kubelet, runtime, network, proxy, DNS
    #[command(after_help = AFTER_HELP)]
    Agent(Box<agent::Options>),
    /// Run the API server alone, over an etcd
    #[command(version = version::upstream())]
    Apiserver(Box<components::apiserver::Options>),
    /// Run the scheduler alone
    #[command(version = version::upstream())]
    Scheduler(Box<components::scheduler::Options>),
    /// Run the controllers alone
    #[command(version = version::upstream())]
    ControllerManager(Box<components::controller_manager::Options>),
    /// Run the kubelet alone, with any runtime that speaks CRI
    #[command(version = version::upstream())]
    Kubelet(Box<components::kubelet::Options>),
    /// Run the container runtime and the pod network alone, for any kubelet
    Runtime(Box<components::runtime::Options>),
    /// Run the service proxy alone
    #[command(version = version::upstream())]
    Proxy(Box<components::proxy::Options>),
    /// Run the cluster's DNS alone
    Dns(Box<components::dns::Options>),
    /// Wait until the node and the system services of a cluster are ready
    Wait(wait::Options),
    /// Make, list or remove clusters of several nodes on this one machine
    Dev(dev::Options),
    /// List, import, pull or remove container images of this machine
    Image(image::Options),
    /// Run a registry of images, for who the cluster lets; also before other registries
    #[command(after_help = registry::AFTER_HELP)]
    Registry(Box<registry::Options>),
    /// Create, list or delete tokens with which machines join
    Token(token::Options),
    /// Add, list or remove users: certificates, and what they may do
    User(user::Options),
    /// Print the administrator's kubeconfig, or merge it into yours
    Kubeconfig(kubeconfig::Options),
    /// List this machine's certificates, or have them made anew
    Certificate(certificate::Options),
    /// Take, list and restore snapshots of the store; move it from and to an etcd
    Store(store::snapshot::command::Options),
    /// Make, list, verify and restore backups: objects, keys and this machine's volumes
    Backup(backup::command::Options),
    /// Look after the etcd that servers run (--cluster-init): its members, their files; or serve the store as an etcd
    Etcd(etcd::command::Options),
    /// Make a directory of programs for tests with controller-runtime's envtest
    Envtest(envtest::Options),
    /// Show or rotate the keys that seal secrets in the store
    Secrets(secrets::Options),
    /// Say why an object of the cluster isn't as it should be: cause, evidence, fix
    #[command(after_help = why::AFTER_HELP)]
    Why(why::Options),
    /// Show the cluster in a browser of this machine, by your kubeconfig's rights
    #[command(after_help = console::AFTER_HELP)]
    Console(console::Options),
    /// Say what became of the files in the servers' directories of add-ons
    #[command(after_help = addons::command::AFTER_HELP)]
    Addons(addons::command::Options),
    /// List what became of an object: when, by whom, which fields; also of one that is deleted
    History(history::Changes),
    /// Show objects as they were at a moment
    #[command(after_help = history::MOMENTS)]
    Get(history::Get),
    /// Show how an object differs from what it was
    #[command(after_help = history::DIFF_HELP)]
    Diff(history::Diff),
    /// Say of each field of an object who wrote it
    #[command(after_help = history::BLAME_HELP)]
    Blame(history::Blame),
    /// Bring a deleted object back, or a namespace with all that was in it
    #[command(after_help = history::UNDELETE_HELP)]
    Undelete(history::Undelete),
    /// List what runs on this machine, by its runtime and without the API: containers, or pods
    Ps(containers::ps::Options),
    /// Print what a container of this machine writes, or with --deleted what a deleted pod wrote while its node has it
    #[command(after_help = containers::logs::AFTER_HELP)]
    Logs(containers::logs::Options),
    /// Run a command in a container of this machine, by its runtime
    #[command(after_help = containers::exec::AFTER_HELP)]
    Exec(containers::exec::Options),
    /// Say what the containers or pods of this machine use
    Stats(containers::stats::Options),
    /// Show who uses most of this machine, kept up to date
    #[command(after_help = containers::top::AFTER_HELP)]
    Top(containers::top::Options),
    /// Have nodes without machines in a cluster, as many as are wanted, for tests of its size
    #[command(after_help = simulate::AFTER_HELP)]
    Simulate(Box<simulate::Options>),
    /// Try something on a copy of the cluster, which ends with the command: what would change, move, wait or be refused
    #[command(after_help = fork::AFTER_HELP)]
    Fork(fork::Options),
    /// Have ports of a pod on this machine, TCP and UDP
    #[command(after_help = port_forward::AFTER_HELP)]
    PortForward(port_forward::Options),
    /// Ask this server's audit log who did something
    Audit(audit::Options),
    /// Print what completes commands in a shell: source it, or put it where the shell looks
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands to a directory
    Man(install::ManOptions),
    /// Say what this machine lacks for running Keelson, and how to mend it
    Doctor(doctor::Options),
    /// Make this program a service of the machine that starts with it; a newer program takes an older one's place
    #[command(after_help = install::AFTER_HELP)]
    Install(install::Options),
    /// Put a newer program in this one's place, under the pods that run; an ill one is taken back
    #[command(after_help = upgrade::AFTER_HELP)]
    Upgrade(upgrade::Options),
    /// Go back to the program before the last upgrade
    Rollback(upgrade::Rollback),
    /// Stop all pods of a data directory and remove every trace of it from this machine
    Uninstall(uninstall::Options),
    /// Print the version
    Version,
}

/// The whole command line, for what is made from it.
fn command() -> clap::Command {
    Arguments::command()
}

fn main() -> ExitCode {
    // A pod's shim and a layer's cell are this program again, before any thread or runtime exists.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(first) if first == "shim" => keelson_runtime::shim::main(arguments),
        Some(first) if first == "cell" => keelson_runtime::cell::main(arguments),
        _ => {}
    }
    keelson_sys::handed::take();
    end_with_the_reader();
    let given = parse(words_of(std::env::args_os().collect())).unwrap_or_else(|said| said.exit());
    match run(given.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("keelson: {}", plainly(&error));
            ExitCode::FAILURE
        }
    }
}

/// What failed and why, in one line. What the API answers is told in its words: the client's error has the whole answer behind them, and both twice.
fn plainly(error: &anyhow::Error) -> String {
    let mut said = Vec::new();
    for cause in error.chain() {
        match cause.downcast_ref() {
            Some(keelson_client::Error::Api(status)) if !status.message.is_empty() => {
                said.push(status.message.clone());
                break;
            }
            _ => said.push(cause.to_string()),
        }
    }
    said.join(": ")
}

/// Who reads the output may have enough of it (`| head -1`). The signal would do the same, but to connections as well.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload_as_str().is_some_and(is_unread) {
            // As a shell tells of whoever that signal ends.
            std::process::exit(128 + nix::sys::signal::Signal::SIGPIPE as i32);
        }
        usual(panic);
    }));
}

/// As `println` says it.
fn is_unread(why: &str) -> bool {
    why.starts_with("failed printing to stdout") && why.contains("Broken pipe")
}

/// By which other names this program is called, and which command each means.
const NAMES: [(&str, &[&str]); 7] = [
    (why::PLUGIN, &["why"]),
    ("kube-apiserver", &["apiserver"]),
    ("kube-controller-manager", &["controller-manager"]),
    ("kube-scheduler", &["scheduler"]),
    ("kube-proxy", &["proxy"]),
    ("kubelet", &["kubelet"]),
    ("etcd", &["etcd", "serve"]),
];

/// The command line, with the command that the program's name means.
fn words_of(mut given: Vec<OsString>) -> Vec<OsString> {
    let name = given.first().and_then(|first| Path::new(first).file_name());
    let meant = NAMES.iter().find(|(other, _)| name.is_some_and(|name| name == *other));
    if let Some((_, command)) = meant {
        given.splice(..1, ["keelson"].iter().chain(*command).map(Into::into));
    }
    given
}

fn parse(words: Vec<OsString>) -> Result<Arguments, clap::Error> {
    // Whoever stands for one of upstream's programs says `Kubernetes v1.37.2` when it is asked.
    let as_upstream = |command: clap::Command| command.display_name("Kubernetes");
    let command = NAMES
        .iter()
        .filter(|(name, _)| name.starts_with("kube-") || *name == "kubelet")
        .fold(command(), |all, (_, below)| all.mut_subcommand(below[0], as_upstream));
    Arguments::from_arg_matches(&command.try_get_matches_from(words)?)
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Server(options) => server::main(*options),
        Command::Agent(options) => agent::main(*options),
        Command::Apiserver(options) => components::apiserver::main(*options),
        Command::Scheduler(options) => components::scheduler::main(*options),
        Command::ControllerManager(options) => components::controller_manager::main(*options),
        Command::Kubelet(options) => components::kubelet::main(*options),
        Command::Runtime(options) => components::runtime::main(*options),
        Command::Proxy(options) => components::proxy::main(*options),
        Command::Dns(options) => components::dns::main(*options),
        Command::Dev(options) => dev::main(options),
        Command::Wait(options) => wait::main(options),
        Command::Image(options) => image::main(options),
        Command::Registry(options) => registry::main(*options),
        Command::Token(options) => token::main(options),
        Command::User(options) => user::main(options),
        Command::Kubeconfig(options) => kubeconfig::main(options),
        Command::Certificate(options) => certificate::main(options),
        Command::Store(options) => store::snapshot::command::main(options),
        Command::Backup(options) => backup::command::main(options),
        Command::Envtest(options) => envtest::main(options),
        Command::Etcd(options) => etcd::command::main(options),
        Command::Secrets(options) => secrets::main(options),
        Command::Why(options) => why::main(options),
        Command::Console(options) => console::main(options),
        Command::Addons(options) => addons::command::main(options),
        Command::History(options) => history::changes(options),
        Command::Get(options) => history::get(options),
        Command::Diff(options) => history::diff(options),
        Command::Blame(options) => history::blame(options),
        Command::Undelete(options) => history::undelete(options),
        Command::Ps(options) => containers::ps::main(options),
        Command::Logs(options) => containers::logs::main(options),
        Command::Exec(options) => containers::exec::main(options),
        Command::Stats(options) => containers::stats::main(options),
        Command::Top(options) => containers::top::main(options),
        Command::Simulate(options) => simulate::main(*options),
        Command::Fork(options) => fork::main(options),
        Command::PortForward(options) => port_forward::main(options),
        Command::Audit(options) => audit::main(options),
        Command::Completion { shell } => {
            print!("{}", install::completion(shell));
            Ok(ExitCode::SUCCESS)
        }
        Command::Man(options) => install::man(options),
        Command::Doctor(options) => doctor::main(options),
        Command::Install(options) => install::main(options),
        Command::Upgrade(options) => upgrade::main(options),
        Command::Rollback(options) => upgrade::rollback(options),
        Command::Uninstall(options) => uninstall::main(options),
        Command::Version => {
            println!("keelson {}", version::text());
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// kubeadm and others read it.
    #[test]
    fn what_stands_for_one_of_upstreams_says_its_version_as_upstream_does() {
        for (name, command) in NAMES.iter().filter(|(name, _)| name.starts_with("kube")) {
            let is_plugin = command[0] == "why";
            let words = words_of(vec![format!("/usr/bin/{name}").into(), "--version".into()]);
            let said = parse(words).err().map(|said| said.to_string());
            let wanted = format!("Kubernetes v{}\n", config::KUBERNETES_VERSION);
            assert_eq!(said == Some(wanted), !is_plugin, "{name}: {said:?}");
        }
    }

    #[test]
    fn what_the_api_answers_is_told_once_and_in_its_words() {
        let status = serde_json::json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound",
            "message": "namespaces \"shop\" not found"});
        let refused = keelson_client::Error::Api(Box::new(serde_json::from_value(status).unwrap()));
        let refused = anyhow::Error::from(refused).context("the user's binding");
        assert_eq!(plainly(&refused), "the user's binding: namespaces \"shop\" not found");
        let other = anyhow::anyhow!("no such file").context("reading it");
        assert_eq!(plainly(&other), "reading it: no such file");
    }

    /// Names and options that are there twice, and the like.
    #[test]
    fn the_command_line_is_sound_and_shells_complete_it() {
        Arguments::command().debug_assert();
        for shell in [
            clap_complete::Shell::Bash,
            clap_complete::Shell::Zsh,
            clap_complete::Shell::Fish,
        ] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "keelson", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("kubeconfig") && script.contains("why"), "{shell}");
        }
    }
}
