//! Words to the service manager: a datagram to the socket that it named, if it named one.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

fn tell(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(message.as_bytes(), &path));
    if let Err(error) = sent {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

/// By when every component has asked for the sockets that it listens on.
const SETTLED: Duration = Duration::from_secs(60);

pub fn ready() {
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        let unused = keelson_sys::handed::release();
        if !unused.is_empty() {
            tracing::info!(?unused, "sockets of the process before that nobody listens on any more");
        }
    });
    tell("READY=1");
}

pub fn stopping() {
    tell("STOPPING=1");
}
