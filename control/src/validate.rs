//! The validating webhook: refuses objects that could not be carried out, and warns of those that would surprise.
//!
//! In go AdmissionReviews; out come permissions, refusals and warnings. What the API server can check by itself, the
//! CRDs' schemas say; here is the rest, and once more what Linkerd's webhook refuses, for clusters whose CRDs
//! are Linkerd's own. The decisions (`policy`, `route`, `profile`, `service`) are pure functions of the object,
//! and read it by the very code that the index reads it by.

mod metrics;
mod policy;
mod profile;
mod route;
mod service;
mod verdict;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use heddle_control_index::{Cluster, check::RouteKind};
use heddle_daemon::report;
use heddle_k8s::policy::{
    AuthorizationPolicy, EgressNetwork, HttpLocalRateLimitPolicy, MeshTLSAuthentication,
    NetworkAuthentication, Server as PolicyServer, ServerAuthorization,
};
use k8s_openapi::api::{admissionregistration::v1::ValidatingWebhookConfiguration, core::v1::Service};
use kube::Client;
use prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet, time::Instant};
use tracing::{debug, info};

use self::{metrics::Metrics, verdict::Verdict};
use crate::{
    args::Common,
    webhook::{
        Presence, Webhook,
        metrics::HttpMetrics,
        review::{Answer, Request, ReviewError},
        server::{Review, Server},
    },
};

/// Linkerd's names: users look for them, and for no others.
const SERVICES: [&str; 2] = ["linkerd-policy-validator", "linkerd-sp-validator"];
const SECRET: &str = "linkerd-policy-validator-k8s-tls";
const CONFIGURATIONS: [&str; 2] = [
    "linkerd-policy-validator-webhook-config",
    "linkerd-sp-validator-webhook-config",
];
const MANAGER: &str = "heddle-policy-validator";

/// How long the process is not ready for want of a trusted certificate. Proxies need their policies more urgently than
/// policies need their validation.
const READY_GRACE: Duration = Duration::from_secs(30);

/// The webhook as a part of a process.
#[derive(Debug)]
pub(crate) struct Validating {
    presence: Presence,
    since: Instant,
}

impl Validating {
    /// Whether the process may count as ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.presence.is_ready() || self.since.elapsed() > READY_GRACE
    }
}

/// Starts to serve on `addr`, until `drain` is signalled.
pub(crate) async fn start(
    addr: SocketAddr,
    common: &Common,
    client: &Client,
    cluster: Cluster,
    registry: &mut Registry,
    drain: heddle_daemon::Watch,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Validating> {
    let listener = TcpListener::bind(addr).await;
    let listener = listener.with_context(|| format!("failed to listen for admissions on {addr}"))?;
    let webhook = Webhook {
        manager: MANAGER,
        component: "destination",
        control_namespace: common.control_namespace.clone(),
        cluster_domain: common.cluster_domain.clone(),
        services: SERVICES.map(str::to_owned).into(),
        secret: SECRET.to_owned(),
        configurations: CONFIGURATIONS.map(str::to_owned).into(),
    };
    let presence = webhook.keep::<ValidatingWebhookConfiguration>(client, tasks);
    let validator = Validator {
        cluster,
        metrics: Metrics::register(registry),
    };
    let server = Server::new(Arc::new(validator), presence.presenting.clone());
    tasks.spawn(server.run(listener, drain));
    Ok(Validating {
        presence,
        since: Instant::now(),
    })
}

/// Judges objects.
struct Validator {
    /// Knows which Servers there are, and which pods.
    cluster: Cluster,
    metrics: Metrics,
}

impl Review for Validator {
    type Error = ReviewError;

    async fn answer(&self, body: &[u8]) -> Result<Vec<u8>, ReviewError> {
        let request = Request::read(body)?;
        let verdict = match request.operation.as_str() {
            "CREATE" | "UPDATE" => self.judge(&request),
            // There is nothing to judge in what goes away.
            _ => Verdict::default(),
        };
        self.metrics.count(&request.kind, &verdict);
        let denied = verdict.denial();
        let (kind, namespace, name) = (&request.kind.kind, &request.namespace, &request.name);
        match &denied {
            Some(reason) => info!(kind, namespace, name, reason, "Denied"),
            None => debug!(
                kind,
                namespace,
                name,
                warnings = verdict.warnings.len(),
                "Admitted"
            ),
        }
        let answer = Answer {
            denied,
            warnings: verdict.warnings,
            ..Answer::default()
        };
        Ok(answer.to_json(&request.uid))
    }

    fn is_bad_request(_: &ReviewError) -> bool {
        true
    }

    fn metrics(&self) -> &HttpMetrics {
        &self.metrics.http
    }
}

impl Validator {
    fn judge(&self, request: &Request<'_>) -> Verdict {
        let (group, kind) = (request.kind.group.as_str(), request.kind.kind.as_str());
        match (group, kind) {
            ("policy.linkerd.io", "Server") => read(request, "Server", |server: PolicyServer| {
                let others = self.cluster.overlapping_servers(&server);
                policy::server(&server, &others)
            }),
            ("policy.linkerd.io", "ServerAuthorization") => {
                read(request, "ServerAuthorization", |object: ServerAuthorization| {
                    policy::server_authorization(&object)
                })
            }
            ("policy.linkerd.io", "AuthorizationPolicy") => {
                read(request, "AuthorizationPolicy", |object: AuthorizationPolicy| {
                    policy::authorization_policy(&object)
                })
            }
            ("policy.linkerd.io", "MeshTLSAuthentication") => read(
                request,
                "MeshTLSAuthentication",
                |object: MeshTLSAuthentication| policy::mesh_tls_authentication(&object),
            ),
            ("policy.linkerd.io", "NetworkAuthentication") => read(
                request,
                "NetworkAuthentication",
                |object: NetworkAuthentication| policy::network_authentication(&object),
            ),
            ("policy.linkerd.io", "HTTPLocalRateLimitPolicy") => read(
                request,
                "HTTPLocalRateLimitPolicy",
                |object: HttpLocalRateLimitPolicy| policy::rate_limit(&object),
            ),
            ("policy.linkerd.io", "EgressNetwork") => {
                read(request, "EgressNetwork", |object: EgressNetwork| {
                    policy::egress_network(&object)
                })
            }
            ("linkerd.io", "ServiceProfile") => read(request, "ServiceProfile", |object: Value| {
                profile::service_profile(&object)
            }),
            ("", "Service") => read(request, "Service", |object: Service| service::service(&object)),
            _ => match RouteKind::of(group, kind) {
                Some(route) => read(request, route.name(), |object: Value| {
                    route::route(route, &object)
                }),
                // As Linkerd: a configuration that asks about other kinds is a mistake.
                None => Verdict::deny(format!(
                    "resource type {group}/{kind} is not supported by this webhook"
                )),
            },
        }
    }
}

/// An object that cannot be read is refused, as nothing would come of it.
fn read<T: DeserializeOwned>(
    request: &Request<'_>,
    kind: &'static str,
    judge: impl FnOnce(T) -> Verdict,
) -> Verdict {
    match request.object(kind) {
        Ok(object) => judge(object),
        Err(error) => Verdict::deny(report::chain(&error)),
    }
}
