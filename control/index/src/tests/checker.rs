//! Whatever happens to the cluster, and in whatever order: what watchers were told last is what a fresh index says.
//!
//! Objects of all kinds come, change and go at random, one by one, in bursts and by relists, with many references among
//! them. The marks that say which answers to compute anew (`dirty`) and the links between tables (`store`) are right
//! only if no answer is ever left behind.

use std::{collections::BTreeMap, fmt::Debug};

use gateway_api::apis::experimental::{grpcroutes::GrpcRoute, httproutes::HttpRoute as GatewayHttpRoute};
use heddle_control_core::{
    discover::{
        DiscoverEndpoints as _, DiscoverInbound as _, DiscoverOutbound as _, DiscoverProfiles as _,
        ServiceTarget, Target, Watched, WorkloadName,
    },
    endpoints::Endpoints,
    inbound::InboundServer,
    outbound::OutboundPolicy,
    profile::Profile,
};
use heddle_k8s::{
    external_workload::ExternalWorkload,
    policy::{
        AuthorizationPolicy, EgressNetwork, HttpLocalRateLimitPolicy, HttpRoute, MeshTLSAuthentication,
        NetworkAuthentication, Server, ServerAuthorization,
    },
    service_profile::ServiceProfile,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fixtures::*;
use crate::{Change, Cluster, Config, ObjectKey, Tracked};

const SEEDS: u64 = 12;
const STEPS: usize = 240;
/// How many steps there are between two comparisons.
const STRIDE: usize = 8;

/// Xorshift: a seed that failed fails again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("less than a usize")
    }

    fn pick<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

type Objects = BTreeMap<(String, String), Value>;

/// What happened to an object: namespace, name, and what it is now.
type Event = (String, String, Option<Value>);

/// Who asks an index; `None`: there is no answer.
type Question<V> = Box<dyn Fn(&Cluster) -> Option<Watched<V>>>;

/// A kind of object: how one is made at random, and how the index is told.
struct Kind {
    make: fn(&mut Random, &str, &str) -> Value,
    cluster_scoped: bool,
    names: &'static [&'static str],
    change: fn(&Cluster, &[Event]),
    reset: fn(&Cluster, &Objects),
}

fn read<K: DeserializeOwned + kube::Resource<DynamicType = ()>>(
    namespace: &str,
    name: &str,
    rest: &Value,
) -> K {
    mk(namespace, name, rest.clone())
}

fn change<K: Tracked + DeserializeOwned + Clone>(cluster: &Cluster, events: &[Event]) {
    let events: Vec<Change<K>> = events
        .iter()
        .map(|(namespace, name, object)| match object {
            Some(object) => Change::Applied(cluster.reduce(&read(namespace, name, object))),
            None => Change::Deleted(ObjectKey::new(namespace, name)),
        })
        .collect();
    cluster.apply_all(events);
}

fn reset<K: Tracked + DeserializeOwned>(cluster: &Cluster, objects: &Objects) {
    let objects: Vec<K> = objects
        .iter()
        .map(|((namespace, name), object)| read(namespace, name, object))
        .collect();
    cluster.reset(&objects);
}

fn kind<K: Tracked + DeserializeOwned + Clone>(
    names: &'static [&'static str],
    make: fn(&mut Random, &str, &str) -> Value,
) -> Kind {
    Kind {
        make,
        cluster_scoped: false,
        names,
        change: change::<K>,
        reset: reset::<K>,
    }
}

const NAMESPACES: [&str; 2] = ["ns", "client"];
const PODS: [&str; 3] = ["p0", "p1", "p2"];
const POD_IPS: [&str; 3] = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
const CLUSTER_IPS: [&str; 3] = ["10.96.0.1", "10.96.0.2", "10.96.0.3"];

fn created(random: &mut Random) -> Value {
    let time = random.pick(&["2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"]);
    j!({"metadata": {"creationTimestamp": time}})
}

fn with(mut object: Value, more: Value) -> Value {
    merge(&mut object, more);
    object
}

fn annotations(random: &mut Random) -> Value {
    match random.below(6) {
        0 => j!({"config.linkerd.io/opaque-ports": "8080"}),
        1 => j!({"config.linkerd.io/default-inbound-policy": "deny"}),
        2 => j!({"config.linkerd.io/proxy-require-identity-inbound-ports": "8080"}),
        3 => j!({"config.linkerd.io/opaque-ports": "80", "config.linkerd.io/skip-inbound-ports": "8080"}),
        _ => j!({}),
    }
}

fn labelled(random: &mut Random) -> Value {
    let app = random.pick(&["a", "b"]);
    j!({"metadata": {"labels": {"app": app}, "annotations": annotations(random)}})
}

fn pod(random: &mut Random, namespace: &str, name: &str) -> Value {
    let ip = random.pick(&POD_IPS);
    let mut object = if random.one_in(3) { j!({}) } else { meshed() };
    merge(
        &mut object,
        j!({
            "spec": {
                "nodeName": "node-a",
                "serviceAccountName": name,
                "hostNetwork": random.one_in(8),
                "containers": [{
                    "name": "app",
                    "ports": [{"name": "http", "containerPort": 8080, "hostPort": if random.one_in(3) { Some(80) } else { None }}],
                    "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}},
                }],
            },
            "status": {"phase": random.pick(&["Running", "Running", "Failed"]), "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "192.0.2.10"},
        }),
    );
    let _ = namespace;
    with(object, labelled(random))
}

fn workload(random: &mut Random, _: &str, _: &str) -> Value {
    let ip = random.pick(&["192.0.2.7", "10.1.0.3"]);
    let spec = j!({"spec": {
        "meshTLS": {"identity": "spiffe://x/vm", "serverName": "vm.x"},
        "ports": [{"name": "http", "port": 8080}],
        "workloadIPs": [{"ip": ip}],
    }});
    with(spec, labelled(random))
}

fn service(random: &mut Random, _: &str, _: &str) -> Value {
    let ip = random.pick(&["10.96.0.1", "10.96.0.2", "10.96.0.3", "None"]);
    let mut object = j!({
        "metadata": {"annotations": annotations(random)},
        "spec": {
            "clusterIP": ip,
            "clusterIPs": [ip],
            "internalTrafficPolicy": random.pick(&["Cluster", "Local"]),
            "ports": [{"name": random.pick(&["http", "other"]), "port": 80, "targetPort": 8080}],
        },
    });
    if random.one_in(4) {
        merge(
            &mut object,
            j!({"metadata": {"annotations": {"timeout.linkerd.io/request": "3s"}}}),
        );
    }
    object
}

fn slice(random: &mut Random, namespace: &str, _: &str) -> Value {
    let endpoints: Vec<Value> = (0..random.below(4))
        .map(|_| {
            let kind = random.pick(&["Pod", "Pod", "ExternalWorkload"]);
            let name = if kind == "Pod" { random.pick(&PODS) } else { "vm" };
            j!({
                "addresses": [random.pick(&POD_IPS)],
                "conditions": {"ready": !random.one_in(4), "serving": true, "terminating": random.one_in(3)},
                "hostname": name,
                "zone": random.pick(&["a", "b"]),
                "targetRef": {"kind": kind, "namespace": namespace, "name": name},
            })
        })
        .collect();
    j!({
        "metadata": {"labels": {"kubernetes.io/service-name": random.pick(&["web", "db"])}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints,
    })
}

fn server(random: &mut Random, _: &str, _: &str) -> Value {
    let selector = random.pick(&["podSelector", "externalWorkloadSelector"]);
    let labels = if random.one_in(2) {
        j!({})
    } else {
        j!({"matchLabels": {"app": "a"}})
    };
    let port = if random.one_in(2) { j!(8080) } else { j!("http") };
    let mut object = created(random);
    object["metadata"]["labels"] = j!({"team": random.pick(&["x", "y"])});
    object["spec"] = j!({
        selector: labels,
        "port": port,
        "proxyProtocol": random.pick(&["unknown", "HTTP/2", "gRPC", "opaque"]),
        "accessPolicy": random.pick(&["deny", "audit"]),
    });
    object
}

fn policy_ref(kind: &str, name: &str) -> Value {
    j!({"group": "policy.linkerd.io", "kind": kind, "name": name})
}

fn policy(random: &mut Random, namespace: &str, _: &str) -> Value {
    let target = match random.below(4) {
        0 => j!({"kind": "Namespace", "name": namespace}),
        1 => policy_ref("HTTPRoute", "r"),
        2 => j!({"group": "gateway.networking.k8s.io", "kind": "GRPCRoute", "name": "r"}),
        _ => policy_ref("Server", random.pick(&["s0", "s1"])),
    };
    let mut tls = policy_ref("MeshTLSAuthentication", "m");
    tls["namespace"] = random.pick(&NAMESPACES).into();
    let required = match random.below(4) {
        0 => j!([]),
        1 => j!([policy_ref("NetworkAuthentication", "n")]),
        _ => j!([tls]),
    };
    let spec = j!({"spec": {"targetRef": target, "requiredAuthenticationRefs": required}});
    with(created(random), spec)
}

fn route(random: &mut Random, _: &str, _: &str) -> Value {
    let parent = match random.below(3) {
        0 => policy_ref("Server", random.pick(&["s0", "s1"])),
        1 => policy_ref("EgressNetwork", "e"),
        _ => {
            j!({"group": "core", "kind": "Service", "name": "web", "port": 80, "namespace": random.pick(&NAMESPACES)})
        }
    };
    let rule = match random.below(3) {
        0 => j!({"matches": [{"headers": [{"type": "RegularExpression", "name": "x", "value": "("}]}]}),
        1 => j!({"backendRefs": [{"name": random.pick(&["web", "db"]), "port": 80}]}),
        _ => j!({}),
    };
    with(
        created(random),
        j!({"spec": {"parentRefs": [parent], "rules": [rule]}}),
    )
}

fn kinds() -> Vec<Kind> {
    let cluster_scoped = |kind: Kind| Kind {
        cluster_scoped: true,
        ..kind
    };
    vec![
        kind::<Pod>(&PODS, pod),
        kind::<ExternalWorkload>(&["vm"], workload),
        kind::<Service>(&["web", "db"], service),
        kind::<Slice>(&["s0", "s1", "s2"], slice),
        kind::<Server>(&["s0", "s1"], server),
        kind::<AuthorizationPolicy>(&["a0", "a1"], policy),
        kind::<MeshTLSAuthentication>(
            &["m"],
            |random, _, _| j!({"spec": {"identities": [random.pick(&["*", "x.y"])]}}),
        ),
        kind::<NetworkAuthentication>(
            &["n"],
            |random, _, _| j!({"spec": {"networks": [{"cidr": random.pick(&["10.0.0.0/8", "nonsense"])}]}}),
        ),
        kind::<ServerAuthorization>(&["z"], |random, _, _| {
            let labels = j!({"selector": {"matchLabels": {"team": random.pick(&["x", "y"])}}});
            let server = if random.one_in(2) {
                labels
            } else {
                j!({"name": "s0"})
            };
            j!({"spec": {"server": server, "client": {"unauthenticated": true}}})
        }),
        kind::<HttpLocalRateLimitPolicy>(&["l0", "l1"], |random, _, _| {
            let target = policy_ref("Server", random.pick(&["s0", "s1"]));
            with(
                created(random),
                j!({"spec": {"targetRef": target, "total": {"requestsPerSecond": 5}}}),
            )
        }),
        kind::<HttpRoute>(&["r"], route),
        kind::<GatewayHttpRoute>(&["r"], route),
        kind::<GrpcRoute>(&["r"], route),
        kind::<EgressNetwork>(&["e"], |random, _, _| {
            let networks = j!([{"cidr": random.pick(&["0.0.0.0/0", "203.0.113.0/24"])}]);
            j!({"spec": {"trafficPolicy": random.pick(&["Allow", "Deny"]), "networks": networks}})
        }),
        kind::<ServiceProfile>(
            &["web.ns.svc.cluster.local"],
            |random, _, _| j!({"spec": {"opaquePorts": [random.pick(&["80", "81"])], "routes": []}}),
        ),
        cluster_scoped(kind::<Namespace>(
            &NAMESPACES,
            |random, _, _| j!({"metadata": {"annotations": annotations(random)}}),
        )),
        cluster_scoped(kind::<Node>(
            &["node-a"],
            |random, _, _| j!({"metadata": {"labels": {"topology.kubernetes.io/zone": random.pick(&["a", "b"])}}}),
        )),
    ]
}

/// A question, and what its watcher has been told last; `None`: that there is no answer.
struct Asked<V> {
    question: Question<V>,
    name: String,
    watch: Option<Watched<V>>,
    /// Whether an answer to somebody who has asked before is what others get as an error.
    is_absence: fn(&V) -> bool,
}

impl<V: PartialEq + Debug> Asked<V> {
    fn new(name: String, question: impl Fn(&Cluster) -> Option<Watched<V>> + 'static) -> Self {
        Self {
            question: Box::new(question),
            name,
            watch: None,
            is_absence: |_| false,
        }
    }

    /// A client asks again when its watch has ended, or when there was nothing to watch.
    fn check(&mut self, cluster: &Cluster, fresh: &Cluster, seed: u64, step: usize) {
        self.watch = self.watch.take().filter(|watch| watch.has_changed().is_ok());
        if self.watch.is_none() {
            self.watch = (self.question)(cluster);
        }
        let told = self.watch.as_mut().map(|watch| watch.borrow_and_update().clone());
        let told = told.filter(|told| !(self.is_absence)(told));
        let expected = (self.question)(fresh).map(|watch| watch.borrow().clone());
        assert_eq!(told, expected, "seed {seed}, step {step}: {}", self.name);
    }
}

/// All that is asked.
#[derive(Default)]
struct Questions {
    inbound: Vec<Asked<InboundServer>>,
    endpoints: Vec<Asked<Endpoints>>,
    profiles: Vec<Asked<Profile>>,
    outbound: Vec<Asked<OutboundPolicy>>,
}

fn questions() -> Questions {
    let mut all = Questions::default();
    for namespace in NAMESPACES {
        let pods = PODS.map(|name| WorkloadName::pod(namespace, name));
        for workload in pods.into_iter().chain([WorkloadName::external(namespace, "vm")]) {
            for port in [8080, 9090] {
                let workload = workload.clone();
                all.inbound.push(Asked::new(
                    format!("{workload}:{port}"),
                    move |cluster: &Cluster| cluster.inbound(&workload, port).ok(),
                ));
            }
        }
        for (name, instance) in [("web", None), ("db", None), ("db", Some("p0"))] {
            let target = ServiceTarget {
                instance: instance.map(str::to_owned),
                ..target(namespace, name, 80)
            };
            let asked = target.clone();
            all.endpoints.push(Asked {
                is_absence: |endpoints: &Endpoints| !endpoints.exists,
                ..Asked::new(format!("{target:?}"), move |cluster: &Cluster| {
                    cluster.endpoints(&asked).ok()
                })
            });
            about(Target::Service(target), &mut all);
        }
    }
    let others = ["192.0.2.7", "192.0.2.10", "203.0.113.1"];
    for ip in CLUSTER_IPS.into_iter().chain(POD_IPS).chain(others) {
        about(addr(&format!("{ip}:80")), &mut all);
    }
    all
}

fn about(target: Target, all: &mut Questions) {
    for client in NAMESPACES {
        let name = format!("{target:?} for {client}");
        let asked = target.clone();
        all.profiles
            .push(Asked::new(name.clone(), move |cluster: &Cluster| {
                Some(cluster.profile(client, &asked))
            }));
        let asked = target.clone();
        all.outbound.push(Asked::new(name, move |cluster: &Cluster| {
            cluster.outbound(client, &asked).ok()
        }));
    }
}

/// One thing that happens: a few changes of one kind at once, or a relist of it.
fn happen(random: &mut Random, kind: &Kind, objects: &mut Objects, cluster: &Cluster) {
    let burst = if random.one_in(4) { 4 } else { 1 };
    let mut events = Vec::new();
    for _ in 0..burst {
        let namespace = if kind.cluster_scoped {
            ""
        } else {
            random.pick(&NAMESPACES)
        };
        let name = random.pick(kind.names);
        let object = (!random.one_in(4)).then(|| (kind.make)(random, namespace, name));
        let key = (namespace.to_owned(), name.to_owned());
        match &object {
            Some(object) => objects.insert(key.clone(), object.clone()),
            None => objects.remove(&key),
        };
        events.push((key.0, key.1, object));
    }
    match random.one_in(8) {
        true => (kind.reset)(cluster, objects),
        false => (kind.change)(cluster, &events),
    }
}

#[test]
fn watchers_are_told_what_a_fresh_index_says() {
    let kinds = kinds();
    for seed in 1..=SEEDS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let cluster = Cluster::new(Config::default());
        let mut world: Vec<Objects> = kinds.iter().map(|_| Objects::new()).collect();
        let mut asked = questions();
        for step in 0..STEPS {
            let at = random.below(kinds.len());
            happen(&mut random, &kinds[at], &mut world[at], &cluster);
            if step % STRIDE != 0 {
                continue;
            }
            let fresh = Cluster::new(Config::default());
            // In another order than they came.
            for (kind, objects) in kinds.iter().zip(&world).rev() {
                (kind.reset)(&fresh, objects);
            }
            asked
                .inbound
                .iter_mut()
                .for_each(|one| one.check(&cluster, &fresh, seed, step));
            asked
                .endpoints
                .iter_mut()
                .for_each(|one| one.check(&cluster, &fresh, seed, step));
            asked
                .profiles
                .iter_mut()
                .for_each(|one| one.check(&cluster, &fresh, seed, step));
            asked
                .outbound
                .iter_mut()
                .for_each(|one| one.check(&cluster, &fresh, seed, step));
        }
    }
}
