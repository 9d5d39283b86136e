//! The API server, as the pipeline needs it: which kinds it has, and requests on objects as plain JSON.
//!
//! This module knows how to ask; it decides nothing. All writes of the program go through it, and are counted here.

use std::{path::Path, sync::Arc, time::Duration};

use kube::{
    Client, Config, Discovery,
    api::{DeleteParams, DynamicObject, GetParams, Patch, PatchParams, PostParams, ValidationDirective},
    config::{KubeConfigOptions, Kubeconfig},
    core::{Request, Resource as _, Status},
    discovery::{ApiResource, Scope},
};
use serde_json::Value;
use tokio::sync::RwLock;

use crate::{
    metrics::Metrics,
    object::{Object, ObjectId, group_of},
};

/// Requests that one stage has in flight.
pub const CONCURRENCY_MAX: usize = 16;
/// A request that takes longer has lost its server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Why there is no talking to the cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("the kubeconfig {path} cannot be used")]
    Kubeconfig {
        path: String,
        #[source]
        source: kube::config::KubeconfigError,
    },
    #[error("there is no cluster to talk to")]
    Infer(#[source] kube::config::InferConfigError),
    #[error("the client cannot be made")]
    Client(#[source] kube::Error),
    #[error("the API server does not say which kinds it has")]
    Discovery(#[source] kube::Error),
    #[error("failed to {verb} {object}")]
    Request {
        verb: &'static str,
        object: String,
        #[source]
        source: Answer,
    },
}

/// What came back instead of an object.
#[derive(Debug, thiserror::Error)]
pub enum Answer {
    #[error("{} (HTTP {})", .0.message, .0.code)]
    Refusal(Box<Status>),
    #[error(transparent)]
    Other(kube::Error),
}

impl From<kube::Error> for Answer {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refusal(status),
            other => Self::Other(other),
        }
    }
}

impl ClusterError {
    /// The API server's answer, when it gave one.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Request {
                source: Answer::Refusal(status),
                ..
            } => Some(status),
            Self::Request {
                source: Answer::Other(source),
                ..
            }
            | Self::Client(source)
            | Self::Discovery(source) => status(source),
            Self::Kubeconfig { .. } | Self::Infer(_) => None,
        }
    }

    /// What to do about it, when that is clear.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Kubeconfig { .. } | Self::Infer(_) => Some("give --kubeconfig, or set KUBECONFIG".into()),
            Self::Discovery(_) | Self::Client(_) => {
                Some("check that the cluster is up and the kubeconfig right".into())
            }
            Self::Request { .. } => match self.status().map(|status| status.code) {
                Some(401 | 403) => {
                    Some("the account lacks a role; see the ClusterRole of the reconciler".into())
                }
                _ => None,
            },
        }
    }
}

/// The API server's own words in an error.
pub fn status(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// A kind that the API server has.
#[derive(Clone, Debug)]
pub struct Kind {
    pub resource: ApiResource,
    pub namespaced: bool,
}

/// How an object is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Dry,
    Write,
    /// As the next, without writing.
    DryOverHands,
    /// Takes back fields that a person changed by hand. Only for conflicts that were judged to be nothing else, and
    /// with the object's resource version in the body, so that it is void if anything has changed since.
    OverHands,
}

/// A connection to one cluster; cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    pub client: Client,
    discovery: Arc<RwLock<Arc<Discovery>>>,
    pub metrics: Metrics,
}

impl Cluster {
    /// Connects by a kubeconfig, or as the pod that this runs in.
    ///
    /// # Errors
    /// No usable configuration, or no answer.
    pub async fn connect(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        metrics: Metrics,
    ) -> Result<Self, ClusterError> {
        // Only the first installation counts, and all are the same provider.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options = KubeConfigOptions {
            context: context.map(str::to_owned),
            ..KubeConfigOptions::default()
        };
        let mut config = match kubeconfig {
            Some(path) => {
                let failed = |source| ClusterError::Kubeconfig {
                    path: path.display().to_string(),
                    source,
                };
                let kubeconfig = Kubeconfig::read_from(path).map_err(failed)?;
                Config::from_custom_kubeconfig(kubeconfig, &options)
                    .await
                    .map_err(failed)?
            }
            None if context.is_some() => {
                let failed = |source| ClusterError::Kubeconfig {
                    path: "of the environment".into(),
                    source,
                };
                Config::from_kubeconfig(&options).await.map_err(failed)?
            }
            None => Config::infer().await.map_err(ClusterError::Infer)?,
        };
        config.connect_timeout = Some(Duration::from_secs(10));
        // The API server's audit log and metrics then tell this program's requests from all others.
        let agent = http::HeaderValue::from_static(concat!("heddle/", env!("CARGO_PKG_VERSION")));
        config.headers.push((http::header::USER_AGENT, agent));
        let client = Client::try_from(config).map_err(ClusterError::Client)?;
        let discovery = discover(&client).await?;
        Ok(Self {
            client,
            discovery: Arc::new(RwLock::new(Arc::new(discovery))),
            metrics,
        })
    }

    /// Asks again which kinds there are.
    ///
    /// # Errors
    /// No answer.
    pub async fn refresh(&self) -> Result<(), ClusterError> {
        let fresh = Arc::new(discover(&self.client).await?);
        *self.discovery.write().await = fresh;
        Ok(())
    }

    /// The kind of an `apiVersion` and `kind`.
    pub async fn kind(&self, api_version: &str, kind: &str) -> Option<Kind> {
        let discovery = self.discovery.read().await.clone();
        let group = discovery.get(group_of(api_version))?;
        let version = api_version
            .rsplit_once('/')
            .map_or(api_version, |(_, version)| version);
        let (resource, capabilities) = group
            .versioned_resources(version)
            .into_iter()
            .find(|(resource, _)| resource.kind == kind)?;
        Some(Kind {
            resource,
            namespaced: capabilities.scope == Scope::Namespaced,
        })
    }

    /// The kind of an identity, in the version that the server prefers.
    pub async fn kind_of(&self, id: &ObjectId) -> Option<Kind> {
        let discovery = self.discovery.read().await.clone();
        let (resource, capabilities) = discovery.get(&id.group)?.recommended_kind(&id.kind)?;
        Some(Kind {
            resource,
            namespaced: capabilities.scope == Scope::Namespaced,
        })
    }

    fn request(kind: &Kind, id: &ObjectId) -> Request {
        let namespace =
            Some(id.namespace.as_str()).filter(|namespace| kind.namespaced && !namespace.is_empty());
        Request::new(DynamicObject::url_path(&kind.resource, namespace))
    }

    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        verb: &'static str,
        object: &ObjectId,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, ClusterError> {
        let failed = |source: kube::Error| ClusterError::Request {
            verb,
            object: object.to_string(),
            source: source.into(),
        };
        let request = request.map_err(|error| failed(kube::Error::BuildRequest(error)))?;
        match tokio::time::timeout(REQUEST_TIMEOUT, self.client.request(request)).await {
            Ok(answer) => answer.map_err(failed),
            Err(_) => Err(failed(kube::Error::Service(
                format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()).into(),
            ))),
        }
    }

    /// The live object, if there is one.
    ///
    /// # Errors
    /// Anything but its absence.
    pub async fn get(&self, kind: &Kind, id: &ObjectId) -> Result<Option<Value>, ClusterError> {
        let answer = self
            .send(
                "get",
                id,
                Self::request(kind, id).get(&id.name, &GetParams::default()),
            )
            .await;
        match answer {
            Err(error) if error.status().is_some_and(|status| status.code == 404) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Server-side apply; it takes no field from another manager, unless `how` says so.
    ///
    /// # Errors
    /// Conflicts and refusals among them.
    pub async fn apply(
        &self,
        kind: &Kind,
        id: &ObjectId,
        body: &Value,
        how: How,
    ) -> Result<Value, ClusterError> {
        let dry_run = matches!(how, How::Dry | How::DryOverHands);
        let params = PatchParams {
            dry_run,
            force: matches!(how, How::DryOverHands | How::OverHands),
            field_manager: Some(heddle_mesh::FIELD_MANAGER.to_owned()),
            field_validation: Some(ValidationDirective::Strict),
        };
        if !dry_run {
            self.metrics.write("apply");
        }
        self.send(
            if dry_run { "try" } else { "apply" },
            id,
            Self::request(kind, id).patch(&id.name, &params, &Patch::Apply(body)),
        )
        .await
    }

    /// Creates an object.
    ///
    /// # Errors
    /// A 409 when it is there already.
    pub async fn create(
        &self,
        kind: &Kind,
        id: &ObjectId,
        body: &Value,
        dry_run: bool,
    ) -> Result<Value, ClusterError> {
        let params = PostParams {
            dry_run,
            field_manager: Some(heddle_mesh::FIELD_MANAGER.to_owned()),
        };
        if !dry_run {
            self.metrics.write("create");
        }
        self.send(
            "create",
            id,
            Self::request(kind, id).create(&params, body.to_string().into_bytes()),
        )
        .await
    }

    /// Merges a patch into an object.
    ///
    /// # Errors
    /// What the server says.
    pub async fn merge(&self, kind: &Kind, id: &ObjectId, patch: &Value) -> Result<Value, ClusterError> {
        let params = PatchParams {
            field_manager: Some(heddle_mesh::FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.metrics.write("patch");
        self.send(
            "patch",
            id,
            Self::request(kind, id).patch(&id.name, &params, &Patch::Merge(patch)),
        )
        .await
    }

    /// Merges a patch into an object's status.
    ///
    /// # Errors
    /// What the server says.
    pub async fn merge_status(
        &self,
        kind: &Kind,
        id: &ObjectId,
        patch: &Value,
    ) -> Result<Value, ClusterError> {
        let params = PatchParams {
            field_manager: Some(heddle_mesh::FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        self.metrics.write("status");
        let request =
            Self::request(kind, id).patch_subresource("status", &id.name, &params, &Patch::Merge(patch));
        self.send("patch the status of", id, request).await
    }

    /// Deletes exactly the object of this uid, and what depends on it; its absence is no error.
    ///
    /// # Errors
    /// What the server says.
    pub async fn delete(&self, kind: &Kind, id: &ObjectId, uid: &str) -> Result<(), ClusterError> {
        let params = DeleteParams::background().preconditions(kube::api::Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        self.metrics.write("delete");
        let answer: Result<Value, _> = self
            .send("delete", id, Self::request(kind, id).delete(&id.name, &params))
            .await;
        match answer {
            Err(error) if error.status().is_some_and(|status| status.code == 404) => Ok(()),
            other => other.map(drop),
        }
    }

    /// Whether a CRD, named `plural.group`, is served.
    pub async fn has_crd(&self, name: &str) -> bool {
        let Some((plural, group)) = name.split_once('.') else {
            return false;
        };
        let discovery = self.discovery.read().await.clone();
        discovery.get(group).is_some_and(|group| {
            group.versions().any(|version| {
                group
                    .versioned_resources(version)
                    .iter()
                    .any(|(resource, _)| resource.plural == plural)
            })
        })
    }

    /// The kind of a desired object.
    pub async fn kind_for(&self, object: &Object) -> Option<Kind> {
        self.kind(&object.api_version, &object.id.kind).await
    }
}

async fn discover(client: &Client) -> Result<Discovery, ClusterError> {
    Discovery::new(client.clone())
        .run_aggregated()
        .await
        .map_err(ClusterError::Discovery)
}
