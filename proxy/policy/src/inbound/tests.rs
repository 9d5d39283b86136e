use linkerd2_proxy_api::{http_route, meta};

use super::*;
use crate::ClientTls;

fn default_meta(name: &str) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Default(name.into())),
    })
}

fn authz(identity: Option<&str>) -> proto::Authz {
    use proto::authn::{Permit, PermitMeshTls, PermitUnauthenticated, permit_mesh_tls};
    let permit = match identity {
        None => Permit::Unauthenticated(PermitUnauthenticated {}),
        Some(name) => Permit::MeshTls(PermitMeshTls {
            clients: Some(permit_mesh_tls::Clients::Identities(
                permit_mesh_tls::PermitClientIdentities {
                    identities: vec![proto::Identity { name: name.into() }],
                    suffixes: vec![],
                },
            )),
        }),
    };
    proto::Authz {
        networks: vec![proto::Network {
            net: Some("0.0.0.0/0".parse::<IpNet>().expect("valid").into()),
            except: vec![],
        }],
        authentication: Some(proto::Authn { permit: Some(permit) }),
        labels: Default::default(),
        metadata: default_meta("all"),
    }
}

#[test]
fn addresses_that_are_named_are_the_only_ones() {
    let message = |ips: &[&str]| proto::Server {
        server_ips: ips
            .iter()
            .map(|ip| ip.parse::<IpAddr>().expect("an address").into())
            .collect(),
        ..server(Vec::new(), Vec::new())
    };
    let takes = |ips: &[&str], ip: &str| {
        let policy = ServerPolicy::try_from(message(ips)).expect("valid");
        policy.takes(ip.parse().expect("an address"))
    };
    assert!(takes(&[], "192.0.2.1"));
    let both = ["10.0.0.1", "fd00::1"];
    assert!(takes(&both, "10.0.0.1") && takes(&both, "fd00::1"));
    assert!(!takes(&both, "10.0.0.2") && !takes(&both, "127.0.0.1"));
    let mut broken = message(&both);
    broken.server_ips.push(Default::default());
    assert!(ServerPolicy::try_from(broken).is_err());
}

fn server(routes: Vec<proto::HttpRoute>, authorizations: Vec<proto::Authz>) -> proto::Server {
    let kind = proto::proxy_protocol::Kind::Http1(proto::proxy_protocol::Http1 {
        routes,
        local_rate_limit: None,
    });
    proto::Server {
        protocol: Some(proto::ProxyProtocol { kind: Some(kind) }),
        authorizations,
        ..Default::default()
    }
}

fn route(prefix: &str, authorizations: Vec<proto::Authz>) -> proto::HttpRoute {
    let path = http_route::PathMatch {
        kind: Some(http_route::path_match::Kind::Prefix(prefix.into())),
    };
    let matches = vec![http_route::HttpRouteMatch {
        path: Some(path),
        ..Default::default()
    }];
    let rules = vec![proto::http_route::Rule {
        matches,
        filters: vec![],
    }];
    proto::HttpRoute {
        metadata: default_meta(prefix),
        hosts: vec![],
        authorizations,
        rules,
    }
}

fn client(tls: ClientTls) -> Client {
    Client {
        addr: "10.0.0.1".parse().expect("an address"),
        tls,
    }
}

fn get(path: &str) -> Request<()> {
    Request::builder().uri(path).body(()).expect("valid")
}

#[test]
fn a_routes_authorizations_hold_for_it_alone() {
    let admin = "admin.test";
    let server = server(
        vec![
            route("/", vec![authz(None)]),
            route("/admin", vec![authz(Some(admin))]),
        ],
        vec![],
    );
    let policy = ServerPolicy::try_from(server).expect("valid");
    let stranger = client(ClientTls::None);
    let known = client(ClientTls::Established(Some(admin.parse().expect("a name"))));
    assert!(policy.authorize_request(&stranger, &get("/x")).is_ok());
    // Whichever way the application reads these.
    for path in [
        "//admin",
        "/admin/../x",
        "/admin/%2e%2e/x",
        "/admin/..%2fx",
        "/x/..;/admin",
        "/admin;x/y",
        "/x%5c..%5cadmin",
        "/%2561dmin",
    ] {
        assert!(
            matches!(
                policy.authorize_request(&stranger, &get(path)),
                Err(Refused::Denied { .. })
            ),
            "{path}"
        );
        assert!(policy.authorize_request(&known, &get(path)).is_ok(), "{path}");
    }
    for path in ["/x//y", "/x%20y", "/a%2Fb/../c", "/x;y=z"] {
        assert!(policy.authorize_request(&stranger, &get(path)).is_ok(), "{path}");
    }
    assert_eq!(
        policy
            .authorize_request(&known, &get("/admin"))
            .expect("allowed")
            .route
            .name(),
        "/admin"
    );
    assert!(
        policy.authorize(&stranger).is_err(),
        "no authorization of the server as a whole"
    );
}

#[test]
fn a_request_that_no_route_takes_is_not_found() {
    let policy = ServerPolicy::try_from(server(vec![route("/a", vec![])], vec![authz(None)])).expect("valid");
    assert!(matches!(
        policy.authorize_request(&client(ClientTls::None), &get("/b")),
        Err(Refused::NoRoute { .. })
    ));
}

#[test]
fn default_policies_say_who_may_connect() {
    let nets = ["10.0.0.0/8".parse().expect("a network")];
    let mesh = ClientTls::Established(Some("a.test".parse().expect("a name")));
    let inside = |tls: &ClientTls| Client {
        addr: "10.1.1.1".parse().expect("an address"),
        tls: tls.clone(),
    };
    let outside = |tls: &ClientTls| Client {
        addr: "1.1.1.1".parse().expect("an address"),
        tls: tls.clone(),
    };
    for (name, want) in [
        ("all-unauthenticated", [true, true, true]),
        ("all-authenticated", [false, true, true]),
        ("cluster-unauthenticated", [true, true, false]),
        ("cluster-authenticated", [false, true, false]),
        ("deny", [false, false, false]),
        ("audit", [true, true, true]),
    ] {
        let policy =
            name.parse::<DefaultPolicy>()
                .expect("a name")
                .policy(&nets, Duration::from_secs(10), false);
        let got = [inside(&ClientTls::None), inside(&mesh), outside(&mesh)]
            .map(|one| policy.authorize(&one).is_ok());
        assert_eq!(got, want, "{name}");
    }
    assert!("allow".parse::<DefaultPolicy>().is_err());
}

#[test]
fn one_bad_field_refuses_the_whole_server() {
    let mut bad = route("/", vec![]);
    bad.rules.clear();
    let error = ServerPolicy::try_from(server(vec![route("/", vec![]), bad], vec![])).expect_err("no rules");
    assert_eq!(
        error.to_string(),
        "field `http_routes[1].rules` is invalid: must have at least one rule"
    );
    assert!(ServerPolicy::try_from(proto::Server::default()).is_err());
}
