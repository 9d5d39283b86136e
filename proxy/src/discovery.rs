//! What the control plane says, as one `watch` channel per key: outbound policies by address or name, endpoints by service path,
//! inbound policies by port.
//!
//! Lookups come from all workers; the streams behind them run on the control runtime. A key that nobody watches is
//! forgotten after a while. A stream that fails is opened anew with backoff, and what it said last stays: traffic goes
//! on without a control plane.

mod cache;
mod endpoints;
mod inbound;
mod outbound;
mod policy_client;
mod profile;
mod stream;

use std::sync::Arc;

use heddle_proxy_policy::{ClientPolicy, EndpointSet, Profile, ServerPolicy, ratelimit::Cells};
use linkerd2_proxy_api::{
    destination::destination_client::DestinationClient,
    inbound::inbound_server_policies_client::InboundServerPoliciesClient,
};
use tokio::{runtime::Handle, sync::watch};

use crate::{
    config::Config,
    dst::{Dst, NameAddr},
    metrics::control::CountedChannel,
};
use cache::Cache;
pub(crate) use cache::Full;
use policy_client::PolicyClient;

/// Addresses, services and ports followed at once. Far above what a pod talks to; a scan must not fill the memory.
const OUTBOUND_MAX: usize = 4_096;
const ENDPOINTS_MAX: usize = 4_096;
const INBOUND_MAX: usize = 1_024;
const PROFILES_MAX: usize = 256;
/// The control plane's messages: 10,000 endpoints with labels are a few megabytes.
const MESSAGE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What is known of an outbound address.
#[derive(Clone, Debug)]
pub(crate) enum Outbound {
    /// Nothing yet.
    Pending,
    /// Its policy.
    Policy(Arc<ClientPolicy>),
    /// The policy is invalid, as this says; Linkerd's proxy fails such requests.
    Invalid(Arc<str>),
    /// The control plane did not answer in time.
    Unavailable(Arc<str>),
    /// The control plane knows nothing of this name.
    Unknown,
}

/// What is known of one of the pod's ports.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    /// Its policy; the default until the control plane has answered.
    pub policy: Arc<ServerPolicy>,
    /// Whether the control plane has answered, or has had its time to. Until then connections wait a moment: the
    /// default may allow what the port's own policy does not.
    pub settled: bool,
    /// What the rate limits of the port count by, whichever policy sets them.
    pub cells: Arc<Cells>,
}

/// Lookups. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Discovery(Arc<Inner>);

struct Inner {
    runtime: Handle,
    config: Arc<Config>,
    destination: DestinationClient<CountedChannel>,
    outbound_policies: PolicyClient,
    inbound_policies: InboundServerPoliciesClient<CountedChannel>,
    outbound: Cache<Dst, Outbound>,
    endpoints: Cache<Arc<str>, Arc<EndpointSet>>,
    inbound: Cache<u16, Inbound>,
    profiles: Cache<NameAddr, Option<Arc<Profile>>>,
}

impl Discovery {
    /// Must be made on the control runtime, where `destination` and `policy` live.
    pub(crate) fn new(config: Arc<Config>, destination: CountedChannel, policy: CountedChannel) -> Self {
        Self(Arc::new(Inner {
            runtime: Handle::current(),
            destination: DestinationClient::new(destination).max_decoding_message_size(MESSAGE_BYTES_MAX),
            outbound_policies: PolicyClient::new(policy.clone()),
            inbound_policies: InboundServerPoliciesClient::new(policy)
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
            outbound: Cache::new(OUTBOUND_MAX, config.outbound.discovery_idle),
            endpoints: Cache::new(ENDPOINTS_MAX, config.outbound.discovery_idle),
            inbound: Cache::new(INBOUND_MAX, config.inbound.discovery_idle),
            profiles: Cache::new(PROFILES_MAX, config.inbound.discovery_idle),
            config,
        }))
    }

    /// The policy of an address that an application connects to, or of a name that it asks for.
    pub(crate) fn outbound(&self, dst: &Dst) -> Result<watch::Receiver<Outbound>, Full> {
        let inner = &self.0;
        inner.outbound.watch(
            &inner.runtime,
            dst.clone(),
            || Outbound::Pending,
            |publish| {
                let (inner, dst) = (inner.clone(), dst.clone());
                async move { outbound::follow(&inner, &dst, &publish).await }
            },
        )
    }

    /// The profile of a service that clients' proxies name; none until the control plane has answered.
    pub(crate) fn profile(&self, name: &NameAddr) -> Result<watch::Receiver<Option<Arc<Profile>>>, Full> {
        let inner = &self.0;
        inner
            .profiles
            .watch(&inner.runtime, name.clone(), Default::default, |publish| {
                let (inner, name) = (inner.clone(), name.clone());
                async move { profile::publish(&inner, &name, &publish).await }
            })
    }

    /// The endpoints of a service.
    pub(crate) fn endpoints(&self, path: &str) -> Result<watch::Receiver<Arc<EndpointSet>>, Full> {
        let inner = &self.0;
        let path: Arc<str> = path.into();
        inner
            .endpoints
            .watch(&inner.runtime, path.clone(), Default::default, |publish| {
                let inner = inner.clone();
                async move { endpoints::follow(&inner, &path, &publish).await }
            })
    }

    /// The policy of one of the pod's ports; the default until the control plane has answered.
    pub(crate) fn inbound(&self, port: u16) -> Result<watch::Receiver<Inbound>, Full> {
        let inner = &self.0;
        let config = &inner.config.inbound;
        let default = || {
            let opaque = config.opaque_ports.contains(port);
            let policy =
                config
                    .default_policy
                    .policy(&config.cluster_networks, config.detect_timeout, opaque);
            Inbound {
                policy: Arc::new(policy),
                settled: false,
                cells: Arc::default(),
            }
        };
        inner.inbound.watch(&inner.runtime, port, default, |publish| {
            let inner = inner.clone();
            async move { inbound::follow(&inner, port, &publish).await }
        })
    }
}
