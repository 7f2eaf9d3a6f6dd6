//! Which traces are taken: decided by the last 56 bits of their id, which are random in ids of traces (W3C Trace Context, level 2) and in
//! UIDs. Whoever knows the id decides alike, and nobody has to be told.

use opentelemetry::trace::{Link, SpanKind, TraceId, TraceState};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{SamplingDecision, SamplingResult, ShouldSample};

/// Of a million traces so many are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate(u32);

const MILLION: u32 = 1_000_000;
const RANDOM: u32 = 56;

impl Rate {
    /// More than a million is a million.
    pub fn per_million(rate: u32) -> Rate {
        Rate(rate.min(MILLION))
    }

    pub fn of_a_million(self) -> u32 {
        self.0
    }

    pub fn takes(self, trace: TraceId) -> bool {
        let random = u128::from_be_bytes(trace.to_bytes()) & ((1 << RANDOM) - 1);
        random * u128::from(MILLION) < u128::from(self.0) << RANDOM
    }
}

/// Of traces that begin here; whoever passes one on has decided about it.
impl ShouldSample for Rate {
    fn should_sample(
        &self,
        _: Option<&Context>,
        trace: TraceId,
        _: &str,
        _: &SpanKind,
        _: &[KeyValue],
        _: &[Link],
    ) -> SamplingResult {
        SamplingResult {
            decision: match self.takes(trace) {
                true => SamplingDecision::RecordAndSample,
                false => SamplingDecision::Drop,
            },
            attributes: Vec::new(),
            trace_state: TraceState::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_share_of_what_ends_at_random() {
        let trace = |end: u128| TraceId::from_bytes(((0xabc << RANDOM) + end).to_be_bytes());
        let half = 1u128 << (RANDOM - 1);
        for (rate, end, taken) in [
            (0, 0, false),
            (1, 0, true),
            (MILLION, (1 << RANDOM) - 1, true),
            (MILLION / 2, half - 1, true),
            (MILLION / 2, half, false),
            (2 * MILLION, half, true),
        ] {
            assert_eq!(Rate::per_million(rate).takes(trace(end)), taken, "{rate} {end:x}");
        }
    }
}
