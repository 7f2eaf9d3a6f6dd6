//! What the process uses, under the names that every Prometheus client library gives it, read when it is asked for.

use std::fmt::Write;

/// Adds the lines of the metrics' page.
pub fn write(page: &mut String) {
    let own = match keelson_sys::own::own() {
        Ok(own) => own,
        Err(e) => return tracing::warn!("what this program uses can't be read: {e}"),
    };
    for (name, help, counter, value) in own.series() {
        let kind = if counter { "counter" } else { "gauge" };
        let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn everything_is_told() {
        let mut page = String::new();
        super::write(&mut page);
        assert_eq!(page.matches("# TYPE process_").count(), 6, "{page}");
    }
}
