//! What is refused, and what is only warned of, kind by kind.

mod routes;

use heddle_control_index::Config;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::*;

const POLICY: &str = "policy.linkerd.io/v1alpha1";
const GATEWAY: &str = "gateway.networking.k8s.io/v1";

fn validator() -> Validator {
    Validator {
        cluster: Cluster::new(Config::default()),
        metrics: Metrics::register(&mut Registry::default()),
    }
}

fn object(spec: &Value) -> Value {
    json!({"metadata": {"name": "test", "namespace": "shop"}, "spec": spec})
}

fn judge_in(validator: &Validator, api_version: &str, kind: &str, object: &Value) -> Verdict {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": "CREATE", "namespace": "shop", "name": "test",
            "kind": {"group": group, "version": version, "kind": kind}, "object": object,
        },
    });
    let body = serde_json::to_vec(&review).expect("JSON");
    validator.judge(&Request::read(&body).expect("a review"))
}

fn judge(api_version: &str, kind: &str, spec: &Value) -> Verdict {
    judge_in(&validator(), api_version, kind, &object(spec))
}

#[track_caller]
fn admitted(api_version: &str, kind: &str, spec: &Value) {
    assert_eq!(
        judge(api_version, kind, spec),
        Verdict::default(),
        "{kind} {spec}"
    );
}

#[track_caller]
fn warned(api_version: &str, kind: &str, spec: &Value, words: &str) {
    let Verdict { problems, warnings } = judge(api_version, kind, spec);
    assert_eq!(problems, [""; 0], "{kind} {spec}");
    assert!(
        warnings.iter().any(|text| text.contains(words)),
        "{kind} {spec}: {warnings:?} without {words}"
    );
}

#[track_caller]
fn refused(api_version: &str, kind: &str, spec: &Value, words: &str) {
    let reason = judge(api_version, kind, spec).denial();
    assert!(
        reason.as_ref().is_some_and(|reason| reason.contains(words)),
        "{kind} {spec}: {reason:?} without {words}"
    );
}

#[test]
fn servers() {
    let kind = "Server";
    admitted(POLICY, kind, &json!({"podSelector": {}, "port": 80}));
    admitted(
        POLICY,
        kind,
        &json!({"externalWorkloadSelector": {"matchLabels": {"a": "b"}}, "port": "http"}),
    );
    refused(POLICY, kind, &json!({"port": 80}), "exactly one of podSelector");
    let both = json!({"port": 80, "podSelector": {}, "externalWorkloadSelector": {}});
    refused(POLICY, kind, &both, "exclude each other");
    refused(
        POLICY,
        kind,
        &json!({"podSelector": {}, "port": 80, "proxyProtocol": "garbanzo"}),
        "garbanzo",
    );
    refused(
        POLICY,
        kind,
        &json!({"podSelector": {}, "port": 80, "accessPolicy": "foobar"}),
        "foobar",
    );
    warned(
        POLICY,
        kind,
        &json!({"podSelector": {}, "port": "80"}),
        "without quotes",
    );
    let empty = json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}]}, "port": 80});
    warned(POLICY, kind, &empty, "selects nothing");
}

#[test]
fn overlapping_servers_are_named_in_a_warning() {
    let validator = validator();
    let server = |name: &str, spec: Value| -> PolicyServer {
        let metadata = json!({"name": name, "namespace": "shop"});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).expect("a Server")
    };
    let app = |value: &str| json!({"matchLabels": {"app": value}});
    validator
        .cluster
        .apply(&server("old", json!({"podSelector": app("web"), "port": 8080})));
    validator
        .cluster
        .apply(&server("test", json!({"podSelector": app("web"), "port": 8080})));
    let warnings = |spec: Value| judge_in(&validator, POLICY, "Server", &object(&spec)).warnings;
    // Itself is not another one, and what selects nothing of the same is not in the way.
    assert_eq!(warnings(json!({"podSelector": app("db"), "port": 8080})), [""; 0]);
    assert_eq!(
        warnings(json!({"podSelector": app("web"), "port": 8081})),
        [""; 0]
    );
    for overlapping in [app("web"), json!({})] {
        let said = warnings(json!({"podSelector": overlapping, "port": 8080}));
        assert!(
            matches!(&said[..], [one] if one.contains("Server old selects")),
            "{said:?}"
        );
    }
    // By a name and by a number, and by different labels: only the pod tells.
    let by_name = json!({"podSelector": {"matchLabels": {"tier": "front"}}, "port": "http"});
    assert_eq!(warnings(by_name.clone()), [""; 0]);
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web", "tier": "front"}},
        "spec": {"containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
    }))
    .expect("a pod");
    validator.cluster.apply(&pod);
    assert_eq!(warnings(by_name).len(), 1);
}

#[test]
fn server_authorizations() {
    let kind = "ServerAuthorization";
    let spec = |client: Value| json!({"server": {"name": "a"}, "client": client});
    admitted(POLICY, kind, &spec(json!({"unauthenticated": true})));
    admitted(
        POLICY,
        kind,
        &spec(json!({"meshTLS": {"unauthenticatedTLS": true}})),
    );
    admitted(
        POLICY,
        kind,
        &spec(json!({"networks": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]})),
    );
    refused(
        POLICY,
        kind,
        &json!({"server": {}, "client": {}}),
        "exactly one of name and selector",
    );
    refused(
        POLICY,
        kind,
        &spec(json!({"unauthenticated": true, "meshTLS": {}})),
        "exclude each other",
    );
    let both = json!({"meshTLS": {"unauthenticatedTLS": true, "identities": ["*"]}});
    refused(POLICY, kind, &spec(both), "excludes identities");
    let out = json!({"networks": [{"cidr": "10.0.0.0/8", "except": ["192.168.0.0/16"]}]});
    refused(POLICY, kind, &spec(out), "no part of 10.0.0.0/8");
}

#[test]
fn authorization_policies() {
    let kind = "AuthorizationPolicy";
    let policy = "policy.linkerd.io";
    let server = json!({"group": policy, "kind": "Server", "name": "a"});
    let spec = |target: &Value, required: Value| json!({"targetRef": target, "requiredAuthenticationRefs": required});
    let tls = json!({"group": policy, "kind": "MeshTLSAuthentication", "name": "a"});
    let network = json!({"group": policy, "kind": "NetworkAuthentication", "name": "a"});
    let account = json!({"kind": "ServiceAccount", "name": "a", "namespace": "other"});
    admitted(POLICY, kind, &spec(&server, json!([])));
    admitted(POLICY, kind, &spec(&server, json!([tls, network])));
    admitted(POLICY, kind, &spec(&server, json!([account, network])));
    admitted(
        POLICY,
        kind,
        &spec(&json!({"kind": "Namespace", "name": "shop"}), json!([tls])),
    );
    for route in [
        (policy, "HTTPRoute"),
        ("gateway.networking.k8s.io", "HTTPRoute"),
        ("gateway.networking.k8s.io", "GRPCRoute"),
    ] {
        admitted(
            POLICY,
            kind,
            &spec(
                &json!({"group": route.0, "kind": route.1, "name": "a"}),
                json!([tls]),
            ),
        );
    }
    refused(
        POLICY,
        kind,
        &spec(&json!({"kind": "Namespace", "name": "other"}), json!([])),
        "only its own",
    );
    refused(
        POLICY,
        kind,
        &spec(
            &json!({"group": "apps", "kind": "Deployment", "name": "a"}),
            json!([]),
        ),
        "cannot be a target",
    );
    refused(
        POLICY,
        kind,
        &spec(&server, json!([tls, tls])),
        "only one MeshTLSAuthentication",
    );
    refused(
        POLICY,
        kind,
        &spec(&server, json!([tls, account])),
        "only one MeshTLSAuthentication",
    );
    refused(
        POLICY,
        kind,
        &spec(&server, json!([network, network])),
        "only one NetworkAuthentication",
    );
    refused(
        POLICY,
        kind,
        &spec(&server, json!([{"kind": "Secret", "name": "a"}])),
        "is no authentication",
    );
    refused(
        POLICY,
        kind,
        &json!({"targetRef": server}),
        "requiredAuthenticationRefs",
    );
}

#[test]
fn authentications() {
    let kind = "MeshTLSAuthentication";
    admitted(
        POLICY,
        kind,
        &json!({"identities": ["*", "spiffe://root.example.com/a"]}),
    );
    admitted(
        POLICY,
        kind,
        &json!({"identityRefs": [{"kind": "ServiceAccount", "name": "a"}, {"kind": "Namespace", "name": "b"}]}),
    );
    let both = json!({"identities": ["*"], "identityRefs": [{"kind": "ServiceAccount"}]});
    refused(POLICY, kind, &both, "exclude each other");
    refused(
        POLICY,
        kind,
        &json!({"identityRefs": [{"kind": "Pod", "name": "a"}]}),
        "is no identity",
    );
    let namespaced = json!({"identityRefs": [{"kind": "Namespace", "name": "a", "namespace": "b"}]});
    refused(POLICY, kind, &namespaced, "leave out `namespace`");

    let kind = "NetworkAuthentication";
    let one = |cidr: &str, except: Value| json!({"networks": [{"cidr": cidr, "except": except}]});
    admitted(
        POLICY,
        kind,
        &one("10.0.0.0/8", json!(["10.0.0.1", "10.1.0.0/16"])),
    );
    admitted(POLICY, kind, &one("fd00::/8", json!([])));
    refused(POLICY, kind, &json!({"networks": []}), "at least one network");
    refused(POLICY, kind, &one("10.0.0.0/33", json!([])), "is not a network");
    refused(
        POLICY,
        kind,
        &one("10.0.0.0/8", json!(["10.0.0.0/7"])),
        "leaves nothing",
    );
    refused(
        POLICY,
        kind,
        &one("10.0.0.0/8", json!(["10.0.0.0/8"])),
        "leaves nothing",
    );
    refused(
        POLICY,
        kind,
        &one("10.0.0.0/8", json!(["fd00::/8"])),
        "no part of",
    );

    let kind = "EgressNetwork";
    admitted(POLICY, kind, &json!({"trafficPolicy": "Allow"}));
    let with = |networks: Value| json!({"trafficPolicy": "Deny", "networks": networks});
    admitted(POLICY, kind, &with(json!([{"cidr": "192.0.2.0/24"}])));
    refused(POLICY, kind, &with(json!([])), "at least one network");
    refused(
        POLICY,
        kind,
        &with(json!([{"cidr": "192.0.2.0/24", "except": ["192.0.3.1"]}])),
        "no part of",
    );
    refused(POLICY, kind, &json!({"trafficPolicy": "Maybe"}), "Maybe");
}

#[test]
fn rate_limits() {
    let kind = "HTTPLocalRateLimitPolicy";
    let server = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "a"});
    let limits = |total: u32, identity: u32, special: u32| {
        json!({
            "targetRef": server, "total": {"requestsPerSecond": total}, "identity": {"requestsPerSecond": identity},
            "overrides": [{"requestsPerSecond": special, "clientRefs": [{"kind": "ServiceAccount", "name": "a"}]}],
        })
    };
    admitted(POLICY, kind, &limits(100, 10, 100));
    refused(
        POLICY,
        kind,
        &limits(100, 101, 1),
        "spec.identity.requestsPerSecond must not be above",
    );
    refused(
        POLICY,
        kind,
        &limits(100, 1, 101),
        "spec.overrides[0].requestsPerSecond must not be above",
    );
    refused(POLICY, kind, &limits(0, 0, 0), "zero");
    refused(
        POLICY,
        kind,
        &json!({"targetRef": {"kind": "Service", "name": "a"}}),
        "expected a Server",
    );
    let client = json!({"targetRef": server, "overrides": [{"requestsPerSecond": 1, "clientRefs": [{"kind": "Pod", "name": "a"}]}]});
    refused(POLICY, kind, &client, "is no client");
}

#[test]
fn what_goes_away_is_not_judged_and_other_kinds_are_refused() {
    refused(
        "apps/v1",
        "Deployment",
        &json!({}),
        "apps/Deployment is not supported",
    );
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u", "operation": "DELETE", "kind": {"group": "policy.linkerd.io", "version": "v1beta3", "kind": "Server"},
            "object": null,
        },
    });
    let answer = futures_util::FutureExt::now_or_never(validator().answer(review.to_string().as_bytes()));
    let answer: Value = serde_json::from_slice(&answer.expect("at once").expect("answered")).expect("JSON");
    assert_eq!(answer["response"], json!({"uid": "u", "allowed": true}));
}

#[test]
fn a_refusal_is_bounded_and_says_which_object_field() {
    let long = "x".repeat(5000);
    let rules: Vec<_> = (0..50)
        .map(|_| json!({"matches": [{"path": {"value": long}}]}))
        .collect();
    let answer = Answer {
        denied: judge(GATEWAY, "HTTPRoute", &json!({"rules": rules})).denial(),
        ..Answer::default()
    };
    let answer: Value = serde_json::from_slice(&answer.to_json("u")).expect("JSON");
    let status = &answer["response"]["status"];
    assert_eq!(
        (&answer["response"]["allowed"], &status["code"]),
        (&json!(false), &json!(422))
    );
    let message = status["message"].as_str().expect("a message");
    assert!(
        message.len() < 2100 && message.starts_with("spec.rules[0].matches[0].path.value"),
        "{message}"
    );
}
