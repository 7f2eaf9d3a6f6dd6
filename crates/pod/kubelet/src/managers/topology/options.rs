//! How a policy is carried out, as a node is told. Upstream's names and words.

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Of as many nodes those that are closer to each other.
    pub closest: bool,
    /// More nodes of memory are refused.
    pub most: usize,
}

/// With more there are too many sets of them.
const MOST: usize = 8;
/// Each more doubles what a decision costs.
const BEARABLE: usize = 16;

impl Default for Options {
    fn default() -> Options {
        Options {
            closest: false,
            most: MOST,
        }
    }
}

/// A truth as Go reads it.
pub fn truth(name: &str, text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!(
            "bad value for option {name:?}: strconv.ParseBool: parsing {text:?}: invalid syntax"
        )),
    }
}

impl Options {
    pub fn parse(said: &BTreeMap<String, String>) -> Result<Options, String> {
        let mut options = Options::default();
        for (name, text) in said {
            match name.as_str() {
                "prefer-closest-numa-nodes" => options.closest = truth(name, text)?,
                "max-allowable-numa-nodes" => {
                    options.most = text.parse().map_err(|_| {
                        format!(
                            "unable to convert policy option to integer {name:?}: strconv.Atoi: parsing {text:?}: invalid syntax"
                        )
                    })?;
                    if options.most < MOST {
                        return Err(format!("the minimum value of {name:?} should not be less than {MOST}"));
                    }
                    if options.most > BEARABLE {
                        return Err(format!(
                            "{name} can't be more than {BEARABLE} here: a decision would take too long"
                        ));
                    }
                }
                _ => return Err(format!("unknown Topology Manager Policy option: {name:?}")),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_refused() {
        let parse = |name: &str, text: &str| Options::parse(&BTreeMap::from([(name.to_owned(), text.to_owned())]));
        assert!(parse("prefer-closest-numa-nodes", "true").is_ok_and(|o| o.closest));
        assert!(parse("max-allowable-numa-nodes", "9").is_ok_and(|o| o.most == 9));
        for (name, text, why) in [
            ("nope", "1", "unknown Topology Manager Policy option: \"nope\""),
            ("prefer-closest-numa-nodes", "2", "bad value for option"),
            (
                "max-allowable-numa-nodes",
                "x",
                "unable to convert policy option to integer",
            ),
            ("max-allowable-numa-nodes", "7", "should not be less than 8"),
            ("max-allowable-numa-nodes", "64", "can't be more than 16"),
        ] {
            assert!(parse(name, text).is_err_and(|e| e.contains(why)), "{name}={text}");
        }
    }
}
