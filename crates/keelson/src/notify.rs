//! Words to the service manager: a datagram to the socket that it named, if it named one.

use std::os::unix::net::UnixDatagram;

fn tell(message: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let sent = UnixDatagram::unbound().and_then(|socket| socket.send_to(message.as_bytes(), &path));
    if let Err(error) = sent {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

pub fn ready() {
    tell("READY=1");
}

pub fn stopping() {
    tell("STOPPING=1");
}
