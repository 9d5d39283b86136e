//! Statuses, Events and the Lease, as a user of the API server sees them.

use anyhow::Context as _;
use heddle_tests_harness::{
    audit::{AuditLog, Write},
    wait,
};
use k8s_openapi::api::core::v1::Event;
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::world::{LIMIT, Program, Writer, cluster, policy, policy_crds, web_service};

const CONTROLLER: &str = "linkerd.io/policy-controller";

async fn live(writer: &Writer, object: &Value) -> anyhow::Result<Value> {
    let name = object["metadata"]["name"].as_str().context("no name")?;
    Ok(serde_json::to_value(writer.api(object)?.get(name).await?)?)
}

/// `TYPE=STATUS/REASON` of conditions.
fn said(conditions: &Value) -> Vec<String> {
    let text = |key: &str, one: &Value| one[key].as_str().unwrap_or_default().to_owned();
    let one = |one: &Value| {
        format!(
            "{}={}/{}",
            text("type", one),
            text("status", one),
            text("reason", one)
        )
    };
    conditions
        .as_array()
        .map(|all| all.iter().map(one).collect())
        .unwrap_or_default()
}

/// Waits until an object's own conditions, or those of its only parent of ours, say this.
async fn says(writer: &Writer, object: &Value, wanted: &[&str]) -> anyhow::Result<Value> {
    let what = format!(
        "{} {} to say {wanted:?}",
        object["kind"], object["metadata"]["name"]
    );
    let live = wait::until_ok(what, LIMIT, || async {
        let live = live(writer, object).await?;
        let parents = live["status"]["parents"].as_array().cloned().unwrap_or_default();
        let ours = parents
            .iter()
            .find(|parent| parent["controllerName"] == CONTROLLER);
        let conditions = ours.map_or(&live["status"]["conditions"], |parent| &parent["conditions"]);
        anyhow::ensure!(said(conditions) == wanted, "{}", live["status"]);
        Ok::<_, anyhow::Error>(live)
    });
    Ok(live.await?)
}

/// What the programs under test have written.
fn ours(log: &AuditLog) -> anyhow::Result<Vec<Write>> {
    let mut writes = log.writes()?;
    writes.retain(|write| write.user_agent.starts_with("heddle-control") && write.resource != "leases");
    Ok(writes)
}

async fn is_leader(program: &Program, lease: &str) -> anyhow::Result<bool> {
    let metrics = program.admin("/metrics").await?;
    Ok(metrics.contains(&format!("lease_leader{{lease=\"{lease}\"}} 1")))
}

async fn leads(program: &Program, lease: &str) -> anyhow::Result<()> {
    wait::until_ok(format!("the program to hold {lease}"), LIMIT, || async {
        anyhow::ensure!(is_leader(program, lease).await?, "it does not");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    Ok(())
}

async fn mesh_namespace(writer: &Writer) -> anyhow::Result<()> {
    writer.namespace("linkerd", json!({})).await
}

fn route(api: &str, kind: &str, name: &str, parent: Value, rules: Value) -> Value {
    json!({
        "apiVersion": api,
        "kind": kind,
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"parentRefs": [parent], "rules": rules},
    })
}

fn parent(group: &str, kind: &str, name: &str, port: Option<u16>) -> Value {
    let mut parent = json!({"group": group, "kind": kind, "name": name});
    if let Some(port) = port {
        parent["port"] = json!(port);
    }
    parent
}

const GATEWAY: &str = "gateway.networking.k8s.io/v1";
const LEASE: &str = "policy-controller-write";

#[tokio::test]
async fn statuses_follow_the_cluster_and_rest_with_it() -> anyhow::Result<()> {
    let (cluster, writer) = cluster("control-status").await?;
    policy_crds(&writer).await?;
    heddle_tests_harness::crds::apply(
        &writer.0,
        &heddle_tests_harness::crds::gateway_api_experimental()?,
    )
    .await?;
    mesh_namespace(&writer).await?;
    let _program = Program::start("policy", &cluster).await?;

    // A route waits for its parent and its backend.
    let backends = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    let web = parent("core", "Service", "web", Some(80));
    let http = route(
        "policy.linkerd.io/v1beta3",
        "HTTPRoute",
        "http",
        web.clone(),
        backends,
    );
    writer.apply(http.clone()).await?;
    says(
        &writer,
        &http,
        &[
            "Accepted=False/NoMatchingParent",
            "ResolvedRefs=False/BackendNotFound",
        ],
    )
    .await?;
    web_service(&writer).await?;
    let first = says(
        &writer,
        &http,
        &["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"],
    )
    .await?;
    let entry = &first["status"]["parents"][0];
    assert_eq!(entry["parentRef"], web, "as the route writes it");
    assert_eq!(
        entry["conditions"][0]["observedGeneration"],
        first["metadata"]["generation"]
    );

    // A Gateway API route has a Gateway's controller beside us; its entry stays.
    let mut gateway = route(
        GATEWAY,
        "HTTPRoute",
        "gw",
        parent("", "Service", "web", Some(80)),
        json!([{}]),
    );
    gateway["spec"]["parentRefs"]
        .as_array_mut()
        .context("parents")?
        .push(parent("gateway.networking.k8s.io", "Gateway", "edge", None));
    writer.apply(gateway.clone()).await?;
    let both = ["Accepted=True/Accepted", "ResolvedRefs=True/ResolvedRefs"];
    says(&writer, &gateway, &both).await?;
    let condition = json!({"type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let theirs = json!({
        "parentRef": parent("gateway.networking.k8s.io", "Gateway", "edge", None),
        "controllerName": "example.com/gateway",
        "conditions": [condition],
    });
    // It overwrites the list without looking, as careless controllers do: ours comes back beside it.
    writer
        .api(&gateway)?
        .patch_status(
            "gw",
            &PatchParams::default(),
            &Patch::Merge(json!({"status": {"parents": [theirs]}})),
        )
        .await?;
    let live = says(&writer, &gateway, &both).await?;
    let parents = live["status"]["parents"].as_array().context("parents")?;
    assert_eq!(
        (parents.len(), &parents[0]["controllerName"]),
        (2, &json!("example.com/gateway"))
    );

    // The more specific kind of route takes a parent over; when it goes, the time of the change is told.
    let grpc = route(
        GATEWAY,
        "GRPCRoute",
        "grpc",
        parent("", "Service", "web", None),
        json!([{}]),
    );
    writer.apply(grpc.clone()).await?;
    says(&writer, &grpc, &both).await?;
    let conflicted = [
        "Accepted=False/RouteReasonConflicted",
        "ResolvedRefs=True/ResolvedRefs",
    ];
    says(&writer, &http, &conflicted).await?;
    says(&writer, &gateway, &conflicted).await?;
    writer.delete(GATEWAY, "GRPCRoute", "shop", "grpc").await?;
    says(&writer, &http, &both).await?;
    says(&writer, &gateway, &both).await?;

    // Networks inside the cluster's own.
    let networks = json!({"trafficPolicy": "Deny", "networks": [{"cidr": "10.1.0.0/16"}]});
    let egress = policy("EgressNetwork", "v1alpha1", "out", networks);
    writer.apply(egress.clone()).await?;
    says(&writer, &egress, &["Accepted=False/EgressReasonNetworkOverlap"]).await?;
    writer
        .apply(policy(
            "EgressNetwork",
            "v1alpha1",
            "out",
            json!({"trafficPolicy": "Deny", "networks": [{"cidr": "192.0.2.0/24"}]}),
        ))
        .await?;
    says(&writer, &egress, &["Accepted=True/Accepted"]).await?;

    // Two Servers for one port: the younger is told, by a condition and by an Event.
    writer.pod("web-0", "10.1.0.1").await?;
    let server = |name| {
        policy(
            "Server",
            "v1beta3",
            name,
            json!({"podSelector": {}, "port": "http"}),
        )
    };
    writer.apply(server("a")).await?;
    says(&writer, &server("a"), &["Conflicted=False/NoConflicts"]).await?;
    writer.apply(server("b")).await?;
    says(&writer, &server("b"), &["Conflicted=True/ServerOverlap"]).await?;
    let events: Api<Event> = Api::namespaced(writer.0.clone(), "shop");
    let event = wait::until_ok("an Event on the Server", LIMIT, || async {
        let of_b = ListParams::default().fields("involvedObject.kind=Server,involvedObject.name=b");
        let mut all = events.list(&of_b).await?.items;
        anyhow::ensure!(all.len() == 1, "{} Events", all.len());
        Ok::<_, anyhow::Error>(all.remove(0))
    });
    let event = event.await?;
    assert_eq!(
        (event.type_.as_deref(), event.reason.as_deref()),
        (Some("Warning"), Some("ServerOverlap"))
    );

    // Rate limits and authorization policies of that Server, and of none.
    let target = |name: &str| json!({"group": "policy.linkerd.io", "kind": "Server", "name": name});
    let limit = |name, server| {
        policy(
            "HTTPLocalRateLimitPolicy",
            "v1alpha1",
            name,
            json!({"targetRef": target(server), "total": {"requestsPerSecond": 5}}),
        )
    };
    writer.apply(limit("one", "a")).await?;
    let live = says(&writer, &limit("one", "a"), &["Accepted=True/Accepted"]).await?;
    assert_eq!(live["status"]["targetRef"], target("a"));
    writer.apply(limit("two", "a")).await?;
    says(
        &writer,
        &limit("two", "a"),
        &["Accepted=False/RateLimitReasonAlreadyExists"],
    )
    .await?;
    writer.apply(limit("three", "none")).await?;
    says(
        &writer,
        &limit("three", "none"),
        &["Accepted=False/NoMatchingTarget"],
    )
    .await?;
    let clients = json!([{"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "clients"}]);
    let authz = policy(
        "AuthorizationPolicy",
        "v1alpha1",
        "authz",
        json!({"targetRef": target("a"), "requiredAuthenticationRefs": clients}),
    );
    writer.apply(authz.clone()).await?;
    says(
        &writer,
        &authz,
        &[
            "Accepted=True/Accepted",
            "ResolvedRefs=False/AuthenticationNotFound",
        ],
    )
    .await?;
    writer
        .apply(policy(
            "MeshTLSAuthentication",
            "v1alpha1",
            "clients",
            json!({"identities": ["*"]}),
        ))
        .await?;
    says(&writer, &authz, &both).await?;

    // At rest nothing is written. A write that must come shows that a round was made, and it is the only one.
    let log = AuditLog::from_now(cluster.audit_log_path())?;
    writer.apply(limit("four", "none")).await?;
    says(
        &writer,
        &limit("four", "none"),
        &["Accepted=False/NoMatchingTarget"],
    )
    .await?;
    let writes = ours(&log)?;
    assert_eq!(writes.len(), 1, "{writes:?}");
    assert_eq!((writes[0].name.as_str(), writes[0].code), ("four", 200));
    Ok(())
}

#[tokio::test]
async fn one_of_two_replicas_writes_and_the_other_takes_over() -> anyhow::Result<()> {
    let (cluster, writer) = cluster("control-lease").await?;
    policy_crds(&writer).await?;
    mesh_namespace(&writer).await?;
    let first = Program::start("policy", &cluster).await?;
    leads(&first, LEASE).await?;
    let second = Program::start("policy", &cluster).await?;
    let egress = |name: &str| {
        policy(
            "EgressNetwork",
            "v1alpha1",
            name,
            json!({"trafficPolicy": "Allow"}),
        )
    };
    let log = AuditLog::from_start(cluster.audit_log_path());
    writer.apply(egress("one")).await?;
    says(&writer, &egress("one"), &["Accepted=True/Accepted"]).await?;
    assert!(!is_leader(&second, LEASE).await?);
    assert_eq!(
        ours(&log)?.len(),
        1,
        "the other one writes nothing: {:?}",
        ours(&log)?
    );

    // Told to end, the leader gives the Lease back.
    assert!(first.terminate().await?.success());
    leads(&second, LEASE).await?;
    writer.apply(egress("two")).await?;
    says(&writer, &egress("two"), &["Accepted=True/Accepted"]).await?;

    // Killed, it cannot; then its time has to run out. The test shortens that, as a leader with a shorter one would have it.
    let third = Program::start("policy", &cluster).await?;
    drop(second);
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"namespace": "linkerd", "name": LEASE}});
    assert!(!is_leader(&third, LEASE).await?);
    let short = json!({"spec": {"leaseDurationSeconds": 1}});
    writer
        .api(&lease)?
        .patch(LEASE, &PatchParams::default(), &Patch::Merge(short))
        .await?;
    leads(&third, LEASE).await?;
    writer.apply(egress("three")).await?;
    says(&writer, &egress("three"), &["Accepted=True/Accepted"]).await?;
    let live = live(&writer, &lease).await?;
    assert_eq!(
        (
            &live["spec"]["leaseTransitions"],
            &live["spec"]["leaseDurationSeconds"]
        ),
        (&json!(2), &json!(30))
    );
    assert_eq!(
        ours(&log)?.len(),
        3,
        "one write for each object: {:?}",
        ours(&log)?
    );

    // Whoever takes the Lease away is obeyed at once.
    let taken = json!({"spec": {"holderIdentity": "somebody-else"}});
    writer
        .api(&lease)?
        .patch(LEASE, &PatchParams::default(), &Patch::Merge(taken))
        .await?;
    wait::until_ok("the program to stand back", LIMIT, || async {
        anyhow::ensure!(!is_leader(&third, LEASE).await?, "it still leads");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn external_workloads_get_endpoint_slices() -> anyhow::Result<()> {
    let (cluster, writer) = cluster("control-vm").await?;
    policy_crds(&writer).await?;
    mesh_namespace(&writer).await?;
    let program = Program::start("destination", &cluster).await?;
    leads(&program, "linkerd-destination-endpoint-write").await?;
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "shop", "name": "db"},
        "spec": {"selector": {"app": "db"}, "ports": [{"name": "sql", "port": 5432, "targetPort": "sql"}]},
    });
    writer.apply(service.clone()).await?;
    let workload = |name: &str, ip: &str| {
        json!({
            "apiVersion": "workload.linkerd.io/v1beta1",
            "kind": "ExternalWorkload",
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": "db"}},
            "spec": {
                "meshTLS": {"identity": "spiffe://root.linkerd.cluster.local/db", "serverName": "db.shop"},
                "ports": [{"name": "sql", "port": 15432}],
                "workloadIPs": [{"ip": ip}],
            },
        })
    };
    let slices = || async {
        let kind = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"namespace": "shop"}});
        let ours = ListParams::default()
            .labels("endpointslice.kubernetes.io/managed-by=linkerd-external-workloads-controller");
        let all = writer.api(&kind)?.list(&ours).await?.items;
        Ok::<_, anyhow::Error>(
            all.iter()
                .map(serde_json::to_value)
                .collect::<Result<Vec<_>, _>>()?,
        )
    };
    let become_ = |wanted: Vec<(&'static str, bool)>| {
        let slices = &slices;
        wait::until_ok(format!("slices with {wanted:?}"), LIMIT, move || {
            let wanted = wanted.clone();
            async move {
                let slices = slices().await?;
                let mut seen: Vec<(String, bool)> = Vec::new();
                for endpoint in slices
                    .iter()
                    .flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten())
                {
                    let ip = endpoint["addresses"][0].as_str().unwrap_or_default().to_owned();
                    seen.push((ip, endpoint["conditions"]["ready"] == true));
                }
                seen.sort();
                let wanted: Vec<(String, bool)> = wanted
                    .into_iter()
                    .map(|(ip, ready)| (ip.to_owned(), ready))
                    .collect();
                anyhow::ensure!(seen == wanted, "{seen:?}");
                Ok::<_, anyhow::Error>(slices)
            }
        })
    };
    writer.apply(workload("vm-1", "192.0.2.1")).await?;
    let made = become_(vec![("192.0.2.1", false)]).await?;
    let owner = live(&writer, &service).await?;
    assert_eq!(
        made[0]["metadata"]["ownerReferences"][0]["uid"],
        owner["metadata"]["uid"]
    );
    assert_eq!(made[0]["metadata"]["labels"]["kubernetes.io/service-name"], "db");
    assert_eq!(
        made[0]["ports"],
        json!([{"name": "sql", "port": 15432, "protocol": "TCP"}])
    );
    assert_eq!(made[0]["endpoints"][0]["targetRef"]["kind"], "ExternalWorkload");

    let ready = json!({"type": "Ready", "status": "True", "reason": "Up", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let api = writer.api(&workload("vm-1", ""))?;
    api.patch_status(
        "vm-1",
        &PatchParams::default(),
        &Patch::Merge(json!({"status": {"conditions": [ready]}})),
    )
    .await?;
    become_(vec![("192.0.2.1", true)]).await?;
    writer.apply(workload("vm-2", "192.0.2.2")).await?;
    let two = become_(vec![("192.0.2.1", true), ("192.0.2.2", false)]).await?;
    assert_eq!(
        (two.len(), &two[0]["metadata"]["name"]),
        (1, &made[0]["metadata"]["name"]),
        "the same slice"
    );

    // Four changes so far, and as many writes as they need.
    let verbs: Vec<String> = ours(&AuditLog::from_start(cluster.audit_log_path()))?
        .into_iter()
        .map(|write| write.verb)
        .collect();
    assert_eq!(verbs, ["create", "update", "update"]);
    for name in ["vm-1", "vm-2"] {
        writer
            .delete("workload.linkerd.io/v1beta1", "ExternalWorkload", "shop", name)
            .await?;
    }
    become_(Vec::new()).await?;
    wait::until_ok("the empty slice to go", LIMIT, || async {
        let left = slices().await?;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    assert!(program.terminate().await?.success());
    Ok(())
}
