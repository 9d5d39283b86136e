//! Metrics of the gRPC services and of the index.

use heddle_control_index::{Cluster, Sizes};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{counter::Counter, family::Family, gauge::ConstGauge, gauge::Gauge},
    registry::Registry,
};

/// Streams and updates, by method.
#[derive(Clone, Debug, Default)]
pub(crate) struct GrpcMetrics {
    open: Family<Method, Gauge>,
    updates: Family<Method, Counter>,
    encoded: Family<Method, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

/// One open stream; it counts as open until dropped.
#[derive(Debug)]
pub(crate) struct OpenStream {
    open: Gauge,
    updates: Counter,
}

impl GrpcMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "grpc_streams_open",
            "gRPC streams that are open",
            metrics.open.clone(),
        );
        registry.register(
            "grpc_updates_sent",
            "Messages sent on gRPC streams",
            metrics.updates.clone(),
        );
        registry.register(
            "grpc_updates_encoded",
            "Messages encoded for gRPC streams: one for all streams that it fits",
            metrics.encoded.clone(),
        );
        metrics
    }

    pub(crate) fn open(&self, method: &'static str) -> OpenStream {
        let method = Method { method };
        let open = self.open.get_or_create(&method).clone();
        open.inc();
        OpenStream {
            open,
            updates: self.updates.get_or_create(&method).clone(),
        }
    }
}

impl GrpcMetrics {
    /// Counts the messages that are encoded for a method.
    pub(crate) fn encoded(&self, method: &'static str) -> Counter {
        self.encoded.get_or_create(&Method { method }).clone()
    }
}

impl OpenStream {
    pub(crate) fn sent(&self) {
        self.updates.inc();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// Registers the sizes of the index, read when scraped.
pub(crate) fn register_index(registry: &mut Registry, cluster: Cluster) {
    registry.register_collector(Box::new(IndexSizes(cluster)));
}

#[derive(Debug)]
struct IndexSizes(Cluster);

impl Collector for IndexSizes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Sizes {
            pods,
            services,
            slices,
            servers,
            endpoint_watches,
            profile_watches,
            inbound_watches,
            outbound_watches,
        } = self.0.sizes();
        for (name, help, value) in [
            ("index_pods", "Pods in the index", pods),
            ("index_services", "Services in the index", services),
            ("index_endpoint_slices", "EndpointSlices in the index", slices),
            ("index_servers", "Servers in the index", servers),
            (
                "index_endpoint_watches",
                "Services whose endpoints are watched",
                endpoint_watches,
            ),
            (
                "index_profile_watches",
                "Targets whose profiles are watched",
                profile_watches,
            ),
            (
                "index_inbound_watches",
                "Ports whose inbound policies are watched",
                inbound_watches,
            ),
            (
                "index_outbound_watches",
                "Targets whose outbound policies are watched",
                outbound_watches,
            ),
        ] {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
