//! Routes: whether their parents take them, and whether their backends are there.

use super::{
    Status,
    condition::{Condition, Rejection, Unresolved},
    egress,
    told::ParentStatus,
};
use crate::{
    config::Config,
    facts::{BackendKind, BackendRef, ObjectKey, Parent, ParentKind, RouteFacts, RouteKind},
    store::{Attached, Store},
};

/// Why a parent does not take a route: a reason for programs and a sentence for people.
type Refusal = (Rejection, String);

pub(super) fn judge<M>(
    store: &Store,
    config: &Config,
    kind: RouteKind,
    key: &ObjectKey,
    facts: &RouteFacts<M>,
) -> Status {
    let mut all: Vec<ParentStatus> = Vec::new();
    for parent in &facts.parents {
        if all.iter().any(|other| other.parent_ref == parent.written) {
            continue;
        }
        let accepted = match (&facts.problem, refusal(store, config, kind, key, parent)) {
            (_, Some((why, message))) => Condition::rejected(why, message),
            (Some(problem), None) => Condition::rejected(Rejection::UnsupportedValue, problem.clone()),
            (None, None) => Condition::accepted(),
        };
        let mut conditions = vec![accepted];
        // A Server's routes send requests nowhere else.
        if parent.kind != ParentKind::Server {
            conditions.push(backends(store, key, parent, facts));
        }
        all.push(ParentStatus {
            parent_ref: parent.written.clone(),
            conditions,
        });
    }
    Status::Parents(all)
}

/// Whether a route is in force at one of its parents: what its status calls `Accepted`.
pub(crate) fn is_accepted(
    store: &Store,
    config: &Config,
    kind: RouteKind,
    route: &ObjectKey,
    parent: &Parent,
) -> bool {
    refusal(store, config, kind, route, parent).is_none()
}

fn refusal(
    store: &Store,
    config: &Config,
    kind: RouteKind,
    route: &ObjectKey,
    parent: &Parent,
) -> Option<Refusal> {
    let key = ObjectKey::new(&parent.namespace, &parent.name);
    let none = |message| Some((Rejection::NoMatchingParent, message));
    let missing = || {
        let kind = parent.kind.name();
        none(format!(
            "there is no {kind} {} in namespace {}",
            key.name, key.namespace
        ))
    };
    match parent.kind {
        ParentKind::Server if key.namespace != route.namespace => {
            return none("a Server takes routes of its own namespace only".to_owned());
        }
        ParentKind::Server => {
            // Of HTTP and gRPC routes a Server's protocol picks those in force: one kind is not in the other's way.
            return match store.servers.get(&key) {
                None => missing(),
                Some(_) => None,
            };
        }
        ParentKind::Service => {
            let Some(service) = store.services.get(&key) else {
                return missing();
            };
            if service.headless() || service.external_name {
                return none("parent service must have a ClusterIP".to_owned());
            }
            if let Some(port) = parent.port.filter(|port| service.port(*port).is_none()) {
                return none(format!("Service {} has no TCP port {port}", key.name));
            }
        }
        ParentKind::EgressNetwork => {
            let Some(network) = store.egress_networks.get(&key) else {
                return missing();
            };
            if !egress::takes_routes(config, network) {
                return none("EgressNetwork parent has not been accepted".to_owned());
            }
        }
    }
    let rival = rival(store, kind, route, parent, &key)?;
    Some((
        Rejection::Conflicted,
        format!(
            "{} {} in namespace {} is in force in its place: a parent's port takes routes of one kind, of GRPCRoute, HTTPRoute, TLSRoute and TCPRoute the first",
            rival.kind.kind(),
            rival.route.name,
            rival.route.namespace
        ),
    ))
}

/// A route of a more specific kind for all that this one is for (GEP-1426).
///
/// Those of the parent's namespace stand in the way of all, those of others only in the way of their own namespace's:
/// nobody can take away what a Service's owner has for everybody. One that is for a single port leaves the others.
fn rival<'a>(
    store: &'a Store,
    kind: RouteKind,
    route: &ObjectKey,
    parent: &Parent,
    key: &ObjectKey,
) -> Option<&'a Attached> {
    let others = store.attached_to(parent.kind, key).iter();
    let in_the_way = others.filter(|other| {
        let heard = [&route.namespace, &key.namespace].contains(&&other.route.namespace);
        heard
            && other.kind.generality() < kind.generality()
            && (other.port.is_none() || other.port == parent.port)
    });
    in_the_way.min_by_key(|other| (other.kind.generality(), &other.route))
}

/// Whether all backends of the rules are there: of what is wrong, a wrong kind comes first.
fn backends<M>(store: &Store, key: &ObjectKey, parent: &Parent, facts: &RouteFacts<M>) -> Condition {
    let rules = facts.body.iter().flat_map(|body| &body.rules);
    let named = rules.flat_map(|rule| {
        let of_backends = rule.backends.iter().flat_map(|one| &one.mirrors);
        let mirrors = rule
            .mirrors
            .iter()
            .chain(of_backends)
            .map(|mirror| &*mirror.backend);
        rule.backends.iter().chain(mirrors)
    });
    let wrong = named.filter_map(|backend| unresolved(store, key, parent, backend));
    match wrong.min_by_key(|(why, _)| *why != Unresolved::InvalidKind) {
        None => Condition::resolved(),
        Some((why, message)) => Condition::unresolved(why, message),
    }
}

/// Linkerd asks for no ReferenceGrant: a backend in another namespace is as good as one in the route's (docs/conformance).
fn unresolved(
    store: &Store,
    key: &ObjectKey,
    parent: &Parent,
    backend: &BackendRef,
) -> Option<(Unresolved, String)> {
    let namespace = backend.namespace.as_deref().unwrap_or(&key.namespace);
    let (name, port) = (&backend.name, backend.port);
    let not_found = |message| Some((Unresolved::BackendNotFound, message));
    match backend.kind {
        BackendKind::Other => {
            let message = format!("backend {name} is no Service with a port, and no EgressNetwork");
            Some((Unresolved::InvalidKind, message))
        }
        BackendKind::Service => match store.services.find(namespace, name) {
            None => not_found(format!("there is no Service {name} in namespace {namespace}")),
            Some(service) if service.port(port).is_none() && !service.headless() => not_found(format!(
                "Service {name} in namespace {namespace} has no TCP port {port}"
            )),
            Some(_) => None,
        },
        BackendKind::EgressNetwork => {
            let is_parent = parent.kind == ParentKind::EgressNetwork
                && parent.namespace == namespace
                && parent.name == *name;
            if store.egress_networks.find(namespace, name).is_none() {
                return not_found(format!(
                    "there is no EgressNetwork {name} in namespace {namespace}"
                ));
            }
            let message = format!("EgressNetwork {name} can be a backend only of routes whose parent it is");
            (!is_parent).then_some((Unresolved::InvalidKind, message))
        }
    }
}

impl RouteKind {
    /// Of several kinds of routes at one parent the least general is in force.
    fn generality(self) -> u8 {
        match self {
            Self::GatewayGrpc => 0,
            Self::PolicyHttp | Self::GatewayHttp => 1,
            Self::GatewayTls => 2,
            Self::GatewayTcp => 3,
        }
    }
}

impl ParentKind {
    fn name(self) -> &'static str {
        match self {
            Self::Server => "Server",
            Self::Service => "Service",
            Self::EgressNetwork => "EgressNetwork",
        }
    }
}
