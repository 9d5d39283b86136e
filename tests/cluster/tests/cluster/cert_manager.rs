//! The issuer from the real cert-manager: a profile that names a ClusterIssuer ends as a mesh whose certificates it signed.

use std::time::Duration;

use anyhow::{Result, ensure};
use heddle_tests_cluster::{FIRST_COMMIT, PAYMENTS, story};

use crate::stage::Stage;

/// A trust anchor that cert-manager keeps, and the ClusterIssuer that signs with it.
const ANCHOR: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: cert-manager}
---
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: selfsigned}
spec: {selfSigned: {}}
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: linkerd-trust-anchor, namespace: cert-manager}
spec:
  secretName: linkerd-trust-anchor
  isCA: true
  commonName: root.linkerd.cluster.local
  duration: 87600h
  privateKey: {algorithm: ECDSA}
  issuerRef: {kind: ClusterIssuer, name: selfsigned}
---
apiVersion: cert-manager.io/v1
kind: ClusterIssuer
metadata: {name: linkerd-trust-anchor}
spec: {ca: {secretName: linkerd-trust-anchor}}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cert_managers_issuer_signs_the_mesh() -> Result<()> {
    let stage = Stage::take().await?;
    let kubectl = &stage.kubectl;
    stage.cluster.start_cert_manager().await?;
    kubectl.run(&[
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ])?;
    kubectl.apply(ANCHOR)?;
    kubectl.apply(PAYMENTS)?;

    let (path, text) = FIRST_COMMIT[0];
    let values =
        "  values:\n    identity: {issuer: {certManager: {issuerRef: {name: linkerd-trust-anchor}}}}\n";
    let profile = text.replace("  policies:", &format!("{values}  policies:"));
    ensure!(
        profile != text,
        "the first commit's profile has no policies to put values before"
    );
    let commit = stage.repository.commit(
        &[(path, &profile), FIRST_COMMIT[1]],
        "cert-manager holds the issuer",
    )?;
    story::install_reconciler(kubectl, &stage.heddle)?;
    story::point_at(kubectl, &stage.repository.url())?;
    story::wait_applied(kubectl, &commit, Duration::from_secs(240)).await?;
    story::wait_all_meshed(kubectl, "payments", Duration::from_secs(240)).await?;
    story::wait_traffic(kubectl, Duration::from_secs(60))?;

    let certificate = kubectl.get(&["certificate", "linkerd-identity-issuer", "-n", "linkerd"])?;
    let spec = &certificate["spec"];
    ensure!(
        spec["duration"] == "48h"
            && spec["renewBefore"] == "25h"
            && spec["issuerRef"]["kind"] == "ClusterIssuer",
        "the Certificate is not the reference's: {spec}"
    );
    // The proxies trust the anchor that signed the issuer, and nothing that Heddle made itself.
    let anchor = kubectl.get(&["secret", "linkerd-trust-anchor", "-n", "cert-manager"])?;
    let roots = kubectl.get(&["configmap", "linkerd-identity-trust-roots", "-n", "linkerd"])?;
    let issuer = kubectl.get(&["secret", "linkerd-identity-issuer", "-n", "linkerd"])?;
    ensure!(
        issuer["data"]["ca.crt"] == anchor["data"]["ca.crt"],
        "the issuer's ca.crt is not the anchor's"
    );
    let bundle = roots["data"]["ca-bundle.crt"].as_str().unwrap_or_default();
    ensure!(
        bundle.matches("BEGIN CERTIFICATE").count() == 1,
        "the bundle holds more than the anchor:\n{bundle}"
    );
    Ok(())
}
