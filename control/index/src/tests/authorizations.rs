//! Whom AuthorizationPolicies and ServerAuthorizations let in.

use heddle_control_core::inbound::{Authorization, AuthorizationRef, Clients, IdentityMatch, NetworkMatch};
use heddle_k8s::policy::{
    AuthorizationPolicy, MeshTLSAuthentication, NetworkAuthentication, ServerAuthorization,
};
use serde_json::Value;

use super::{
    fixtures::*,
    inbound::{ALL, by_policy, default, exactly, guarded, mesh_tls, policy, server, to_server},
};
use crate::Config;

#[test]
fn authentications_name_service_accounts_and_namespaces() {
    let cluster = guarded();
    let refs = j!({"spec": {"identityRefs": [
        {"kind": "ServiceAccount", "name": "a"},
        {"kind": "ServiceAccount", "name": "b", "namespace": "other"},
        {"kind": "Namespace", "name": "third"},
        {"kind": "ServiceAccount"},
    ]}});
    cluster.apply(&mk::<MeshTLSAuthentication>("ns", "checkout", refs));
    let suffix = |ns: &str| {
        IdentityMatch::Suffix(
            [ns, "serviceaccount", "identity", "linkerd", "cluster", "local"]
                .map(str::to_owned)
                .to_vec(),
        )
    };
    let Clients::Tls(identities) = cluster.authorizations("ns", "web-0", 8080)[0].clients.clone() else {
        panic!("TLS")
    };
    assert_eq!(
        identities,
        [
            IdentityMatch::Exact("a.ns.serviceaccount.identity.linkerd.cluster.local".into()),
            IdentityMatch::Exact("b.other.serviceaccount.identity.linkerd.cluster.local".into()),
            suffix("third"),
            suffix("ns"),
        ]
    );
}

#[test]
fn identity_and_network_are_both_required() {
    let cluster = guarded();
    let both = j!([
        {"kind": "ServiceAccount", "name": "a"},
        {"group": "policy.linkerd.io", "kind": "NetworkAuthentication", "name": "inside"},
    ]);
    cluster.apply(&policy("allow-checkout", to_server("web"), both));
    assert_eq!(
        cluster.authorizations("ns", "web-0", 8080),
        [],
        "the network is not there yet"
    );
    let inside = |except: &str| {
        mk::<NetworkAuthentication>(
            "ns",
            "inside",
            j!({"spec": {"networks": [{"cidr": "10.0.0.0/8", "except": [except]}]}}),
        )
    };
    cluster.apply(&inside("10.9.0.0/16"));
    let networks = vec![NetworkMatch {
        net: "10.0.0.0/8".parse().expect("a net"),
        except: vec!["10.9.0.0/16".parse().expect("a net")],
    }];
    let expected = by_policy(
        "allow-checkout",
        networks,
        exactly("a.ns.serviceaccount.identity.linkerd.cluster.local"),
    );
    assert_eq!(cluster.authorizations("ns", "web-0", 8080), [expected]);
    cluster.apply(&inside("nonsense"));
    assert_eq!(
        cluster.authorizations("ns", "web-0", 8080),
        [],
        "an exception that is not understood lets nobody in"
    );
}

#[test]
fn a_policy_without_requirements_lets_everybody_in() {
    let cluster = guarded();
    cluster.apply(&policy("allow-checkout", to_server("web"), j!([])));
    assert_eq!(
        cluster.authorizations("ns", "web-0", 8080),
        [by_policy(
            "allow-checkout",
            NetworkMatch::all(),
            Clients::Unauthenticated
        )]
    );
}

#[test]
fn a_policy_that_is_not_understood_permits_nothing() {
    let cluster = guarded();
    for (target, required) in [
        (to_server("web"), j!([{"kind": "Secret", "name": "x"}])),
        (
            to_server("web"),
            j!([{"kind": "ServiceAccount", "name": "x"}, {"kind": "ServiceAccount", "name": "y"}]),
        ),
        (j!({"kind": "Namespace", "name": "other"}), j!([])),
        (j!({"group": "apps", "kind": "Deployment", "name": "web"}), j!([])),
        (to_server("other"), j!([])),
    ] {
        cluster.apply(&policy("allow-checkout", target.clone(), required));
        assert_eq!(cluster.authorizations("ns", "web-0", 8080), [], "{target}");
    }
}

#[test]
fn a_policy_for_the_namespace_covers_its_servers_but_not_default_ports() {
    let cluster = guarded();
    cluster.remove::<AuthorizationPolicy>("ns", "allow-checkout");
    cluster.apply(&policy(
        "all",
        j!({"kind": "Namespace", "name": "ns"}),
        mesh_tls("checkout"),
    ));
    assert_eq!(cluster.authorizations("ns", "web-0", 8080).len(), 1);
    assert_eq!(
        cluster.authorizations("ns", "web-0", 9999),
        [default(ALL, NetworkMatch::all(), Clients::Unauthenticated)]
    );
}

#[test]
fn server_authorizations_by_name_and_label_are_honoured() {
    let cluster = web();
    cluster.apply(&server("web", j!({"metadata": {"labels": {"team": "a"}}})));
    let clients = |client: Value, server: Value| {
        cluster.apply(&mk::<ServerAuthorization>(
            "ns",
            "saz",
            j!({"spec": {"server": server, "client": client}}),
        ));
        cluster.authorizations("ns", "web-0", 8080)
    };
    let by_label = || j!({"selector": {"matchLabels": {"team": "a"}}});
    let inside: Vec<_> = Config::default()
        .cluster_networks
        .into_iter()
        .map(NetworkMatch::whole)
        .collect();
    let all = clients(j!({"meshTLS": {"serviceAccounts": [{"name": "x"}]}}), by_label());
    assert_eq!(
        all,
        [Authorization {
            reference: AuthorizationRef::ServerAuthorization("saz".into()),
            networks: inside,
            clients: exactly("x.ns.serviceaccount.identity.linkerd.cluster.local"),
        }]
    );
    let open = clients(j!({"unauthenticated": true}), j!({"name": "web"}));
    assert_eq!(
        (open[0].networks.clone(), open[0].clients.clone()),
        (NetworkMatch::all(), Clients::Unauthenticated)
    );
    assert_eq!(
        clients(j!({"meshTLS": {"unauthenticatedTLS": true}}), by_label())[0].clients,
        Clients::TlsUnauthenticated
    );
    assert_eq!(clients(j!({}), by_label()), [], "names nobody");
    assert_eq!(
        clients(
            j!({"unauthenticated": true}),
            j!({"selector": {"matchLabels": {"team": "b"}}})
        ),
        []
    );
    assert_eq!(
        clients(
            j!({"unauthenticated": true, "networks": [{"cidr": "x"}]}),
            by_label()
        ),
        [],
        "a network that cannot be read"
    );
}

#[test]
fn relabelling_a_server_updates_an_open_watch() {
    let cluster = web();
    cluster.apply(&server("web", j!({"metadata": {"labels": {"team": "b"}}})));
    cluster.apply(&mk::<ServerAuthorization>("ns", "saz", j!({"spec": {"server": {"selector": {"matchLabels": {"team": "a"}}}, "client": {"unauthenticated": true}}})));
    let mut watch = cluster.watch_inbound("ns", "web-0", 8080);
    assert_eq!(watch.borrow_and_update().authorizations, []);
    cluster.apply(&server("web", j!({"metadata": {"labels": {"team": "a"}}})));
    assert_eq!(watch.borrow_and_update().authorizations.len(), 1);
}

#[test]
fn an_authentication_without_identities_lets_nobody_in() {
    let cluster = guarded();
    for spec in [
        j!({"identities": []}),
        j!({"identityRefs": [{"kind": "Secret", "name": "x"}]}),
    ] {
        cluster.apply(&mk::<MeshTLSAuthentication>("ns", "checkout", j!({"spec": spec})));
        assert_eq!(cluster.authorizations("ns", "web-0", 8080), [], "{spec}");
    }
}

#[test]
fn references_reach_into_other_namespaces_when_they_say_so() {
    let cluster = guarded();
    let elsewhere =
        |kind: &str| j!([{"group": "policy.linkerd.io", "kind": kind, "name": "x", "namespace": "shared"}]);
    cluster.apply(&mk::<MeshTLSAuthentication>(
        "shared",
        "x",
        j!({"spec": {"identities": ["*.x"]}}),
    ));
    cluster.apply(&policy(
        "allow-checkout",
        to_server("web"),
        elsewhere("MeshTLSAuthentication"),
    ));
    let suffix = IdentityMatch::Suffix(vec!["x".into()]);
    assert_eq!(
        cluster.authorizations("ns", "web-0", 8080),
        [by_policy(
            "allow-checkout",
            NetworkMatch::all(),
            Clients::Tls(vec![suffix])
        )]
    );
    cluster.apply(&policy(
        "allow-checkout",
        to_server("web"),
        elsewhere("NetworkAuthentication"),
    ));
    assert_eq!(
        cluster.authorizations("ns", "web-0", 8080),
        [],
        "that one does not exist"
    );
    let account = j!([{"kind": "ServiceAccount", "name": "a", "namespace": "other"}]);
    cluster.apply(&policy("allow-checkout", to_server("web"), account));
    assert_eq!(
        cluster.authorizations("ns", "web-0", 8080)[0].clients,
        exactly("a.other.serviceaccount.identity.linkerd.cluster.local")
    );
}

#[test]
fn a_list_of_no_networks_does_not_mean_all_of_them() {
    let cluster = guarded();
    cluster.remove::<AuthorizationPolicy>("ns", "allow-checkout");
    for client in [
        j!({"unauthenticated": true, "networks": []}),
        j!({"meshTLS": {"identities": ["*"]}, "networks": []}),
    ] {
        cluster.apply(&mk::<ServerAuthorization>(
            "ns",
            "saz",
            j!({"spec": {"server": {"name": "web"}, "client": client}}),
        ));
        assert_eq!(cluster.authorizations("ns", "web-0", 8080), [], "{client}");
    }
}

#[test]
fn of_several_policies_each_lets_in_its_own_oldest_first() {
    let cluster = guarded();
    let old = j!({"metadata": {"creationTimestamp": "2025-01-01T00:00:00Z"}, "spec": {
        "targetRef": to_server("web"),
        "requiredAuthenticationRefs": [{"kind": "ServiceAccount", "name": "old"}],
    }});
    cluster.apply(&mk::<AuthorizationPolicy>("ns", "z", old));
    let all = cluster.authorizations("ns", "web-0", 8080);
    let names: Vec<_> = all.iter().map(|one| one.reference.clone()).collect();
    assert_eq!(
        names,
        ["z", "allow-checkout"].map(|name| AuthorizationRef::AuthorizationPolicy(name.into()))
    );
}
