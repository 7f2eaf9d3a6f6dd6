//! Which devices a container gets: upstream's rules and words. Pure.

use super::near::Near;
use std::collections::BTreeSet;

pub type Ids = BTreeSet<String>;

/// What is known when devices of one resource are chosen for a container.
pub struct Question<'a> {
    pub pod: &'a str,
    pub container: &'a str,
    pub resource: &'a str,
    pub required: usize,
    /// Devices that can be used; `None`: no plug-in has registered for the resource.
    pub healthy: Option<&'a Ids>,
    /// What the container has already.
    pub had: Option<&'a Ids>,
    /// What any container of the node has.
    pub taken: &'a Ids,
    /// What init containers of the pod had and don't need any more.
    pub reuse: &'a Ids,
    /// Which lie near the memory that was found for the container; `None`: it is all the same.
    pub near: Option<&'a Near>,
    /// Whether the plug-in wants to be asked which it prefers.
    pub asks: bool,
    /// What it prefers, once it was asked.
    pub preferred: Option<&'a Ids>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The container has what it needs.
    Has,
    /// The plug-in has to be asked first: of which devices, and which have to be among them.
    Ask {
        available: Ids,
        must: Ids,
    },
    Take(Ids),
}

pub fn choose(q: &Question) -> Result<Answer, String> {
    let resource = q.resource;
    let none = Ids::new();
    let had = q.had.unwrap_or(&none);
    if q.had.is_some() && had.len() != q.required {
        return Err(format!(
            "pod \"{}\" container \"{}\" changed request for resource \"{resource}\" from {} to {}",
            q.pod,
            q.container,
            had.len(),
            q.required
        ));
    }
    let Some(healthy) = q.healthy else {
        return Err(format!("cannot allocate unregistered device {resource}"));
    };
    if healthy.is_empty() {
        return Err(format!(
            "no healthy devices present; cannot allocate unhealthy devices {resource}"
        ));
    }
    if !had.is_subset(healthy) {
        return Err(format!(
            "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
        ));
    }
    if q.had.is_some() || q.required == 0 {
        return Ok(Answer::Has);
    }
    let mut taken: Ids = q.reuse.iter().take(q.required).cloned().collect();
    let needed = q.required - taken.len();
    if needed == 0 {
        return Ok(Answer::Take(taken));
    }
    let free: Ids = healthy.difference(q.taken).cloned().collect();
    if free.len() < needed {
        return Err(format!(
            "requested number of devices unavailable for {resource}. Requested: {needed}, Available: {}",
            free.len()
        ));
    }
    let (close, far) = q.near.map_or((&none, &none), |n| (&n.close, &n.far));
    let close: Ids = free.intersection(close).cloned().collect();
    // Where there are more of what is near than needed the plug-in may say which of these; else all of them are taken first.
    let pool = match needed < close.len() {
        true => close,
        false => {
            taken.extend(close);
            free.difference(&taken).cloned().collect()
        }
    };
    let needed = q.required - taken.len();
    if needed == 0 {
        return Ok(Answer::Take(taken));
    }
    let Some(preferred) = q.preferred.or((!q.asks).then_some(&none)) else {
        return Ok(Answer::Ask {
            available: pool.union(&taken).cloned().collect(),
            must: taken,
        });
    };
    // What the plug-in prefers first, as far as it is free; then any, and last what is nowhere.
    let mut pool: Vec<&String> = pool.iter().collect();
    pool.sort_by_key(|d| (!preferred.contains(*d), !far.contains(*d)));
    taken.extend(pool.into_iter().take(needed).cloned());
    Ok(Answer::Take(taken))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Ids {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Healthy, had, taken, reused, required, asks, preferred → what is chosen.
    #[test]
    fn devices_are_chosen() {
        type Row = (
            &'static str,
            Option<&'static str>,
            &'static str,
            &'static str,
            usize,
            bool,
            Option<&'static str>,
        );
        let rows: [(Row, &str); 14] = [
            (("a b c", None, "", "", 2, false, None), "take a b"),
            (("a b c", None, "a", "", 2, false, None), "take b c"),
            (
                ("a b c", None, "a b", "", 2, false, None),
                "unavailable for r. Requested: 2, Available: 1",
            ),
            (
                ("", None, "", "", 1, false, None),
                "no healthy devices present; cannot allocate unhealthy devices r",
            ),
            (("a b", Some("a"), "a", "", 1, false, None), "has"),
            (
                ("b", Some("a"), "a", "", 1, false, None),
                "previously allocated devices are no longer healthy",
            ),
            (
                ("a b", Some("a"), "a", "", 2, false, None),
                "changed request for resource \"r\" from 1 to 2",
            ),
            (("a b c", None, "a b", "a b", 1, true, None), "take a"),
            (("a b c", None, "a b", "a b", 3, false, None), "take a b c"),
            (("a b c d", None, "a", "a", 2, true, None), "ask a b c d must a"),
            (("a b c d", None, "a", "a", 2, true, Some("d")), "take a d"),
            (("a b c d", None, "", "", 2, true, Some("x d")), "take a d"),
            (("a b c d", None, "d", "", 2, true, Some("d c")), "take a c"),
            (("a b", None, "", "", 0, false, None), "has"),
        ];
        for ((healthy, had, taken, reuse, required, asks, preferred), wanted) in rows {
            let (healthy, taken, reuse) = (ids(healthy), ids(taken), ids(reuse));
            let (had, preferred) = (had.map(ids), preferred.map(ids));
            let answer = choose(&Question {
                pod: "p",
                container: "c",
                resource: "r",
                required,
                healthy: Some(&healthy),
                had: had.as_ref(),
                taken: &taken,
                reuse: &reuse,
                near: None,
                asks,
                preferred: preferred.as_ref(),
            });
            let list = |ids: Ids| ids.into_iter().collect::<Vec<_>>().join(" ");
            let text = match answer {
                Ok(Answer::Has) => "has".to_owned(),
                Ok(Answer::Take(ids)) => format!("take {}", list(ids)),
                Ok(Answer::Ask { available, must }) => format!("ask {} must {}", list(available), list(must)),
                Err(e) => e,
            };
            let same = text == wanted || !wanted.starts_with("take") && text.contains(wanted);
            assert!(same, "{text} in place of {wanted}");
        }
    }

    /// Free, near, far, required, asks, preferred → what is chosen.
    #[test]
    fn what_is_near_comes_first() {
        for (free, close, far, required, asks, preferred, wanted) in [
            ("a b c d", "c d", "a b", 2, false, None, Ok("c d")),
            ("a b c d", "c d", "a b", 1, false, None, Ok("c")),
            ("a b c d", "c d", "a b", 1, true, None, Err("c d")),
            ("a b c d", "c d", "a b", 1, true, Some("d a"), Ok("d")),
            ("a b c d", "c d", "b", 3, false, None, Ok("b c d")),
            ("a b c d", "c d", "", 3, false, None, Ok("a c d")),
            ("a b c d", "c d", "a b", 3, true, None, Err("a b c d")),
            ("a b c d", "c d", "a b", 3, true, Some("b"), Ok("b c d")),
        ] {
            let (free, none) = (ids(free), Ids::new());
            let near = Near {
                close: ids(close),
                far: ids(far),
            };
            let preferred = preferred.map(ids);
            let answer = choose(&Question {
                pod: "p",
                container: "c",
                resource: "r",
                required,
                healthy: Some(&free),
                had: None,
                taken: &none,
                reuse: &none,
                near: Some(&near),
                asks,
                preferred: preferred.as_ref(),
            });
            let got = match answer.unwrap() {
                Answer::Take(taken) => Ok(taken),
                Answer::Ask { available, .. } => Err(available),
                Answer::Has => panic!("it has nothing"),
            };
            assert_eq!(got, wanted.map(ids).map_err(ids), "{free:?} {required} {preferred:?}");
        }
    }

    #[test]
    fn a_resource_has_to_be_registered() {
        let none = Ids::new();
        let answer = choose(&Question {
            pod: "p",
            container: "c",
            resource: "r",
            required: 1,
            healthy: None,
            had: None,
            taken: &none,
            reuse: &none,
            near: None,
            asks: false,
            preferred: None,
        });
        assert_eq!(answer.unwrap_err(), "cannot allocate unregistered device r");
    }
}
