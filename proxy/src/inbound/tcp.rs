//! Connections of bytes to the application: judged once, and again whenever the policy changes.

use std::rc::Rc;

use heddle_proxy_policy::{Client, Meta, Permit};

use super::{InboundError, Known, http::server_labels, port::Port};
use crate::{
    io::{Io, copy},
    metrics::labels::{Labels, Unmeshed},
    worker::Worker,
};

pub(super) async fn serve(
    worker: &Rc<Worker>,
    mut known: Box<Known>,
    drain: drain::Watch,
) -> Result<(), InboundError> {
    let Known {
        io,
        client,
        peer: _,
        unmeshed,
        port,
    } = &mut *known;
    let judge = Judge {
        worker,
        port,
        client,
        unmeshed,
    };
    let permit = judge.permit(io)?;
    let mut app = Box::pin(port.app().connect(&permit)).await?;
    let result = tokio::select! {
        copied = copy(io, &mut app) => copied.map_err(InboundError::from),
        () = judge.until_forbidden() => Err(judge.terminate(io)),
    };
    drop(drain);
    result
}

/// Judges one connection by the policy of its port.
pub(super) struct Judge<'k> {
    pub(super) worker: &'k Worker,
    pub(super) port: &'k Port,
    pub(super) client: &'k Client,
    pub(super) unmeshed: &'k Unmeshed,
}

impl Judge<'_> {
    /// Leave for the connection; one that gets none is reset.
    pub(super) fn permit(&self, io: &Io) -> Result<Permit, InboundError> {
        let metrics = &self.worker.metrics;
        let policy = self.port.policy();
        match policy.authorize(self.client) {
            Ok(permit) => {
                let labels = self
                    .labels(permit.server())
                    .resource("authz", permit.authorization());
                metrics.inbound_tcp_authz_allow_total.get(&labels).add(1);
                self.port.audit(self.client, &permit, None);
                Ok(permit)
            }
            Err(denied) => {
                let labels = self.labels(&policy.meta);
                metrics.inbound_tcp_authz_deny_total.get(&labels).add(1);
                io.reset_on_close();
                Err(denied.into())
            }
        }
    }

    /// Returns when the policy no longer allows the connection, which may be never.
    pub(super) async fn until_forbidden(&self) {
        let mut changes = self.port.changes();
        loop {
            if changes.changed().await.is_err() {
                // Nobody publishes policies any more: the last one stays.
                std::future::pending::<()>().await;
            }
            if changes.borrow_and_update().policy.authorize(self.client).is_err() {
                return;
            }
        }
    }

    /// Ends a connection that is no longer allowed.
    pub(super) fn terminate(&self, io: &Io) -> InboundError {
        self.count_terminated();
        io.reset_on_close();
        InboundError::Terminated
    }

    pub(super) fn count_terminated(&self) {
        let labels = self.labels(&self.port.policy().meta);
        let terminated = &self.worker.metrics.inbound_tcp_authz_terminate_total;
        terminated.get(&labels).add(1);
    }

    fn labels(&self, server: &Meta) -> Labels {
        let labels = Labels::default()
            .target_addr(self.port.addr())
            .client_tls(&self.client.tls, self.unmeshed);
        server_labels(labels, server, self.port.addr().port())
    }
}
