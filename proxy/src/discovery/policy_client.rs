//! The client of `OutboundPolicies` for messages with Heddle's extension: the generated one would skip it.

use heddle_wire::PolicyMessage;
use linkerd2_proxy_api::outbound::TrafficSpec;
use tonic::{Request, Response, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::MESSAGE_BYTES_MAX;
use crate::metrics::control::CountedChannel;

const WATCH: &str = "/io.linkerd.proxy.outbound.OutboundPolicies/Watch";

#[derive(Clone)]
pub(super) struct PolicyClient(Grpc<CountedChannel>);

impl PolicyClient {
    pub(super) fn new(channel: CountedChannel) -> Self {
        Self(Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    pub(super) async fn watch(
        &mut self,
        target: TrafficSpec,
    ) -> Result<Response<Streaming<PolicyMessage>>, Status> {
        self.0
            .ready()
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static(WATCH);
        let codec = ProstCodec::<TrafficSpec, PolicyMessage>::default();
        self.0.server_streaming(Request::new(target), path, codec).await
    }
}
