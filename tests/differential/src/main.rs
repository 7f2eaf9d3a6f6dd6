//! `differential`: compares, records, asks.

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use keelson_differential::case::Request;
use keelson_differential::peer::Peer;
use keelson_differential::report::Known;
use keelson_differential::run::{Options, run};
use keelson_differential::side::Side;
use keelson_differential::{controllers, recorded, scheduler, world};
use regex::Regex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "The same requests to kube-apiserver and to ours, and what differs in the answers.")]
struct Cli {
    /// Where kube-apiserver and etcd are.
    #[arg(long, env = "KEELSON_PEER_BIN", global = true, default_value = ".")]
    bin: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compares all cases, and fails if something differs that has no reason.
    Run {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Cases with several changes at once.
        #[arg(long, default_value_t = 20_000)]
        more: usize,
        #[arg(long, default_value_t = 16)]
        width: usize,
        /// Only cases whose "KIND: WHAT" has this.
        #[arg(long)]
        only: Option<Regex>,
        #[arg(long, default_value_t = 1)]
        every: usize,
        /// Where state and report are kept.
        #[arg(long)]
        work: PathBuf,
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        #[arg(long)]
        shrink: bool,
    },
    /// Writes the sample of the peer's answers by which the gate goes.
    Record {
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[arg(long)]
        out: PathBuf,
    },
    /// Holds ours to the recorded answers; needs no peer.
    Replay {
        #[arg(long)]
        recorded: PathBuf,
        /// Only the groups that differ, a line each, as the list of known differences has them.
        #[arg(long)]
        list: bool,
        /// Also those that have a reason.
        #[arg(long)]
        all: bool,
    },
    /// Plays the scenarios of controllers under upstream's and ours, and fails if something differs that has no reason.
    Controllers(Playing),
    /// The same of schedulers.
    Scheduler(Playing),
    /// Asks both the requests of a file, a JSON object a line, over the sound objects.
    Ask { file: PathBuf },
}

#[derive(Args)]
struct Playing {
    /// Ours.
    #[arg(long)]
    program: PathBuf,
    /// Where outcomes and report are kept.
    #[arg(long)]
    work: PathBuf,
    /// Only scenarios whose name has this.
    #[arg(long)]
    only: Option<Regex>,
    /// So many at a time, where they don't disturb each other.
    #[arg(long, default_value_t = 24)]
    width: usize,
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Writes what upstream's left, by which the gate goes.
    #[arg(long)]
    record: Option<PathBuf>,
}

impl Playing {
    fn options(self, bin: PathBuf) -> controllers::run::Options {
        controllers::run::Options {
            bin,
            program: self.program,
            work: self.work,
            only: self.only,
            width: self.width,
            longest: Duration::from_secs(self.minutes * 60),
            record: self.record,
        }
    }
}

fn told((text, unknown): (String, usize)) -> ExitCode {
    println!("{text}");
    if unknown == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    if let Command::Replay { recorded, list, all } = &cli.command {
        let groups = recorded::replay(&Side::ours().await?, std::fs::File::open(recorded)?).await?;
        let known = if *all { Known::none() } else { Known::read()? };
        match list {
            true => groups.unknown(&known).iter().for_each(|f| println!("{}", f.group)),
            false => println!("{}", groups.text(&known, &BTreeMap::new())),
        }
        return Ok(match groups.unknown(&known).is_empty() {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        });
    }
    let command = match cli.command {
        Command::Controllers(playing) => return Ok(told(controllers::run::run(&playing.options(cli.bin)).await?)),
        Command::Scheduler(playing) => return Ok(told(scheduler::run::run(&playing.options(cli.bin)).await?)),
        other => other,
    };
    let peer = Peer::start(&cli.bin).await?;
    match command {
        Command::Replay { .. } | Command::Controllers(_) | Command::Scheduler(_) => Ok(ExitCode::SUCCESS),
        Command::Run {
            seed,
            more,
            width,
            only,
            every,
            work,
            minutes,
            shrink,
        } => {
            let options = Options {
                seed,
                more,
                width,
                only,
                every: every.max(1),
                work,
                longest: Duration::from_secs(minutes * 60),
                shrink,
            };
            let (text, unknown) = run(&Side::ours().await?, &peer.side, &options).await?;
            println!("{text}");
            Ok(if unknown == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
        Command::Record { seed, out } => {
            let count = recorded::record(&peer.side, seed, std::fs::File::create(out)?).await?;
            println!("{count} cases recorded");
            Ok(ExitCode::SUCCESS)
        }
        Command::Ask { file } => {
            let ours = Side::ours().await?;
            for side in [&ours, &peer.side] {
                world::set_up(side).await?;
                world::sow(side, &world::seeds()?).await?;
            }
            for line in std::fs::read_to_string(file)?.lines() {
                let request: Request = serde_json::from_str(line)?;
                for (name, side) in [("ours", &ours), ("peer", &peer.side)] {
                    let answer = side.ask(&request).await?;
                    println!(
                        "{name}: {} {:?}\n{}",
                        answer.code,
                        answer.headers,
                        serde_json::to_string(&answer.raw)?
                    );
                }
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}
