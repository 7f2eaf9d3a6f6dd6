//! What a program says of itself, and of this machine's configuration and records, without changing anything: it is asked before it is
//! trusted with them. The words (`keelson upgrade probe ROLE --config FILE`) and the answer are what all versions have in common.

use crate::config::{KUBERNETES_VERSION, absolute};
use crate::install::Role;
use crate::version::VERSION;
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const WITHIN: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST: u64 = 64 << 10;

/// Fields are added and never change their meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Told {
    pub version: String,
    pub kubernetes: String,
    /// The form in which it keeps a store of its own, unless that has to say more.
    pub store: String,
    /// The forms that it reads; who doesn't say reads the one that it keeps.
    #[serde(default)]
    pub reads: Vec<String>,
    /// Records of pods that it can't read, by place.
    #[serde(default)]
    pub unreadable: Vec<String>,
}

impl Told {
    pub fn can_read(&self, form: &str) -> bool {
        match self.reads.is_empty() {
            true => self.store == form,
            false => self.reads.iter().any(|known| known == form),
        }
    }
}

/// This program's own answer.
pub fn tell(role: Role, config: &Path) -> anyhow::Result<Told> {
    let runtime = super::machine::config(role, config)?.runtime_dir();
    let unreadable = keelson_runtime::unreadable_records(&runtime)
        .with_context(|| format!("looking at the records in {}", runtime.display()))?;
    Ok(Told {
        version: VERSION.into(),
        kubernetes: KUBERNETES_VERSION.into(),
        store: keelson_store::embedded::FORMAT.into(),
        reads: keelson_store::embedded::READS.map(String::from).into(),
        unreadable: unreadable.into_iter().take(100).collect(),
    })
}

/// What another program answers.
pub fn ask(program: &Path, role: Role, config: &Path) -> anyhow::Result<Told> {
    let program = absolute(program.into())?;
    let config = config.to_str().context("the configuration's path is no UTF-8")?;
    let words = ["upgrade", "probe", role.command(), "--config", config];
    let (good, said, complained) = run(&program, &words).with_context(|| format!("asking {}", program.display()))?;
    ensure!(
        good,
        "{} can't be used on this machine: {}",
        program.display(),
        complained.trim().trim_start_matches("keelson: ")
    );
    serde_json::from_str(&said).with_context(|| format!("{} doesn't say what it is", program.display()))
}

/// Runs a program with an environment of its own, for a bounded time; what it says, cut off at a bound.
fn run(program: &Path, words: &[&str]) -> anyhow::Result<(bool, String, String)> {
    let mut child = Command::new(program)
        .args(words)
        .env_clear()
        .env("PATH", keelson_sys::program::PLACES)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let reader = |from: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.map(|from| from.take(LONGEST).read_to_end(&mut bytes));
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let (out, err) = (
        reader(out.map(|o| Box::new(o) as Box<dyn Read + Send>)),
        reader(err.map(|e| Box::new(e) as Box<dyn Read + Send>)),
    );
    let until = Instant::now() + WITHIN;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            bail!("no answer within {}s", WITHIN.as_secs());
        }
        std::thread::sleep(PAUSE);
    };
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Ok((status.success(), text(out), text(err)))
}

/// What a file begins with, as far as it says for which machines a program is: ELF's class, order of bytes and machine.
pub fn same_machine(own: &[u8], other: &[u8]) -> Result<(), &'static str> {
    let facts = |head: &[u8]| Some((head.get(4..6)?.to_vec(), head.get(18..20)?.to_vec()));
    if !other.starts_with(b"\x7fELF") || facts(other).is_none() {
        return Err("it is no program");
    }
    match facts(own) == facts(other) {
        true => Ok(()),
        false => Err("it is a program for another kind of machine"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_for_other_machines_are_told() {
        let mut own = b"\x7fELF\x02\x01\x01".to_vec();
        own.resize(20, 0);
        own[18] = 0x3e;
        let other = |at: usize, byte: u8| {
            let mut head = own.clone();
            head[at] = byte;
            same_machine(&own, &head)
        };
        assert_eq!(same_machine(&own, &own), Ok(()));
        assert_eq!(other(16, 3), Ok(()), "how it is linked is its own matter");
        assert!(other(18, 0xb7).is_err() && other(4, 1).is_err() && other(5, 2).is_err());
        for none in [&b"#!/bin/sh\necho yes it is a script\n"[..], b"", b"\x7fELF\x02"] {
            assert_eq!(same_machine(&own, none), Err("it is no program"));
        }
    }

    #[test]
    fn a_program_is_bounded_in_what_it_says() {
        let script = |text: &str| run(Path::new("/bin/sh"), &["-c", text]).unwrap();
        let (good, said, _) = script("yes | head -c 1000000; exit 0");
        assert_eq!((good, said.len() as u64), (true, LONGEST));
        let (good, said, complained) = script("echo $KEELSON_TOKEN$HOME; echo no >&2; exit 3");
        assert_eq!((good, said.as_str(), complained.as_str()), (false, "\n", "no\n"));
    }

    /// What the first release that had one answered.
    #[test]
    fn older_and_newer_answers_are_read() {
        let told: Told =
            serde_json::from_str(r#"{"version": "9.0.0", "kubernetes": "1.38.0", "store": "s", "new": 1}"#).unwrap();
        assert_eq!((told.version.as_str(), told.unreadable.len()), ("9.0.0", 0));
        assert!(told.reads.is_empty(), "it says nothing of it");
    }
}
