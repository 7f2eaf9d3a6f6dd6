//! Devices of a node, as their makers' programs and the kubelet speak of them: device plug-ins (`v1beta1`), drivers of dynamic
//! resource allocation (`v1`, and `v1beta1` before it) with the health of their devices, the pod-resources API, and the API of a node's pods.
//!
//! This crate has the messages, clients whose calls end, and what all sides must agree on by name. It knows nothing of pods,
//! of which devices there are, or of who gets them. Messages and services are written by `tools/proto/run.sh`.

mod clients;

/// Device plug-ins, and the kubelet's service at which they register.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod plugin {
    include!("../proto/deviceplugin/v1beta1.rs");
}

/// Drivers of dynamic resource allocation. `v1beta1` has the same messages but for the share of a device.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod dra {
    include!("../proto/dra/k8s.io.kubelet.pkg.apis.dra.v1.rs");

    pub mod v1beta1 {
        include!("../proto/dra/k8s.io.kubelet.pkg.apis.dra.v1beta1.rs");
    }
}

/// The health of drivers' devices. `v1alpha1` has the same messages.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod health {
    include!("../proto/health/v1.rs");

    pub mod v1alpha1 {
        include!("../proto/health/v1alpha1.rs");
    }
}

/// Which devices the pods of a node have.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod podresources {
    include!("../proto/podresources/v1.rs");
}

/// The pods of a node.
#[allow(clippy::all, clippy::unwrap_used, missing_docs)]
pub mod pods {
    include!("../proto/pods/v1alpha1.rs");
}

pub use clients::{Driver, Health, HealthService, Plugin, Service};
pub use keelson_grpc::Presence;

/// `PluginInfo.type` of device plug-ins and of drivers of dynamic resource allocation.
pub const DEVICE_PLUGIN: &str = "DevicePlugin";
/// See [`DEVICE_PLUGIN`].
pub const DRA_PLUGIN: &str = "DRAPlugin";
/// The version of the protocol of device plug-ins.
pub const VERSION: &str = "v1beta1";
/// What a plug-in says of a device that can be used.
pub const HEALTHY: &str = "Healthy";
/// See [`HEALTHY`].
pub const UNHEALTHY: &str = "Unhealthy";
