//! Connections of bytes to the application: judged once, and again whenever the policy changes.

use std::rc::Rc;

use super::{InboundError, Known, http::server_labels, still_allowed};
use crate::{io::copy, metrics::labels::Labels, worker::Worker};

pub(super) async fn serve(
    worker: &Rc<Worker>,
    known: Known,
    drain: drain::Watch,
) -> Result<(), InboundError> {
    let Known {
        mut io,
        client,
        no_tls_reason,
        port,
        leaf: _,
    } = known;
    let policy = port.policy();
    let labels = |server: &heddle_proxy_policy::Meta| {
        let labels = Labels::default()
            .with("target_addr", port.addr())
            .client_tls(&client.tls, no_tls_reason);
        server_labels(labels, server, port.addr().port())
    };
    let permit = match policy.authorize(&client) {
        Ok(permit) => permit,
        Err(denied) => {
            worker
                .metrics
                .inbound_tcp_authz_deny_total
                .get(&labels(&policy.meta))
                .add(1);
            io.reset_on_close();
            return Err(denied.into());
        }
    };
    let allowed = labels(permit.server()).resource("authz", permit.authorization());
    worker.metrics.inbound_tcp_authz_allow_total.get(&allowed).add(1);
    let mut app = Box::pin(port.app().connect(&permit)).await?;
    let mut changes = port.changes();
    let revoked = async {
        loop {
            if changes.changed().await.is_err() {
                // Nobody publishes policies any more: the last one stays.
                std::future::pending::<()>().await;
            }
            if !still_allowed(&changes.borrow_and_update().policy, &client) {
                return;
            }
        }
    };
    let result = tokio::select! {
        copied = copy(&mut io, &mut app) => copied.map_err(InboundError::from),
        () = revoked => {
            worker.metrics.inbound_tcp_authz_terminate_total.get(&labels(&port.policy().meta)).add(1);
            io.reset_on_close();
            Err(InboundError::Terminated)
        }
    };
    drop(drain);
    result
}
