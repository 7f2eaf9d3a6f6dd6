//! What is wrong with a configuration, field by field, worded as the API words it.

use serde_json::Value;

#[derive(Debug, Default)]
pub struct Errors(Vec<String>);

impl Errors {
    pub fn invalid(&mut self, path: &str, value: impl Into<Value>, why: &str) {
        self.0.push(format!("{path}: Invalid value: {}: {why}", value.into()));
    }
    pub fn required(&mut self, path: &str, why: &str) {
        let why = if why.is_empty() {
            String::new()
        } else {
            format!(": {why}")
        };
        self.0.push(format!("{path}: Required value{why}"));
    }
    pub fn forbidden(&mut self, path: &str, why: &str) {
        self.0.push(format!("{path}: Forbidden: {why}"));
    }
    pub fn duplicate(&mut self, path: &str, value: &str) {
        self.0.push(format!("{path}: Duplicate value: {value:?}"));
    }
    pub fn unsupported(&mut self, path: &str, value: &str, supported: &[&str]) {
        let supported: Vec<_> = supported.iter().map(|s| format!("{s:?}")).collect();
        let supported = supported.join(", ");
        self.0.push(format!(
            "{path}: Unsupported value: {value:?}: supported values: {supported}"
        ));
    }
    pub fn other(&mut self, text: String) {
        self.0.push(text);
    }

    pub fn result(self) -> anyhow::Result<()> {
        match self.0.as_slice() {
            [] => Ok(()),
            [one] => Err(anyhow::anyhow!("{one}")),
            all => Err(anyhow::anyhow!("[{}]", all.join(", "))),
        }
    }
}
