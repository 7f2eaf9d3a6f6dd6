//! Header blocks: pairs of texts behind their lengths, compressed with one memory per connection and direction.

use std::collections::HashMap;
use std::io;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::dictionary::dictionary;

/// Longer blocks are refused: the headers of a stream are a handful of short texts.
const MAX_BLOCK: usize = 64 << 10;

pub struct Decompressor(Decompress);

impl Decompressor {
    pub fn new() -> Decompressor {
        Decompressor(Decompress::new(true))
    }

    /// The headers in a block, by lower-case name.
    pub fn headers(&mut self, block: &[u8]) -> io::Result<HashMap<String, String>> {
        let plain = self.decompress(block)?;
        let mut rest = &plain[..];
        let count = number(&mut rest)?;
        let mut headers = HashMap::new();
        for _ in 0..count {
            let name = text(&mut rest)?;
            headers.insert(name.to_ascii_lowercase(), text(&mut rest)?);
        }
        Ok(headers)
    }

    fn decompress(&mut self, mut block: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::with_capacity(1024);
        loop {
            let before = self.0.total_in();
            let result = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            block = &block[(self.0.total_in() - before) as usize..];
            match result {
                Ok(_) if block.is_empty() && plain.len() < plain.capacity() => return Ok(plain),
                Ok(_) if plain.len() >= MAX_BLOCK => return Err(invalid("headers of more than 64 KiB")),
                Ok(_) if plain.len() < plain.capacity() => return Err(invalid("headers with a tail")),
                Ok(_) => plain.reserve(4096),
                Err(e) if e.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|e| invalid(&e.to_string()))?;
                }
                Err(e) => return Err(invalid(&e.to_string())),
            }
        }
    }
}

fn number(rest: &mut &[u8]) -> io::Result<usize> {
    let (first, tail) = rest
        .split_first_chunk::<4>()
        .ok_or_else(|| invalid("headers that are too short"))?;
    *rest = tail;
    Ok(u32::from_be_bytes(*first) as usize)
}

fn text(rest: &mut &[u8]) -> io::Result<String> {
    let length = number(rest)?;
    let (text, tail) = rest
        .split_at_checked(length)
        .ok_or_else(|| invalid("headers that are too short"))?;
    *rest = tail;
    Ok(String::from_utf8_lossy(text).into_owned())
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

pub struct Compressor(Compress);

impl Compressor {
    pub fn new() -> io::Result<Compressor> {
        let mut compress = Compress::new(Compression::best(), true);
        compress
            .set_dictionary(&dictionary())
            .map_err(|e| io::Error::other(e.to_string()))?;
        Ok(Compressor(compress))
    }

    /// A block without headers, which is all that a server has to say.
    pub fn no_headers(&mut self) -> io::Result<Vec<u8>> {
        self.headers(&[])
    }

    pub fn headers(&mut self, headers: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut rest = &plain[..];
        loop {
            let before = self.0.total_in();
            self.0
                .compress_vec(rest, &mut block, FlushCompress::Sync)
                .map_err(|e| io::Error::other(e.to_string()))?;
            rest = &rest[(self.0.total_in() - before) as usize..];
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_remember_those_before() {
        let (mut compressor, mut decompressor) = (Compressor::new().unwrap(), Decompressor::new());
        for i in 0..50 {
            let (name, value) = (format!("Name-{i}"), "v".repeat(i * 40));
            let block = compressor.headers(&[("streamType", "stdin"), (&name, &value)]).unwrap();
            let headers = decompressor.headers(&block).unwrap();
            assert_eq!(headers["streamtype"], "stdin");
            assert_eq!(headers[&name.to_lowercase()], value);
        }
    }
}
