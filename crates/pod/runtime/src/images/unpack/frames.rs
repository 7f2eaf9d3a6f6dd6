//! Takes the compression off a layer: gzip of any number of members, zstd of any number of frames, skippable ones among
//! them (zstd:chunked keeps its table of contents in those, pzstd its sizes), or none.

use std::io::{self, BufRead, Read};

use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use super::archive::invalid;

const GZIP: [u8; 3] = [0x1f, 0x8b, 0x08];
const ZSTD: u32 = 0xfd2f_b528;
/// The lowest four bits are free.
const SKIPPABLE: u32 = 0x184d_2a50;

/// Memory that a zstd frame may ask for: the `zstd` program's own bound (`--long=27`).
pub const MAX_WINDOW: u64 = 128 << 20;

/// What is in `compressed`, by its first bytes.
pub fn plain<'a>(compressed: &'a mut (impl BufRead + 'a)) -> io::Result<Box<dyn Read + 'a>> {
    let start = compressed.fill_buf()?;
    if start.starts_with(&GZIP) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(compressed)));
    }
    let magic = start.first_chunk().map(|b| u32::from_le_bytes(*b));
    if magic.is_some_and(|m| m == ZSTD || m & !0xf == SKIPPABLE) {
        return Ok(Box::new(Frames::new(compressed)));
    }
    Ok(Box::new(compressed))
}

/// Reads the frames one after another as one stream.
struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    inside: bool,
}

impl<R: BufRead> Frames<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Frames {
            source,
            decoder,
            inside: false,
        }
    }

    /// Enters the next frame that holds anything; `false` at the end of all.
    fn enter(&mut self) -> io::Result<bool> {
        loop {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            let mut magic = [0; 4];
            self.source.read_exact(&mut magic)?;
            let number = u32::from_le_bytes(magic);
            if number & !0xf == SKIPPABLE {
                let mut length = [0; 4];
                self.source.read_exact(&mut length)?;
                let length = u64::from(u32::from_le_bytes(length));
                if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? < length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                continue;
            }
            if number != ZSTD {
                return Err(invalid("zstd: what follows a frame is none"));
            }
            self.decoder.reset((&magic[..]).chain(&mut self.source)).map_err(bad)?;
            return Ok(true);
        }
    }
}

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.inside {
                while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                    self.decoder
                        .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                        .map_err(bad)?;
                }
                let n = self.decoder.read(buffer)?;
                if n > 0 || buffer.is_empty() {
                    return Ok(n);
                }
            }
            self.inside = self.enter()?;
            if !self.inside {
                return Ok(0);
            }
        }
    }
}

fn bad(error: impl std::fmt::Display) -> io::Error {
    invalid(&format!("zstd: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn read(mut bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        plain(&mut bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn frames_follow_each_other() {
        let frame = |text: &[u8]| compress_to_vec(text, CompressionLevel::Fastest);
        let skip = [&0x184d_2a53u32.to_le_bytes()[..], &4u32.to_le_bytes(), b"skip"].concat();
        let (one, two) = (frame(&[b'a'; 300_000]), frame(b"b"));
        let mut wanted = vec![b'a'; 300_000];
        wanted.push(b'b');
        for parts in [
            vec![&one, &two],
            vec![&skip, &one, &two],
            vec![&one, &skip, &skip, &two, &skip],
            vec![&one, &frame(b""), &two],
        ] {
            let whole: Vec<u8> = parts.into_iter().flatten().copied().collect();
            assert_eq!(read(&whole).unwrap(), wanted);
        }
        assert!(read(&[&one[..], b"garbage"].concat()).is_err());
        assert!(read(&one[..one.len() - 3]).is_err());
        assert!(read(&skip[..9]).is_err());
    }

    #[test]
    fn members_follow_each_other() {
        let member = |text: &[u8]| {
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::copy(&mut &*text, &mut gz).unwrap();
            gz.finish().unwrap()
        };
        assert_eq!(read(&[member(b"one "), member(b"two")].concat()).unwrap(), b"one two");
        assert_eq!(read(b"plain").unwrap(), b"plain");
    }

    #[test]
    fn a_window_beyond_the_bound_is_refused() {
        // A frame header without single segment, window exponent 31: 2 TiB.
        let error = read(&[&ZSTD.to_le_bytes()[..], &[0x00, 0xf8, 0, 0, 0]].concat()).unwrap_err();
        assert!(error.to_string().contains("indow"), "{error}");
    }
}
