//! Pieces of files: of one size, so that what changes in place, as a file system in a file does, changes few of them. Compressed where that
//! saves something.

use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::Read;

/// All but a file's last one.
pub const SIZE: usize = 1 << 20;
/// What the largest can become: sealed, and no smaller by compression.
pub const MOST: u64 = SIZE as u64 + 256;

/// How far back a compressed piece may look, which is memory while it is read: what is written here looks back 128 KiB.
const WINDOW: u64 = 8 << 20;

const STORED: u8 = 0;
const ZSTD: u8 = 1;

/// What is read again is compared here: a piece that a compressor got wrong would be a lost one.
pub fn pack(content: &[u8]) -> Vec<u8> {
    let compressed = compress_to_vec(content, CompressionLevel::Fastest);
    let smaller = compressed.len() < content.len() && unzip(&compressed, content.len()).as_deref() == Some(content);
    match smaller {
        true => [&[ZSTD], &compressed[..]].concat(),
        false => [&[STORED], content].concat(),
    }
}

/// `None`: it isn't something that was packed, or is more than `most`.
pub fn unpack(packed: &[u8], most: usize) -> Option<Vec<u8>> {
    match packed.split_first()? {
        (&STORED, content) if content.len() <= most => Some(content.to_vec()),
        (&ZSTD, compressed) => unzip(compressed, most),
        _ => None,
    }
}

fn unzip(compressed: &[u8], most: usize) -> Option<Vec<u8>> {
    let decoder = StreamingDecoder::new_with_max_window_size(compressed, WINDOW).ok()?;
    let mut content = Vec::new();
    decoder.take(most as u64 + 1).read_to_end(&mut content).ok()?;
    (content.len() <= most).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes without a pattern.
    fn noise(n: usize) -> Vec<u8> {
        let mut state = 1u64;
        let next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    #[test]
    fn what_is_packed_is_the_same_afterwards() {
        let text = "the same again and again ".repeat(2000).into_bytes();
        for (content, smaller) in [
            (text, true),
            (noise(100_000), false),
            (b"x".to_vec(), false),
            (vec![], false),
        ] {
            let packed = pack(&content);
            assert_eq!(packed.len() < content.len(), smaller);
            assert_eq!(unpack(&packed, SIZE).as_ref(), Some(&content));
        }
    }

    #[test]
    fn what_would_become_large_is_refused() {
        let bomb = pack(&vec![0; 1 << 20]);
        assert!(bomb.len() < 4096);
        assert_eq!(unpack(&bomb, 1 << 16), None);
        // One letter, by a frame that asks for memory: of 4 MiB, and of 64.
        let letter = |window: u8| unpack(&[ZSTD, 0x28, 0xb5, 0x2f, 0xfd, 0, window, 0x0b, 0, 0, b'a'], SIZE);
        assert_eq!(letter(12 << 3).as_deref(), Some(&b"a"[..]));
        assert_eq!(letter(16 << 3), None);
        assert_eq!(unpack(b"", SIZE), None);
        assert_eq!(unpack(&[7, 1, 2], SIZE), None, "of another version");
        assert_eq!(unpack(&[ZSTD, 1, 2], SIZE), None);
        assert_eq!(unpack(&[&[STORED], &noise(11)[..]].concat(), 10), None);
    }
}
