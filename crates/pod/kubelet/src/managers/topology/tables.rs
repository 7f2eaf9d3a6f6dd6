//! Upstream's cases, as data.

use super::*;

fn nodes(name: &str) -> Nodes {
    let far: [[u64; 8]; 8] = [
        [10, 11, 12, 12, 30, 30, 30, 30],
        [11, 10, 12, 12, 30, 30, 30, 30],
        [12, 12, 10, 11, 30, 30, 30, 30],
        [12, 12, 11, 10, 30, 30, 30, 30],
        [30, 30, 30, 30, 10, 11, 12, 12],
        [30, 30, 30, 30, 11, 10, 12, 12],
        [30, 30, 30, 30, 12, 12, 10, 11],
        [30, 30, 30, 30, 12, 12, 13, 10],
    ];
    let count = match name {
        "four" => 4,
        "eight" => 8,
        other => panic!("{other}"),
    };
    Nodes {
        ids: (0..count).collect(),
        distances: (0..count)
            .map(|n| (n, far[n as usize][..count as usize].to_vec()))
            .collect(),
    }
}

fn hint(text: &str) -> Hint {
    let (mask, preferred) = text.strip_suffix('!').map_or((text, false), |m| (m, true));
    let of = |mask: &str| Mask::of(mask.split('.').filter(|n| !n.is_empty()).map(|n| n.parse().unwrap()));
    Hint {
        mask: (mask != "*").then(|| of(mask)),
        preferred,
    }
}

fn hints(text: &str) -> Hints {
    let lists = text.split('&').map(str::trim).filter(|l| *l != "-").enumerate();
    let list = |l: &str| match l {
        "nil" => None,
        "none" => Some(Vec::new()),
        some => Some(some.split(' ').map(hint).collect()),
    };
    lists.map(|(at, l)| (format!("resource{at}"), list(l))).collect()
}

#[test]
fn what_suits_all_is_what_upstream_finds() {
    let mut count = 0;
    for line in include_str!("testdata/merge.txt")
        .lines()
        .filter(|l| !l.starts_with('#'))
    {
        let row: Vec<&str> = line.split(" | ").collect();
        let [policy, of, managers, wanted] = row[..] else {
            panic!("{line}")
        };
        let options = Options {
            closest: policy.ends_with("-closest"),
            ..Options::default()
        };
        let name = policy.trim_end_matches("-closest");
        let policy = Policy::ALL.into_iter().find(|p| p.name() == name).unwrap();
        let managers: Vec<Hints> = managers.split(" ; ").filter(|m| !m.is_empty()).map(hints).collect();
        assert_eq!(merge(policy, &nodes(of), options, &managers), hint(wanted), "{line}");
        count += 1;
    }
    assert!(count > 80, "{count}");
}

#[test]
fn many_ways_cost_no_more_than_there_are_sets_of_nodes() {
    let eight = nodes("eight");
    let mut all = Vec::new();
    Mask::each(&eight.ids, &mut |mask| {
        all.push(Hint {
            mask: Some(mask),
            preferred: mask.count() == 1,
        })
    });
    // 255 to the tenth power of combinations.
    let managers: Vec<Hints> = (0..10)
        .map(|n| Hints::from([(n.to_string(), Some(all.clone()))]))
        .collect();
    let best = merge(Policy::Restricted, &eight, Options::default(), &managers);
    assert_eq!(best, hint("0!"));
}
