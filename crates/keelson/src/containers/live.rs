//! Whether a container runs, as its runtime tells it: so long is its log followed.

use keelson_cri::CriClients;
use keelson_cri::v1::GetEventsRequest;
use keelson_kubelet::rpc_text;
use keelson_kubelet::server::follow::{self, Life};
use std::time::Duration;
use tokio::sync::watch;

/// Some runtimes answer only with their first event, so that nobody can see since when they tell of them: the state is looked at once more
/// after so long.
const BEGUN: Duration = Duration::from_secs(1);

/// When a runtime that has gone is asked again.
const AGAIN: Duration = Duration::from_secs(1);

pub struct Live {
    cri: CriClients,
    id: String,
    told: watch::Receiver<u64>,
}

impl Live {
    /// `follow`: there will be changes to wait for.
    pub fn new(cri: &CriClients, id: &str, follow: bool) -> Live {
        let (sender, told) = watch::channel(0);
        if follow {
            let again = sender.clone();
            tokio::spawn(async move {
                tokio::time::sleep(BEGUN).await;
                again.send_modify(|times| *times += 1);
            });
            tokio::spawn(listen(cri.clone(), id.to_string(), sender));
        }
        Live {
            cri: cri.clone(),
            id: id.to_string(),
            told,
        }
    }
}

impl Life for Live {
    async fn runs(&mut self) -> bool {
        follow::runs(&self.cri, &self.id).await
    }

    async fn changed(&mut self) -> bool {
        self.told.changed().await.is_ok()
    }
}

/// Tells of the container's events, over restarts of the runtime's server, which containers outlive. Where there are none the log is followed
/// on, for the container may well go on.
async fn listen(cri: CriClients, id: String, told: watch::Sender<u64>) {
    let mut client = cri.runtime.clone();
    let mut heard = false;
    let why = loop {
        match client.get_container_events(GetEventsRequest {}).await {
            Ok(answer) => {
                // What was before it is not told of.
                told.send_modify(|times| *times += 1);
                heard = true;
                let mut events = answer.into_inner();
                while let Ok(Some(event)) = events.message().await {
                    if event.container_id == id {
                        told.send_modify(|times| *times += 1);
                    }
                }
            }
            Err(error) if !heard => break rpc_text(&error),
            // It is away.
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    };
    eprintln!("keelson: the runtime won't tell when the container ends ({why}): its log is followed until ctrl-c");
    // Nobody else says that it ended.
    std::future::pending::<()>().await;
}
