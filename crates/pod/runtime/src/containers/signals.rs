//! Signals: as images name them, as CRI numbers them, as the kernel does.

use keelson_cri::v1::Signal;

const TERM: i32 = 15;
/// Real-time signals as programs see them: the C library keeps the first two for itself.
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

/// In the order of CRI's numbers, from 1.
const NAMES: [(&str, i32); 34] = [
    ("SIGABRT", 6),
    ("SIGALRM", 14),
    ("SIGBUS", 7),
    ("SIGCHLD", 17),
    ("SIGCLD", 17),
    ("SIGCONT", 18),
    ("SIGFPE", 8),
    ("SIGHUP", 1),
    ("SIGILL", 4),
    ("SIGINT", 2),
    ("SIGIO", 29),
    ("SIGIOT", 6),
    ("SIGKILL", 9),
    ("SIGPIPE", 13),
    ("SIGPOLL", 29),
    ("SIGPROF", 27),
    ("SIGPWR", 30),
    ("SIGQUIT", 3),
    ("SIGSEGV", 11),
    ("SIGSTKFLT", 16),
    ("SIGSTOP", 19),
    ("SIGSYS", 31),
    ("SIGTERM", 15),
    ("SIGTRAP", 5),
    ("SIGTSTP", 20),
    ("SIGTTIN", 21),
    ("SIGTTOU", 22),
    ("SIGURG", 23),
    ("SIGUSR1", 10),
    ("SIGUSR2", 12),
    ("SIGVTALRM", 26),
    ("SIGWINCH", 28),
    ("SIGXCPU", 24),
    ("SIGXFSZ", 25),
];

/// CRI's number of SIGRTMIN; SIGRTMIN+1 … SIGRTMAX follow one by one.
const CRI_RT_MIN: i32 = 35;

/// The number of a signal named as in an image: "SIGTERM", "TERM", "15", "SIGRTMIN+3".
pub fn parse(text: &str) -> Result<i32, String> {
    let unknown = || format!("unknown signal \"{text}\"");
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RT_MAX).contains(&number) {
            Ok(number)
        } else {
            Err(unknown())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    let offset = |rest: &str| {
        if rest.is_empty() {
            Some(0)
        } else {
            rest.parse::<i32>().ok()
        }
    };
    let real_time = match (name.strip_prefix("SIGRTMIN"), name.strip_prefix("SIGRTMAX")) {
        (Some(rest), _) => offset(rest).map(|n| RT_MIN + n),
        (_, Some(rest)) => offset(rest).map(|n| RT_MAX + n),
        _ => NAMES.iter().find(|(n, _)| *n == name).map(|(_, number)| *number),
    };
    real_time.filter(|n| (1..=RT_MAX).contains(n)).ok_or_else(unknown)
}

/// What a container is stopped with: asked for, of its image, or SIGTERM.
pub fn stop_signal(asked: Signal, image: &str) -> Result<i32, String> {
    match asked {
        Signal::RuntimeDefault if image.is_empty() => Ok(TERM),
        Signal::RuntimeDefault => parse(image),
        asked => Ok(from_cri(asked)),
    }
}

fn from_cri(signal: Signal) -> i32 {
    let number = signal as i32;
    match usize::try_from(number - 1).ok().and_then(|i| NAMES.get(i)) {
        Some((_, signal)) => *signal,
        None if number >= CRI_RT_MIN => RT_MIN + number - CRI_RT_MIN,
        None => TERM,
    }
}

pub fn to_cri(signal: i32) -> Signal {
    let number = match NAMES.iter().position(|(_, n)| *n == signal) {
        Some(index) => index as i32 + 1,
        None => signal - RT_MIN + CRI_RT_MIN,
    };
    Signal::try_from(number).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_meet() {
        assert_eq!(parse("SIGQUIT"), Ok(3));
        assert_eq!(parse("term"), Ok(15));
        assert_eq!(parse("SIGRTMIN+3"), Ok(37));
        assert_eq!(parse("RTMAX-2"), Ok(62));
        assert!(parse("SIGNOPE").is_err() && parse("99").is_err());
        assert_eq!(stop_signal(Signal::RuntimeDefault, "SIGQUIT"), Ok(3));
        assert_eq!(stop_signal(Signal::Sigusr1, "SIGQUIT"), Ok(10));
        assert_eq!(from_cri(Signal::Sigrtmax), 64 + 1 - 1);
        for signal in (1..=31).chain(34..=64) {
            assert_eq!(from_cri(to_cri(signal)), signal);
        }
    }
}
