//! Heddle's own proxy reads what Heddle's control plane writes: no message is refused, and each means what the cluster
//! says. The proxy's reader is as strict as Linkerd's, which drops a whole policy for one missing field.

use std::net::SocketAddr;

use gateway_api::apis::experimental::{
    grpcroutes::GrpcRoute, httproutes::HttpRoute as GatewayHttpRoute, tcproutes::TcpRoute,
    tlsroutes::TlsRoute,
};
use heddle_control_index::{Cluster, Config, Tracked};
use heddle_k8s::policy::{
    AuthorizationPolicy, EgressNetwork, HttpLocalRateLimitPolicy, HttpRoute, MeshTLSAuthentication,
    NetworkAuthentication, Server,
};
use heddle_proxy_policy::{
    Client, ClientPolicy, ClientTls, Endpoint, EndpointSet, Profile, ServerPolicy, outbound::Protocol,
};
use heddle_wire::{Extension, PolicyMessage};
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::{
    core::v1::{Pod, Service},
    discovery::v1::EndpointSlice,
};
use linkerd2_proxy_api::{
    destination::{DestinationProfile, GetDestination},
    inbound::PortSpec,
    outbound::{TrafficSpec, traffic_spec},
};
use prost::Message;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tonic::body::Body;

use super::{
    Destination, Inbound, Outbound,
    frame::{frame, unframe},
    rpc::Methods,
};
use crate::metrics::GrpcMetrics;

struct World {
    cluster: Cluster,
}

impl World {
    /// A service `web` of `ns`, and a meshed pod `web-0` behind it.
    fn new() -> Self {
        let world = Self {
            cluster: Cluster::new(Config::default()),
        };
        world.apply::<Service>("web", json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}}));
        world.apply::<Pod>("web-0", json!({
            "metadata": {"labels": {"app": "web", "linkerd.io/control-plane-ns": "linkerd"}},
            "spec": {"containers": [
                {"name": "app", "ports": [{"name": "http", "containerPort": 8080}], "livenessProbe": {"httpGet": {"path": "/live", "port": 8080}}},
                {"name": "linkerd-proxy", "env": [{"name": "LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "value": "[::]:4143"}]},
            ]},
            "status": {"phase": "Running", "podIP": "10.1.0.1"},
        }));
        world.apply::<EndpointSlice>("web-1", json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.1.0.1"], "zone": "z", "targetRef": {"kind": "Pod", "namespace": "ns", "name": "web-0"}}],
        }));
        world
    }

    fn apply<K: Tracked + DeserializeOwned>(&self, name: &str, object: Value) {
        self.apply_in::<K>("ns", name, object);
    }

    fn apply_in<K: Tracked + DeserializeOwned>(&self, namespace: &str, name: &str, mut object: Value) {
        object["apiVersion"] = K::api_version(&()).into();
        object["kind"] = K::kind(&()).into();
        object["metadata"]["namespace"] = namespace.into();
        object["metadata"]["name"] = name.into();
        self.cluster
            .apply(&serde_json::from_value::<K>(object).expect("an object of this kind"));
    }

    async fn server(&self, port: u16) -> ServerPolicy {
        let spec = PortSpec {
            workload: "ns:web-0".into(),
            port: port.into(),
        };
        let service = Inbound::new(self.cluster.clone(), GrpcMetrics::default());
        let message: linkerd2_proxy_api::inbound::Server = ask(service, "GetPort", spec).await;
        ServerPolicy::try_from(message).expect("the proxy takes the message")
    }

    async fn client(&self, target: traffic_spec::Target) -> ClientPolicy {
        self.extended(target).await.0
    }

    /// The policy as the proxy reads it, and the extension, which must fit it.
    async fn extended(&self, target: traffic_spec::Target) -> (ClientPolicy, Extension) {
        let spec = TrafficSpec {
            source_workload: "client:p".into(),
            target: Some(target),
        };
        let service = Outbound::new(
            self.cluster.clone(),
            "cluster.local".into(),
            GrpcMetrics::default(),
        );
        let message: PolicyMessage = ask(service, "Get", spec).await;
        let (policy, extension) = message.into_parts().expect("the extension fits its policy");
        let policy = ClientPolicy::try_from(policy).expect("the proxy takes the message");
        (policy, extension)
    }

    fn destination(&self) -> Destination<Cluster> {
        Destination::new(
            self.cluster.clone(),
            "cluster.local".into(),
            GrpcMetrics::default(),
        )
    }
}

/// Calls a method as a client would, and reads the first message of the answer.
async fn ask<M: Methods, T: Message + Default>(service: M, method: &str, message: impl Message) -> T {
    let body = Body::new(Full::new(frame(&message)));
    let answer = service.call(method, http::Request::new(body)).await;
    let mut body = answer.expect("what is asked for is known").into_body();
    let first = body.frame().await.expect("a message").expect("no error");
    unframe(&first.into_data().expect("a message comes first"))
}

fn addr(text: &str) -> traffic_spec::Target {
    traffic_spec::Target::Addr(text.parse::<SocketAddr>().expect("an address").into())
}

fn meshed(identity: &str) -> Client {
    let tls = ClientTls::Established(Some(identity.parse().expect("an identity")));
    Client {
        addr: "10.1.0.9".parse().expect("an address"),
        tls,
    }
}

fn plain(ip: &str) -> Client {
    Client {
        addr: ip.parse().expect("an address"),
        tls: ClientTls::None,
    }
}

const CHECKOUT: &str = "checkout.ns.serviceaccount.identity.linkerd.cluster.local";

#[tokio::test]
async fn each_default_policy_lets_in_whom_it_names() {
    for (policy, anyone, insider, identity) in [
        ("all-unauthenticated", true, true, true),
        ("all-authenticated", false, false, true),
        ("cluster-unauthenticated", false, true, true),
        ("cluster-authenticated", false, false, true),
        ("audit", true, true, true),
        ("deny", false, false, false),
    ] {
        let world = World {
            cluster: Cluster::new(Config {
                default_policy: policy.parse().expect("a policy"),
                ..Config::default()
            }),
        };
        world.apply::<Pod>("web-0", json!({"status": {"podIP": "10.1.0.1"}}));
        let server = world.server(8080).await;
        let admitted = |client: &Client| server.authorize(client).is_ok();
        assert_eq!(
            (
                admitted(&plain("192.0.2.1")),
                admitted(&plain("10.1.0.9")),
                admitted(&meshed(CHECKOUT))
            ),
            (anyone, insider, identity),
            "{policy}"
        );
    }
}

#[tokio::test]
async fn the_seeds_policy_admits_the_identity_it_names_and_no_other() {
    let world = World::new();
    world.apply::<Server>(
        "web",
        json!({"spec": {"podSelector": {}, "port": "http", "proxyProtocol": "HTTP/2"}}),
    );
    world.apply::<MeshTLSAuthentication>("checkout", json!({"spec": {"identities": [CHECKOUT]}}));
    world.apply::<AuthorizationPolicy>("allow", json!({"spec": {
        "targetRef": {"group": "policy.linkerd.io", "kind": "Server", "name": "web"},
        "requiredAuthenticationRefs": [{"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "checkout"}],
    }}));
    let server = world.server(8080).await;
    // Requests are judged where a port is told to speak HTTP, and nothing else is let in.
    let request = http::Request::new(());
    let admitted = |client: &Client| server.authorize_request(client, &request).is_ok();
    assert!(admitted(&meshed(CHECKOUT)));
    assert!(!admitted(&meshed(
        "other.ns.serviceaccount.identity.linkerd.cluster.local"
    )));
    assert!(!admitted(&plain("10.1.0.9")));
    assert!(server.authorize(&meshed(CHECKOUT)).is_err());
}

#[tokio::test]
async fn a_namespace_reference_admits_all_of_its_accounts() {
    let world = World::new();
    world.apply::<Server>("web", json!({"spec": {"podSelector": {}, "port": "http"}}));
    world.apply::<MeshTLSAuthentication>(
        "m",
        json!({"spec": {"identityRefs": [{"kind": "Namespace", "name": "ns"}]}}),
    );
    world.apply::<NetworkAuthentication>(
        "n",
        json!({"spec": {"networks": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.9/32"]}]}}),
    );
    let policy = |references: Value| {
        world.apply::<AuthorizationPolicy>(
            "allow",
            json!({"spec": {
                "targetRef": {"group": "policy.linkerd.io", "kind": "Server", "name": "web"},
                "requiredAuthenticationRefs": references,
            }}),
        );
    };
    let mesh = json!({"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "m"});
    let network = json!({"group": "policy.linkerd.io", "kind": "NetworkAuthentication", "name": "n"});
    policy(json!([mesh]));
    assert!(world.server(8080).await.authorize(&meshed(CHECKOUT)).is_ok());
    assert!(
        world
            .server(8080)
            .await
            .authorize(&meshed("a.other.serviceaccount.identity.linkerd.cluster.local"))
            .is_err()
    );
    policy(json!([mesh, network]));
    assert!(
        world.server(8080).await.authorize(&meshed(CHECKOUT)).is_err(),
        "from an excepted address"
    );
}

#[tokio::test]
async fn every_kind_of_server_and_inbound_route_is_read() {
    let world = World::new();
    world.apply::<HttpLocalRateLimitPolicy>(
        "limit",
        json!({"spec": {
            "targetRef": {"group": "policy.linkerd.io", "kind": "Server", "name": "web"},
            "total": {"requestsPerSecond": 10},
            "identity": {"requestsPerSecond": 5},
            "overrides": [{"requestsPerSecond": 7, "clientRefs": [{"kind": "ServiceAccount", "name": "a"}]}],
        }}),
    );
    let parents = json!([{"group": "policy.linkerd.io", "kind": "Server", "name": "web"}]);
    let rules = json!([full_rule("RequestRedirect"), full_rule("RequestHeaderModifier")]);
    world.apply::<GrpcRoute>(
        "grpc",
        json!({"spec": {"parentRefs": parents, "rules": [{"matches": [{"method": {"service": "a.B"}}]}]}}),
    );
    for routed in [false, true] {
        if routed {
            world.apply::<HttpRoute>(
                "http",
                json!({"spec": {"parentRefs": parents, "hostnames": ["a.b", "*.c.d"], "rules": rules}}),
            );
        }
        for protocol in ["unknown", "HTTP/1", "HTTP/2", "gRPC", "opaque", "TLS"] {
            world.apply::<Server>(
                "web",
                json!({"spec": {"podSelector": {}, "port": "http", "proxyProtocol": protocol}}),
            );
            let server = world.server(8080).await;
            assert_eq!(server.authorizations.len(), 0, "{protocol}");
        }
    }
}

#[tokio::test]
async fn every_kind_of_outbound_policy_is_read() {
    let world = World::new();
    let targets = ["10.96.0.1:80", "10.96.0.1:81", "192.0.2.1:443", "192.0.2.1:3306"];
    for target in targets {
        world.client(addr(target)).await;
    }
    for traffic in ["Allow", "Deny"] {
        let network = json!({"spec": {"trafficPolicy": traffic}});
        world.apply_in::<EgressNetwork>("linkerd-egress", "all", network);
        for target in targets {
            world.client(addr(target)).await;
        }
    }
    world
        .client(traffic_spec::Target::Authority(
            "web.ns.svc.cluster.local:80".into(),
        ))
        .await;
    for (mode, protocol) in [
        ("consecutive", Some("http")),
        ("unified", Some("kubernetes.io/h2c")),
        ("unified", Some("linkerd.io/opaque")),
        ("", None),
    ] {
        let annotations = json!({
            "balancer.linkerd.io/failure-accrual": mode,
            "retry.linkerd.io/http": "5xx,429",
            "retry.linkerd.io/grpc": "unavailable,internal",
            "retry.linkerd.io/timeout": "1s",
            "timeout.linkerd.io/request": "5s",
            "timeout.linkerd.io/response": "3s",
            "timeout.linkerd.io/idle": "2s",
        });
        world.apply::<Service>("web", json!({
            "metadata": {"annotations": annotations},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "appProtocol": protocol}]},
        }));
        world.client(addr("10.96.0.1:80")).await;
    }
    let parents = json!([{"group": "core", "kind": "Service", "name": "web", "port": 80}]);
    let mut split = full_rule("ResponseHeaderModifier");
    split["backendRefs"] = json!([
        {"name": "web", "port": 80, "weight": 90},
        {"name": "gone", "port": 80, "weight": 10, "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["a"]}}]},
        {"name": "web", "port": 81, "weight": 0},
    ]);
    let mut none = full_rule("RequestHeaderModifier");
    none["backendRefs"] = json!([{"name": "web", "port": 80, "weight": 0}]);
    let rules = json!([split, none, full_rule("RequestRedirect"), {}]);
    world.apply::<GatewayHttpRoute>(
        "http",
        json!({"spec": {"parentRefs": parents, "hostnames": ["web", "*.example.com"], "rules": rules}}),
    );
    world.client(addr("10.96.0.1:80")).await;
    world.apply::<GrpcRoute>("grpc", json!({"spec": {"parentRefs": parents, "rules": [
        {"matches": [{"method": {"service": "a.B", "method": "C"}, "headers": [{"name": "x", "value": "y"}]}], "backendRefs": [{"name": "gone", "port": 80}]},
        {},
    ]}}));
    world.client(addr("10.96.0.1:80")).await;
}

/// What the proxy API has no place for is in the extension, and the policy beside it is whole without.
#[tokio::test]
async fn the_extension_carries_what_the_proxy_api_cannot() {
    let world = World::new();
    let (_, none) = world.extended(addr("10.96.0.1:80")).await;
    assert!(none.is_empty());
    world.apply::<Service>(
        "web",
        json!({
            "metadata": {"annotations": {
                "balancer.heddle.dev/session-affinity": "hash-header",
                "balancer.heddle.dev/session-affinity-name": "x-user",
                "balancer.heddle.dev/max-connections": "10",
                "balancer.heddle.dev/max-requests-per-endpoint": "3",
                "balancer.heddle.dev/min-ready-endpoints": "2",
                "balancer.linkerd.io/failure-accrual": "unified",
                "balancer.alpha.linkerd.io/penalize-failures": "true",
            }},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}]},
        }),
    );
    let parents = json!([{"group": "core", "kind": "Service", "name": "web", "port": 80}]);
    let mirror = json!({"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web", "port": 80}, "percent": 5}});
    let rewrite = json!({"type": "URLRewrite", "urlRewrite": {"hostname": "example.com", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/v2"}}});
    let rule = json!({
        "filters": [rewrite, mirror],
        "backendRefs": [{"name": "web", "port": 80}, {"name": "web", "port": 80, "filters": [rewrite]}],
        "sessionPersistence": {"type": "Header", "sessionName": "x-session", "idleTimeout": "5m"},
    });
    world.apply::<GatewayHttpRoute>(
        "http",
        json!({"spec": {"parentRefs": parents, "rules": [{}, rule]}}),
    );
    let (_, extension) = world.extended(addr("10.96.0.1:80")).await;
    let own = extension.rule(0, 1, None).expect("the rule's");
    let mirrored: Vec<_> = own
        .mirrors
        .iter()
        .map(|one| (one.numerator, one.denominator.get()))
        .collect();
    assert_eq!(
        (own.rewrite.is_some(), mirrored, own.session.is_some()),
        (true, vec![(5, 100)], true)
    );
    assert!(
        extension
            .rule(0, 1, Some(1))
            .is_some_and(|one| one.rewrite == own.rewrite)
    );
    assert_eq!(
        (extension.rule(0, 0, None), extension.rule(0, 1, Some(0))),
        (None, None)
    );
    let balancer = extension
        .balancer("web.ns.svc.cluster.local:80")
        .expect("the service's");
    assert!(balancer.affinity.is_some());
    assert_eq!(
        balancer.limits.endpoint_requests.map(std::num::NonZeroU32::get),
        Some(3)
    );

    let regex = json!({"matches": [{}, {"method": {"type": "RegularExpression", "service": "a.*"}}]});
    let headers = json!({"filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["server"]}}]});
    world.apply::<GrpcRoute>(
        "grpc",
        json!({"spec": {"parentRefs": parents, "rules": [regex, headers]}}),
    );
    let (_, extension) = world.extended(addr("10.96.0.1:80")).await;
    let matches = &extension.rule(0, 0, None).expect("the rule's").grpc_matches;
    assert_eq!(
        (matches.len(), matches[0].index, matches[0].service.as_deref()),
        (1, 1, Some("a.*"))
    );
    assert!(
        extension
            .rule(0, 1, None)
            .is_some_and(|one| one.response_headers.is_some())
    );
}

#[tokio::test]
async fn routes_of_connections_are_read() {
    let world = World::new();
    world.apply_in::<EgressNetwork>("client", "all", json!({"spec": {"trafficPolicy": "Deny"}}));
    let parents = json!([
        {"group": "core", "kind": "Service", "namespace": "ns", "name": "web", "port": 80},
        {"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "all", "port": 443},
    ]);
    let backends = json!([
        {"namespace": "ns", "name": "web", "port": 80},
        {"name": "gone", "port": 80},
        {"name": "web", "kind": "Secret", "port": 80},
    ]);
    let spec = |hostnames: Value| json!({"spec": {"parentRefs": parents, "hostnames": hostnames, "rules": [{"backendRefs": backends}]}});
    for target in ["10.96.0.1:80", "192.0.2.1:443"] {
        world.apply_in::<TcpRoute>("client", "tcp", spec(Value::Null));
        let tcp = world.client(addr(target)).await;
        assert!(matches!(tcp.protocol, Protocol::Opaque(_)), "{tcp:?}");
        world.apply_in::<TlsRoute>("client", "tls", spec(json!(["a.example.com", "*.b.example.com"])));
        let tls = world.client(addr(target)).await;
        assert!(matches!(tls.protocol, Protocol::Tls(_)), "{tls:?}");
        world.cluster.reset::<TlsRoute>(&[]);
    }
}

fn full_rule(filter: &str) -> Value {
    let body = match filter {
        "RequestRedirect" => {
            json!({"scheme": "https", "hostname": "h", "port": 443, "statusCode": 301, "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}})
        }
        _ => {
            json!({"add": [{"name": "a", "value": "b"}], "set": [{"name": "c", "value": "d"}], "remove": ["e"]})
        }
    };
    let field = format!("{}{}", filter[..1].to_lowercase(), &filter[1..]);
    json!({
        "matches": [
            {"path": {"type": "Exact", "value": "/a"}, "method": "GET"},
            {"path": {"type": "PathPrefix", "value": "/b"}, "queryParams": [{"name": "q", "value": "1"}]},
            {"path": {"type": "RegularExpression", "value": "/c.*"}, "headers": [
                {"type": "RegularExpression", "name": "x", "value": "y.*"}, {"name": "z", "value": "1"},
            ]},
        ],
        "filters": [{"type": filter, field: body}],
        "timeouts": {"request": "10s"},
    })
}

#[tokio::test]
async fn endpoints_and_profiles_are_read() {
    let world = World::new();
    let get = |path: &str| GetDestination {
        path: path.into(),
        ..GetDestination::default()
    };
    let update = ask(world.destination(), "Get", get("web.ns.svc.cluster.local:80")).await;
    let mut set = EndpointSet::default();
    let refused = set.apply(update, true).expect("the proxy takes the message");
    assert_eq!(refused, []);
    let endpoints: Vec<&Endpoint> = set.iter().map(AsRef::as_ref).collect();
    assert_eq!(endpoints.len(), 1);
    assert_eq!(
        endpoints[0].identity.as_ref().map(ToString::to_string).as_deref(),
        Some("default.ns.serviceaccount.identity.linkerd.cluster.local")
    );
    assert_eq!(endpoints[0].opaque_transport_port, Some(4143));
    for path in [
        "10.96.0.1:80",
        "10.96.0.1:81",
        "10.1.0.1:8080",
        "192.0.2.1:443",
        "web.ns.svc.cluster.local:80",
    ] {
        let profile: DestinationProfile = ask(world.destination(), "GetProfile", get(path)).await;
        Profile::try_from(profile).expect("the proxy takes the message");
    }
}
