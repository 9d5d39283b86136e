//! `heddle diagnostics`, `authz` and `identity` on a mesh that runs: each asks the programs, and says what they say.

use anyhow::{Context as _, Result, ensure};
use heddle_tests_cluster::{metrics, workloads};
use serde_json::Value;

use crate::stage::Stage;

const AUTHORITY: &str = "payments-api.payments.svc.cluster.local:8080";

/// What is told to proxies.
pub(crate) fn the_control_plane(stage: &Stage) -> Result<()> {
    let json = |arguments: &[&str]| -> Result<Value> {
        let text = stage.heddle.stdout(arguments)?;
        serde_json::from_str(&text).with_context(|| format!("heddle {arguments:?} prints JSON, not {text}"))
    };
    let servers: Vec<_> = workloads::pods(&stage.kubectl, "payments")?
        .into_iter()
        .filter(|pod| pod.app == "payments-api")
        .collect();

    let endpoints = json(&["diagnostics", "endpoints", AUTHORITY, "-o", "json"])?;
    let endpoints = endpoints.as_array().context("a list")?;
    ensure!(
        endpoints.len() == servers.len(),
        "{} pods, and endpoints {endpoints:?}",
        servers.len()
    );
    for endpoint in endpoints {
        ensure!(
            servers.iter().any(|pod| endpoint["pod"] == pod.name.as_str())
                && endpoint["tls_identity"]
                    == "payments-api.payments.serviceaccount.identity.linkerd.cluster.local"
                && endpoint["port"] == 8080,
            "an endpoint without its pod, port or identity: {endpoint}"
        );
    }
    let table = stage.heddle.stdout(&["dg", "ep", AUTHORITY])?;
    ensure!(
        table.starts_with("NAMESPACE") && table.lines().count() == servers.len() + 1,
        "one line per endpoint, not\n{table}"
    );
    let nobody = stage
        .heddle
        .run(&["diagnostics", "endpoints", "nobody.payments.svc.cluster.local:1"])?;
    ensure!(
        nobody.code == Some(2) && nobody.stderr.contains("nobody.payments.svc.cluster.local:1"),
        "a service that does not exist must be named: {nobody:?}"
    );

    let inbound = json(&[
        "diagnostics",
        "policy",
        &format!("po/{}", servers[0].name),
        "8080",
        "-n",
        "payments",
        "-o",
        "json",
    ])?;
    ensure!(
        inbound.pointer("/protocol/Kind/Http1").is_some()
            && inbound.to_string().contains("payments-api-allow-checkout"),
        "not the Server's policy: {inbound:#}"
    );
    let outbound = stage.heddle.stdout(&[
        "diagnostics",
        "policy",
        "svc/payments-api",
        "8080",
        "-n",
        "payments",
    ])?;
    ensure!(
        outbound.contains(&format!("path: {AUTHORITY}")),
        "not the service's policy:\n{outbound}"
    );
    let profile = json(&["diagnostics", "profile", AUTHORITY])?;
    ensure!(
        profile["fully_qualified_name"] == "payments-api.payments.svc.cluster.local",
        "not the service's profile: {profile:#}"
    );
    let metrics = stage.heddle.stdout(&["diagnostics", "controller-metrics"])?;
    for container in ["destination", "policy", "identity", "proxy-injector"] {
        ensure!(
            metrics.contains(&format!("# CONTAINER {container}\n")),
            "no metrics of {container} in {} bytes",
            metrics.len()
        );
    }
    ensure!(
        !metrics.contains("# ERROR"),
        "a program did not answer:\n{metrics}"
    );
    Ok(())
}

/// What proxies show and count, and what covers them.
pub(crate) fn the_proxies(stage: &Stage) -> Result<()> {
    let arguments = [
        "diagnostics",
        "proxy-metrics",
        "-n",
        "payments",
        "deploy/payments-api",
    ];
    let text = stage.heddle.stdout(&arguments)?;
    let counted = metrics::sum(&metrics::parse(&text), "inbound_http_authz_allow_total", &[]);
    ensure!(
        counted > 0.0,
        "the proxies of payments-api have let somebody in:\n{text}"
    );
    let hidden = stage
        .heddle
        .stdout(&[&arguments[..], &["--obfuscate"]].concat())?;
    ensure!(
        !hidden.contains("checkout.payments"),
        "an obfuscated line names a client:\n{}",
        hidden
            .lines()
            .find(|line| line.contains("checkout.payments"))
            .unwrap_or_default()
    );

    let shown = stage
        .heddle
        .stdout(&["identity", "-n", "payments", "-l", "app=payments-api"])?;
    ensure!(
        shown.contains("DNS:payments-api.payments.serviceaccount.identity.linkerd.cluster.local")
            && !shown.contains("refuse it"),
        "not the proxy's certificate:\n{shown}"
    );
    let unmeshed = stage
        .heddle
        .run(&["identity", "-n", "legacy", "-l", "app=batch"])?;
    ensure!(
        unmeshed.code == Some(1) && unmeshed.stdout.contains("not meshed"),
        "an unmeshed pod has no identity: {unmeshed:?}"
    );

    let covered = stage
        .heddle
        .stdout(&["authz", "-n", "payments", "deploy/payments-api"])?;
    let row = covered.lines().nth(1).unwrap_or_default();
    ensure!(
        row.split_whitespace()
            .eq(["*", "payments-api", "payments-api-allow-checkout"]),
        "one policy covers payments-api, not\n{covered}"
    );
    let typo = stage
        .heddle
        .run(&["authz", "-n", "payments", "deploy/payment-api"])?;
    ensure!(
        typo.code == Some(2)
            && typo
                .stderr
                .contains("no Deployment payment-api in namespace payments"),
        "a typing error must be named: {typo:?}"
    );
    Ok(())
}
