//! Datagrams: all senders to a local port share one WebSocket, which is opened when the first datagram comes, and again when it has been lost.

use super::channel::{self, DATAGRAMS, Socket, Told};
use super::target::Target;
use futures::SinkExt;
use keelson_runtime::datagrams::{LARGEST, joined, parted};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::Instant;

/// As many as the runtime has sockets for.
const MAX_SENDERS: usize = 256;
/// After a failure what comes is lost for so long, not tried.
const PAUSE: Duration = Duration::from_secs(1);

pub async fn serve(local: UdpSocket, target: Rc<Target>) -> anyhow::Result<()> {
    let mut buffer = vec![0; LARGEST];
    let mut closed_until = Instant::now();
    loop {
        let (length, from) = received(&local, &mut buffer).await;
        if Instant::now() < closed_until {
            continue;
        }
        let opened = target.open(DATAGRAMS).await;
        let carried = match opened {
            Ok(socket) => carry(&local, socket, (&mut buffer, length, from)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = carried {
            eprintln!("keelson: {error:#}");
            closed_until = Instant::now() + PAUSE;
        }
    }
}

/// The next datagram. That somebody didn't take an answer is told as an error of whatever is done next.
async fn received(local: &UdpSocket, buffer: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match local.recv_from(buffer).await {
            Ok(received) => return received,
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// Until the WebSocket ends.
async fn carry(
    local: &UdpSocket,
    Socket { mut sink, mut source }: Socket,
    (buffer, length, from): (&mut [u8], usize, SocketAddr),
) -> anyhow::Result<()> {
    let mut senders = Senders::default();
    let first = joined(senders.number(from), &buffer[..length]);
    sink.send(channel::data(&first)).await?;
    loop {
        tokio::select! {
            (length, from) = received(local, buffer) => {
                let message = joined(senders.number(from), &buffer[..length]);
                if sink.send(channel::data(&message)).await.is_err() {
                    return Ok(());
                }
            }
            told = source.next() => match told {
                Some(Told::Data(message)) => {
                    let to = parted(message).and_then(|(number, datagram)| Some((senders.address(number)?, datagram)));
                    if let Some((address, datagram)) = to {
                        // It may have gone.
                        let _ = local.send_to(&datagram, address).await;
                    }
                }
                Some(Told::Error(error)) => eprintln!("keelson: {error}"),
                None => return Ok(()),
            },
        }
    }
}

/// Who has sent, by number. A number is nobody else's later.
#[derive(Default)]
struct Senders {
    known: Vec<Sender>,
    numbers: u32,
}

struct Sender {
    number: u32,
    address: SocketAddr,
    last: Instant,
}

impl Senders {
    fn number(&mut self, address: SocketAddr) -> u32 {
        let last = Instant::now();
        if let Some(sender) = self.known.iter_mut().find(|sender| sender.address == address) {
            sender.last = last;
            return sender.number;
        }
        if self.known.len() == MAX_SENDERS {
            let silent = self.known.iter().enumerate().min_by_key(|(_, sender)| sender.last);
            if let Some((at, _)) = silent {
                self.known.swap_remove(at);
            }
        }
        self.numbers = self.numbers.wrapping_add(1);
        let number = self.numbers;
        self.known.push(Sender { number, address, last });
        number
    }

    fn address(&self, number: u32) -> Option<SocketAddr> {
        let sender = self.known.iter().find(|sender| sender.number == number);
        sender.map(|sender| sender.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sender_keeps_its_number_and_the_longest_silent_makes_room() {
        let mut senders = Senders::default();
        let address = |n: usize| SocketAddr::from(([127, 0, 0, 1], u16::try_from(n).unwrap()));
        let mut numbers = Vec::new();
        for n in 0..MAX_SENDERS {
            tokio::time::advance(Duration::from_millis(1)).await;
            numbers.push(senders.number(address(n)));
        }
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(senders.number(address(0)), numbers[0]);
        let new = senders.number(address(MAX_SENDERS));
        assert!(!numbers.contains(&new));
        assert_eq!(senders.address(numbers[1]), None);
        assert_eq!(senders.address(numbers[0]), Some(address(0)));
        assert_eq!(senders.address(new), Some(address(MAX_SENDERS)));
        assert_eq!(senders.known.len(), MAX_SENDERS);
    }
}
