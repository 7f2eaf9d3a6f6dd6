//! Keys and values.

use super::pb::kv_server::Kv;
use super::pb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use super::txn::Judged;
use super::{Server, check, range, status, txn};
use crate::{ListRequest, Revision, Transaction, transact};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Of a range that is sent in pieces: keys of the first, bytes of each, and how many wait for the client.
const FIRST_PIECE: usize = 10;
const PIECE_BYTES: usize = 1 << 20;
const PIECES: usize = 2;

impl Server {
    /// Runs `work` as one change, within etcd's bound of a write.
    async fn write<T: Send + 'static>(
        &self,
        bytes: usize,
        (puts, past): (bool, bool),
        work: impl FnOnce(&mut Transaction<'_>) -> Judged<T> + Send + 'static,
    ) -> Result<T, Status> {
        if bytes > self.options.max_request_bytes {
            return Err(status::too_large());
        }
        let ran = transact::run(&*self.store, (bytes, puts, past), work).await;
        ran.map_err(status::of)?
    }

    /// As the answer's own, with who answers.
    fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = self.header(revision as Revision);
    }

    async fn list(&self, request: &RangeRequest, asked: ListRequest) -> Result<RangeResponse, Status> {
        // A list of the past says of which revision it is, its answer where the store stands.
        let past = asked.revision.is_some();
        let listed = self.store.list(asked).await.map_err(status::of)?;
        let current = match past {
            true => self.store.current_revision().await.map_err(status::of)?,
            false => listed.revision,
        };
        let mut answer = range::response(request, listed, current);
        self.complete(&mut answer.header);
        Ok(answer)
    }
}

#[tonic::async_trait]
impl Kv for Server {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let request = request.into_inner();
        check::range(&request)?;
        let answer = self.list(&request, range::request(&request)).await?;
        Ok(Response::new(answer))
    }

    type RangeStreamStream = ReceiverStream<Result<RangeStreamResponse, Status>>;

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        let request = request.into_inner();
        check::range(&request)?;
        if !range::is_plain(&request) {
            return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
        }
        if range::is_filtered(&request) {
            return Err(Status::unimplemented("RangeStream does not support revision filters"));
        }
        let (pieces, stream) = mpsc::channel(PIECES);
        let server = self.clone();
        tokio::spawn(async move {
            let told = server.send_pieces(request, &pieces).await;
            if let Err(status) = told {
                let _ = pieces.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let request = request.into_inner();
        check::put(&request)?;
        let bytes = request.encoded_len();
        let work = move |transaction: &mut Transaction<'_>| txn::put(transaction, request);
        let mut answer = self.write(bytes, (true, false), work).await?;
        self.complete(&mut answer.header);
        Ok(Response::new(answer))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let request = request.into_inner();
        check::delete(&request)?;
        let bytes = request.encoded_len();
        let work = move |transaction: &mut Transaction<'_>| txn::delete(transaction, &request).map(Ok);
        let mut answer = self.write(bytes, (false, false), work).await?;
        self.complete(&mut answer.header);
        Ok(Response::new(answer))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let request = request.into_inner();
        check::txn(&request, self.options.max_txn_ops)?;
        let (bytes, nature) = (request.encoded_len(), txn::nature(&request));
        let work = move |transaction: &mut Transaction<'_>| txn::txn(transaction, request);
        let mut answer = self.write(bytes, nature, work).await?;
        self.complete(&mut answer.header);
        Ok(Response::new(answer))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let CompactionRequest { revision, physical } = request.into_inner();
        let to = Revision::try_from(revision).map_err(|_| status::compacted())?;
        self.store.compact(to).await.map_err(status::of)?;
        if physical {
            self.store.settled(to).await.map_err(status::of)?;
        }
        Ok(Response::new(CompactionResponse {
            header: self.header_now().await?,
        }))
    }
}

impl Server {
    /// All of one revision, that of the first piece; the last one tells it, and how many there are.
    async fn send_pieces(
        &self,
        request: RangeRequest,
        pieces: &mpsc::Sender<Result<RangeStreamResponse, Status>>,
    ) -> Result<(), Status> {
        let mut asked = range::request(&request);
        let whole = asked.range.clone();
        let mut left = if asked.limit == 0 { usize::MAX } else { asked.limit };
        let mut piece = FIRST_PIECE;
        let mut known = None;
        // Where the store stands when it begins.
        let current = self.store.current_revision().await.map_err(status::of)?;
        loop {
            asked.limit = if request.count_only { 1 } else { piece.min(left) };
            asked.uncounted = known.is_some();
            let listed = self.store.list(asked.clone()).await.map_err(status::of)?;
            let (all, revision) = *known.get_or_insert((listed.count, listed.revision));
            let more = listed.more;
            left = left.saturating_sub(listed.kvs.len());
            let last = listed.kvs.last().map(|kv| kv.key.clone());
            piece = next_piece(piece, listed.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum());
            let mut answer = range::response(&request, listed, current.max(revision));
            let ends = request.count_only || !more || left == 0;
            match ends {
                true => {
                    answer.count = all as i64;
                    self.complete(&mut answer.header);
                }
                false => (answer.header, answer.count, answer.more) = (None, 0, false),
            }
            let range_response = Some(answer);
            if pieces.send(Ok(RangeStreamResponse { range_response })).await.is_err() || ends {
                return Ok(());
            }
            asked.revision = Some(revision);
            match last {
                Some(last) => asked.range = whole.after(&last),
                None => return Ok(()),
            }
        }
    }
}

/// How many keys come next, so that a piece has about [`PIECE_BYTES`].
fn next_piece(keys: usize, bytes: usize) -> usize {
    match bytes {
        _ if bytes < PIECE_BYTES / 2 => keys.saturating_mul(2),
        _ if bytes > PIECE_BYTES * 2 => (keys / 2).max(1),
        _ => keys,
    }
}
