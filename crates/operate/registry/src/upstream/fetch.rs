//! Blobs on their way from a registry behind. One is fetched once, whoever wants it meanwhile: each reads the file that grows.
//! Its last byte is given out only when all of it has been found to be what it is called.

use super::Upstream;
use crate::error::{Code, Result, refuse, refused};
use crate::names::{Digest, Hasher, Repository};
use crate::serve::blocking;
use crate::store::{Scratch, Store};
use bytes::Bytes;
use futures::{Stream, StreamExt};
use keelson_oci::client::{Registry, RegistryError};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io::{self, SeekFrom};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};

/// Blobs fetched at a time; more wait, but no more than that in all.
const AT_A_TIME: usize = 16;
const WAITING: usize = 512;
/// For how long the beginning of one may be waited for.
const BEGINNING: Duration = Duration::from_secs(60);
/// Bytes that a reader takes at a time.
const PIECE: u64 = 128 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Asking,
    /// So many bytes are in the file, of so many if that is known.
    Coming(u64, Option<u64>),
    Done(u64),
    Failed(Code, String),
}

/// A blob on its way.
#[derive(Clone)]
pub struct Fetch {
    file: Arc<Scratch>,
    state: watch::Receiver<State>,
}

type UnderWay = Mutex<HashMap<(Repository, Digest), Fetch>>;

pub struct Fetches {
    under_way: Arc<UnderWay>,
    places: Arc<Semaphore>,
}

impl Default for Fetches {
    fn default() -> Self {
        Fetches {
            under_way: Arc::default(),
            places: Arc::new(Semaphore::new(AT_A_TIME)),
        }
    }
}

impl Fetches {
    /// Joins the fetch of a blob, or begins it. None: it has just come. By repository: whether a registry gives a blob is the
    /// repository's matter.
    pub async fn share(
        &self,
        clients: Arc<Vec<Registry>>,
        store: &Arc<Store>,
        upstream: &Upstream,
        repository: &Repository,
        digest: &Digest,
        begun: impl Fn(),
    ) -> Result<Option<Fetch>> {
        let key = (repository.clone(), digest.clone());
        let known = self.under_way.lock().get(&key).cloned();
        if let Some(known) = known {
            return Ok(Some(known));
        }
        let here = store.clone();
        let (name, wanted) = key.clone();
        let (has, scratch) = blocking(move || Ok((here.has_blob(&name, &wanted), here.scratch()?))).await?;
        if has {
            return Ok(None);
        }
        let (tell, state) = watch::channel(State::Asking);
        let fetch = Fetch {
            file: Arc::new(scratch),
            state,
        };
        {
            let mut under_way = self.under_way.lock();
            if let Some(known) = under_way.get(&key) {
                return Ok(Some(known.clone()));
            }
            if under_way.len() >= WAITING {
                return refuse(Code::TooManyRequests, "too many blobs are on their way");
            }
            under_way.insert(key.clone(), fetch.clone());
        }
        begun();
        let work = Work {
            clients,
            store: store.clone(),
            file: fetch.file.clone(),
            registry: upstream.registry.clone(),
            repository: key.0.clone(),
            digest: key.1.clone(),
            tell,
        };
        let places = self.places.clone();
        let listed = Listed {
            under_way: self.under_way.clone(),
            key,
        };
        // It goes on when the one who began it has gone: others may wait.
        tokio::spawn(async move {
            let _place = places.acquire().await;
            let end = work.run().await;
            // From now on it is found in the store, or asked for anew.
            drop(listed);
            work.tell.send_replace(end);
        });
        Ok(Some(fetch))
    }
}

/// Who is under way: not for longer than the work, however that ends.
struct Listed {
    under_way: Arc<UnderWay>,
    key: (Repository, Digest),
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

struct Work {
    clients: Arc<Vec<Registry>>,
    store: Arc<Store>,
    file: Arc<Scratch>,
    registry: String,
    repository: Repository,
    digest: Digest,
    tell: watch::Sender<State>,
}

impl Work {
    async fn run(&self) -> State {
        let mut last = (Code::Unavailable, format!("{} can't be reached", self.registry));
        for client in self.clients.iter() {
            match self.take(client).await {
                Ok(length) => return State::Done(length),
                Err((begun, code, text)) => {
                    let digest = &self.digest;
                    tracing::info!(repository = %self.repository, %digest, registry = self.registry, error = text, "a registry behind");
                    let said = match code {
                        Code::BlobUnknown => format!("{} has no such blob", self.registry),
                        Code::Denied | Code::Full | Code::TooLarge => text,
                        _ => format!("{} didn't give the blob", self.registry),
                    };
                    last = (code, said);
                    // What readers have had of this one can't be taken back.
                    if begun {
                        break;
                    }
                }
            }
        }
        State::Failed(last.0, last.1)
    }

    /// An error says whether readers may have seen something.
    async fn take(&self, client: &Registry) -> std::result::Result<u64, (bool, Code, String)> {
        let there = |begun: bool| {
            move |error: RegistryError| match error {
                RegistryError::NotFound(text) => (begun, Code::BlobUnknown, text),
                RegistryError::Unauthorized(text) => (begun, Code::Denied, text),
                RegistryError::Failed(text) => (begun, Code::Unavailable, text),
            }
        };
        let here = |error: io::Error| (true, Code::Unknown, error.to_string());
        let name = self.digest.to_string();
        let begun = tokio::time::timeout(BEGINNING, client.blob_with_length(&name)).await;
        let silent = |_| RegistryError::Failed("it doesn't begin to send the blob".to_owned());
        let (length, mut pieces) = begun.map_err(silent).flatten().map_err(there(false))?;
        let room = self.store.make_room(&self.file, length.unwrap_or(0));
        room.map_err(|refused| (false, refused.code, refused.message))?;
        let mut file = tokio::fs::File::create(&self.file.path).await.map_err(here)?;
        let mut hasher = Hasher::new(self.digest.algorithm);
        let mut came = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(there(true))?;
            let room = self.store.goes_on(&self.file, came, piece.len() as u64);
            room.map_err(|refused| (true, refused.code, refused.message))?;
            came += piece.len() as u64;
            hasher.update(&piece);
            file.write_all(&piece).await.map_err(here)?;
            // What is told has to be in the file.
            file.flush().await.map_err(here)?;
            self.tell.send_replace(State::Coming(came, length));
        }
        let got = hasher.finish();
        if got != self.digest {
            return Err((
                true,
                Code::Unavailable,
                format!("what came for {} is {got}", self.digest),
            ));
        }
        drop(file);
        let (store, file, digest, repository) = (
            self.store.clone(),
            self.file.clone(),
            self.digest.clone(),
            self.repository.clone(),
        );
        blocking(move || store.adopt(&file, &digest, &repository))
            .await
            .map_err(|refused| (true, refused.code, refused.message))?;
        Ok(came)
    }
}

impl Fetch {
    /// How long the blob is, as soon as that is known; None: it is here by now.
    pub async fn length(&self) -> Result<Option<u64>> {
        let mut state = self.state.clone();
        loop {
            match state.borrow_and_update().clone() {
                State::Coming(_, Some(length)) => return Ok(Some(length)),
                State::Done(_) => return Ok(None),
                State::Failed(code, text) => return refuse(code, text),
                State::Asking | State::Coming(..) => {}
            }
            let next = tokio::time::timeout(BEGINNING, state.changed()).await;
            let slow = || refused(Code::Unavailable, "the registry behind doesn't send the blob");
            next.map_err(|_| slow())?.map_err(|_| slow())?;
        }
    }

    /// Waits until all of it is here.
    pub async fn whole(&self) -> Result<()> {
        let mut state = self.state.clone();
        let ended = state
            .wait_for(|s| matches!(s, State::Done(_) | State::Failed(..)))
            .await;
        match ended.map(|s| s.clone()) {
            Ok(State::Failed(code, text)) => refuse(code, text),
            Ok(_) => Ok(()),
            Err(_) => refuse(Code::Unavailable, "the registry behind doesn't send the blob"),
        }
    }

    /// Its bytes as they come, of a blob that is said to have `length`. None: all have come, and are found where they belong.
    pub async fn bytes(self, length: u64) -> Result<Option<impl Stream<Item = io::Result<Bytes>> + Send + 'static>> {
        let file = match tokio::fs::File::open(&self.file.path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let state = (file, self.state, self.file, 0_u64);
        Ok(Some(futures::stream::try_unfold(
            state,
            move |(mut file, mut state, kept, at)| async move {
                if at == length {
                    return Ok(None);
                }
                loop {
                    let now = state.borrow_and_update().clone();
                    let ready = match now {
                        // The last byte comes when all is known to be right.
                        State::Coming(written, _) => written.min(length.saturating_sub(1)),
                        State::Done(written) if written == length => written,
                        State::Done(_) => return Err(io::Error::other("the blob has another length than was said")),
                        State::Failed(_, text) => return Err(io::Error::other(text)),
                        State::Asking => 0,
                    };
                    if ready > at {
                        let mut piece = vec![0; (ready - at).min(PIECE) as usize];
                        file.seek(SeekFrom::Start(at)).await?;
                        file.read_exact(&mut piece).await?;
                        let next = at + piece.len() as u64;
                        return Ok(Some((Bytes::from(piece), (file, state, kept, next))));
                    }
                    state.changed().await.map_err(|_| io::Error::other("the fetch ended"))?;
                }
            },
        )))
    }
}
