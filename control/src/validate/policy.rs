//! Servers, authorizations, authentications, rate limits and EgressNetworks.

use std::fmt::Display;

use heddle_k8s::{
    network::Network,
    policy::{
        AuthorizationPolicy, EgressNetwork, HttpLocalRateLimitPolicy, MeshTLSAuthentication,
        NetworkAuthentication, Server, ServerAuthorization,
        authorization_policy::{Authentication, Target},
        server::ServerTarget,
    },
    port::PortRef,
    selector::{LabelSelector, Operator},
};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::ResourceExt as _;

use super::verdict::Verdict;

/// `others` are Servers that select a port of the same pods.
pub(super) fn server(server: &Server, others: &[String]) -> Verdict {
    let mut verdict = Verdict::default();
    let spec = &server.spec;
    match spec.selects() {
        None => {
            verdict.problem("spec: exactly one of podSelector and externalWorkloadSelector must be given")
        }
        Some(ServerTarget::Pods(_)) if spec.external_workload_selector.is_some() => {
            verdict.problem("spec: podSelector and externalWorkloadSelector exclude each other");
        }
        Some(ServerTarget::Pods(labels)) => selector(labels, "spec.podSelector", &mut verdict),
        Some(ServerTarget::ExternalWorkloads(labels)) => {
            selector(labels, "spec.externalWorkloadSelector", &mut verdict);
        }
    }
    if let PortRef::Name(name) = &spec.port
        && !is_port_name(name)
    {
        let hint = match name.parse::<u16>() {
            Ok(_) => "; without quotes it is the port of that number",
            Err(_) => "",
        };
        verdict.warn(format!(
            "spec.port: no container port can have the name `{name}`{hint}"
        ));
    }
    if let [first, rest @ ..] = others {
        let more = match rest.len() {
            0 => String::new(),
            number => format!(" and {number} more"),
        };
        verdict.warn(format!(
            "this Server selects a port that Server {first}{more} selects, too: only the oldest of them is in force there"
        ));
    }
    verdict
}

/// As Kubernetes names container ports: up to 15 of `a-z`, `0-9` and `-`, at least one of them a letter.
fn is_port_name(name: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 15
        && name.bytes().all(known)
        && name.bytes().any(|byte| byte.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

/// Conditions that mean something else than they seem to.
fn selector(selector: &LabelSelector, field: &str, verdict: &mut Verdict) {
    for (index, requirement) in selector.match_expressions.iter().enumerate() {
        let field = format!("{field}.matchExpressions[{index}]");
        match (requirement.operator, requirement.values.is_empty()) {
            (Operator::In, true) => {
                verdict.warn(format!("{field}: operator In without values selects nothing"))
            }
            (Operator::NotIn, true) => {
                verdict.warn(format!(
                    "{field}: operator NotIn without values selects everything"
                ));
            }
            (Operator::Exists | Operator::DoesNotExist, false) => {
                verdict.warn(format!(
                    "{field}: values mean nothing with operators Exists and DoesNotExist"
                ));
            }
            _ => {}
        }
    }
}

pub(super) fn server_authorization(authorization: &ServerAuthorization) -> Verdict {
    let mut verdict = Verdict::default();
    let spec = &authorization.spec;
    if spec.server.name.is_some() == spec.server.selector.is_some() {
        verdict.problem("spec.server: exactly one of name and selector must be given");
    }
    if let Some(labels) = &spec.server.selector {
        selector(labels, "spec.server.selector", &mut verdict);
    }
    if let Some(tls) = &spec.client.mesh_tls {
        if spec.client.unauthenticated {
            verdict.problem("spec.client: unauthenticated: true and meshTLS exclude each other");
        }
        let identities = tls.identities.as_deref().unwrap_or_default();
        let accounts = tls.service_accounts.as_deref().unwrap_or_default();
        if tls.unauthenticated_tls && !(identities.is_empty() && accounts.is_empty()) {
            verdict.problem(
                "spec.client.meshTLS: unauthenticatedTLS: true excludes identities and serviceAccounts",
            );
        }
    }
    let networks_given = spec.client.networks.as_deref().unwrap_or_default();
    networks(networks_given, "spec.client.networks", &mut verdict);
    verdict
}

pub(super) fn authorization_policy(policy: &AuthorizationPolicy) -> Verdict {
    let mut verdict = Verdict::default();
    let namespace = policy.namespace().unwrap_or_default();
    match policy.spec.target() {
        Ok(Target::Namespace(name)) if name != namespace => verdict.problem(format!(
            "spec.targetRef: a policy of namespace {namespace} cannot target namespace {name}, only its own"
        )),
        Ok(_) => {}
        Err(error) => verdict.problem(error.to_string()),
    }
    match policy.spec.authentications() {
        Ok(authentications) => {
            let count = |wanted: fn(&Authentication<'_>) -> bool| {
                authentications.iter().filter(|one| wanted(one)).count()
            };
            let networks = count(|one| matches!(one, Authentication::Network(_)));
            if authentications.len() - networks > 1 {
                verdict.problem(
                    "spec.requiredAuthenticationRefs: only one MeshTLSAuthentication or ServiceAccount may be required",
                );
            }
            if networks > 1 {
                verdict.problem(
                    "spec.requiredAuthenticationRefs: only one NetworkAuthentication may be required",
                );
            }
        }
        Err(error) => verdict.problem(error.to_string()),
    }
    verdict
}

pub(super) fn mesh_tls_authentication(authentication: &MeshTLSAuthentication) -> Verdict {
    let mut verdict = Verdict::default();
    let spec = &authentication.spec;
    match (spec.identities.is_empty(), spec.identity_refs.is_empty()) {
        (false, false) => verdict.problem("spec: identities and identityRefs exclude each other"),
        (true, true) => verdict.warn("spec: no identities and no identityRefs: nobody is authenticated"),
        _ => {}
    }
    for (index, reference) in spec.identity_refs.iter().enumerate() {
        let field = format!("spec.identityRefs[{index}]");
        if reference.targets_kind::<Namespace>() {
            if reference.namespace.is_some() {
                verdict.problem(format!(
                    "{field}: a Namespace is in no namespace; leave out `namespace`"
                ));
            }
        } else if !reference.targets_kind::<ServiceAccount>() {
            verdict.problem(format!(
                "{field}: {} is no identity: expected a ServiceAccount or a Namespace",
                kind(reference.group.as_deref(), &reference.kind)
            ));
        }
    }
    verdict
}

pub(super) fn network_authentication(authentication: &NetworkAuthentication) -> Verdict {
    let mut verdict = Verdict::default();
    if authentication.spec.networks.is_empty() {
        verdict.problem("spec.networks: at least one network must be given");
    }
    networks(&authentication.spec.networks, "spec.networks", &mut verdict);
    verdict
}

pub(super) fn egress_network(egress: &EgressNetwork) -> Verdict {
    let mut verdict = Verdict::default();
    if let Some(given) = &egress.spec.networks {
        if given.is_empty() {
            verdict.problem("spec.networks: at least one network must be given, or the field left out");
        }
        networks(given, "spec.networks", &mut verdict);
    }
    verdict
}

/// Each must be a network, and its exceptions a part of it.
fn networks(networks: &[Network], field: &str, verdict: &mut Verdict) {
    for (index, network) in networks.iter().enumerate() {
        let parsed = match network.parse() {
            Ok(parsed) => parsed,
            Err(error) => {
                verdict.problem(format!("{field}[{index}]: {error}"));
                continue;
            }
        };
        for (except, text) in parsed.except.iter().zip(&network.except) {
            let cidr = &network.cidr;
            if except.contains(&parsed.net) {
                verdict.problem(format!(
                    "{field}[{index}]: the exception {text} leaves nothing of {cidr}"
                ));
            } else if !parsed.net.contains(except) {
                verdict.problem(format!(
                    "{field}[{index}]: the exception {text} is no part of {cidr}"
                ));
            }
        }
    }
}

pub(super) fn rate_limit(policy: &HttpLocalRateLimitPolicy) -> Verdict {
    let mut verdict = Verdict::default();
    let spec = &policy.spec;
    let limits = spec.total.is_some() || spec.identity.is_some() || !spec.overrides.is_empty();
    match &spec.target_ref {
        Some(target) if !target.targets_kind::<Server>() => verdict.problem(format!(
            "spec.targetRef: {} cannot have a rate limit: expected a Server (policy.linkerd.io)",
            kind(target.group.as_deref(), &target.kind)
        )),
        None if limits => verdict.problem("spec.targetRef must name the Server that the limits are for"),
        _ => {}
    }
    if let Some(total) = spec.total {
        let total = total.requests_per_second;
        if spec
            .identity
            .is_some_and(|identity| identity.requests_per_second > total)
        {
            verdict.problem("spec.identity.requestsPerSecond must not be above spec.total.requestsPerSecond");
        }
        for (index, _) in above(&spec.overrides, |one| one.requests_per_second > total) {
            verdict.problem(format!(
                "spec.overrides[{index}].requestsPerSecond must not be above spec.total.requestsPerSecond"
            ));
        }
    }
    for (index, one) in spec.overrides.iter().enumerate() {
        let field = format!("spec.overrides[{index}].clientRefs");
        if one.client_refs.is_empty() {
            verdict.warn(format!("{field}: no clients: the override is for nobody"));
        }
        for client in &one.client_refs {
            if !client.targets_kind::<ServiceAccount>() {
                verdict.problem(format!(
                    "{field}: {} is no client: expected a ServiceAccount",
                    kind(client.group.as_deref(), &client.kind)
                ));
            }
        }
    }
    verdict
}

fn above<T>(list: &[T], wanted: impl Fn(&T) -> bool) -> impl Iterator<Item = (usize, &T)> {
    list.iter().enumerate().filter(move |(_, one)| wanted(one))
}

/// A kind with its group, as kubectl writes it.
fn kind(group: Option<&str>, kind: &str) -> impl Display {
    match group {
        None | Some("") => kind.to_owned(),
        Some(group) => format!("{kind}.{group}"),
    }
}
