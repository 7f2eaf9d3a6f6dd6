//! Which pod goes first. Pure.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub uid: String,
    /// `None`: it can't be measured.
    pub used: Option<u64>,
    pub requested: u64,
    pub priority: i32,
    pub ending: bool,
}

/// First those that use more than they asked for, then the lower priority, then the greatest excess. One whose use isn't
/// known goes only where nobody's is.
pub fn choose(mut candidates: Vec<Candidate>) -> Option<Candidate> {
    let excess = |c: &Candidate| c.used.map_or(0, |used| i128::from(used) - i128::from(c.requested));
    if candidates.iter().any(|c| c.used.is_some()) {
        candidates.retain(|c| c.used.is_some());
    }
    candidates.sort_by(|a, b| {
        (excess(b) > 0)
            .cmp(&(excess(a) > 0))
            .then(a.priority.cmp(&b.priority))
            .then(excess(b).cmp(&excess(a)))
            .then(a.uid.cmp(&b.uid))
    });
    candidates.into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(uid: &str, used: u64, requested: u64, priority: i32) -> Candidate {
        Candidate {
            uid: uid.into(),
            used: Some(used),
            requested,
            priority,
            ending: false,
        }
    }

    #[test]
    fn the_greediest_of_least_priority_goes() {
        let list = vec![
            c("modest", 10, 20, -5),
            c("greedy", 50, 10, 0),
            c("important", 90, 10, 100),
            c("greedier", 60, 10, 0),
        ];
        assert_eq!(choose(list).unwrap().uid, "greedier");
        assert_eq!(choose(vec![]), None);
        // What isn't known isn't nothing.
        let unknown = |uid, priority| Candidate {
            used: None,
            ..c(uid, 0, 0, priority)
        };
        let list = vec![unknown("unknown", -9), c("modest", 10, 20, 0)];
        assert_eq!(choose(list).unwrap().uid, "modest");
        assert_eq!(choose(vec![unknown("a", 5), unknown("b", 1)]).unwrap().uid, "b");
    }
}
