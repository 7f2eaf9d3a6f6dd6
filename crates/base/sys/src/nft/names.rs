//! Names of chains and maps: a stable hash first, so that cutting a long name off can't make two equal.

/// 64-bit FNV-1a: stable across builds and machines.
pub fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// `<kind>-<hash>-<readable>`, within the kernel's limit of 127 bytes. What is not ASCII, or can't be seen, people find as `?`:
/// custom resources have texts of any kind.
pub fn name(kind: &str, identity: &str) -> String {
    let mut name = format!("{kind}-{:016x}-", hash(identity));
    let seen = |c: char| if c.is_ascii() && !c.is_ascii_control() { c } else { '?' };
    name.extend(identity.chars().map(seen).take(100usize.saturating_sub(name.len())));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_stay_different() {
        let (a, b) = ("x".repeat(300) + "a", "x".repeat(300) + "b");
        assert_ne!(name("service", &a), name("service", &b));
        assert_eq!(name("service", &a).len(), 100);
    }

    #[test]
    fn texts_of_any_kind_have_names() {
        for kind in ["pods", "named"] {
            let (a, b) = ("é".repeat(90), "è".repeat(90));
            assert_ne!(name(kind, &a), name(kind, &b));
            assert_eq!(name(kind, &a).len(), 100);
        }
        assert!(name("named", "web\0\n/6").ends_with("-web??/6"));
    }
}
