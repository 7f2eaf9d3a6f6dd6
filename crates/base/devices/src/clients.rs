//! Clients of plug-ins and drivers behind a socket: cheap to clone, usable from any task. They connect at the first call; a lost
//! connection is repaired at the next. Every call but those that stream ends within a deadline.

use std::path::Path;
use std::time::Duration;

use keelson_grpc::{Deadline, in_time};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::plugin::device_plugin_client::DevicePluginClient;
use crate::{dra, health, plugin};

type Timed = InterceptedService<Channel, Deadline>;

/// The most that one message may be: a node has some thousands of devices at most.
const MAX_MESSAGE: usize = 16 << 20;

/// A device plug-in. To be made inside of a tokio runtime.
#[derive(Clone)]
pub struct Plugin(Channel);

impl Plugin {
    pub fn at(socket: &Path) -> Self {
        Plugin(keelson_grpc::channel(socket))
    }

    fn within(&self, limit: Duration) -> DevicePluginClient<Timed> {
        DevicePluginClient::with_interceptor(self.0.clone(), Deadline(limit)).max_decoding_message_size(MAX_MESSAGE)
    }

    /// What it wants to be asked.
    pub async fn options(&self, limit: Duration) -> Result<plugin::DevicePluginOptions, Status> {
        let mut client = self.within(limit);
        in_time(limit, client.get_device_plugin_options(plugin::Empty {})).await
    }

    /// Which devices it prefers.
    pub async fn prefer(
        &self,
        limit: Duration,
        request: plugin::PreferredAllocationRequest,
    ) -> Result<plugin::PreferredAllocationResponse, Status> {
        let mut client = self.within(limit);
        in_time(limit, client.get_preferred_allocation(request)).await
    }

    pub async fn allocate(
        &self,
        limit: Duration,
        request: plugin::AllocateRequest,
    ) -> Result<plugin::AllocateResponse, Status> {
        let mut client = self.within(limit);
        in_time(limit, client.allocate(request)).await
    }

    pub async fn pre_start(
        &self,
        limit: Duration,
        request: plugin::PreStartContainerRequest,
    ) -> Result<plugin::PreStartContainerResponse, Status> {
        let mut client = self.within(limit);
        in_time(limit, client.pre_start_container(request)).await
    }

    /// The plug-in's devices, again and again, until it goes.
    pub async fn watch(&self) -> Result<Streaming<plugin::ListAndWatchResponse>, Status> {
        let mut client = DevicePluginClient::new(self.0.clone()).max_decoding_message_size(MAX_MESSAGE);
        client.list_and_watch(plugin::Empty {}).await.map(Response::into_inner)
    }
}

/// The services that a driver can speak; the newest first. They differ by name only, and by what a newer one adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    V1,
    V1Beta1,
}

impl Service {
    pub const ALL: [Service; 2] = [Service::V1, Service::V1Beta1];

    /// As a driver names it when it registers.
    pub fn name(self) -> &'static str {
        match self {
            Service::V1 => "v1.DRAPlugin",
            Service::V1Beta1 => "v1beta1.DRAPlugin",
        }
    }
}

/// By which a driver tells of its devices' health; the newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthService {
    V1,
    V1Alpha1,
}

impl HealthService {
    pub const ALL: [HealthService; 2] = [HealthService::V1, HealthService::V1Alpha1];

    /// As a driver names it when it registers.
    pub fn name(self) -> &'static str {
        match self {
            HealthService::V1 => "v1.DRAResourceHealth",
            HealthService::V1Alpha1 => "v1alpha1.DRAResourceHealth",
        }
    }
}

/// A driver of dynamic resource allocation. To be made inside of a tokio runtime.
#[derive(Clone)]
pub struct Driver {
    channel: Channel,
    service: Service,
    deadline: Duration,
}

impl Driver {
    pub fn at(socket: &Path, service: Service, deadline: Duration) -> Self {
        Driver {
            channel: keelson_grpc::channel(socket),
            service,
            deadline,
        }
    }

    pub async fn prepare(&self, claims: Vec<dra::Claim>) -> Result<dra::NodePrepareResourcesResponse, Status> {
        let (channel, deadline) = (self.channel.clone(), Deadline(self.deadline));
        match self.service {
            Service::V1 => {
                let mut client = dra::dra_plugin_client::DraPluginClient::with_interceptor(channel, deadline)
                    .max_decoding_message_size(MAX_MESSAGE);
                let request = dra::NodePrepareResourcesRequest { claims };
                in_time(self.deadline, client.node_prepare_resources(request)).await
            }
            Service::V1Beta1 => {
                let mut client = dra::v1beta1::dra_plugin_client::DraPluginClient::with_interceptor(channel, deadline)
                    .max_decoding_message_size(MAX_MESSAGE);
                let claims = claims.into_iter().map(older).collect();
                let request = dra::v1beta1::NodePrepareResourcesRequest { claims };
                let answer = in_time(self.deadline, client.node_prepare_resources(request)).await?;
                let claims = answer.claims.into_iter().map(|(uid, c)| (uid, newer(c))).collect();
                Ok(dra::NodePrepareResourcesResponse { claims })
            }
        }
    }

    pub async fn unprepare(&self, claims: Vec<dra::Claim>) -> Result<dra::NodeUnprepareResourcesResponse, Status> {
        let (channel, deadline) = (self.channel.clone(), Deadline(self.deadline));
        match self.service {
            Service::V1 => {
                let mut client = dra::dra_plugin_client::DraPluginClient::with_interceptor(channel, deadline)
                    .max_decoding_message_size(MAX_MESSAGE);
                let request = dra::NodeUnprepareResourcesRequest { claims };
                in_time(self.deadline, client.node_unprepare_resources(request)).await
            }
            Service::V1Beta1 => {
                let mut client = dra::v1beta1::dra_plugin_client::DraPluginClient::with_interceptor(channel, deadline)
                    .max_decoding_message_size(MAX_MESSAGE);
                let claims = claims.into_iter().map(older).collect();
                let request = dra::v1beta1::NodeUnprepareResourcesRequest { claims };
                let answer = in_time(self.deadline, client.node_unprepare_resources(request)).await?;
                let claims = answer.claims.into_iter();
                let claims = claims.map(|(uid, c)| (uid, dra::NodeUnprepareResourceResponse { error: c.error }));
                Ok(dra::NodeUnprepareResourcesResponse {
                    claims: claims.collect(),
                })
            }
        }
    }

    /// The health of the driver's devices, again and again, until it goes.
    pub async fn health(&self, service: HealthService) -> Result<Health, Status> {
        let channel = self.channel.clone();
        match service {
            HealthService::V1 => {
                let mut client = health::dra_resource_health_client::DraResourceHealthClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE);
                let stream = client.node_watch_resources(health::NodeWatchResourcesRequest {});
                Ok(Health::V1(stream.await?.into_inner()))
            }
            HealthService::V1Alpha1 => {
                let mut client = health::v1alpha1::dra_resource_health_client::DraResourceHealthClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE);
                let stream = client.node_watch_resources(health::v1alpha1::NodeWatchResourcesRequest {});
                Ok(Health::V1Alpha1(stream.await?.into_inner()))
            }
        }
    }
}

/// What a driver tells of its devices' health.
pub enum Health {
    V1(Streaming<health::NodeWatchResourcesResponse>),
    V1Alpha1(Streaming<health::v1alpha1::NodeWatchResourcesResponse>),
}

impl Health {
    /// The health of all devices, when it is told anew. `None` when the driver has nothing more to tell.
    pub async fn next(&mut self) -> Result<Option<Vec<health::DeviceHealth>>, Status> {
        match self {
            Health::V1(stream) => Ok(stream.message().await?.map(|m| m.devices)),
            Health::V1Alpha1(stream) => {
                let told = stream.message().await?;
                Ok(told.map(|m| m.devices.into_iter().map(newer_health).collect()))
            }
        }
    }
}

fn older(claim: dra::Claim) -> dra::v1beta1::Claim {
    dra::v1beta1::Claim {
        namespace: claim.namespace,
        uid: claim.uid,
        name: claim.name,
    }
}

fn newer(claim: dra::v1beta1::NodePrepareResourceResponse) -> dra::NodePrepareResourceResponse {
    let device = |d: dra::v1beta1::Device| dra::Device {
        request_names: d.request_names,
        pool_name: d.pool_name,
        device_name: d.device_name,
        cdi_device_ids: d.cdi_device_ids,
        share_id: None,
    };
    dra::NodePrepareResourceResponse {
        devices: claim.devices.into_iter().map(device).collect(),
        error: claim.error,
    }
}

fn newer_health(device: health::v1alpha1::DeviceHealth) -> health::DeviceHealth {
    health::DeviceHealth {
        device: device.device.map(|d| health::DeviceIdentifier {
            pool_name: d.pool_name,
            device_name: d.device_name,
        }),
        health: device.health,
        last_updated_time: device.last_updated_time,
        health_check_timeout_seconds: device.health_check_timeout_seconds,
        message: device.message,
    }
}
