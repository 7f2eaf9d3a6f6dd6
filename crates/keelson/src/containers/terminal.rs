//! The terminal of whoever calls: its keys as they are pressed, its size, and that it is left as it was found.

use bytes::Bytes;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Pieces of input that wait for whoever takes them; the reader waits then.
const QUEUE: usize = 8;
const PIECE: usize = 16 << 10;

pub fn is_interactive() -> bool {
    std::io::stdin().is_terminal()
}

/// While this is there, the terminal passes everything on and shows nothing by itself.
pub struct Raw {
    before: Termios,
}

impl Raw {
    pub fn enter() -> std::io::Result<Raw> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSADRAIN, &raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs no care.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

/// Columns and rows of what is written to; `None`: it is no terminal.
pub fn size() -> Option<(u16, u16)> {
    keelson_sys::tty::size(std::io::stdout().as_fd()).ok()
}

/// What comes in. A thread of its own reads it: the program's end doesn't wait for a key.
pub fn input() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut piece = vec![0; PIECE];
        loop {
            match stdin.read(&mut piece) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&piece[..length])).is_err() {
                        return;
                    }
                }
            }
        }
    });
    receiver
}

/// What ends a command that holds a terminal, so that it is put in order before.
pub struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Ends {
    pub fn new() -> std::io::Result<Ends> {
        Ok(Ends {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// The exit code that a shell gives for the signal that came.
    pub async fn come(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
            _ = self.hang_up.recv() => 129,
        }
    }
}
