//! `/version`: the Kubernetes version whose API is served.

use keelson_api::{Value, value};

pub const MAJOR: &str = "1";
pub const MINOR: &str = "37";
pub const GIT_VERSION: &str = "v1.37.2";

pub fn version() -> Value {
    value!({
        "major": MAJOR,
        "minor": MINOR,
        "emulationMajor": MAJOR,
        "emulationMinor": MINOR,
        "minCompatibilityMajor": MAJOR,
        "minCompatibilityMinor": "36",
        "gitVersion": GIT_VERSION,
        "gitCommit": option_env!("KEELSON_COMMIT").unwrap_or("unknown"),
        "gitTreeState": "clean",
        "buildDate": option_env!("KEELSON_BUILD_DATE").unwrap_or("1970-01-01T00:00:00Z"),
        // Clients show it; what it was compiled with is no Go.
        "goVersion": "none (keelson)",
        "compiler": "rustc",
        "platform": if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" },
    })
}

/// What monitoring shows of the program.
pub fn tell(measures: &keelson_measure::Measures) {
    const LABELS: [(&str, &str); 9] = [
        ("major", "major"),
        ("minor", "minor"),
        ("git_version", "gitVersion"),
        ("git_commit", "gitCommit"),
        ("git_tree_state", "gitTreeState"),
        ("build_date", "buildDate"),
        ("go_version", "goVersion"),
        ("compiler", "compiler"),
        ("platform", "platform"),
    ];
    let version = version();
    let values = LABELS.map(|(_, field)| version.get(field).and_then(Value::as_str).unwrap_or_default());
    let info = measures.gauges(
        "kubernetes_build_info",
        "Always 1: which version this is, and how it was built",
        &LABELS.map(|(label, _)| label),
    );
    info.with_label_values(&values).set(1);
}
