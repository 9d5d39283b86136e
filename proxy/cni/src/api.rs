//! One question to the API server: what pod is this? HTTP/1.1 over TLS, with bounds on bytes and time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde::de::DeserializeOwned;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use crate::{
    kubeconfig::Kubeconfig,
    pod::{Namespace, Pod},
    protocol::{Code, Failure},
};

/// The API server stores no object larger than 1.5 MiB; JSON is longer than what it stores.
const BODY_BYTES_MAX: usize = 8 << 20;
/// One try, connection included.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);
/// The kubelet tries again by itself, in longer and longer intervals; a moment's fault need not cost one.
const TRIES_MAX: u32 = 3;
const BETWEEN_TRIES: Duration = Duration::from_millis(250);

/// Why the API server's answer is not known.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The credentials are not usable.
    #[error("the kubeconfig has an unusable {0}")]
    Credentials(&'static str),
    /// The name could not be that of an object.
    #[error("`{0}` is no name of a Kubernetes object")]
    Name(String),
    /// There is no such object.
    #[error("the API server at {server} knows no {path}")]
    NotFound {
        /// The server's URL.
        server: String,
        /// The object's path.
        path: String,
    },
    /// The server refuses the credentials.
    #[error(
        "the API server at {server} refuses the CNI plugin ({status}) to read {path}: its token may have expired, which the \
         DaemonSet linkerd-cni renews, or its ClusterRole is gone"
    )]
    Refused {
        /// The server's URL.
        server: String,
        /// The object's path.
        path: String,
        /// Its answer.
        status: StatusCode,
    },
    /// The server answers with a failure.
    #[error("the API server at {server} answers {status} for {path}")]
    Status {
        /// The server's URL.
        server: String,
        /// The object's path.
        path: String,
        /// Its answer.
        status: StatusCode,
    },
    /// The server cannot be reached, or does not speak as it should.
    #[error("failed to ask the API server at {server}: {reason}")]
    Unreachable {
        /// The server's URL.
        server: String,
        /// What happened.
        reason: String,
    },
}

impl ApiError {
    fn passes(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            _ => false,
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let code = match error {
            ApiError::Credentials(_) => Code::InvalidConfig,
            ApiError::Name(_) => Code::InvalidEnvironment,
            _ => Code::TryAgain,
        };
        Self::new(code, error.to_string())
    }
}

/// The API server, as the kubeconfig names it.
pub struct Api {
    server: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
    authorization: header::HeaderValue,
}

impl Api {
    /// Prepares to ask.
    ///
    /// # Errors
    /// Credentials that cannot be used.
    pub fn new(config: &Kubeconfig) -> Result<Self, ApiError> {
        let uri: Uri = config
            .server
            .parse()
            .map_err(|_| ApiError::Credentials("server"))?;
        if uri.scheme_str() != Some("https") {
            return Err(ApiError::Credentials("server (expected https)"));
        }
        let host = uri.host().ok_or(ApiError::Credentials("server"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| ApiError::Credentials("server"))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&config.authority_pem) {
            let certificate = certificate.map_err(|_| ApiError::Credentials("certificate-authority-data"))?;
            roots
                .add(certificate)
                .map_err(|_| ApiError::Credentials("certificate-authority-data"))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("aws-lc-rs supports rustls' own versions of TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut authorization = header::HeaderValue::try_from(format!("Bearer {}", config.token.trim()))
            .map_err(|_| ApiError::Credentials("token"))?;
        authorization.set_sensitive(true);
        Ok(Self {
            server: config.server.clone(),
            port: uri.port_u16().unwrap_or(443),
            host,
            name,
            tls: TlsConnector::from(Arc::new(tls)),
            authorization,
        })
    }

    /// The API server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A pod.
    ///
    /// # Errors
    /// It is not known whether there is one, or there is none.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<Pod, ApiError> {
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}",
            checked(namespace)?,
            checked(name)?
        );
        self.get(&path).await
    }

    /// A namespace.
    ///
    /// # Errors
    /// As [`Self::pod`].
    pub async fn namespace(&self, name: &str) -> Result<Namespace, ApiError> {
        self.get(&format!("/api/v1/namespaces/{}", checked(name)?)).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let mut tries = 1;
        loop {
            let result = match timeout(TRY_TIMEOUT, self.ask(path)).await {
                Ok(result) => result,
                Err(_) => Err(self.unreachable(format!("no answer within {} s", TRY_TIMEOUT.as_secs()))),
            };
            match result {
                Err(error) if error.passes() && tries < TRIES_MAX => {
                    tokio::time::sleep(BETWEEN_TRIES * tries).await;
                    tries += 1;
                }
                Err(error) => return Err(error),
                Ok(body) => {
                    return serde_json::from_slice(&body)
                        .map_err(|error| self.unreachable(format!("its answer is not understood: {error}")));
                }
            }
        }
    }

    async fn ask(&self, path: &str) -> Result<Bytes, ApiError> {
        let mut sender = self.connect().await?;
        let request = Request::get(path)
            .header(header::HOST, &self.host)
            .header(header::AUTHORIZATION, self.authorization.clone())
            .header(header::ACCEPT, "application/json")
            .header(
                header::USER_AGENT,
                concat!("heddle-cni/", env!("CARGO_PKG_VERSION")),
            )
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.unreachable(error.to_string()))?;
        let response = sender.send_request(request).await;
        let response = response.map_err(|error| self.unreachable(error.to_string()))?;
        let (server, path, status) = (self.server.clone(), path.to_owned(), response.status());
        match status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(ApiError::NotFound { server, path }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                return Err(ApiError::Refused { server, path, status });
            }
            _ => return Err(ApiError::Status { server, path, status }),
        }
        match Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                Err(self.unreachable(format!("its answer is larger than {BODY_BYTES_MAX} bytes")))
            }
            Err(error) => Err(self.unreachable(error.to_string())),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Empty<Bytes>>, ApiError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|error| self.unreachable(error.to_string()))?;
        let stream = self.tls.connect(self.name.clone(), stream).await;
        let stream = stream.map_err(|error| self.unreachable(error.to_string()))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.unreachable(error.to_string()))?;
        // Ends with the sender, and at the latest with the runtime that asks this one question.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn unreachable(&self, reason: String) -> ApiError {
        ApiError::Unreachable {
            server: self.server.clone(),
            reason,
        }
    }
}

/// A name that may stand in a path: what Kubernetes allows and nothing else.
fn checked(name: &str) -> Result<&str, ApiError> {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let dots = name.starts_with('.') || name.ends_with('.');
    match !name.is_empty() && name.len() <= 253 && name.bytes().all(allowed) && !dots {
        true => Ok(name),
        false => Err(ApiError::Name(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        for name in ["", "..", "a/b", "a%2fb", "a?b", "A"] {
            assert!(checked(name).is_err(), "{name}");
        }
        assert!(checked("web-5d8f.x").is_ok());
    }

    #[test]
    fn credentials_that_cannot_be_used_are_named() {
        let config = |server: &str, token: &str| Kubeconfig {
            server: server.to_owned(),
            authority_pem: Vec::new(),
            token: token.to_owned(),
        };
        let refuse = |config| Api::new(&config).map(|_| ()).expect_err("refused").to_string();
        assert!(refuse(config("http://10.0.0.1", "t")).contains("https"));
        assert!(refuse(config("https://10.0.0.1", "a\nb")).contains("token"));
        Api::new(&config("https://[fd00::1]:6443", "t")).expect("usable");
    }
}
