//! The plugin's credentials: a kubeconfig, written by the installer for the plugin, and for people who want to try them
//! with kubectl. It is JSON, which YAML readers take.

use std::{fmt, io::Read as _, path::Path};

use base64::Engine as _;
use serde_json::{Value, json};

/// What the plugin needs to ask the API server.
#[derive(Clone, PartialEq, Eq)]
pub struct Kubeconfig {
    /// URL, `https://HOST:PORT`.
    pub server: String,
    /// Certificates that the server's must lead to, PEM.
    pub authority_pem: Vec<u8>,
    /// The service account's token.
    pub token: String,
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// The file cannot be read.
    #[error("failed to read the kubeconfig {path}: is the DaemonSet linkerd-cni running on this node?")]
    Read {
        /// Its path.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is no kubeconfig that this plugin's installer wrote.
    #[error("the kubeconfig {path} has no usable {field}")]
    Field {
        /// Its path.
        path: String,
        /// What is missing.
        field: &'static str,
    },
}

const NAME: &str = "linkerd-cni";
const CONTEXT: &str = "linkerd-cni-context";
const BYTES_MAX: u64 = 1 << 20;

impl Kubeconfig {
    /// Reads what [`Self::to_json`] wrote.
    ///
    /// # Errors
    /// No file, or one of another form.
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let shown = || path.display().to_string();
        let error = |source| KubeconfigError::Read {
            path: shown(),
            source,
        };
        let mut text = Vec::new();
        let file = std::fs::File::open(path).map_err(error)?;
        file.take(BYTES_MAX).read_to_end(&mut text).map_err(error)?;
        let missing = |field| KubeconfigError::Field { path: shown(), field };
        let document: Value = serde_json::from_slice(&text).map_err(|_| missing("JSON"))?;
        let at = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
        let server = at("/clusters/0/cluster/server").ok_or_else(|| missing("server"))?;
        let authority_pem = at("/clusters/0/cluster/certificate-authority-data")
            .and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok())
            .ok_or_else(|| missing("certificate-authority-data"))?;
        let token = at("/users/0/user/token").filter(|token| !token.is_empty());
        Ok(Self {
            server: server.to_owned(),
            authority_pem,
            token: token.ok_or_else(|| missing("token"))?.to_owned(),
        })
    }

    /// The file's text.
    pub fn to_json(&self) -> String {
        let authority = base64::engine::general_purpose::STANDARD.encode(&self.authority_pem);
        let document = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {"server": self.server, "certificate-authority-data": authority}}],
            "users": [{"name": NAME, "user": {"token": self.token}}],
            "contexts": [{"name": CONTEXT, "context": {"cluster": "local", "user": NAME}}],
            "current-context": CONTEXT,
        });
        format!("{document:#}\n")
    }
}

/// Without the token.
impl fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kubeconfig")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubeconfig");
        let config = Kubeconfig {
            server: "https://10.96.0.1:443".into(),
            authority_pem: b"-----BEGIN CERTIFICATE-----".to_vec(),
            token: "secret".into(),
        };
        std::fs::write(&path, config.to_json()).expect("written");
        assert_eq!(Kubeconfig::read(&path).expect("read"), config);
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kubeconfig");
        let error = Kubeconfig::read(&path).expect_err("no file");
        assert!(error.to_string().contains("DaemonSet linkerd-cni"), "{error}");
        std::fs::write(
            &path,
            r#"{"clusters":[{"cluster":{"server":"https://a","certificate-authority-data":"QQ=="}}]}"#,
        )
        .expect("written");
        let error = Kubeconfig::read(&path).expect_err("no token");
        assert!(error.to_string().ends_with("no usable token"), "{error}");
    }
}
