//! What is measured of archives: when the last one ended well, and how many didn't.

use keelson_clock::now;
use keelson_measure::{IntCounter, IntGauge, Measures};

#[derive(Clone)]
pub struct Told {
    ended: IntGauge,
    failed: IntCounter,
}

impl Told {
    /// `what` in the families' names, and in their help.
    pub fn new(measures: &Measures, what: &str, help: &str) -> Told {
        Told {
            ended: measures.gauge(
                &format!("keelson_{what}_last_success_timestamp_seconds"),
                &format!("When the last {help} ended well, in seconds since 1970; 0: none has since the start."),
            ),
            failed: measures.counter(
                &format!("keelson_{what}_failures_total"),
                &format!("How often no {help} could be taken, or sent to where it was to be."),
            ),
        }
    }

    pub fn ended(&self, well: bool) {
        match well {
            true => self.ended.set(now().as_second()),
            false => self.failed.inc(),
        }
    }
}
