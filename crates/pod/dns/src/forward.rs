//! Names that are not the cluster's: passed on as they came, to the servers of a resolv.conf, one after the other.

use anyhow::{Context, bail};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server has to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest answer over UDP.
const LARGEST: usize = 4096;

/// The name servers of a resolv.conf, without ourselves (that would be a loop).
pub fn upstreams(resolv_conf: &Path, ourselves: IpAddr) -> Vec<SocketAddr> {
    let Ok(text) = std::fs::read_to_string(resolv_conf) else {
        tracing::warn!(file = %resolv_conf.display(), "no resolv.conf: names outside the cluster can't be resolved");
        return Vec::new();
    };
    parse(&text)
        .into_iter()
        .filter(|ip| *ip != ourselves)
        .map(|ip| SocketAddr::new(ip, 53))
        .collect()
}

fn parse(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver"))
                .then(|| words.next()?.parse().ok())
                .flatten()
        })
        .take(3)
        .collect()
}

/// The first answer any server gives.
pub async fn forward(query: &[u8], upstreams: &[SocketAddr], tcp: bool) -> anyhow::Result<Vec<u8>> {
    let mut last = None;
    for server in upstreams {
        let attempt = async {
            if tcp {
                by_tcp(query, *server).await
            } else {
                by_udp(query, *server).await
            }
        };
        match timeout(PATIENCE, attempt).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = Some(error),
            Err(_) => last = Some(anyhow::anyhow!("{server} did not answer within {PATIENCE:?}")),
        }
    }
    match last {
        Some(error) => Err(error),
        None => bail!("there is no server to forward to"),
    }
}

async fn by_udp(query: &[u8], server: SocketAddr) -> anyhow::Result<Vec<u8>> {
    // A socket a query: the kernel picks a port at random, which is half of what guards against forged answers.
    let any: SocketAddr = if server.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        ([0u16; 8], 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let n = socket.recv(&mut buffer).await?;
        if n >= 12 && query.get(..2) == buffer.get(..2) {
            buffer.truncate(n);
            return Ok(buffer);
        }
    }
}

async fn by_tcp(query: &[u8], server: SocketAddr) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).context("the query is too long")?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(query).await?;
    let n = stream.read_u16().await?;
    let mut answer = vec![0; n.into()];
    stream.read_exact(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_in_order() {
        let text = "# comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver nonsense\n";
        assert_eq!(
            parse(text),
            ["192.0.2.1".parse::<IpAddr>().unwrap(), "2001:db8::1".parse().unwrap()]
        );
    }
}
