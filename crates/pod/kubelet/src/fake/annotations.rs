//! What a pod's annotations have its made-up containers do.

use crate::probes::Kind;
use crate::probes::check::Outcome;
use std::time::Duration;

/// How long starting the pod's sandbox takes.
pub const START_SECONDS: &str = "simulate.keelson.dev/start-seconds";
/// How long containers run, and how they end.
pub const RUN_SECONDS: &str = "simulate.keelson.dev/run-seconds";
pub const EXIT_CODE: &str = "simulate.keelson.dev/exit-code";
/// How long a container takes to end after it was asked to.
pub const STOP_SECONDS: &str = "simulate.keelson.dev/stop-seconds";
/// Why no sandbox or no image is to be had.
pub const SANDBOX_ERROR: &str = "simulate.keelson.dev/sandbox-error";
pub const PULL_ERROR: &str = "simulate.keelson.dev/pull-error";
/// Readiness probes fail so long after the container's start.
pub const READY_SECONDS: &str = "simulate.keelson.dev/ready-seconds";
/// Probes of these kinds fail: `startup`, `liveness`, `readiness`, separated by commas.
pub const FAILING_PROBES: &str = "simulate.keelson.dev/failing-probes";

/// The longest time that an annotation can say.
const LONGEST: f64 = 10.0 * 366.0 * 86_400.0;

/// Some seconds; what isn't a number of them isn't said.
pub fn seconds(text: Option<&String>) -> Option<Duration> {
    let seconds = text?.parse::<f64>().ok().filter(|s| s.is_finite())?;
    Some(Duration::from_secs_f64(seconds.clamp(0.0, LONGEST)))
}

/// What a container will do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// `None` runs until it is stopped.
    pub ends_after: Option<Duration>,
    pub exit_code: i32,
    pub stop_delay: Duration,
}

/// Follows the annotations; without them reads `sleep 5`, `exit 3`, `true`, `false` and their sequences. Anything else runs for
/// ever.
pub fn script<'a>(command: &[String], annotation: impl Fn(&str) -> Option<&'a String>) -> Script {
    let stop_delay = seconds(annotation(STOP_SECONDS)).unwrap_or_default();
    let exit_code = annotation(EXIT_CODE).and_then(|c| c.parse().ok());
    let (ends_after, exit_code) = match (seconds(annotation(RUN_SECONDS)), exit_code) {
        (None, None) => of_command(command),
        (time, code) => (Some(time.unwrap_or_default()), code.unwrap_or(0)),
    };
    Script {
        ends_after,
        exit_code,
        stop_delay,
    }
}

fn of_command(command: &[String]) -> (Option<Duration>, i32) {
    let words: Vec<&str> = command
        .iter()
        .flat_map(|c| c.split([' ', ';', '\n']))
        .filter(|w| !w.is_empty() && !matches!(*w, "sh" | "/bin/sh" | "-c" | "&&" | "bash" | "/bin/bash"))
        .collect();
    let (mut time, mut code, mut ends) = (Duration::ZERO, 0, false);
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        match word {
            "sleep" | "/bin/sleep" => {
                let Some(slept) = seconds(words.next().map(str::to_owned).as_ref()) else {
                    ends = false;
                    break;
                };
                time += slept;
                ends = true;
            }
            "exit" => {
                code = words.next().and_then(|s| s.parse().ok()).unwrap_or(0);
                ends = true;
                break;
            }
            "true" | "/bin/true" => (code, ends) = (0, true),
            "false" | "/bin/false" => (code, ends) = (1, true),
            _ => {
                ends = false;
                break;
            }
        }
    }
    (ends.then_some(time), code)
}

/// How a probe is to end; `None`: nothing is said of it.
pub fn probe(kind: Kind, annotations: &std::collections::BTreeMap<String, String>, since: Duration) -> Option<Outcome> {
    let name = kind.as_str();
    let mut failing = annotations.get(FAILING_PROBES).into_iter().flat_map(|f| f.split(','));
    let early = kind == Kind::Readiness && seconds(annotations.get(READY_SECONDS)).is_some_and(|s| since < s);
    (early || failing.any(|f| f.trim().eq_ignore_ascii_case(name)))
        .then(|| Outcome::Failure(format!("simulated failure of the {} probe", name.to_lowercase())))
}
