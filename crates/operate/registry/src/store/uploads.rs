//! Uploads: blobs that come in pieces. One is a directory, outlives the process, and ends when nothing came to it for a while.

use super::{Store, release, remove};
use crate::error::{Code, Refused, Result, refuse, refused};
use crate::names::{Algorithm, Digest, Hasher, Repository};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};
use uuid::Uuid;

pub struct Session {
    pub id: Uuid,
    pub repository: Repository,
    directory: PathBuf,
    pub written: u64,
    /// Bytes taken of what may be kept; more than were written when somebody gave up in the middle.
    reserved: u64,
    /// Of what has been written; None: it has to be read again (after a restart, or a failed write).
    hasher: Option<Hasher>,
    touched: Instant,
    ended: bool,
}

/// A session as it is found, whoever writes to it.
pub struct Known {
    /// The first part of its repository's name.
    namespace: String,
    session: Arc<tokio::sync::Mutex<Session>>,
}

impl Known {
    fn new(session: Session) -> Known {
        let whole = session.repository.as_str();
        Known {
            namespace: whole.split('/').next().unwrap_or(whole).to_owned(),
            session: Arc::new(tokio::sync::Mutex::new(session)),
        }
    }
}

/// A session while somebody writes to it.
pub type Upload = tokio::sync::OwnedMutexGuard<Session>;

impl Session {
    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }
}

impl Store {
    /// Begins an upload.
    pub fn begin(&self, repository: &Repository, algorithm: Algorithm) -> Result<Uuid> {
        self.check_disk(0)?;
        let id = Uuid::new_v4();
        let directory = self.root.join("uploads").join(id.to_string());
        let session = Session {
            id,
            repository: repository.clone(),
            directory: directory.clone(),
            written: 0,
            reserved: 0,
            hasher: Some(Hasher::new(algorithm)),
            touched: Instant::now(),
            ended: false,
        };
        {
            let mut sessions = self.sessions.lock();
            if sessions.len() >= self.bounds.uploads {
                let text = format!("there are {} uploads at a time already", self.bounds.uploads);
                return refuse(Code::TooManyRequests, text);
            }
            // Who may push to one namespace can't keep all others from it.
            let (known, most) = (Known::new(session), self.bounds.uploads.div_ceil(2));
            if sessions.values().filter(|k| k.namespace == known.namespace).count() >= most {
                let text = format!("there are {most} uploads to {} at a time already", known.namespace);
                return refuse(Code::TooManyRequests, text);
            }
            sessions.insert(id, known);
        }
        let made = fs::create_dir(&directory)
            .and_then(|()| fs::write(directory.join("repository"), repository.as_str()))
            .and_then(|()| File::create(directory.join("data")).map(drop));
        if let Err(error) = made {
            self.sessions.lock().remove(&id);
            return Err(error.into());
        }
        Ok(id)
    }

    /// An upload of this repository, for one at a time.
    pub fn upload(&self, repository: &Repository, id: &str) -> Result<Upload> {
        let unknown = || {
            refused(
                Code::BlobUploadUnknown,
                "there is no such upload: it was ended, or nothing came to it for too long",
            )
        };
        let id = Uuid::parse_str(id).map_err(|_| unknown())?;
        let known = self.sessions.lock().get(&id).map(|known| known.session.clone());
        let session = known.ok_or_else(unknown)?;
        let Ok(upload) = session.try_lock_owned() else {
            return refuse(Code::Busy, "somebody writes to this upload already");
        };
        match upload.repository == *repository && !upload.ended {
            true => Ok(upload),
            false => Err(unknown()),
        }
    }

    /// Where writing goes on.
    pub async fn writer(&self, upload: &Upload) -> Result<tokio::fs::File> {
        let mut file = tokio::fs::OpenOptions::new().write(true).open(upload.data()).await?;
        // What a failed write may have left beyond is written over.
        file.set_len(upload.written).await?;
        file.seek(io::SeekFrom::End(0)).await?;
        Ok(file)
    }

    /// Adds a piece.
    pub async fn append(&self, upload: &mut Upload, file: &mut tokio::fs::File, piece: &[u8]) -> Result<()> {
        let length = piece.len() as u64;
        if upload.written + length > self.bounds.blob {
            return refuse(Code::TooLarge, format!("a blob may have {} bytes", self.bounds.blob));
        }
        if let Some(most) = self.bounds.repository.filter(|most| upload.written + length > *most) {
            return refuse(Code::Denied, format!("a repository may have {most} bytes"));
        }
        self.check_step(upload.written, length)?;
        let missing = (upload.written + length).saturating_sub(upload.reserved);
        self.reserve(missing)?;
        upload.reserved += missing;
        // Whoever gives up in the middle of this leaves a hasher that doesn't fit, and bytes that don't count. What counts is written:
        // a failure that comes later would be nobody's.
        let hasher = upload.hasher.take();
        let written = async {
            file.write_all(piece).await?;
            file.flush().await
        };
        written.await?;
        upload.hasher = hasher.map(|mut hasher| {
            hasher.update(piece);
            hasher
        });
        upload.written += length;
        upload.touched = Instant::now();
        Ok(())
    }

    /// Ends an upload: what came is the blob of this digest, or it is refused and all is gone.
    pub fn finish(&self, mut upload: Upload, digest: &Digest) -> Result<()> {
        let upload: &mut Session = &mut upload;
        let data = upload.data();
        // Nothing of a piece that somebody gave up in the middle of stands behind.
        File::options().write(true).open(&data)?.set_len(upload.written)?;
        let known = upload.hasher.take().filter(|h| h.algorithm() == digest.algorithm);
        let got = match known {
            Some(hasher) => hasher.finish(),
            None => read(&data, digest.algorithm, upload.written)?,
        };
        let result = if got == *digest {
            self.take_in(&data, upload.written, digest, &upload.repository, &mut upload.reserved)
        } else {
            refuse(
                Code::DigestInvalid,
                format!("what was sent has digest {got}, and not {digest}"),
            )
        };
        match &result {
            // The disk may have room later, and a quota too: what came stays until it expires.
            Err(Refused { code, .. }) if *code != Code::DigestInvalid && data.exists() => {
                upload.touched = Instant::now();
                return result;
            }
            _ => {}
        }
        self.end(upload)?;
        result
    }

    pub fn cancel(&self, mut upload: Upload) -> Result<()> {
        Ok(self.end(&mut upload)?)
    }

    fn end(&self, upload: &mut Session) -> io::Result<()> {
        upload.ended = true;
        self.sessions.lock().remove(&upload.id);
        self.release(std::mem::take(&mut upload.reserved));
        fs::remove_dir_all(&upload.directory)
    }

    /// Ends uploads that nobody goes on with; tells how many.
    pub fn expire(&self) -> Result<usize> {
        let all: Vec<_> = self.sessions.lock().values().map(|k| k.session.clone()).collect();
        let mut ended = 0;
        for session in all {
            if let Ok(mut upload) = session.try_lock()
                && !upload.ended
                && upload.touched.elapsed() > self.bounds.upload_idle
            {
                self.end(&mut upload)?;
                ended += 1;
            }
        }
        Ok(ended)
    }

    /// Uploads of before go on; what is no upload goes.
    pub(super) fn resume_uploads(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.root.join("uploads"))? {
            let directory = entry?.path();
            let id = directory
                .file_name()
                .and_then(|n| n.to_str())
                .and_then(|n| Uuid::parse_str(n).ok());
            let repository = fs::read_to_string(directory.join("repository")).ok();
            let repository = repository.and_then(|name| Repository::parse(&name));
            let data = fs::metadata(directory.join("data")).ok();
            let (Some(id), Some(repository), Some(data)) = (id, repository, data) else {
                fs::remove_dir_all(&directory)?;
                continue;
            };
            self.kept.fetch_add(data.len(), Ordering::Relaxed);
            let idle = data.modified()?.elapsed().unwrap_or_default();
            let session = Session {
                id,
                repository,
                directory,
                written: data.len(),
                reserved: data.len(),
                hasher: None,
                touched: Instant::now().checked_sub(idle).unwrap_or_else(Instant::now),
                ended: false,
            };
            self.sessions.lock().insert(id, Known::new(session));
        }
        Ok(())
    }

    /// A file for content that comes from elsewhere; whoever drops it removes it.
    pub fn scratch(&self) -> Result<Scratch> {
        let path = self.incoming();
        File::create(&path)?;
        Ok(Scratch {
            path,
            kept: self.kept.clone(),
            reserved: AtomicU64::new(0),
        })
    }

    /// Takes room for what is said to come to a file from elsewhere.
    pub fn make_room(&self, file: &Scratch, length: u64) -> Result<()> {
        if length > self.bounds.blob {
            return refuse(Code::TooLarge, "the blob is longer than blobs may be here");
        }
        self.check_disk(length)?;
        self.take_for(file, length)
    }

    /// And for what does come: who sends it may have said nothing, or something else.
    pub fn goes_on(&self, file: &Scratch, before: u64, more: u64) -> Result<()> {
        if before + more > self.bounds.blob {
            return refuse(Code::TooLarge, "the blob is longer than blobs may be here");
        }
        self.check_step(before, more)?;
        self.take_for(file, before + more)
    }

    fn take_for(&self, file: &Scratch, length: u64) -> Result<()> {
        let missing = length.saturating_sub(file.reserved.load(Ordering::Relaxed));
        self.reserve(missing)?;
        file.reserved.fetch_add(missing, Ordering::Relaxed);
        Ok(())
    }

    /// Takes in what was fetched from elsewhere and found to be of this digest.
    pub fn adopt(&self, file: &Scratch, digest: &Digest, repository: &Repository) -> Result<()> {
        let length = fs::metadata(&file.path)?.len();
        self.take_for(file, length)?;
        let mut reserved = file.reserved.swap(0, Ordering::Relaxed);
        let taken = self.take_in(&file.path, length, digest, repository, &mut reserved);
        self.release(reserved);
        taken
    }
}

/// A file on its way from elsewhere, and what is taken for it of what may be kept. One writes to it.
pub struct Scratch {
    pub path: PathBuf,
    kept: Arc<AtomicU64>,
    reserved: AtomicU64,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!(%error, "a fetched file isn't removed before the next start");
        }
        release(&self.kept, self.reserved.load(Ordering::Relaxed));
    }
}

fn read(path: &Path, algorithm: Algorithm, length: u64) -> io::Result<Digest> {
    let mut hasher = Hasher::new(algorithm);
    let mut file = File::open(path)?.take(length);
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}
