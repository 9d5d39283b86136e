//! What becomes of pods and services.

use base64::Engine as _;
use futures_util::FutureExt as _;
use heddle_inject::{Decision, Namespace, ProxyDefaults, decide};
use heddle_tests_harness::wait;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    batch::v1::{CronJob, Job},
    core::v1::{Pod, Service},
    events::v1::Event,
};
use kube::{Resource as _, ResourceExt as _, api::ListParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    cluster::{HOST, LIMIT, World, container_names, mk_pod},
    https,
};

#[tokio::test]
async fn pods_and_services_are_changed_as_they_are_created() -> anyhow::Result<()> {
    let world = World::new("injector-admit").await?;
    let injector = world.start().await?;
    world.apply_configuration().await?;
    world.bundle_in_place().await?;
    let enabled = json!({"linkerd.io/inject": "enabled"});

    // A real API server accepts what comes out, native and classic.
    let pod = world
        .create::<Pod>("payments", mk_pod("native", json!({})))
        .await?;
    assert_eq!(container_names(&pod), ["linkerd-init", "linkerd-proxy", "app"]);
    assert_eq!(pod.annotations()["linkerd.io/inject"], "enabled");
    assert_eq!(pod.labels()["linkerd.io/control-plane-ns"], "linkerd");
    let proxy = &pod
        .spec
        .as_ref()
        .and_then(|spec| spec.init_containers.as_ref())
        .expect("init containers")[1];
    assert_eq!(proxy.restart_policy.as_deref(), Some("Always"));
    let anchors = proxy
        .env
        .iter()
        .flatten()
        .find(|var| var.name == "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS");
    assert_eq!(
        anchors.and_then(|var| var.value.as_deref()),
        Some(&world.anchors[..])
    );
    let all_of_it = json!({
        "config.linkerd.io/proxy-enable-native-sidecar": "false",
        "config.linkerd.io/proxy-cpu-request": "100m",
        "config.linkerd.io/proxy-cpu-limit": "1500m",
        "config.linkerd.io/proxy-memory-limit": "250Mi",
        "config.linkerd.io/proxy-ephemeral-storage-request": "1Mi",
        "config.linkerd.io/proxy-uid": "3000",
        "config.linkerd.io/proxy-gid": "3000",
        "config.linkerd.io/skip-inbound-ports": "22,8000-8010",
        "config.linkerd.io/skip-subnets": "10.1.0.0/16",
        "config.linkerd.io/opaque-ports": "http",
        "config.linkerd.io/proxy-additional-env": "[{\"name\":\"A\",\"value\":\"b\"}]",
        "config.linkerd.io/shutdown-grace-period": "30s",
        "config.alpha.linkerd.io/proxy-wait-before-exit-seconds": "5",
    });
    let pod = world.admit("payments", mk_pod("classic", all_of_it)).await?;
    assert_eq!(container_names(&pod), ["linkerd-init", "linkerd-proxy", "app"]);
    let spec = pod.spec.as_ref().expect("pods have a spec");
    assert_eq!(spec.containers[0].name, "linkerd-proxy");

    // The stamp of a created pod is the stamp of the template that it came from.
    let template: Pod = serde_json::from_value(mk_pod("x", json!({})))?;
    let (annotations, labels) = (serde_json::from_value(enabled.clone())?, Default::default());
    let namespace = Namespace {
        name: "payments",
        annotations: &annotations,
        labels: &labels,
    };
    let Decision::Inject(planned) = decide(&ProxyDefaults::default(), &namespace, &template, None) else {
        anyhow::bail!("not injected")
    };
    let created = world.admit("payments", mk_pod("stamped", json!({}))).await?;
    assert_eq!(
        created.annotations()["heddle.dev/proxy-stamp"],
        planned.stamp().as_str()
    );

    // Those who do not ask are left alone; those who opt in or out are heard.
    let plain = world.admit("plain", mk_pod("web", json!({}))).await?;
    assert_eq!(container_names(&plain), ["app"]);
    let out = world
        .admit(
            "payments",
            mk_pod("web", json!({"linkerd.io/inject": "disabled"})),
        )
        .await?;
    assert_eq!(container_names(&out), ["app"]);
    let opted_in = world.admit("plain", mk_pod("web", enabled.clone())).await?;
    assert!(container_names(&opted_in).contains(&"linkerd-proxy"));
    let system = world.admit("linkerd", mk_pod("web", enabled.clone())).await?;
    assert_eq!(container_names(&system), ["app"]);

    // A namespace that is a moment old counts with the annotations that it has.
    world.namespace("fresh", enabled).await?;
    let fresh = world.admit("fresh", mk_pod("web", json!({}))).await?;
    assert!(container_names(&fresh).contains(&"linkerd-proxy"));

    let service =
        json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 3306}, {"port": 80, "name": "b"}]}});
    let mut named = service.clone();
    named["spec"]["ports"][0]["name"] = json!("a");
    let service = world.create::<Service>("plain", named).await?;
    assert_eq!(service.annotations()["config.linkerd.io/opaque-ports"], "3306");

    assert!(injector.metric("proxy_inject_admission_requests_total").await? >= 1.0);
    let skipped = injector.admin("/metrics").await?.1;
    assert!(
        skipped.contains("skip_reason=\"injection_disable_annotation_present_workload\""),
        "{skipped}"
    );
    Ok(())
}

#[tokio::test]
async fn owners_get_events_and_their_names_become_labels() -> anyhow::Result<()> {
    let world = World::new("injector-owner").await?;
    let _injector = world.start().await?;
    world.apply_configuration().await?;
    world.bundle_in_place().await?;
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "a"}]}});
    let spec = json!({"selector": {"matchLabels": {"app": "web"}}, "template": template});
    let deployment: Deployment = world
        .create("payments", json!({"metadata": {"name": "web"}, "spec": spec}))
        .await?;
    let set = json!({"metadata": {"name": "web-abc12", "ownerReferences": [deployment.controller_owner_ref(&())]}, "spec": spec});
    let set: ReplicaSet = world.create("payments", set).await?;

    let owned = |mut pod: Value, owner: Value, hash: bool| {
        pod["metadata"]["ownerReferences"] = json!([owner]);
        if hash {
            pod["metadata"]["labels"] = json!({"pod-template-hash": "abc12"});
        }
        pod
    };
    // The same workload, told by the pod's label or found by asking.
    for hash in [true, false] {
        let pod = owned(
            mk_pod("web", json!({})),
            json!(set.controller_owner_ref(&())),
            hash,
        );
        let pod = world.admit("payments", pod).await?;
        assert_eq!(pod.labels()["linkerd.io/proxy-deployment"], "web");
    }
    let job_spec = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": "a"}]}}});
    let cron = json!({"metadata": {"name": "nightly"}, "spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": job_spec}}});
    let cron: CronJob = world.create("payments", cron).await?;
    let job = json!({"metadata": {"name": "nightly-1", "ownerReferences": [cron.controller_owner_ref(&())]}, "spec": job_spec});
    let job: Job = world.create("payments", job).await?;
    let pod = owned(
        mk_pod("nightly", json!({})),
        json!(job.controller_owner_ref(&())),
        false,
    );
    assert_eq!(
        world.admit("payments", pod).await?.labels()["linkerd.io/proxy-cronjob"],
        "nightly"
    );

    // Dry runs, as all of these were, leave no trace; real pods do, and a refusal says why.
    let events = world.api::<Event>("payments");
    assert_eq!(events.list(&ListParams::default()).await?.items.len(), 0);
    let reference = json!(set.controller_owner_ref(&()));
    for name in ["web-1", "web-2", "web-3"] {
        world
            .create::<Pod>(
                "payments",
                owned(mk_pod(name, json!({})), reference.clone(), true),
            )
            .await?;
    }
    let bad = mk_pod("bad", json!({"config.linkerd.io/proxy-cpu-limit": "lots"}));
    let bad = world
        .create::<Pod>("payments", owned(bad, reference.clone(), true))
        .await?;
    assert_eq!(container_names(&bad), ["app"]);
    // Nobody asked for this one to be in the mesh, so nobody is told; the other opts out, and its owner can see it.
    world
        .create::<Pod>(
            "plain",
            owned(mk_pod("quiet", json!({})), reference.clone(), true),
        )
        .await?;
    let out = mk_pod("out", json!({"linkerd.io/inject": "disabled"}));
    world
        .create::<Pod>("payments", owned(out, reference, true))
        .await?;
    let found = wait::until_ok("three events", LIMIT, || async {
        let found = events.list(&ListParams::default()).await?.items;
        anyhow::ensure!(found.len() >= 3, "{} events", found.len());
        Ok::<_, anyhow::Error>(found)
    })
    .await?;
    let of = |reason: &str, kind: &str| {
        let found: Vec<_> = found
            .iter()
            .filter(|event| event.reason.as_deref() == Some(reason) && event.type_.as_deref() == Some(kind))
            .collect();
        assert_eq!(found.len(), 1, "{reason}: three replicas are one event");
        found[0].clone()
    };
    let opted_out = of("InjectionSkipped", "Normal").note.unwrap_or_default();
    assert!(opted_out.contains("linkerd.io/inject: disabled"), "{opted_out}");
    assert_eq!(
        world
            .api::<Event>("plain")
            .list(&ListParams::default())
            .await?
            .items
            .len(),
        0
    );
    let regarding = of("Injected", "Normal")
        .regarding
        .expect("an event regards something");
    assert_eq!(
        (regarding.kind.as_deref(), regarding.name.as_deref()),
        (Some("Deployment"), Some("web"))
    );
    assert_eq!(
        regarding.uid, deployment.metadata.uid,
        "kubectl describe finds events by uid"
    );
    let note = of("InjectionSkipped", "Warning").note.unwrap_or_default();
    assert!(
        note.contains("config.linkerd.io/proxy-cpu-limit") && note.contains("lots"),
        "{note}"
    );
    Ok(())
}

#[tokio::test]
async fn bad_requests_are_refused_in_words() -> anyhow::Result<()> {
    let world = World::new("injector-bad").await?;
    let injector = world.start().await?;
    const JSON: &str = "application/json";
    let review = |object: Value| {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "payments",
                "operation": "CREATE", "object": object,
            },
        })
    };
    let bytes = |value: &Value| value.to_string().into_bytes();
    let good = review(mk_pod("web", json!({})));

    let reply = world
        .post(&injector, "application/json; charset=utf-8", bytes(&good))
        .await?;
    assert_eq!(reply.status, StatusCode::OK);
    let answer: Value = serde_json::from_slice(&reply.body)?;
    assert_eq!(answer["response"]["uid"], "u-1");
    assert_eq!(answer["response"]["patchType"], "JSONPatch");
    let patch = answer["response"]["patch"].as_str().unwrap_or_default();
    let patch: json_patch::Patch =
        serde_json::from_slice(&base64::engine::general_purpose::STANDARD.decode(patch)?)?;
    let mut pod = mk_pod("web", json!({}));
    json_patch::patch(&mut pod, &patch)?;
    assert_eq!(pod["spec"]["initContainers"][1]["name"], "linkerd-proxy");

    let mut host_network = mk_pod("web", json!({}));
    host_network["spec"]["hostNetwork"] = json!(true);
    let reply = world.post(&injector, JSON, bytes(&review(host_network))).await?;
    let answer: Value = serde_json::from_slice(&reply.body)?;
    assert_eq!(
        (&answer["response"]["allowed"], &answer["response"]["patch"]),
        (&json!(true), &Value::Null)
    );
    assert!(
        answer["response"]["warnings"][0]
            .as_str()
            .unwrap_or_default()
            .contains("hostNetwork"),
        "{answer}"
    );

    let text = good.to_string();
    let doubled = text
        .replacen("\"uid\"", "\"uid\":\"u-0\",\"uid\"", 1)
        .into_bytes();
    let mut beta = good.clone();
    beta["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut nothing = good.clone();
    nothing["request"] = Value::Null;
    let mut unknown_namespace = good.clone();
    unknown_namespace["request"]["namespace"] = json!("no-such-namespace");
    for (kind, body, status, text) in [
        (
            "text/plain",
            bytes(&good),
            StatusCode::BAD_REQUEST,
            "expected application/json",
        ),
        (
            "",
            bytes(&good),
            StatusCode::BAD_REQUEST,
            "expected application/json",
        ),
        (
            JSON,
            b"{".to_vec(),
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
        (
            JSON,
            b"[]".to_vec(),
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
        (
            JSON,
            bytes(&beta),
            StatusCode::BAD_REQUEST,
            "admission.k8s.io/v1beta1",
        ),
        (JSON, bytes(&nothing), StatusCode::BAD_REQUEST, "no request"),
        (JSON, doubled, StatusCode::BAD_REQUEST, "duplicate field"),
        (
            JSON,
            bytes(&review(json!({"spec": []}))),
            StatusCode::BAD_REQUEST,
            "not a Pod",
        ),
        (
            JSON,
            bytes(&unknown_namespace),
            StatusCode::INTERNAL_SERVER_ERROR,
            "no-such-namespace",
        ),
        (
            JSON,
            vec![b' '; (5 << 20) + 1],
            StatusCode::PAYLOAD_TOO_LARGE,
            "larger than",
        ),
    ] {
        let reply = world.post(&injector, kind, body).await?;
        let said = String::from_utf8_lossy(&reply.body).into_owned();
        assert_eq!(reply.status, status, "{said}");
        assert!(said.contains(text), "{said:?} does not say {text:?}");
    }
    let get = Request::builder()
        .method(Method::GET)
        .uri(format!("https://{HOST}/"))
        .body(Full::default())?;
    let reply = https::send(injector.addr, HOST, &world.secret_bundle().await?, get).await?;
    assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED);

    // Other kinds and operations are allowed and left alone.
    let mut update = good.clone();
    update["request"]["operation"] = json!("UPDATE");
    let answer: Value = serde_json::from_slice(&world.post(&injector, JSON, bytes(&update)).await?.body)?;
    assert_eq!(
        (&answer["response"]["allowed"], &answer["response"]["patch"]),
        (&json!(true), &Value::Null)
    );
    assert!(
        injector
            .metric("proxy_inject_refused_requests_total{status=\"400\"}")
            .await?
            >= 7.0
    );
    Ok(())
}

#[tokio::test]
async fn settings_are_taken_as_they_change_and_bad_ones_are_not() -> anyhow::Result<()> {
    let world = World::new("injector-set").await?;
    let injector = world.start().await?;
    world.apply_configuration().await?;
    world.bundle_in_place().await?;
    let image = || async {
        let pod = world.admit("payments", mk_pod("web", json!({}))).await?;
        let proxy = &pod
            .spec
            .and_then(|spec| spec.init_containers)
            .expect("init containers")[1];
        Ok::<_, anyhow::Error>(proxy.image.clone().unwrap_or_default())
    };
    assert_eq!(
        image().await?,
        format!("heddle.dev/proxy:{}", heddle_mesh::VERSION)
    );
    world.write_config("proxy: {image: {version: 9.9.9}}")?;
    wait::until_ok("the new version", LIMIT, || async {
        let image = image().await?;
        anyhow::ensure!(image == "heddle.dev/proxy:9.9.9", "{image}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;

    // With a CNI plugin, a debug container, spans and the kernel's close-wait time: a real API server takes it all.
    world.write_config(
        "{cni: {enabled: true}, proxy: {tracing: {enabled: true, collector: {endpoint: 'otel.obs:4317', \
         meshIdentity: {serviceAccountName: otel, namespace: obs}}}}}",
    )?;
    let asked = json!({
        "config.linkerd.io/enable-debug-sidecar": "true",
        "config.linkerd.io/close-wait-timeout": "30s",
        "resource.opentelemetry.io/service.name": "web",
    });
    wait::until_ok("the validator", LIMIT, || async {
        let pod = world.admit("payments", mk_pod("web", asked.clone())).await?;
        let names = container_names(&pod);
        anyhow::ensure!(
            names
                == [
                    "linkerd-network-validator",
                    "linkerd-proxy",
                    "app",
                    "linkerd-debug"
                ],
            "{names:?}"
        );
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    world.write_config("proxy: {image: {version: 9.9.9}}")?;
    wait::until_ok("an init container that sets it", LIMIT, || async {
        let pod = world.admit("payments", mk_pod("web", asked.clone())).await?;
        let names = container_names(&pod);
        anyhow::ensure!(names[0] == "linkerd-init", "{names:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;

    world.write_config("proxy: {imagE: {}}")?;
    wait::until_ok("the failure to be counted", LIMIT, || async {
        let failures = injector.metric("proxy_inject_settings_failures_total").await?;
        anyhow::ensure!(failures >= 1.0, "{failures}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    assert_eq!(image().await?, "heddle.dev/proxy:9.9.9");
    Ok(())
}

#[tokio::test]
async fn slow_clients_keep_nobody_else_waiting() -> anyhow::Result<()> {
    let world = World::new("injector-slow").await?;
    let injector = world.start().await?;
    let roots = world.secret_bundle().await?;
    let mut slow = Vec::new();
    for _ in 0..100 {
        let mut stream = https::connect(injector.addr, HOST, &roots).await?;
        let start = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 5000000\r\n\r\n{";
        stream.write_all(start).await?;
        stream.flush().await?;
        slow.push(stream);
    }
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "payments",
            "operation": "CREATE", "object": mk_pod("web", json!({})),
        },
    });
    let reply = world
        .post(&injector, "application/json", review.to_string().into_bytes())
        .await?;
    assert_eq!(reply.status, StatusCode::OK);
    // They still have their time.
    let mut byte = [0];
    for stream in &mut slow {
        assert!(
            stream.read(&mut byte).now_or_never().is_none(),
            "it was cut off or answered"
        );
    }
    Ok(())
}
