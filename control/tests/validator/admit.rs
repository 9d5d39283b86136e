//! For each kind: what is admitted, what is refused and in which words, and what clients are warned of.

use heddle_tests_harness::wait;
use serde_json::{Value, json};

use super::world::{LIMIT, Said, World};

/// An object to be, and what comes of it.
struct Case {
    api_version: &'static str,
    plural: &'static str,
    kind: &'static str,
    body: Value,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug)]
enum Outcome {
    Admitted,
    /// With a warning that contains these words.
    Warned(&'static str),
    /// By the webhook, in these words.
    Denied(&'static str),
    /// By the schema, which comes first.
    Invalid(&'static str),
}

use Outcome::{Admitted, Denied, Invalid, Warned};

fn case(
    api_version: &'static str,
    plural: &'static str,
    kind: &'static str,
    spec: Value,
    outcome: Outcome,
) -> Case {
    let body = json!({"spec": spec});
    Case {
        api_version,
        plural,
        kind,
        body,
        outcome,
    }
}

const POLICY: &str = "policy.linkerd.io/v1alpha1";
const GATEWAY: &str = "gateway.networking.k8s.io/v1";

fn admit_server() -> Vec<Case> {
    let case = |spec, outcome| case("policy.linkerd.io/v1beta3", "servers", "Server", spec, outcome);
    vec![
        case(
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "port": 5432}),
            Admitted,
        ),
        case(
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "port": 8080}),
            Warned("Server first selects"),
        ),
        case(json!({"podSelector": {}, "port": "80"}), Warned("without quotes")),
        case(json!({"port": 80}), Invalid("exactly one of podSelector")),
    ]
}

fn admit_server_of_old_versions() -> Vec<Case> {
    let spec = json!({"podSelector": {"matchLabels": {"app": "web"}}, "port": 8080});
    let old = |version| {
        case(
            version,
            "servers",
            "Server",
            spec.clone(),
            Warned("Server first selects"),
        )
    };
    vec![
        old("policy.linkerd.io/v1alpha1"),
        old("policy.linkerd.io/v1beta1"),
        old("policy.linkerd.io/v1beta2"),
    ]
}

fn admit_server_authorization() -> Vec<Case> {
    let case = |client: Value, outcome| {
        let spec = json!({"server": {"name": "a"}, "client": client});
        case(
            "policy.linkerd.io/v1beta1",
            "serverauthorizations",
            "ServerAuthorization",
            spec,
            outcome,
        )
    };
    let outside = json!({"networks": [{"cidr": "10.0.0.0/8", "except": ["fd00::/8"]}]});
    vec![
        case(json!({"meshTLS": {"identities": ["*"]}}), Admitted),
        case(
            outside,
            Denied("spec.client.networks[0]: the exception fd00::/8 is no part of 10.0.0.0/8"),
        ),
    ]
}

fn admit_authorization_policy() -> Vec<Case> {
    let case = |target: Value, required: Value, outcome| {
        let spec = json!({"targetRef": target, "requiredAuthenticationRefs": required});
        case(
            POLICY,
            "authorizationpolicies",
            "AuthorizationPolicy",
            spec,
            outcome,
        )
    };
    let server = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "a"});
    let tls = json!({"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "a"});
    let namespace = |name: &str| json!({"kind": "Namespace", "name": name});
    vec![
        case(namespace("shop"), json!([tls]), Admitted),
        case(
            namespace("linkerd"),
            json!([tls]),
            Denied("cannot target namespace linkerd, only its own"),
        ),
        case(
            server.clone(),
            json!([tls, tls]),
            Invalid("at most one MeshTLSAuthentication"),
        ),
        case(
            json!({"kind": "Pod", "name": "a"}),
            json!([]),
            Invalid("a policy's target must be"),
        ),
    ]
}

fn admit_mesh_tls_authentication() -> Vec<Case> {
    let case = |spec, outcome| {
        case(
            POLICY,
            "meshtlsauthentications",
            "MeshTLSAuthentication",
            spec,
            outcome,
        )
    };
    vec![
        case(
            json!({"identityRefs": [{"kind": "Namespace", "name": "a"}]}),
            Admitted,
        ),
        case(json!({"identities": []}), Warned("nobody is authenticated")),
        case(json!({}), Invalid("exactly one of identities")),
    ]
}

fn admit_network_authentication() -> Vec<Case> {
    let case = |networks, outcome| {
        let spec = json!({"networks": networks});
        case(
            POLICY,
            "networkauthentications",
            "NetworkAuthentication",
            spec,
            outcome,
        )
    };
    vec![
        case(json!([{"cidr": "10.0.0.0/8", "except": ["10.0.0.1"]}]), Admitted),
        case(
            json!([{"cidr": "10.0.0.1", "except": ["10.0.0.0/8"]}]),
            Denied("leaves nothing of 10.0.0.1"),
        ),
        case(json!([{"cidr": "10.0.0.0/33"}]), Invalid("spec.networks[0].cidr")),
    ]
}

fn admit_egress_network() -> Vec<Case> {
    let case = |spec, outcome| case(POLICY, "egressnetworks", "EgressNetwork", spec, outcome);
    let except = json!([{"cidr": "192.0.2.0/24", "except": ["192.0.3.0/24"]}]);
    vec![
        case(json!({"trafficPolicy": "Deny"}), Admitted),
        case(
            json!({"trafficPolicy": "Deny", "networks": except}),
            Denied("no part of 192.0.2.0/24"),
        ),
        case(
            json!({"trafficPolicy": "Deny", "networks": []}),
            Invalid("spec.networks"),
        ),
    ]
}

fn admit_http_local_rate_limit_policy() -> Vec<Case> {
    let case = |spec, outcome| {
        case(
            POLICY,
            "httplocalratelimitpolicies",
            "HTTPLocalRateLimitPolicy",
            spec,
            outcome,
        )
    };
    let server = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "a"});
    vec![
        case(
            json!({"targetRef": server, "total": {"requestsPerSecond": 10}}),
            Admitted,
        ),
        case(
            json!({"targetRef": server, "overrides": [{"requestsPerSecond": 1, "clientRefs": []}]}),
            Warned("is for nobody"),
        ),
        case(
            json!({"targetRef": server, "total": {"requestsPerSecond": 1}, "identity": {"requestsPerSecond": 2}}),
            Invalid("must not be above"),
        ),
    ]
}

fn admit_http_route() -> Vec<Case> {
    let case = |rule: Value, outcome| {
        let parent = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "a"});
        let spec = json!({"parentRefs": [parent], "rules": [rule]});
        case(
            "policy.linkerd.io/v1beta3",
            "httproutes",
            "HTTPRoute",
            spec,
            outcome,
        )
    };
    let regex = |text: &str| json!({"matches": [{"path": {"type": "RegularExpression", "value": text}}]});
    vec![
        case(regex("/a.*"), Admitted),
        case(regex("("), Denied("`(` is no regular expression")),
        case(
            json!({"backendRefs": [{"name": "web"}]}),
            Warned("backendRefs[0].port must be given"),
        ),
        case(
            json!({"matches": [{"path": {"value": "a"}}]}),
            Invalid("must begin with /"),
        ),
        case(
            json!({"timeouts": {"request": "1s", "backendRequest": "2s"}}),
            Invalid("must not be longer than request"),
        ),
    ]
}

fn admit_gateway_http_route() -> Vec<Case> {
    let case = |parent: Value, rule: Value, outcome| {
        case(
            GATEWAY,
            "httproutes",
            "HTTPRoute",
            json!({"parentRefs": [parent], "rules": [rule]}),
            outcome,
        )
    };
    let server = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "a"});
    let egress = json!({"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "a"});
    let regex = json!({"matches": [{"path": {"type": "RegularExpression", "value": "("}}]});
    let extension =
        json!({"type": "ExtensionRef", "extensionRef": {"group": "", "kind": "Service", "name": "a"}});
    vec![
        case(
            server.clone(),
            json!({"matches": [{"path": {"type": "Exact", "value": "/a"}}]}),
            Admitted,
        ),
        case(server.clone(), regex, Denied("`(` is no regular expression")),
        case(egress, json!({}), Denied("spec.parentRefs[0].port must be given")),
        case(
            server,
            json!({"filters": [extension]}),
            Warned("the mesh ignores this route"),
        ),
    ]
}

fn admit_gateway_grpc_route() -> Vec<Case> {
    let case = |spec, outcome| case(GATEWAY, "grpcroutes", "GRPCRoute", spec, outcome);
    let egress = json!({"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "a"});
    vec![
        case(
            json!({"rules": [{"matches": [{"method": {"service": "a.B"}}]}]}),
            Admitted,
        ),
        case(
            json!({"parentRefs": [egress]}),
            Denied("spec.parentRefs[0].port must be given"),
        ),
    ]
}

fn admit_tls_and_tcp_route() -> Vec<Case> {
    let rule = json!({"backendRefs": [{"name": "web", "port": 443}]});
    let egress = json!({"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "a"});
    let hosts = json!(["a.example.com"]);
    let tls = |spec, outcome| case(GATEWAY, "tlsroutes", "TLSRoute", spec, outcome);
    let tcp = |spec, outcome| case(GATEWAY, "tcproutes", "TCPRoute", spec, outcome);
    let no_port = Denied("spec.parentRefs[0].port must be given");
    vec![
        tls(json!({"hostnames": hosts, "rules": [rule]}), Admitted),
        tls(
            json!({"hostnames": hosts, "parentRefs": [egress], "rules": [rule]}),
            no_port,
        ),
        tcp(json!({"rules": [rule]}), Admitted),
        tcp(json!({"parentRefs": [egress], "rules": [rule]}), no_port),
    ]
}

fn admit_service_profile() -> Vec<Case> {
    let case = |route: Value, outcome| {
        case(
            "linkerd.io/v1alpha2",
            "serviceprofiles",
            "ServiceProfile",
            json!({"routes": [route]}),
            outcome,
        )
    };
    let route = |condition: Value| json!({"name": "a", "condition": condition});
    let timeout = |text: &str| json!({"name": "a", "condition": {"method": "GET"}, "timeout": text});
    vec![
        case(
            route(json!({"all": [{"method": "GET"}, {"not": {"pathRegex": "/b"}}]})),
            Admitted,
        ),
        case(timeout("1m30s"), Admitted),
        case(
            timeout("soon"),
            Denied("spec.routes[0].timeout: `soon` is not a duration"),
        ),
        case(
            route(json!({"any": [{"method": "GET"}, {}]})),
            Denied("spec.routes[0].condition.any[1]: a condition must say something"),
        ),
    ]
}

fn admit_service() -> Vec<Case> {
    let with = |annotations: Value, outcome| {
        let body = json!({
            "metadata": {"annotations": annotations},
            "spec": {"ports": [{"port": 80}], "clusterIP": "None"},
        });
        Case {
            api_version: "v1",
            plural: "services",
            kind: "Service",
            body,
            outcome,
        }
    };
    vec![
        with(
            json!({"retry.linkerd.io/http": "5xx", "timeout.linkerd.io/request": "10s"}),
            Admitted,
        ),
        with(
            json!({"timeout.linkerd.io/request": "1.5s"}),
            Warned("timeout.linkerd.io/request: `1.5s` is ignored"),
        ),
        with(
            json!({"config.linkerd.io/opaque-ports": "http"}),
            Warned("config.linkerd.io/opaque-ports"),
        ),
    ]
}

async fn said(world: &World, index: usize, case: &Case) -> anyhow::Result<Said> {
    let Case {
        api_version,
        plural,
        kind,
        body,
        ..
    } = case;
    let mut object = body.clone();
    object["apiVersion"] = json!(api_version);
    object["kind"] = json!(kind);
    object["metadata"]["name"] = json!(format!("case-{index}"));
    let root = if api_version.contains('/') { "apis" } else { "api" };
    let path = format!("/{root}/{api_version}/namespaces/shop/{plural}");
    world.create(&path, &object, true).await
}

#[tokio::test]
async fn admit_every_kind() -> anyhow::Result<()> {
    let world = World::new("validator-admit").await?;
    let controller = world.start(world.port).await?;
    world.apply_configurations().await?;
    world.bundle_in_place().await?;
    let first = json!({
        "apiVersion": "policy.linkerd.io/v1beta3", "kind": "Server", "metadata": {"name": "first"},
        "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "port": 8080},
    });
    // API servers see a changed configuration a moment later.
    wait::until_ok("the API server to ask the webhook", LIMIT, || async {
        let cases = [admit_service_profile(), admit_network_authentication()];
        for case in cases
            .iter()
            .flatten()
            .filter(|case| matches!(case.outcome, Denied(_)))
        {
            let said = said(&world, 0, case).await?;
            anyhow::ensure!(said.message.contains("denied the request"), "{said:?}");
        }
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let created = world
        .create(
            "/apis/policy.linkerd.io/v1beta3/namespaces/shop/servers",
            &first,
            false,
        )
        .await?;
    anyhow::ensure!(created.code == 201, "{created:?}");
    wait::until_ok("the Server to be in the index", LIMIT, || async {
        let said = said(&world, 0, &admit_server()[1]).await?;
        anyhow::ensure!(!said.warnings.is_empty(), "{said:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;

    let cases: Vec<Case> = [
        admit_server(),
        admit_server_of_old_versions(),
        admit_server_authorization(),
        admit_authorization_policy(),
        admit_mesh_tls_authentication(),
        admit_network_authentication(),
        admit_egress_network(),
        admit_http_local_rate_limit_policy(),
        admit_http_route(),
        admit_gateway_http_route(),
        admit_gateway_grpc_route(),
        admit_tls_and_tcp_route(),
        admit_service_profile(),
        admit_service(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut wrong = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let said = said(&world, index, case).await?;
        let by_webhook = said.message.contains("denied the request");
        let right = match case.outcome {
            Admitted => said.code == 201 && said.warnings.is_empty(),
            Warned(words) => said.code == 201 && said.warnings.iter().any(|text| text.contains(words)),
            Denied(words) => said.code == 422 && by_webhook && said.message.contains(words),
            Invalid(words) => said.code == 422 && !by_webhook && said.message.contains(words),
        };
        if !right {
            wrong.push(format!(
                "{} {} {:?}: {said:?}",
                case.kind, case.body, case.outcome
            ));
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let metrics = controller.admin("/metrics").await?;
    anyhow::ensure!(
        metrics.contains("policy_validator_reviews_total{kind=\"Server\",result=\"warned\"}"),
        "{metrics}"
    );
    Ok(())
}
