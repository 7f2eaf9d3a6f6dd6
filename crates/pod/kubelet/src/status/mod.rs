//! From what is observed to the pod's status in the API: pure generation here, sending in `manager`.

pub mod conditions;
pub mod containers;
pub mod diff;
pub mod generate;
pub mod manager;
pub mod phase;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// An API time from nanoseconds since the epoch; zero and below is none.
pub fn time(nanos: i64) -> Option<Time> {
    (nanos > 0)
        .then(|| jiff::Timestamp::from_nanosecond(nanos as i128).ok().map(Time))
        .flatten()
}
