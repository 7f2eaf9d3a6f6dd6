//! Data keys: AES-GCM by a key that is derived anew for each value, so that its short nonces may be chosen at random without
//! counting them.

use super::v2::EncryptedDekSourceType;
use crate::provider::{Gcm, Refusal, random};
use bytes::Bytes;
use ring::hkdf::{HKDF_SHA256, Prk};

/// Bytes of a seed.
pub const SEED: usize = 32;
/// Stands before the nonce: what the value's own key is derived by.
const INFO: usize = 32;

pub enum DataKey {
    Seed(Prk),
    /// As upstream wrote before 1.29: the key itself. Only read.
    Key(Gcm),
}

impl DataKey {
    pub fn seed(seed: &[u8]) -> DataKey {
        DataKey::Seed(Prk::new_less_safe(HKDF_SHA256, seed))
    }

    /// Of what a plug-in has opened.
    pub fn of(kind: EncryptedDekSourceType, source: &[u8]) -> Result<DataKey, Refusal> {
        match kind {
            EncryptedDekSourceType::AesGcmKey => match source.len() {
                16 | 24 | 32 => Gcm::new(source).map(DataKey::Key),
                n => Err(format!("crypto/aes: invalid key size {n}").into()),
            },
            EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed if source.len() < SEED => {
                Err(format!("invalid seed length {} used for key generation", source.len()).into())
            }
            EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed => Ok(DataKey::seed(source)),
        }
    }

    pub fn open(&self, data: &[u8], context: &[u8]) -> Result<Bytes, Refusal> {
        match self {
            DataKey::Key(key) => key.open(data, context),
            DataKey::Seed(seed) => {
                let short = || "the stored data was shorter than the required size";
                let (info, rest) = data.split_first_chunk::<INFO>().ok_or_else(short)?;
                derived(seed, info)?.open(rest, context)
            }
        }
    }

    pub fn seal(&self, value: &[u8], context: &[u8]) -> Result<Vec<u8>, Refusal> {
        let DataKey::Seed(seed) = self else {
            return Err("nothing is written by a data key that isn't derived".into());
        };
        let info: [u8; INFO] = random()?;
        let mut out = info.to_vec();
        derived(seed, &info)?.seal(value, context, &mut out)?;
        Ok(out)
    }
}

fn derived(seed: &Prk, info: &[u8; INFO]) -> Result<Gcm, Refusal> {
    let mut key = [0; 32];
    let parts = [&info[..]];
    let expanded = seed.expand(&parts, HKDF_SHA256).and_then(|okm| okm.fill(&mut key));
    expanded.map_err(|_| "failed to read a derived key from KDF")?;
    Gcm::new(&key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_value_has_a_key_of_its_own_and_both_kinds_are_read() {
        let key = DataKey::seed(&[7; SEED]);
        let (one, other) = (key.seal(b"value", b"/a").unwrap(), key.seal(b"value", b"/a").unwrap());
        assert_ne!(one[..INFO], other[..INFO]);
        assert_eq!(key.open(&one, b"/a").unwrap(), "value");
        assert!(key.open(&one, b"/b").is_err() && key.open(&one[..INFO - 1], b"/a").is_err());
        assert!(DataKey::seed(&[8; SEED]).open(&one, b"/a").is_err());

        let mut plain = Vec::new();
        Gcm::new(&[9; 32]).unwrap().seal(b"old", b"/a", &mut plain).unwrap();
        let old = DataKey::of(EncryptedDekSourceType::AesGcmKey, &[9; 32]).unwrap();
        assert_eq!(old.open(&plain, b"/a").unwrap(), "old");
        assert!(old.seal(b"new", b"/a").is_err());
        assert!(DataKey::of(EncryptedDekSourceType::AesGcmKey, &[9; 31]).is_err());
        assert!(DataKey::of(EncryptedDekSourceType::HkdfSha256XnonceAesGcmSeed, &[9; 31]).is_err());
    }

    #[test]
    fn the_derivation_is_upstreams() {
        // HKDF-Expand of SHA-256 (RFC 5869, test case 1's pseudorandom key), 32 bytes.
        let prk = hex("077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5");
        let mut out = [0; 32];
        let info = [hex("f0f1f2f3f4f5f6f7f8f9")];
        let info: Vec<&[u8]> = info.iter().map(Vec::as_slice).collect();
        let seed = Prk::new_less_safe(HKDF_SHA256, &prk);
        seed.expand(&info, HKDF_SHA256).unwrap().fill(&mut out).unwrap();
        assert_eq!(
            out.to_vec(),
            hex("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf")
        );
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits = text.as_bytes().chunks(2);
        digits
            .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
            .collect()
    }
}
