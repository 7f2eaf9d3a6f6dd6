//! What processes hold open.

use std::iter::Sum;

/// So many descriptors are looked at; whoever holds more is told how many, and not of which kind.
const MOST_LOOKS: u64 = 65_536;

/// Of some processes, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenFiles {
    pub files: u64,
    /// `None`: they are too many to look at.
    pub sockets: Option<u64>,
    /// The bound of the first process; `None`: it has none, or there is no process.
    pub bound: Option<u64>,
}

/// Of groups in a group.
impl Sum for OpenFiles {
    fn sum<I: Iterator<Item = OpenFiles>>(all: I) -> OpenFiles {
        let none = OpenFiles {
            sockets: Some(0),
            ..OpenFiles::default()
        };
        all.fold(none, |sum, one| OpenFiles {
            files: sum.files + one.files,
            sockets: sum.sockets.zip(one.sockets).map(|(a, b)| a + b),
            bound: sum.bound.or(one.bound),
        })
    }
}

/// Counts what processes hold open. Those that end meanwhile aren't counted.
pub fn open_files(pids: &[i32]) -> OpenFiles {
    let (mut files, mut sockets) = (0, 0);
    for pid in pids {
        let Ok(held) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for file in held.flatten() {
            files += 1;
            if files <= MOST_LOOKS {
                let target = std::fs::read_link(file.path()).unwrap_or_default();
                sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            }
        }
    }
    let limits = pids
        .first()
        .and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/limits")).ok())
        .unwrap_or_default();
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"));
    OpenFiles {
        files,
        sockets: Some(sockets).filter(|_| files <= MOST_LOOKS),
        bound: line.and_then(|l| l.split_whitespace().next()?.parse().ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_holds_open_is_counted() {
        let me = [std::process::id() as i32];
        let before = open_files(&me);
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let after = open_files(&me);
        assert!(before.files > 0 && before.bound.is_some());
        assert!(after.sockets > Some(0) && after.files >= after.sockets.unwrap());
        let none = open_files(&[]);
        assert_eq!((none.files, none.sockets, none.bound), (0, Some(0), None));
    }

    #[test]
    fn a_sum_with_what_is_not_known_is_not_known() {
        let of = |files, sockets| OpenFiles {
            files,
            sockets,
            bound: Some(files),
        };
        let sum = [of(2, Some(1)), of(3, Some(2))].into_iter().sum();
        assert_eq!(of(2, Some(1)).bound, Some(2));
        assert_eq!(
            OpenFiles {
                bound: Some(2),
                ..of(5, Some(3))
            },
            sum
        );
        assert_eq!(
            [of(2, Some(1)), of(3, None)].into_iter().sum::<OpenFiles>().sockets,
            None
        );
    }
}
