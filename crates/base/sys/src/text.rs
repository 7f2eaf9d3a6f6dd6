//! The program's own instructions in memory.

use std::fs;
use std::io;

/// Takes the program's instructions out of this process' memory; what runs again is found in the kernel's cache of the file. Most of what a
/// start runs never does. How many bytes are taken out.
pub fn let_go() -> io::Result<usize> {
    let program = fs::read_link("/proc/self/exe")?;
    let program = program.to_string_lossy();
    let mut let_go = 0;
    for line in fs::read_to_string("/proc/self/maps")?.lines() {
        let Some((start, end)) = instructions(line, &program) else {
            continue;
        };
        // SAFETY: these pages are a file's as it is: the mapping is private and can't be written to. Whoever needs one reads the same again.
        let done = unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        let_go += end - start;
    }
    Ok(let_go)
}

/// From where to where, if a line of `maps` is one of the program's instructions.
fn instructions(line: &str, program: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    if !rest.starts_with("r-xp ") || !line.ends_with(program) {
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
    fn only_the_programs_instructions_are_meant() {
        let line = |rights| format!("01b1f000-0658d000 {rights} 0191f000 fe:00 12 /usr/bin/keelson");
        let found = instructions(&line("r-xp"), "/usr/bin/keelson");
        assert_eq!(found, Some((0x01b1_f000, 0x0658_d000)));
        for other in ["r--p", "rw-p", "rwxp", "r-xs"] {
            assert_eq!(instructions(&line(other), "/usr/bin/keelson"), None, "{other}");
        }
        assert_eq!(instructions(&line("r-xp"), "/usr/lib/libc.so.6"), None);
    }

    #[test]
    fn the_program_goes_on_without_them() {
        assert!(let_go().unwrap() > 0);
        assert_eq!(std::hint::black_box((1..=10).sum::<u32>()), 55);
    }
}
