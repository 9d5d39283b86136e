//! Settings of Services and routes that reach clients: annotations, application protocols, and the extension.

use serde_json::{Value, json};

use super::{show, space::*};

fn annotated(annotations: Value) -> Value {
    json!({"metadata": {"annotations": annotations}})
}

fn route(rule: Value) -> Value {
    let parent = json!({"group": "", "kind": "Service", "name": "web", "port": 80});
    json!({"spec": {"parentRefs": [parent], "rules": [rule]}})
}

const SERVED: &str = "detect of core/Service/web";

#[tokio::test]
async fn outbound_annotations_of_services_and_routes() -> anyhow::Result<()> {
    let space = Space::new("out-annotations").await?;
    let ip = space.service("web", json!({})).await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let plain = [
        SERVED,
        "http: * -> web.out-annotations:80",
        "opaq: bytes -> web.out-annotations:80",
    ];
    told.becomes(&plain).await?;
    let traffic = json!({
        "retry.linkerd.io/http": "5xx",
        "retry.linkerd.io/limit": "3",
        "retry.linkerd.io/timeout": "100ms",
        "timeout.linkerd.io/request": "5s",
        "timeout.linkerd.io/response": "2s",
        "timeout.linkerd.io/idle": "30s",
    });
    space.service("web", annotated(traffic)).await?;
    let own =
        "http: * request 5s response 2s idle 30s retries 3 on 500-599 after 100ms -> web.out-annotations:80";
    told.becomes(&[SERVED, own, plain[2]]).await?;
    // One annotation on the route replaces all of the Service's.
    let mut one = route(json!({}));
    merge(&mut one, annotated(json!({"timeout.linkerd.io/request": "1s"})));
    space.put(HTTP_ROUTE, "r", one).await?;
    let routed = "gateway/HTTPRoute/r: * request 1s -> web.out-annotations:80";
    told.becomes(&[SERVED, routed, plain[2]]).await?;
    space.put(HTTP_ROUTE, "r", route(json!({}))).await?;
    let inherited = own.replace("http:", "gateway/HTTPRoute/r:");
    told.becomes(&[SERVED, &inherited, plain[2]]).await?;
    space.delete(HTTP_ROUTE, "r").await?;
    told.becomes(&[SERVED, own, plain[2]]).await?;
    // What is not understood is as if it were not there.
    let wrong = json!({"retry.linkerd.io/http": "often", "timeout.linkerd.io/request": "1.5s"});
    space.service("web", annotated(wrong)).await?;
    told.becomes(&plain).await
}

#[tokio::test]
async fn outbound_failure_accrual() -> anyhow::Result<()> {
    let space = Space::new("out-accrual").await?;
    let ip = space.service("web", json!({})).await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let plain = [
        SERVED,
        "http: * -> web.out-accrual:80",
        "opaq: bytes -> web.out-accrual:80",
    ];
    told.becomes(&plain).await?;
    let consecutive = json!({
        "balancer.linkerd.io/failure-accrual": "consecutive",
        "balancer.linkerd.io/failure-accrual-consecutive-max-failures": "3",
        "balancer.linkerd.io/failure-accrual-consecutive-max-penalty": "20s",
        "balancer.heddle.dev/min-ready-endpoints": "2",
    });
    space.service("web", annotated(consecutive)).await?;
    told.becomes(&[
        SERVED,
        "ejects after 3 for 1s to 20s, keeps 2",
        plain[1],
        plain[2],
    ])
    .await?;
    let unified = json!({
        "balancer.linkerd.io/failure-accrual": "unified",
        "balancer.alpha.linkerd.io/failure-accrual-success-rate-threshold": "0.5",
    });
    space.service("web", annotated(unified)).await?;
    told.becomes(&[
        SERVED,
        "ejects below 0.5 of 5 for 1s to 60s, keeps 0",
        plain[1],
        plain[2],
    ])
    .await?;
    let biased = json!({"balancer.alpha.linkerd.io/penalize-failures": "true"});
    space.service("web", annotated(biased)).await?;
    let lines = [format!("{} biased", plain[1]), format!("{} biased", plain[2])];
    told.becomes(&[SERVED, &lines[0], &lines[1]]).await?;
    space.service("web", json!({})).await?;
    told.becomes(&plain).await
}

#[tokio::test]
async fn outbound_application_protocols() -> anyhow::Result<()> {
    let space = Space::new("out-protocol").await?;
    let ip = space.service("web", json!({})).await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let (http, opaque) = (
        "http: * -> web.out-protocol:80",
        "opaq: bytes -> web.out-protocol:80",
    );
    told.becomes(&[SERVED, http, opaque]).await?;
    for (protocol, shown, line) in [
        ("http", "http1", http),
        ("linkerd.io/opaque", "opaque", opaque),
        ("kubernetes.io/h2c", "http2", http),
        // Linkerd: whatever is not known is the application's own affair.
        ("https", "opaque", opaque),
        ("http", "http1", http),
        ("linkerd.io/tcp", "opaque", opaque),
    ] {
        let port = json!({"name": "http", "port": 80, "targetPort": 8080, "appProtocol": protocol});
        space.service("web", json!({"spec": {"ports": [port]}})).await?;
        let of = format!("{shown} of core/Service/web");
        told.becomes(&[&of, line]).await?;
    }
    space.service("web", json!({})).await?;
    told.becomes(&[SERVED, http, opaque]).await?;
    space
        .service("web", annotated(json!({"config.linkerd.io/opaque-ports": "80"})))
        .await?;
    told.becomes(&["opaque of core/Service/web", opaque]).await?;
    space.service("web", json!({})).await?;
    told.becomes(&[SERVED, http, opaque]).await
}

/// What linkerd2-proxy-api has no place for is there for those who know it, and in nobody else's way.
#[tokio::test]
async fn outbound_extension() -> anyhow::Result<()> {
    let space = Space::new("out-extension").await?;
    let ip = space.service("web", json!({})).await?;
    space.service("shadow", json!({})).await?;
    let target = format!("{ip}:80");
    let mut told = space.outbound(&target).await?;
    let plain = [
        SERVED,
        "http: * -> web.out-extension:80",
        "opaq: bytes -> web.out-extension:80",
    ];
    told.becomes(&plain).await?;
    let rewrite = json!({"hostname": "new.example.com", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/all"}});
    let rule = json!({
        "filters": [
            {"type": "URLRewrite", "urlRewrite": rewrite},
            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "shadow", "port": 80}, "percent": 10}},
        ],
        "backendRefs": [{"name": "web", "port": 80}],
        "sessionPersistence": {"sessionName": "sid", "type": "Cookie", "absoluteTimeout": "1h"},
    });
    space.put(HTTP_ROUTE, "r", route(rule)).await?;
    let standard = [
        SERVED,
        "gateway/HTTPRoute/r: * -> 1 x web.out-extension:80",
        plain[2],
    ];
    let extension = "0.0 host new.example.com path /all mirrors 10/100 to shadow.out-extension:80 keeps by cookie sid for 3600s";
    let mut whole = standard.to_vec();
    whole.push(extension);
    told.becomes(&whole).await?;
    let mut stock = space.world.policy.outbound();
    let policy = stock.get(space.traffic(&target)?).await?.into_inner();
    assert_eq!(show::outbound::standard(policy)?, standard);

    let balancing = json!({"balancer.heddle.dev/session-affinity": "hash-source", "balancer.heddle.dev/max-requests": "7"});
    space.service("web", annotated(balancing)).await?;
    whole.push("web.out-extension:80 hashes Source takes 7 requests");
    told.becomes(&whole).await?;
    space.service("web", json!({})).await?;
    space.delete(SERVICE, "shadow").await?;
    // There is nowhere left to mirror to.
    whole.truncate(standard.len());
    whole.push("0.0 host new.example.com path /all keeps by cookie sid for 3600s");
    told.becomes(&whole).await?;
    space.delete(HTTP_ROUTE, "r").await?;
    told.becomes(&plain).await?;

    let regex = json!({"type": "RegularExpression", "service": "shop\\..*", "method": "Get.*"});
    space
        .put(GRPC_ROUTE, "g", route(json!({"matches": [{"method": regex}]})))
        .await?;
    told.becomes(&[
        "grpc of core/Service/web",
        "gateway/GRPCRoute/g: shop\\..*/Get.* -> web.out-extension:80",
        "0.0 match 0 ~shop\\..*/Get.*",
    ])
    .await?;
    space.delete(GRPC_ROUTE, "g").await?;
    told.becomes(&plain).await
}
