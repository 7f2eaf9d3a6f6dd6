//! A path within an object, printed as upstream prints it: `spec.containers[0].env`.

/// A path that grows and shrinks during a walk.
#[derive(Clone, Debug, Default)]
pub struct Path {
    text: String,
    marks: Vec<usize>,
}

impl Path {
    pub fn key(&mut self, key: &str) {
        self.marks.push(self.text.len());
        if !self.text.is_empty() {
            self.text.push('.');
        }
        self.text.push_str(key);
    }
    pub fn index(&mut self, i: usize) {
        self.marks.push(self.text.len());
        self.text.push('[');
        self.text.push_str(&i.to_string());
        self.text.push(']');
    }
    pub fn pop(&mut self) {
        if let Some(n) = self.marks.pop() {
            self.text.truncate(n);
        }
    }
    /// The path of a member, without moving there.
    pub fn child(&self, key: &str) -> String {
        if self.text.is_empty() {
            key.to_string()
        } else {
            format!("{}.{key}", self.text)
        }
    }
    pub fn as_str(&self) -> &str {
        &self.text
    }
}
