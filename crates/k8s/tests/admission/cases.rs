//! Objects, good and bad.

use serde_json::{Value, json};

/// Good objects: `[kind, apiVersion, spec]`; a null spec is left out.
pub(crate) fn admitted() -> Vec<(&'static str, &'static str, Value)> {
    let policy = "policy.linkerd.io";
    let server = json!({"group": policy, "kind": "Server", "name": "a"});
    // Deeper than a reader of JSON goes: were it kept, no ServiceProfile at all could be listed any more.
    let mut deep = json!({"method": "GET"});
    for _ in 0..200 {
        deep = json!({"not": deep});
    }
    let mut objects = vec![
        (
            "ServiceProfile",
            "linkerd.io/v1alpha2",
            json!({"routes": [{"name": "a", "condition": deep}]}),
        ),
        (
            "Server",
            "policy.linkerd.io/v1beta3",
            json!({"podSelector": {"matchLabels": {"app": "a"}}, "port": 8080, "proxyProtocol": "HTTP/2"}),
        ),
        (
            "Server",
            "policy.linkerd.io/v1beta3",
            json!({"externalWorkloadSelector": {}, "port": "http", "accessPolicy": "audit"}),
        ),
        (
            "Server",
            "policy.linkerd.io/v1beta3",
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}]}, "port": 1}),
        ),
        (
            "ServerAuthorization",
            "policy.linkerd.io/v1beta1",
            json!({"server": {"selector": {}}, "client": {"meshTLS": {"serviceAccounts": [{"name": "a"}]}}}),
        ),
        (
            "ServerAuthorization",
            "policy.linkerd.io/v1alpha1",
            json!({"server": {"name": "a"}, "client": {"unauthenticated": true, "networks": [{"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]}}),
        ),
        (
            "AuthorizationPolicy",
            "policy.linkerd.io/v1alpha1",
            json!({"targetRef": {"kind": "Namespace", "name": "default"}, "requiredAuthenticationRefs": [{"kind": "ServiceAccount", "name": "a", "namespace": "b"}, {"kind": "NetworkAuthentication", "group": policy, "name": "c"}]}),
        ),
        (
            "AuthorizationPolicy",
            "policy.linkerd.io/v1beta3",
            json!({"targetRef": {"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "name": "a"}, "requiredAuthenticationRefs": []}),
        ),
        (
            "MeshTLSAuthentication",
            "policy.linkerd.io/v1beta3",
            json!({"identities": ["*", "*.ns.serviceaccount.identity.linkerd.cluster.local", "spiffe://root.example.com/proxy-A"]}),
        ),
        // What Linkerd admits though little comes of it; the webhook warns.
        (
            "Server",
            "policy.linkerd.io/v1beta3",
            json!({"podSelector": {"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "b", "operator": "Exists", "values": ["c"]}]}, "port": "80"}),
        ),
        (
            "HTTPLocalRateLimitPolicy",
            "policy.linkerd.io/v1alpha1",
            json!({"targetRef": server, "overrides": [{"requestsPerSecond": 50, "clientRefs": []}]}),
        ),
        (
            "ServiceProfile",
            "linkerd.io/v1alpha1",
            json!({"routes": [{"name": "a", "condition": {"any": [{"all": [{"not": {"method": "DELETE"}}]}]}, "timeout": "1.5s"}], "dstOverrides": [{"authority": "a", "weight": "0.5"}, {"authority": "b", "weight": 1}]}),
        ),
        (
            "MeshTLSAuthentication",
            "policy.linkerd.io/v1alpha1",
            json!({"identityRefs": [{"kind": "ServiceAccount"}, {"kind": "Namespace", "name": "a"}]}),
        ),
        (
            "NetworkAuthentication",
            "policy.linkerd.io/v1alpha1",
            json!({"networks": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16", "10.2.0.1"]}, {"cidr": "fd00::/8"}, {"cidr": "192.0.2.7"}]}),
        ),
        (
            "HTTPLocalRateLimitPolicy",
            "policy.linkerd.io/v1alpha1",
            Value::Null,
        ),
        (
            "HTTPLocalRateLimitPolicy",
            "policy.linkerd.io/v1alpha1",
            json!({"targetRef": server, "total": {"requestsPerSecond": 100}, "identity": {"requestsPerSecond": 10}, "overrides": [{"requestsPerSecond": 50, "clientRefs": [{"kind": "ServiceAccount", "name": "a"}]}]}),
        ),
        (
            "EgressNetwork",
            "policy.linkerd.io/v1alpha1",
            json!({"trafficPolicy": "Deny", "networks": [{"cidr": "192.0.2.0/24"}]}),
        ),
        (
            "ExternalWorkload",
            "workload.linkerd.io/v1beta1",
            json!({"meshTLS": {"identity": "spiffe://root/a", "serverName": "a.example.com"}, "ports": [{"port": 80}], "workloadIPs": [{"ip": "192.0.2.1"}, {"ip": "fd00::1"}]}),
        ),
        (
            "ExternalWorkload",
            "workload.linkerd.io/v1alpha1",
            json!({"meshTls": {"identity": "a", "serverName": "b"}}),
        ),
        (
            "ServiceProfile",
            "linkerd.io/v1alpha2",
            json!({"routes": [{"name": "a", "condition": {"all": [{"method": "GET"}, {"not": {"pathRegex": "/b"}}]}, "responseClasses": [{"condition": {"status": {"min": 500, "max": 599}}, "isFailure": true}]}], "retryBudget": {"retryRatio": 0.2, "minRetriesPerSecond": 10, "ttl": "10s"}, "dstOverrides": [{"authority": "a.ns.svc.cluster.local:80", "weight": "500m"}]}),
        ),
        (
            "Mesh",
            "heddle.dev/v1alpha1",
            json!({"source": {"git": {"url": "https://git.example.com/mesh.git", "ref": {"branch": "main"}, "secretRef": {"name": "a"}}}, "path": "clusters/a", "interval": "30s"}),
        ),
        (
            "Mesh",
            "heddle.dev/v1alpha1",
            json!({"source": {"inline": {"extends": ["core"], "values": {"a": 1}}}}),
        ),
    ];
    for api_version in [
        "policy.linkerd.io/v1alpha1",
        "policy.linkerd.io/v1beta1",
        "policy.linkerd.io/v1beta2",
        "policy.linkerd.io/v1beta3",
    ] {
        objects.push(("HTTPRoute", api_version, json!({
            "parentRefs": [{"group": policy, "kind": "Server", "name": "a"}, {"group": "core", "kind": "Service", "name": "b", "port": 80}],
            "rules": [{
                "matches": [{"path": {"value": "/a"}, "headers": [{"name": "x", "value": "y"}], "method": "GET"}],
                "filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "a", "value": "b"}]}}],
                "backendRefs": [{"name": "b", "port": 80, "weight": 90}],
                "timeouts": {"request": "10s", "backendRequest": "5s"},
            }],
        })));
        objects.push(("Server", api_version, json!({"podSelector": {}, "port": 80})));
    }
    objects
}

/// Bad objects, and what the refusal must say.
pub(crate) fn refused() -> Vec<(&'static str, &'static str, Value, &'static str)> {
    let policy = "policy.linkerd.io";
    let server = json!({"group": policy, "kind": "Server", "name": "a"});
    let (beta3, alpha1) = ("policy.linkerd.io/v1beta3", "policy.linkerd.io/v1alpha1");
    let (workload, mesh) = ("workload.linkerd.io/v1beta1", "heddle.dev/v1alpha1");
    let git = |extra: Value| {
        let mut spec = json!({"source": {"git": {"url": "https://git.example.com/a"}}});
        spec.as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("an object").clone());
        spec
    };
    vec![
        (
            "Server",
            beta3,
            json!({"port": 80}),
            "exactly one of podSelector and externalWorkloadSelector",
        ),
        (
            "Server",
            beta3,
            json!({"port": 80, "podSelector": {}, "externalWorkloadSelector": {}}),
            "exactly one of podSelector",
        ),
        ("Server", beta3, json!({"podSelector": {}}), "spec.port"),
        (
            "Server",
            beta3,
            json!({"port": 0, "podSelector": {}}),
            "greater than or equal to 1",
        ),
        (
            "Server",
            beta3,
            json!({"port": 70000, "podSelector": {}}),
            "less than or equal to 65535",
        ),
        (
            "Server",
            beta3,
            json!({"port": true, "podSelector": {}}),
            "spec.port",
        ),
        (
            "Server",
            beta3,
            json!({"port": 80, "podSelector": {}, "proxyProtocol": "HTTP2"}),
            "spec.proxyProtocol",
        ),
        (
            "Server",
            beta3,
            json!({"port": 80, "podSelector": {}, "accessPolicy": "allow"}),
            "all-unauthenticated",
        ),
        (
            "Server",
            beta3,
            json!({"port": 80, "podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}),
            "NotIn",
        ),
        (
            "ServerAuthorization",
            "policy.linkerd.io/v1beta1",
            json!({"server": {}, "client": {}}),
            "exactly one of name and selector",
        ),
        (
            "ServerAuthorization",
            "policy.linkerd.io/v1beta1",
            json!({"server": {"name": "a"}, "client": {"unauthenticated": true, "meshTLS": {}}}),
            "exclude each other",
        ),
        (
            "ServerAuthorization",
            "policy.linkerd.io/v1beta1",
            json!({"server": {"name": "a"}, "client": {"meshTLS": {"unauthenticatedTLS": true, "identities": ["*"]}}}),
            "excludes identities and serviceAccounts",
        ),
        (
            "AuthorizationPolicy",
            beta3,
            json!({"targetRef": {"group": "apps", "kind": "Deployment", "name": "a"}, "requiredAuthenticationRefs": []}),
            "a policy's target must be",
        ),
        (
            "AuthorizationPolicy",
            alpha1,
            json!({"targetRef": {"kind": "Server", "name": "a"}, "requiredAuthenticationRefs": []}),
            "a policy's target must be",
        ),
        (
            "AuthorizationPolicy",
            alpha1,
            json!({"targetRef": server}),
            "requiredAuthenticationRefs",
        ),
        (
            "AuthorizationPolicy",
            alpha1,
            json!({"targetRef": server, "requiredAuthenticationRefs": [{"kind": "Secret", "name": "a"}]}),
            "an authentication must be",
        ),
        (
            "AuthorizationPolicy",
            alpha1,
            json!({"targetRef": server, "requiredAuthenticationRefs": [{"kind": "ServiceAccount", "name": "a"}, {"group": policy, "kind": "MeshTLSAuthentication", "name": "a"}]}),
            "at most one",
        ),
        (
            "MeshTLSAuthentication",
            alpha1,
            json!({}),
            "exactly one of identities and identityRefs",
        ),
        (
            "MeshTLSAuthentication",
            beta3,
            json!({"identities": ["*"], "identityRefs": [{"kind": "Namespace", "name": "a"}]}),
            "exactly one of identities",
        ),
        (
            "MeshTLSAuthentication",
            beta3,
            json!({"identities": ["Not A Name"]}),
            "spec.identities[0]",
        ),
        (
            "MeshTLSAuthentication",
            beta3,
            json!({"identityRefs": [{"kind": "Pod", "name": "a"}]}),
            "must be a ServiceAccount or a Namespace",
        ),
        (
            "MeshTLSAuthentication",
            beta3,
            json!({"identities": ["spiffe://root"]}),
            "spec.identities[0]",
        ),
        (
            "MeshTLSAuthentication",
            beta3,
            json!({"identityRefs": [{"kind": "Namespace", "name": "a", "namespace": "b"}]}),
            "leave out the reference's namespace",
        ),
        (
            "NetworkAuthentication",
            alpha1,
            json!({"networks": []}),
            "spec.networks",
        ),
        (
            "NetworkAuthentication",
            alpha1,
            json!({"networks": [{"cidr": "10.0.0.0/33"}]}),
            "spec.networks[0].cidr",
        ),
        (
            "NetworkAuthentication",
            alpha1,
            json!({"networks": [{"cidr": "10.0.0.0/8", "except": ["any"]}]}),
            "spec.networks[0].except[0]",
        ),
        (
            "HTTPLocalRateLimitPolicy",
            alpha1,
            json!({"total": {"requestsPerSecond": 1}}),
            "targetRef must name the Server",
        ),
        (
            "HTTPLocalRateLimitPolicy",
            alpha1,
            json!({"targetRef": {"kind": "Service", "name": "a"}}),
            "only a Server",
        ),
        (
            "HTTPLocalRateLimitPolicy",
            alpha1,
            json!({"targetRef": server, "total": {"requestsPerSecond": 0}}),
            "greater than or equal to 1",
        ),
        (
            "HTTPLocalRateLimitPolicy",
            alpha1,
            json!({"targetRef": server, "total": {"requestsPerSecond": 1}, "identity": {"requestsPerSecond": 2}}),
            "must not be above",
        ),
        (
            "HTTPLocalRateLimitPolicy",
            alpha1,
            json!({"targetRef": server, "total": {"requestsPerSecond": 1}, "overrides": [{"requestsPerSecond": 2, "clientRefs": [{"kind": "ServiceAccount", "name": "a"}]}]}),
            "must not be above",
        ),
        (
            "HTTPLocalRateLimitPolicy",
            alpha1,
            json!({"targetRef": server, "overrides": [{"requestsPerSecond": 2, "clientRefs": [{"kind": "Pod", "name": "a"}]}]}),
            "must be a ServiceAccount",
        ),
        (
            "EgressNetwork",
            alpha1,
            json!({"trafficPolicy": "Maybe"}),
            "spec.trafficPolicy",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"rules": [{"matches": [{"path": {"type": "Glob", "value": "/"}}]}]}),
            "PathPrefix",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"rules": [{"matches": [{"path": {"value": "a"}}]}]}),
            "must begin with /",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"rules": [{"filters": [{"type": "RequestRedirect"}]}]}),
            "requestRedirect must be given",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"rules": [{"filters": [{"type": "RequestMirror"}]}]}),
            "RequestHeaderModifier",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"rules": [{"filters": [{"type": "RequestRedirect", "requestRedirect": {"path": {"type": "ReplaceFullPath"}}}]}]}),
            "replaceFullPath must be given",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"rules": [{"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 200}}]}]}),
            "statusCode",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"rules": [{"timeouts": {"request": "10"}}]}),
            "spec.rules[0].timeouts.request",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"parentRefs": [{"name": "a", "port": 0}]}),
            "spec.parentRefs[0].port",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"parentRefs": [{"kind": "EgressNetwork", "name": "a"}]}),
            "a port must be given for an EgressNetwork",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"rules": [{"timeouts": {"request": "1m", "backendRequest": "61s"}}]}),
            "must not be longer than request",
        ),
        (
            "HTTPRoute",
            beta3,
            json!({"rules": [{"filters": [{"type": "RequestRedirect", "requestRedirect": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "a/b"}}}]}]}),
            "a path must begin with /",
        ),
        (
            "ServiceProfile",
            "linkerd.io/v1alpha2",
            json!({"routes": [{"name": "a", "condition": {}}]}),
            "a condition must say something",
        ),
        (
            "ServiceProfile",
            "linkerd.io/v1alpha2",
            json!({"routes": [{"name": "a", "condition": {"all": [{"method": 1}]}}]}),
            "spec.routes[0].condition.all[0].method",
        ),
        (
            "ServiceProfile",
            "linkerd.io/v1alpha2",
            json!({"routes": [{"name": "a", "condition": {"method": "GET"}, "responseClasses": [{"condition": {"status": {"min": 600}}}]}]}),
            "condition.status.min",
        ),
        (
            "ServiceProfile",
            "linkerd.io/v1alpha2",
            json!({"dstOverrides": [{"authority": "a", "weight": "half"}]}),
            "spec.dstOverrides[0].weight",
        ),
        ("ExternalWorkload", workload, json!({}), "meshTLS must be given"),
        (
            "ExternalWorkload",
            workload,
            json!({"meshTLS": {"identity": "a", "serverName": "b"}, "workloadIPs": [{"ip": "1.2.3"}]}),
            "spec.workloadIPs[0].ip",
        ),
        (
            "Mesh",
            mesh,
            json!({"source": {}}),
            "exactly one of git, directory and inline",
        ),
        (
            "Mesh",
            mesh,
            json!({"source": {"git": {"url": "https://git.example.com/a"}, "directory": {"path": "/a"}}}),
            "exactly one of git",
        ),
        (
            "Mesh",
            mesh,
            json!({"source": {"git": {"url": "https://git.example.com/a", "ref": {"branch": "a", "tag": "b"}}}}),
            "exactly one of branch, tag and commit",
        ),
        (
            "Mesh",
            mesh,
            json!({"source": {"git": {"url": "git@git.example.com:a"}}}),
            "spec.source.git.url",
        ),
        (
            "Mesh",
            mesh,
            git(json!({"path": "a/../../b"})),
            "must not leave it",
        ),
        ("Mesh", mesh, git(json!({"interval": "1m30s"})), "spec.interval"),
    ]
}
