//! Replacing the key that signs service accounts' tokens, while tokens of the old one are out.
//!
//! | stage | signs | taken | until |
//! |---|---|---|---|
//! | at rest | old | old | somebody asks for another key |
//! | announced | old | old, new | every server takes the new one |
//! | replaced | new | new, old | no token of the old one is left |
//! | at rest | new | new | |
//!
//! A stage is told by the files: `sa.key` signs, `sa-next.key` is announced, `sa.pub` has all that is taken, and `sa.turn` counts
//! steps, so that of two machines one has what follows on the other's. A step is some files written in an order in which every
//! beginning of it is a sound state too, from which the same step ends it; it is counted first, so that nothing new has an old number.

use crate::files;
use crate::x509::pem;
use anyhow::{Context, Result, bail, ensure};
use rcgen::{KeyPair, PublicKeyData};
use std::path::Path;

pub use crate::succession::Stage;

pub const KEY: &str = "sa.key";
pub const PUBLIC: &str = "sa.pub";
pub const NEXT: &str = "sa-next.key";
pub const TURN: &str = "sa.turn";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Announce,
    Sign,
    Retire,
}

/// Keys of a turn, each with its public half in PEM.
struct Turn {
    key: KeyPair,
    next: Option<KeyPair>,
    public: Vec<Vec<u8>>,
    number: u64,
}

impl Turn {
    fn read(dir: &Path) -> Result<Turn> {
        let of = |name: &str| files::read(&dir.join(name));
        let pair = |text: &str, name: &str| KeyPair::from_pem(text).with_context(|| format!("reading {name}"));
        let key = of(KEY)?.with_context(|| format!("there is no {KEY} in {}", dir.display()))?;
        let public = of(PUBLIC)?.unwrap_or_default();
        Ok(Turn {
            key: pair(&key, KEY)?,
            next: of(NEXT)?.map(|text| pair(&text, NEXT)).transpose()?,
            public: halves(&public)?,
            number: number(of(TURN)?.as_deref())?,
        })
    }

    fn stage(&self) -> Stage {
        let signs = self.key.subject_public_key_info();
        match &self.next {
            Some(next) if next.subject_public_key_info() != signs => Stage::Announced,
            _ if self.public.iter().any(|other| *other != signs) => Stage::Replaced,
            _ => Stage::AtRest,
        }
    }
}

/// Public keys of a PEM text.
fn halves(text: &str) -> Result<Vec<Vec<u8>>> {
    let mut keys = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((block, after)) = pem::next(rest) {
        ensure!(block.label == "PUBLIC KEY", "{PUBLIC} has a {} in it", block.label);
        keys.push(block.bytes);
        rest = after;
    }
    Ok(keys)
}

/// How many steps have been made; none is written down before the first.
pub fn number(text: Option<&str>) -> Result<u64> {
    text.map_or(Ok(0), |text| {
        text.trim().parse().with_context(|| format!("reading {TURN}"))
    })
}

/// Where the keys in a directory stand.
pub fn stage(dir: &Path) -> Result<Stage> {
    Ok(Turn::read(dir)?.stage())
}

/// Makes a step; what comes before or after it in the table is refused.
pub fn step(dir: &Path, step: Step) -> Result<()> {
    let turn = Turn::read(dir)?;
    let signs = turn.key.subject_public_key_info();
    let public = |keys: &[Vec<u8>]| {
        let text: String = keys.iter().map(|key| pem::encode("PUBLIC KEY", key)).collect();
        files::write_public(&dir.join(PUBLIC), text.as_bytes())
    };
    let begin = || files::write_public(&dir.join(TURN), format!("{}\n", turn.number + 1).as_bytes());
    match (step, turn.stage()) {
        (Step::Announce, Stage::AtRest | Stage::Announced) => {
            begin()?;
            let next = match turn.next.filter(|next| next.subject_public_key_info() != signs) {
                // Begun before, and broken off.
                Some(next) => next,
                None => {
                    let next = KeyPair::generate().context("making a key")?;
                    files::write_secret(&dir.join(NEXT), next.serialize_pem().as_bytes())?;
                    next
                }
            };
            public(&[signs, next.subject_public_key_info()])?;
        }
        (Step::Sign, Stage::Announced) => {
            begin()?;
            let next = turn.next.context("no key is announced")?;
            let follows = next.subject_public_key_info();
            // All that is taken first: a key that signs is taken in any case.
            public(&[follows, signs])?;
            files::write_secret(&dir.join(KEY), next.serialize_pem().as_bytes())?;
            files::remove(&dir.join(NEXT))?;
        }
        // Broken off before its last file.
        (Step::Sign, Stage::Replaced) if turn.next.is_some() => {
            begin()?;
            files::remove(&dir.join(NEXT))?;
        }
        (Step::Retire, Stage::Replaced) => {
            begin()?;
            files::remove(&dir.join(NEXT))?;
            public(&[signs])?;
        }
        (_, Stage::AtRest) => bail!("no key is announced: announce one first"),
        (_, Stage::Announced) => bail!("a key is announced that doesn't sign yet: let it sign first"),
        (_, Stage::Replaced) => bail!("tokens of the key before are still taken: retire that key first"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Claims, ServiceAccountKeys};
    use std::collections::BTreeMap;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("keelson-turn-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        dir
    }

    fn token(dir: &Path) -> String {
        let keys = ServiceAccountKeys::open(dir).unwrap();
        keys.sign(&Claims::default()).unwrap()
    }
    fn takes(dir: &Path, token: &str) -> bool {
        ServiceAccountKeys::open(dir).unwrap().verify(token).is_ok()
    }

    #[test]
    fn tokens_count_through_a_turn_and_no_longer_than_their_key() {
        let dir = scratch("life");
        let first = token(&dir);
        for wrong in [Step::Sign, Step::Retire] {
            assert!(step(&dir, wrong).is_err(), "{wrong:?}");
        }
        step(&dir, Step::Announce).unwrap();
        assert_eq!(stage(&dir).unwrap(), Stage::Announced);
        assert!(step(&dir, Step::Retire).is_err());
        let announced = token(&dir);
        step(&dir, Step::Sign).unwrap();
        assert_eq!(stage(&dir).unwrap(), Stage::Replaced);
        assert!(step(&dir, Step::Announce).is_err() && step(&dir, Step::Sign).is_err());
        let second = token(&dir);
        assert!([&first, &announced, &second].iter().all(|token| takes(&dir, token)));
        step(&dir, Step::Retire).unwrap();
        assert_eq!(stage(&dir).unwrap(), Stage::AtRest);
        assert!(takes(&dir, &second) && !takes(&dir, &first) && !takes(&dir, &announced));
        assert_eq!(number(files::read(&dir.join(TURN)).unwrap().as_deref()).unwrap(), 3);
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// Another server, one step behind or ahead, takes what is signed here.
    #[test]
    fn servers_that_are_a_step_apart_take_each_others_tokens() {
        let dir = scratch("apart");
        let mut before = token(&dir);
        for next in [Step::Announce, Step::Sign] {
            let behind = ServiceAccountKeys::open(&dir).unwrap();
            step(&dir, next).unwrap();
            let signed = token(&dir);
            assert!(behind.verify(&signed).is_ok() && takes(&dir, &before), "{next:?}");
            before = signed;
        }
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// The machine stops after any of a step's writes: all tokens count as before, and the same step ends what was begun.
    #[test]
    fn a_step_that_breaks_off_is_ended_by_the_same_step() {
        let dir = scratch("broken");
        let state = |dir: &Path| -> BTreeMap<&str, Option<String>> {
            let names = [NEXT, PUBLIC, KEY, TURN];
            names.map(|name| (name, files::read(&dir.join(name)).unwrap())).into()
        };
        let put = |dir: &Path, name: &str, text: &Option<String>| match text {
            Some(text) => files::write_secret(&dir.join(name), text.as_bytes()).unwrap(),
            None => files::remove(&dir.join(name)).unwrap(),
        };
        let mut tokens = vec![token(&dir)];
        // In the order in which each step writes.
        let orders: [(Step, &[&str]); 3] = [
            (Step::Announce, &[TURN, NEXT, PUBLIC]),
            (Step::Sign, &[TURN, PUBLIC, KEY, NEXT]),
            (Step::Retire, &[TURN, PUBLIC]),
        ];
        for (next, writes) in orders {
            let before = state(&dir);
            step(&dir, next).unwrap();
            let after = state(&dir);
            for written in 0..writes.len() {
                for (name, text) in &before {
                    put(&dir, name, text);
                }
                for name in &writes[..written] {
                    put(&dir, name, &after[name]);
                }
                let _ = stage(&dir).unwrap();
                assert!(
                    tokens.iter().all(|token| takes(&dir, token)),
                    "{next:?} after {written}"
                );
                step(&dir, next).unwrap_or_else(|e| panic!("{next:?} after {written}: {e:#}"));
                assert!(next == Step::Retire || tokens.iter().all(|token| takes(&dir, token)));
            }
            for (name, text) in &after {
                put(&dir, name, text);
            }
            tokens.push(token(&dir));
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
