//! Counters of connections.

use std::sync::Arc;

use super::{
    Metrics,
    family::{Counter, Gauge},
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
    close_failed: Arc<Counter>,
}

impl TcpHandles {
    pub(crate) fn new(metrics: &Metrics, labels: &Labels) -> Self {
        Self(Arc::new(Inner {
            open_total: metrics.tcp_open_total.get(labels),
            open_connections: metrics.tcp_open_connections.get(labels),
            read: metrics.tcp_read_bytes_total.get(labels),
            write: metrics.tcp_write_bytes_total.get(labels),
            close: metrics.tcp_close_total.get(&labels.clone().with("errno", "")),
            close_failed: metrics
                .tcp_close_total
                .get(&labels.clone().with("errno", "UNKNOWN")),
        }))
    }

    /// Counts a connection as open until what is returned is dropped.
    pub(crate) fn open(&self) -> TcpOpen {
        self.0.open_total.add(1);
        self.0.open_connections.add(1);
        TcpOpen {
            handles: self.clone(),
            failed: false,
        }
    }
}

/// A connection that is counted as open.
#[derive(Debug)]
pub(crate) struct TcpOpen {
    handles: TcpHandles,
    failed: bool,
}

impl TcpOpen {
    pub(crate) fn read(&self, bytes: usize) {
        if bytes > 0 {
            self.handles.0.read.add(bytes as u64);
        }
    }

    pub(crate) fn wrote(&self, bytes: usize) {
        self.handles.0.write.add(bytes as u64);
    }

    pub(crate) fn fail(&mut self) {
        self.failed = true;
    }
}

impl Drop for TcpOpen {
    fn drop(&mut self) {
        self.handles.0.open_connections.add(-1);
        match self.failed {
            true => self.handles.0.close_failed.add(1),
            false => self.handles.0.close.add(1),
        }
    }
}
