//! `keelson top`: who uses most, on a screen that is kept up to date.

use super::stats::FIRST;
use super::terminal::{self, Ends, Raw};
use super::usage::{Row, Sampler, Used, head};
use super::{Filter, Reach, cells};
use crate::client::block_on;
use crate::history::table;
use anyhow::Context;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use std::cmp::Reverse;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

#[derive(Args)]
pub struct Options {
    /// Pods in place of containers
    #[arg(long, conflicts_with = "name")]
    pods: bool,
    /// What counts
    #[arg(short, long, value_enum, default_value = "cpu")]
    sort: By,
    /// How often it is looked, in seconds
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    reach: Reach,
}

pub const AFTER_HELP: &str = "\
Keys: c and m sort by CPU and memory, p changes between containers and pods, q or ctrl-c ends it. Where the output is no terminal, it is
printed once.";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Cpu,
    Memory,
}

/// What is shown, which keys change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    pods: bool,
    by: By,
}

pub fn main(options: Options) -> anyhow::Result<ExitCode> {
    block_on(async {
        let mut sampler = Sampler::new(options.reach.connect().await?);
        let view = View {
            pods: options.pods,
            by: options.sort,
        };
        if std::io::stdout().is_terminal() {
            return kept(&mut sampler, view, &options).await;
        }
        sampler.take().await?;
        tokio::time::sleep(FIRST).await;
        let used = sampler.take().await?;
        let lines = view.lines(&used, &options.filter);
        lines.iter().for_each(|line| println!("{line}"));
        Ok(ExitCode::SUCCESS)
    })
}

/// Until a key or a signal ends it. The terminal is put in order by what is dropped here.
async fn kept(sampler: &mut Sampler, mut view: View, options: &Options) -> anyhow::Result<ExitCode> {
    // While the runtime may be silent, ctrl-c is still what it always is.
    let mut used = sampler.take().await?;
    let mut ends = Ends::new()?;
    let mut resized = signal(SignalKind::window_change())?;
    let keyed = terminal::is_interactive();
    let _raw = keyed.then(Raw::enter).transpose().context("this terminal")?;
    let mut keys = keyed.then(terminal::input);
    let mut next = Instant::now() + FIRST;
    let screen = Screen::open().context("this terminal")?;
    loop {
        screen
            .show(&view.page(&used, &options.filter))
            .context("this terminal")?;
        tokio::select! {
            // A key is heard also while the runtime is asked, which begins anew then.
            taken = sample(sampler, next) => {
                used = taken?;
                next = Instant::now() + Duration::from_secs(options.interval);
            }
            pressed = press(&mut keys) => {
                for key in pressed {
                    match view.pressed(key) {
                        Some(other) => view = other,
                        None => return Ok(ExitCode::SUCCESS),
                    }
                }
            }
            _ = resized.recv() => {}
            came = ends.come() => return Ok(ExitCode::from(came)),
        }
    }
}

async fn sample(sampler: &mut Sampler, at: Instant) -> anyhow::Result<Used> {
    tokio::time::sleep_until(at).await;
    sampler.take().await
}

async fn press(keys: &mut Option<mpsc::Receiver<Bytes>>) -> Bytes {
    if let Some(keys) = keys
        && let Some(pressed) = keys.recv().await
    {
        return pressed;
    }
    std::future::pending().await
}

impl View {
    /// What is shown after a key; `None`: it ends.
    fn pressed(self, key: u8) -> Option<View> {
        const CTRL_C: u8 = 3;
        const CTRL_D: u8 = 4;
        Some(match key {
            b'q' | CTRL_C | CTRL_D => return None,
            b'c' => View { by: By::Cpu, ..self },
            b'm' => View { by: By::Memory, ..self },
            b'p' => View {
                pods: !self.pods,
                ..self
            },
            _ => self,
        })
    }

    /// Who uses most comes first, of equals by name.
    fn sorted<'a>(self, used: &'a Used, filter: &Filter) -> Vec<&'a Row> {
        let mut rows = used.rows(self.pods, filter);
        match self.by {
            By::Cpu => rows.sort_by_key(|row| Reverse(row.cpu)),
            By::Memory => rows.sort_by_key(|row| Reverse(row.memory)),
        }
        rows
    }

    fn lines(self, used: &Used, filter: &Filter) -> Vec<String> {
        let cells: Vec<_> = self.sorted(used, filter).iter().map(|row| row.cells()).collect();
        table::lines(&head(self.pods), &cells)
    }

    /// The table below a line that sums up.
    fn page(self, used: &Used, filter: &Filter) -> Vec<String> {
        let rows = used.rows(self.pods, filter);
        let sum = |of: fn(&Row) -> Option<u64>| rows.iter().filter_map(|row| of(row)).fold(0, u64::saturating_add);
        let (what, other) = match self.pods {
            true => ("pods", "containers"),
            false => ("containers", "pods"),
        };
        let by = match self.by {
            By::Cpu => "CPU",
            By::Memory => "memory",
        };
        let sums = format!(
            "{} {what}, CPU {}, memory {}; by {by}   c CPU  m memory  p {other}  q quit",
            rows.len(),
            cells::cpu(sum(|row| row.cpu)),
            cells::bytes(sum(|row| row.memory)),
        );
        let mut page = vec![sums, String::new()];
        page.extend(self.lines(used, filter));
        page
    }
}

/// The terminal's other screen, which leaves what was there as it was.
struct Screen;

impl Screen {
    fn open() -> std::io::Result<Screen> {
        write("\x1b[?1049h\x1b[?25l")?;
        Ok(Screen)
    }

    fn show(&self, page: &[String]) -> std::io::Result<()> {
        write(&frame(page, terminal::size().unwrap_or((80, 24))))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that has gone needs no care.
        let _ = write("\x1b[?25h\x1b[?1049l");
    }
}

fn write(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// As much of a page as there is room for, written over the one before.
fn frame(page: &[String], (columns, rows): (u16, u16)) -> String {
    let shown = page.iter().take(rows.into()).map(|line| {
        let plain = line.chars().filter(|c| !c.is_control());
        plain.take(columns.into()).collect::<String>() + "\x1b[K"
    });
    format!("\x1b[H{}\x1b[J", shown.collect::<Vec<_>>().join("\r\n"))
}

#[cfg(test)]
mod tests {
    use super::super::usage::tests::row;
    use super::*;

    fn filter() -> Filter {
        Filter {
            namespace: None,
            pod: None,
            name: None,
            label: Vec::new(),
        }
    }

    const VIEW: View = View {
        pods: false,
        by: By::Cpu,
    };

    #[test]
    fn who_uses_most_comes_first_and_the_unknown_last() {
        let used = Used {
            containers: vec![
                row("a", "idle", None, Some(9)),
                row("b", "busy", Some(700), Some(1)),
                row("c", "calm", Some(3), None),
            ],
            ..Used::default()
        };
        let names = |view: View| {
            let rows = view.sorted(&used, &filter());
            rows.iter()
                .map(|row| row.container.clone().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(VIEW), ["busy", "calm", "idle"]);
        let by_memory = VIEW.pressed(b'm').unwrap();
        assert_eq!(names(by_memory), ["idle", "busy", "calm"]);
        let page = VIEW.page(&used, &filter());
        assert!(
            page[0].starts_with("3 containers, CPU 703m, memory 10 B; by CPU"),
            "{}",
            page[0]
        );
        assert!(page[2].starts_with("NAMESPACE") && page[3].contains("busy"), "{page:?}");
    }

    #[test]
    fn keys_change_what_is_shown_or_end_it() {
        assert_eq!(VIEW.pressed(b'q'), None);
        assert_eq!(VIEW.pressed(3), None);
        assert_eq!(VIEW.pressed(b'x'), Some(VIEW));
        assert!(VIEW.pressed(b'p').is_some_and(|view| view.pods));
    }

    #[test]
    fn a_frame_fits_the_terminal() {
        let page: Vec<String> = ["one\x1b[31m", "two", "three"].map(String::from).into();
        assert_eq!(frame(&page, (5, 2)), "\x1b[Hone[3\x1b[K\r\ntwo\x1b[K\x1b[J");
    }
}
