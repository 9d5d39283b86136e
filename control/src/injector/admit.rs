//! One admission: from the request's bytes to the answer's.
//!
//! Nothing here waits for the API server, except for what it was asked about a moment too early: a namespace that the
//! watch has not brought yet, and the owner of a Job or a bare ReplicaSet.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use heddle_inject::{Decision, Injection, Owner, SeenPod, SkipReason, decide, decide_service};
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::{
    Api, Client,
    runtime::reflector::{ObjectRef, Store},
};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::{
    events::{Happening, Reason, Sink},
    files::Settings,
    metrics::{Metrics, RequestLabels, ResponseLabels, owner_kind},
    owners::Owners,
};
use crate::webhook::{
    metrics::HttpMetrics,
    review::{Answer, Audit, Request, ReviewError},
    said,
    server::Review,
};

const NAMESPACE_TIMEOUT: Duration = Duration::from_secs(2);

/// All that an admission needs.
pub(super) struct Admission {
    pub(super) settings: Arc<ArcSwap<Settings>>,
    pub(super) namespaces: Store<Namespace>,
    pub(super) client: Client,
    pub(super) owners: Arc<Owners>,
    pub(super) events: Sink,
    pub(super) metrics: Metrics,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AdmitError {
    #[error("the request cannot be read")]
    Review(#[from] ReviewError),
    /// The API server then goes by the webhook's failurePolicy, rather than take a pod for unmeshed.
    #[error("failed to read namespace {name}, which decides whether the pod is injected: {problem}")]
    Namespace { name: String, problem: String },
    #[error("failed to read namespace {name}, which decides whether the pod is injected: no answer within {} s", NAMESPACE_TIMEOUT.as_secs())]
    NamespaceTimeout { name: String },
}

impl Review for Admission {
    type Error = AdmitError;

    async fn answer(&self, body: &[u8]) -> Result<Vec<u8>, AdmitError> {
        let request = Request::read(body)?;
        let core =
            request.kind.group.is_empty() && request.kind.version == "v1" && request.operation == "CREATE";
        let answer = match request.kind.kind.as_str() {
            "Pod" if core => self.pod(&request).await?,
            "Service" if core => self.service(&request).await?,
            kind => {
                debug!(
                    kind,
                    operation = request.operation,
                    "Asked about what is not injected"
                );
                Answer::default()
            }
        };
        Ok(answer.to_json(&request.uid))
    }

    fn is_bad_request(error: &AdmitError) -> bool {
        matches!(error, AdmitError::Review(_))
    }

    fn metrics(&self) -> &HttpMetrics {
        &self.metrics.http
    }
}

impl Admission {
    async fn pod(&self, request: &Request<'_>) -> Result<Answer, AdmitError> {
        let SeenPod(pod) = request.object("Pod")?;
        let namespace = self.namespace(&request.namespace).await?;
        let owner = self.owners.of(&request.namespace, &pod).await;
        let owner_kind = owner_kind(owner.as_ref().map(|owner| owner.kind.as_str()));
        let labels = RequestLabels {
            owner_kind,
            namespace: request.namespace.clone(),
        };
        self.metrics.requests.get_or_create(&labels).inc();

        let settings = self.settings.load();
        let decision = decide(
            &settings.defaults,
            &view(&request.namespace, &namespace),
            &pod,
            owner.as_ref(),
        );
        let RequestLabels {
            owner_kind,
            namespace,
        } = labels;
        let (skip, skip_reason) = match &decision {
            Decision::Inject(_) => ("false", ""),
            Decision::Skip(reason) => ("true", reason.key()),
        };
        let labels = ResponseLabels {
            owner_kind,
            namespace,
            skip,
            skip_reason,
        };
        self.metrics.responses.get_or_create(&labels).inc();
        let name = pod
            .metadata
            .name
            .or(pod.metadata.generate_name)
            .unwrap_or_else(|| request.name.clone());
        Ok(match decision {
            Decision::Inject(injection) => {
                self.inject(request, &name, owner, *injection, &settings.trust_anchors_pem)
            }
            Decision::Skip(reason) => self.skip(request, &name, owner, &reason),
        })
    }

    fn inject(
        &self,
        request: &Request<'_>,
        pod: &str,
        owner: Option<Owner>,
        injection: Injection,
        anchors: &str,
    ) -> Answer {
        let stamp = injection.stamp();
        info!(namespace = request.namespace, pod, %stamp, "Injected");
        self.record(request, owner, Reason::Injected, || {
            "Linkerd sidecar proxy injected".to_owned()
        });
        Answer {
            warnings: injection.warnings().to_vec(),
            patch: Some(injection.into_patch(anchors)),
            audit: audit(format!("injected, stamp {stamp}")),
            ..Answer::default()
        }
    }

    fn skip(&self, request: &Request<'_>, pod: &str, owner: Option<Owner>, reason: &SkipReason) -> Answer {
        let mut warnings = Vec::new();
        let note = || format!("Linkerd sidecar proxy injection skipped: {reason}");
        if reason.is_surprising() {
            warn!(namespace = request.namespace, pod, %reason, "Not injected, although asked for");
            warnings.push(note());
            self.record(request, owner, Reason::SkippedThoughAsked, note);
        } else {
            debug!(namespace = request.namespace, pod, %reason, "Not injected");
            if reason.is_worth_an_event() {
                self.record(request, owner, Reason::Skipped, note);
            }
        }
        Answer {
            warnings,
            audit: audit(format!("skipped: {}", reason.key())),
            ..Answer::default()
        }
    }

    fn record(
        &self,
        request: &Request<'_>,
        owner: Option<Owner>,
        reason: Reason,
        note: impl FnOnce() -> String,
    ) {
        // A dry run has no side effects, and a pod of its own does not exist yet.
        if let (Some(owner), false) = (owner, request.dry_run.unwrap_or(false)) {
            self.events.record(Happening {
                namespace: request.namespace.clone(),
                owner,
                reason,
                note: note(),
            });
        }
    }

    async fn service(&self, request: &Request<'_>) -> Result<Answer, AdmitError> {
        let service: Service = request.object("Service")?;
        let namespace = self.namespace(&request.namespace).await?;
        let settings = self.settings.load();
        let patch = decide_service(
            &settings.defaults,
            &view(&request.namespace, &namespace),
            &service,
        );
        Ok(Answer {
            patch: patch.map(|patch| serde_json::to_vec(&patch).expect("a patch has text keys")),
            ..Answer::default()
        })
    }

    async fn namespace(&self, name: &str) -> Result<Arc<Namespace>, AdmitError> {
        if let Some(known) = self.namespaces.get(&ObjectRef::new(name)) {
            return Ok(known);
        }
        let api: Api<Namespace> = Api::all(self.client.clone());
        match timeout(NAMESPACE_TIMEOUT, api.get(name)).await {
            Ok(Ok(found)) => Ok(Arc::new(found)),
            Ok(Err(error)) => Err(AdmitError::Namespace {
                name: name.to_owned(),
                problem: said(&error),
            }),
            Err(_) => Err(AdmitError::NamespaceTimeout {
                name: name.to_owned(),
            }),
        }
    }
}

fn audit(text: String) -> Option<Audit> {
    Some(Audit {
        key: "injection",
        text,
    })
}

fn view<'a>(name: &'a str, namespace: &'a Namespace) -> heddle_inject::Namespace<'a> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    heddle_inject::Namespace {
        name,
        annotations: namespace.metadata.annotations.as_ref().unwrap_or(&NONE),
        labels: namespace.metadata.labels.as_ref().unwrap_or(&NONE),
    }
}
