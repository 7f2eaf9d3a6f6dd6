//! How numbers are shown in tables.

/// How long ago, as kubectl tells it.
pub fn age(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..0 => "0s".to_string(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

fn two(large: i64, unit: &str, small: i64, small_unit: &str) -> String {
    match small {
        0 => format!("{large}{unit}"),
        _ => format!("{large}{unit}{small}{small_unit}"),
    }
}

pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut size, mut unit) = (bytes as f64, 0);
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ => format!("{size:.1} {}", UNITS[unit]),
    }
}

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
        let shown = [-5, 0, 119, 120, 185, 3600, 10_800, 11_100, 90_000, 180_000, 864_000].map(age);
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
