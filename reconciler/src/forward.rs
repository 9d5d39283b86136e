//! Streams to ports of pods through the API server, as `kubectl port-forward` makes them.
//!
//! In goes a pod and a port; out comes a byte stream, what an HTTP server there answers to one GET, or a gRPC channel
//! over TLS to a process of the control plane whose identity has been verified. Nothing listens on this machine.

use std::time::Duration;

use heddle_inject::{CONFIG_KEY, CONFIG_MAP, ProxyDefaults};
use heddle_mesh::Identity;
use heddle_tls::{Store, TrustBundle};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, ObjectList},
};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::{
    cluster::Answer,
    identity::{TRUST_ROOTS, TRUST_ROOTS_KEY},
};

/// An answer that takes longer will not come.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);
/// The metrics of a busy proxy are some megabytes.
const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
const COMPONENT: &str = heddle_mesh::label::CONTROL_PLANE_COMPONENT;

/// Why a pod could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    #[error("failed to {action}")]
    Request {
        action: String,
        #[source]
        source: Answer,
    },
    #[error("failed to reach port {port} of pod {pod}")]
    Stream {
        pod: String,
        port: u16,
        #[source]
        source: std::io::Error,
    },
    #[error("pod {pod}, port {port}: {path} answered HTTP {status}")]
    Status {
        pod: String,
        port: u16,
        path: String,
        status: http::StatusCode,
    },
    #[error("no running pod of the control plane's {component} in namespace {namespace}")]
    NoPod {
        component: &'static str,
        namespace: String,
    },
    #[error("pod {pod} has no container {container} with a port {port}")]
    NoPort {
        pod: String,
        container: String,
        port: &'static str,
    },
    #[error("ConfigMap {namespace}/{name}, key {key}: {problem}")]
    Config {
        namespace: String,
        name: &'static str,
        key: &'static str,
        problem: String,
    },
}

impl From<ForwardError> for crate::cli::Failure {
    fn from(error: ForwardError) -> Self {
        let hint = match &error {
            ForwardError::NoPod { .. } => {
                Some("see `heddle check`, and -L for the control plane's namespace")
            }
            ForwardError::Config { .. } => Some("see -L for the control plane's namespace"),
            ForwardError::Request {
                source: Answer::Refusal(status),
                ..
            } if status.code == 403 => Some("the account may not do that; see `kubectl auth can-i --list`"),
            _ => None,
        };
        Self {
            hint: hint.map(str::to_owned),
            error: error.into(),
            code: 2,
        }
    }
}

/// A name for messages: `NAMESPACE/NAME`.
pub fn display(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

fn refused(action: impl Into<String>) -> impl FnOnce(kube::Error) -> ForwardError {
    let action = action.into();
    |source| ForwardError::Request {
        action,
        source: source.into(),
    }
}

/// A stream to `port` of a pod.
///
/// # Errors
/// The API server refuses, or the pod has nobody listening there.
pub async fn open(
    client: &Client,
    pod: &Pod,
    port: u16,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + use<>, ForwardError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let action = format!("forward port {port} of pod {}", display(pod));
    let mut forwarder = api
        .portforward(&pod.name_any(), &[port])
        .await
        .map_err(refused(action))?;
    forwarder.take_stream(port).ok_or_else(|| ForwardError::Stream {
        pod: display(pod),
        port,
        source: std::io::ErrorKind::NotConnected.into(),
    })
}

/// What an HTTP server in a pod answers to `GET path`.
///
/// # Errors
/// No connection, no answer within half a minute, another status than 200, or an answer that is too long or no text.
pub async fn get(client: &Client, pod: &Pod, port: u16, path: &str) -> Result<String, ForwardError> {
    let failed = |source| ForwardError::Stream {
        pod: display(pod),
        port,
        source,
    };
    let other = |error: hyper::Error| failed(std::io::Error::other(error));
    let answer = async {
        let stream = open(client, pod, port).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(other)?;
        // Ends with the sender.
        tokio::spawn(connection);
        let request = http::Request::get(path)
            .header(http::header::HOST, "localhost")
            .body(Empty::<Bytes>::new())
            .map_err(|error| failed(std::io::Error::other(error)))?;
        let response = sender.send_request(request).await.map_err(other)?;
        let status = response.status();
        if status != http::StatusCode::OK {
            return Err(ForwardError::Status {
                pod: display(pod),
                port,
                path: path.to_owned(),
                status,
            });
        }
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| failed(std::io::Error::other(error)))?;
        String::from_utf8(body.to_bytes().into())
            .map_err(|error| failed(std::io::Error::new(std::io::ErrorKind::InvalidData, error)))
    };
    match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(failed(std::io::ErrorKind::TimedOut.into())),
    }
}

/// The containers of a pod, native sidecars among them.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        let sidecars = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"));
        sidecars.chain(&spec.containers)
    })
}

/// The number of a container's first port that is so named.
pub fn port_of(container: &Container, named: impl Fn(&str) -> bool) -> Option<u16> {
    let ports = container.ports.iter().flatten();
    ports
        .filter(|port| port.name.as_deref().is_some_and(&named))
        .find_map(|port| u16::try_from(port.container_port).ok())
}

/// Whether a pod runs; others have nobody to ask.
pub fn is_running(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Pods by label selector, sorted by name.
///
/// # Errors
/// The API server's.
pub async fn pods(
    client: &Client,
    namespace: Option<&str>,
    selector: &str,
) -> Result<Vec<Pod>, ForwardError> {
    let api: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let params = ListParams::default().labels(selector);
    let list: ObjectList<Pod> = api.list(&params).await.map_err(refused("list pods"))?;
    let mut pods = list.items;
    pods.sort_by_key(|pod| (pod.namespace(), pod.name_any()));
    Ok(pods)
}

/// The control plane, as seen from outside the cluster.
pub struct ControlPlane {
    client: Client,
    namespace: String,
    pub defaults: ProxyDefaults,
    store: Store,
}

impl ControlPlane {
    /// Reads the mesh's settings and trust anchors.
    ///
    /// # Errors
    /// No control plane in that namespace, or its settings cannot be read.
    pub async fn find(client: Client, namespace: &str) -> Result<Self, ForwardError> {
        let config = |name, key| {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            async move {
                let map = api
                    .get(name)
                    .await
                    .map_err(refused(format!("get ConfigMap {namespace}/{name}")))?;
                map.data
                    .and_then(|mut data| data.remove(key))
                    .ok_or_else(|| wrong(namespace, name, key)("there is no such key".into()))
            }
        };
        let text = config(CONFIG_MAP, CONFIG_KEY).await?;
        let defaults = ProxyDefaults::from_yaml(&text).map_err(|error| {
            wrong(namespace, CONFIG_MAP, CONFIG_KEY)(heddle_daemon::report::chain(&error))
        })?;
        let bundle = config(TRUST_ROOTS, TRUST_ROOTS_KEY).await?;
        let unusable = wrong(namespace, TRUST_ROOTS, TRUST_ROOTS_KEY);
        let roots =
            TrustBundle::from_pem(&bundle).map_err(|error| unusable(heddle_daemon::report::chain(&error)))?;
        // This program shows no certificate; the store wants a name all the same.
        let name = identity(&defaults, namespace, namespace, "heddle")
            .map_err(wrong(namespace, CONFIG_MAP, CONFIG_KEY))?;
        let (store, _) = Store::new(name, roots).map_err(|error| {
            wrong(namespace, TRUST_ROOTS, TRUST_ROOTS_KEY)(heddle_daemon::report::chain(&error))
        })?;
        Ok(Self {
            client,
            namespace: namespace.to_owned(),
            defaults,
            store,
        })
    }

    /// The identity of a workload's service account.
    ///
    /// # Errors
    /// The names do not make a DNS name.
    pub fn identity(&self, namespace: &str, account: &str) -> Result<Identity, String> {
        identity(&self.defaults, &self.namespace, namespace, account)
    }

    /// The mesh's trust anchors.
    pub fn roots(&self) -> TrustBundle {
        self.store.roots()
    }

    /// A gRPC channel to `container` of the destination pod: the named one, or any that runs.
    ///
    /// # Errors
    /// No such pod, no way to it, or it is not who it should be.
    pub async fn channel(&self, container: &'static str, pod: Option<&str>) -> Result<Channel, ForwardError> {
        let component = "destination";
        let selector = format!("{COMPONENT}={component}");
        let pods = pods(&self.client, Some(&self.namespace), &selector).await?;
        let pod = pods
            .into_iter()
            .find(|candidate| match pod {
                Some(name) => candidate.name_any() == name,
                None => is_running(candidate),
            })
            .ok_or_else(|| ForwardError::NoPod {
                component,
                namespace: self.namespace.clone(),
            })?;
        let port = containers(&pod)
            .find(|candidate| candidate.name == container)
            .and_then(|container| port_of(container, |name| name.starts_with("grpc")))
            .ok_or_else(|| ForwardError::NoPort {
                pod: display(&pod),
                container: container.into(),
                port: "grpc…",
            })?;
        let name = self
            .identity(&self.namespace, "linkerd-destination")
            .and_then(|name| ServerName::try_from(name.to_string()).map_err(|error| error.to_string()))
            .map_err(wrong(&self.namespace, CONFIG_MAP, CONFIG_KEY))?;
        let failed = |source| ForwardError::Stream {
            pod: display(&pod),
            port,
            source,
        };
        let stream = open(&self.client, &pod, port).await?;
        let handshake = TlsConnector::from(self.store.anonymous_client_config()).connect(name, stream);
        let tls = match tokio::time::timeout(TIMEOUT, handshake).await {
            Ok(tls) => tls.map_err(failed)?,
            Err(_) => return Err(failed(std::io::ErrorKind::TimedOut.into())),
        };
        let mut once = Some(TokioIo::new(tls));
        let connector = tower::service_fn(move |_: Uri| {
            let stream = once
                .take()
                .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionReset));
            std::future::ready(stream)
        });
        Endpoint::from_static("http://linkerd-destination")
            .timeout(TIMEOUT)
            .connect_with_connector(connector)
            .await
            .map_err(|error| failed(std::io::Error::other(error)))
    }
}

fn identity(
    defaults: &ProxyDefaults,
    control_namespace: &str,
    namespace: &str,
    account: &str,
) -> Result<Identity, String> {
    let account = heddle_mesh::ServiceAccountRef {
        namespace: namespace.to_owned(),
        name: account.to_owned(),
    };
    Identity::for_service_account(&account, control_namespace, &defaults.trust_domain)
        .map_err(|error| error.to_string())
}

fn wrong(namespace: &str, name: &'static str, key: &'static str) -> impl Fn(String) -> ForwardError + use<> {
    let namespace = namespace.to_owned();
    move |problem| ForwardError::Config {
        namespace: namespace.clone(),
        name,
        key,
        problem,
    }
}
