//! How one token of the servers takes the place of another, while all of them run: from what a server sees to what it does next. There
//! is no leader: whatever is done for all of them is one compared write, and whoever is faster has done it.
//!
//! 1. The next token stands in the datastore, sealed by the present one ([`super::turn`]).
//! 2. Each server takes it, keeps both, and says so.
//! 3. When all that serve have said so, what they share is sealed by the next one.
//! 4. After a while, in which one that was just starting takes it too, the record goes, and the former token with it.

/// By which token this server can read the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Can {
    /// It has the next one.
    Next,
    /// It has only the one that is to be replaced.
    Former,
    Neither,
}

#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub record: Option<Can>,
    /// Whether this server keeps a token of before.
    pub keeps_former: bool,
    /// Whether it has said that it took this one.
    pub said: bool,
    /// Whether others that serve haven't.
    pub others: bool,
    /// Whether something is not sealed by the token that this server holds for the one that counts.
    pub unsealed: bool,
    /// Whether the while is over.
    pub ripe: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Rest,
    /// The former token goes from this server.
    Forget,
    Take,
    Say,
    Wait,
    Seal,
    End,
    /// It was replaced while this server knew nothing of it.
    Lost,
}

pub fn next(facts: Facts) -> Step {
    match facts.record {
        None if facts.unsealed => Step::Lost,
        None if facts.keeps_former => Step::Forget,
        None => Step::Rest,
        Some(Can::Neither) => Step::Lost,
        Some(Can::Former) => Step::Take,
        Some(Can::Next) if !facts.said => Step::Say,
        Some(Can::Next) if facts.others => Step::Wait,
        Some(Can::Next) if facts.unsealed => Step::Seal,
        Some(Can::Next) if !facts.ripe => Step::Wait,
        Some(Can::Next) => Step::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Servers drawn at random do what is next for them, and end and start again, until all rest: each has the next token, and nothing is
    /// sealed by another.
    #[test]
    fn all_come_to_rest_with_the_next_token_whoever_ends_when() {
        #[derive(Clone, Copy, Default)]
        struct Server {
            next: bool,
            former: bool,
            said: bool,
        }
        let mut drawn = 1u64;
        let mut draw = |bound: u64| {
            drawn = drawn
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (drawn >> 33) % bound
        };
        for _ in 0..500 {
            let mut servers = [Server {
                former: true,
                ..Server::default()
            }; 3];
            let (mut record, mut items) = (true, [false; 4]);
            for moment in 0..200 {
                let n = draw(3) as usize;
                let own = servers[n];
                let facts = Facts {
                    record: record.then_some(if own.next { Can::Next } else { Can::Former }),
                    keeps_former: own.next && own.former,
                    said: own.said,
                    others: servers
                        .iter()
                        .enumerate()
                        .any(|(other, server)| other != n && !server.said),
                    unsealed: own.next && items.contains(&false),
                    ripe: moment > 50,
                };
                match next(facts) {
                    Step::Rest | Step::Wait => {}
                    Step::Forget => servers[n].former = false,
                    // It may end after it has taken it and before it has said so.
                    Step::Take => servers[n].next = true,
                    Step::Say => servers[n].said = true,
                    Step::Seal => {
                        assert!(servers.iter().all(|server| server.next), "somebody can't open it");
                        // It may end after any of them.
                        items[draw(4) as usize] = true;
                    }
                    Step::End => {
                        assert!(servers.iter().all(|server| server.next) && !items.contains(&false));
                        record = false;
                    }
                    Step::Lost => panic!("a server is shut out"),
                }
            }
            assert!(!record && servers.iter().all(|server| server.next && !server.former));
        }
    }

    #[test]
    fn who_can_read_nothing_is_told_and_forgets_nothing() {
        let facts = Facts {
            record: None,
            keeps_former: true,
            said: false,
            others: false,
            unsealed: true,
            ripe: true,
        };
        assert_eq!(next(facts), Step::Lost);
        let neither = Facts {
            record: Some(Can::Neither),
            ..facts
        };
        assert_eq!(next(neither), Step::Lost);
    }
}
