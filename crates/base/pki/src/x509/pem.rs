//! PEM blocks, found as Go's `encoding/pem` finds them: whatever stands between blocks, and what doesn't decode, is skipped.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A block of PEM text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub label: String,
    /// Whether lines `Key: value` stand before the data.
    pub has_headers: bool,
    pub bytes: Vec<u8>,
}

const BEGIN: &[u8] = b"-----BEGIN ";
const END: &[u8] = b"\n-----END ";
const DASHES: &[u8] = b"-----";

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}
fn find_last(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).rposition(|w| w == what)
}

/// The first line without spaces at its end, and what comes after it.
fn line(text: &[u8]) -> (&[u8], &[u8]) {
    let (line, rest) = match text.iter().position(|b| *b == b'\n') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[][..]),
    };
    let line = line
        .strip_suffix(b"\r")
        .filter(|_| line.len() < text.len())
        .unwrap_or(line);
    let kept = line
        .iter()
        .rposition(|b| !matches!(b, b' ' | b'\t'))
        .map_or(0, |at| at + 1);
    (&line[..kept], rest)
}

/// The next block and what comes after it.
pub fn next(text: &[u8]) -> Option<(Block, &[u8])> {
    let mut rest = text;
    loop {
        // The last beginning before the first end: beginnings without an end of their own are skipped.
        let end = find(rest, END)?;
        let after = &rest[end + END.len()..];
        let begin = find_last(&rest[..end], BEGIN).filter(|at| *at == 0 || rest[at - 1] == b'\n');
        if let Some(begin) = begin
            && let Some((block, left)) = block(&rest[begin + BEGIN.len()..], end - begin - BEGIN.len())
        {
            return Some((block, left));
        }
        rest = after;
    }
}

/// Reads a block from after `-----BEGIN `; its end line begins at `end`.
fn block(text: &[u8], end: usize) -> Option<(Block, &[u8])> {
    let (first, mut rest) = line(text);
    let label = first.strip_suffix(DASHES)?;
    let at = |rest: &[u8]| (text.len() - rest.len()) as isize;
    let mut has_headers = false;
    loop {
        let (header, next) = line(rest);
        if rest.is_empty() {
            return None;
        }
        if !header.contains(&b':') {
            break;
        }
        has_headers = true;
        rest = next;
    }
    let left = end as isize - at(rest);
    if has_headers && left < 0 {
        return None;
    }
    let closing = text[end + END.len()..].strip_prefix(label)?.strip_prefix(DASHES)?;
    let (empty, after) = line(closing);
    if !empty.is_empty() {
        return None;
    }
    let data: Vec<u8> = match usize::try_from(left) {
        Ok(n) => rest[..n].iter().copied().filter(|b| !b" \t\r\n".contains(b)).collect(),
        Err(_) => Vec::new(),
    };
    let block = Block {
        label: String::from_utf8_lossy(label).into_owned(),
        has_headers,
        bytes: STANDARD.decode(data).ok()?,
    };
    Some((block, after))
}

/// All blocks.
pub fn blocks(text: &[u8]) -> impl Iterator<Item = Block> + '_ {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (block, left) = next(rest)?;
        rest = left;
        Some(block)
    })
}

/// The certificates of a bundle in DER, as Go's `AppendCertsFromPEM` takes them: other blocks are skipped.
pub fn certificates(text: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    blocks(text)
        .filter(|b| b.label == CERTIFICATE && !b.has_headers)
        .map(|b| b.bytes)
}

pub const CERTIFICATE: &str = "CERTIFICATE";
pub const REQUEST: &str = "CERTIFICATE REQUEST";

/// A block of 64 characters a line.
pub fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for chunk in text.as_bytes().chunks(64) {
        out.extend(chunk.iter().map(|b| char::from(*b)));
        out.push('\n');
    }
    out + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_among_other_text() {
        let good = encode("X", &[1; 60]);
        let labels = |text: &str| blocks(text.as_bytes()).map(|b| b.label).collect::<Vec<_>>();
        assert_eq!(next(good.as_bytes()).unwrap().0.bytes, [1; 60]);
        assert_eq!(labels(&format!("a key\n{good}noise\n{good}")), ["X", "X"]);
        assert_eq!(
            labels(&format!("-----BEGIN Y-----\n{good}")),
            ["X"],
            "a beginning without an end"
        );
        assert_eq!(labels(&good.replace('\n', " \r\n")), ["X"]);
        assert!(labels(&good.replace("END X", "END Y")).is_empty());
        assert!(labels(&format!("x{good}")).is_empty(), "not at the beginning of a line");
        assert!(labels(&good.replace("AQ", "A!")).is_empty());
        let headed = "-----BEGIN X-----\nA: b\n\nAQEB\n-----END X-----";
        let (block, rest) = next(headed.as_bytes()).unwrap();
        assert!(block.has_headers && block.bytes == [1, 1, 1] && rest.is_empty());
        assert!(
            next(b"-----BEGIN X-----\n-----END X-----\n")
                .unwrap()
                .0
                .bytes
                .is_empty()
        );
    }
}
