//! The trace of a pod: its id is the pod's UID, so that components that never speak of it to each other tell into the same one, and
//! whoever has the pod finds it.

use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};

use crate::sampling::Rate;

/// The span in which a pod came to be, of which all others are parts.
pub fn origin(uid: &str, rate: Rate) -> Option<SpanContext> {
    let (trace, span) = ids(uid)?;
    let flags = match rate.takes(trace) {
        true => TraceFlags::SAMPLED,
        false => TraceFlags::NOT_SAMPLED,
    };
    Some(SpanContext::new(trace, span, flags, true, TraceState::default()))
}

/// A UID has as many digits as a trace's id; a static pod's has no dashes.
pub(crate) fn ids(uid: &str) -> Option<(TraceId, SpanId)> {
    let digits: String = uid.chars().filter(|c| *c != '-').collect();
    if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let (trace, span) = (TraceId::from_hex(&digits).ok()?, SpanId::from_hex(&digits[..16]).ok()?);
    (trace != TraceId::INVALID && span != SpanId::INVALID).then_some((trace, span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_trace_is_its_uid() {
        let uid = "0af76519-16cd-43dd-8448-eb211c80319c";
        let found = origin(uid, Rate::per_million(1_000_000)).unwrap();
        assert_eq!(found.trace_id().to_string(), uid.replace('-', ""));
        assert!(found.is_sampled());
        assert!(!origin(uid, Rate::default()).unwrap().is_sampled());
        for wrong in [
            "",
            "x",
            "mirror",
            "00000000-0000-0000-0000-000000000000",
            "0af76519-16cd-43dd-8448-eb211c80319x",
        ] {
            assert!(ids(wrong).is_none(), "{wrong}");
        }
    }
}
