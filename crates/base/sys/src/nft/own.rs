//! Whose change it was: the generations that this program's batches made, by network namespace.
//!
//! The kernel numbers the rule set of each namespace anew with every batch that changes something, whoever sent it, and ends
//! the notices of a batch with its number. So a change is known by namespace and number alone. Ports of senders are no
//! evidence: another program gets a port that this one has closed, and in another namespace the same one. While a batch is
//! under way, what it makes isn't known yet: who judges waits for those that were.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// A network namespace: device and inode.
pub(super) type Namespace = (u64, u64);

/// Generations remembered in a namespace. What is forgotten would be taken for another program's change, which costs one
/// more look.
const KEPT: usize = 4096;
/// Namespaces remembered: this program works in its own and, for as long as a pod is set up, in the pod's.
const NAMESPACES: usize = 1024;

#[derive(Default)]
struct Own {
    generations: HashMap<Namespace, VecDeque<u32>>,
    /// Namespaces as they were first met.
    order: VecDeque<Namespace>,
    /// Batches sent and not answered: their numbers.
    under_way: BTreeSet<(Namespace, u64)>,
    next: u64,
}

static OWN: Mutex<Option<Own>> = Mutex::new(None);
/// A batch was answered.
static ANSWERED: Notify = Notify::const_new();

fn with<T>(job: impl FnOnce(&mut Own) -> T) -> T {
    let mut own: MutexGuard<'_, Option<Own>> = OWN.lock().unwrap_or_else(PoisonError::into_inner);
    job(own.get_or_insert_default())
}

/// A batch that is under way, until it is dropped.
pub(super) struct UnderWay {
    namespace: Namespace,
    number: u64,
}

pub(super) fn begin(namespace: Namespace) -> UnderWay {
    let number = with(|own| {
        own.next += 1;
        own.under_way.insert((namespace, own.next));
        own.next
    });
    UnderWay { namespace, number }
}

impl UnderWay {
    /// It made this generation.
    pub(super) fn made(&self, generation: u32) {
        with(|own| {
            if !own.generations.contains_key(&self.namespace) {
                if own.order.len() == NAMESPACES
                    && let Some(oldest) = own.order.pop_front()
                {
                    own.generations.remove(&oldest);
                }
                own.order.push_back(self.namespace);
            }
            let list = own.generations.entry(self.namespace).or_default();
            if list.len() == KEPT {
                list.pop_front();
            }
            list.push_back(generation);
        });
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        with(|own| own.under_way.remove(&(self.namespace, self.number)));
        ANSWERED.notify_waiters();
    }
}

/// Waits until every batch has been answered that is under way now.
pub(super) async fn settled(namespace: Namespace) {
    let last = with(|own| own.next);
    loop {
        let mut answered = std::pin::pin!(ANSWERED.notified());
        answered.as_mut().enable();
        if with(|own| own.under_way.range((namespace, 0)..=(namespace, last)).next().is_none()) {
            return;
        }
        answered.await;
    }
}

/// Whether all generations after `since` up to `now` were made by this program. There is no generation 0.
pub(super) fn all_own(namespace: Namespace, since: u32, now: u32) -> bool {
    let made = now.wrapping_sub(since);
    if made == 0 {
        return true;
    }
    with(|own| {
        let list = own.generations.get(&namespace);
        let is_own = |n: u32| n == 0 || list.is_some_and(|list| list.contains(&n));
        made as usize <= KEPT && (1..=made).all(|n| is_own(since.wrapping_add(n)))
    })
}

/// As if another program had done it.
#[cfg(test)]
pub(super) fn forget(namespace: Namespace) {
    with(|own| own.generations.remove(&namespace));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_are_their_namespace_s_and_go_around() {
        let (here, there) = ((1, 1), (1, 2));
        let batch = begin(here);
        batch.made(u32::MAX);
        batch.made(1);
        assert!(all_own(here, u32::MAX - 1, 1), "over 0, which is none");
        assert!(!all_own(there, u32::MAX - 1, 1), "numbers of another namespace");
        assert!(!all_own(here, u32::MAX - 1, 2), "one more");
    }

    #[tokio::test]
    async fn who_judges_waits_for_batches_of_the_namespace_that_were_under_way() {
        let (here, there) = ((2, 1), (2, 2));
        let batch = begin(here);
        settled(there).await;
        let judge = tokio::spawn(async move {
            settled(here).await;
            all_own(here, 4, 5)
        });
        tokio::task::yield_now().await;
        let later = begin(here);
        batch.made(5);
        drop(batch);
        assert!(judge.await.expect("it ends, whatever came later"));
        drop(later);
    }
}
