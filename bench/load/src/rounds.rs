//! Rounds: each starts all sides with nothing in them and measures every row on one after the other, in another order each time. While
//! one is measured the others are stopped.

use crate::cpu;
use crate::history::{self, Machine, Record};
use crate::measure::{Bench, Sizes};
use crate::rows::{self, Row};
use crate::side::{Running, Side};
use crate::target::Target;
use crate::world::World;
use anyhow::{Result, ensure};
use regex::Regex;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub struct Options {
    pub sides: Vec<Side>,
    pub rounds: usize,
    pub rows: Regex,
    pub sizes: Sizes,
    pub http1: bool,
    pub history: PathBuf,
    pub revision: String,
    /// Where the sides' files are while they run.
    pub dir: PathBuf,
    /// Nothing new is begun after so long.
    pub within: Duration,
}

/// A row for so many clients.
#[derive(Clone, Copy)]
pub struct Case {
    pub row: &'static Row,
    pub clients: usize,
}

/// What there is, by `ROW/CLIENTS`.
pub fn cases(which: &Regex) -> Vec<Case> {
    // Rows are facts of the program, made once.
    static ROWS: std::sync::OnceLock<Vec<Row>> = std::sync::OnceLock::new();
    let all = ROWS.get_or_init(rows::all).iter();
    let each = all.flat_map(|row| row.clients.iter().map(move |clients| Case { row, clients: *clients }));
    each.filter(|case| which.is_match(&format!("{}/{}", case.row.name, case.clients)))
        .collect()
}

/// A side's round, as far as it is still to be measured.
struct Lane<'a> {
    side: &'a Side,
    program: &'a str,
    running: Running,
    bench: Bench,
}

pub async fn run(options: &Options) -> Result<()> {
    let cases = cases(&options.rows);
    ensure!(!cases.is_empty(), "no row is called {:?}", options.rows.as_str());
    let digests = options.sides.iter().map(|side| history::digest(&side.program()));
    let digests: Vec<String> = digests.collect::<Result<_>>()?;
    let began = Instant::now();
    let mut failed = 0;
    for round in 1..=options.rounds {
        let done = history::read(&options.history)?;
        let is_done = |case: &Case, side: usize| {
            done.iter().any(|r| {
                r.side == options.sides[side].name
                    && r.program == digests[side]
                    && (r.round, r.clients, r.http1) == (round, case.clients, options.http1)
                    && r.share == options.sizes.share
                    && case.row.tells(&r.row)
            })
        };
        let left: Vec<Vec<bool>> = cases
            .iter()
            .map(|case| (0..digests.len()).map(|side| !is_done(case, side)).collect())
            .collect();
        if !left.iter().flatten().any(|left| *left) {
            continue;
        }
        let mut lanes = Vec::new();
        for (side, program) in options.sides.iter().zip(&digests) {
            lanes.push(Lane::start(options, side, program).await?);
        }
        for (at, case) in cases.iter().enumerate() {
            for turn in 0..lanes.len() {
                // Who comes first takes turns, so that what drifts is on both sides.
                let side = (turn + round + at) % lanes.len();
                if !left[at][side] {
                    continue;
                }
                if began.elapsed() > options.within {
                    eprintln!("the time is over: the rest is measured when this is run again");
                    return Ok(());
                }
                let told = format!("round {round} of {}, {} of {}", options.rounds, at + 1, cases.len());
                failed += usize::from(!lanes[side].measure(options, round, *case, &told).await?);
            }
        }
    }
    ensure!(failed == 0, "{failed} rows could not be measured");
    Ok(())
}

impl<'a> Lane<'a> {
    async fn start(options: &Options, side: &'a Side, program: &'a str) -> Result<Lane<'a>> {
        let (servers, own) = cpu::shared(cpu::all_cores());
        let dir = options.dir.join(format!("{}-{}", side.name, std::process::id()));
        let running = Running::start(side, &dir, servers).await?;
        cpu::stay_on(own)?;
        let bench = Bench {
            world: World::new(Target::read(&running.admin, options.http1)?, &options.sizes),
            sizes: options.sizes.clone(),
            http1: options.http1,
            servers: running.pids(),
            users: Some(running.users.clone()),
        };
        running.rest()?;
        Ok(Lane {
            side,
            program,
            running,
            bench,
        })
    }

    /// Whether the row could be measured.
    async fn measure(&mut self, options: &Options, round: usize, case: Case, told: &str) -> Result<bool> {
        self.running.go_on().await?;
        let load = Machine::now();
        let found = self.bench.measure(case.row, case.clients).await;
        self.running.rest()?;
        let now = jiff::Zoned::now().strftime("%T").to_string();
        let (side, clients) = (&self.side.name, case.clients);
        let figures = match found {
            Ok(figures) => figures,
            Err(why) => {
                eprintln!(
                    "{now} {told}: {}, {clients} clients, {side}: NOT MEASURED: {why:#}",
                    case.row.name
                );
                return Ok(false);
            }
        };
        for (row, figures) in figures {
            eprintln!(
                "{now} {told}: {row}, {clients} clients, {side}: {:.1} µs of the server, {:.1} of the client, {:.0}/s, p50 {:.2} ms, p99 {:.2} ms",
                figures.server_us,
                figures.client_us,
                figures.per_second,
                figures.p50_us / 1000.0,
                figures.p99_us / 1000.0
            );
            let record = Record {
                time: jiff::Timestamp::now().to_string(),
                machine: load.clone(),
                side: side.clone(),
                revision: options.revision.clone(),
                program: self.program.to_owned(),
                round,
                row,
                clients,
                http1: options.http1,
                share: options.sizes.share,
                figures,
            };
            history::append(&options.history, &record)?;
        }
        Ok(true)
    }
}
