//! Values that no kubelet takes.

use super::*;

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    for (fields, why) in [
        (
            json!({"logging": {"format": "xml"}}),
            "logging: format: Invalid value: \"xml\": Unsupported log format",
        ),
        (
            json!({"logging": {"vmodule": [{"filePattern": "kubelet", "verbosity": 4}]}}),
            "logging: vmodule can't be had here: ",
        ),
        (
            json!({"memoryThrottlingFactor": 0}),
            "memoryThrottlingFactor 0 must be greater than 0 and less than or equal to 1.0",
        ),
        (
            json!({"memoryReservationPolicy": "Hard"}),
            "memoryReservationPolicy: option \"Hard\" specified for memoryReservationPolicy. Valid options are \"None\" or",
        ),
        (
            json!({"cpuCFSQuotaPeriod": "2s"}),
            "cpuCFSQuotaPeriod (--cpu-cfs-quota-period) 2s must be between 1ms and 1sec, inclusive",
        ),
    ] {
        let error = applied(fields.clone()).unwrap_err();
        assert!(error.contains(why), "{fields}: {error}");
    }
}
