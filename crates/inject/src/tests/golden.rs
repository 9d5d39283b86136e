use expect_test::{Expect, expect};

use super::*;

fn check(value: &Value, expected: Expect) {
    // Through a BTreeMap-backed Value in any build: keys in order, so that features elsewhere change nothing here.
    expected.assert_eq(&(serde_yaml::to_string(&sorted(value)).expect("YAML")));
}

fn sorted(value: &Value) -> serde_yaml::Value {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<_, _> = map.iter().map(|(key, value)| (key, sorted(value))).collect();
            serde_yaml::to_value(map).expect("YAML")
        }
        Value::Array(items) => serde_yaml::Value::Sequence(items.iter().map(sorted).collect()),
        other => serde_yaml::to_value(other).expect("YAML"),
    }
}

#[test]
fn a_plain_pod_becomes_meshed() {
    let (annotations, labels) = (map(&[("linkerd.io/inject", "enabled")]), Map::new());
    let namespace = Namespace {
        name: "payments",
        annotations: &annotations,
        labels: &labels,
    };
    let pod = mk_pod(&[]);
    let decision = decide(
        &ProxyDefaults::default(),
        &namespace,
        &pod,
        Some(&owner("Deployment", "web")),
    );
    let mut after = patched(&pod, &injected(decision));
    let stamp = after["metadata"]["annotations"]["heddle.dev/proxy-stamp"].take();
    assert_eq!(stamp.as_str().map(str::len), Some(64));
    check(
        &after,
        expect![[r#"
            apiVersion: v1
            kind: Pod
            metadata:
              annotations:
                heddle.dev/proxy-stamp: null
                linkerd.io/created-by: linkerd/proxy-injector heddle-0.1.0
                linkerd.io/inject: enabled
                linkerd.io/proxy-version: 0.1.0
                linkerd.io/trust-root-sha256: e3c1fded22009845e3e8e01ce56c9caf7d5f23877364cf0a27a4e55dd36c7d61
              labels:
                linkerd.io/control-plane-ns: linkerd
                linkerd.io/proxy-deployment: web
                linkerd.io/workload-ns: payments
              name: web-0
            spec:
              containers:
              - image: app:1
                name: app
                ports:
                - containerPort: 8080
                  name: http
              initContainers:
              - args:
                - --incoming-proxy-port
                - '4143'
                - --outgoing-proxy-port
                - '4140'
                - --proxy-uid
                - '2102'
                - --inbound-ports-to-ignore
                - 4190,4191,4567-4568
                - --outbound-ports-to-ignore
                - 4567-4568
                - --ipv6=false
                command:
                - /heddle-init
                image: heddle.dev/proxy:0.1.0
                imagePullPolicy: IfNotPresent
                name: linkerd-init
                securityContext:
                  allowPrivilegeEscalation: false
                  capabilities:
                    add:
                    - NET_ADMIN
                    - NET_RAW
                    drop:
                    - ALL
                  privileged: false
                  readOnlyRootFilesystem: true
                  runAsGroup: 0
                  runAsNonRoot: false
                  runAsUser: 0
                  seccompProfile:
                    type: RuntimeDefault
                terminationMessagePolicy: FallbackToLogsOnError
              - env:
                - name: _pod_name
                  valueFrom:
                    fieldRef:
                      fieldPath: metadata.name
                - name: _pod_ns
                  valueFrom:
                    fieldRef:
                      fieldPath: metadata.namespace
                - name: _pod_sa
                  valueFrom:
                    fieldRef:
                      fieldPath: spec.serviceAccountName
                - name: _pod_nodeName
                  valueFrom:
                    fieldRef:
                      fieldPath: spec.nodeName
                - name: _pod_uid
                  valueFrom:
                    fieldRef:
                      fieldPath: metadata.uid
                - name: LINKERD2_PROXY_CORES_MIN
                  value: '1'
                - name: LINKERD2_PROXY_LOG
                  value: warn,heddle=info,linkerd=info,hickory=error,h2=error
                - name: LINKERD2_PROXY_LOG_FORMAT
                  value: plain
                - name: LINKERD2_PROXY_DESTINATION_SVC_ADDR
                  value: linkerd-dst-headless.linkerd.svc.cluster.local.:8086
                - name: LINKERD2_PROXY_DESTINATION_SVC_NAME
                  value: linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local
                - name: LINKERD2_PROXY_DESTINATION_CONTEXT
                  value: '{"ns":"$(_pod_ns)","nodeName":"$(_pod_nodeName)","pod":"$(_pod_name)"}'
                - name: LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS
                  value: 10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8
                - name: LINKERD2_PROXY_DESTINATION_PROFILE_SUFFIXES
                  value: svc.cluster.local.
                - name: LINKERD2_PROXY_POLICY_SVC_ADDR
                  value: linkerd-policy.linkerd.svc.cluster.local.:8090
                - name: LINKERD2_PROXY_POLICY_SVC_NAME
                  value: linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local
                - name: LINKERD2_PROXY_POLICY_WORKLOAD
                  value: '{"ns":"$(_pod_ns)","pod":"$(_pod_name)"}'
                - name: LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS
                  value: 10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8
                - name: LINKERD2_PROXY_INBOUND_DEFAULT_POLICY
                  value: all-unauthenticated
                - name: LINKERD2_PROXY_CONTROL_STREAM_INITIAL_TIMEOUT
                  value: 3s
                - name: LINKERD2_PROXY_CONTROL_STREAM_IDLE_TIMEOUT
                  value: 5m
                - name: LINKERD2_PROXY_CONTROL_STREAM_LIFETIME
                  value: 1h
                - name: LINKERD2_PROXY_IDENTITY_SVC_ADDR
                  value: linkerd-identity-headless.linkerd.svc.cluster.local.:8080
                - name: LINKERD2_PROXY_IDENTITY_SVC_NAME
                  value: linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local
                - name: LINKERD2_PROXY_IDENTITY_LOCAL_NAME
                  value: $(_pod_sa).$(_pod_ns).serviceaccount.identity.linkerd.cluster.local
                - name: LINKERD2_PROXY_IDENTITY_DIR
                  value: /var/run/linkerd/identity/end-entity
                - name: LINKERD2_PROXY_IDENTITY_TOKEN_FILE
                  value: /var/run/secrets/tokens/linkerd-identity-token
                - name: LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS
                  value: |
                    -----BEGIN CERTIFICATE-----
                    AAAA
                    -----END CERTIFICATE-----
                - name: LINKERD2_PROXY_OUTBOUND_LISTEN_ADDR
                  value: 127.0.0.1:4140
                - name: LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS
                  value: 127.0.0.1:4140
                - name: LINKERD2_PROXY_INBOUND_LISTEN_ADDR
                  value: 0.0.0.0:4143
                - name: LINKERD2_PROXY_CONTROL_LISTEN_ADDR
                  value: 0.0.0.0:4190
                - name: LINKERD2_PROXY_ADMIN_LISTEN_ADDR
                  value: 0.0.0.0:4191
                - name: LINKERD2_PROXY_INBOUND_IPS
                  valueFrom:
                    fieldRef:
                      fieldPath: status.podIPs
                - name: LINKERD2_PROXY_INBOUND_PORTS
                  value: '8080'
                - name: LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION
                  value: 25,587,3306,4444,5432,6379,9300,11211
                - name: LINKERD2_PROXY_OUTBOUND_DETECT_TIMEOUT
                  value: 10s
                - name: LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT
                  value: 10s
                - name: LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT
                  value: 1s
                - name: LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT
                  value: 100ms
                - name: LINKERD2_PROXY_OUTBOUND_DISCOVERY_IDLE_TIMEOUT
                  value: 5s
                - name: LINKERD2_PROXY_INBOUND_DISCOVERY_IDLE_TIMEOUT
                  value: 90s
                - name: LINKERD2_PROXY_INBOUND_ACCEPT_KEEPALIVE
                  value: 10000ms
                - name: LINKERD2_PROXY_OUTBOUND_ACCEPT_KEEPALIVE
                  value: 10000ms
                image: heddle.dev/proxy:0.1.0
                imagePullPolicy: IfNotPresent
                livenessProbe:
                  httpGet:
                    path: /live
                    port: 4191
                  initialDelaySeconds: 10
                  timeoutSeconds: 1
                name: linkerd-proxy
                ports:
                - containerPort: 4143
                  name: linkerd-proxy
                  protocol: TCP
                - containerPort: 4191
                  name: linkerd-admin
                  protocol: TCP
                readinessProbe:
                  httpGet:
                    path: /ready
                    port: 4191
                  timeoutSeconds: 1
                restartPolicy: Always
                securityContext:
                  allowPrivilegeEscalation: false
                  capabilities:
                    drop:
                    - ALL
                  readOnlyRootFilesystem: true
                  runAsNonRoot: true
                  runAsUser: 2102
                  seccompProfile:
                    type: RuntimeDefault
                startupProbe:
                  failureThreshold: 120
                  httpGet:
                    path: /ready
                    port: 4191
                  periodSeconds: 1
                  timeoutSeconds: 1
                terminationMessagePolicy: FallbackToLogsOnError
                volumeMounts:
                - mountPath: /var/run/linkerd/identity/end-entity
                  name: linkerd-identity-end-entity
                - mountPath: /var/run/secrets/tokens
                  name: linkerd-identity-token
              volumes:
              - emptyDir:
                  medium: Memory
                name: linkerd-identity-end-entity
              - name: linkerd-identity-token
                projected:
                  sources:
                  - serviceAccountToken:
                      audience: identity.l5d.io
                      expirationSeconds: 86400
                      path: linkerd-identity-token
        "#]],
    );
}

#[test]
fn what_a_pod_has_is_kept_and_ours_comes_first() {
    for (native, init, containers) in [
        ("true", "linkerd-init linkerd-proxy migrate", "app"),
        ("false", "linkerd-init migrate", "linkerd-proxy app"),
    ] {
        let pod = read(json!({
            "metadata": {
                "annotations": {"config.linkerd.io/proxy-enable-native-sidecar": native, "a/b~c": "d"},
                "labels": {"app": "web"},
            },
            "spec": {
                "initContainers": [{"name": "migrate"}],
                "containers": [{"name": "app"}],
                "volumes": [{"name": "data"}, {"name": "linkerd-identity-token", "emptyDir": {}}],
            },
        }));
        let after = patched(
            &pod,
            &injected(decide_in(&[("linkerd.io/inject", "enabled")], &pod)),
        );
        let names = |list: &Value| {
            let names: Vec<_> = list
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|c| c["name"].as_str())
                .collect();
            names.join(" ")
        };
        assert_eq!(names(&after["spec"]["initContainers"]), init);
        assert_eq!(names(&after["spec"]["containers"]), containers);
        assert_eq!(
            names(&after["spec"]["volumes"]),
            "data linkerd-identity-token linkerd-identity-end-entity"
        );
        assert!(
            after["spec"]["volumes"][1]["projected"].is_object(),
            "a stale volume is replaced"
        );
        assert_eq!(after["metadata"]["annotations"]["a/b~c"], "d");
        assert_eq!(after["metadata"]["labels"]["app"], "web");
        assert_eq!(after["metadata"]["labels"]["linkerd.io/workload-ns"], "payments");
        serde_json::from_value::<Pod>(after).expect("still a pod");
    }
}

#[test]
fn the_ports_a_pod_serves_are_told_to_the_proxy() {
    let pod = read(json!({
        "metadata": {"annotations": {"linkerd.io/inject": "enabled"}},
        "spec": {
            "initContainers": [
                {"name": "once", "ports": [{"containerPort": 1}]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": [{"containerPort": 3306, "name": "mysql"}]},
            ],
            "containers": [{
                "name": "app",
                "ports": [{"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}, {"containerPort": 70000}],
                "livenessProbe": {"httpGet": {"port": 9000}},
                "readinessProbe": {"httpGet": {"port": "http"}},
                "startupProbe": {"tcpSocket": {"port": 9100}},
            }],
        },
    }));
    let injection = injected(decide_in(&[], &pod));
    let (_, proxy) = injection.containers("");
    let env = |name: &str| {
        proxy
            .env
            .iter()
            .flatten()
            .find(|var| var.name == name)
            .and_then(|var| var.value.clone())
    };
    assert_eq!(
        env("LINKERD2_PROXY_INBOUND_PORTS").as_deref(),
        Some("3306,8080,9000")
    );
    let after = patched(&pod, &injection);
    assert_eq!(
        after["metadata"]["annotations"]["config.linkerd.io/opaque-ports"],
        "3306"
    );
}

#[test]
fn owners_are_found_without_asking_the_api_server() {
    let pod = |kind: &str, name: &str, hash: Option<&str>| {
        let mut pod = json!({"metadata": {"ownerReferences": [
            {"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "u", "controller": true}]}});
        if let Some(hash) = hash {
            pod["metadata"]["labels"] = json!({"pod-template-hash": hash});
        }
        Owner::of_pod(&read(pod))
    };
    assert_eq!(
        pod("ReplicaSet", "web-abc", Some("abc")),
        Some(owner("Deployment", "web"))
    );
    assert_eq!(
        pod("ReplicaSet", "web-abc", None),
        Some(owner("ReplicaSet", "web-abc"))
    );
    assert_eq!(
        pod("ReplicaSet", "web-abc", Some("xyz")),
        Some(owner("ReplicaSet", "web-abc"))
    );
    assert_eq!(pod("StatefulSet", "db", None), Some(owner("StatefulSet", "db")));
    assert_eq!(Owner::of_pod(&mk_pod(&[])), None);

    let labels = |owner: Owner| {
        let (annotations, none) = (map(&[("linkerd.io/inject", "enabled")]), Map::new());
        let namespace = Namespace {
            name: "payments",
            annotations: &annotations,
            labels: &none,
        };
        injected(decide(
            &ProxyDefaults::default(),
            &namespace,
            &mk_pod(&[]),
            Some(&owner),
        ))
        .labels
    };
    assert_eq!(
        labels(owner("StatefulSet", "db"))
            .get("linkerd.io/proxy-statefulset")
            .map(String::as_str),
        Some("db")
    );
    assert_eq!(
        labels(owner("Rollout", "db")).len(),
        2,
        "Linkerd has no label for it"
    );
    assert_eq!(
        labels(owner("Deployment", &"x".repeat(64))).len(),
        2,
        "too long for a label"
    );
}

#[test]
fn defaults_spelled_out_and_read_back() {
    let text = ProxyDefaults::default().to_yaml().expect("YAML");
    expect![[r#"
        controlNamespace: linkerd
        clusterDomain: cluster.local
        trustDomain: cluster.local
        clusterNetworks:
        - 10.0.0.0/8
        - 100.64.0.0/10
        - 172.16.0.0/12
        - 192.168.0.0/16
        - fd00::/8
        proxy:
          image:
            name: heddle.dev/proxy
            version: 0.1.0
            pullPolicy: IfNotPresent
          ports:
            inbound: 4143
            outbound: 4140
            control: 4190
            admin: 4191
          uid: 2102
          gid: null
          resources:
            cpu:
              request: null
              limit: null
              ratioLimit: null
            memory:
              request: null
              limit: null
            ephemeral-storage:
              request: null
              limit: null
          logLevel: warn,heddle=info,linkerd=info,hickory=error,h2=error
          logFormat: plain
          logHTTPHeaders: off
          accessLog: null
          opaquePorts: 25,587,3306,4444,5432,6379,9300,11211
          requireIdentityOnInboundPorts: ''
          defaultInboundPolicy: all-unauthenticated
          outboundConnectTimeout: 1s
          inboundConnectTimeout: 100ms
          outboundDiscoveryCacheUnusedTimeout: 5s
          inboundDiscoveryCacheUnusedTimeout: 90s
          disableOutboundProtocolDetectTimeout: false
          disableInboundProtocolDetectTimeout: false
          shutdownGracePeriod: null
          await: true
          nativeSidecar: true
          enableShutdownEndpoint: false
          waitBeforeExitSeconds: 0
          enableExternalProfiles: false
          metricsHostnameLabels: false
          additionalEnv: []
          controlStreams:
            initialTimeout: 3s
            idleTimeout: 5m
            lifetime: 1h
          disableIPv6: true
          tracing:
            enabled: false
            traceServiceName: linkerd-proxy
            collector:
              endpoint: ''
              meshIdentity:
                serviceAccountName: ''
                namespace: ''
            labels: {}
        proxyInit:
          image: null
          ignoreInboundPorts: 4567-4568
          ignoreOutboundPorts: 4567-4568
          skipSubnets: []
          closeWaitTimeout: null
          resources:
            cpu:
              request: null
              limit: null
              ratioLimit: null
            memory:
              request: null
              limit: null
            ephemeral-storage:
              request: null
              limit: null
        cni:
          enabled: false
        networkValidator:
          logLevel: info
          logFormat: plain
          connectAddr: null
          listenAddr: null
          timeout: 10s
        debugContainer:
          image:
            name: cr.l5d.io/linkerd/debug
            version: stable-2.14.10
            pullPolicy: null
    "#]]
    .assert_eq(&text);
    assert_eq!(
        ProxyDefaults::from_yaml(&text).expect("its own form"),
        ProxyDefaults::default()
    );
    assert_eq!(
        ProxyDefaults::from_yaml("").expect("nothing said"),
        ProxyDefaults::default()
    );
    assert_eq!(
        ProxyDefaults::from_yaml("proxy: {logLevel: null, resources: null, image: {version: null}, opaquePorts: null}\nproxyInit: null\ncontrolNamespace: null")
            .expect("null is the default"),
        ProxyDefaults::default()
    );
}

#[test]
fn defaults_are_read_as_people_write_them() {
    let text = "
proxy:
  resources: {cpu: {request: 0.1, limit: 1}, memory: {limit: 250Mi}}
  opaquePorts: [25, \"9000-9010\"]
proxyInit: {ignoreInboundPorts: 22, skipSubnets: [10.1.0.0/16]}
clusterNetworks: 10.0.0.0/8,192.168.0.0/16
";
    let defaults = ProxyDefaults::from_yaml(text).expect("valid");
    assert_eq!(defaults.proxy.opaque_ports.to_string(), "25,9000-9010");
    assert_eq!(defaults.proxy_init.ignore_inbound_ports.0.to_string(), "22");
    assert_eq!(defaults.cluster_networks, ["10.0.0.0/8", "192.168.0.0/16"]);
    assert_eq!(
        defaults
            .proxy
            .resources
            .cpu
            .limit
            .as_ref()
            .map(|q| q.to_string())
            .as_deref(),
        Some("1")
    );
}

#[test]
fn bad_defaults_are_refused_by_name() {
    let error = |text: &str| {
        let error = ProxyDefaults::from_yaml(text).expect_err("refused");
        let source =
            std::error::Error::source(&error).map_or_else(String::new, |source| format!(": {source}"));
        format!("{error}{source}\n")
    };
    let mut all = String::new();
    for text in [
        "proxy: {loglevel: x}",
        "proxi: {}",
        "proxy: {ports: {admin: 4143}}",
        "proxy: {uid: 0}",
        "proxy: {resources: {memory: {request: 2Gi, limit: 1Gi}}}",
        "proxy: {resources: {cpu: {ratioLimit: 2}}}",
        "proxy: {opaquePorts: \"0\"}",
        "clusterNetworks: [10.0.0.0/99]",
        "proxy: {inboundConnectTimeout: 1.5s}",
        "proxy: {defaultInboundPolicy: allow}",
        "[",
    ] {
        all += &error(text);
    }
    expect![[r#"
        failed to read the injection settings (ConfigMap linkerd-config, key `values`): proxy: unknown field `loglevel`, expected one of `image`, `ports`, `uid`, `gid`, `resources`, `logLevel`, `logFormat`, `logHTTPHeaders`, `accessLog`, `opaquePorts`, `requireIdentityOnInboundPorts`, `defaultInboundPolicy`, `outboundConnectTimeout`, `inboundConnectTimeout`, `outboundDiscoveryCacheUnusedTimeout`, `inboundDiscoveryCacheUnusedTimeout`, `disableOutboundProtocolDetectTimeout`, `disableInboundProtocolDetectTimeout`, `shutdownGracePeriod`, `await`, `nativeSidecar`, `enableShutdownEndpoint`, `waitBeforeExitSeconds`, `enableExternalProfiles`, `metricsHostnameLabels`, `additionalEnv`, `controlStreams`, `disableIPv6`, `tracing` at line 1 column 9
        failed to read the injection settings (ConfigMap linkerd-config, key `values`): unknown field `proxi`, expected one of `controlNamespace`, `clusterDomain`, `trustDomain`, `clusterNetworks`, `proxy`, `proxyInit`, `cni`, `networkValidator`, `debugContainer`
        injection settings (ConfigMap linkerd-config, key `values`): proxy.ports: [4140, 4143, 4143, 4190] must be four different ports from 1 to 65535
        injection settings (ConfigMap linkerd-config, key `values`): proxy.uid: 0 is root: the proxy's own user is exempt from redirection, so it must be its own
        injection settings (ConfigMap linkerd-config, key `values`): proxy.resources: memory: the request 2Gi is above the limit 1Gi
        injection settings (ConfigMap linkerd-config, key `values`): proxy.resources: cpu.ratioLimit: 2 must be above 0 and at most 1
        failed to read the injection settings (ConfigMap linkerd-config, key `values`): proxy: `0` is not a port: expected a number from 1 to 65535, or a range such as 8000-8010 at line 1 column 8
        failed to read the injection settings (ConfigMap linkerd-config, key `values`): expected networks such as 10.0.0.0/8, not `10.0.0.0/99`
        failed to read the injection settings (ConfigMap linkerd-config, key `values`): proxy: `1.5s` is not a duration: expected a whole number and one unit (ms, s, m, h or d), such as 300ms or 24h at line 1 column 8
        failed to read the injection settings (ConfigMap linkerd-config, key `values`): proxy.defaultInboundPolicy: unknown variant `allow`, expected one of `all-unauthenticated`, `all-authenticated`, `cluster-unauthenticated`, `cluster-authenticated`, `deny`, `audit` at line 1 column 31
        failed to read the injection settings (ConfigMap linkerd-config, key `values`): invalid type: sequence, expected struct ProxyDefaults
    "#]].assert_eq(&all);
}
