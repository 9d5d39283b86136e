//! Routes, Services and ServiceProfiles.

use super::*;

#[test]
fn http_routes() {
    let server = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "a"});
    let spec = |rule: Value| json!({"parentRefs": [server], "rules": [rule]});
    for (api_version, gateway) in [(POLICY, false), (GATEWAY, true)] {
        let kind = "HTTPRoute";
        admitted(
            api_version,
            kind,
            &spec(json!({"matches": [{"path": {"type": "Exact", "value": "/foo"}}]})),
        );
        admitted(
            api_version,
            kind,
            &spec(json!({"matches": [{"path": {"type": "RegularExpression", "value": "foo.*"}}]})),
        );
        admitted(api_version, kind, &json!({"parentRefs": [server]}));
        let relative = json!({"matches": [{"path": {"type": "Exact", "value": "foo/bar"}}]});
        refused(
            api_version,
            kind,
            &spec(relative),
            "spec.rules[0].matches[0].path.value: `foo/bar` must begin with /",
        );
        let redirect = |path: Value| json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"path": path}}]});
        let full = redirect(json!({"type": "ReplaceFullPath", "replaceFullPath": "foo/bar"}));
        refused(
            api_version,
            kind,
            &spec(full),
            "spec.rules[0].filters[0].requestRedirect.path",
        );
        let prefix = redirect(json!({"type": "ReplacePrefixMatch", "replacePrefixMatch": ""}));
        refused(api_version, kind, &spec(prefix), "must begin with /");
        let regex = json!({"matches": [{"path": {"type": "RegularExpression", "value": "("}}]});
        refused(api_version, kind, &spec(regex), "regular expression");
        let header = json!({"filters": [{"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": ["a b"]}}]});
        refused(api_version, kind, &spec(header), "header name");

        let egress = |port: Value| {
            let mut parent = json!({"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "out"});
            parent["port"] = port;
            json!({"parentRefs": [parent]})
        };
        admitted(api_version, kind, &egress(json!(443)));
        refused(
            api_version,
            kind,
            &egress(Value::Null),
            "spec.parentRefs[0].port must be given",
        );
        let portless = spec(json!({"backendRefs": [{"name": "web"}]}));
        match gateway {
            true => refused(
                api_version,
                kind,
                &portless,
                "spec.rules[0].backendRefs[0].port must be given",
            ),
            false => warned(
                api_version,
                kind,
                &portless,
                "spec.rules[0].backendRefs[0].port must be given",
            ),
        }
        admitted(
            api_version,
            kind,
            &spec(json!({"backendRefs": [{"group": "x.io", "kind": "Bucket", "name": "b"}]})),
        );
    }
    let mirror = json!({"filters": [{"type": "ExtensionRef", "extensionRef": {"group": "", "kind": "Service", "name": "foo"}}]});
    warned(GATEWAY, "HTTPRoute", &spec(mirror), "the mesh ignores this route");
    let times = |request: &str, backend: &str| {
        spec(json!({"timeouts": {"request": request, "backendRequest": backend}}))
    };
    admitted(POLICY, "HTTPRoute", &times("10s", "10s"));
    refused(
        POLICY,
        "HTTPRoute",
        &times("10s", "11s"),
        "must not be longer than request",
    );
    refused(POLICY, "HTTPRoute", &times("10", "1s"), "duration such as");
}

#[test]
fn other_routes() {
    let method = |method: Value| json!({"rules": [{"matches": [{"method": method}]}]});
    admitted(
        GATEWAY,
        "GRPCRoute",
        &method(json!({"service": "a.B", "method": "C"})),
    );
    refused(
        GATEWAY,
        "GRPCRoute",
        &json!({"rules": [{"backendRefs": [{"name": "web"}]}]}),
        "port must be given",
    );
    for kind in ["TLSRoute", "TCPRoute"] {
        let rule = json!({"backendRefs": [{"name": "web", "port": 80}]});
        admitted(GATEWAY, kind, &json!({"rules": [rule]}));
        refused(GATEWAY, kind, &json!({"rules": []}), "exactly one rule");
        refused(GATEWAY, kind, &json!({"rules": [rule, rule]}), "exactly one rule");
        let egress = json!({"parentRefs": [{"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "out"}], "rules": [rule]});
        refused(GATEWAY, kind, &egress, "port must be given");
    }
}

#[test]
fn annotations_of_routes_are_refused_where_linkerd_reads_them() {
    let service = json!([{"group": "core", "kind": "Service", "name": "web", "port": 80}]);
    let judged = |kind: &str, parents: &Value, annotations: Value| {
        let mut object = object(&json!({"parentRefs": parents}));
        object["metadata"]["annotations"] = annotations;
        judge_in(&validator(), GATEWAY, kind, &object)
    };
    let good = json!({"retry.linkerd.io/http": "5xx,404", "retry.linkerd.io/limit": "2", "timeout.linkerd.io/request": "10s"});
    assert_eq!(judged("HTTPRoute", &service, good), Verdict::default());
    for bad in [
        json!({"retry.linkerd.io/http": "teapot"}),
        json!({"retry.linkerd.io/limit": "-1"}),
        json!({"retry.linkerd.io/timeout": "1.5s"}),
        json!({"timeout.linkerd.io/idle": "1m30s"}),
        json!({"balancer.linkerd.io/failure-accrual": "sometimes"}),
    ] {
        assert_ne!(
            judged("HTTPRoute", &service, bad.clone()).problems,
            [""; 0],
            "{bad}"
        );
        // They mean nothing where traffic comes in.
        let server = json!([{"group": "policy.linkerd.io", "kind": "Server", "name": "web"}]);
        assert_eq!(
            judged("HTTPRoute", &server, bad.clone()),
            Verdict::default(),
            "{bad}"
        );
    }
    let grpc = json!({"retry.linkerd.io/grpc": "teapot"});
    assert_ne!(judged("GRPCRoute", &service, grpc.clone()).problems, [""; 0]);
    // Linkerd does not look at the other kind's.
    let Verdict { problems, warnings } = judged("HTTPRoute", &service, grpc);
    assert_eq!((problems.len(), warnings.len()), (0, 1));
    let Verdict { problems, warnings } =
        judged("HTTPRoute", &service, json!({"timeout.linkerd.io/requst": "10s"}));
    assert_eq!((problems.len(), warnings.len()), (0, 1), "{problems:?}");
}

#[test]
fn services_are_warned_of_and_never_refused() {
    let judged = |annotations: Value| {
        let object =
            json!({"metadata": {"name": "web", "namespace": "shop", "annotations": annotations}, "spec": {}});
        judge_in(&validator(), "v1", "Service", &object)
    };
    assert_eq!(
        judged(json!({"retry.linkerd.io/http": "5xx", "team": "shop"})),
        Verdict::default()
    );
    let Verdict { problems, warnings } = judged(json!({
        "retry.linkerd.io/http": "teapot",
        "timeout.linkerd.io/request": "1.5s",
        "balancer.linkerd.io/failure-accrual": "sometimes",
        "config.linkerd.io/opaque-ports": "http",
    }));
    assert_eq!((problems.len(), warnings.len()), (0, 4), "{warnings:?}");
}

#[test]
fn service_profiles() {
    let (version, kind) = ("linkerd.io/v1alpha2", "ServiceProfile");
    let route = |condition: Value| json!({"routes": [{"name": "a", "condition": condition}]});
    let class = |condition: Value| {
        let classes = json!([{"condition": condition, "isFailure": true}]);
        json!({"routes": [{"name": "a", "condition": {"method": "GET"}, "responseClasses": classes}]})
    };
    let budget = |ratio: f64, ttl: &str| json!({"retryBudget": {"retryRatio": ratio, "minRetriesPerSecond": 5, "ttl": ttl}});
    let timeout =
        |text: &str| json!({"routes": [{"name": "a", "condition": {"method": "GET"}, "timeout": text}]});
    admitted(version, kind, &json!({}));
    admitted(
        version,
        kind,
        &route(
            json!({"method": "GET", "pathRegex": "/a", "any": [{"all": [{"method": "POST"}, {"not": {"pathRegex": "/b"}}]}]}),
        ),
    );
    admitted(
        version,
        kind,
        &class(
            json!({"status": {"min": 500}, "all": [{"status": {"min": 500, "max": 599}}, {"not": {"status": {"max": 503}}}]}),
        ),
    );
    admitted(version, kind, &budget(0.2, "1m30s"));
    admitted(version, kind, &timeout("1.5s"));
    admitted(
        version,
        kind,
        &json!({"dstOverrides": [{"authority": "a.b.svc.cluster.local:80", "weight": "0.5"}, {"authority": "c", "weight": 1}]}),
    );

    for (spec, words) in [
        (json!({"foo": "bar"}), "spec: unknown field `foo`"),
        (
            json!({"routes": [{"name": "a", "foo": 1, "condition": {"method": "GET"}}]}),
            "spec.routes[0]: unknown field `foo`",
        ),
        (
            route(json!({"foo": "bar", "method": "GET"})),
            "spec.routes[0].condition: unknown field `foo`",
        ),
        (
            route(json!({"all": [{"method": "GET"}, {"methd": "GET"}]})),
            "spec.routes[0].condition.all[1]: unknown field",
        ),
        (
            json!({"routes": [{"name": "a"}]}),
            "spec.routes[0].condition must be given",
        ),
        (
            json!({"routes": [{"condition": {"method": "GET"}}]}),
            "spec.routes[0].name must be given",
        ),
        (route(json!({"method": ""})), "a condition must say something"),
        (
            route(json!({"not": {}})),
            "spec.routes[0].condition.not: a condition must say something",
        ),
        (
            class(json!({})),
            "spec.routes[0].responseClasses[0].condition: a condition must say something",
        ),
        (
            class(json!({"status": {"min": 500, "max": 600}})),
            "status.max: 600 is no status",
        ),
        (
            class(json!({"not": {"status": {"min": 1}}})),
            "status.min: 1 is no status",
        ),
        (class(json!({"status": {"min": false}})), "false is no status"),
        (
            class(json!({"status": {"min": 300, "max": 200}})),
            "must not be below",
        ),
        (budget(-0.2, "10s"), "must not be negative"),
        (budget(0.2, ""), "spec.retryBudget.ttl must be given"),
        (budget(0.2, "foo"), "`foo` is not a duration"),
        (timeout("10"), "`10` is not a duration"),
        (
            json!({"retryBudget": {"retryRatio": 0.2, "minRetriesPerSecond": -5, "ttl": "10s"}}),
            "-5",
        ),
    ] {
        refused(version, kind, &spec, words);
    }
    warned(version, kind, &timeout("-1s"), "negative");
    warned(
        version,
        kind,
        &route(json!({"pathRegex": "("})),
        "no regular expression",
    );
    warned(version, kind, &json!({"opaquePorts": ["x"]}), "opaquePorts");
}
