//! The destination service: endpoints of services, and profiles of addresses.

mod update;

use heddle_control_core::discover::{DiscoverEndpoints, DiscoverProfiles, Target};
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update, destination_server};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{
    not_found,
    stream::{Messages, follow},
    target::{self, Context},
};
use crate::metrics::GrpcMetrics;

/// Serves what `D` discovers.
#[derive(Debug)]
pub(crate) struct Destination<D> {
    discover: D,
    cluster_domain: String,
    metrics: GrpcMetrics,
    closed: watch::Receiver<bool>,
}

impl<D> Destination<D> {
    pub(crate) fn new(
        discover: D,
        cluster_domain: String,
        metrics: GrpcMetrics,
        closed: watch::Receiver<bool>,
    ) -> Self {
        Self {
            discover,
            cluster_domain,
            metrics,
            closed,
        }
    }
}

#[tonic::async_trait]
impl<D: DiscoverEndpoints + DiscoverProfiles> destination_server::Destination for Destination<D> {
    type GetStream = Messages<Update>;
    type GetProfileStream = Messages<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        let GetDestination {
            path, context_token, ..
        } = request.into_inner();
        let target = target::parse_service(&path, &self.cluster_domain)?;
        let context = Context::parse(&context_token);
        let location = context
            .node_name
            .as_deref()
            .map(|node| self.discover.locate(node))
            .unwrap_or_default();
        let endpoints = self
            .discover
            .endpoints(&target)
            .map_err(|error| not_found(&error))?;
        tracing::debug!(path, ?location, "Get");
        let mut view = update::View::new(location);
        let open = self.metrics.open("Get");
        Ok(Response::new(follow(
            endpoints,
            self.closed.clone(),
            open,
            move |endpoints| view.next(endpoints),
        )))
    }

    async fn get_profile(
        &self,
        request: Request<GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        let GetDestination {
            path, context_token, ..
        } = request.into_inner();
        let target: Target = target::parse(&path, &self.cluster_domain)?;
        let context = Context::parse(&context_token);
        let location = context
            .node_name
            .as_deref()
            .map(|node| self.discover.locate(node))
            .unwrap_or_default();
        let profile = self.discover.profile(&context.ns, &target);
        tracing::debug!(path, "GetProfile");
        let open = self.metrics.open("GetProfile");
        let encode = move |profile: &std::sync::Arc<_>| [update::profile(profile, &location)].into();
        Ok(Response::new(follow(profile, self.closed.clone(), open, encode)))
    }
}
