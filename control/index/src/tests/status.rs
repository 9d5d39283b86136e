//! What statuses should say: one story for each reason.

use gateway_api::apis::experimental::{grpcroutes::GrpcRoute, httproutes::HttpRoute as GatewayHttpRoute};
use heddle_k8s::policy::{
    AuthorizationPolicy, EgressNetwork, HttpLocalRateLimitPolicy, HttpRoute, MeshTLSAuthentication, Server,
};
use kube::Resource;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fixtures::*;
use crate::{
    Cluster, Tracked,
    status::{Condition, Status, Subject},
};

/// `TYPE=STATUS/REASON` of each condition that a status should have, by parent.
fn said(cluster: &Cluster, subject: Subject, name: &str) -> Vec<Vec<String>> {
    let text = |conditions: &[Condition]| {
        let one = |condition: &Condition| {
            let Condition {
                type_,
                status,
                reason,
                ..
            } = condition;
            format!("{type_}={status}/{reason}")
        };
        conditions.iter().map(one).collect()
    };
    let all = cluster.judgements();
    match all
        .iter()
        .find(|one| one.subject == subject && *one.key.name == *name)
        .map(|one| &one.status)
    {
        None => Vec::new(),
        Some(Status::Parents(parents)) => parents.iter().map(|parent| text(&parent.conditions)).collect(),
        Some(Status::Conditions(conditions) | Status::OfTarget(conditions, _)) => vec![text(conditions)],
    }
}

fn messages(cluster: &Cluster, subject: Subject, name: &str) -> String {
    let all = cluster.judgements();
    let one = all
        .iter()
        .find(|one| one.subject == subject && *one.key.name == *name);
    format!("{:?}", one.map(|one| &one.status))
}

fn service(name: &str) -> Value {
    j!({"group": "core", "kind": "Service", "name": name, "port": 80})
}

fn mk_route<K>(namespace: &str, name: &str, parents: Value, rules: Value) -> K
where
    K: Resource<DynamicType = ()> + DeserializeOwned,
{
    let route = j!({
        "metadata": {"generation": 3, "uid": format!("uid-{name}")},
        "spec": {"parentRefs": parents, "rules": rules},
    });
    mk(namespace, name, route)
}

fn mk_server(name: &str, created: &str, spec: Value) -> Server {
    let mut whole = j!({"podSelector": {}, "port": 8080});
    merge(&mut whole, spec);
    mk(
        "ns",
        name,
        j!({"metadata": {"creationTimestamp": created}, "spec": whole}),
    )
}

const OLD: &str = "2025-01-01T00:00:00Z";
const NEW: &str = "2026-02-01T00:00:00Z";

#[test]
fn a_route_is_accepted_by_a_service_that_is_there() {
    let cluster = cluster();
    let backend = j!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    cluster.apply(&mk_route::<HttpRoute>("ns", "r", j!([service("web")]), backend));
    assert_eq!(
        said(&cluster, Subject::PolicyHttpRoute, "r"),
        [[
            "Accepted=false/NoMatchingParent",
            "ResolvedRefs=false/BackendNotFound"
        ]]
    );
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    assert_eq!(
        said(&cluster, Subject::PolicyHttpRoute, "r"),
        [["Accepted=true/Accepted", "ResolvedRefs=true/ResolvedRefs"]]
    );
    let judgement = cluster.judgements().remove(0);
    assert_eq!(judgement.uid, "uid-r");
    let Status::Parents(parents) = judgement.status else {
        panic!("a route's status has parents")
    };
    assert!(
        parents[0]
            .conditions
            .iter()
            .all(|condition| condition.observed_generation == 3)
    );
    assert_eq!(
        serde_json::to_value(&parents[0].parent_ref).expect("JSON"),
        service("web")
    );
    cluster.remove::<Service>("ns", "web");
    assert_eq!(
        said(&cluster, Subject::PolicyHttpRoute, "r")[0][0],
        "Accepted=false/NoMatchingParent"
    );
}

#[test]
fn a_status_that_says_it_all_is_left_alone() {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    let condition = |type_: &str| j!({"type": type_, "status": "True", "reason": type_, "message": "", "observedGeneration": 3, "lastTransitionTime": OLD});
    let mut route = j!({
        "metadata": {"generation": 3},
        "spec": {"parentRefs": [service("web")]},
        "status": {"parents": [
            {"parentRef": {"name": "gw"}, "controllerName": "example.com/gateway", "conditions": []},
            {"parentRef": service("web"), "controllerName": "linkerd.io/policy-controller", "conditions": [condition("Accepted"), condition("ResolvedRefs")]},
        ]},
    });
    cluster.apply(&mk::<GatewayHttpRoute>("ns", "r", route.clone()));
    assert_eq!(cluster.judgements(), []);
    // A new generation has to be looked at, and said so.
    merge(&mut route, j!({"metadata": {"generation": 4}}));
    cluster.apply(&mk::<GatewayHttpRoute>("ns", "r", route));
    assert_eq!(cluster.judgements().len(), 1);
}

#[test]
fn parents_of_other_controllers_get_no_entry_and_ours_that_are_gone_lose_theirs() {
    let cluster = cluster();
    let gateway = j!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}]);
    cluster.apply(&mk_route::<GatewayHttpRoute>("ns", "r", gateway.clone(), j!([])));
    assert_eq!(cluster.judgements(), []);
    let stale = j!({
        "spec": {"parentRefs": gateway},
        "status": {"parents": [{"parentRef": service("web"), "controllerName": "linkerd.io/policy-controller", "conditions": []}]},
    });
    cluster.apply(&mk::<GatewayHttpRoute>("ns", "r", stale));
    assert_eq!(cluster.judgements()[0].status, Status::Parents(Vec::new()));
}

#[test]
fn a_service_without_an_address_or_the_port_takes_no_routes() {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "headless", "None"));
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    let other_port = j!({"group": "", "kind": "Service", "name": "web", "port": 81});
    cluster.apply(&mk_route::<HttpRoute>(
        "ns",
        "r",
        j!([service("headless"), other_port]),
        j!([]),
    ));
    let all = said(&cluster, Subject::PolicyHttpRoute, "r");
    assert_eq!(
        all.iter().map(|one| one[0].as_str()).collect::<Vec<_>>(),
        ["Accepted=false/NoMatchingParent"; 2]
    );
    let text = messages(&cluster, Subject::PolicyHttpRoute, "r");
    assert!(
        text.contains("must have a ClusterIP") && text.contains("no TCP port 81"),
        "{text}"
    );
}

#[test]
fn a_server_takes_routes_of_its_own_namespace() {
    let cluster = cluster();
    let parents = j!([{"name": "web"}, {"name": "web", "namespace": "other"}]);
    cluster.apply(&mk_route::<HttpRoute>("ns", "r", parents, j!([])));
    assert_eq!(
        said(&cluster, Subject::PolicyHttpRoute, "r")[0],
        ["Accepted=false/NoMatchingParent"]
    );
    cluster.apply(&mk_server("web", OLD, j!({})));
    cluster.apply(&mk::<Server>(
        "other",
        "web",
        j!({"spec": {"podSelector": {}, "port": 1}}),
    ));
    assert_eq!(
        said(&cluster, Subject::PolicyHttpRoute, "r"),
        [["Accepted=true/Accepted"], ["Accepted=false/NoMatchingParent"]]
    );
}

#[test]
fn what_cannot_be_carried_out_is_named() {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    let rules = j!([{"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}]);
    cluster.apply(&mk_route::<HttpRoute>("ns", "r", j!([service("web")]), rules));
    assert_eq!(
        said(&cluster, Subject::PolicyHttpRoute, "r")[0][0],
        "Accepted=false/UnsupportedValue"
    );
    assert!(messages(&cluster, Subject::PolicyHttpRoute, "r").contains("regular expression"));
}

#[test]
fn backends_are_judged_by_kind_then_by_presence() {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    cluster.apply(&mk::<EgressNetwork>(
        "ns",
        "out",
        j!({"spec": {"trafficPolicy": "Allow"}}),
    ));
    let resolved = |backend: Value| {
        let rules = j!([{"backendRefs": [backend]}]);
        cluster.apply(&mk_route::<HttpRoute>("ns", "r", j!([service("web")]), rules));
        said(&cluster, Subject::PolicyHttpRoute, "r")[0][1].clone()
    };
    assert_eq!(
        resolved(j!({"name": "web", "port": 80})),
        "ResolvedRefs=true/ResolvedRefs"
    );
    assert_eq!(
        resolved(j!({"name": "web", "port": 81})),
        "ResolvedRefs=false/BackendNotFound"
    );
    assert_eq!(
        resolved(j!({"name": "web", "namespace": "other", "port": 80})),
        "ResolvedRefs=false/BackendNotFound"
    );
    assert_eq!(
        resolved(j!({"group": "example.com", "kind": "Bucket", "name": "b"})),
        "ResolvedRefs=false/InvalidKind"
    );
    let egress = j!({"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "out", "port": 80});
    assert_eq!(resolved(egress.clone()), "ResolvedRefs=false/InvalidKind");
    let rules = j!([{"backendRefs": [egress.clone()]}]);
    cluster.apply(&mk_route::<HttpRoute>("ns", "r", j!([egress]), rules));
    assert_eq!(
        said(&cluster, Subject::PolicyHttpRoute, "r"),
        [["Accepted=true/Accepted", "ResolvedRefs=true/ResolvedRefs"]]
    );
}

#[test]
fn the_more_specific_kind_of_route_wins_a_parent() {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    cluster.apply(&mk_route::<GatewayHttpRoute>(
        "ns",
        "http",
        j!([service("web")]),
        j!([]),
    ));
    let accepted = || said(&cluster, Subject::HttpRoute, "http")[0][0].clone();
    assert_eq!(accepted(), "Accepted=true/Accepted");
    // One for another port does not touch it, nor does a stranger's.
    let other_port = j!({"group": "core", "kind": "Service", "name": "web", "port": 81});
    cluster.apply(&mk_route::<GrpcRoute>("ns", "grpc", j!([other_port]), j!([])));
    let theirs = j!({"group": "core", "kind": "Service", "name": "web", "namespace": "ns", "port": 80});
    cluster.apply(&mk_route::<GrpcRoute>("stranger", "grpc", j!([theirs]), j!([])));
    assert_eq!(accepted(), "Accepted=true/Accepted");
    cluster.apply(&mk_route::<GrpcRoute>("ns", "grpc", j!([service("web")]), j!([])));
    assert_eq!(accepted(), "Accepted=false/RouteReasonConflicted");
    assert_eq!(
        said(&cluster, Subject::GrpcRoute, "grpc")[0][0],
        "Accepted=true/Accepted"
    );
    cluster.remove::<GrpcRoute>("ns", "grpc");
    assert_eq!(accepted(), "Accepted=true/Accepted");
}

#[test]
fn an_egress_network_must_keep_out_of_the_cluster_to_take_routes() {
    let cluster = cluster();
    let network = |networks: Value| {
        let spec = j!({"trafficPolicy": "Deny", "networks": networks});
        cluster.apply(&mk::<EgressNetwork>("ns", "out", j!({"spec": spec})));
    };
    let parent = j!([{"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "out", "port": 443}]);
    cluster.apply(&mk_route::<HttpRoute>("ns", "r", parent, j!([])));
    network(j!([{"cidr": "0.0.0.0/0"}]));
    assert_eq!(
        said(&cluster, Subject::EgressNetwork, "out"),
        [["Accepted=false/EgressReasonNetworkOverlap"]]
    );
    assert_eq!(
        said(&cluster, Subject::PolicyHttpRoute, "r")[0][0],
        "Accepted=false/NoMatchingParent"
    );
    let clear = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16"];
    network(j!([{"cidr": "0.0.0.0/0", "except": clear}]));
    assert_eq!(
        said(&cluster, Subject::EgressNetwork, "out"),
        [["Accepted=true/Accepted"]]
    );
    assert_eq!(
        said(&cluster, Subject::PolicyHttpRoute, "r")[0][0],
        "Accepted=true/Accepted"
    );
}

#[test]
fn of_two_rate_limits_the_older_is_in_force() {
    let cluster = cluster();
    let limit = |name: &str, created: &str| {
        let target = j!({"group": "policy.linkerd.io", "kind": "Server", "name": "web"});
        let spec = j!({"targetRef": target, "total": {"requestsPerSecond": 5}});
        cluster.apply(&mk::<HttpLocalRateLimitPolicy>(
            "ns",
            name,
            j!({"metadata": {"creationTimestamp": created}, "spec": spec}),
        ));
    };
    limit("a", NEW);
    assert_eq!(
        said(&cluster, Subject::RateLimit, "a"),
        [["Accepted=false/NoMatchingTarget"]]
    );
    cluster.apply(&mk_server("web", OLD, j!({})));
    assert_eq!(
        said(&cluster, Subject::RateLimit, "a"),
        [["Accepted=true/Accepted"]]
    );
    limit("b", OLD);
    assert_eq!(
        said(&cluster, Subject::RateLimit, "a"),
        [["Accepted=false/RateLimitReasonAlreadyExists"]]
    );
    assert_eq!(
        said(&cluster, Subject::RateLimit, "b"),
        [["Accepted=true/Accepted"]]
    );
    let Some(Status::OfTarget(_, target)) = cluster
        .judgements()
        .into_iter()
        .find(|one| *one.key.name == *"b")
        .map(|one| one.status)
    else {
        panic!("a rate limit's status has a target")
    };
    assert_eq!(target.as_deref(), Some("web"));
}

#[test]
fn the_server_that_loses_a_port_is_told_by_whom_and_where() {
    let cluster = web();
    cluster.apply(&mk_server("b-new", NEW, j!({"port": "http"})));
    assert_eq!(
        said(&cluster, Subject::Server, "b-new"),
        [["Conflicted=false/NoConflicts"]]
    );
    assert_eq!(cluster.notices(), []);
    cluster.apply(&mk_server("a-old", OLD, j!({})));
    assert_eq!(
        said(&cluster, Subject::Server, "a-old"),
        [["Conflicted=false/NoConflicts"]]
    );
    assert_eq!(
        said(&cluster, Subject::Server, "b-new"),
        [["Conflicted=true/ServerOverlap"]]
    );
    let notices = cluster.notices();
    assert_eq!(
        (notices.len(), notices[0].reason, &*notices[0].key.name),
        (1, "ServerOverlap", "b-new")
    );
    assert!(
        notices[0].note.contains("Server a-old") && notices[0].note.contains("port 8080"),
        "{}",
        notices[0].note
    );
    // Without pods that both select there is nothing to lose.
    cluster.remove::<Pod>("ns", "web-0");
    assert_eq!(
        said(&cluster, Subject::Server, "b-new"),
        [["Conflicted=false/NoConflicts"]]
    );
}

#[test]
fn an_authorization_policy_says_what_is_missing() {
    let cluster = cluster();
    let policy = |target: Value, requires: Value| {
        cluster.apply(&mk::<AuthorizationPolicy>(
            "ns",
            "p",
            j!({"spec": {"targetRef": target, "requiredAuthenticationRefs": requires}}),
        ));
    };
    let server = j!({"group": "policy.linkerd.io", "kind": "Server", "name": "web"});
    let clients = j!([{"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "clients"}]);
    policy(server.clone(), clients.clone());
    assert_eq!(
        said(&cluster, Subject::AuthorizationPolicy, "p"),
        [[
            "Accepted=false/NoMatchingTarget",
            "ResolvedRefs=false/AuthenticationNotFound"
        ]]
    );
    assert_eq!(
        cluster.notices().iter().map(|one| one.reason).collect::<Vec<_>>(),
        ["NoMatchingTarget", "AuthenticationNotFound"]
    );
    cluster.apply(&mk_server("web", OLD, j!({})));
    cluster.apply(&mk::<MeshTLSAuthentication>(
        "ns",
        "clients",
        j!({"spec": {"identities": ["*"]}}),
    ));
    assert_eq!(
        said(&cluster, Subject::AuthorizationPolicy, "p"),
        [["Accepted=true/Accepted", "ResolvedRefs=true/ResolvedRefs"]]
    );
    policy(j!({"kind": "Namespace", "name": "other"}), clients);
    assert_eq!(
        said(&cluster, Subject::AuthorizationPolicy, "p")[0][0],
        "Accepted=false/Invalid"
    );
    policy(
        j!({"kind": "Namespace", "name": "ns"}),
        j!([{"kind": "ServiceAccount", "name": "anyone"}]),
    );
    assert_eq!(
        said(&cluster, Subject::AuthorizationPolicy, "p")[0][0],
        "Accepted=true/Accepted"
    );
    assert_eq!(cluster.notices(), []);
}

#[test]
fn what_is_written_wakes_nobody_twice() {
    fn wakes<K: Tracked>(cluster: &Cluster, object: &K) -> bool {
        let before = *cluster.judged().borrow();
        cluster.apply(object);
        *cluster.judged().borrow() != before
    }
    let cluster = web();
    let route = mk_route::<HttpRoute>("ns", "r", j!([service("web")]), j!([]));
    assert!(wakes(&cluster, &route));
    assert!(!wakes(&cluster, &route), "the same again");
    assert!(
        !wakes(&cluster, &mk_slice("ns", "web", &[])),
        "no status depends on slices"
    );
    cluster.remove::<HttpRoute>("ns", "r");
    assert_eq!(cluster.judgements(), []);
}

#[test]
fn annotations_that_do_nothing_are_told_on_their_object() {
    let cluster = cluster();
    let annotated = |value: &str| {
        let annotations = j!({"retry.linkerd.io/http": value});
        mk_service_with(
            "ns",
            "web",
            "10.96.0.1",
            j!({"metadata": {"annotations": annotations}}),
        )
    };
    cluster.apply(&annotated("5xx"));
    assert_eq!(cluster.notices(), []);
    cluster.apply(&annotated("often"));
    let notices = cluster.notices();
    assert_eq!(
        (notices.len(), notices[0].subject, notices[0].reason),
        (1, Subject::Service, "InvalidAnnotation")
    );
    assert!(
        notices[0].note.contains("retry.linkerd.io/http"),
        "{}",
        notices[0].note
    );
    assert_eq!(cluster.judgements(), [], "a Service has no conditions of ours");
    cluster.remove::<Service>("ns", "web");
    assert_eq!(cluster.notices(), []);
}
