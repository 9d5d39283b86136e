//! The destination service: endpoints of services, and profiles of addresses.

mod update;

use std::sync::Arc;

use bytes::Bytes;
use heddle_control_core::{
    discover::{DiscoverEndpoints, DiscoverProfiles, Target, Watched},
    endpoints::{ClientLocation, Endpoints},
    profile::Profile,
};
use http::Request;
use linkerd2_proxy_api::destination::{GetDestination, destination_server::SERVICE_NAME};
use tonic::{Status, body::Body};

use super::{
    frame::{Frames, frame},
    not_found,
    rpc::{self, Answer, Methods},
    shared::Shared,
    stream::Follow,
    target::{self, Context},
};
use crate::metrics::GrpcMetrics;

/// Serves what `D` discovers.
#[derive(Debug)]
pub(crate) struct Destination<D> {
    discover: D,
    cluster_domain: String,
    metrics: GrpcMetrics,
    endpoints: Arc<Shared<Endpoints, ClientLocation>>,
    profiles: Arc<Shared<Profile, ClientLocation>>,
}

impl<D: DiscoverEndpoints + DiscoverProfiles> Destination<D> {
    pub(crate) fn new(discover: D, cluster_domain: String, metrics: GrpcMetrics) -> Self {
        Self {
            discover,
            cluster_domain,
            endpoints: Arc::new(Shared::new(metrics.encoded("Get"))),
            profiles: Arc::new(Shared::new(metrics.encoded("GetProfile"))),
            metrics,
        }
    }

    fn location(&self, context: &Context) -> ClientLocation {
        let node = context.node_name.as_deref();
        node.map(|node| self.discover.locate(node)).unwrap_or_default()
    }

    /// Follows the endpoints of a service.
    pub(super) fn get(&self, request: GetDestination) -> Result<Told<Endpoints>, Status> {
        let GetDestination {
            path, context_token, ..
        } = request;
        let target = target::parse_service(&path, &self.cluster_domain)?;
        let location = self.location(&Context::parse(&context_token)?);
        let values = self
            .discover
            .endpoints(&target)
            .map_err(|error| not_found(&error))?;
        tracing::debug!(path, ?location, "Get");
        let shared = self.endpoints.clone();
        let mut told = None;
        let step = move |endpoints: &Arc<Endpoints>| -> Frames {
            let before = told.replace(endpoints.clone());
            let class = update::class(before.as_deref(), endpoints, &location);
            shared.update(before.as_ref(), endpoints, class, || {
                let messages = update::between(before.as_deref(), endpoints, &location);
                messages.iter().map(frame).collect()
            })
        };
        Ok((values, Box::new(step)))
    }

    /// Follows the profile of a target.
    pub(super) fn get_profile(&self, request: GetDestination) -> Result<Told<Profile>, Status> {
        let GetDestination {
            path, context_token, ..
        } = request;
        let target: Target = target::parse(&path, &self.cluster_domain)?;
        let context = Context::parse(&context_token)?;
        let location = self.location(&context);
        let values = self.discover.profile(&context.ns, &target);
        tracing::debug!(path, "GetProfile");
        let shared = self.profiles.clone();
        let step = move |profile: &Arc<Profile>| {
            let class = update::profile_class(profile, &location);
            let encode = || -> Vec<Bytes> { vec![frame(&update::profile(profile, &location))] };
            shared.update(None, profile, class, encode)
        };
        Ok((values, Box::new(step)))
    }
}

/// A value to follow, and what makes messages of it for one client.
pub(super) type Told<V> = (Watched<V>, Box<dyn FnMut(&Arc<V>) -> Frames + Send>);

impl<D: DiscoverEndpoints + DiscoverProfiles> Methods for Destination<D> {
    const NAME: &'static str = SERVICE_NAME;

    async fn call(&self, method: &str, request: Request<Body>) -> Answer {
        match method {
            "Get" => {
                let (values, step) = self.get(rpc::read(request).await?)?;
                rpc::streaming(Follow::new(values, self.metrics.open("Get"), step))
            }
            "GetProfile" => {
                let (values, step) = self.get_profile(rpc::read(request).await?)?;
                rpc::streaming(Follow::new(values, self.metrics.open("GetProfile"), step))
            }
            _ => rpc::unimplemented(method),
        }
    }
}
