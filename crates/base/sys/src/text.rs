//! The program's own file in memory: its instructions and constants.

use std::fs;
use std::io;

/// Takes the program's instructions and constants out of this process' memory; what is needed again is found in the kernel's cache of the file.
/// Most of what a start or another seldom work needs, nothing else does. How many bytes of the file are no longer held.
pub fn let_go() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?;
    let mut let_go = 0;
    for (start, end) in as_in_file(&fs::read_to_string("/proc/self/smaps")?, &program.to_string_lossy()) {
        // SAFETY: these pages are a file's as it is: the mapping is private, can't be written to, and none of its pages has been. Whoever needs
        // one reads the same again.
        let done = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let_go += end - start;
    }
    Ok(let_go)
}

/// The ranges of `smaps` that hold the program's file as it is: what can't be written to, and wasn't. What the linker has relocated was, as is
/// an instruction at which a debugger waits.
fn as_in_file(smaps: &str, program: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut range = None;
    for line in smaps.lines() {
        if let Some(of) = line.strip_prefix("Anonymous:") {
            found.extend(range.take().filter(|_| of.trim() == "0 kB"));
        } else if line.starts_with(|first: char| first.is_ascii_digit() || first.is_ascii_lowercase()) {
            range = unwritable(line, program);
        }
    }
    found
}

/// From where to where, if a line is the head of a mapping of the program that can only be read or run.
fn unwritable(line: &str, program: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    if !(rest.starts_with("r-xp ") || rest.starts_with("r--p ")) || !line.ends_with(program) {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let at = |hex| usize::from_str_radix(hex, 16).ok();
    Some((at(start)?, at(end)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_the_file_is_meant() {
        let mapping = |rights, file, anonymous| {
            format!(
                "01b1f000-0658d000 {rights} 0191f000 fe:00 12   {file}\nRss: 8 kB\nAnonymous: {anonymous} kB\nVmFlags: rd mr\n"
            )
        };
        let found = |rights, file, anonymous| as_in_file(&mapping(rights, file, anonymous), "/usr/bin/keelson");
        let whole = [(0x01b1_f000, 0x0658_d000)];
        for rights in ["r-xp", "r--p"] {
            assert_eq!(found(rights, "/usr/bin/keelson", 0), whole, "{rights}");
            assert_eq!(found(rights, "/usr/bin/keelson", 4), [], "{rights}");
            assert_eq!(found(rights, "/usr/lib/libc.so.6", 0), [], "{rights}");
        }
        for rights in ["rw-p", "rwxp", "r-xs", "r--s"] {
            assert_eq!(found(rights, "/usr/bin/keelson", 0), [], "{rights}");
        }
        let two = mapping("rw-p", "/usr/bin/keelson", 0) + &mapping("r-xp", "/usr/bin/keelson", 0);
        assert_eq!(as_in_file(&two, "/usr/bin/keelson"), whole);
    }

    #[test]
    fn the_program_goes_on_without_it() {
        static WORDS: [&str; 3] = ["some", "more", "words"];
        assert!(let_go().unwrap() > 0);
        assert_eq!(std::hint::black_box((1..=10).sum::<u32>()), 55);
        assert_eq!(std::hint::black_box(WORDS).concat(), "somemorewords");
    }
}
