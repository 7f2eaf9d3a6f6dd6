//! A disk that really is full: with nothing kept free, the engine itself meets it. What fails is refused, what was written is
//! read, and writes work again when there is space.
//!
//! Needs a file system of about 100 MiB that may be filled:
//! `mount -t tmpfs -o size=120m none DIR && cargo run -p keelson-store --example full_disk -- DIR`

use anyhow::{Context, ensure};
use keelson_store::embedded::{Embedded, Options};
use keelson_store::{Error, Expect, KeyRange, ListRequest, Store};
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let place = PathBuf::from(std::env::args().nth(1).context("which directory?")?);
    std::fs::write(place.join("ballast"), vec![1; 20 << 20])?;
    let options = Options {
        reserve_bytes: 0,
        ..Options::default()
    };
    let store = Embedded::open(place.join("store"), options.clone()).await?;
    let begun = Instant::now();
    let (written, refused) = fill(&*store).await?;
    println!("{written} writes in {:?}, then: {refused}", begun.elapsed());
    ensure!(
        matches!(refused, Error::NoSpace { .. }),
        "that isn't what a full disk is called"
    );
    ensure!(count(&*store).await? == written, "an acknowledged write can't be read");

    std::fs::remove_file(place.join("ballast"))?;
    let again = store.put("/again".into(), "1".into(), Expect::Any, None).await?;
    ensure!(
        again.done().is_some() && count(&*store).await? == written + 1,
        "it doesn't work again"
    );
    store.close().await?;
    drop(store);
    let store = Embedded::open(place.join("store"), options).await?;
    ensure!(
        count(&*store).await? == written + 1,
        "something is missing after a restart"
    );
    println!(
        "it worked again, and everything was there after a restart; {:?}",
        begun.elapsed()
    );
    Ok(())
}

async fn fill(store: &dyn Store) -> anyhow::Result<(u64, Error)> {
    for written in 0..10_000 {
        let mut value = vec![0; 50_000];
        rand::Rng::fill(&mut rand::rng(), &mut value[..]);
        if let Err(error) = store
            .put(format!("/{written}").into(), value.into(), Expect::Absent, None)
            .await
        {
            // The engine may have to be opened again first: at most once a second.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            return Ok((written, error));
        }
    }
    anyhow::bail!("it never gets full")
}

async fn count(store: &dyn Store) -> anyhow::Result<u64> {
    Ok(store.list(ListRequest::new(KeyRange::all()).limit(1)).await?.count)
}
