//! A component's way to the API, which can be cut like a cable.

use futures::{StreamExt, TryStreamExt};
use http::{Request, Response};
use http_body_util::{BodyStream, StreamBody};
use keelson_apiserver::ApiService;
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
    /// A client whose requests go over this link.
    pub fn client(&self, service: ApiService) -> kube::Client {
        let cut = self.cut.clone();
        let over = tower::service_fn(move |request: Request<Body>| {
            let (mut service, cut) = (service.clone(), cut.clone());
            async move {
                if *cut.borrow() {
                    let refused = io::Error::new(io::ErrorKind::ConnectionRefused, "the link to the API is cut");
                    return Err(BoxError::from(refused));
                }
                let (parts, body) = service.call(request).await?.into_parts();
                let mut state = cut.subscribe();
                let end = async move {
                    // The sender's end is an end, too.
                    let _ = state.wait_for(|cut| *cut).await;
                };
                let frames = BodyStream::new(body).map_err(BoxError::from).take_until(Box::pin(end));
                Ok(Response::from_parts(parts, StreamBody::new(frames)))
            }
        });
        keelson_client::in_process(over, "default", |body| body)
    }

    /// From now on requests fail, and what streams ends.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub fn mend(&self) {
        self.cut.send_replace(false);
    }
}
