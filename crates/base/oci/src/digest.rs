//! Digests: computed while bytes pass by.

use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// The digest of bytes, as `sha256:<hex>`.
pub fn of(bytes: &[u8]) -> String {
    named(Sha256::digest(bytes))
}

fn named(hash: impl AsRef<[u8]>) -> String {
    format!("sha256:{}", hex::encode(hash))
}

/// Digests what is read through it.
pub struct Digesting<R> {
    inner: R,
    hasher: Sha256,
    /// How many bytes have passed.
    pub length: u64,
}

impl<R: Read> Digesting<R> {
    pub fn new(inner: R) -> Self {
        Digesting {
            inner,
            hasher: Sha256::new(),
            length: 0,
        }
    }

    /// Reads what is left and returns the digest of it all.
    pub fn finish(mut self) -> io::Result<String> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(named(self.hasher.finalize()))
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.length += n as u64;
        Ok(n)
    }
}

/// Digests bytes given piece by piece.
#[derive(Default)]
pub struct Hasher(Sha256);

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub fn finish(self) -> String {
        named(self.0.finalize())
    }
}

/// The name of a stack of layers: each with its place on the ones below.
pub fn chain(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.clone(),
            Some(below) => of(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain
}
