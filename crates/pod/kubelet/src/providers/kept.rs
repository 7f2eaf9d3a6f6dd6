//! What plug-ins have answered, for as long as it is good. Knows no plug-in.

use super::wire::{Logins, Reach};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::time::Instant;

/// Answers of one provider that are kept; beyond them goes what would end first.
const MOST: usize = 1024;

/// The service account that an answer was given for. The pod isn't part of it, unless its token is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Account {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub annotations: BTreeMap<String, String>,
    /// A hash.
    pub token: Option<[u8; 32]>,
}

#[derive(Default)]
pub struct Kept(HashMap<(Reach, String, Option<Account>), Entry>);

struct Entry {
    logins: Arc<Logins>,
    until: Instant,
}

impl Kept {
    /// The narrowest answer that is good for an image.
    pub fn find(&self, image: &str, account: Option<&Account>, now: Instant) -> Option<Arc<Logins>> {
        [Reach::Image, Reach::Registry, Reach::Global]
            .into_iter()
            .find_map(|reach| {
                let entry = self.0.get(&key(reach, image, account))?;
                (now <= entry.until).then(|| entry.logins.clone())
            })
    }

    pub fn keep(
        &mut self,
        reach: Reach,
        image: &str,
        account: Option<&Account>,
        logins: Arc<Logins>,
        now: Instant,
        until: Instant,
    ) {
        self.0.retain(|_, entry| now <= entry.until);
        if self.0.len() >= MOST {
            let first = self.0.iter().min_by_key(|(_, e)| e.until).map(|(k, _)| k.clone());
            first.map(|k| self.0.remove(&k));
        }
        self.0.insert(key(reach, image, account), Entry { logins, until });
    }
}

fn key(reach: Reach, image: &str, account: Option<&Account>) -> (Reach, String, Option<Account>) {
    let what = match reach {
        Reach::Image => image,
        Reach::Registry => super::pattern::registry(image),
        Reach::Global => "",
    };
    (reach, what.to_owned(), account.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn answers_reach_as_far_and_as_long_as_they_say() {
        let (mut kept, now) = (Kept::default(), Instant::now());
        let later = now + Duration::from_secs(10);
        let logins: Arc<Logins> = Arc::default();
        kept.keep(Reach::Image, "r.io/a", None, logins.clone(), now, later);
        assert!(kept.find("r.io/a", None, later).is_some() && kept.find("r.io/b", None, now).is_none());
        assert!(kept.find("r.io/a", None, later + Duration::from_secs(1)).is_none());
        kept.keep(Reach::Registry, "r.io:1/a", None, logins.clone(), now, later);
        assert!(kept.find("r.io:1/b", None, now).is_some() && kept.find("r.io/b", None, now).is_none());
        let account = |token| Account {
            uid: "u".into(),
            token,
            ..Account::default()
        };
        let one = account(Some([1; 32]));
        kept.keep(Reach::Global, "r.io/a", Some(&one), logins.clone(), now, later);
        assert!(kept.find("x/y", Some(&one), now).is_some());
        for other in [Some(account(None)), Some(account(Some([2; 32]))), None] {
            assert!(kept.find("x/y", other.as_ref(), now).is_none());
        }
        for n in 0..2 * MOST {
            kept.keep(Reach::Image, &n.to_string(), None, logins.clone(), now, later);
        }
        assert_eq!(kept.0.len(), MOST);
    }
}
