//! How numbers are shown in tables.

pub use keelson_apiserver::crd::columns::age;
pub use keelson_kubelet::gc::images::readable as bytes;

/// Thousandths of a CPU.
pub fn cpu(millicores: u64) -> String {
    format!("{millicores}m")
}

/// What isn't known is a dash.
pub fn known<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "-".to_string(), show)
}

/// As much of an ID as tells it from others.
pub fn short(id: &str) -> String {
    id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectls() {
        let shown = [-1, 0, 119, 120, 185, 3600, 10_800, 11_100, 90_000, 180_000, 864_000].map(age);
        let expected = [
            "0s", "0s", "119s", "2m", "3m5s", "60m", "3h", "3h5m", "25h", "2d2h", "10d",
        ];
        assert_eq!(shown, expected);
        assert_eq!([age(800 * 86_400), age(4000 * 86_400)], ["2y70d", "10y"]);
    }

    #[test]
    fn sizes_have_the_largest_unit_that_fits() {
        let shown = [0, 1023, 1024, 1536 << 10, 5 << 30, u64::MAX].map(bytes);
        let expected = ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "5.0 GiB", "16777216.0 TiB"];
        assert_eq!(shown, expected);
    }

    #[test]
    fn ids_are_cut_and_what_is_unknown_is_a_dash() {
        assert_eq!(short("sha256:0123456789abcdef"), "0123456789ab");
        assert_eq!([known(Some(7), cpu), known(None, cpu)], ["7m", "-"]);
    }
}
