//! Which ids of the machine are for pods: those that getsubids(1) tells for the user `kubelet`, the same for users and
//! groups; all but the first range where there is no such user or program.

use crate::host::Host;

const USER: &str = "kubelet";

/// The first id, and how many.
pub fn of_kubelet(host: &dyn Host, per_pod: u32) -> Result<(u32, u32), String> {
    match host.subordinate_ids(USER).map_err(|e| e.to_string())? {
        None => Ok((per_pod, u32::MAX - per_pod + 1)),
        Some((uids, gids)) if uids == gids => parse(&uids),
        Some(_) => Err(format!("mismatched subuids and subgids for user \"{USER}\"")),
    }
}

/// One line: `0: kubelet 65536 2147483648`.
fn parse(said: &str) -> Result<(u32, u32), String> {
    let said = said.trim_matches('\n');
    if said.contains('\n') {
        return Err(format!("error parsing line {said:?}: it must contain only one line"));
    }
    let parts: Vec<&str> = said.split_whitespace().collect();
    let [_, _, first, length] = parts.as_slice() else {
        return Err(format!("invalid line {said:?}"));
    };
    let number = |text: &str| text.parse().map_err(|e| format!("error parsing line {said:?}: {e}"));
    Ok((number(first)?, number(length)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fake::FakeHost;

    #[test]
    fn one_line_says_it() {
        assert_eq!(parse("0: kubelet 65536 2147483648\n"), Ok((65_536, 2_147_483_648)));
        for odd in [
            "",
            "0: kubelet 65536",
            "0: kubelet 65536 2147483648\n1: kubelet 1 2\n",
            "0: kubelet a 1",
            "0: kubelet 1 4294967296",
        ] {
            assert!(parse(odd).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn machines_that_say_nothing_give_all_but_the_hosts_own() {
        let host = FakeHost::small("n", jiff::Timestamp::UNIX_EPOCH);
        assert_eq!(of_kubelet(&host, 65_536), Ok((65_536, 4_294_901_760)));
        host.set_subordinate_ids("0: kubelet 131072 7208960\n", "0: kubelet 131072 7208960\n");
        assert_eq!(of_kubelet(&host, 65_536), Ok((131_072, 7_208_960)));
        host.set_subordinate_ids("0: kubelet 131072 7208960\n", "0: kubelet 65536 7208960\n");
        assert!(of_kubelet(&host, 65_536).unwrap_err().starts_with("mismatched"));
    }
}
