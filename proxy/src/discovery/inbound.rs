//! The policy of one of the pod's ports: `InboundServerPolicies.WatchPort`.

use std::{sync::Arc, time::Duration};

use heddle_proxy_policy::ServerPolicy;
use linkerd2_proxy_api::inbound::PortSpec;
use tokio::{sync::watch, time::sleep};
use tonic::Code;
use tracing::{debug, error};

use super::{
    Inbound, Inner,
    stream::{self, Event, Next},
};

/// How long connections wait for the control plane's first answer before the default policy holds.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) async fn follow(inner: &Inner, port: u16, publish: &watch::Sender<Inbound>) {
    let open = || {
        let mut client = inner.inbound_policies.clone();
        let request = PortSpec {
            workload: inner.config.control.workload.clone(),
            port: port.into(),
        };
        async move { client.watch_port(request).await }
    };
    let following = stream::follow(
        format!("policy of port {port}"),
        inner.config.control.streams(&inner.config.control.policy),
        open,
        |event| match event {
            Event::Message(server, _) => {
                let policy = ServerPolicy::try_from(server).unwrap_or_else(|error| {
                    error!(port, %error, "Refusing all clients: the port's policy is invalid");
                    ServerPolicy::invalid(inner.config.inbound.detect_timeout)
                });
                debug!(port, server = policy.meta.name(), "Policy changed");
                let policy = Arc::new(policy);
                publish.send_modify(|inbound| {
                    inbound.policy = policy;
                    inbound.settled = true;
                });
                Next::Retry
            }
            // The controller will never know this port of this workload; the default policy stays.
            Event::Failed(status)
                if matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition) =>
            {
                settle(publish);
                Next::Stop
            }
            Event::Failed(_) => {
                settle(publish);
                Next::Retry
            }
        },
    );
    let settling = async {
        sleep(SETTLE_TIMEOUT).await;
        settle(publish);
    };
    tokio::join!(following, settling);
}

/// The default policy holds from here on, unless another is known.
fn settle(publish: &watch::Sender<Inbound>) {
    publish.send_if_modified(|inbound| !std::mem::replace(&mut inbound.settled, true));
}
