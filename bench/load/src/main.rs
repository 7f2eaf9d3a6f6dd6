//! What requests cost an API server: `make bench-requests`, `make bench-compare`, `make profiles`; docs/benchmarks.md.

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use keelson_load::greedy::{Flood, Users};
use keelson_load::measure::{Bench, Sizes};
use keelson_load::rounds::{self, Options};
use keelson_load::side::Side;
use keelson_load::target::Target;
use keelson_load::world::World;
use keelson_load::{history, profile, report};
use regex::Regex;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(about = "Measures what requests cost an API server, in its own CPU time")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start servers on loopback and measure them in turn, round by round; goes on where it was interrupted
    Rounds(Rounds),
    /// Measure one server that runs already, and print lines of JSON
    Measure(Measure),
    /// Print two sides of a history beside each other
    Table(Two),
    /// Say of each row whether the second side is slower or faster than the first
    Verdict(Two),
    /// Draw where the CPU time of each row goes, by perf, as flame graphs in SVG
    Profile(Profile),
    /// What there is to be measured, by ROW/CLIENTS
    List {
        #[arg(long, default_value = "")]
        rows: Regex,
    },
    #[command(hide = true)]
    Flood(Flood),
}

#[derive(Args)]
struct Common {
    /// Which, by ROW/CLIENTS
    #[arg(long, default_value = "")]
    rows: Regex,
    /// Ask each thing less often
    #[arg(long)]
    quick: bool,
    /// Speak HTTP/1.1 in place of HTTP/2
    #[arg(long)]
    http1: bool,
}

impl Common {
    fn sizes(&self) -> Sizes {
        if self.quick { Sizes::quick() } else { Sizes::full() }
    }
}

#[derive(Args)]
struct Rounds {
    /// NAME=keelson:PROGRAM, or NAME=upstream:DIRECTORY with etcd and kube-apiserver in it
    #[arg(long = "side", required = true)]
    sides: Vec<Side>,
    #[arg(long, default_value = "5", value_parser = clap::value_parser!(u64).range(1..=99))]
    rounds: u64,
    /// A file that a line of JSON is added to for each figure
    #[arg(long)]
    history: PathBuf,
    /// What is measured, for the history
    #[arg(long, default_value = "")]
    revision: String,
    /// Where the servers' files are while they run, and nothing afterwards
    #[arg(long)]
    dir: PathBuf,
    /// Nothing new is begun after so many minutes
    #[arg(long, default_value = "60", value_parser = clap::value_parser!(u64).range(1..=600))]
    minutes: u64,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Measure {
    /// Names the server and an administrator
    #[arg(long)]
    kubeconfig: PathBuf,
    /// A process whose CPU time is the server's; several for all of them
    #[arg(long = "server-pid", required = true)]
    servers: Vec<u32>,
    /// Kubeconfigs of the users polite and greedy, who get all rights
    #[arg(long, requires = "greedy")]
    polite: Option<PathBuf>,
    #[arg(long, requires = "polite")]
    greedy: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Two {
    #[arg(long)]
    history: PathBuf,
    /// Two names, with a comma between
    #[arg(long, value_delimiter = ',', num_args = 1)]
    sides: Vec<String>,
}

#[derive(Args)]
struct Profile {
    #[arg(long)]
    side: Side,
    /// Where the graphs go
    #[arg(long)]
    out: PathBuf,
    #[arg(long)]
    dir: PathBuf,
    /// How perf finds callers
    #[arg(long, default_value = "fp", value_parser = ["fp", "dwarf"])]
    unwind: String,
    #[command(flatten)]
    common: Common,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    // One thread: the load generator has a core of its own, and needs no more.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(until_ended(arguments.command))
}

/// Whoever ends this ends the servers, too.
async fn until_ended(command: Command) -> Result<()> {
    let mut ended = signal(SignalKind::terminate())?;
    tokio::select! {
        done = run(command) => done,
        _ = ended.recv() => anyhow::bail!("ended by a signal"),
        _ = tokio::signal::ctrl_c() => anyhow::bail!("interrupted"),
    }
}

async fn run(command: Command) -> Result<()> {
    more_files()?;
    match command {
        Command::Rounds(given) => {
            let (sizes, http1, rows) = (given.common.sizes(), given.common.http1, given.common.rows);
            let options = Options {
                sides: given.sides,
                rounds: given.rounds as usize,
                rows,
                sizes,
                http1,
                history: given.history,
                revision: given.revision,
                dir: given.dir,
                within: Duration::from_secs(given.minutes * 60),
            };
            rounds::run(&options).await
        }
        Command::Measure(given) => measure(given).await,
        Command::Table(two) => told(two, report::table),
        Command::Verdict(two) => told(two, report::verdicts),
        Command::Profile(given) => {
            let cases = rounds::cases(&given.common.rows);
            let sizes = given.common.sizes();
            profile::run(&given.side, &given.dir, &given.out, &cases, sizes, &given.unwind).await
        }
        Command::List { rows } => {
            for case in rounds::cases(&rows) {
                println!("{}/{}", case.row.name, case.clients);
            }
            Ok(())
        }
        Command::Flood(flood) => flood.run().await,
    }
}

async fn measure(given: Measure) -> Result<()> {
    let program = std::env::current_exe()?;
    let users = given.polite.zip(given.greedy);
    let sizes = given.common.sizes();
    let mut bench = Bench {
        world: World::new(Target::read(&given.kubeconfig, given.common.http1)?, &sizes),
        sizes,
        http1: given.common.http1,
        servers: given.servers,
        users: users.map(|(polite, greedy)| Users {
            polite,
            greedy,
            program,
        }),
    };
    for case in rounds::cases(&given.common.rows) {
        match bench.measure(case.row, case.clients).await {
            Ok(found) => {
                for (row, figures) in found {
                    let line = serde_json::json!({"row": row, "clients": case.clients, "figures": figures});
                    println!("{line}");
                }
            }
            Err(why) => eprintln!("{}/{}: not measured: {why:#}", case.row.name, case.clients),
        }
    }
    bench.world.leave().await
}

fn told(two: Two, tell: fn(&[history::Record], &str, &str) -> String) -> Result<()> {
    let [first, second] = two.sides.as_slice() else {
        anyhow::bail!("--sides takes two names");
    };
    let records = history::read(&two.history)?;
    ensure!(!records.is_empty(), "there is nothing in {}", two.history.display());
    print!("{}", tell(&records, first, second));
    Ok(())
}

/// A thousand watchers are a thousand connections, on either side.
fn more_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("more open files")
}
