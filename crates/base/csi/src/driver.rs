//! Clients of a driver behind a socket.

use std::path::Path;
use std::time::Duration;

use keelson_grpc::Deadline;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::registration::registration_client::RegistrationClient;
use crate::v1::controller_client::ControllerClient;
use crate::v1::group_controller_client::GroupControllerClient;
use crate::v1::identity_client::IdentityClient;
use crate::v1::node_client::NodeClient;

type Timed = InterceptedService<Channel, Deadline>;

/// A driver: cheap to clone, usable from any task. Connects at the first call; a lost connection is repaired at the next.
///
/// Every call ends within the deadline given here. One that didn't may have been done all the same ([`ended`]).
#[derive(Clone)]
pub struct Driver {
    channel: Channel,
    deadline: Deadline,
}

impl Driver {
    /// The driver that listens at `socket`. To be made inside of a tokio runtime.
    pub fn at(socket: &Path, deadline: Duration) -> Self {
        Driver {
            channel: keelson_grpc::channel(socket),
            deadline: Deadline(deadline),
        }
    }

    /// The same driver, over the same connection, with another deadline.
    pub fn within(&self, deadline: Duration) -> Self {
        Driver {
            channel: self.channel.clone(),
            deadline: Deadline(deadline),
        }
    }

    pub fn identity(&self) -> IdentityClient<Timed> {
        IdentityClient::with_interceptor(self.channel.clone(), self.deadline)
    }

    pub fn controller(&self) -> ControllerClient<Timed> {
        ControllerClient::with_interceptor(self.channel.clone(), self.deadline)
    }

    pub fn group_controller(&self) -> GroupControllerClient<Timed> {
        GroupControllerClient::with_interceptor(self.channel.clone(), self.deadline)
    }

    pub fn node(&self) -> NodeClient<Timed> {
        NodeClient::with_interceptor(self.channel.clone(), self.deadline)
    }
}

/// The side of a plug-in that the kubelet asks when a socket appears among its registrations.
pub type Registrar = RegistrationClient<Timed>;

impl Driver {
    /// The registration service at `socket`.
    pub fn registrar(socket: &Path, deadline: Duration) -> Registrar {
        RegistrationClient::with_interceptor(keelson_grpc::channel(socket), Deadline(deadline))
    }
}

/// Whether a call that failed with this has ended for certain: nothing of it goes on in the driver.
///
/// Where it has not, the driver may still be at it or have done it: the only way on is to call again until there is an
/// answer, or to undo. The codes are those that upstream's kubelet and sidecars take for it.
pub fn ended(status: &Status) -> bool {
    !matches!(
        status.code(),
        Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted | Code::Aborted
    )
}
