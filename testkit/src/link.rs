//! A component's way to the API, which can be cut like a cable.

use crate::server::Server;
use futures::{StreamExt, TryStreamExt};
use http::{Request, Response};
use http_body_util::{BodyStream, StreamBody};
use keelson_apiserver::UserInfo;
use kube::client::Body;
use std::io;
use std::sync::Arc;
use tokio::sync::watch;
use tower::{BoxError, Service};

#[derive(Clone)]
pub struct Link {
    cut: Arc<watch::Sender<bool>>,
}

impl Default for Link {
    fn default() -> Self {
        Link {
            cut: Arc::new(watch::Sender::new(false)),
        }
    }
}

impl Link {
    /// A client whose requests go over this link to the API server that runs at the time.
    pub(crate) fn client(&self, server: &Server, user: UserInfo) -> kube::Client {
        let (link, server) = (self.clone(), server.clone());
        let over = tower::service_fn(move |request: Request<Body>| {
            let (service, death) = (server.service(&user), server.death());
            let (cut, link) = (*link.cut.borrow(), link.clone());
            async move {
                let mut service = match service {
                    Some(service) if !cut => service,
                    _ => return Err(broken(io::ErrorKind::ConnectionRefused)),
                };
                let mut death = Box::pin(death);
                let answer = tokio::select! {
                    biased;
                    () = &mut death => return Err(broken(io::ErrorKind::ConnectionReset)),
                    answer = service.call(request) => answer?,
                };
                let (parts, body) = answer.into_parts();
                let end = async move {
                    tokio::select! {
                        () = death => {}
                        () = link.is_cut() => {}
                    }
                };
                let frames = BodyStream::new(body).map_err(BoxError::from).take_until(Box::pin(end));
                Ok(Response::from_parts(parts, StreamBody::new(frames)))
            }
        });
        keelson_client::in_process(over, "default", |body| body)
    }

    async fn is_cut(&self) {
        // The sender's end is an end, too.
        let _ = self.cut.subscribe().wait_for(|cut| *cut).await;
    }

    /// From now on requests fail, and what streams ends.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}

fn broken(kind: io::ErrorKind) -> BoxError {
    io::Error::new(kind, "there is no way to the API").into()
}
