//! An authority and the one that follows it, while what the first one signed goes on.
//!
//! | stage | signs | trusted | until |
//! |---|---|---|---|
//! | at rest | old | old | two years before its end, or somebody asks |
//! | announced | old | old, new | every server takes the new one, a day at least |
//! | replaced | new | new, old | everything that the old one signed has ended |
//! | at rest | new | new | |
//!
//! Nobody has to be told in time: the old one signs the new one's certificate too ([`Authority::introduce`]). Whoever knows the old
//! one only is shown that beside a certificate of the new one, and finds the way; by it a machine takes up the new one without
//! trusting whoever tells it ([`believed`]).
//!
//! All that there is of an authority is a few texts by the names of their files ([`Files`]); a step is a pure function of them. Who
//! keeps them, and how a step is made whole, is not known here.

mod believed;

pub use believed::believed;

use crate::authority::{Authority, fingerprint, read_certificate};
use crate::x509::{Certificate, pem};
use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// File name → text.
pub type Files = BTreeMap<String, String>;

const DAY: i64 = 24 * 60 * 60;
/// So long before its end an authority is followed by another, by itself.
pub const BEFORE_END: i64 = 2 * 365 * DAY;
/// So long the next one is known before it signs, by itself.
pub const KNOWN: i64 = DAY;
/// So long the one before is trusted: what it signed lasts a year at most.
pub const OUTLIVED: i64 = 400 * DAY;

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    #[default]
    AtRest,
    Announced,
    Replaced,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Makes the next one, which is trusted beside this one.
    Announce,
    /// The next one signs.
    Sign,
    /// The one before is trusted no longer.
    Withdraw,
}

/// Which certificate is meant.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Which {
    /// Hex SHA-256, as join tokens have it.
    pub hash: String,
    /// Unix seconds.
    pub ends: i64,
}

/// Where an authority stands.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Standing {
    pub stage: Stage,
    /// How many steps have been made.
    pub number: u64,
    /// Unix seconds of the last one.
    pub since: i64,
    pub signs: Which,
    /// The one to come, or the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<Which>,
    /// Somebody else vouches for it: what follows it isn't ours to make.
    #[serde(default)]
    pub foreign: bool,
}

/// `NAME.turn`. Absent before the first step.
#[derive(Default, Deserialize, Serialize)]
struct Turn {
    number: u64,
    stage: Stage,
    since: i64,
}

/// How many steps such a file tells of.
pub fn number(text: &str) -> Result<u64> {
    Ok(serde_json::from_str::<Turn>(text)?.number)
}

/// The files of an authority, by what they are for.
struct Parts<'a> {
    name: &'a str,
    files: &'a Files,
    turn: Turn,
}

impl<'a> Parts<'a> {
    fn of(name: &'a str, files: &'a Files) -> Result<Parts<'a>> {
        let turn = files
            .get(&format!("{name}.turn"))
            .map(|text| serde_json::from_str(text));
        let turn = turn.transpose().with_context(|| format!("reading {name}.turn"))?;
        Ok(Parts {
            name,
            files,
            turn: turn.unwrap_or_default(),
        })
    }
    fn text(&self, suffix: &str) -> Result<&'a str> {
        let file = format!("{}{suffix}", self.name);
        let text = self.files.get(&file).with_context(|| format!("there is no {file}"))?;
        Ok(text)
    }
    fn bundle(&self) -> Result<Vec<String>> {
        let each = pem::certificates(self.text(".crt")?.as_bytes());
        let all: Vec<String> = each.map(|der| pem::encode(pem::CERTIFICATE, &der)).collect();
        ensure!(!all.is_empty(), "{}.crt has no certificate in it", self.name);
        Ok(all)
    }
}

/// Where the authority of these files stands.
pub fn standing(name: &str, files: &Files) -> Result<Standing> {
    let parts = Parts::of(name, files)?;
    let bundle = parts.bundle()?;
    let which = |pem: &String| -> Result<Which> {
        Ok(Which {
            hash: fingerprint(pem)?,
            ends: read_certificate(pem)?.not_after,
        })
    };
    let own = pem::certificates(bundle[0].as_bytes())
        .next()
        .context("no certificate")?;
    let own = Certificate::from_der(&own)?;
    Ok(Standing {
        stage: parts.turn.stage,
        number: parts.turn.number,
        since: parts.turn.since,
        signs: which(&bundle[0])?,
        beside: match parts.turn.stage {
            Stage::AtRest => None,
            _ => bundle.get(1).map(which).transpose()?,
        },
        foreign: own.raw_issuer != own.raw_subject,
    })
}

impl Standing {
    /// When time alone asks for the next step, in Unix seconds; `None`: never.
    pub fn due_at(&self) -> Option<i64> {
        match self.stage {
            Stage::AtRest => (!self.foreign).then_some(self.signs.ends - BEFORE_END),
            Stage::Announced => Some(self.since + KNOWN),
            Stage::Replaced => {
                let outlived = self.since + OUTLIVED;
                // What has ended vouches for nobody.
                Some(self.beside.as_ref().map_or(outlived, |old| outlived.min(old.ends)))
            }
        }
    }

    /// The step that time alone asks for.
    pub fn due(&self, now: i64) -> Option<Step> {
        self.due_at().filter(|at| *at <= now).map(|_| self.next())
    }

    /// The next step, whenever it is.
    pub fn next(&self) -> Step {
        match self.stage {
            Stage::AtRest => Step::Announce,
            Stage::Announced => Step::Sign,
            Stage::Replaced => Step::Withdraw,
        }
    }
}

/// What the files are after a step; what isn't the next one is refused.
pub fn step(name: &str, files: &Files, step: Step, now: Timestamp) -> Result<Files> {
    let parts = Parts::of(name, files)?;
    let bundle = parts.bundle()?;
    let mut after = files.clone();
    let mut put = |suffix: &str, text: String| after.insert(format!("{name}{suffix}"), text);
    let stage = match (step, parts.turn.stage) {
        (Step::Announce, Stage::AtRest) => {
            ensure!(
                !standing(name, files)?.foreign,
                "{name} was signed by somebody else: only they can vouch for another"
            );
            let old = Authority::from_pem(&bundle[0], parts.text(".key")?)?;
            let new = old.successor()?;
            put(".crt", format!("{}{}", bundle[0], new.cert_pem()));
            put("-cross.crt", old.introduce(&new)?);
            put("-next.key", new.key_pem());
            Stage::Announced
        }
        (Step::Sign, Stage::Announced) => {
            let key = parts.text("-next.key")?;
            let [old, new] = &bundle[..] else {
                bail!(
                    "{name}.crt has {} certificates, not the old one and the new one",
                    bundle.len()
                )
            };
            // It has to be the certificate's.
            Authority::from_pem(new, key)?;
            put(".key", key.to_string());
            put(".crt", format!("{new}{old}"));
            after.remove(&format!("{name}-next.key"));
            Stage::Replaced
        }
        (Step::Withdraw, Stage::Replaced) => {
            put(".crt", bundle[0].clone());
            Stage::AtRest
        }
        (_, Stage::AtRest) => bail!("{name} has none that follows it yet"),
        (_, Stage::Announced) => bail!("the one that follows {name} is announced, and doesn't sign yet"),
        (_, Stage::Replaced) => bail!("the {name} of before is still trusted: it has to be withdrawn first"),
    };
    let turn = Turn {
        number: parts.turn.number + 1,
        stage,
        since: now.as_second(),
    };
    after.insert(format!("{name}.turn"), serde_json::to_string(&turn)?);
    Ok(after)
}

#[cfg(test)]
mod tests;
