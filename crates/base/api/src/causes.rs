//! What is wrong with an object, as far as it is told: one object can be wrong in hundreds of thousands of places, and each complaint may
//! show a value of it. Up to [`MOST`] bytes are kept, which is more than anybody reads; of the rest it is told how many they are.

use crate::Cause;
use std::ops::Deref;

/// Bytes of complaints. Upstream tells all; a status of these is twice as long, since its message has them too.
pub const MOST: usize = 1 << 20;

/// Complaints in the order in which they were found.
#[derive(Clone, Debug, Default)]
pub struct Causes {
    kept: Vec<Cause>,
    bytes: usize,
    /// How many more there are, and where the first of them is.
    more: usize,
    first: String,
}

impl Causes {
    pub fn push(&mut self, cause: Cause) {
        self.add(|| cause);
    }

    /// One that isn't put into words where it would not be told: each may show a value as large as the object.
    pub fn add(&mut self, cause: impl FnOnce() -> Cause) {
        if self.more == 0 {
            let cause = cause();
            self.bytes += cause.message.len() + cause.field.len();
            if self.bytes <= MOST || self.kept.is_empty() {
                return self.kept.push(cause);
            }
            self.first = cause.field;
        }
        self.more += 1;
    }

    /// How many there are, told or not: who counts before and after a check learns whether it found any.
    pub fn len(&self) -> usize {
        self.kept.len() + self.more
    }

    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Others after these: what isn't told of either counts.
    pub fn append(&mut self, others: Causes) {
        let Causes { kept, more, first, .. } = others;
        self.extend(kept);
        if more > 0 && self.more == 0 {
            self.first = first;
        }
        self.more += more;
    }
}

impl Deref for Causes {
    type Target = [Cause];
    fn deref(&self) -> &[Cause] {
        &self.kept
    }
}

impl Extend<Cause> for Causes {
    fn extend<I: IntoIterator<Item = Cause>>(&mut self, causes: I) {
        causes.into_iter().for_each(|cause| self.push(cause));
    }
}

impl FromIterator<Cause> for Causes {
    fn from_iter<I: IntoIterator<Item = Cause>>(causes: I) -> Self {
        let mut all = Causes::default();
        all.extend(causes);
        all
    }
}

impl From<Causes> for Vec<Cause> {
    fn from(causes: Causes) -> Vec<Cause> {
        let mut told = causes.kept;
        if causes.more > 0 {
            let message = format!("Too many: {} more complaints aren't told", causes.more);
            told.push(Cause::new("FieldValueTooMany", causes.first, message));
        }
        told
    }
}

impl IntoIterator for Causes {
    type Item = Cause;
    type IntoIter = std::vec::IntoIter<Cause>;
    fn into_iter(self) -> Self::IntoIter {
        Vec::from(self).into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ApiError, Value};

    fn wrong(places: usize) -> Causes {
        let cause = |i| Cause::not_supported(format!("spec.usages[{i}]"), &Value::from("x"), &["a"; 20]);
        (0..places).map(cause).collect()
    }

    #[test]
    fn what_people_see_is_told_whole_and_what_they_dont_is_bounded() {
        let few: Vec<Cause> = wrong(1000).into();
        assert_eq!(few.len(), 1000);
        let many: Vec<Cause> = wrong(400_000).into();
        let last = many.last().unwrap();
        let more = 400_000 - (many.len() - 1);
        assert_eq!(last.message, format!("Too many: {more} more complaints aren't told"));
        assert_eq!(last.field, format!("spec.usages[{}]", many.len() - 1));
        let error = ApiError::invalid("certificates.k8s.io", "CertificateSigningRequest", "c", many);
        let status = serde_json::to_vec(&error.to_status()).unwrap();
        assert!(status.len() < 4 << 20, "{}", status.len());
    }

    #[test]
    fn what_is_not_told_of_others_counts() {
        let mut all = wrong(1);
        all.append(wrong(400_000));
        assert_eq!(all.len(), 400_001);
        assert!(all.kept.len() < 400_000);
        let mut all = Causes::default();
        all.append(wrong(400_000));
        all.push(Cause::required("spec.a", ""));
        assert_eq!(all.first, format!("spec.usages[{}]", all.kept.len()));
        assert_eq!(all.len(), 400_001);
    }

    #[test]
    fn one_complaint_is_told_however_long_it_is() {
        let long = Cause::invalid("data", &Value::from("x".repeat(2 << 20)), "no");
        let told: Vec<Cause> = [long.clone(), long].into_iter().collect::<Causes>().into();
        assert_eq!(told.len(), 2);
        assert_eq!(told[1].message, "Too many: 1 more complaints aren't told");
    }
}
