//! What this program is called. Who builds releases says it at build time.

use crate::config::KUBERNETES_VERSION;
use std::sync::LazyLock;

pub const VERSION: &str = match option_env!("KEELSON_VERSION") {
    Some(given) => given,
    None => env!("CARGO_PKG_VERSION"),
};

/// With what it is of Kubernetes.
pub fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{VERSION} (Kubernetes v{KUBERNETES_VERSION})"));
    &TEXT
}

/// As upstream's own programs call theirs.
pub fn upstream() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("v{KUBERNETES_VERSION}"));
    &TEXT
}
