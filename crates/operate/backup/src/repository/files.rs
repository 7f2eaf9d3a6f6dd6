//! Files in pieces: into the repository, and back.

use super::{Damage, Id, Repository, Result, away, chunk_name, piece};
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many pieces are on their way at once: as many MiB of memory, twice.
const AT_ONCE: usize = 6;

/// What a file is made of.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct File {
    pub bytes: u64,
    pieces: Vec<Piece>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    /// So many that are empty.
    Zeros(u64),
    Kept(Id),
}

impl Serialize for Piece {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        match self {
            Piece::Zeros(n) => to.serialize_str(&format!("0x{n}")),
            Piece::Kept(id) => to.serialize_str(&hex::encode(id)),
        }
    }
}

impl<'de> Deserialize<'de> for Piece {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Piece, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(from)?;
        let piece = match text.strip_prefix("0x") {
            Some(zeros) => zeros.parse().ok().map(Piece::Zeros),
            None => hex::decode(text.as_bytes())
                .ok()
                .and_then(|id| id.try_into().ok())
                .map(Piece::Kept),
        };
        piece.ok_or_else(|| D::Error::custom("a piece is malformed"))
    }
}

impl File {
    /// Pieces that have to be there.
    pub fn ids(&self) -> impl Iterator<Item = Id> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Kept(id) => Some(*id),
            Piece::Zeros(_) => None,
        })
    }

    /// Where each piece is in the file, and how long. `None`: the list isn't of such a file.
    fn places(&self) -> Option<Vec<(u64, usize, Id)>> {
        let size = piece::SIZE as u64;
        let mut at = 0u64;
        let mut places = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Zeros(n) => at = at.checked_add(n.checked_mul(size)?)?,
                Piece::Kept(id) => {
                    let long = size.min(self.bytes.checked_sub(at)?);
                    places.push((at, long as usize, *id));
                    at = at.checked_add(size)?;
                }
            }
        }
        (at >= self.bytes && at - self.bytes < size).then_some(places)
    }
}

/// What was sent of a file, and what was there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// As it is kept.
    pub bytes: u64,
    pub pieces: u64,
}

impl Repository {
    /// Keeps what of a file isn't kept yet. `known` are the pieces that are there; what is sent is added.
    pub async fn keep(&self, known: &Mutex<HashSet<Id>>, sent: &Mutex<Sent>, path: &Path) -> Result<File> {
        let failed = |e| Damage::Io(path.into(), e);
        let file = Arc::new(std::fs::File::open(path).map_err(failed)?);
        let bytes = file.metadata().map_err(failed)?.len();
        let pieces = stream::iter((0..bytes).step_by(piece::SIZE))
            .map(|at| self.keep_piece(known, sent, path, file.clone(), at, bytes))
            .buffered(AT_ONCE)
            .try_fold(Vec::new(), |mut pieces: Vec<Piece>, piece| async move {
                match (pieces.last_mut(), piece) {
                    (Some(Piece::Zeros(n)), Piece::Zeros(more)) => *n += more,
                    _ => pieces.push(piece),
                }
                Ok(pieces)
            });
        let pieces = pieces.await?;
        Ok(File { bytes, pieces })
    }

    async fn keep_piece(
        &self,
        known: &Mutex<HashSet<Id>>,
        sent: &Mutex<Sent>,
        path: &Path,
        file: Arc<std::fs::File>,
        at: u64,
        bytes: u64,
    ) -> Result<Piece> {
        let long = (piece::SIZE as u64).min(bytes - at) as usize;
        let whole: PathBuf = path.into();
        let content = away(move || {
            let mut content = vec![0; long];
            let read = file.read_exact_at(&mut content, at);
            read.map_err(|e| Damage::Io(whole, e))?;
            Ok(content)
        });
        let content = content.await?;
        if content.iter().all(|byte| *byte == 0) {
            return Ok(Piece::Zeros(1));
        }
        let id = self.keys.id(&content);
        // Whoever comes next with the same piece finds it noted. If it can't be sent, nothing of this backup counts.
        if !known.lock().insert(id) {
            return Ok(Piece::Kept(id));
        }
        let name = chunk_name(&id);
        let packed = away(move || Ok(piece::pack(&content))).await?;
        let sealed = self.keys.seal(&name, &packed)?;
        let long = sealed.len() as u64;
        self.place.put(&name, sealed.into()).await?;
        let mut sent = sent.lock();
        sent.bytes += long;
        sent.pieces += 1;
        Ok(Piece::Kept(id))
    }

    /// Fills a file that is empty.
    pub async fn fill(&self, from: &File, path: &Path, to: std::fs::File) -> Result<()> {
        let failed = |e| Damage::Io(path.into(), e);
        let places = from
            .places()
            .ok_or_else(|| Damage::Changed(format!("the list of {}", path.display())))?;
        to.set_len(from.bytes).map_err(failed)?;
        let to = Arc::new(to);
        let mut filled = stream::iter(places)
            .map(|(at, long, id)| {
                let (to, whole) = (to.clone(), path.to_path_buf());
                async move {
                    let content = self.fetch(&id).await?;
                    if content.len() != long {
                        return Err(Damage::Changed(chunk_name(&id)));
                    }
                    away(move || to.write_all_at(&content, at).map_err(|e| Damage::Io(whole, e))).await
                }
            })
            .buffer_unordered(AT_ONCE);
        while let Some(piece) = filled.next().await {
            piece?;
        }
        drop(filled);
        let whole = path.to_path_buf();
        away(move || to.sync_all().map_err(|e| Damage::Io(whole, e))).await
    }

    /// A file that is short, in memory.
    pub async fn read(&self, from: &File, most: u64) -> Result<Vec<u8>> {
        let malformed = || Damage::Changed("a list of pieces".into());
        let places = from.places().filter(|_| from.bytes <= most).ok_or_else(malformed)?;
        let mut content = vec![0; from.bytes as usize];
        for (at, long, id) in places {
            let piece = self.fetch(&id).await?;
            let place = content.get_mut(at as usize..at as usize + long).ok_or_else(malformed)?;
            if piece.len() != long {
                return Err(Damage::Changed(chunk_name(&id)));
            }
            place.copy_from_slice(&piece);
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_that_fit_no_file_are_refused() {
        let (size, kept) = (piece::SIZE as u64, Piece::Kept([1; 32]));
        let places = |bytes, pieces: &[Piece]| {
            let pieces = pieces.to_vec();
            File { bytes, pieces }.places().map(|places| places.len())
        };
        assert_eq!(places(0, &[]), Some(0));
        assert_eq!(places(5, &[kept]), Some(1));
        assert_eq!(places(3 * size + 1, &[kept, Piece::Zeros(2), kept]), Some(2));
        for (bytes, pieces) in [
            (0, &[kept][..]),
            (size + 1, &[kept]),
            (size, &[kept, kept]),
            (1, &[Piece::Zeros(u64::MAX)]),
            (1, &[Piece::Zeros(1 << 50), kept]),
        ] {
            assert_eq!(places(bytes, pieces), None, "{bytes} {pieces:?}");
        }
    }

    #[test]
    fn pieces_are_written_and_read_alike() {
        let file = File {
            bytes: 3,
            pieces: vec![Piece::Zeros(7), Piece::Kept([0xab; 32])],
        };
        let json = serde_json::to_string(&file).unwrap();
        assert!(json.contains("\"0x7\"") && json.contains(&"ab".repeat(32)), "{json}");
        assert_eq!(serde_json::from_str::<File>(&json).unwrap(), file);
        assert!(serde_json::from_str::<File>(r#"{"bytes":1,"pieces":["zz"]}"#).is_err());
    }
}
