//! The policy of one of the pod's ports: `InboundServerPolicies.WatchPort`.

use std::sync::Arc;

use heddle_proxy_policy::ServerPolicy;
use linkerd2_proxy_api::inbound::PortSpec;
use tokio::sync::watch;
use tonic::Code;
use tracing::{debug, error};

use super::{
    Inner,
    stream::{self, Event, Next},
};

pub(super) async fn follow(inner: &Inner, port: u16, publish: &watch::Sender<Arc<ServerPolicy>>) {
    let open = || {
        let mut client = inner.inbound_policies.clone();
        let request = PortSpec {
            workload: inner.config.control.workload.clone(),
            port: port.into(),
        };
        async move { client.watch_port(request).await }
    };
    stream::follow(
        format!("policy of port {port}"),
        inner.config.control.streams,
        open,
        |event| match event {
            Event::Message(server, _) => {
                let policy = ServerPolicy::try_from(server).unwrap_or_else(|error| {
                    error!(port, %error, "Refusing all clients: the port's policy is invalid");
                    ServerPolicy::invalid(inner.config.inbound.detect_timeout)
                });
                debug!(port, server = policy.meta.name(), "Policy changed");
                publish.send_replace(Arc::new(policy));
                Next::Retry
            }
            // The controller will never know this port of this workload; the default policy stays.
            Event::Failed(status)
                if matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition) =>
            {
                Next::Stop
            }
            Event::Failed(_) => Next::Retry,
        },
    )
    .await;
}
