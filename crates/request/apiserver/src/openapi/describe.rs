//! What the fields of the built-in types mean, in words: packed by `build.rs`.
//!
//! Only descriptions are taken from there; names, types and extensions come from the server's own schema table.

use flate2::read::ZlibDecoder;
use std::collections::HashMap;

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptions"));

/// Descriptions by type name, and by field within it; the type's own under no name.
#[derive(Default)]
pub struct Descriptions(HashMap<String, HashMap<String, String>>);

impl Descriptions {
    /// All descriptions. They are some megabytes: use them and let them go.
    pub fn gather() -> Self {
        let words = serde_json::from_reader(ZlibDecoder::new(PACKED));
        Descriptions(words.expect("what build.rs packed can be unpacked"))
    }

    pub fn of_type(&self, name: &str) -> Option<&str> {
        self.of_field(name, "")
    }
    pub fn of_field(&self, name: &str, field: &str) -> Option<&str> {
        self.0.get(name)?.get(field).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_fields_are_described() {
        let d = Descriptions::gather();
        assert!(d.of_type("io.k8s.api.core.v1.PodSpec").is_some());
        let image = d.of_field("io.k8s.api.core.v1.Container", "image").unwrap();
        assert!(image.contains("image"), "{image}");
    }
}
