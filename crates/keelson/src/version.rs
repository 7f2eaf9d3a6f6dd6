//! What this program is called. Who builds releases says it at build time.

pub const VERSION: &str = match option_env!("KEELSON_VERSION") {
    Some(given) => given,
    None => env!("CARGO_PKG_VERSION"),
};
