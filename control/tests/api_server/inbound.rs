//! For each kind: what the proxy of a workload is told about a port, and what is taken back.

use linkerd2_proxy_api::inbound::PortSpec;
use serde_json::{Value, json};
use tonic::Code;

use super::{show, space::*};

const OPEN: [&str; 3] = [
    "default/all-unauthenticated detect",
    "all-unauthenticated lets anyone",
    "default: *",
];
pub(super) const CLOSED: [&str; 2] = ["server/web http2", "default: *"];
const CLUSTER: &str = "10.0.0.0/8, 100.64.0.0/10, 172.16.0.0/12, 192.168.0.0/16, fd00::/8";

pub(super) fn web() -> Value {
    json!({"spec": {"podSelector": {"matchLabels": {"app": "web"}}, "port": 8080, "proxyProtocol": "HTTP/2"}})
}

pub(super) fn pod() -> Value {
    json!({"pod": "web-0"})
}

/// A namespace with pod `web-0`.
pub(super) async fn with_pod(name: &str) -> anyhow::Result<Space> {
    let space = Space::new(name).await?;
    space.pod("web-0", "10.1.0.1", json!({})).await?;
    Ok(space)
}

/// A namespace with pod `web-0` and Server `web`, which lets nobody in.
pub(super) async fn with_server(name: &str) -> anyhow::Result<Space> {
    let space = with_pod(name).await?;
    space.put(SERVER, "web", web()).await?;
    Ok(space)
}

pub(super) fn to(kind: &str, name: &str) -> Value {
    let group = match kind {
        "Namespace" => "",
        "GRPCRoute" => "gateway.networking.k8s.io",
        _ => "policy.linkerd.io",
    };
    json!({"group": group, "kind": kind, "name": name})
}

/// An AuthorizationPolicy for those who satisfy `required`.
pub(super) fn allow(target: Value, required: Value) -> Value {
    json!({"spec": {"targetRef": target, "requiredAuthenticationRefs": required}})
}

pub(super) fn account(name: &str) -> Value {
    json!([{"kind": "ServiceAccount", "name": name}])
}

fn authentication(kind: &str) -> Value {
    json!({"group": "policy.linkerd.io", "kind": kind, "name": "clients"})
}

#[tokio::test]
async fn inbound_server_of_every_version() -> anyhow::Result<()> {
    let space = with_pod("in-versions").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    told.becomes(&OPEN).await?;
    for kind in [
        ("policy.linkerd.io/v1alpha1", "Server"),
        ("policy.linkerd.io/v1beta1", "Server"),
        ("policy.linkerd.io/v1beta2", "Server"),
        ("policy.linkerd.io/v1beta3", "Server"),
    ] {
        space.put(kind, "web", web()).await?;
        told.becomes(&CLOSED).await?;
        space.delete(kind, "web").await?;
        told.becomes(&OPEN).await?;
    }
    Ok(())
}

#[tokio::test]
async fn inbound_server_protocol_and_access() -> anyhow::Result<()> {
    let space = with_server("in-server").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    told.becomes(&CLOSED).await?;
    let with = |key: &str, value: &str| {
        let mut server = web();
        server["spec"][key] = json!(value);
        space.put(SERVER, "web", server)
    };
    for (protocol, shown, routed) in [
        ("unknown", "detect", true),
        ("HTTP/1", "http1", true),
        ("gRPC", "grpc", true),
        ("opaque", "opaque", false),
        ("TLS", "tls", false),
    ] {
        with("proxyProtocol", protocol).await?;
        let server = format!("server/web {shown}");
        let lines: &[&str] = if routed {
            &[&server, "default: *"]
        } else {
            &[&server]
        };
        told.becomes(lines).await?;
    }
    for (access, whom) in [
        ("all-unauthenticated", "anyone".to_owned()),
        ("all-authenticated", "*".to_owned()),
        ("cluster-unauthenticated", format!("anyone from {CLUSTER}")),
        ("cluster-authenticated", format!("* from {CLUSTER}")),
        ("audit", "anyone".to_owned()),
    ] {
        with("accessPolicy", access).await?;
        let lets = format!("{access} lets {whom}");
        told.becomes(&[CLOSED[0], &lets, CLOSED[1]]).await?;
    }
    with("accessPolicy", "deny").await?;
    told.becomes(&CLOSED).await
}

/// A Server must not govern pods of other namespaces, whatever its selector takes (linkerd2#15243).
#[tokio::test]
async fn inbound_server_stays_in_its_namespace() -> anyhow::Result<()> {
    let space = with_pod("in-alone").await?;
    let other = space.beside("in-alone-other").await?;
    other.pod("web-0", "10.1.0.2", json!({})).await?;
    let (mut told, mut told_other) = (
        space.inbound(pod(), 8080).await?,
        other.inbound(pod(), 8080).await?,
    );
    told.becomes(&OPEN).await?;
    let everything = json!({"spec": {"podSelector": {}, "port": 8080, "proxyProtocol": "HTTP/2"}});
    other.put(SERVER, "web", everything).await?;
    other
        .put(
            AUTHORIZATION_POLICY,
            "all",
            allow(to("Namespace", &other.name), json!([])),
        )
        .await?;
    let theirs = [CLOSED[0], "policy/authorizationpolicy/all lets anyone", CLOSED[1]];
    told_other.becomes(&theirs).await?;
    // The other's objects are known now; here they change nothing.
    space.inbound(pod(), 8080).await?.becomes(&OPEN).await?;
    space.put(SERVER, "web", web()).await?;
    told.becomes(&CLOSED).await
}

#[tokio::test]
async fn inbound_server_authorization() -> anyhow::Result<()> {
    let space = with_pod("in-saz").await?;
    let mut server = web();
    server["metadata"] = json!({"labels": {"team": "a"}});
    space.put(SERVER, "web", server).await?;
    let mut told = space.inbound(pod(), 8080).await?;
    told.becomes(&CLOSED).await?;
    let saz = |server: Value, client: Value| json!({"spec": {"server": server, "client": client}});
    let accounts = json!({"meshTLS": {"serviceAccounts": [{"name": "checkout"}]}});
    space
        .put(SERVER_AUTHORIZATION, "saz", saz(json!({"name": "web"}), accounts))
        .await?;
    let lets = format!("policy/serverauthorization/saz lets checkout.in-saz from {CLUSTER}");
    told.becomes(&[CLOSED[0], &lets, CLOSED[1]]).await?;
    let by_label = |team: &str| json!({"selector": {"matchLabels": {"team": team}}});
    let network =
        json!({"unauthenticated": true, "networks": [{"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}]});
    space
        .put(SERVER_AUTHORIZATION, "saz", saz(by_label("a"), network.clone()))
        .await?;
    let lets = "policy/serverauthorization/saz lets anyone from 10.0.0.0/8 less 10.9.0.0/16";
    told.becomes(&[CLOSED[0], lets, CLOSED[1]]).await?;
    space
        .put(SERVER_AUTHORIZATION, "saz", saz(by_label("b"), network.clone()))
        .await?;
    told.becomes(&CLOSED).await?;
    space
        .put(SERVER_AUTHORIZATION, "saz", saz(by_label("a"), network))
        .await?;
    told.becomes(&[CLOSED[0], lets, CLOSED[1]]).await?;
    space.delete(SERVER_AUTHORIZATION, "saz").await?;
    told.becomes(&CLOSED).await
}

#[tokio::test]
async fn inbound_authorization_policy() -> anyhow::Result<()> {
    let space = with_server("in-authz").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    told.becomes(&CLOSED).await?;
    let lets = [
        CLOSED[0],
        "policy/authorizationpolicy/allow lets checkout.in-authz",
        CLOSED[1],
    ];
    for (target, holds) in [
        (to("Server", "web"), true),
        (to("Server", "other"), false),
        (to("Namespace", "in-authz"), true),
        (to("HTTPRoute", "none"), false),
    ] {
        let policy = allow(target, account("checkout"));
        space.put(AUTHORIZATION_POLICY, "allow", policy).await?;
        told.becomes(if holds { &lets } else { &CLOSED }).await?;
    }
    let policy = allow(to("Server", "web"), account("checkout"));
    space.put(AUTHORIZATION_POLICY, "allow", policy).await?;
    told.becomes(&lets).await?;
    space.delete(AUTHORIZATION_POLICY, "allow").await?;
    told.becomes(&CLOSED).await
}

/// Without it nobody is let in any more (linkerd2#15548).
#[tokio::test]
async fn inbound_mesh_tls_authentication_is_revoked() -> anyhow::Result<()> {
    let space = with_server("in-tls").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    // Written in versions that Linkerd does not serve, and read and deleted in the one that it does.
    let ours = |(_, kind): Kind| ("policy.linkerd.io/v1beta3", kind);
    let policy = allow(
        to("Server", "web"),
        json!([authentication("MeshTLSAuthentication")]),
    );
    space.put(ours(AUTHORIZATION_POLICY), "allow", policy).await?;
    told.becomes(&CLOSED).await?;
    for (spec, whom) in [
        (json!({"identities": ["*"]}), "*"),
        (
            json!({"identities": ["a.in-tls.serviceaccount.identity.linkerd.cluster.local", "*.example.com"]}),
            "a.in-tls, *.example.com",
        ),
        (
            json!({"identityRefs": [{"kind": "ServiceAccount", "name": "b"}]}),
            "b.in-tls",
        ),
        (
            json!({"identityRefs": [{"kind": "Namespace", "name": "elsewhere"}]}),
            "*.elsewhere",
        ),
    ] {
        space
            .put(ours(MESH_TLS), "clients", json!({"spec": spec}))
            .await?;
        let lets = format!("policy/authorizationpolicy/allow lets {whom}");
        told.becomes(&[CLOSED[0], &lets, CLOSED[1]]).await?;
    }
    space.delete(MESH_TLS, "clients").await?;
    told.becomes(&CLOSED).await
}

#[tokio::test]
async fn inbound_network_authentication() -> anyhow::Result<()> {
    let space = with_server("in-net").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    let both = json!([account("checkout")[0], authentication("NetworkAuthentication")]);
    space
        .put(AUTHORIZATION_POLICY, "allow", allow(to("Server", "web"), both))
        .await?;
    told.becomes(&CLOSED).await?;
    for (networks, from) in [
        (
            json!([{"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}]),
            "10.0.0.0/8 less 10.9.0.0/16",
        ),
        (
            json!([{"cidr": "192.0.2.1"}, {"cidr": "fd00::/8"}]),
            "192.0.2.1/32, fd00::/8",
        ),
    ] {
        space
            .put(NETWORKS, "clients", json!({"spec": {"networks": networks}}))
            .await?;
        let lets = format!("policy/authorizationpolicy/allow lets checkout.in-net from {from}");
        told.becomes(&[CLOSED[0], &lets, CLOSED[1]]).await?;
    }
    space.delete(NETWORKS, "clients").await?;
    told.becomes(&CLOSED).await
}

#[tokio::test]
async fn inbound_http_local_rate_limit_policy() -> anyhow::Result<()> {
    let space = with_server("in-rate").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    told.becomes(&CLOSED).await?;
    let rate = |rate: u32| json!({"requestsPerSecond": rate});
    let mut limit = json!({"spec": {"targetRef": to("Server", "web"), "total": rate(100)}});
    let name = "policy/httplocalratelimitpolicy/limit";
    space.put(RATE_LIMIT, "limit", limit.clone()).await?;
    let line = format!("{name}: 100 a second, any of each");
    told.becomes(&[CLOSED[0], CLOSED[1], &line]).await?;
    limit["spec"]["identity"] = rate(10);
    limit["spec"]["overrides"] =
        json!([{"requestsPerSecond": 50, "clientRefs": [{"kind": "ServiceAccount", "name": "vip"}]}]);
    space.put(RATE_LIMIT, "limit", limit).await?;
    let line = format!("{name}: 100 a second, 10 of each; 50 of vip.in-rate");
    told.becomes(&[CLOSED[0], CLOSED[1], &line]).await?;
    space.delete(RATE_LIMIT, "limit").await?;
    told.becomes(&CLOSED).await
}

#[tokio::test]
async fn inbound_default_policy_of_pod_and_namespace() -> anyhow::Result<()> {
    const DEFAULT: &str = "config.linkerd.io/default-inbound-policy";
    let space = with_pod("in-default").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    told.becomes(&OPEN).await?;
    let annotate_pod = |annotations: Value| {
        space.pod(
            "web-0",
            "10.1.0.1",
            json!({"metadata": {"annotations": annotations}}),
        )
    };
    space
        .writer
        .namespace(&space.name, json!({DEFAULT: "deny"}))
        .await?;
    told.becomes(&["default/deny detect", "default: *"]).await?;
    annotate_pod(json!({DEFAULT: "cluster-authenticated"})).await?;
    let lets = format!("cluster-authenticated lets * from {CLUSTER}");
    told.becomes(&["default/cluster-authenticated detect", &lets, "default: *"])
        .await?;
    annotate_pod(json!({DEFAULT: "audit"})).await?;
    told.becomes(&["default/audit detect", "audit lets anyone", "default: *"])
        .await?;
    let identity = "config.linkerd.io/proxy-require-identity-inbound-ports";
    annotate_pod(json!({DEFAULT: "all-unauthenticated", identity: "8080"})).await?;
    told.becomes(&[
        "default/all-authenticated detect",
        "all-authenticated lets *",
        "default: *",
    ])
    .await?;
    annotate_pod(json!({})).await?;
    told.becomes(&["default/deny detect", "default: *"]).await?;
    space.writer.namespace(&space.name, json!({})).await?;
    told.becomes(&OPEN).await
}

#[tokio::test]
async fn inbound_opaque_ports_of_pod_and_namespace() -> anyhow::Result<()> {
    const OPAQUE: &str = "config.linkerd.io/opaque-ports";
    let space = with_pod("in-opaque").await?;
    let opaque = ["default/all-unauthenticated opaque", OPEN[1]];
    let mut told = space.inbound(pod(), 8080).await?;
    let mut mysql = space.inbound(pod(), 3306).await?;
    told.becomes(&OPEN).await?;
    mysql.becomes(&opaque).await?;
    space
        .writer
        .namespace(&space.name, json!({OPAQUE: "8000-9000"}))
        .await?;
    told.becomes(&opaque).await?;
    mysql.becomes(&OPEN).await?;
    let annotations = json!({"metadata": {"annotations": {OPAQUE: "3306"}}});
    space.pod("web-0", "10.1.0.1", annotations).await?;
    told.becomes(&OPEN).await?;
    mysql.becomes(&opaque).await
}

#[tokio::test]
async fn inbound_external_workload() -> anyhow::Result<()> {
    let space = Space::new("in-vm").await?;
    let vm = json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {
            "meshTLS": {"identity": "spiffe://root.linkerd.cluster.local/vm", "serverName": "vm.in-vm"},
            "ports": [{"name": "http", "port": 8080}],
            "workloadIPs": [{"ip": "192.0.2.50"}],
        },
    });
    space.put(EXTERNAL, "vm", vm).await?;
    let mut told = space.inbound(json!({"external_workload": "vm"}), 8080).await?;
    told.becomes(&OPEN).await?;
    // A Server of pods is not for it.
    space.put(SERVER, "pods", web()).await?;
    let spec = json!({"externalWorkloadSelector": {"matchLabels": {"app": "web"}}, "port": "http", "proxyProtocol": "HTTP/2"});
    space.put(SERVER, "web", json!({"spec": spec})).await?;
    told.becomes(&CLOSED).await?;
    space
        .put(
            AUTHORIZATION_POLICY,
            "allow",
            allow(to("Server", "web"), account("checkout")),
        )
        .await?;
    told.becomes(&[
        CLOSED[0],
        "policy/authorizationpolicy/allow lets checkout.in-vm",
        CLOSED[1],
    ])
    .await?;
    space.delete(SERVER, "web").await?;
    told.becomes(&OPEN).await?;
    space.delete(EXTERNAL, "vm").await?;
    told.ends().await
}

#[tokio::test]
async fn inbound_requests_that_cannot_be_answered() -> anyhow::Result<()> {
    let space = with_pod("in-bad").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    told.becomes(&OPEN).await?;
    let mut client = space.world.policy.inbound();
    let workload = "in-bad:web-0".to_owned();
    let server = client.get_port(PortSpec { workload, port: 8080 }).await?;
    assert_eq!(show::inbound::server(server.into_inner())?, OPEN);
    for (workload, port, code) in [
        ("in-bad:nope", 80, Code::NotFound),
        ("nonsense", 80, Code::InvalidArgument),
        ("in-bad:web-0", 0, Code::InvalidArgument),
        ("in-bad:web-0", 65_536, Code::InvalidArgument),
    ] {
        let workload = workload.to_owned();
        let status = client
            .get_port(PortSpec { workload, port })
            .await
            .expect_err("not to be answered");
        assert_eq!(status.code(), code, "{status}");
    }
    space.delete(POD, "web-0").await?;
    told.ends().await
}
