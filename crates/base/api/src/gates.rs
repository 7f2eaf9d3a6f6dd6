//! Feature gates: those of Kubernetes 1.37, and how each stands here. Nothing is switched by them. Whoever says of a gate what
//! holds anyway is let be, whoever wishes for something else is told.
//!
//! The list is read out of upstream's sources: a gate, its stage, whether it is on by default, and whether what it stands for is
//! here. `docs/features.md` says by what that is shown.

const LIST: &str = include_str!("gates.txt");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gate {
    pub name: &'static str,
    /// `alpha`, `beta`, `ga` or `deprecated`.
    pub stage: &'static str,
    pub is_default: bool,
    pub is_here: bool,
}

/// All gates, by name.
pub fn all() -> impl Iterator<Item = Gate> {
    LIST.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, stage) = (words.next()?, words.next()?);
        let mut is_on = || Some(words.next()? == "on");
        Some(Gate {
            name,
            stage,
            is_default: is_on()?,
            is_here: is_on()?,
        })
    })
}

/// Why a gate can't be as it is said to be.
pub fn check(name: &str, is_on: bool) -> Result<(), String> {
    match all().find(|gate| gate.name == name) {
        None => Err(format!("unrecognized feature gate: {name}")),
        Some(gate) if gate.is_here == is_on => Ok(()),
        Some(gate) => Err(format!("{name}={is_on} can't be had here: it is {}", gate.is_here)),
    }
}

/// `NAME=true`, as one of a flag's list.
pub fn parse(pair: &str) -> Result<(), String> {
    let (name, value) = pair
        .split_once('=')
        .ok_or_else(|| format!("missing bool value for feature gate {pair}"))?;
    match value.trim() {
        "true" | "1" | "t" | "T" | "TRUE" | "True" => check(name.trim(), true),
        "false" | "0" | "f" | "F" | "FALSE" | "False" => check(name.trim(), false),
        other => Err(format!("invalid value of {name}: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream has it on from the next version's clusters on: `--min-compatibility-version` decides.
    const MORE: [&str; 1] = ["DRAFractionalCapacityRange"];

    #[test]
    fn the_list_is_whole_and_sorted() {
        let gates: Vec<Gate> = all().collect();
        assert_eq!(gates.len(), LIST.lines().count());
        assert!(gates.is_sorted_by(|a, b| a.name < b.name));
        assert!(
            gates
                .iter()
                .all(|g| ["alpha", "beta", "ga", "deprecated"].contains(&g.stage))
        );
        let more = gates.iter().filter(|g| g.is_here && !g.is_default).map(|g| g.name);
        assert!(more.eq(MORE), "what is off upstream is off here");
    }

    #[test]
    fn what_holds_anyway_is_let_be() {
        assert_eq!(parse("NodeDeclaredFeatures=true"), Ok(()));
        assert_eq!(parse("GenericWorkload=false"), Ok(()));
        // Of all components, and of all gates.
        for pair in [
            "ContextualLogging=true",
            "LoggingAlphaOptions=false",
            "AllAlpha=false",
            "AllBeta=false",
        ] {
            assert_eq!(parse(pair), Ok(()), "{pair}");
        }
        for (pair, why) in [
            (
                "NodeDeclaredFeatures=false",
                "NodeDeclaredFeatures=false can't be had here: it is true",
            ),
            (
                "GenericWorkload=true",
                "GenericWorkload=true can't be had here: it is false",
            ),
            ("Nope=true", "unrecognized feature gate: Nope"),
            ("NodeSwap", "missing bool value for feature gate NodeSwap"),
            ("NodeSwap=maybe", "invalid value of NodeSwap: maybe"),
        ] {
            assert_eq!(parse(pair), Err(why.into()));
        }
    }
}
