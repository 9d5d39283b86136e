//! The workload of the Gateway API mesh conformance suite, under the name that the suite's manifests ask for.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::KeyPair;

use super::catalog::base_layer;
use super::tarball::{Entry, Image, Layer};
use crate::tools::{Program, Tools};

/// As in `mesh/manifests.yaml` of the suite.
const NAME: &str = "registry.k8s.io/gateway-api/echo-advanced:v1.5.1";

/// Writes the image to `folder` and returns the tar. `tools` must have the echo server and client.
///
/// Its layout is that of the image it stands for: the suite runs `client` inside it by name, and the manifests name
/// the certificate's files.
pub fn echo_tar(tools: &Tools, folder: &Path) -> Result<PathBuf> {
    let key = KeyPair::generate().context("failed to make the echo server's key")?;
    let certificate = rcgen::CertificateParams::new(vec!["echo".to_owned()])
        .and_then(|parameters| parameters.self_signed(&key))
        .context("failed to make the echo server's certificate")?;
    let mut own = Layer::default();
    for program in [Program::EchoServer, Program::EchoClient] {
        let path = Path::new("/usr/local/bin").join(program.file_name());
        own.add(path, Entry::Program(tools.path(program).to_owned(), None));
    }
    own.add("/cert.crt", Entry::Text(certificate.pem(), 0o644))
        .add("/cert.key", Entry::Text(key.serialize_pem(), 0o644));
    let image = Image {
        name: NAME.to_owned(),
        layers: vec![base_layer(), own],
        entrypoint: vec!["/usr/local/bin/server".to_owned()],
        user: "1338:1338".to_owned(),
    };
    let tar = folder.join("echo-advanced.tar");
    image.write(&tar)?;
    Ok(tar)
}
