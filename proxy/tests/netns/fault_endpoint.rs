//! Endpoints that vanish, slow down, fail, or are replaced. Outcomes are judged by counts and shares.

use std::time::Duration;

use linkerd2_proxy_api::outbound::{self, failure_accrual, http_route::retry, proxy_protocol::Kind};

use crate::{
    attack::{Honest, long},
    can_run,
    control::Script,
    eventually,
    fault_app::Fickle,
    http_traffic::service,
    net::{Namespace, Network},
    pod::Pod,
    policies::{endpoint, http_rule, outbound_detect, path},
};

/// Endpoints of a service without proxies of their own.
struct Service {
    endpoints: Vec<(Namespace, Fickle)>,
    client: Pod,
}

impl Service {
    fn start(network: &Network, script: &Script, policy: outbound::OutboundPolicy, endpoints: usize) -> Self {
        let endpoints: Vec<_> = (0..endpoints)
            .map(|_| {
                let namespace = network.namespace();
                let app = Fickle::serve(&namespace, 8080);
                (namespace, app)
            })
            .collect();
        let known = endpoints
            .iter()
            .map(|(namespace, _)| endpoint(namespace.ip, 8080, None, false));
        script.set_endpoints(&path("web"), known.collect());
        script.set_outbound(service(), policy);
        Self {
            client: Pod::start(network, script, "client"),
            endpoints,
        }
    }

    fn seen(&self) -> Vec<u32> {
        self.endpoints.iter().map(|(_, app)| app.seen()).collect()
    }

    /// The first endpoint's share of the next so many answers.
    fn share_of_first(&self, honest: &Honest, answers: u32) -> f64 {
        let before = self.seen();
        honest.goes_on(answers, "answers to be shared");
        let grown: Vec<_> = self
            .seen()
            .iter()
            .zip(before)
            .map(|(now, before)| now - before)
            .collect();
        f64::from(grown[0]) / f64::from(grown.iter().sum::<u32>())
    }
}

fn duration(time: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(time).ok()
}

/// Three failures in a row, or too few successes, and an endpoint rests for a minute.
fn accrual(kind: failure_accrual::Kind) -> outbound::FailureAccrual {
    outbound::FailureAccrual {
        kind: Some(kind),
        ejection: Some(outbound::EjectionConfig {
            min_ready_endpoints: 0,
        }),
    }
}

fn backoff() -> Option<outbound::ExponentialBackoff> {
    Some(outbound::ExponentialBackoff {
        min_backoff: duration(Duration::from_secs(60)),
        max_backoff: duration(Duration::from_secs(60)),
        ..Default::default()
    })
}

pub(crate) fn in_a_row(max_failures: u32) -> outbound::FailureAccrual {
    accrual(failure_accrual::Kind::ConsecutiveFailures(
        failure_accrual::ConsecutiveFailures {
            max_failures,
            backoff: backoff(),
        },
    ))
}

fn policy(
    rule: outbound::http_route::Rule,
    accrual: Option<outbound::FailureAccrual>,
) -> outbound::OutboundPolicy {
    let mut policy = outbound_detect("web", rule);
    if let Some(Kind::Detect(detect)) = policy.protocol.as_mut().and_then(|one| one.kind.as_mut())
        && let Some(http1) = &mut detect.http1
    {
        http1.failure_accrual = accrual;
    }
    policy
}

/// A rule whose requests take at most so long.
fn within(time: Duration) -> outbound::http_route::Rule {
    outbound::http_route::Rule {
        timeouts: Some(linkerd2_proxy_api::http_route::Timeouts {
            request: duration(time),
            ..Default::default()
        }),
        ..http_rule("web")
    }
}

/// F7.
#[test]
fn an_endpoint_that_answers_no_packet_is_ejected() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let policy = policy(within(Duration::from_millis(500)), Some(in_a_row(3)));
    let service_pods = Service::start(&network, &script, policy, 5);
    let honest = Honest::start(&service_pods.client.namespace, service(), 4, "/");
    honest.goes_on(100, "all endpoints answer");
    assert!(
        service_pods.seen().iter().all(|seen| *seen > 0),
        "{:?}",
        service_pods.seen()
    );
    let gone = &service_pods.endpoints[0];
    gone.0.drop_packets("tcp dport 8080");
    // Each of two workers ejects it after three failures, when each of four clients may be waiting for it once more. A worker that
    // met it less often avoids it, for it is slow, and may meet it again much later: so nothing is said of when.
    let most = 3 * 2 + 4;
    eventually("the first worker ejects it", || {
        (honest.failed() >= 3).then_some(())
    });
    honest.goes_on(if long() { 10_000 } else { 2_000 }, "the others go on answering");
    let (answered, failed) = honest.finish();
    assert!(failed <= most, "{failed} failed, {answered} did not");
}

/// F8.
#[test]
fn a_slow_endpoint_and_a_failing_one_get_little() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let unified = failure_accrual::Unified {
        success_rate_threshold: 0.8,
        decay: duration(Duration::from_secs(10)),
        min_requests: 5,
        max_consecutive_failures: 0,
        backoff: backoff(),
    };
    let accrual = accrual(failure_accrual::Kind::Unified(unified));
    let service_pods = Service::start(&network, &script, policy(http_rule("web"), Some(accrual)), 5);
    let honest = Honest::start(&service_pods.client.namespace, service(), 4, "/");
    honest.goes_on(200, "all endpoints answer");
    let slow = &service_pods.endpoints[0].1;
    slow.set_delay(Duration::from_secs(2));
    honest.goes_on(100, "the slowness is felt");
    let share = service_pods.share_of_first(&honest, 1_000);
    assert!(share <= 0.2 / 5.0, "the slow one gets {share}");
    slow.set_delay(Duration::ZERO);
    let failing = &service_pods.endpoints[1].1;
    failing.set_fail_percent(50);
    eventually("the failing one is ejected", || {
        let seen = failing.seen();
        honest.goes_on(100, "the others answer");
        (failing.seen() == seen).then_some(())
    });
    let failed = honest.failed();
    // Each of two workers judges by at least five requests of a share that decays.
    assert!(failed <= 40, "{failed} failed before the ejection");
    honest.goes_on(200, "the others go on answering");
    assert_eq!(honest.finish().1, failed);
}

/// F9.
#[test]
fn a_rolling_restart_loses_no_request() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let start = || {
        let pod = Pod::start(&network, &script, "server");
        Fickle::serve(&pod.namespace, 8080);
        pod
    };
    let tell = |pods: &[Pod]| {
        let known = pods
            .iter()
            .map(|pod| endpoint(pod.namespace.ip, 8080, Some("server"), false));
        script.set_endpoints(&path("web"), known.collect());
    };
    let mut pods: Vec<_> = (0..3).map(|_| start()).collect();
    tell(&pods);
    let client = Pod::start(&network, &script, "client");
    let honest = Honest::start(&client.namespace, service(), 4, "/");
    honest.goes_on(50, "the old pods answer");
    let restarts = if long() { 50 } else { pods.len() };
    for _ in 0..restarts {
        pods.push(start());
        tell(&pods);
        honest.goes_on(20, "a new pod has come");
        // As Kubernetes does it: the endpoint goes and the pod is told to end, at the same time.
        let mut old = pods.remove(0);
        old.terminate();
        tell(&pods);
        assert_eq!(old.exit_code(), Some(0));
        honest.goes_on(20, "an old pod has gone");
    }
    let (answered, failed) = honest.finish();
    assert_eq!(failed, 0, "of {}", answered + failed);
}

/// F18, the breaker: a service that fails is left alone.
#[test]
fn a_service_that_only_fails_is_not_asked_again_and_again() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let service_pods = Service::start(&network, &script, policy(http_rule("web"), Some(in_a_row(7))), 2);
    for (_, app) in &service_pods.endpoints {
        app.set_fail_percent(100);
    }
    let honest = Honest::start(&service_pods.client.namespace, service(), 16, "/");
    // Each waits for an endpoint in vain, and is told so.
    eventually("clients are told", || (honest.failed() >= 70).then_some(()));
    let seen: u32 = service_pods.seen().iter().sum();
    let (_, failed) = honest.finish();
    // Two workers open their breakers for two endpoints each; what is under way then still arrives.
    assert!(seen <= 7 * 2 * 2 + 16, "{seen} requests for {failed}");
}

/// Retries of everything that the server failed at.
fn retried(max_retries: u32) -> outbound::http_route::Rule {
    outbound::http_route::Rule {
        retry: Some(outbound::http_route::Retry {
            max_retries,
            max_request_bytes: 1024,
            conditions: Some(retry::Conditions {
                status_ranges: vec![retry::conditions::StatusRange { start: 500, end: 599 }],
            }),
            timeout: None,
            backoff: None,
        }),
        ..http_rule("web")
    }
}

/// F18, the budget: retries add little to what a service gets anyway.
#[test]
fn retries_do_not_become_a_storm() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let service_pods = Service::start(&network, &script, policy(retried(3), None), 2);
    for (_, app) in &service_pods.endpoints {
        app.set_fail_percent(100);
    }
    let asked = 1_000;
    let honest = Honest::start(&service_pods.client.namespace, service(), 4, "/");
    eventually("clients are told", || (honest.failed() >= asked).then_some(()));
    let (answered, failed) = honest.finish();
    assert_eq!(answered, 0);
    // A fifth more, and what is allowed to services with few requests: ten a second, over windows of ten seconds.
    let seen: u32 = service_pods.seen().iter().sum();
    assert!(seen > failed, "there were retries");
    assert!(seen <= failed * 6 / 5 + 200, "{seen} requests for {failed}");
}
