//! The driver alone, for csi-sanity: `driver POOL SOCKET`. Ends with its standard input.

use keelson_local::pool::Pool;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(pool), Some(socket)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: driver POOL SOCKET");
    };
    let stop = CancellationToken::new();
    let ended = stop.clone();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        ended.cancel();
    });
    let pool = Arc::new(Pool::open(Path::new(&pool))?);
    keelson_local::serve::driver(pool, "sanity", Path::new(&socket), stop).await
}
