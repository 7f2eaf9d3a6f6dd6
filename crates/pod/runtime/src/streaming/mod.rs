//! Exec, attach and port-forward.
//!
//! The kubelet and the API server pass upgraded connections straight through, so this is the only place that knows the
//! protocols clients speak: SPDY/3.1 and WebSocket.

mod sync;

use std::net::SocketAddr;
use std::sync::Weak;

use keelson_cri::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tonic::Status;

pub use sync::exec_sync;

use crate::runtime::Inner;

/// What a token stands for.
#[derive(Clone, Debug)]
pub enum Job {
    Exec(ExecRequest),
    Attach(AttachRequest),
    PortForward(PortForwardRequest),
}

/// The server, and what its tokens stand for.
pub struct Streaming {
    address: SocketAddr,
    listener: Mutex<Option<TcpListener>>,
}

impl Streaming {
    pub async fn bind(address: SocketAddr) -> std::io::Result<Streaming> {
        let listener = TcpListener::bind(address).await?;
        Ok(Streaming { address: listener.local_addr()?, listener: Mutex::new(Some(listener)) })
    }

    pub fn serve(&self, _runtime: Weak<Inner>) {
        let _ = (self.address, self.listener.lock().take());
    }
    pub fn exec(&self, request: ExecRequest) -> Result<String, Status> {
        Err(Status::unimplemented(format!("{:?}", Job::Exec(request))))
    }
    pub fn attach(&self, request: AttachRequest) -> Result<String, Status> {
        Err(Status::unimplemented(format!("{:?}", Job::Attach(request))))
    }
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<String, Status> {
        Err(Status::unimplemented(format!("{:?}", Job::PortForward(request))))
    }
}
