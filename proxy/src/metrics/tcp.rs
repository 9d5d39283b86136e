//! Counters of connections.

use std::{io, sync::Arc};

use heddle_proxy_policy::Endpoint;
use parking_lot::Mutex;

use super::{
    Metrics, errno,
    family::{Counter, Families, Family, Gauge},
    labels::Labels,
};

/// The counters of connections with the same labels.
#[derive(Clone, Debug)]
pub(crate) struct TcpHandles(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    open_total: Arc<Counter>,
    open_connections: Arc<Gauge>,
    read: Arc<Counter>,
    write: Arc<Counter>,
    close: Arc<Counter>,
    /// Connections that errors ended, by the error's name; each is looked up when it is first seen.
    close_failed: Mutex<Vec<(&'static str, Arc<Counter>)>>,
    close_total: Arc<Family<Counter>>,
    labels: Labels,
    zone: Option<Zone>,
}

/// Bytes by whether they leave the pod's zone: clouds charge for those that do.
#[derive(Debug)]
struct Zone {
    received: Arc<Counter>,
    sent: Arc<Counter>,
}

impl TcpHandles {
    pub(crate) fn new(metrics: &Metrics, labels: &Labels) -> Self {
        Self::make(metrics, labels, None)
    }

    /// Of connections to an endpoint.
    pub(crate) fn to_endpoint(metrics: &Metrics, labels: &Labels, endpoint: &Endpoint) -> Self {
        let locality = endpoint.labels.iter().find(|(name, _)| name == "zone_locality");
        let locality = locality.map_or("unknown", |(_, value)| value.as_str());
        let bytes = |op| {
            let labels = Labels::default().with("op", op).with("zone_locality", locality);
            metrics.outbound_tcp_transfer_cost_bytes_total.get(&labels)
        };
        let zone = Zone {
            received: bytes("Recv"),
            sent: bytes("Send"),
        };
        Self::make(metrics, labels, Some(zone))
    }

    fn make(metrics: &Metrics, labels: &Labels, zone: Option<Zone>) -> Self {
        Self(Arc::new(Inner {
            zone,
            open_total: metrics.tcp_open_total.get(labels),
            open_connections: metrics.tcp_open_connections.get(labels),
            read: metrics.tcp_read_bytes_total.get(labels),
            write: metrics.tcp_write_bytes_total.get(labels),
            close: metrics.tcp_close_total.get(&labels.clone().with("errno", "")),
            close_failed: Mutex::default(),
            close_total: metrics.tcp_close_total.clone(),
            labels: labels.clone(),
        }))
    }

    /// Counts a connection as open until what is returned is dropped.
    pub(crate) fn open(&self) -> TcpOpen {
        self.0.open_total.add(1);
        self.0.open_connections.add(1);
        TcpOpen {
            handles: self.clone(),
            errno: "",
        }
    }
}

impl Inner {
    fn closed_by(&self, errno: &'static str) {
        let mut failed = self.close_failed.lock();
        if let Some((_, count)) = failed.iter().find(|(known, _)| *known == errno) {
            return count.add(1);
        }
        let count = self.close_total.get(&self.labels.clone().with("errno", errno));
        count.add(1);
        failed.push((errno, count));
    }
}

/// A connection that is counted as open.
#[derive(Debug)]
pub(crate) struct TcpOpen {
    handles: TcpHandles,
    /// The error that ended it.
    errno: &'static str,
}

impl TcpOpen {
    pub(crate) fn read(&self, bytes: usize) {
        if bytes > 0 {
            self.handles.0.read.add(bytes as u64);
            if let Some(zone) = &self.handles.0.zone {
                zone.received.add(bytes as u64);
            }
        }
    }

    pub(crate) fn wrote(&self, bytes: usize) {
        self.handles.0.write.add(bytes as u64);
        if let Some(zone) = &self.handles.0.zone {
            zone.sent.add(bytes as u64);
        }
    }

    /// The connection fails: the first error is what ended it.
    pub(crate) fn fail(&mut self, error: &io::Error) {
        self.errno = errno::name(error);
    }
}

impl Drop for TcpOpen {
    fn drop(&mut self) {
        let handles = &*self.handles.0;
        handles.open_connections.add(-1);
        match self.errno {
            "" => handles.close.add(1),
            errno => handles.closed_by(errno),
        }
    }
}

/// What is counted of connections of bytes by route.
#[derive(Debug)]
pub(crate) struct TcpRouteFamilies {
    open: Arc<Family<Counter>>,
    close: Arc<Family<Counter>>,
}

/// A connection that a route took.
#[derive(Debug)]
pub(crate) struct TcpRouteOpen<'f> {
    families: &'f TcpRouteFamilies,
    labels: Labels,
}

impl TcpRouteFamilies {
    pub(super) fn new(families: &mut Families, kind: &str) -> Self {
        Self {
            open: families.counter(
                format!("outbound_{kind}_route_open_total"),
                "Total count of connections that the route took.",
            ),
            close: families.counter(
                format!("outbound_{kind}_route_close_total"),
                "Total count of the route's connections that ended, by why.",
            ),
        }
    }

    /// Counts a connection. Looked up each time: once per connection.
    pub(crate) fn open(&self, labels: Labels) -> TcpRouteOpen<'_> {
        self.open.get(&labels).add(1);
        TcpRouteOpen {
            families: self,
            labels,
        }
    }
}

impl TcpRouteOpen<'_> {
    /// The connection ended; the error is empty when it ended as it should.
    pub(crate) fn close(self, error: &'static str) {
        let labels = self.labels.with("error", error);
        self.families.close.get(&labels).add(1);
    }
}
