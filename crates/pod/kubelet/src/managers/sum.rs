//! The sums of upstream's state files, and of its containers: FNV-1a of what Go shows of them.

/// The sum of a text as it stands.
pub fn of(shown: &str) -> u32 {
    let step = |sum: u32, byte: &u8| (sum ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    shown.as_bytes().iter().fold(0x811c_9dc5, step)
}

/// The sum of a value that is a text.
pub fn of_text(text: &str) -> u32 {
    of(&format!("(string){text}"))
}

/// A map with its keys in order.
pub fn map(pairs: impl Iterator<Item = String>) -> String {
    format!("map[{}]", pairs.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn sums_are_upstreams() {
        assert_eq!(
            super::of_text(r#"{"policyName":"none","defaultCPUSet":"4-6"}"#),
            657_950_972
        );
    }
}
